"""The options of summarization with their types and ranges. Defaults and explanations: configs/sum_config.yaml."""

from dataclasses import dataclass
from functools import partial

from common.credit import CREDITS, NEED_EXPECTATION, SAMPLE_CREDITS, USE_SEQUENCE_SCORES
from common.errors import UserError
from common.token_reward_model import HEADS
from common.training.own_pieces import check_guidance, is_own
from common.training.settings import NEUTRAL as RUN_NEUTRAL
from common.training.settings import (
    AdapterSettings,
    ClipSettings,
    NamedRunSettings,
    ScheduleSettings,
    ScoreSettings,
    TaskSettings,
    option_names,
    setting,
)
from sum_task.preferences import check_own_preference
from sum_task.rouge import WORDS

GUIDANCES = ("token", "sequence", "none")

# The options that may differ between a run and its continuation: none of them changes a result.
NEUTRAL = RUN_NEUTRAL | {"output_dir", "preprocessing_num_workers", "overwrite_cache"}


@dataclass(frozen=True)
class DataSettings:
    """Where the rows come from; see `load_splits`."""

    dataset_name: str | None = setting()
    dataset_config: str | None = setting()
    train_file: str | None = setting()
    validation_file: str | None = setting()
    test_file: str | None = setting()
    text_column: str | None = setting()
    summary_column: str | None = setting()
    preference_column: str | None = setting()
    max_train_samples: int | None = setting(minimum=1)
    max_eval_samples: int | None = setting(minimum=1)
    max_predict_samples: int | None = setting(minimum=1)
    seed: int = setting(minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True)
class LengthSettings:
    """How many tokens there are of a row."""

    max_source_length: int = setting(minimum=1)
    max_target_length: int = setting(minimum=2)
    val_max_target_length: int | None = setting(minimum=2)
    pad_to_max_length: bool = setting()

    @property
    def eval_target_length(self) -> int:
        """Tokens of a summary that is written in validation and test."""
        return self.val_max_target_length or self.max_target_length

    @property
    def pad_lengths(self) -> tuple[int, int] | None:
        """Tokens of source and target to which each batch is padded; None for its longest row."""
        return (self.max_source_length, self.max_target_length) if self.pad_to_max_length else None


@dataclass(frozen=True)
class TextSettings(LengthSettings):
    """How a row becomes tokens."""

    source_language: str | None = setting()
    target_language: str | None = setting()
    source_prefix: str = setting()
    separator: str = setting()
    resize_position_embeddings: bool | None = setting()
    preprocessing_num_workers: int | None = setting(minimum=1, maximum=1024)
    overwrite_cache: bool = setting()


@dataclass(frozen=True)
class ModelSettings(AdapterSettings):
    """Which models there are."""

    model_name_or_path: str | None = setting()
    rew_model_name_or_path: str | None = setting()
    config_name: str | None = setting()
    tokenizer_name: str | None = setting()
    model_type: str | None = setting()
    use_slow_tokenizer: bool = setting()
    policy_checkpoint_path: str | None = setting()
    rew_checkpoint_path: str | None = setting()
    use_softplus: bool = setting()
    rew_head: str = setting(choices=HEADS)
    head_hidden_size: int = setting(minimum=1, maximum=2**16)
    head_init_gain: float = setting(above=0, maximum=1e6)

    @property
    def reward_model_name(self) -> str | None:
        """The backbone of the reward model; None where it has random weights, as the policy has."""
        return self.rew_model_name_or_path or self.model_name_or_path


@dataclass(frozen=True)
class SamplingSettings(LengthSettings):
    """How the policy writes the summaries that it learns from."""

    sampling_top_k: int | None = setting(minimum=1)
    sampling_temperature: float = setting(above=0)


@dataclass(frozen=True)
class RewardSettings(SamplingSettings, ScoreSettings, ClipSettings, ScheduleSettings):
    """How the token rewards are learnt."""

    preference: str = setting(own=check_own_preference)
    reward_learning_samples: int = setting(minimum=2)
    reward_learning_batch_size: int = setting(minimum=1)
    rew_gradient_accumulation_steps: int = setting(minimum=1, maximum=256)
    rew_sampling_batches: int | None = setting(minimum=1)
    rew_num_train_epochs: float = setting(above=0, maximum=1e4)
    rew_learning_rate: float = setting(above=0, maximum=1e3)
    rew_eval_period: float = setting(minimum=1e-4)
    rew_validation_share: float = setting(above=0, maximum=1)
    seed: int = setting(minimum=0, maximum=2**32 - 1)
    log_every: int = setting(minimum=1)


@dataclass(frozen=True)
class PolicySettings(SamplingSettings, ClipSettings):
    """How the policy learns from them."""

    guidance: str = setting(choices=GUIDANCES, own=partial(check_guidance, not_negative=True))
    credit: str = setting(choices=tuple(CREDITS))
    weight_shares: str = setting(choices=("sequence", "batch"))
    expectation_tokens: int = setting(minimum=2)
    sequence_score: str = setting(choices=("learned", "preference"))
    per_device_train_batch_size: int = setting(minimum=1)
    gradient_accumulation_steps: int = setting(minimum=1, maximum=10**4)
    num_train_epochs: float = setting(minimum=0, maximum=1e4)
    learning_rate: float = setting(above=0, maximum=1e3)
    weight_decay: float = setting(minimum=0)
    exp_in_wmle: bool = setting()
    use_q_for_weight: bool = setting()
    reset_optim: bool = setting()
    mle_coeff: float = setting(minimum=0)
    reinforce_coeff: float = setting()
    reinforce_credit: str | None = setting(choices=tuple(SAMPLE_CREDITS))
    reinforce_baseline: str = setting(choices=("none", "leave-one-out"))
    max_entropy_coeff: float = setting()
    num_reinforce_samples: int = setting(minimum=1)
    policy_eval_period: float = setting(minimum=1e-4)
    reward_retrain_period: float = setting(minimum=1e-4)
    reward_retrain_epochs: float = setting(minimum=0, maximum=1e4)
    ignore_pad_token_for_loss: bool = setting()
    seed: int = setting(minimum=0, maximum=2**32 - 1)
    log_every: int = setting(minimum=1)

    @property
    def reference_credit(self) -> str:
        """The kind of credit of references, see `common.credit.CREDITS`."""
        if self.guidance == "sequence" or is_own(self.guidance):
            return self.guidance
        return "reward-to-go" if self.use_q_for_weight else self.credit

    @property
    def sample_credit(self) -> str:
        """The kind of credit of samples, see `common.credit.SAMPLE_CREDITS`."""
        if self.guidance == "sequence" or is_own(self.guidance):
            return self.guidance
        return self.reinforce_credit or self.reference_credit

    @property
    def weighs_whole_steps(self) -> bool:
        """Whether references are weighed against all others of a step, not each for itself as published."""
        if not self.uses_rewards:
            return False
        by_sequence = self.reference_credit in ("reward", "reward-to-go") or is_own(self.reference_credit)
        return not by_sequence or self.weight_shares == "batch"

    @property
    def shares_over_batch(self) -> bool:
        """Whether the weights of references sum to one over the step, not over each reference."""
        return self.guidance == "sequence" or self.weight_shares == "batch"

    @property
    def needs_expectation(self) -> bool:
        """Whether what the policy expects in each state is needed, of references or samples."""
        return self.uses_rewards and not self._kinds.isdisjoint(NEED_EXPECTATION)

    @property
    def _kinds(self) -> set[str]:
        """The kinds of credit by which the loss is weighed."""
        of_references = {self.reference_credit} if self.mle_coeff > 0 else set()
        return of_references | ({self.sample_credit} if self.reinforce_coeff > 0 else set())

    @property
    def uses_rewards(self) -> bool:
        return self.guidance != "none"

    @property
    def uses_samples(self) -> bool:
        """Whether the policy's loss has terms on sampled summaries."""
        return self.reinforce_coeff > 0 or self.max_entropy_coeff > 0

    def check_rows(self, rows: int) -> None:
        """Refuse a run whose rewards could have no effect, with so many rows in the largest optimizer step.

        Raises:
            UserError: sequence-level guidance has nothing to compare.
        """
        if self.guidance == "sequence" and rows == 1 and self.reinforce_coeff <= 0:
            raise UserError(
                "guidance: 'sequence' weighs the summaries of an optimizer step against each other, and a step has one "
                "row; take more (per_device_train_batch_size, gradient_accumulation_steps), or guidance=none"
            )

    def check_credit(self) -> None:
        """Refuse kinds of credit that contradict each other."""
        if self.use_q_for_weight and self.credit not in ("reward", "reward-to-go"):
            raise UserError(f"use_q_for_weight: it means credit=reward-to-go, and credit={self.credit} is set")
        if is_own(self.guidance) and (self.credit != "reward" or self.reinforce_credit is not None):
            raise UserError(f"credit, reinforce_credit: guidance={self.guidance} says what each token weighs")
        if self.exp_in_wmle and self.weighs_whole_steps:
            raise UserError("exp_in_wmle: it is for credit=reward or reward-to-go with weight_shares=sequence")
        if self.guidance == "token" and self.credit == "sequence" and self.weight_shares == "sequence":
            raise UserError("weight_shares: shares over a sequence cancel its weight; credit=sequence needs batch")
        if self.sequence_score == "preference" and self.uses_rewards and not self._kinds & USE_SEQUENCE_SCORES:
            raise UserError(
                "sequence_score: preference is for guidance=sequence, credit or reinforce_credit=sequence, "
                "product, shifted-product"
            )
        if self.mle_coeff == 0 and not self.uses_samples:
            raise UserError("mle_coeff: 0 leaves nothing to learn from; set reinforce_coeff")
        if self.reinforce_coeff <= 0:
            return
        if self.guidance == "token" and self.sample_credit not in SAMPLE_CREDITS:
            raise UserError(
                f"reinforce_credit: credit={self.credit} weighs references only; samples are weighed by "
                f"{', '.join(SAMPLE_CREDITS)}"
            )
        if self.reinforce_baseline == "leave-one-out":
            if self.num_reinforce_samples < 2:
                raise UserError(
                    "reinforce_baseline: it is the mean of the other samples: num_reinforce_samples=1 has none"
                )
            if self.sample_credit == "advantage":
                raise UserError("reinforce_baseline: an advantage is a difference already; set reinforce_baseline=none")


@dataclass(frozen=True)
class EvaluationSettings(LengthSettings):
    """How summaries are written for validation and test, and what they are measured by."""

    per_device_eval_batch_size: int = setting(minimum=1)
    num_beams: int | None = setting(minimum=1)
    min_length: int | None = setting(minimum=0)
    no_repeat_ngram_size: int | None = setting(minimum=0)
    length_penalty: float | None = setting(minimum=-100, maximum=100)
    rouge_words: str = setting(choices=tuple(WORDS))
    bertscore: bool = setting()
    eval_metrics: list[str] = setting()


@dataclass(frozen=True)
class SumRunSettings(NamedRunSettings):
    """What the run as such reads."""

    cpu_kernels: bool = setting()


@dataclass(frozen=True)
class SummarizationSettings(TaskSettings):
    """The options of summarization; see configs/sum_config.yaml for what each means."""

    data: DataSettings
    text: TextSettings
    models: ModelSettings
    reward: RewardSettings
    policy: PolicySettings
    evaluation: EvaluationSettings
    run: SumRunSettings

    def tables(self, vocabulary: int, rows: int) -> dict[str, int]:
        """For `check_memory`: the largest tables, of a policy with so many tokens, with so many articles at most."""
        reward, policy, evaluation = self.reward, self.policy, self.evaluation
        length, trained = policy.max_target_length, min(policy.per_device_train_batch_size, rows)
        written = min(evaluation.per_device_eval_batch_size, rows) * (evaluation.num_beams or 1)
        found = {
            "per_device_eval_batch_size x num_beams": written * vocabulary,
            "val_max_target_length x per_device_eval_batch_size": written * evaluation.eval_target_length,
        }
        if policy.pad_to_max_length:
            found["max_source_length x per_device_train_batch_size"] = trained * policy.max_source_length
            found["max_target_length x per_device_train_batch_size"] = trained * length * vocabulary
        if policy.uses_samples:
            found["num_reinforce_samples x max_target_length"] = (
                trained * policy.num_reinforce_samples * length * vocabulary
            )
        if policy.uses_rewards:
            samples = min(reward.reward_learning_batch_size, rows) * reward.reward_learning_samples
            found["reward_learning_samples x max_target_length"] = samples * max(length, vocabulary)
        return found

    def check(self) -> None:
        """Refuse options that contradict each other."""
        data, models, policy = self.data, self.models, self.policy
        if data.dataset_name is None and data.train_file is None:
            raise UserError("no data: give dataset_name, or train_file and validation_file")
        if models.model_name_or_path is None and models.config_name is None and models.model_type is None:
            raise UserError("no policy: give model_name_or_path, or config_name or model_type for random weights")
        if policy.guidance == "none":
            if policy.reinforce_coeff > 0:
                raise UserError("reinforce_coeff: with guidance=none there is no reward for it")
            if models.rew_checkpoint_path is not None:
                raise UserError("rew_checkpoint_path: guidance=none uses no reward model")
        elif policy.reward_retrain_epochs == 0 and models.rew_checkpoint_path is None and models.rew_head == "after":
            raise UserError("reward_retrain_epochs: 0 needs a model, in rew_checkpoint_path, or rew_head=likelihood")
        if policy.guidance == "sequence" and policy.exp_in_wmle:
            raise UserError("exp_in_wmle: the exponential of token rewards is for guidance=token only")
        if policy.guidance != "token" and policy.use_q_for_weight:
            raise UserError("use_q_for_weight: the reward-to-go is for guidance=token only")
        policy.check_credit()
        self.run.check_switches()


# By option and value, the options that a run which has it does not read.
UNREAD = {
    ("guidance", "none"): option_names(RewardSettings) - option_names(SamplingSettings, ClipSettings)
    - {"preference", "seed", "log_every"}
    | {
        "rew_model_name_or_path", "rew_checkpoint_path", "use_softplus", "rew_head", "head_hidden_size",
        "head_init_gain", "credit", "weight_shares", "expectation_tokens", "sequence_score", "exp_in_wmle",
        "use_q_for_weight", "reset_optim", "reinforce_credit", "reinforce_baseline", "reward_retrain_period",
        "reward_retrain_epochs",
    },
    ("guidance", "sequence"): frozenset({
        "credit", "weight_shares", "expectation_tokens", "exp_in_wmle", "use_q_for_weight", "reinforce_credit",
    }),
}  # fmt: skip
