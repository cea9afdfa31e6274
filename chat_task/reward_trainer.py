"""Token rewards from ranked replies, as a `transformers.Trainer`.

    model = TokenRewardModel.from_backbone("HuggingFaceTB/SmolLM2-135M-Instruct", head_init_gain=1.0)
    trainer = TokenRewardTrainer(
        model, TrainingArguments("out", per_device_train_batch_size=4), processing_class=tokenizer,
        train_dataset=rows, eval_dataset=held_out,          # columns prompt, chosen, rejected or completions, scores
    )
    trainer.train()
    trainer.save_reward_model("reward_model")

Everything but loss, batches and figures is the Trainer's: processes, FSDP, precision, accumulation, schedules, hub,
trackers, resuming.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from chat_task.evaluation import MISSING, pairs_of, ranking_figures
from chat_task.ranked_sets import EncodedSets, Known, collate, encode_sets
from chat_task.ranking_rows import Columns, RankingSet, ranking_set
from common.aggregation import aggregate_token_rewards
from common.errors import UserError
from common.grounding_loss import partial_order_losses
from common.language_models.adapters import weights_to_save
from common.language_models.kept_entropies import KeptEntropies
from common.language_models.replies import ReplyFormat
from common.reply_rewards import RewardReading
from common.token_reward_model import TokenRewardModel, saturated
from common.transfers import upload

NO_FSDP = "fsdp: it needs several processes, each with a GPU"


def check_fsdp_version(accelerator: Accelerator) -> None:
    """Refuse the first version of FSDP, whose weights cannot be read one by one.

    Raises:
        UserError: it was asked for.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise UserError("fsdp: rewards of replies are learnt with its version 2; set fsdp_version to 2")


def set_scores(
    rewards: Tensor, ends: Tensor, method: str, temperature: float = 2.0, sizes: Sequence[int] | None = None
) -> Tensor:
    """Scores of the replies of sets of different size: (B, K, R), (B, K, R) -> (B, K); 0 where there is no reply.

    Args:
        rewards: of tokens.
        ends: the tokens whose rewards count; none in a reply that is not there. Replies stand first in their set.
        method, temperature: of :func:`common.aggregation.aggregate_token_rewards`, which compares within a set.
        sizes: replies of each set, where they are known.
    """
    sizes = ends.any(-1).sum(-1).tolist() if sizes is None else sizes
    scores = torch.zeros(ends.shape[:2], dtype=rewards.dtype, device=rewards.device)
    for size in sorted(set(sizes)):
        rows = upload(torch.tensor([b for b, of_set in enumerate(sizes) if of_set == size]), rewards.device)
        part = aggregate_token_rewards(rewards[rows, :size], ends[rows, :size], method, temperature)
        scores = scores.index_put((rows.unsqueeze(1), torch.arange(size, device=rows.device)), part)
    return scores


class TokenRewardTrainer(Trainer):
    """Fits a token reward model to ranked replies.

    The loss of an optimizer step is the mean over its ranking sets, each by its weight, however they are split into
    batches, accumulation steps and processes.

    Args:
        model: the reward model.
        args: of the Trainer. Unused columns are never removed; the data set is read by `columns`.
        train_dataset, eval_dataset: `EncodedSets`, or a sequence of `RankingSet` or of rows (mappings, such as a data
            set of `datasets`), which are then encoded.
        processing_class: the model's tokenizer, where `reply_format` is not given.
        columns: names of the columns of rows.
        reply_format: how texts become tokens.
        reading: where rewards are read, as :class:`RewardReading` has it.
        entropy_model: of the granularity ``segment``: the frozen LM.
        agg_func, agg_temperature: token rewards (of the places where they are read) to the score of a reply.
        options: further ones of the Trainer.

    Raises:
        UserError: rows that are bad, or nothing to encode texts with.
    """

    def __init__(
        self,
        model: TokenRewardModel,
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        columns: Columns | None = None,
        reply_format: ReplyFormat | None = None,
        reading: RewardReading | None = None,
        entropy_model: PreTrainedModel | None = None,
        agg_func: str = "avg",
        agg_temperature: float = 2.0,
        **options: Any,
    ):
        args = args or TrainingArguments("outputs/rewards")
        args.remove_unused_columns = False
        if reply_format is None and processing_class is not None:
            reply_format = ReplyFormat(processing_class, model.is_encoder_decoder)
        self.reply_format, self.reading, self.entropy_model = reply_format, reading or RewardReading(), entropy_model
        self.agg_func, self.agg_temperature = agg_func, agg_temperature
        self._columns = columns or Columns()
        self._since_log: list[Tensor] = []  # tables of batches, where they were computed
        asks_fsdp = args.fsdp_plugin_args is not None
        if asks_fsdp and args.world_size < 2:
            raise UserError(NO_FSDP)
        options = {"data_collator": collate, "compute_metrics": _metrics} | options
        super().__init__(
            model, args, train_dataset=self._encoded(train_dataset), eval_dataset=self._encoded(eval_dataset), **options
        )
        self._check_fsdp(asks_fsdp)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the whole step's weight below
        self.can_return_loss = True
        self.label_names = ["preferences"]

    def train(self, *given: Any, **options: Any) -> Any:
        """See there. A model that was evaluated before is wrapped all the same.

        accelerate marks as prepared what it was given for evaluation, and would not wrap it again: each of several
        processes would train a model of its own.
        """
        vars(self.model).pop("_is_accelerate_prepared", None)
        if self.is_fsdp_enabled and self._fsdp.mixed_precision_policy is not None:
            # In half precision layers alone: what the model gives stays in float32, in which rewards do not tie.
            self._fsdp.mixed_precision_policy = replace(self._fsdp.mixed_precision_policy, output_dtype=None)
        return super().train(*given, **options)

    @property
    def _fsdp(self) -> Any:
        return self.accelerator.state.fsdp_plugin

    def _check_fsdp(self, asked: bool) -> None:
        """Refuse FSDP that would be passed over, of another version than 2, or of a model that it cannot divide.

        Raises:
            UserError: it is so.
        """
        if not self.is_fsdp_enabled:
            if asked:  # on CPUs accelerate does without
                raise UserError(NO_FSDP)
            return
        check_fsdp_version(self.accelerator)
        model = self.reward_model
        weights = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
        ends = {model.get_input_embeddings(), model.get_output_embeddings()} - {None}
        if max(weights.values()) > len(ends):  # accelerate keeps together those that these two share
            kind = model.backbone.config.model_type
            raise UserError(f"fsdp: weights of {kind} that several modules share cannot be divided; go without it")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted losses of the batch's sets over the weight of the whole step (of the batch in evaluation)."""
        known: Known = inputs["known"]
        masks = {"prompt_mask": known.prompt_mask, "reply_mask": known.reply_mask}
        rewards = model(replies=masks | {name: inputs[name] for name in ("prompt_ids", "reply_ids")})
        ends, weights = inputs["ends"], inputs["weights"]
        scores = set_scores(rewards, ends, self.agg_func, self.agg_temperature, known.sizes)
        losses = partial_order_losses(scores, inputs["preferences"], ends.any(-1), known.margins)
        total = weights.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (losses * weights).sum() / total
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over the processes
        table = _table(rewards.detach(), scores.detach(), inputs, self._bound)
        if model.training:
            self._since_log.append(table)
        return (loss, {"table": table, "rewards": rewards}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        """The weight of all sets of an optimizer step, in all processes."""
        if not batch_samples:
            return None
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total

    @torch.no_grad()
    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss of a batch, and the figures of its replies in place of logits."""
        loss, found = self.compute_figures(model, inputs)
        return loss.detach(), found["table"], inputs["preferences"].nan_to_num(-1)

    def compute_figures(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, ``table`` (B, K, len(FIELDS)) and ``rewards`` (B, K, R), in the run's precision."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            return self.compute_loss(model, inputs, return_outputs=True)

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """The Trainer's figures, with the rank accuracy of the batches since the last time beside a training loss."""
        if "loss" in logs:
            table = joined([table.cpu().numpy() for table in self._since_log])
            logs["rank_accuracy"] = float(np.mean(pairs_of(self._of_all_processes(table)).right))
            self._since_log.clear()
        super().log(logs, *args, **options)

    def _of_all_processes(self, table: np.ndarray) -> np.ndarray:
        """The rows of every process."""
        rows = torch.from_numpy(table).to(self.args.device)
        for dim in (0, 1):
            rows = self.accelerator.pad_across_processes(rows, dim=dim, pad_index=MISSING)
        return np.asarray(self.accelerator.gather(rows).cpu())

    def save_reward_model(self, folder: str | Path, reading: RewardReading | None = None) -> None:
        """Write the reward model, adapters merged into it, with tokenizer, format and reading beside it.

        Of several processes all have to call it, and the main one writes.
        """
        weights = weights_to_save(self.reward_model)
        if self.is_world_process_zero():
            self.write_reward_model(folder, weights, reading)

    def write_reward_model(
        self, folder: str | Path, weights: dict[str, Tensor] | None, reading: RewardReading | None = None
    ) -> None:
        """The part of the main process in `save_reward_model`; `weights` are those of `weights_to_save`."""
        self.reward_model.save_pretrained(folder, state_dict=weights)
        if self.reply_format is not None:
            self.reply_format.save(folder)
        (reading or self.reading).save(folder)

    @property
    def reward_model(self) -> TokenRewardModel:
        """The model without what it is wrapped in for training, but for the parts of FSDP."""
        model: TokenRewardModel = self.accelerator.unwrap_model(self.model)
        return model

    @property
    def _bound(self) -> str:
        model: Any = self.model
        return str(model.config.bound)

    def _encoded(self, dataset: Any) -> EncodedSets | None:
        if dataset is None or isinstance(dataset, EncodedSets):
            return dataset
        if self.reply_format is None:
            raise UserError("texts need processing_class, the model's tokenizer, or reply_format")
        sets = [
            row if isinstance(row, RankingSet) else ranking_set(_mapping(row), self._columns, f"row {number}")
            for number, row in enumerate(dataset, start=1)
        ]
        lm = self.entropy_model
        return encode_sets(
            sets, self.reply_format, self.reading, None if lm is None else KeptEntropies(lambda: lm)
        )  # fmt: skip


def _mapping(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(f"a row of the data set is {type(row).__name__}, not a mapping of columns")
    return row


@torch.no_grad()
def _table(rewards: Tensor, scores: Tensor, inputs: Mapping[str, Tensor], bound: str) -> Tensor:
    """The figures of each reply, (B, K, len(FIELDS)), float32; `MISSING` where there is none."""
    ends = inputs["ends"]
    read = rewards.masked_fill(~ends, 0)
    there = ends.any(-1)
    columns = [
        scores,
        inputs["preferences"].to(scores.device),
        inputs["reply_mask"].sum(-1),
        ends.sum(-1),
        read.sum(-1),
        read.square().sum(-1),
        (saturated(rewards, bound) & ends).sum(-1),
    ]
    table = torch.stack([column.float() for column in columns], -1)
    return table.masked_fill(~there.unsqueeze(-1), MISSING)


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    return ranking_figures(np.asarray(prediction.predictions))


def joined(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Tables of sets of different size, one below the other."""
    most = max(table.shape[1] for table in tables)
    padding = [np.pad(t, ((0, 0), (0, most - t.shape[1]), (0, 0)), constant_values=MISSING) for t in tables]
    return np.concatenate(padding)
