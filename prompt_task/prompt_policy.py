"""The policy: a frozen causal LM that writes prompts through a small trained adaptor before its own LM head."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.training.files import write_folder_atomic


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
        width = lm.get_output_embeddings().weight.shape[1]
        layers = (nn.Linear(width, hidden_size), nn.Linear(hidden_size, width))
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight, gain=1e-4)
            nn.init.constant_(layer.bias, -1e-4)
        self.adaptor = nn.Sequential(layers[0], nn.ReLU(), layers[1])

    @classmethod
    def from_lm(cls, name: str, **options: Any) -> "PromptPolicy":
        """A fresh policy over the causal LM `name` (hub id, folder or ``builtin/...``)."""
        lm = load_pretrained(AutoModelForCausalLM, name, dtype=torch.float32, complete=True)
        return cls(lm, load_tokenizer(AutoTokenizer, name), name, **options)

    @property
    def device(self) -> torch.device:
        return self.source_ids.device

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states of the frozen LM (..., d) to the policy's logits (..., V)."""
        change = self.adaptor(hidden)
        return self.lm.get_output_embeddings()(hidden + change if self.residual else change)

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
            generator: a CPU generator; the device does not change what is drawn.
            top_k, top_p: truncate the distribution that is drawn from; the logits returned are untruncated.
            with_logits: keep each step's logits, with gradient, for the policy loss.

        Raises:
            UserError: training has diverged: there is no distribution to draw from.
        """

        def draw(logits: torch.Tensor, node_of_row: torch.Tensor) -> torch.Tensor:
            kept = truncate_logits(logits, top_k, top_p).softmax(-1).cpu()
            if kept.isnan().any():
                raise UserError("the policy's logits are no finite numbers; a lower learning_rate may help")
            return torch.multinomial(kept[node_of_row], 1, generator=generator).squeeze(1)

        return self._write(count, draw, with_logits)

    @torch.no_grad()
    def logits_at(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """The policy's logits (N, V) where the token `places` (N,) of each prompt (N, T) stands, after those before."""
        source = self.source_ids.expand(len(tokens), -1)
        ids = torch.cat([source, tokens.to(self.device)], 1)
        hidden = self.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
        before = source.shape[1] + places.to(self.device) - 1
        return self.logits(hidden[torch.arange(len(ids), device=self.device), before])

    def greedy(self) -> torch.Tensor:
        """The most probable token at each position: (T,)."""
        return self._write(1, lambda logits, node_of_row: logits.argmax(-1).cpu(), False).tokens[0]

    def _write(self, count: int, choose: Any, with_logits: bool) -> Rollout:
        """Write token by token. Rows that agree so far are one node: the LM reads each distinct prefix once."""
        node_of_row = torch.zeros(count, dtype=torch.long)  # on the CPU, as is all bookkeeping here
        inputs = self.source_ids.unsqueeze(0)  # (nodes, S)
        cache = DynamicCache(config=self.lm.config)
        tokens, kept_logits = [], []
        for position in range(self.prompt_length):
            with torch.no_grad():
                hidden = self.lm.base_model(input_ids=inputs, past_key_values=cache, use_cache=True).last_hidden_state
            with torch.set_grad_enabled(with_logits):
                logits = self.logits(hidden[:, -1])  # (nodes, V)
            token = choose(logits.detach(), node_of_row)  # (N,)
            tokens.append(token)
            if with_logits:
                kept_logits.append(logits[node_of_row.to(logits.device)])
            if position + 1 < self.prompt_length:
                pairs = torch.stack([node_of_row, token], 1)
                nodes, node_of_row = torch.unique(pairs, dim=0, return_inverse=True)
                cache.batch_select_indices(nodes[:, 0].to(self.device))
                inputs = nodes[:, 1:].to(self.device)
        return Rollout(torch.stack(tokens, 1), torch.stack(kept_logits, 1) if with_logits else None)

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


def truncate_logits(logits: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
    """Logits (..., V) with all but the `top_k` largest, and all outside the nucleus `top_p`, at -inf. A new tensor.

    The nucleus is the smallest set of most probable tokens whose probability reaches `top_p`.
    """
    kept = logits
    if top_k is not None and top_k < logits.shape[-1]:
        best = logits.topk(top_k, -1)  # indices, not a threshold: equal logits must not let more than k through
        kept = torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)
    if top_p < 1.0:
        ordered, order = kept.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        kept = kept.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return kept
