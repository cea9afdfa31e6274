"""Reward learning on ranked replies as a stage of a run: its log, checkpoints, signals, and what it found out."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import DistributedType
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, TrainingArguments

from chat_task.evaluation import (
    answers_by_set,
    by_length_difference,
    by_set_size,
    calibration,
    pairs_of,
    ranking_figures,
)
from chat_task.marked_errors import marked_table, span_figures
from chat_task.ranked_sets import EncodedSets, collate
from chat_task.reward_trainer import NO_FSDP, TokenRewardTrainer, joined
from chat_task.settings import RewardSettings
from chat_task.trainer_in_run import RunCallback, TrainerInRun, TrainerStage
from common.errors import UserError, nearest
from common.language_models.evaluation_mode import evaluation_mode
from common.language_models.replies import ReplyFormat
from common.reply_rewards import RewardReading, padded
from common.reply_surprise import likeliest_others
from common.reporting.intervals import Answers, interval_figures, interval_results
from common.segments import fit_location_normalizer, spread_segments
from common.swaps import draw_places
from common.token_reward_model import TokenRewardModel
from common.training.interruption import Checkpointer
from common.training.progress import progress
from common.training.random_keys import Purpose, keyed_generator
from common.training.run import Run

logger = logging.getLogger(__name__)

# What the Trainer calls what is logged here.
LOGGED = {
    "reward/loss": "loss",
    "reward/rank_accuracy": "rank_accuracy",
    "reward/learning_rate": "learning_rate",
    "reward/gradient_norm": "grad_norm",
    "reward/dev_loss": "eval_loss",
    "reward/dev_rank_accuracy": "eval_rank_accuracy",
    "reward/dev_kendall_tau": "eval_kendall_tau",
    "reward/dev_length_correlation": "eval_length_correlation",
    "reward/dev_token_mean": "eval_token_mean",
    "reward/dev_token_std": "eval_token_std",
    "reward/dev_saturation_share": "eval_saturation_share",
}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a reward model says of the held-out sets.

    Attributes:
        figures: means, for ``results.json``.
        table: of :mod:`chat_task.evaluation`.
        rewards: for each set and reply the reward of each token, a segment's at each of its tokens; nan at an end
            token of none.
    """

    figures: dict[str, Any]
    table: np.ndarray
    rewards: list[list[list[float]]]


class RewardStage(TrainerStage):
    """Trains a reward model within a run. What is left in the run is for its runner to write.

    Args:
        run: which has begun.
        settings: see there.
        model, reply_format, reading: see `load_reward_model`.
        train, validation: ranking sets in the model's tokens.
        arguments: of `training_arguments`.
    """

    def __init__(
        self,
        run: Run,
        settings: RewardSettings,
        model: TokenRewardModel,
        reply_format: ReplyFormat,
        reading: RewardReading,
        train: EncodedSets,
        validation: EncodedSets,
        arguments: TrainingArguments,
    ):
        self._run, self._settings, self._validation = run, settings, validation
        self.reading = reading
        trainer = _Trainer(
            model,
            arguments,
            train_dataset=train,
            eval_dataset=validation,
            reply_format=reply_format,
            reading=reading,
            agg_func=settings.agg_func,
            agg_temperature=settings.soft_maxmin_temp,
        )
        super().__init__("reward", trainer)

    @property
    def model(self) -> TokenRewardModel:
        model: TokenRewardModel = self.trainer.reward_model
        return model

    def bare_model(self) -> TokenRewardModel:
        """The model without what accelerate wraps it in, half precision too: for saving, when all else is done."""
        model: TokenRewardModel = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_fp32_wrapper=False)
        return model

    def train(self, checkpointer: Checkpointer) -> None:
        """All steps.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
        """
        self.take_steps(RunCallback(self._run, checkpointer, "reward", LOGGED, Purpose.REPLY_REWARD_DROPOUT))

    def evaluate(self) -> Found:
        """Everything about the held-out sets; every process finds the same."""
        loss, table, rewards, ends = self._read()
        per_set = self._shown(rewards, ends)
        try:
            padded_rewards, padded_ends = (pad_sequence(rows, batch_first=True) for rows in (rewards, ends))
            normalizer = fit_location_normalizer(padded_rewards, padded_ends)
            self.reading = dataclasses.replace(self.reading, normalizer=normalizer)
        except ValueError as error:
            logger.warning("no normaliser could be fitted: %s", error)
        figures = ranking_figures(table)
        prefers_longer = self._training_prefers_longer()
        bins, calibration_error = calibration(table)
        by_length = by_length_difference(table, prefers_longer)
        figures |= {
            "loss": loss,
            "length_only_accuracy": by_length[0]["length alone"],
            "calibration_error": calibration_error,
        }
        found: dict[str, Any] = {f"reward_{name}": value for name, value in figures.items()}
        found |= interval_results(interval_figures("reward/dev_rank", answers_by_set(table)), "rank")
        found |= {"by_set_size": by_set_size(table), "by_length_difference": by_length, "calibration": bins}
        return Found(found | self.span_figures(per_set), table, per_set)

    def figures_before(self) -> dict[str, float]:
        """What the model says before it has learnt; of a likelihood head: what the likelihood alone knows."""
        _, table, rewards, ends = self._read()
        spans = self.span_figures(self._shown(rewards, ends))
        figures = {"reward_rank_accuracy_before": ranking_figures(table)["rank_accuracy"]}
        return figures | ({"span_auc_before": spans["span_auc"]} if spans else {})

    @torch.no_grad()
    def _read(self) -> tuple[float, np.ndarray, list[Tensor], list[Tensor]]:
        """Reads the held-out replies once.

        Returns:
            Loss, table of :mod:`chat_task.evaluation`, and for the replies of all sets, one behind the other, the
            rewards (T,) of their tokens and the places (T,) where they are read.
        """
        total, weight = 0.0, 0.0
        tables, rewards, ends = [], [], []
        size = self._settings.per_device_eval_batch_size
        with evaluation_mode(self.model):
            for first in progress(range(0, len(self._validation), size), "reading held-out replies", "batch"):
                batch = collate(self._validation[first : first + size])
                loss, found = self.trainer.compute_figures(self.model, batch)
                of_batch = float(batch["weights"].sum())
                total, weight = total + float(loss) * of_batch, weight + of_batch
                tables.append(found["table"].cpu().numpy())
                each = found["rewards"].float().cpu()
                for b, k in batch["reply_mask"].any(-1).nonzero().tolist():
                    length = int(batch["reply_mask"][b, k].sum())
                    rewards.append(each[b, k, :length])
                    ends.append(batch["ends"][b, k, :length])
        return total / weight, joined(tables), rewards, ends

    def span_figures(
        self, rewards: Sequence[Sequence[Sequence[float]]], lm: PreTrainedModel | None = None
    ) -> dict[str, Any]:
        """Whether rewards of the held-out replies point at errors that are marked there, see `span_figures`."""
        return span_figures(marked_table(self._validation, rewards, self.trainer.reply_format, lm))

    @torch.no_grad()
    def swap_answers(self, lm: PreTrainedModel) -> Answers:
        """How often a token of the best reply has a higher reward than the LM's likeliest other one in its place."""
        sets = list(self._validation)
        noise = torch.rand(len(sets), generator=keyed_generator(Purpose.SWAPS, self._settings.seed))
        size, device = self._settings.per_device_eval_batch_size, self.model.device
        pairs = []
        self.model.eval()
        for first in progress(range(0, len(sets), size), "other tokens in held-out replies", "batch"):
            part = sets[first : first + size]
            best = [item.reply_ids[int(np.argmax(item.source.scores))] for item in part]
            ids, mask = padded(best, device)
            prompt_ids, prompt_mask = padded([item.prompt_ids[::-1] for item in part], device)
            prompt_ids, prompt_mask = prompt_ids.flip(1), prompt_mask.flip(1)
            places = draw_places(mask, noise[first : first + size]).unsqueeze(1)
            others = likeliest_others(lm, prompt_ids, ids, (prompt_mask, mask))
            both = torch.stack([ids, ids.scatter(1, places, others.gather(1, places))], 1)  # (B, 2, R)
            replies = {"reply_ids": both, "reply_mask": mask.unsqueeze(1).expand_as(both).bool()}
            rewards = self.model(replies={"prompt_ids": prompt_ids, "prompt_mask": prompt_mask} | replies)
            pairs.append(rewards.gather(2, places.unsqueeze(1).expand(-1, 2, 1)).squeeze(2))
        scores = torch.cat(pairs)
        return Answers.of(((scores[:, 0] - scores[:, 1]).sign().add(1) / 2).tolist(), [1] * len(scores))

    def _shown(self, rewards: Sequence[Tensor], ends: Sequence[Tensor]) -> list[list[list[float]]]:
        """For each set and reply the reward of each token, a segment's at each of its tokens; nan at those of none."""
        each = iter(
            spread_segments(r, e, torch.ones_like(e), "repeat", outside=math.nan).tolist()
            for r, e in zip(rewards, ends, strict=True)
        )
        return [[next(each) for _ in item.reply_ids] for item in self._validation]

    def _training_prefers_longer(self) -> bool:
        """Which way length alone decides best on the training sets."""
        sets: Any = self.trainer.train_dataset
        longer: list[float] = []
        for item in sets:
            lengths, scores = [len(ids) for ids in item.reply_ids], item.source.scores
            longer += [
                float(np.sign(lengths[i] - lengths[j]))
                for i in range(len(scores)) for j in range(len(scores)) if scores[i] > scores[j]
            ]  # fmt: skip
        return sum(longer) >= 0


def learning_options(settings: RewardSettings) -> dict[str, Any]:
    """What `TrainingArguments` are told of batches, rates and precision."""
    options: dict[str, Any] = {
        "num_train_epochs": settings.num_train_epochs,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "per_device_eval_batch_size": settings.per_device_eval_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_share,
        "weight_decay": settings.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.mixed_precision == "bf16",
        "fp16": settings.mixed_precision == "fp16",
        "logging_steps": settings.log_every,
        "seed": settings.seed,
        "report_to": "none",
        "disable_tqdm": True,  # progress is shown as in all runs
    }
    if settings.lr_scheduler_type == "cosine_with_min_lr":
        options["lr_scheduler_kwargs"] = {"min_lr_rate": 0.1}
    return options


def training_arguments(settings: RewardSettings, run: Run) -> TrainingArguments:
    """The Trainer's own options.

    Raises:
        UserError: trainer_options are no YAML mapping, name what there is not or what has an option of its own.
    """
    options: dict[str, Any] = learning_options(settings) | {
        "output_dir": str(run.folder.path / "trainer"),
        "eval_strategy": "steps" if settings.eval_steps else "no",
        "eval_steps": settings.eval_steps or None,
        "use_cpu": run.runtime.device.type == "cpu",
        "save_strategy": "no",  # checkpoints are the run's, see RunCallback
        "save_total_limit": run.options.keep_checkpoints + 1,
    }
    try:
        more = yaml.safe_load(settings.trainer_options or "{}")
    except yaml.YAMLError:
        more = None
    if not isinstance(more, dict):
        raise UserError("trainer_options: must be a YAML mapping, such as '{fsdp: full_shard}'")
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    for name in more:
        if name in options:
            raise UserError(f"trainer_options: '{name}' is decided by an option of the run itself")
        if name not in known:
            raise UserError(
                f"trainer_options: transformers.TrainingArguments has no '{name}'{nearest(str(name), known)}"
            )
    kind = run.engine.accelerator.distributed_type  # before TrainingArguments reset what accelerate knows
    try:
        arguments = TrainingArguments(**options | more)
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"the Trainer refuses its options: {str(error).strip().splitlines()[0]}") from None
    if arguments.fsdp_plugin_args is not None and kind in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise UserError(f"trainer_options: {NO_FSDP}")
    return arguments


class _Trainer(TrainerInRun, TokenRewardTrainer):
    pass


def pairs_count(table: np.ndarray) -> int:
    """Pairs of different preference, which accuracies are shares of."""
    return len(pairs_of(table).margins)
