"""What was saved is loaded again and asked the same, before a run is called complete."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.errors import UserError
from common.language_models.capabilities import agree, decoder_start_id, exactly, probe_ids
from common.language_models.evaluation_mode import evaluation_mode
from common.token_reward_model import TokenRewardModel, with_start_token


@exactly()
def few_numbers(model: PreTrainedModel) -> Tensor:
    """What a model says of ten tokens, without dropout: logits of a language model, rewards of a reward model."""
    backbone: PreTrainedModel = model.backbone if isinstance(model, TokenRewardModel) else model
    ids = probe_ids(backbone)
    inputs = {"input_ids": ids}
    if backbone.config.is_encoder_decoder:
        start = decoder_start_id(backbone.config)
        inputs["decoder_input_ids"] = ids if start is None else with_start_token(ids, torch.ones_like(ids), start)[0]
    with evaluation_mode(model):
        output = model(**inputs)
    return (output if isinstance(output, Tensor) else output.logits).float().cpu()


def check_saved(name: str, folder: Path, trained: Tensor, load: Callable[[], Tensor]) -> None:
    """Compare what a trained model says with what its folder says once loaded.

    Args:
        name: of the model, for the message.
        folder: where it was saved.
        trained: what the model in memory says of a few tokens, see `few_numbers`.
        load: loads the folder and says the same of it.

    Raises:
        UserError: the folder cannot be loaded, or says something else than by rounding.
    """
    try:
        again = load()
    except UserError as error:
        raise UserError(f"the saved {name} cannot be loaded again, so the run is not complete: {error}") from None
    if not agree(again, trained):
        what = "other shapes"
        if again.shape == trained.shape:
            what = f"numbers that differ by up to {float((again - trained).abs().max()):.3g}"
        raise UserError(
            f"the {name} in '{folder}' is not what was trained, so the run is not complete: loaded again it gives "
            f"{what}"
        )


def weight_sums(weights: Mapping[str, Tensor]) -> Tensor:
    """The sum of each weight, by name: for `check_saved`, of models whose parts lie in several processes."""
    return torch.stack([weights[name].double().sum() for name in sorted(weights)])
