"""From words to settings."""

import pytest
import yaml

from common.errors import UserError
from sum_task.command_line import DEFAULTS, ROOT, explained_options, read_command
from sum_task.settings import SummarizationSettings

DATA = ["--dataset_name=xsum"]
PUBLISHED = """
dataset_name dataset_config train_file validation_file test_file ignore_pad_token_for_loss max_source_length
source_prefix preprocessing_num_workers overwrite_cache max_target_length val_max_target_length num_beams
pad_to_max_length max_train_samples max_eval_samples max_predict_samples model_name_or_path rew_model_name_or_path
config_name tokenizer_name text_column summary_column use_slow_tokenizer resize_position_embeddings
per_device_train_batch_size per_device_eval_batch_size learning_rate num_train_epochs gradient_accumulation_steps
output_dir seed model_type device use_softplus gradient_clip gradient_clip_norm rew_num_train_epochs rew_learning_rate
lr_decay weight_decay_count early_stop_count reward_learning_batch_size rew_gradient_accumulation_steps
rew_eval_period policy_eval_period rew_checkpoint_path policy_checkpoint_path reward_learning_samples agg_func
soft_maxmin_temp reinforce_coeff max_entropy_coeff num_reinforce_samples use_q_for_weight reward_retrain_period
exp_in_wmle weight_decay reset_optim expid guidance
"""


def test_published_command_has_the_published_settings():
    settings = read_command(["--dataset_name=xsum", "--seed=0"])
    data, models, text, reward, policy = settings.data, settings.models, settings.text, settings.reward, settings.policy
    assert (data.dataset_name, settings.run.seed, models.model_name_or_path) == ("xsum", 0, "t5-small")
    assert (text.max_source_length, text.max_target_length) == (1024, 128)
    assert (reward.reward_learning_samples, reward.agg_func, policy.guidance) == (3, "avg", "token")
    assert (policy.learning_rate, reward.rew_learning_rate, policy.num_train_epochs) == (5e-5, 5e-5, 5)
    assert (text.source_prefix, reward.gradient_clip_norm) == ("summarize: ", 5)
    assert read_command(["--dataset_name", "cnn_dailymail", "--dataset_config", "3.0.0"]).data.dataset_config == "3.0.0"


def test_every_option_has_one_default_a_group_and_an_explanation():
    names = list(SummarizationSettings.kinds())
    assert sorted(option.name for option in explained_options()) == sorted(names)
    assert list(yaml.safe_load(DEFAULTS.read_text())) == [option.name for option in explained_options()]
    assert all(option.group and len(option.help) > 8 for option in explained_options())
    assert set(names) >= set(PUBLISHED.split())


def test_help_shows_every_option_in_its_group(capsys):
    with pytest.raises(SystemExit) as leaving:
        read_command(["--help"])
    shown = capsys.readouterr().out
    assert leaving.value.code == 0
    assert all(f"--{option.name} " in shown or f"--{option.name}\n" in shown for option in explained_options())
    assert "token-level reward:" in shown
    assert "(default: 5.0)" in shown


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("dataset_name: xsum\nseed: 7\nlearning_rate: 1e-3\nnum_beams: 4\n")
    settings = read_command([f"--config={file}", "--seed=8", "--num_beams=null"])
    assert (
        settings.data.dataset_name,
        settings.run.seed,
        settings.policy.learning_rate,
        settings.evaluation.num_beams,
    ) == ("xsum", 8, 1e-3, None)


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--gradient_clip=False"], False), (["--gradient_clip", "false"], False), (["--gradient_clip"], True)],
)
def test_truth_values(words, value):
    assert read_command([*DATA, *words]).policy.gradient_clip is value


def test_a_shipped_configuration_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_command(["--config=sum_builtin"]) == read_command(["--config=configs/sum_builtin.yaml"])


def test_bare_flag_before_another():
    settings = read_command(["--pad_to_max_length", *DATA, "--report_to=tensorboard,wandb"])
    assert settings.text.pad_to_max_length is True
    assert settings.run.report_to == ["tensorboard", "wandb"]
    assert read_command([*DATA, "--reinforce_coeff", "-1"]).policy.reinforce_coeff == -1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat=1"], "unknown flag '--learning_rat'; did you mean '--learning_rate'?"),
        (["guidance=token"], "'guidance=token' belongs to no flag; options are set as --name=value"),
        (["--guidance=tokens"], "guidance: 'tokens' is not one of token, sequence, none; did you mean 'token'?"),
        (["--seed=x"], "seed: 'x' is not a whole number"),
        (["--learning_rate=0"], "learning_rate: 0.0 is out of range; it must be more than 0"),
        (["--gradient_clip=maybe"], "gradient_clip: 'maybe' is not true or false"),
        (["--seed"], "--seed"),
        (["--config=sum_bultin"], "there is no file 'sum_bultin'; did you mean 'sum_builtin'?"),
        (["--guidance=none", "--reinforce_coeff=1"], "reinforce_coeff: with guidance=none"),
        (["--credit=q"], "credit: 'q' is not one of reward, reward-to-go, sequence, advantage, exp-advantage, product"),
        (["--use_q_for_weight", "--credit=product"], "use_q_for_weight: it means credit=reward-to-go"),
        (["--exp_in_wmle", "--weight_shares=batch"], "exp_in_wmle: it is for credit=reward or reward-to-go"),
        (["--credit=sequence"], "weight_shares: shares over a sequence cancel its weight"),
        (["--sequence_score=preference"], "sequence_score: preference is for guidance=sequence"),
        (["--mle_coeff=0"], "mle_coeff: 0 leaves nothing to learn from"),
        (["--reward_retrain_epochs=0"], "reward_retrain_epochs: 0 needs a model"),
        (
            ["--credit=product", "--reinforce_coeff=1", "--rew_head=likelihood"],
            "reinforce_credit: credit=product weighs references only",
        ),
        (
            ["--reinforce_baseline=leave-one-out", "--reinforce_coeff=1", "--num_reinforce_samples=1"],
            "reinforce_baseline: it is the mean of the other samples",
        ),
        (["--guidance=sequence", "--use_q_for_weight"], "use_q_for_weight: the reward-to-go is for guidance=token"),
        (
            ["--guidance=sequence", "--exp_in_wmle"],
            "exp_in_wmle: the exponential of token rewards is for guidance=token",
        ),
        (["--resume=auto", "--overwrite"], "set one"),
        (["--model_name_or_path=null"], "no policy"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(words, message):
    with pytest.raises(UserError) as mistake:
        read_command([*DATA, *words])
    assert message in str(mistake.value)


def test_data_must_be_named():
    with pytest.raises(UserError, match="no data"):
        read_command([])


def test_unknown_key_of_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rat: 1\n")
    with pytest.raises(UserError, match="unknown option 'learning_rat'; did you mean 'learning_rate'"):
        read_command([f"--config={file}"])
    file.write_text("- 1\n")
    with pytest.raises(UserError, match="holds no options"):
        read_command([f"--config={file}"])


def test_shipped_configurations_are_valid_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in sorted((ROOT / "configs").glob("sum_*.yaml")):
        read_command([f"--config=configs/{file.name}", *DATA])
