"""Every published option with its published default and another valid value, through the readers of real commands."""

from common.training.program import run_command

from functools import cache

import pytest
import yaml

from common.errors import UserErrors
from prompt_task import command_line as prompt_command
from sum_task import command_line as sum_command

PROMPT = {
    "num_shots": ("16", "32"), "base_path": ("./data", "/data"), "dataset": ("sst-2", "agnews"),
    "dataset_seed": ("0", "4"), "task_lm": ("roberta-large", "roberta-base"), "is_mask_lm": ("null", "0"),
    "policy_lm": ("distilgpt2", "gpt2"), "hidden_size": ("2048", "64"), "prompt_length": ("5", "3"),
    "prompt_train_batch_size": ("16", "8"), "prompt_infer_batch_size": ("1", "2"),
    "source_str": ("'<|endoftext|>'", "Topic"), "top_k": ("256", "null"), "top_p": ("1.0", "0.9"),
    "max_train_steps": ("12000", "100"), "eval_steps": ("10", "5"), "save_steps": ("0", "100"),
    "learning_rate": ("5e-5", "1e-4"), "gradient_clip": ("1", "0"), "gradient_clip_norm": ("5.0", "1"),
    "random_seed": ("0", "7"), "output_folder": ("null", "out"), "reward_learning_samples": ("5", "2"),
    "reward_learning_batch_size": ("64", "8"), "rew_gradient_accumulation_steps": ("1", "2"),
    "rew_num_train_epochs": ("100", "10"), "rew_max_train_steps": ("10000", "500"),
    "rew_learning_rate": ("5e-5", "1e-3"),
    "agg_func": ("sum", "max"), "soft_maxmin_temp": ("2.0", "1"), "reward_retrain_period": ("1000", "10"),
    "early_stop_eval_period": ("500", "10"), "num_validation_prompts": ("15", "4"), "lr_decay": ("0.8", "1"),
    "weight_decay_count": ("2", "0"), "early_stop_count": ("7", "1"), "num_reinforce_samples": ("64", "8"),
    "max_entropy_coeff": ("0.125", "0"), "use_q_for_weight": ("0", "1"), "use_softplus": ("1", "0"),
    "correct_coeff": ("200", "1.5"), "incorrect_coeff": ("180", "1"), "compute_zscore": ("0", "1"),
    "checkpoint_path": ("null", "run/checkpoints/step-000500"), "report_to_wandb": ("0", "1"),
}  # fmt: skip
SUM = {
    "dataset_name": ("null", "cnn_dailymail"), "dataset_config": ("null", "3.0.0"), "train_file": ("null", "a.csv"),
    "validation_file": ("null", "b.csv"), "test_file": ("null", "c.csv"), "ignore_pad_token_for_loss": ("1", "0"),
    "max_source_length": ("1024", "512"), "source_prefix": ("summarize: ", "tldr: "),
    "preprocessing_num_workers": ("null", "4"), "overwrite_cache": ("null", "1"), "max_target_length": ("128", "64"),
    "val_max_target_length": ("null", "64"), "num_beams": ("null", "4"), "pad_to_max_length": ("0", "1"),
    "max_train_samples": ("null", "8"), "max_eval_samples": ("null", "8"), "max_predict_samples": ("null", "8"),
    "model_name_or_path": ("t5-small", "t5-base"), "rew_model_name_or_path": ("t5-small", "t5-base"),
    "config_name": ("null", "t5-small"), "tokenizer_name": ("null", "t5-small"), "text_column": ("null", "text"),
    "summary_column": ("null", "summary"), "use_slow_tokenizer": ("0", "1"),
    "resize_position_embeddings": ("null", "1"), "per_device_train_batch_size": ("8", "4"),
    "per_device_eval_batch_size": ("8", "4"), "learning_rate": ("5e-5", "1e-4"), "num_train_epochs": ("5", "1"),
    "gradient_accumulation_steps": ("4", "1"), "output_dir": ("null", "out"), "seed": ("0", "3"),
    "model_type": ("null", "t5"), "device": ("auto", "cpu"), "use_softplus": ("1", "0"), "gradient_clip": ("1", "0"),
    "gradient_clip_norm": ("5.0", "1"), "rew_num_train_epochs": ("0.1", "1"), "rew_learning_rate": ("5e-5", "1e-3"),
    "lr_decay": ("0.8", "0.5"), "weight_decay_count": ("2", "1"), "early_stop_count": ("7", "3"),
    "reward_learning_batch_size": ("8", "4"), "rew_gradient_accumulation_steps": ("4", "2"),
    "rew_eval_period": ("0.25", "0.5"), "policy_eval_period": ("1.0", "0.5"), "rew_checkpoint_path": ("null", "m"),
    "policy_checkpoint_path": ("null", "p"), "reward_learning_samples": ("3", "2"), "agg_func": ("avg", "min"),
    "soft_maxmin_temp": ("2.0", "1"), "reinforce_coeff": ("0.0", "0.1"), "max_entropy_coeff": ("0.0", "0.1"),
    "num_reinforce_samples": ("2", "4"), "use_q_for_weight": ("0", "1"), "reward_retrain_period": ("0.5", "1"),
    "exp_in_wmle": ("0", "1"), "weight_decay": ("0.0", "0.1"), "reset_optim": ("0", "1"), "expid": ("null", "a"),
}  # fmt: skip
DATA = ["--dataset_name=xsum"]
NOT_SET_BY_DEFAULT = {"overwrite_cache"}  # a flag of the published command, off where it is absent
# Options that make no sense alone.
WITH = {"prompt_train_batch_size": ["reward_learning_samples=2"]}


@cache
def prompt_defaults():
    return prompt_command.read_command([])


@cache
def sum_defaults():
    return sum_command.read_command(DATA)


def plain(value):
    """A typed word as YAML means it, 5e-5 included; 0 and 1 of a switch are its truth value."""
    try:
        return float(value)
    except ValueError:
        return yaml.safe_load(value) if value == "null" else value


@pytest.mark.parametrize("name", PROMPT)
def test_published_options_of_the_prompt_task(name):
    default, other = PROMPT[name]
    untouched = prompt_defaults()
    typed = prompt_command.read_command([f"{name}={default}"])
    assert typed.settings == untouched.settings
    changed = prompt_command.read_command([f"{name}={other}", *WITH.get(name, [])])
    found = changed.spec.name if name == "dataset" else changed.settings.options()[name]
    assert found == plain(other)
    assert name == "dataset" or found != untouched.settings.options()[name]


@pytest.mark.parametrize("name", SUM)
def test_published_flags_of_summarization(name):
    default, other = SUM[name]
    untouched = sum_defaults()
    if name not in NOT_SET_BY_DEFAULT and name != "dataset_name":
        assert sum_command.read_command([*DATA, f"--{name}={default}"]) == untouched
        assert sum_command.read_command([*DATA, f"--{name}", default]) == untouched
    changed = sum_command.read_command([*DATA, f"--{name}", other])
    assert changed.options()[name] == plain(other) != untouched.options()[name]


def test_a_switch_alone_is_on():
    assert sum_command.read_command([*DATA, "--reset_optim", "--seed=1"]).policy.reset_optim is True


def published(folder, **more):
    values = {name: yaml.safe_load(default) for name, (default, _) in PROMPT.items()} | more
    folder.mkdir(exist_ok=True)
    (folder / "fsc_config.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_published_configuration_runs_as_it_stands(tmp_path):
    expected = prompt_defaults()
    folder = published(tmp_path / "published")
    by_name = prompt_command.read_command([f"--config-dir={folder}", "--config-name=fsc_config"])
    by_path = prompt_command.read_command(["--config-name", str(folder / "fsc_config.yaml")])
    assert (by_name, by_path) == (expected, expected)
    changed = prompt_command.read_command([f"--config-name={folder}/fsc_config.yaml", "dataset=agnews", "top_k=9"])
    assert (changed.spec.name, changed.settings.policy.top_k) == ("agnews", 9)
    assert prompt_command.read_command([]) == expected  # nothing of the file stays behind
    other = published(tmp_path / "other", dataset="yelp-2", use_softplus=0)
    read = prompt_command.read_command([f"--config-name={other}/fsc_config.yaml"])
    assert (read.spec.name, read.settings.models.use_softplus) == ("yelp-2", False)


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        (
            {"style_tf": 1, "random_sed": 0},
            ["unknown option 'style_tf'", "unknown option 'random_sed'; did you mean 'random_seed'?"],
        ),
        (
            {"use_softplus": 2, "top_k": 0},
            ["top_k: 0 is out of range", "use_softplus: 2 is not true or false (or 1 or 0)"],
        ),
        ({"dataset": "sst-3"}, ["dataset: there is no 'sst-3'"]),
    ],
)  # fmt: skip
def test_each_published_option_that_cannot_be_has_a_line(more, lines, tmp_path, capsys):
    folder = published(tmp_path / "published", **more)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: bool(prompt_command.read_command([f"--config-name={folder}/fsc_config.yaml"])))
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert len(said) == len(lines)
    for line in lines:
        assert any(line in one and one.startswith("error: ") for one in said), said


def test_all_mistakes_of_a_command_are_named_at_once():
    with pytest.raises(UserErrors) as caught:
        sum_command.read_command([*DATA, "--learning_rate=0", "--num_beams=0"])
    assert len(caught.value.messages) == 2
