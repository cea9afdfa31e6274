"""Policy and reward model as the options ask for them, fitted to tokenizer and lengths."""

import logging
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedModel

from common.errors import UserError, nearest
from common.language_models.capabilities import (
    DECODER_ONLY,
    ENCODER_DECODER,
    can_read,
    check_trainable,
    decoder_start_id,
    position_limits,
    require_kind,
)
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.reply_rewards import same_tokens
from common.token_reward_model import TokenRewardConfig, TokenRewardModel
from sum_task.policy import SummaryPolicy, auto_class
from sum_task.reward_model import SummaryRewardModel
from sum_task.search import check_search
from sum_task.settings import EvaluationSettings, ModelSettings, TextSettings
from sum_task.text_format import TextFormat, decoder_start, set_languages

logger = logging.getLogger(__name__)


def load_policy(models: ModelSettings, text: TextSettings, search: EvaluationSettings) -> SummaryPolicy:
    """The policy that the options ask for, with pretrained or (model_name_or_path=null) random weights.

    Raises:
        UserError: it cannot be loaded, is no language model that writes, or cannot read sources of such a length.
    """
    if models.use_slow_tokenizer:
        logger.warning("use_slow_tokenizer: transformers has one tokenizer a model today; the flag changes nothing")
    name = models.policy_checkpoint_path or models.model_name_or_path
    config = _policy_config(models, name)
    require_kind(config, str(name or models.config_name or models.model_type), "policy", DECODER_ONLY, ENCODER_DECODER)
    tokenizer_name = models.tokenizer_name or name or models.config_name
    if tokenizer_name is None:
        raise UserError("tokenizer_name: needed for a policy of random weights that is given by model_type")
    tokenizer = load_tokenizer(AutoTokenizer, tokenizer_name)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of '{tokenizer_name}' has no end token, with which a summary could end")
    if name is None:
        lm = auto_class(config).from_config(config)
    else:
        lm = load_pretrained(auto_class(config), name, complete=True, dtype=torch.float32, config=config)
    languages = set_languages(tokenizer, text.source_language, text.target_language, tokenizer_name)
    text_format = _fitted(lm, tokenizer, languages, text)
    _set_generation(lm, search)
    policy = SummaryPolicy(lm, text_format)
    check_trainable(lm, "the policy")
    check_search(policy)
    return policy


def load_reward_model(models: ModelSettings, text: TextSettings, policy: SummaryPolicy) -> SummaryRewardModel:
    """The token reward model that the options ask for; a fresh head unless rew_checkpoint_path is given.

    Raises:
        UserError: it cannot be loaded or cannot read sources of such a length.
    """
    if models.rew_checkpoint_path is not None:
        return SummaryRewardModel.from_pretrained(models.rew_checkpoint_path, policy.format)
    head: dict[str, Any] = {name: getattr(models, name) for name in ("head_hidden_size", "head_init_gain")}
    head |= {"head": models.rew_head, "bound": "softplus" if models.use_softplus else "sigmoid"}
    name = models.reward_model_name
    if name is None:
        model = TokenRewardModel(TokenRewardConfig(backbone=policy.lm.config.to_diff_dict(), **head))
    else:
        model = TokenRewardModel.from_backbone(name, **head)
    tokenizer = policy.tokenizer
    if models.rew_model_name_or_path is not None:
        tokenizer = load_tokenizer(AutoTokenizer, models.rew_model_name_or_path)
        if same_tokens(tokenizer, policy.tokenizer):
            tokenizer = policy.tokenizer
        elif not tokenizer.is_fast or tokenizer.eos_token_id is None:
            raise UserError(
                f"rew_model_name_or_path: the tokenizer of '{name}' differs from the policy's; rewards can be carried "
                "over only from a fast tokenizer with an end token"
            )
    languages: tuple[str | None, ...] = (policy.format.source_language, policy.format.target_language)
    if tokenizer is not policy.tokenizer:
        asked = {"src_lang": text.source_language, "tgt_lang": text.target_language}
        source, target = (code if hasattr(tokenizer, known) else None for known, code in asked.items())
        languages = set_languages(tokenizer, source, target, str(name))
    text_format = _fitted(model.backbone, tokenizer, languages, text)
    model.config.backbone = model.backbone.config.to_diff_dict()  # with what was fitted
    return SummaryRewardModel(model, text_format, policy.format)


def _fitted(model: Any, tokenizer: Any, languages: tuple[str | None, ...], text: TextSettings) -> TextFormat:
    """The text format of a model, whose vocabulary, positions and start token have been fitted to it."""
    needed = 1 + max(tokenizer.get_vocab().values())  # ids may have holes
    if needed > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(needed, mean_resizing=False)
    config = model.config
    text_format = TextFormat(
        tokenizer, bool(config.is_encoder_decoder), text.source_prefix, text.separator,
        text.max_source_length, *languages,
    )  # fmt: skip
    if text_format.is_encoder_decoder and decoder_start_id(config) is None:
        config.decoder_start_token_id = decoder_start(config, tokenizer)[0]  # for whoever loads what is saved
    _fit_positions(model, text_format, text)
    return text_format


def _fit_positions(model: PreTrainedModel, text_format: TextFormat, text: TextSettings) -> None:
    """See that the model has a position for each token it will read; lengthen its position embeddings if it can.

    Raises:
        UserError: it has not, and may not or cannot be lengthened.
    """
    targets = max(text.max_target_length, text.eval_target_length)
    sources = text.max_source_length
    start = decoder_start(model.config, text_format.tokenizer) if text_format.is_encoder_decoder else ()
    needed = {"source": sources, "target": targets + len(start)}
    if not start:
        needed = {"source": sources + targets}
    limits = dict(zip(("source", "target"), position_limits(model), strict=True))
    missing = [(side, n, limits[side]) for side, n in needed.items() if n > (limits[side] or n)]
    option = {"source": "max_source_length", "target": "max_target_length"}
    lengths = f"max_source_length={sources} and max_target_length={targets}"
    if not missing:
        if limits["source"] is None and not can_read(model, needed["source"]):
            raise UserError(
                f"max_source_length: a {model.config.model_type} cannot read the {needed['source']} tokens of {lengths}"
            )
        return
    side, tokens, limit = missing[0]
    problem = (
        f"{option[side]}: a {model.config.model_type} of {limit} positions cannot read the {tokens} tokens of {lengths}"
    )
    if text.resize_position_embeddings is False:
        raise UserError(f"{problem}; resize_position_embeddings=true lengthens them where the model can")
    try:
        model.resize_position_embeddings(max(needed.values()))
        lengthened = all(n <= (has or n) for n, has in zip(needed.values(), position_limits(model), strict=False))
    except NotImplementedError:
        lengthened = False
    if not lengthened:
        raise UserError(f"{problem}, and its position embeddings cannot be lengthened")
    if text.resize_position_embeddings is None:
        logger.warning("position embeddings are lengthened from %d to %d, the new ones are untrained", limit, tokens)


# What a run sets itself, whatever comes with a model.
_OWN_GENERATION = {
    "do_sample", "temperature", "top_k", "top_p", "num_beams", "max_length", "max_new_tokens", "use_cache",
    "transformers_version", "_from_model_config", "output_attentions", "output_hidden_states",
    "return_dict_in_generate",
}  # fmt: skip


def _set_generation(lm: PreTrainedModel, search: EvaluationSettings) -> None:
    """Settings of search that are given replace those that come with the model; what is kept of these is said."""
    config = lm.generation_config
    assert config is not None
    if search.min_length is not None:
        config.min_length, config.min_new_tokens = None, search.min_length
    if search.no_repeat_ngram_size is not None:
        config.no_repeat_ngram_size = search.no_repeat_ngram_size
    if search.length_penalty is not None:
        if (search.num_beams or 1) == 1:
            raise UserError("length_penalty: only a search with beams has one; num_beams must be above 1")
        config.length_penalty, config.num_beams = search.length_penalty, search.num_beams
    given = {"min_new_tokens": search.min_length, "no_repeat_ngram_size": search.no_repeat_ngram_size}
    given["length_penalty"] = search.length_penalty  # type: ignore[assignment]
    kept = {
        name: value
        for name, value in config.to_diff_dict().items()
        if value is not None
        and name not in _OWN_GENERATION
        and not name.endswith("token_id")
        and given.get(name) is None
    }
    if kept:
        logger.warning(
            "settings that come with the model hold when it writes summaries for validation and test: %s; "
            "min_length, no_repeat_ngram_size and length_penalty set others",
            ", ".join(f"{name}={value}" for name, value in kept.items()),
        )
    least = max(config.min_length or 0, config.min_new_tokens or 0)
    if least >= search.eval_target_length:
        logger.warning(
            "min_length: summaries of at least %d tokens cannot end within %d; 0 sets it off",
            least, search.eval_target_length,
        )  # fmt: skip


def _policy_config(models: ModelSettings, name: str | None) -> Any:
    known = list(CONFIG_MAPPING.keys())
    if models.model_type is not None and models.model_type not in known:
        raise UserError(f"model_type: no family '{models.model_type}'{nearest(models.model_type, known)}")
    source = models.config_name or name
    if source is None:
        return CONFIG_MAPPING[str(models.model_type)]()
    config = load_pretrained(AutoConfig, source)
    if models.model_type is not None and config.model_type != models.model_type:
        raise UserError(f"model_type: '{source}' is a {config.model_type}, not a {models.model_type}")
    return config
