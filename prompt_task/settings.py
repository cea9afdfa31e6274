"""The options of the prompt task with their types and ranges. Defaults and explanations: configs/fsc_config.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.aggregation import AGGREGATIONS
from common.data_files import TSV_QUOTING
from common.errors import UserError
from common.token_reward_model import HEADS
from common.training.plateau import PlateauSettings
from common.training.runtime import DTYPES
from common.training.settings import NEUTRAL as RUN_NEUTRAL
from common.training.settings import RunSettings, build_settings, setting

# The options that may differ between a run and its continuation: none of them changes a result.
NEUTRAL = RUN_NEUTRAL | {"output_folder", "checkpoint_path", "save_steps", "report_to_wandb", "sentence_cache_mib"}


@dataclass(frozen=True)
class FewShotSettings(RunSettings):
    """One field an option; see configs/fsc_config.yaml for what each means."""

    base_path: str = setting()
    num_shots: int = setting(minimum=1)
    dataset_seed: int = setting(minimum=0, maximum=4)
    tsv_quoting: str = setting(choices=TSV_QUOTING)

    task_lm: str = setting()
    is_mask_lm: bool | None = setting()
    task_lm_dtype: str = setting(choices=tuple(DTYPES))
    scoring_tokens_per_batch: int | None = setting(minimum=1)
    sentence_cache_mib: int = setting(minimum=0)

    policy_lm: str = setting()
    hidden_size: int = setting(minimum=1)
    adaptor_residual: bool = setting()
    source_str: str = setting()
    prompt_length: int = setting(minimum=1)
    top_k: int | None = setting(minimum=1)
    top_p: float = setting(above=0, maximum=1)

    correct_coeff: float = setting(above=0)
    incorrect_coeff: float = setting(above=0)
    compute_zscore: bool = setting()

    agg_func: str = setting(choices=AGGREGATIONS)
    soft_maxmin_temp: float = setting(above=0)
    use_softplus: bool = setting()
    rew_head: str = setting(choices=HEADS)
    rew_freeze_backbone: bool = setting()
    head_init_gain: float = setting(above=0)
    reward_learning_samples: int = setting(minimum=2)
    reward_learning_batch_size: int = setting(minimum=1)
    prompt_train_batch_size: int = setting(minimum=2)
    reward_example_share: float = setting(above=0, maximum=1)
    reward_pool_size: int = setting(minimum=0)
    rew_gradient_accumulation_steps: int = setting(minimum=1)
    rew_num_train_epochs: int = setting(minimum=1)
    rew_max_train_steps: int = setting(minimum=1)
    rew_validation_batches: int = setting(minimum=1)
    rew_learning_rate: float = setting(above=0)
    reward_retrain_period: int = setting(minimum=1)

    guidance: str = setting(choices=("token", "sequence"))
    use_q_for_weight: bool = setting()
    reinforce_baseline: bool = setting()
    num_reinforce_samples: int = setting(minimum=1)
    max_entropy_coeff: float = setting(minimum=0)
    max_train_steps: int = setting(minimum=1)
    learning_rate: float = setting(above=0)
    early_stop_eval_period: int = setting(minimum=1)
    num_validation_prompts: int = setting(minimum=1)

    gradient_clip: bool = setting()
    gradient_clip_norm: float = setting(above=0)
    lr_decay: float = setting(above=0, maximum=1)
    weight_decay_count: int = setting(minimum=0)
    early_stop_count: int = setting(minimum=1)

    eval_steps: int = setting(minimum=1)
    candidate_steps: int = setting(minimum=1)
    prompt_infer_batch_size: int = setting(minimum=1)
    num_final_prompts: int = setting(minimum=1)
    num_candidates: int = setting(minimum=1)
    num_reported: int = setting(minimum=1)

    mixed_precision: str = setting(choices=("no", "bf16", "fp16"))
    random_seed: int = setting(minimum=0, maximum=2**32 - 1)
    output_folder: str | None = setting()
    checkpoint_path: str | None = setting()
    save_steps: int = setting(minimum=0)
    report_to_wandb: bool = setting()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "FewShotSettings":
        """Check every option and those that only make sense together.

        Raises:
            UserError: see `build_settings`; or two options contradict each other.
        """
        settings = build_settings(cls, values)
        if settings.reward_learning_samples > settings.prompt_train_batch_size:
            raise UserError(
                f"reward_learning_samples: a set of {settings.reward_learning_samples} prompts cannot be drawn from "
                f"prompt_train_batch_size={settings.prompt_train_batch_size}"
            )
        if 0 < settings.reward_pool_size < settings.prompt_train_batch_size:
            raise UserError(
                f"reward_pool_size: {settings.reward_pool_size} is smaller than "
                f"prompt_train_batch_size={settings.prompt_train_batch_size}; 0 turns the pool off"
            )
        if settings.rew_max_train_steps < settings.rew_num_train_epochs:
            raise UserError(
                f"rew_max_train_steps: {settings.rew_max_train_steps} steps cannot fill "
                f"rew_num_train_epochs={settings.rew_num_train_epochs} epochs"
            )
        if settings.rew_head == "likelihood" and settings.rew_freeze_backbone:
            raise UserError("rew_freeze_backbone: with rew_head=likelihood the backbone is all there is to learn")
        if settings.guidance == "sequence" and settings.use_q_for_weight:
            raise UserError("use_q_for_weight: the reward-to-go is for guidance=token only")
        if settings.reinforce_baseline and settings.num_reinforce_samples < 2:
            raise UserError("reinforce_baseline: it is the mean of the other samples; num_reinforce_samples=1 has none")
        if settings.num_reported > settings.num_candidates:
            raise UserError(f"num_reported: at most num_candidates={settings.num_candidates}")
        if settings.resume != "none" and settings.checkpoint_path:
            raise UserError(
                f"resume={settings.resume} and checkpoint_path both say where to go on from; set one of them"
            )
        settings.check_switches()
        return settings

    @property
    def trackers(self) -> tuple[str, ...]:
        """Trackers asked for, each once."""
        return tuple(dict.fromkeys((*self.report_to, *(["wandb"] if self.report_to_wandb else []))))

    @property
    def clip_norm(self) -> float | None:
        """Largest gradient norm, or None."""
        return self.gradient_clip_norm if self.gradient_clip else None

    @property
    def token_guidance(self) -> str:
        """The name by which `token_weights` knows this run's guidance."""
        if self.guidance == "sequence":
            return "sequence"
        return "reward-to-go" if self.use_q_for_weight else "reward"

    def plateau(self, higher_is_better: bool) -> PlateauSettings:
        """The schedule and early-stop rule of one of the two models."""
        return PlateauSettings(
            factor=self.lr_decay,
            patience=self.weight_decay_count,
            stop_after=self.early_stop_count,
            higher_is_better=higher_is_better,
        )
