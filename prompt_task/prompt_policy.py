"""The policy: a frozen causal LM that writes prompts through a small trained adaptor before its own LM head."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from common.language_models.capabilities import (
    DECODER_ONLY,
    capabilities,
    head_width,
    position_limits,
    require_kind,
    rows_with_token,
    states_before_head,
    without_cache,
)
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.language_models.sampling import draw_tokens
from common.training.files import write_folder_atomic
from common.transfers import upload

logger = logging.getLogger(__name__)

LOOK_EVERY = 8  # tokens

Choose = Callable[[torch.Tensor, int], torch.Tensor]  # (logits (N, V), position) -> tokens (N,)


@dataclass
class Rollout:
    """Prompts sampled from the policy.

    Attributes:
        tokens: (N, T) token ids.
        logits: (N, T, V) untruncated logits from which each token was drawn, with gradient to the adaptor;
            None where they were not asked for.
    """

    tokens: torch.Tensor
    logits: torch.Tensor | None = None


class PromptPolicy(nn.Module):
    """Writes exactly `prompt_length` tokens from one fixed source text.

    The adaptor, Linear - ReLU - Linear, stands between the LM's last hidden state and its LM head. The published
    form replaces the hidden state, so that with its tiny initial weights the policy starts near the uniform
    distribution; with `residual` it adds to it, so that the policy starts as the LM itself.

    Token ids stay token ids inside the policy: nothing is turned into text and back between two tokens.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        source_str: str = "<|endoftext|>",
        prompt_length: int = 5,
        hidden_size: int = 2048,
        residual: bool = False,
    ):
        super().__init__()
        self.lm = lm.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.settings: dict[str, Any] = {
            "policy_lm": name,
            "source_str": source_str,
            "prompt_length": prompt_length,
            "hidden_size": hidden_size,
            "residual": residual,
        }
        self.prompt_length = prompt_length
        self.residual = residual
        source_ids = tokenizer.encode(source_str, add_special_tokens=False)
        if not source_ids:
            raise UserError(f"source_str: {source_str!r} is no token of '{name}'")
        self.source_ids: torch.Tensor  # (S,)
        self.register_buffer("source_ids", torch.tensor(source_ids), persistent=False)
        width = self._ask(f"policy_lm: '{name}'")
        layers = (nn.Linear(width, hidden_size), nn.Linear(hidden_size, width))
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight, gain=1e-4)
            nn.init.constant_(layer.bias, -1e-4)
        self.adaptor = nn.Sequential(layers[0], nn.ReLU(), layers[1])

    @classmethod
    def from_lm(cls, name: str, **options: Any) -> "PromptPolicy":
        """A fresh policy over the causal LM `name` (hub id, folder or ``builtin/...``)."""
        require_kind(load_pretrained(AutoConfig, name), name, "prompt policy", DECODER_ONLY)
        lm = load_pretrained(AutoModelForCausalLM, name, dtype=torch.float32, complete=True)
        return cls(lm, load_tokenizer(AutoTokenizer, name), name, **options)

    @property
    def device(self) -> torch.device:
        return self.source_ids.device

    def _ask(self, name: str) -> int:
        """Find out what the LM can do, and return the width of the states that its head reads."""
        if int(self.source_ids.max()) >= len(self.lm.get_input_embeddings().weight):
            raise UserError(f"source_str: {self.settings['source_str']!r} has tokens that {name} has no embedding of")
        places, read = position_limits(self.lm)[0], len(self.source_ids) + self.prompt_length
        if places is not None and read > places:
            raise UserError(f"prompt_length: {name} reads at most {places} tokens, not {read} with those of source_str")
        found = capabilities(self.lm, name)
        found.require_left_to_right(self.lm.config.model_type, "prompt policy")
        self.keeps_cache = found.cache_by_rows
        if not self.keeps_cache:
            logger.warning("%s keeps nothing that prompts could share; each beginning is read whole", name)
        self._has_token: torch.Tensor  # (V,)
        self.register_buffer("_has_token", rows_with_token(self.tokenizer, found.vocabulary), persistent=False)
        self._has_holes = not bool(self._has_token.all())
        return head_width(self.lm, name)

    def logits(self, ids: torch.Tensor, last: int = 1) -> torch.Tensor:
        """The policy's logits (N, last, V) after each of the `last` last tokens of `ids` (N, T).

        V ends with the last row of the LM's head to which a token belongs; rows before it without one are the least
        number there is, so that they have no probability.
        """
        logits: torch.Tensor = self.read(ids, last, **without_cache(self.lm)).logits
        return logits

    def read(self, ids: torch.Tensor, last: int = 1, **inputs: Any) -> Any:
        """What the LM gives for `ids` with the adaptor before its head, its logits as `logits` has them."""

        def adapted(states: torch.Tensor) -> torch.Tensor:
            wanted = states[:, -last:].float()
            with torch.autocast(wanted.device.type, enabled=False):  # what is trained stays in float32
                change = self.adaptor(wanted)
            return wanted + change if self.residual else change

        with states_before_head(self.lm, adapted):
            output = self.lm(input_ids=ids, **inputs)
        output.logits = output.logits[..., : len(self._has_token)]
        if self._has_holes:
            output.logits = output.logits.masked_fill(~self._has_token, torch.finfo(output.logits.dtype).min)
        return output

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        top_k: int | None = None,
        top_p: float = 1.0,
        with_logits: bool = False,
    ) -> Rollout:
        """Sample `count` prompts.

        Args:
            generator: a CPU generator of uniform numbers, one of which decides each token; neither the other prompts
                nor the device change what is drawn.
            top_k, top_p: truncate the distribution that is drawn from; the logits returned are untruncated.
            with_logits: keep each step's logits, with gradient, for the policy loss.

        Raises:
            UserError: training has diverged: there is no distribution to draw from.
        """
        uniforms = upload(torch.rand(count, self.prompt_length, generator=generator), self.device)

        def draw(logits: torch.Tensor, position: int) -> torch.Tensor:
            return draw_tokens(logits, uniforms[:, position], top_k, top_p)

        return self._write(count, draw, with_logits)

    def with_source(self, tokens: torch.Tensor) -> torch.Tensor:
        """Prompts (N, T) behind the source text, (N, S + T)."""
        return torch.cat([self.source_ids.expand(len(tokens), -1), tokens.to(self.device)], 1)

    @torch.no_grad()
    def logits_at(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The policy's logits (N, V) where the token `places` (N,) of each prompt (N, T) stands, after those before."""
        logits = self.logits(self.with_source(tokens)[:, :-1], last=tokens.shape[1])
        return logits[torch.arange(len(logits)), places.cpu()]

    def greedy(self) -> torch.Tensor:
        """The most probable token at each position: (T,)."""
        return self._write(1, lambda logits, position: logits.argmax(-1), False).tokens[0]

    def _write(self, count: int, choose: Choose, with_logits: bool) -> Rollout:
        """Write token by token. Rows that agree so far are one node: the LM reads each distinct prefix once.

        Which rows agree is looked up after each token on a CPU, and after every eighth where that would be waited for.
        """
        node_of_row = torch.zeros(count, dtype=torch.long, device=self.device)
        inputs = self.source_ids.unsqueeze(0)  # (nodes, S)
        options: dict[str, Any] = {"use_cache": True} if self.keeps_cache else without_cache(self.lm)
        is_finite = torch.ones((), dtype=torch.bool, device=self.device)
        tokens, kept_logits = [], []
        for position in range(self.prompt_length):
            with torch.set_grad_enabled(with_logits):
                output = self.read(inputs, 1, **options)
                logits = output.logits[:, 0][node_of_row]  # (N, V)
            token = choose(logits.detach(), position)  # (N,)
            is_finite = is_finite & logits.detach().amax(-1).isfinite().all()
            tokens.append(token)
            if with_logits:
                kept_logits.append(logits)
            if position + 1 < self.prompt_length:
                if self.device.type == "cpu" or (position + 1) % LOOK_EVERY == 0:
                    nodes, node_of_row = torch.unique(torch.stack([node_of_row, token], 1), dim=0, return_inverse=True)
                    parents, written = nodes[:, 0], nodes[:, 1:]
                else:
                    parents, written = node_of_row, token.unsqueeze(1)
                    node_of_row = torch.arange(count, device=self.device)
                if self.keeps_cache:
                    inputs, options["past_key_values"] = written, output.past_key_values
                    output.past_key_values.batch_select_indices(parents)
                else:
                    inputs = torch.cat([inputs[parents], written], 1)
        *columns, finite = torch.stack([*tokens, is_finite.long().expand(count)]).cpu()  # one wait for the device
        if not finite.all():
            raise UserError("the policy's logits are no finite numbers; a lower learning_rate may help")
        return Rollout(torch.stack(columns, 1), torch.stack(kept_logits, 1) if with_logits else None)

    def text(self, tokens: torch.Tensor) -> str:
        """The one text form of a prompt (T,): its tokens decoded, nothing stripped or cleaned."""
        ids = tokens.tolist()
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def texts(self, tokens: torch.Tensor) -> list[str]:
        """`text` of each row of (N, T)."""
        return [self.text(row) for row in tokens]

    def token_texts(self, tokens: torch.Tensor) -> list[str]:
        """The text of each single token of a prompt (T,), for display."""
        return [self.text(token.unsqueeze(0)) for token in tokens]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adaptor, the settings and the name of the frozen LM; the LM's own weights are not copied."""
        with write_folder_atomic(Path(folder)) as temporary:
            weights = {name: p.detach().cpu().contiguous() for name, p in self.adaptor.state_dict().items()}
            save_file(weights, temporary / "adaptor.safetensors", metadata={"format": "pt"})
            (temporary / "policy.json").write_text(json.dumps(self.settings, indent=2), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PromptPolicy":
        """Load a policy that `save_pretrained` wrote, with its frozen LM.

        Raises:
            UserError: the folder is not one, or its adaptor does not fit.
        """
        folder = Path(folder)
        try:
            settings = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
            policy = cls.from_lm(settings.pop("policy_lm"), **settings)
            policy.adaptor.load_state_dict(load_file(folder / "adaptor.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"'{folder}' does not hold a prompt policy: {error}") from None
        return policy
