"""Token reward model: a transformer backbone and a small head that gives every token a bounded reward."""

import math
import os
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput

from common.checks import at_least_float32, check_name, check_positive, real_tokens
from common.errors import UserError
from common.language_models.attention import share_sources
from common.language_models.pretrained import load_pretrained

BOUNDS = ("softplus", "sigmoid")
SOFTPLUS_FLOOR = 1e-8


def bound_rewards(raw: Tensor, bound: str) -> Tensor:
    """Squash the head's raw outputs into the range of rewards.

    ``softplus``, the default of the method: ``x <- 1 - softplus(1 - x)``, then ``x <- m + softplus(x - m)`` with
    ``m = 1e-8``. Smooth, increasing, close to linear around the middle, and within (1e-8, softplus(1) = 1.3133),
    not [0, 1]; the ends are reached by rounding alone. ``sigmoid``: within (0, 1).

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
    else:
        rewards = x.sigmoid()
    return rewards.masked_fill(invalid, 0)


# Rewards within this share of the range from one of its ends count as saturated: the bound's gradient is small there.
SATURATED = 0.02


def saturation_share(rewards: Tensor, bound: str) -> Tensor:
    """Share of token rewards that lie at an end of their range, where a reward hardly moves any more: (), float32.

    Args:
        rewards: bounded rewards of real tokens, any shape.
        bound: one of :data:`BOUNDS`; their range is (0, 1.3133) for softplus and (0, 1) for sigmoid.

    Raises:
        ValueError: another bound.
    """
    check_name(bound, "bound", BOUNDS)
    top = math.log1p(math.e) if bound == "softplus" else 1.0
    return ((rewards < SATURATED * top) | (rewards > (1 - SATURATED) * top)).float().mean()


def with_start_token(token_ids: Tensor, mask: Tensor, start_token_id: int) -> tuple[Tensor, Tensor]:
    """Put the start token before each sequence, as an encoder-decoder reads it.

    Args:
        token_ids: (N, T).
        mask: (N, T), 1 or True at real tokens.
        start_token_id: the decoder's start token.

    Returns:
        Decoder input ids and their mask, (N, T + 1) each. Of the rewards that :class:`TokenRewardModel` gives them,
        ``rewards[:, 1:]`` are those of ``token_ids``; column 0 is the start token's, which nobody chose.
    """
    start = token_ids.new_full((token_ids.shape[0], 1), start_token_id)
    return torch.cat([start, token_ids], dim=1), torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)


class TokenRewardConfig(PreTrainedConfig):
    """What a :class:`TokenRewardModel` is made of.

    Fields:
        backbone: the backbone's own configuration as a dict, ``model_type`` included.
        bound: one of :data:`BOUNDS`.
        head_hidden_size: width of the head's hidden layer.
        head_init_gain: gain of the head's Xavier-uniform initialisation; its biases start at minus this number.
            With the published gain of 1e-4 and learning rate, all rewards are equal to the last bit for the first
            dozens of steps.
    """

    model_type = "token_reward"

    backbone: dict[str, Any] | None = None
    bound: str = "softplus"
    head_hidden_size: int = 2048
    head_init_gain: float = 1e-4

    def __post_init__(self, **kwargs: Any) -> None:
        check_name(self.bound, "bound", BOUNDS)
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

    Backbone -> last hidden state at the position that has just read the token -> Linear -> ReLU -> Linear ->
    :func:`bound_rewards`. The backbone is any decoder-only or encoder-decoder model of transformers; an encoder-only
    one is refused, because its states look ahead: the reward of a token may not depend on what is written after it.

    ``TokenRewardModel(config)`` is initialised at random, :meth:`from_backbone` starts from a pretrained backbone
    with a fresh head, and :meth:`from_pretrained` loads what :meth:`save_pretrained` saved, head included.

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
        self.backbone = AutoModel.from_config(config.backbone_config()) if backbone is None else backbone
        _refuse_encoder_only(self.backbone.config)
        self.is_encoder_decoder = bool(self.backbone.config.is_encoder_decoder)
        self._shares_sources = share_sources(self.backbone)
        self.head = nn.Sequential(
            nn.Linear(self.backbone.config.hidden_size, config.head_hidden_size),
            nn.ReLU(),
            nn.Linear(config.head_hidden_size, 1),
        ).to(self.backbone.dtype)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # transformers calls this for the modules outside of the backbone, which initialises its own.
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=self.config.head_init_gain)
            nn.init.constant_(module.bias, -self.config.head_init_gain)

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str,
        bound: str = "softplus",
        head_hidden_size: int = 2048,
        head_init_gain: float = 1e-4,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """A pretrained backbone (hub id, folder or ``builtin/...`` name) with a fresh head, in evaluation mode.

        The head is drawn from the global torch generator: seed it before.

        Raises:
            UserError: the backbone cannot be loaded completely, or is neither decoder-only nor encoder-decoder.
        """
        backbone = load_pretrained(AutoModel, name_or_path, complete=True, dtype=dtype)
        config = TokenRewardConfig(
            backbone=backbone.config.to_diff_dict(),  # as its own config.json has it, without the local path
            bound=bound,
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
        try:
            fields, _ = TokenRewardConfig.get_config_dict(name, **options)
            found = fields.get("model_type")
            if found is None:
                raise UserError(f"cannot load a token reward model from '{name}': no config.json that says what it is")
            if found != TokenRewardConfig.model_type:
                raise UserError(f"'{name}' holds a {found}, not a token reward model: there is no reward head in it")
            loaded: Any = super().from_pretrained(name, **options)
        except (OSError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
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
        packed_ids, real, positions = _pack(input_ids, attention_mask, "input_ids", "attention_mask")
        encoder = self.backbone.get_encoder()
        packed_states = encoder(input_ids=packed_ids, attention_mask=real.long()).last_hidden_state  # (B, S', d)
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
    ) -> Tensor:
        """Reward of each token, read where the backbone has just read that token.

        Padding may stand on either side: real tokens are moved together before the backbone reads them, so neither
        the amount, the side nor the content of padding changes a reward.

        Args:
            input_ids: decoder-only: the sequences, (N, T). Encoder-decoder: the sources, (B, S).
            attention_mask: of the shape of ``input_ids``, 1 or True at real tokens; all real where not given.
            decoder_input_ids: encoder-decoder: the sequences with the start token, (N, T), see
                :func:`with_start_token`. N is B, or B * K with the K sequences of a source one after the other:
                the encoder runs once a source.
            decoder_attention_mask: (N, T), as above; the start token counts as real.
            encoder_outputs: what :meth:`encode` gave for the sources, instead of ``input_ids``;
                ``attention_mask`` is still needed where sources are padded.

        Returns:
            Rewards, (N, T), float32 (float64 for a float64 model); 0 at masked positions.

        Raises:
            ValueError: naming the argument with a wrong shape or mask, or one the backbone has no use for.
        """
        if self.is_encoder_decoder:
            if decoder_input_ids is None:
                raise ValueError("decoder_input_ids: needed by an encoder-decoder backbone")
            token_ids = decoder_input_ids
            packed_ids, real, positions = _pack(
                decoder_input_ids, decoder_attention_mask, "decoder_input_ids", "decoder_attention_mask"
            )
            sources = self._sources(input_ids, attention_mask, encoder_outputs, num_sequences=token_ids.shape[0])
            hidden = self.backbone(**sources, decoder_input_ids=packed_ids, use_cache=False).last_hidden_state
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
            packed_ids, real, positions = _pack(input_ids, attention_mask, "input_ids", "attention_mask")
            # No real token sees the padding behind it: a causal mask alone is right, and the fast path of attention.
            hidden = self.backbone(
                input_ids=packed_ids, attention_mask=torch.ones_like(packed_ids), use_cache=False
            ).last_hidden_state

        raw = self.head(hidden.to(self.head[0].weight.dtype)).squeeze(-1)  # (N, T') with T' <= T
        packed_rewards = bound_rewards(raw, self.config.bound).masked_fill(~real, 0)
        return packed_rewards.new_zeros(token_ids.shape).scatter(1, positions, packed_rewards)

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
        if attention_mask is not None:
            attention_mask = real_tokens(attention_mask, states.shape[:2], "attention_mask").long()
            attention_mask = attention_mask.repeat_interleave(per_source, dim=0)
        encoder_states = BaseModelOutput(last_hidden_state=states.repeat_interleave(per_source, dim=0))
        return {"encoder_outputs": encoder_states, "attention_mask": attention_mask}


def _refuse_encoder_only(config: PreTrainedConfig) -> None:
    # transformers lists BERT and its kin as causal too, as the decoders nobody uses them as.
    decoder_only = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    if not (config.is_encoder_decoder or decoder_only):
        raise UserError(
            f"a {config.model_type} model reads in both directions or is no language model; "
            "the backbone of a token reward model must be decoder-only or encoder-decoder"
        )


def _pack(token_ids: Tensor, mask: Tensor | None, ids_name: str, mask_name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Move the real tokens of each row to its start and cut the columns that hold none.

    Returns:
        Packed ids (N, T'), a bool tensor (N, T') that is True at real tokens, and the column that each came from
        (N, T'). Padding becomes id 0, which every vocabulary has; the caller's may be -100.
    """
    if token_ids.dim() != 2 or token_ids.numel() == 0 or token_ids.is_floating_point():
        raise ValueError(
            f"{ids_name}: must be token ids of shape (N, T), got {tuple(token_ids.shape)} of {token_ids.dtype}"
        )
    if mask is None:
        mask = torch.ones_like(token_ids)
    real = real_tokens(mask, token_ids.shape, mask_name)
    longest = int(real.sum(dim=-1).max())
    positions = (~real).to(torch.uint8).argsort(dim=-1, stable=True)[:, :longest]
    return token_ids.masked_fill(~real, 0).gather(1, positions), real.gather(1, positions), positions
