"""The options of rewards for replies, their types and ranges. Defaults and explanations: configs/chat_config.yaml."""

from dataclasses import dataclass

from chat_task.data import BAD_ROWS, BUILTIN_DATA
from chat_task.ranked_sets import LONG_ROWS
from chat_task.ranking_rows import Columns
from common.errors import UserError
from common.language_models.replies import PLACE
from common.reply_rewards import BASELINES, PAYMENTS, SCALES
from common.segments import GRANULARITIES
from common.token_reward_model import BOUNDS, HEADS
from common.training.settings import NEUTRAL as RUN_NEUTRAL
from common.training.settings import (
    AdapterSettings,
    NamedRunSettings,
    ScoreSettings,
    TaskSettings,
    option_names,
    setting,
)

STAGES = ("reward", "policy", "all")
PAID_BY = ("learned", "known")
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")  # names are TRL's

# The options that may differ between a run and its continuation: none of them changes a result.
NEUTRAL = RUN_NEUTRAL | {"output_dir"}


@dataclass(frozen=True)
class DataSettings:
    """Where the ranking sets come from; see `load_preferences`."""

    dataset_name: str | None = setting()
    dataset_config: str | None = setting()
    dataset_split: str = setting()
    train_file: str | None = setting()
    validation_file: str | None = setting()
    validation_share: float = setting(above=0, maximum=0.9)
    max_train_samples: int | None = setting(minimum=1)
    max_eval_samples: int | None = setting(minimum=1)
    bad_rows: str = setting(choices=BAD_ROWS)
    pairs_per_set: int | None = setting(minimum=1)
    seed: int = setting(minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True)
class ColumnSettings:
    """Which columns hold what."""

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

    @property
    def names(self) -> Columns:
        """As `load_preferences` takes them."""
        return Columns(
            prompt=self.prompt_column, chosen=self.chosen_column, rejected=self.rejected_column,
            completions=self.completions_column, scores=self.scores_column, ranks=self.ranks_column,
            margin=self.margin_column, weight=self.weight_column, spans=self.spans_column, prompt_end=self.prompt_end,
        )  # fmt: skip


@dataclass(frozen=True)
class TextSettings:
    """How prompts and replies become tokens."""

    prompt_template: str = setting()
    chat_template: str | None = setting()
    max_prompt_length: int = setting(minimum=1)
    max_reply_length: int = setting(minimum=1)
    long_rows: str = setting(choices=LONG_ROWS)


@dataclass(frozen=True)
class ModelSettings(AdapterSettings):
    """The reward model and where its rewards are read."""

    model_name_or_path: str = setting()
    reference_model_name_or_path: str | None = setting()
    rew_checkpoint_path: str | None = setting()
    granularity: str = setting(choices=GRANULARITIES)
    segment_cut: float = setting()
    rew_head: str = setting(choices=HEADS)
    rew_bound: str | None = setting(choices=BOUNDS)
    head_hidden_size: int = setting(minimum=1, maximum=2**16)
    head_init_gain: float = setting(above=0, maximum=1e6)
    trained_layers: int | None = setting(minimum=1)

    @property
    def reference_model(self) -> str:
        """The frozen LM: its surprise ends segments, its likeliest other tokens are what swaps offer."""
        return self.reference_model_name_or_path or self.model_name_or_path

    @property
    def bound(self) -> str:
        """The range of rewards; a linear head has none unless one is asked for."""
        return self.rew_bound or ("none" if self.rew_head == "linear" else "softplus")


@dataclass(frozen=True)
class RewardSettings(ScoreSettings):
    """How the rewards are learnt; most are the Trainer's own."""

    per_device_train_batch_size: int = setting(minimum=1, maximum=10**5)
    per_device_eval_batch_size: int = setting(minimum=1, maximum=10**5)
    gradient_accumulation_steps: int = setting(minimum=1, maximum=10**4)
    num_train_epochs: float = setting(above=0, maximum=1e4)
    learning_rate: float = setting(above=0, maximum=1e3)
    lr_scheduler_type: str = setting()
    warmup_share: float = setting(minimum=0, maximum=1)
    weight_decay: float = setting(minimum=0)
    max_grad_norm: float = setting(minimum=0)
    mixed_precision: str = setting(choices=("no", "bf16", "fp16"))
    trainer_options: str | None = setting()
    eval_steps: int = setting(minimum=0)
    seed: int = setting(minimum=0, maximum=2**32 - 1)
    log_every: int = setting(minimum=1)


@dataclass(frozen=True)
class PolicySettings:
    """How a policy learns from rewards; the same for every granularity."""

    policy_model_name_or_path: str | None = setting()
    paid_by: str = setting(choices=PAID_BY)
    payment: str = setting(choices=PAYMENTS)
    judge_checkpoint_path: str | None = setting()
    policy_eval_prompts: int = setting(minimum=1)
    policy_steps: int = setting(minimum=1)
    prompts_per_step: int = setting(minimum=1)
    samples_per_prompt: int = setting(minimum=2)
    policy_batch_size: int = setting(minimum=1)
    max_reply_length: int = setting(minimum=1)
    policy_learning_rate: float = setting(above=0, maximum=1e3)
    policy_warmup_share: float = setting(minimum=0, maximum=1)
    baseline: str = setting(choices=BASELINES)
    discount: float = setting(minimum=0, maximum=1)
    advantage_scale: str = setting(choices=SCALES)
    policy_loss: str = setting(choices=LOSSES)
    kl_coeff: float = setting(minimum=0, maximum=1e6)
    temperature: float = setting(minimum=1e-3, maximum=1e3)
    policy_lora_rank: int = setting(minimum=0, maximum=2**16)
    policy_lora_alpha: int = setting(minimum=1, maximum=10**6)
    gradient_checkpointing: bool = setting()

    def tables(self, vocabulary: int) -> dict[str, int]:
        """For `check_memory`: the largest tables, of a policy with so many tokens."""
        samples = self.prompts_per_step * self.samples_per_prompt
        return {
            "policy_batch_size x max_reply_length": self.policy_batch_size * self.max_reply_length * vocabulary,
            "prompts_per_step x samples_per_prompt x max_reply_length": samples * self.max_reply_length,
        }

    def accumulation(self, processes: int) -> int:
        """Backward passes of a step.

        Raises:
            UserError: the samples of a step are no multiple of what all processes read at once.
        """
        samples, at_once = self.prompts_per_step * self.samples_per_prompt, self.policy_batch_size * processes
        if samples % at_once:
            raise UserError(
                f"policy_batch_size: {samples} samples of a step (prompts_per_step x samples_per_prompt) are no "
                f"multiple of {self.policy_batch_size} in each of {processes} processes"
            )
        return samples // at_once

    def check_prompts(self, count: int) -> None:
        """Refuse steps of more prompts than there are.

        Raises:
            UserError: naming both numbers.
        """
        if count < self.prompts_per_step:
            raise UserError(f"prompts_per_step: {self.prompts_per_step}, but there are {count} prompts")


@dataclass(frozen=True)
class ChatRunSettings(NamedRunSettings):
    """What the run as such reads."""

    stage: str = setting(choices=STAGES)
    swap_test: bool = setting()


@dataclass(frozen=True)
class ChatSettings(TaskSettings):
    """The options of rewards for replies; see configs/chat_config.yaml for what each means."""

    data: DataSettings
    columns: ColumnSettings
    text: TextSettings
    models: ModelSettings
    reward: RewardSettings
    policy: PolicySettings
    run: ChatRunSettings

    def check(self) -> None:
        """Refuse options that contradict each other."""
        if (self.data.dataset_name is None) == (self.data.train_file is None):
            raise UserError("no data: give either dataset_name or train_file")
        template = self.text.prompt_template
        if PLACE not in template:
            raise UserError(f"prompt_template: {template!r} has no {PLACE}, where the prompt belongs")
        if self.models.trained_layers is not None and self.models.lora_rank:
            raise UserError("trained_layers and lora_rank: upper layers are trained, or adapters; set one of them")
        self.run.check_switches()
        self._check_stage()

    def _check_stage(self) -> None:
        """Refuse a stage that lacks what it needs, or that something else is asked of."""
        stage, paid_by, folder = self.run.stage, self.policy.paid_by, self.models.rew_checkpoint_path
        if paid_by == "known":
            if stage != "policy" or self.models.granularity != "token":
                raise UserError("paid_by=known: the true rewards need no learning; set stage=policy, granularity=token")
            if self.data.dataset_name not in BUILTIN_DATA:
                raise UserError(f"paid_by=known: true rewards are known of {' and '.join(BUILTIN_DATA)} alone")
        if self.policy.judge_checkpoint_path is not None and self.data.dataset_name in BUILTIN_DATA:
            raise UserError(
                f"judge_checkpoint_path: {self.data.dataset_name} has true scores to judge by; leave it out"
            )
        if stage == "policy" and (folder is None) == (paid_by == "learned"):
            raise UserError(
                "stage=policy needs rewards: set rew_checkpoint_path to the reward_model folder of a run, or "
                "paid_by=known for the true rewards of built-in data; not both"
            )

    @property
    def rate_of_length(self) -> str | None:
        """The option by which the learning rate of a step depends on how many steps there are; None: it does not."""
        if self.run.stage != "reward":
            return "policy_warmup_share" if self.policy.policy_warmup_share > 0 else None
        is_constant = self.reward.lr_scheduler_type == "constant" or (
            self.reward.lr_scheduler_type == "constant_with_warmup" and self.reward.warmup_share == 0
        )
        return None if is_constant else "lr_scheduler_type"

    @property
    def policy_model(self) -> str:
        """What the policy starts from."""
        return self.policy.policy_model_name_or_path or self.models.model_name_or_path


# By option and value, the options that a run which has it does not read.
UNREAD = {
    ("stage", "reward"): option_names(PolicySettings) - {"max_reply_length", "gradient_checkpointing"},
    ("stage", "policy"): option_names(RewardSettings) - {"seed", "log_every", "mixed_precision"}
    | option_names(ModelSettings)
    - {"model_name_or_path", "rew_checkpoint_path", "granularity", "gradient_checkpointing"}
    | {"swap_test"},
    ("granularity", "token"): frozenset({"segment_cut"}),
    ("granularity", "sequence"): frozenset({"segment_cut", "discount"}),
    ("payment", "reply"): frozenset({"discount"}),
}
