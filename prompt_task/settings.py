"""The options of the prompt task with their types and ranges. Defaults and explanations: configs/fsc_config.yaml."""

from dataclasses import dataclass
from functools import partial

from common.errors import UserError
from common.token_reward_model import HEADS
from common.training.data_files import TSV_QUOTING
from common.training.own_pieces import check_guidance
from common.training.runtime import DTYPES
from common.training.settings import NEUTRAL as RUN_NEUTRAL
from common.training.settings import ClipSettings, RunSettings, ScheduleSettings, ScoreSettings, TaskSettings, setting
from prompt_task.candidates import CANDIDATE_SPLITS
from prompt_task.prompt_scorer import check_preference

# The options that may differ between a run and its continuation: none of them changes a result.
NEUTRAL = RUN_NEUTRAL | {"output_folder", "save_steps", "report_to_wandb", "sentence_cache_mib"}


@dataclass(frozen=True)
class DataSettings:
    """Which examples; see `load_few_shot_splits`."""

    base_path: str = setting()
    num_shots: int = setting(minimum=1)
    dataset_seed: int = setting(minimum=0, maximum=4)
    tsv_quoting: str = setting(choices=TSV_QUOTING)


@dataclass(frozen=True)
class TaskLMSettings:
    """The frozen LM that classifies; see `load_task_lm`."""

    task_lm: str = setting()
    is_mask_lm: bool | None = setting()
    task_lm_dtype: str = setting(choices=tuple(DTYPES))
    scoring_tokens_per_batch: int | None = setting(minimum=1)
    sentence_cache_mib: int = setting(minimum=0)


@dataclass(frozen=True)
class PreferenceSettings:
    """What a prompt scores; see `PromptScorer`."""

    preference: str = setting(choices=("gap",), own=check_preference)
    correct_coeff: float = setting(above=0)
    incorrect_coeff: float = setting(above=0)


@dataclass(frozen=True)
class ModelSettings:
    """Policy and token reward model."""

    policy_lm: str = setting()
    hidden_size: int = setting(minimum=1, maximum=2**16)
    adaptor_residual: bool = setting()
    source_str: str = setting()
    prompt_length: int = setting(minimum=1)
    use_softplus: bool = setting()
    rew_head: str = setting(choices=HEADS)
    rew_freeze_backbone: bool = setting()
    head_init_gain: float = setting(above=0, maximum=1e6)


@dataclass(frozen=True)
class LearningSettings(ScoreSettings, ClipSettings, ScheduleSettings):
    """What both models read while they learn."""

    prompt_train_batch_size: int = setting(minimum=2)
    top_k: int | None = setting(minimum=1)
    top_p: float = setting(above=0, maximum=1)
    screening: int = setting(minimum=1, maximum=10**4)


@dataclass(frozen=True)
class RewardSettings(LearningSettings):
    """How the token rewards are learnt."""

    compute_zscore: bool = setting()
    reward_learning_samples: int = setting(minimum=2)
    reward_learning_batch_size: int = setting(minimum=1)
    reward_example_share: float = setting(above=0, maximum=1)
    reward_pool_size: int = setting(minimum=0)
    rew_gradient_accumulation_steps: int = setting(minimum=1, maximum=256)
    rew_num_train_epochs: int = setting(minimum=1)
    rew_max_train_steps: int = setting(minimum=1)
    rew_validation_batches: int = setting(minimum=1, maximum=10**5)
    rew_learning_rate: float = setting(above=0, maximum=1e3)
    random_seed: int = setting(minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True)
class PolicySettings(LearningSettings):
    """How the policy learns from them, and which of its prompts become candidates."""

    guidance: str = setting(choices=("token", "sequence"), own=partial(check_guidance, not_negative=False))
    use_q_for_weight: bool = setting()
    reinforce_baseline: bool = setting()
    num_reinforce_samples: int = setting(minimum=1)
    max_entropy_coeff: float = setting(minimum=0)
    max_train_steps: int = setting(minimum=1)
    learning_rate: float = setting(above=0, maximum=1e3)
    early_stop_eval_period: int = setting(minimum=1)
    num_validation_prompts: int = setting(minimum=1, maximum=1000)
    reward_retrain_period: int = setting(minimum=1)
    eval_steps: int = setting(minimum=1)
    candidate_steps: int = setting(minimum=1)
    prompt_infer_batch_size: int = setting(minimum=1, maximum=10**4)
    num_final_prompts: int = setting(minimum=1)
    pool_candidates: int = setting(minimum=0)
    save_steps: int = setting(minimum=0)
    log_every: int = setting(minimum=1)

    @property
    def token_guidance(self) -> str:
        """The name by which `token_weights` knows this run's guidance."""
        if self.guidance != "token":
            return self.guidance
        return "reward-to-go" if self.use_q_for_weight else "reward"


@dataclass(frozen=True)
class EvaluationSettings:
    """Which candidates are tested and reported."""

    candidate_split: str = setting(choices=CANDIDATE_SPLITS)
    num_candidates: int = setting(minimum=1)
    num_reported: int = setting(minimum=1)


@dataclass(frozen=True)
class FewShotRunSettings(RunSettings):
    """What the run as such reads."""

    random_seed: int = setting(minimum=0, maximum=2**32 - 1)
    output_folder: str | None = setting()
    report_to_wandb: bool = setting()

    @property
    def trackers(self) -> tuple[str, ...]:
        """Trackers asked for, each once."""
        return tuple(dict.fromkeys((*self.report_to, *(["wandb"] if self.report_to_wandb else []))))


@dataclass(frozen=True)
class FewShotSettings(TaskSettings):
    """The options of the prompt task; see configs/fsc_config.yaml for what each means."""

    data: DataSettings
    classifier: TaskLMSettings
    preference: PreferenceSettings
    models: ModelSettings
    reward: RewardSettings
    policy: PolicySettings
    evaluation: EvaluationSettings
    run: FewShotRunSettings

    def tables(self, vocabulary: int, width: int) -> dict[str, int]:
        """For `check_memory`: the largest tables, of a policy with so many tokens and so wide."""
        models, reward, policy = self.models, self.reward, self.policy
        sets = reward.reward_learning_batch_size * reward.reward_learning_samples
        return {
            "num_reinforce_samples x prompt_length": policy.num_reinforce_samples * models.prompt_length * vocabulary,
            "num_validation_prompts x prompt_train_batch_size": (
                policy.num_validation_prompts * policy.prompt_train_batch_size * vocabulary
            ),
            "reward_learning_batch_size x reward_learning_samples": sets * models.prompt_length * width,
            "reward_pool_size x screening": reward.reward_pool_size * reward.screening * vocabulary,
            "num_final_prompts x screening": policy.num_final_prompts * policy.screening * vocabulary,
        }

    def check(self) -> None:
        """Refuse options that contradict each other."""
        models, reward, policy, evaluation, run = self.models, self.reward, self.policy, self.evaluation, self.run
        if reward.reward_learning_samples > reward.prompt_train_batch_size:
            raise UserError(
                f"reward_learning_samples: a set of {reward.reward_learning_samples} prompts cannot be drawn from "
                f"prompt_train_batch_size={reward.prompt_train_batch_size}"
            )
        if 0 < reward.reward_pool_size < reward.prompt_train_batch_size:
            raise UserError(
                f"reward_pool_size: {reward.reward_pool_size} is smaller than "
                f"prompt_train_batch_size={reward.prompt_train_batch_size}; 0 turns the pool off"
            )
        if policy.pool_candidates and not reward.reward_pool_size:
            raise UserError("pool_candidates: they are prompts of a pool; set reward_pool_size too")
        if reward.rew_max_train_steps < reward.rew_num_train_epochs:
            raise UserError(
                f"rew_max_train_steps: {reward.rew_max_train_steps} steps cannot fill "
                f"rew_num_train_epochs={reward.rew_num_train_epochs} epochs"
            )
        if models.rew_head == "likelihood" and models.rew_freeze_backbone:
            raise UserError("rew_freeze_backbone: with rew_head=likelihood the backbone is all there is to learn")
        if self.preference.preference != "gap" and reward.compute_zscore:
            raise UserError("compute_zscore: it is of gaps; a preference of your own gives scores")
        if policy.guidance != "token" and policy.use_q_for_weight:
            raise UserError("use_q_for_weight: the reward-to-go is for guidance=token only")
        if policy.reinforce_baseline and policy.num_reinforce_samples < 2:
            raise UserError("reinforce_baseline: it is the mean of the other samples; num_reinforce_samples=1 has none")
        if evaluation.num_reported > evaluation.num_candidates:
            raise UserError(f"num_reported: at most num_candidates={evaluation.num_candidates}")
        run.check_switches()
