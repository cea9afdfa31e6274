"""The options of rewards for replies, their types and ranges. Defaults and explanations: configs/chat_config.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chat_task.data import BAD_ROWS, Columns
from chat_task.ranked_sets import LONG_ROWS
from common.aggregation import AGGREGATIONS
from common.errors import UserError
from common.language_models.replies import PLACE
from common.segments import GRANULARITIES
from common.token_reward_model import BOUNDS, HEADS
from common.training.settings import NEUTRAL as RUN_NEUTRAL
from common.training.settings import RunSettings, build_settings, setting

STAGES = ("reward",)

# The options that may differ between a run and its continuation: none of them changes a result.
NEUTRAL = RUN_NEUTRAL | {"output_dir"}


@dataclass(frozen=True)
class ChatSettings(RunSettings):
    """One field an option; see configs/chat_config.yaml for what each means."""

    stage: str = setting(choices=STAGES)

    dataset_name: str | None = setting()
    dataset_config: str | None = setting()
    dataset_split: str = setting()
    train_file: str | None = setting()
    validation_file: str | None = setting()
    validation_share: float = setting(above=0, maximum=0.9)
    prompt_column: str = setting()
    chosen_column: str = setting()
    rejected_column: str = setting()
    completions_column: str = setting()
    scores_column: str = setting()
    ranks_column: str | None = setting()
    margin_column: str | None = setting()
    weight_column: str | None = setting()
    spans_column: str | None = setting()
    prompt_end: str | None = setting()
    bad_rows: str = setting(choices=BAD_ROWS)
    max_train_samples: int | None = setting(minimum=1)
    max_eval_samples: int | None = setting(minimum=1)
    prompt_template: str = setting()
    chat_template: str | None = setting()
    max_prompt_length: int = setting(minimum=1)
    max_reply_length: int = setting(minimum=1)
    long_rows: str = setting(choices=LONG_ROWS)

    model_name_or_path: str = setting()
    reference_model_name_or_path: str | None = setting()
    rew_checkpoint_path: str | None = setting()

    granularity: str = setting(choices=GRANULARITIES)
    segment_cut: float = setting()
    agg_func: str = setting(choices=AGGREGATIONS)
    soft_maxmin_temp: float = setting(above=0)
    rew_head: str = setting(choices=HEADS)
    rew_bound: str | None = setting(choices=BOUNDS)
    head_hidden_size: int = setting(minimum=1)
    head_init_gain: float = setting(above=0)

    per_device_train_batch_size: int = setting(minimum=1)
    per_device_eval_batch_size: int = setting(minimum=1)
    gradient_accumulation_steps: int = setting(minimum=1)
    num_train_epochs: float = setting(above=0)
    learning_rate: float = setting(above=0)
    lr_scheduler_type: str = setting()
    warmup_share: float = setting(minimum=0, maximum=1)
    weight_decay: float = setting(minimum=0)
    max_grad_norm: float = setting(minimum=0)
    mixed_precision: str = setting(choices=("no", "bf16", "fp16"))
    gradient_checkpointing: bool = setting()
    lora_rank: int = setting(minimum=0)
    lora_alpha: float = setting(above=0)
    trainer_options: str | None = setting()

    eval_steps: int = setting(minimum=0)
    swap_test: bool = setting()

    seed: int = setting(minimum=0, maximum=2**32 - 1)
    output_dir: str | None = setting()
    expid: str | None = setting()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "ChatSettings":
        """Check every option and those that only make sense together.

        Raises:
            UserError: see `build_settings`; or two options contradict each other.
        """
        settings = build_settings(cls, values)
        if (settings.dataset_name is None) == (settings.train_file is None):
            raise UserError("no data: give either dataset_name or train_file")
        if PLACE not in settings.prompt_template:
            raise UserError(f"prompt_template: {settings.prompt_template!r} has no {PLACE}, where the prompt belongs")
        settings.check_switches()
        return settings

    @property
    def columns(self) -> Columns:
        return Columns(
            prompt=self.prompt_column, chosen=self.chosen_column, rejected=self.rejected_column,
            completions=self.completions_column, scores=self.scores_column, ranks=self.ranks_column,
            margin=self.margin_column, weight=self.weight_column, spans=self.spans_column, prompt_end=self.prompt_end,
        )  # fmt: skip

    @property
    def reference_model(self) -> str:
        """The frozen LM: its surprise ends segments, its likeliest other tokens are what swaps offer."""
        return self.reference_model_name_or_path or self.model_name_or_path

    @property
    def bound(self) -> str:
        """The range of rewards; a linear head has none unless one is asked for."""
        return self.rew_bound or ("none" if self.rew_head == "linear" else "softplus")
