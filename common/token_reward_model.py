"""Token reward model: a transformer backbone and a head that gives every token a bounded reward.

Heads, see :data:`HEADS`: ``after``, the published one, reads the state after a token, as does ``linear``, one layer
without a bias; ``likelihood`` takes the token's log-probability by the backbone's own LM head in the state before it.
"""

import inspect
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput

from common.checks import at_least_float32, check_float, check_name, check_positive, check_shape, real_tokens
from common.credit import expected_rewards
from common.errors import UserError
from common.language_models.attention import share_sources
from common.language_models.branches import can_branch, read_branches
from common.language_models.capabilities import (
    DECODER_ONLY,
    ENCODER_DECODER,
    EncoderStates,
    capabilities,
    check_trainable,
    decoder_start_id,
    encode_alone,
    kind_of,
    without_cache,
)
from common.language_models.masks import Masks
from common.language_models.pretrained import check_index, load_pretrained
from common.language_models.shared_prompts import Reader, find_reader, read_from_cache, real_ones
from common.likelihood_head import LikelihoodHead, chosen_log_probabilities, parts
from common.transfers import upload

BOUNDS = ("softplus", "sigmoid", "none")
SOFTPLUS_FLOOR = 1e-8
HEADS = ("after", "likelihood", "linear")


def bound_rewards(raw: Tensor, bound: str) -> Tensor:
    """Squash the head's raw outputs into the range of rewards.

    ``softplus``, the default of the method: ``x <- 1 - softplus(1 - x)``, then ``x <- m + softplus(x - m)`` with
    ``m = 1e-8``. Smooth, increasing, close to linear around the middle, and within (1e-8, softplus(1) = 1.3133),
    not [0, 1]; the ends are reached by rounding alone. ``sigmoid``: within (0, 1). ``none``: as it is.

    A raw NaN gives reward 0 and receives no gradient.

    Args:
        raw: any shape and float dtype.
        bound: one of :data:`BOUNDS`.

    Returns:
        Rewards of the same shape; float32 for half-precision input (1e-8 is zero in float16), else of its dtype.

    Raises:
        ValueError: naming the argument: another bound, or a tensor that is not of a float dtype.
    """
    check_name(bound, "bound", BOUNDS)
    if not raw.is_floating_point():
        raise ValueError(f"raw: must be a float tensor, got {raw.dtype}")
    invalid = raw.isnan()
    x = at_least_float32(raw).masked_fill(invalid, 0)  # before the arithmetic: the gradient of NaN is NaN
    if bound == "softplus":
        x = 1 - F.softplus(1 - x)
        rewards = SOFTPLUS_FLOOR + F.softplus(x - SOFTPLUS_FLOOR)
    elif bound == "sigmoid":
        rewards = x.sigmoid()
    else:
        rewards = x
    return rewards.masked_fill(invalid, 0)


# Rewards within this share of the range from one of its ends count as saturated: the bound's gradient is small there.
SATURATED = 0.02


def saturation_share(rewards: Tensor, bound: str) -> Tensor:
    """Share of token rewards that lie at an end of their range, where a reward hardly moves any more: (), float32.

    Args:
        rewards: bounded rewards of real tokens, any shape.
        bound: one of :data:`BOUNDS`; their range is (0, 1.3133) for softplus and (0, 1) for sigmoid. Without a bound
            the share is 0.

    Raises:
        ValueError: another bound.
    """
    return saturated(rewards, bound).float().mean()


def reward_range(bound: str) -> tuple[float, float] | None:
    """What rewards can be: (0, 1.3133) for softplus, (0, 1) for sigmoid, None without a bound.

    Raises:
        ValueError: another bound.
    """
    check_name(bound, "bound", BOUNDS)
    return {"softplus": (0.0, math.log1p(math.e)), "sigmoid": (0.0, 1.0), "none": None}[bound]


def saturated(rewards: Tensor, bound: str) -> Tensor:
    """True where a reward lies at an end of its range; of the same shape. See :func:`saturation_share`."""
    ends = reward_range(bound)
    if ends is None:
        return torch.zeros_like(rewards, dtype=torch.bool)
    top = ends[1]
    return (rewards < SATURATED * top) | (rewards > (1 - SATURATED) * top)


def with_start_token(token_ids: Tensor, mask: Tensor, start_token_id: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Put the start token before each sequence, as an encoder-decoder reads it.

    Args:
        token_ids: (N, T).
        mask: (N, T), 1 or True at real tokens.
        start_token_id: the decoder's start token; or several that it reads before every sequence, S.

    Returns:
        Decoder input ids and their mask, (N, S + T) each, S = 1 for one. Of the rewards that
        :class:`TokenRewardModel` gives them, ``rewards[:, S:]`` are those of ``token_ids``; before them are the start
        tokens', which nobody chose.
    """
    start = token_ids.new_tensor(start_token_id).view(1, -1).expand(len(token_ids), -1)
    return torch.cat([start, token_ids], dim=1), torch.cat([mask.new_ones(start.shape), mask], dim=1)


class TokenRewardConfig(PreTrainedConfig):
    """What a :class:`TokenRewardModel` is made of.

    Fields:
        backbone: the backbone's own configuration as a dict, ``model_type`` included.
        bound: one of :data:`BOUNDS`.
        head: one of :data:`HEADS`.
        head_hidden_size: width of the hidden layer of the head ``after``. (``linear`` has none and starts at
            N(0, 1 / (d + 1)^2) with d the backbone's width, as in arXiv 2501.02790.)
        head_init_gain: gain of that head's Xavier-uniform initialisation; its biases start at minus this number.
            With the published gain of 1e-4 and learning rate, all rewards are equal to the last bit for the first
            dozens of steps.
        trained_on: what it was trained on, as the run that saved it says: task, data set, preference and so on.
        states_width, encodes_alone: what the backbone answered when it was asked: width of its states (None: not asked
            yet, or its ``hidden_size``), and whether padding changes its encoder's states, so that sources are read
            with those of their length only.
    """

    model_type = "token_reward"

    backbone: dict[str, Any] | None = None
    bound: str = "softplus"
    head: str = "after"
    head_hidden_size: int = 2048
    head_init_gain: float = 1e-4
    trained_on: dict[str, Any] | None = None
    states_width: int | None = None
    encodes_alone: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        check_name(self.bound, "bound", BOUNDS)
        check_name(self.head, "head", HEADS)
        check_positive(self.head_hidden_size, "head_hidden_size")
        check_positive(self.head_init_gain, "head_init_gain")
        super().__post_init__(**kwargs)

    def backbone_config(self) -> PreTrainedConfig:
        """The backbone's configuration as transformers' own object.

        Raises:
            ValueError: ``backbone`` lacks a known ``model_type``.
        """
        fields = dict(self.backbone or {})
        model_type = fields.pop("model_type", None)
        if not isinstance(model_type, str):
            raise ValueError("backbone: must be the configuration of a transformers model as a dict with a model_type")
        fields.pop("dtype", None)  # that of the backbone's own file; the reward model is loaded in one of its own
        return AutoConfig.for_model(model_type, **fields)


class TokenRewardModel(PreTrainedModel):
    """r(s_t, a_t) for every token of a sequence.

    Head ``after``: backbone -> last hidden state at the position that has just read the token -> Linear -> ReLU ->
    Linear -> :func:`bound_rewards`. Head ``linear``: the same with one Linear without a bias. Head ``likelihood``:
    backbone with its LM head -> log-probability of the token at the position before it -> ``scale * log p + offset``
    -> :func:`bound_rewards`; the first token of a sequence, before which nothing was read, counts as certain (log p =
    0).

    The backbone is any decoder-only or encoder-decoder model of transformers; an encoder-only one is refused, because
    its states look ahead: the reward of a token may not depend on what is written after it.

    ``TokenRewardModel(config)`` is initialised at random, :meth:`from_backbone` starts from a pretrained backbone
    with a fresh head, and :meth:`from_pretrained` loads what :meth:`save_pretrained` saved, head included. Both heads
    stay in float32 where the backbone is in half precision or under autocast.

    Example:
        >>> tokenizer = AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M")
        >>> model = TokenRewardModel.from_backbone("HuggingFaceTB/SmolLM2-135M")
        >>> batch = tokenizer(["a fine film", "dull"], padding=True, return_tensors="pt")
        >>> rewards = model(**batch)                                               # (2, T)
        >>> scores = aggregate_token_rewards(rewards[None], batch.attention_mask[None], "sum")  # (1, 2)
    """

    config_class = TokenRewardConfig
    config: TokenRewardConfig
    base_model_prefix = "backbone"

    def __init__(self, config: TokenRewardConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if backbone is None:
            fields = config.backbone_config()
            _refuse_encoder_only(fields)
            backbone = _backbone_class(config.head, fields).from_config(fields)
        self.backbone: PreTrainedModel = backbone
        _refuse_encoder_only(self.backbone.config)
        self.is_encoder_decoder = bool(self.backbone.config.is_encoder_decoder)
        self._no_cache = without_cache(self.backbone)
        self._ask_backbone()
        width = config.states_width or self.backbone.config.get_text_config().hidden_size
        self._shares_sources = share_sources(self.backbone)
        self._masks = Masks(self.backbone)
        self._shares_prompts: bool | None = None
        self._reader: Reader | None = None
        self._can_branch: bool | None = None
        self.head: nn.Module
        if config.head == "likelihood":
            self.head = LikelihoodHead()
        elif config.head == "linear":
            self.head = nn.Linear(width, 1, bias=False)
        else:
            self.head = nn.Sequential(
                nn.Linear(width, config.head_hidden_size),
                nn.ReLU(),
                nn.Linear(config.head_hidden_size, 1),
            )
        # In float32 also on a half-precision backbone: in bf16's 8 bits tokens, and whole sequences, would tie.
        self.head.to(at_least_float32(torch.empty(0, dtype=self.backbone.dtype)).dtype)
        self.checks_start = True  # of the first batch; who puts the start token there himself sets it off
        self._keeps_logits = "logits_to_keep" in inspect.signature(self.backbone.forward).parameters
        self.post_init()

    def get_output_embeddings(self) -> Any:
        """The backbone's, which its head ``likelihood`` alone keeps."""
        return self.backbone.get_output_embeddings()

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: transformers would leave out to make anew what a backbone computes and no file holds."""
        return False

    def _ask_backbone(self) -> None:
        """Find out what the backbone can do; while a saved model is being loaded, what it said before holds."""
        if self.backbone.device.type == "meta":
            return
        can = capabilities(self.backbone, "the backbone of the token reward model")
        check_trainable(self.backbone, "the backbone of the token reward model")
        can.require_left_to_right(self.backbone.config.model_type, "reward model")
        self.config.states_width = can.width
        self.config.encodes_alone = self.is_encoder_decoder and not can.ignores_padding

    def _init_weights(self, module: nn.Module) -> None:
        # transformers calls this for the modules outside of the backbone, which initialises its own.
        if module is self.head and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / (module.in_features + 1))
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=self.config.head_init_gain)
            nn.init.constant_(module.bias, -self.config.head_init_gain)
        elif isinstance(module, LikelihoodHead):
            module.reset_parameters()

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str,
        bound: str = "softplus",
        head_hidden_size: int = 2048,
        head_init_gain: float = 1e-4,
        dtype: torch.dtype = torch.float32,
        head: str = "after",
    ) -> Self:
        """A pretrained backbone (hub id, folder or ``builtin/...`` name) with a fresh head, in evaluation mode.

        The head ``after`` is drawn from the global torch generator: seed it before. ``likelihood`` loads the backbone
        with its LM head and draws nothing.

        Raises:
            UserError: the backbone cannot be loaded completely, or is neither decoder-only nor encoder-decoder.
        """
        fields = load_pretrained(AutoConfig, name_or_path)
        _refuse_encoder_only(fields)
        backbone = load_pretrained(_backbone_class(head, fields), name_or_path, complete=True, dtype=dtype)
        config = TokenRewardConfig(
            backbone=backbone.config.to_diff_dict(),  # as its own config.json has it, without the local path
            bound=bound,
            head=head,
            head_hidden_size=head_hidden_size,
            head_init_gain=head_init_gain,
        )
        return cls(config, backbone=backbone).eval()

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Self:  # type: ignore[override]
        """Load a saved reward model, in evaluation mode; safetensors alone, every weight from the file.

        Args:
            name_or_path: folder or hub id.
            options: those of transformers' own ``from_pretrained``, for example ``dtype``.

        Raises:
            UserError: it cannot be read, is not a token reward model, or lacks weights, of the head for example.
        """
        name = os.fspath(name_or_path)
        # Sizes that do not match are collected with the missing weights, for one error below.
        options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        check_index(name)
        try:
            fields, _ = TokenRewardConfig.get_config_dict(name, **options)
            found = fields.get("model_type")
            if found is None:
                raise UserError(f"cannot load a token reward model from '{name}': no config.json that says what it is")
            if found != TokenRewardConfig.model_type:
                raise UserError(f"'{name}' holds a {found}, not a token reward model: there is no reward head in it")
            loaded: Any = super().from_pretrained(name, **options)
        except UserError:
            raise
        except Exception as error:  # what a stranger's configuration makes transformers raise is not known
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise UserError(f"cannot load a token reward model from '{name}': {reason}") from None
        model, info = loaded
        unusable = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
        if unusable:
            raise UserError(f"'{name}' lacks weights of the token reward model: {', '.join(unusable[:4])}")
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write config.json and safetensors from which :meth:`from_pretrained` gives the same rewards.

        Raises:
            UserError: adapters are attached; transformers would write them alone and lose the head.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            raise UserError("merge the adapters into the token reward model before saving it: its head would be lost")
        super().save_pretrained(save_directory, *args, **kwargs)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encoder states of the sources, (B, S, d), to be used for several targets; 0 at masked positions.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 1 or True at real tokens; all real where not given.

        Raises:
            ValueError: the backbone has no encoder, or an argument makes no sense.
        """
        if not self.is_encoder_decoder:
            raise ValueError("input_ids: only an encoder-decoder backbone can encode sources")
        packed_ids, known, columns = _pack(input_ids, attention_mask, "input_ids", "attention_mask")
        real, positions = upload(known, input_ids.device), upload(columns, input_ids.device)
        encoder = self.backbone.get_encoder()
        if self.config.encodes_alone:
            packed_states = encode_alone(encoder, packed_ids, real)  # (B, S', d)
        else:
            mask = self._masks(real, hides=_may_hide(known))
            packed_states = encoder(input_ids=packed_ids, attention_mask=mask).last_hidden_state
        states = packed_states.new_zeros(*input_ids.shape, packed_states.shape[-1])
        packed_states = packed_states.masked_fill(~real.unsqueeze(-1), 0)
        return states.scatter(1, positions.unsqueeze(-1).expand_as(packed_states), packed_states)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | Tensor | None = None,
        targets_from: int = 0,
        replies: "dict[str, Tensor] | None" = None,
    ) -> Tensor:
        """Reward of each token.

        Padding may stand on either side: real tokens are moved together before the backbone reads them, so neither
        the amount, the side nor the content of padding changes a reward. Masks may lie on the CPU while token ids are
        on a GPU, by whoever knows them there: the CPU then need not wait for the GPU to learn how long sequences are.

        Args:
            input_ids: decoder-only: the sequences, (N, T). Encoder-decoder: the sources, (B, S).
            attention_mask: of the shape of ``input_ids``, 1 or True at real tokens; all real where not given.
            decoder_input_ids: encoder-decoder: the sequences with the start token, (N, T), see
                :func:`with_start_token`. N is B, or B * K with the K sequences of a source one after the other:
                the encoder runs once a source.
            decoder_attention_mask: (N, T), as above; the start token counts as real.
            encoder_outputs: what :meth:`encode` gave for the sources, instead of ``input_ids``;
                ``attention_mask`` is still needed where sources are padded.
            targets_from: the first column whose rewards are wanted, for example behind the source in a sequence of
                both: the head ``likelihood`` computes no logits for what stands before.
            replies: the arguments of :meth:`reply_rewards`, which is then what this call gives: what wraps a model for
                several processes knows no other call.

        Returns:
            Rewards, (N, T), float32 (float64 for a float64 model); 0 at masked positions and before ``targets_from``.

        Raises:
            ValueError: naming the argument with a wrong shape or mask, or one the backbone has no use for.
        """
        if replies is not None:
            return self.reply_rewards(**replies)
        read = self._read(
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, targets_from
        )
        if isinstance(self.head, LikelihoodHead):
            following = F.pad(read.ids[:, read.before + 1 :], (0, 1))  # of the last position: nothing, dropped below
            log_p = chosen_log_probabilities(read.output, following)[:, :-1]
            raw = self.head(log_p if read.first else F.pad(log_p, (1, 0)))
        else:
            raw = self._raw_of_states(read.output)
        return read.placed(bound_rewards(raw, self.config.bound))

    def _raw_of_states(self, states: Tensor) -> Tensor:
        """What a head that reads states says of them: (..., d) -> (...)."""
        weights: dict[str, Tensor] = dict(self.head.named_parameters())
        dtype = next(iter(weights.values())).dtype
        with torch.autocast(states.device.type, enabled=False):
            if dtype.itemsize < 4:  # by FSDP, which rounds the weights of all modules for the time of a pass
                weights = {name: at_least_float32(weight) for name, weight in weights.items()}
                raw: Tensor = functional_call(self.head, weights, (at_least_float32(states),))
            else:
                raw = self.head(states.to(dtype))
        return raw.squeeze(-1)

    def reply_rewards(self, prompt_ids: Tensor, prompt_mask: Tensor, reply_ids: Tensor, reply_mask: Tensor) -> Tensor:
        """Reward of each token of several replies to each prompt, which is read once where the backbone allows it.

        Args:
            prompt_ids, prompt_mask: (B, P), padded on either side; every prompt has a token.
            reply_ids, reply_mask: (B, K, R), padded on the right. A reply without a real token is none, so that prompts
                can have replies of different number. Masks may lie on the CPU, which then waits for no device.

        Returns:
            Rewards, (B, K, R), as of :meth:`forward`; 0 at masked positions.

        Raises:
            ValueError: naming the argument with a wrong shape or mask.
        """
        check_shape(reply_mask, "reply_mask", reply_ids.shape)
        if reply_ids.dim() != 3 or len(reply_ids) != len(prompt_ids):
            raise ValueError(
                f"reply_ids: must be (B, K, R) for {len(prompt_ids)} prompts, got {tuple(reply_ids.shape)}"
            )
        device, count = prompt_ids.device, reply_ids.shape[1]
        chosen = reply_mask.any(-1).flatten().nonzero().squeeze(1)  # (N,) among all B * K
        owners = chosen // count
        ids = reply_ids.flatten(0, 1).index_select(0, upload(chosen, device))  # (N, R)
        mask = reply_mask.flatten(0, 1).index_select(0, chosen).bool()
        shared = not self.is_encoder_decoder and self.shares_prompts
        if shared and not (self._reader is read_from_cache and self._computes_again):
            rewards = self._rewards_behind(prompt_ids, prompt_mask, ids, mask, owners)
            return self._in_places(rewards, chosen, reply_ids.shape)
        prompt_mask, mask, owners = (upload(table, device) for table in (prompt_mask, mask, owners))
        if self.is_encoder_decoder:
            states = self.encode(prompt_ids, prompt_mask)
            if len(chosen) < len(prompt_ids) * count:
                states, prompt_mask = states[owners], prompt_mask[owners]
            start = decoder_start_id(self.backbone.config)
            if start is None:
                raise ValueError("reply_ids: the backbone's configuration names no decoder_start_token_id")
            decoder_ids, decoder_mask = with_start_token(ids, mask, start)
            rewards = self(
                attention_mask=prompt_mask, decoder_input_ids=decoder_ids, decoder_attention_mask=decoder_mask,
                encoder_outputs=states, targets_from=1,
            )[:, 1:]  # fmt: skip
        else:
            whole = torch.cat([prompt_ids[owners], ids], 1)
            real = torch.cat([prompt_mask[owners].bool(), mask], 1)
            width = prompt_ids.shape[1]
            rewards = self(input_ids=whole, attention_mask=real, targets_from=width)[:, width:]
        return self._in_places(rewards, chosen, reply_ids.shape)

    @staticmethod
    def _in_places(rewards: Tensor, chosen: Tensor, shape: torch.Size) -> Tensor:
        """Rewards (N, R) of some of B * K replies as a table (B, K, R); 0 for the others."""
        whole = rewards.new_zeros(shape[0] * shape[1], shape[2])
        return whole.index_copy(0, upload(chosen, rewards.device), rewards).view(shape)

    def score_texts(self, texts: Sequence[Any], sources: Sequence[Any] | None = None, **options: Any) -> list[Any]:
        """Tokens, characters and rewards of replies that are text or messages.

        See `common.language_models.text_scores.score_texts`.

        Raises:
            UserError: the model was loaded from a folder without a tokenizer; or see there.
        """
        from common.language_models.text_scores import score_texts  # which reads this module

        return score_texts(self, texts, sources, **options)

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt is read once for all its replies: asked of the backbone the first time it matters."""
        if self._shares_prompts is None:
            self._reader = None if self.is_encoder_decoder else find_reader(self.backbone)
            self._shares_prompts = self.is_encoder_decoder or self._reader is not None
        return self._shares_prompts

    @property
    def _computes_again(self) -> bool:
        """Whether activations are computed again in the backward pass, which a cache does not survive."""
        return self.training and bool(self.backbone.is_activation_checkpointing)

    def _rewards_behind(
        self, prompt_ids: Tensor, prompt_mask: Tensor, reply_ids: Tensor, reply_mask: Tensor, owners: Tensor
    ) -> Tensor:
        """Rewards (N, R) of replies to prompts that are read once."""
        assert self._reader is not None  # see `shares_prompts`
        real = real_tokens(prompt_mask, prompt_ids.shape, "prompt_mask")
        said = self._reader(self.backbone, prompt_ids, real, reply_ids, reply_mask, owners)  # of the real tokens alone
        if isinstance(self.head, LikelihoodHead):
            raw = self.head(chosen_log_probabilities(said, real_ones(reply_ids, reply_mask)))
        else:
            raw = self._raw_of_states(said)
        rewards = bound_rewards(raw, self.config.bound)
        return rewards.new_zeros(reply_ids.shape).masked_scatter(upload(reply_mask, rewards.device), rewards)

    @torch.no_grad()
    def rewards_of_all(self, targets_from: int = 0, **inputs: Any) -> Tensor:
        """Rewards (N, T - targets_from, V) of every token of the vocabulary in place of each token; no gradient.

        ``[n, t, v]`` is the reward that token v would have at column ``targets_from + t`` of sequence n, after the same
        tokens before it. The head ``likelihood`` gives them in the one pass that :meth:`forward` takes.

        Args:
            targets_from, inputs: as of :meth:`forward`.

        Returns:
            float32 (float64 for a float64 model); 0 at masked positions.

        Raises:
            ValueError: the head is not ``likelihood``; or see :meth:`forward`.
        """
        read = self._read(targets_from=targets_from, **inputs)
        vocabulary = read.output.shape[-1]
        dtype = at_least_float32(read.output[:0]).dtype
        table = read.output.new_zeros(*read.ids.shape[:1], read.width - targets_from, vocabulary, dtype=dtype)
        flat = table.view(-1, vocabulary)
        for targets, _, rewards in self._tables(read):
            flat[targets] = rewards
        return table

    @torch.no_grad()
    def alternative_rewards(self, alternatives: Tensor, targets_from: int = 0, **inputs: Any) -> tuple[Tensor, Tensor]:
        """The reward of each token, and those of K other tokens in its place, from one pass; no gradient.

        Args:
            alternatives: (N, T - targets_from, K) token ids for the columns from ``targets_from`` on.
            targets_from, inputs: as of :meth:`forward`.

        Returns:
            Rewards (N, T - targets_from) and (N, T - targets_from, K), as of :meth:`forward`; 0 at masked positions.

        Raises:
            ValueError: the shape of ``alternatives``; the model does not know, see :attr:`tells_alternatives`; or see
                :meth:`forward`.
        """
        if not self.tells_alternatives:
            raise ValueError(
                f"alternatives: the backbone, a {self.backbone.config.model_type}, cannot be asked for any"
            )
        read, fields = self._packed(targets_from=targets_from, **inputs)
        shape = (len(read.ids), read.width - targets_from)
        check_shape(alternatives, "alternatives", (*shape, alternatives.shape[-1]))
        if isinstance(self.head, LikelihoodHead):
            return self._looked_up(alternatives, self._with_output(read, fields))
        first = read.first_wanted
        columns = upload(read.columns[:, first:], read.ids.device)  # (N, M)
        index = columns.unsqueeze(-1).expand(-1, -1, alternatives.shape[-1])
        others = alternatives.gather(1, (index - targets_from).clamp(min=0))  # (N, M, K)
        states, branches = read_branches(self.backbone, fields, others, first)
        raw = self._raw_of_states(torch.cat([states[:, first:].unsqueeze(2), branches], 2))  # (N, M, 1 + K)
        wanted = upload(read.wanted[:, first:], read.ids.device).unsqueeze(-1)
        rewards = bound_rewards(raw, self.config.bound).masked_fill(~wanted, 0)
        placed = rewards.new_zeros(len(rewards), read.width, rewards.shape[-1])
        placed = placed.scatter(1, columns.unsqueeze(-1).expand_as(rewards), rewards)[:, targets_from:]
        return placed[..., 0], placed[..., 1:]

    @property
    def tells_alternatives(self) -> bool:
        """Whether the rewards of other tokens in a place come from one pass: asked of the backbone the first time."""
        if self._can_branch is None:
            self._can_branch = isinstance(self.head, LikelihoodHead) or can_branch(self.backbone)
        return self._can_branch

    def _looked_up(self, alternatives: Tensor, read: "_Read") -> tuple[Tensor, Tensor]:
        """See `alternative_rewards`: of the head ``likelihood``."""
        dtype = at_least_float32(read.output[:0]).dtype
        rewards = torch.zeros(alternatives.shape[:2], dtype=dtype, device=read.output.device)
        others = torch.zeros(alternatives.shape, dtype=dtype, device=read.output.device)
        for targets, ids, table in self._tables(read):
            rewards.view(-1)[targets] = table.gather(1, ids.unsqueeze(1)).squeeze(1)
            others.flatten(0, 1)[targets] = table.gather(1, alternatives.flatten(0, 1)[targets])
        return rewards, others

    @torch.no_grad()
    def rewards_and_expectations(
        self, policy_logits: Tensor, targets_from: int = 0, likeliest: int = 8, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """The reward of each token, and what a policy's token would have in its place on average: E_{a~policy} r(s, a).

        From one pass. The head ``likelihood``: exact over the policy's whole distribution; the rewards of all tokens
        are made a few positions at a time and never kept. The others: over the policy's likeliest tokens, with their
        probabilities as shares of their sum, see :mod:`common.language_models.branches`.

        Args:
            policy_logits: (N, T - targets_from, V) of the policy for the columns from ``targets_from`` on; tokens that
                one of the two vocabularies lacks are left out.
            likeliest: how many tokens are asked for in each place, where not all are.
            targets_from, inputs: as of :meth:`forward`.

        Returns:
            Rewards and expectations, (N, T - targets_from) each, as of :meth:`forward`; 0 at masked positions.

        Raises:
            ValueError: the model does not know, see :attr:`tells_alternatives`; the shape of ``policy_logits``; or see
                :meth:`forward`.
        """
        check_float(policy_logits, "policy_logits", "(N, T, V)")
        if not isinstance(self.head, LikelihoodHead):
            check_positive(likeliest, "likeliest")
            known = len(self.backbone.get_input_embeddings().weight)  # type: ignore[arg-type]
            logits, tokens = policy_logits[..., :known].topk(min(likeliest, known, policy_logits.shape[-1]), -1)
            rewards, others = self.alternative_rewards(tokens, targets_from=targets_from, **inputs)
            return rewards, expected_rewards(logits, others)
        read = self._read(targets_from=targets_from, **inputs)
        shape = (len(read.ids), read.width - targets_from)
        check_shape(policy_logits, "policy_logits", (*shape, policy_logits.shape[-1]))
        common = min(policy_logits.shape[-1], read.output.shape[-1])
        flat_policy = policy_logits.flatten(0, 1)
        rewards = torch.zeros(shape, dtype=at_least_float32(read.output[:0]).dtype, device=read.output.device)
        expectations = rewards.clone()
        for targets, ids, table in self._tables(read):
            rewards.view(-1)[targets] = table.gather(1, ids.unsqueeze(1)).squeeze(1)
            expected = expected_rewards(flat_policy[None, targets, :common], table[None, :, :common])
            expectations.view(-1)[targets] = expected[0]
        return rewards, expectations

    def _tables(self, read: "_Read") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A few wanted positions at a time: their places in (N * (T - targets_from)), their token ids (M,) and the
        rewards (M, V) of all tokens there."""
        if not isinstance(self.head, LikelihoodHead):
            raise ValueError(f"head: '{self.config.head}' gives no rewards of all tokens, only 'likelihood' does")
        rows, positions = read.wanted.nonzero(as_tuple=True)
        places = rows * (read.width - read.targets_from) + read.columns[rows, positions] - read.targets_from
        rows, positions, places = (upload(index, read.ids.device) for index in (rows, positions, places))
        ids = read.ids[rows, positions]
        for part in parts(len(rows), read.output.shape[-1]):
            states = (positions[part] - 1 - read.before).clamp(min=0)
            log_p = at_least_float32(read.output[rows[part], states]).log_softmax(-1)
            log_p.masked_fill_((positions[part] == 0).unsqueeze(1), 0)
            yield places[part], ids[part], bound_rewards(self.head(log_p), self.config.bound)

    def _read(self, *given: Any, **inputs: Any) -> "_Read":
        """What the backbone says about the sequences; see :meth:`forward`."""
        return self._with_output(*self._packed(*given, **inputs))

    def _packed(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | Tensor | None = None,
        targets_from: int = 0,
    ) -> tuple["_Read", dict[str, Any]]:
        """The sequences as the backbone reads them, and what it is given; see :meth:`forward`."""
        if self.is_encoder_decoder:
            if decoder_input_ids is None:
                raise ValueError("decoder_input_ids: needed by an encoder-decoder backbone")
            token_ids = decoder_input_ids
            ids, real, columns = _pack(
                decoder_input_ids, decoder_attention_mask, "decoder_input_ids", "decoder_attention_mask"
            )
            self._check_start(ids)
            sources = self._sources(input_ids, attention_mask, encoder_outputs, num_sequences=token_ids.shape[0])
            inputs = sources | {"decoder_input_ids": ids}
        else:
            for name, value in (
                ("decoder_input_ids", decoder_input_ids),
                ("decoder_attention_mask", decoder_attention_mask),
                ("encoder_outputs", encoder_outputs),
            ):
                if value is not None:
                    raise ValueError(f"{name}: the backbone is decoder-only")
            if input_ids is None:
                raise ValueError("input_ids: needed by a decoder-only backbone")
            token_ids = input_ids
            ids, real, columns = _pack(input_ids, attention_mask, "input_ids", "attention_mask")
            # No real token sees the padding behind it: a causal mask alone is right, and the fast path of attention.
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return _Read(ids, real, columns, token_ids.shape[1], targets_from), inputs

    def _check_start(self, ids: Tensor) -> None:
        """Warn of sequences without the start token. The first batch tells: looking at each would hold up a GPU."""
        start = decoder_start_id(self.backbone.config)
        if not self.checks_start or start is None:
            return
        self.checks_start = False
        if bool((ids[:, 0] != start).any()):
            warnings.warn(
                f"decoder_input_ids: a sequence begins without the start token {start}, behind which alone its rewards "
                "are right; with_start_token puts it before sequences",
                stacklevel=2,
            )

    def _with_output(self, read: "_Read", inputs: dict[str, Any]) -> "_Read":
        """The same with what the backbone says."""
        if not isinstance(self.head, LikelihoodHead):
            read.output = self.backbone(**inputs, **self._no_cache).last_hidden_state
            return read
        # The logits at a position are about the next token: those from the position before the first target are needed.
        read.first = read.first_wanted
        if self._keeps_logits:
            inputs["logits_to_keep"] = read.ids.shape[1] - read.before
            read.output = self.backbone(**inputs, **self._no_cache).logits
        else:
            read.output = self.backbone(**inputs, **self._no_cache).logits[:, read.before :]
        return read

    def _sources(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        encoder_outputs: BaseModelOutput | Tensor | None,
        num_sequences: int,
    ) -> dict[str, Any]:
        """Encoder states and their mask as the backbone takes them: a row for each sequence, or each source."""
        if (input_ids is None) == (encoder_outputs is None):
            raise ValueError("input_ids: give an encoder-decoder backbone either this or encoder_outputs")
        if input_ids is not None:
            states = self.encode(input_ids, attention_mask)
        else:
            states = encoder_outputs if isinstance(encoder_outputs, Tensor) else encoder_outputs[0]  # type: ignore[index]
        num_sources = states.shape[0]
        if num_sequences % num_sources:
            raise ValueError(f"decoder_input_ids: {num_sequences} rows are no multiple of the {num_sources} sources")
        per_source = 1 if self._shares_sources else num_sequences // num_sources
        mask = None
        if attention_mask is not None:
            known = real_tokens(attention_mask, states.shape[:2], "attention_mask")
            real = upload(known, states.device).repeat_interleave(per_source, dim=0)
            mask = self._masks(real, hides=_may_hide(known))
        encoder_states = EncoderStates(states.repeat_interleave(per_source, dim=0))
        return {"encoder_outputs": encoder_states, "attention_mask": mask}


@dataclass
class _Read:
    """Sequences as the backbone has read them, their real tokens moved to the left.

    Attributes:
        ids, real, columns: see `_pack`, (N, P); the latter two lie where the mask that was given does.
        width: T, columns of the sequences as they were given.
        targets_from: the first column whose rewards are wanted.
        first: the first position whose reward is wanted in any row, 0 for hidden states.
        output: hidden states (N, P, d), or logits (N, P - before, V) from position `before` on.
    """

    ids: Tensor
    real: Tensor
    columns: Tensor
    width: int
    targets_from: int
    first: int = 0
    output: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def first_wanted(self) -> int:
        """The first position whose reward is wanted in any row."""
        return int(((self.columns < self.targets_from) & self.real).sum(-1).min())

    @property
    def before(self) -> int:
        """The position whose logits are about the first wanted token; for the first of all there is none."""
        return max(self.first - 1, 0)

    @property
    def wanted(self) -> Tensor:
        """True at the positions whose rewards are wanted, (N, P)."""
        return self.real & (self.columns >= self.targets_from)

    def placed(self, rewards: Tensor) -> Tensor:
        """Rewards (N, P - first) at the columns that their tokens came from, (N, T)."""
        wanted, columns = (upload(known[:, self.first :], rewards.device) for known in (self.wanted, self.columns))
        rewards = rewards.masked_fill(~wanted, 0)
        return rewards.new_zeros(len(rewards), self.width).scatter(1, columns, rewards)


def _backbone_class(head: str, config: PreTrainedConfig) -> Any:
    """With or without the LM head."""
    if head != "likelihood":
        if type(config) not in MODEL_MAPPING:
            raise UserError(
                f"transformers has no {config.model_type} without its LM head; the reward head 'likelihood' uses that"
            )
        return AutoModel
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _refuse_encoder_only(config: PreTrainedConfig) -> None:
    if kind_of(config) not in (DECODER_ONLY, ENCODER_DECODER):
        raise UserError(
            f"a {config.model_type} model reads in both directions or is no language model; "
            "the backbone of a token reward model must be decoder-only or encoder-decoder"
        )


def _pack(token_ids: Tensor, mask: Tensor | None, ids_name: str, mask_name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Move the real tokens of each row to its start and cut the columns that hold none.

    Returns:
        Packed ids (N, T'), a bool tensor (N, T') that is True at real tokens, and the column that each came from
        (N, T'), both where the mask lies. Padding becomes id 0, which every vocabulary has; the caller's may be -100.
    """
    if token_ids.dim() != 2 or token_ids.numel() == 0 or token_ids.is_floating_point():
        raise ValueError(
            f"{ids_name}: must be token ids of shape (N, T), got {tuple(token_ids.shape)} of {token_ids.dtype}"
        )
    if mask is None:
        mask = torch.ones(token_ids.shape, dtype=torch.bool)
    real = real_tokens(mask, token_ids.shape, mask_name)
    longest = int(real.sum(dim=-1).max())
    columns = (~real).to(torch.uint8).argsort(dim=-1, stable=True)[:, :longest]
    packed = real.gather(1, columns)
    ids = token_ids.gather(1, upload(columns, token_ids.device))
    return ids.masked_fill(~upload(packed, token_ids.device), 0), packed, columns


def _may_hide(real: Tensor) -> bool:
    """Whether a mask hides anything, as far as is known without waiting for a GPU."""
    return real.device.type != "cpu" or not bool(real.all())


AutoConfig.register(TokenRewardConfig.model_type, TokenRewardConfig, exist_ok=True)
AutoModel.register(TokenRewardConfig, TokenRewardModel, exist_ok=True)
