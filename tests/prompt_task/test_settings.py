import re

import pytest

from common.errors import UserError
from common.training.plateau import PlateauSettings
from prompt_task.command_line import CONFIGS
from prompt_task.settings import NEUTRAL, FewShotSettings
from tests.tiny_runs import published_options, settings_of

PUBLISHED_KEYS = """
num_shots base_path dataset dataset_seed task_lm is_mask_lm policy_lm hidden_size prompt_length
prompt_train_batch_size prompt_infer_batch_size source_str top_k top_p max_train_steps eval_steps save_steps
learning_rate gradient_clip gradient_clip_norm random_seed output_folder reward_learning_samples
reward_learning_batch_size rew_gradient_accumulation_steps rew_num_train_epochs rew_max_train_steps
rew_learning_rate agg_func soft_maxmin_temp reward_retrain_period early_stop_eval_period
num_validation_prompts lr_decay weight_decay_count early_stop_count num_reinforce_samples max_entropy_coeff
use_q_for_weight use_softplus correct_coeff incorrect_coeff compute_zscore checkpoint_path report_to_wandb
"""

PUBLISHED_VALUES = {
    "num_shots": 16, "task_lm": "roberta-large", "policy_lm": "distilgpt2", "hidden_size": 2048, "prompt_length": 5,
    "source_str": "<|endoftext|>", "top_k": 256, "top_p": 1.0, "correct_coeff": 200, "incorrect_coeff": 180,
    "compute_zscore": False, "agg_func": "sum", "soft_maxmin_temp": 2.0, "use_softplus": True, "head_init_gain": 1e-4,
    "adaptor_residual": False, "reward_learning_samples": 5, "reward_learning_batch_size": 64,
    "prompt_train_batch_size": 16, "reward_example_share": 0.8, "reward_pool_size": 0, "screening": 1,
    "pool_candidates": 0, "candidate_split": "dev",
    "rew_gradient_accumulation_steps": 1, "rew_num_train_epochs": 100, "rew_max_train_steps": 10000,
    "rew_validation_batches": 25, "rew_learning_rate": 5e-5, "reward_retrain_period": 1000, "guidance": "token",
    "use_q_for_weight": False, "num_reinforce_samples": 64, "max_entropy_coeff": 0.125, "max_train_steps": 12000,
    "learning_rate": 5e-5, "early_stop_eval_period": 500, "num_validation_prompts": 15, "gradient_clip": True,
    "gradient_clip_norm": 5.0, "lr_decay": 0.8, "weight_decay_count": 2, "early_stop_count": 7, "eval_steps": 10,
    "candidate_steps": 1000, "prompt_infer_batch_size": 1, "num_final_prompts": 16, "num_candidates": 16,
    "num_reported": 3,
    "rew_freeze_backbone": False, "rew_head": "after",
}  # fmt: skip


def test_every_published_key_exists():
    known = {*published_options(), "dataset"}
    assert set(PUBLISHED_KEYS.split()) <= known


def test_the_defaults_are_the_published_values():
    settings = FewShotSettings.from_mapping(published_options())
    for key, value in PUBLISHED_VALUES.items():
        assert settings.options()[key] == value, key


def test_the_schedule_of_both_models_is_the_published_one():
    settings = FewShotSettings.from_mapping(published_options())
    assert settings.reward.plateau(higher_is_better=True) == PlateauSettings(0.8, 2, 1e-6, 7, 1e-4, True)
    assert settings.reward.plateau(higher_is_better=False) == PlateauSettings(0.8, 2, 1e-6, 7, 1e-4, False)


def test_every_option_stands_in_the_configuration_with_a_comment():
    text = (CONFIGS / "fsc_config.yaml").read_text(encoding="utf-8")
    fields = set(FewShotSettings.kinds())
    assert fields == set(published_options())
    for name in fields:
        assert re.search(rf"^{name}: .*\S +# \S", text, re.MULTILINE), name


def test_options_that_a_continued_run_may_change_exist():
    assert set(FewShotSettings.kinds()) >= NEUTRAL


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward_learning_samples": 9, "prompt_train_batch_size": 8}, "reward_learning_samples: a set of 9 prompts"),
        ({"reward_pool_size": 7, "prompt_train_batch_size": 8}, "reward_pool_size: 7 is smaller"),
        ({"pool_candidates": 2}, "pool_candidates: they are prompts of a pool"),
        ({"rew_max_train_steps": 3, "rew_num_train_epochs": 4}, "rew_max_train_steps: 3 steps cannot fill"),
        ({"guidance": "sequence", "use_q_for_weight": True}, "use_q_for_weight"),
        ({"rew_head": "likelihood", "rew_freeze_backbone": True}, "rew_freeze_backbone: with rew_head=likelihood"),
        ({"num_reported": 7, "num_candidates": 6}, "num_reported: at most num_candidates=6"),
        ({"learning_rate": 1e300}, "learning_rate: .* is out of range; it must be at most 1000"),
        ({"hidden_size": 10**8}, "hidden_size: 100000000 is out of range; it must be at most 65536"),
        ({"head_init_gain": 1e300}, "head_init_gain: .* is out of range; it must be at most 1e\\+06"),
        ({"num_validation_prompts": 10**12}, "num_validation_prompts: 1000000000000 is out of range"),
        ({"num_threads": 100_000}, "num_threads: 100000 is out of range; it must be at most 1024"),
        ({"resume": "auto", "overwrite": True}, "resume=auto .* overwrite=true"),
        ({"agg_func": "median"}, "agg_func: 'median' is not one of sum, avg, max, min, mean"),
        ({"guidance": "tokens"}, "did you mean 'token'"),
        ({"task_lm_dtype": "float64"}, "task_lm_dtype"),
        ({"dataset_seed": 5}, "dataset_seed: 5 is out of range; it must be at most 4"),
        ({"top_p": 0}, "top_p: 0.0 is out of range"),
        ({"top_k": 0}, "top_k: 0 is out of range"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"random_seed": -1}, "random_seed: -1"),
        ({"max_train_steps": 0}, "max_train_steps: 0"),
    ],
)
def test_options_that_make_no_sense_are_errors(options, words):
    with pytest.raises(UserError, match=words):
        settings_of(**options)


@pytest.mark.parametrize("key", [key for key, value in published_options().items() if isinstance(value, int | float)])
def test_no_number_can_be_given_as_text(key):
    with pytest.raises(UserError, match=f"{key}: 'x' is not"):
        settings_of(**{key: "x"})


def test_edges_that_do_make_sense_are_allowed():
    settings_of(reward_learning_samples=8, prompt_train_batch_size=8)
    settings_of(reward_pool_size=8, prompt_train_batch_size=8)
    settings_of(max_entropy_coeff=0, weight_decay_count=0, save_steps=0, top_p=1)


def test_trackers_are_named_once_however_they_are_asked_for():
    assert settings_of().run.trackers == ()
    assert settings_of(report_to_wandb=True).run.trackers == ("wandb",)
    assert settings_of(report_to=["tensorboard", "wandb"], report_to_wandb=True).run.trackers == (
        "tensorboard",
        "wandb",
    )


def test_clipping_is_off_or_at_the_norm():
    assert settings_of(gradient_clip_norm=2.0).reward.clip_norm == 2.0
    assert settings_of(gradient_clip=False).reward.clip_norm is None


def test_guidance_has_the_name_that_the_losses_know():
    assert settings_of().policy.token_guidance == "reward"
    assert settings_of(guidance="sequence").policy.token_guidance == "sequence"
    assert settings_of(use_q_for_weight=True).policy.token_guidance == "reward-to-go"
