import pytest

from common.errors import UserError
from prompt_task.command_line import CONFIGS, check_sweep, help_text, read_command
from tests.tiny_runs import published_options

DATASETS = (
    "sst-2", "yelp-2", "mr", "cr", "agnews", "sst-5", "yelp-5", "subj", "trec", "yahoo", "dbpedia", "reviews",
)  # fmt: skip
EXTRA = {"prompts": None, "split": "test"}


def test_without_words_the_options_are_those_of_the_configuration():
    command = read_command([])
    assert command.spec.name == "sst-2"
    for key, value in published_options().items():
        assert command.options[key] == value, key


def test_words_set_options():
    command = read_command(["dataset=agnews", "dataset_seed=1", "random_seed=2", "agg_func=max", "top_k=null"])
    settings = command.settings
    assert (command.spec.name, settings.data.dataset_seed, settings.run.random_seed) == ("agnews", 1, 2)
    assert (settings.reward.agg_func, settings.policy.top_k) == ("max", None)
    assert command.options["agg_func"] == "max"
    assert command.options["dataset"]["name"] == "agnews"


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_can_be_named(name):
    assert read_command([f"dataset={name}"]).spec.name == name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_task_is_valid_and_says_how_it_is_run(path):
    text = path.read_text(encoding="utf-8")
    if "run_fsc.py" not in text:
        pytest.skip("of the other task")
    assert read_command([f"--config-name={path.stem}"]).settings
    command = "python prompt_task/run_fsc.py" + (f" --config-name={path.stem}" if path.stem != "fsc_config" else "")
    assert command in text.split("defaults:")[0]


@pytest.mark.parametrize("words", [["--config-name=builtin"], ["--config-name", "builtin"], ["-cn", "builtin.yaml"]])
def test_a_configuration_is_named_by_a_flag(words):
    command = read_command([*words, "random_seed=1"])
    assert (command.spec.name, command.settings.classifier.task_lm, command.settings.run.random_seed) == (
        "reviews", "builtin/masked-lm", 1,
    )  # fmt: skip


def test_a_data_set_of_ones_own_stands_in_a_folder_of_ones_own(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text(
        'name: mine\nverbalizers: [" no", " yes"]\nmasked_template: "{sentence} {prompt} <mask>"\n'
        'left_to_right_template: "{sentence} {prompt}"\n'
    )
    command = read_command([f"--config-dir={tmp_path}", "dataset=mine"])
    assert command.spec.verbalizers == (" no", " yes")
    with pytest.raises(UserError, match="mine-2"):
        read_command([f"--config-dir={tmp_path}", "dataset=mine-2"])
    with pytest.raises(UserError, match=r"--config-dir: '.*nowhere' is not a folder"):
        read_command([f"--config-dir={tmp_path}/nowhere"])


def test_a_configuration_overrides_nobodys_data_set():
    small = "--config-name=smollm2_cpu"
    assert read_command([small, "dataset=agnews"]).spec.verbalizers == (" World", " Sports", " Business", " Tech")
    assert read_command([small]).spec.verbalizers == (" negative", " positive")
    assert read_command([small, "task_lm=roberta-large"]).spec.verbalizers == (" terrible", " great")
    typed = read_command([small, "dataset=agnews", "dataset.verbalizers=[A,B,C,D]"])
    assert typed.spec.verbalizers == ("A", "B", "C", "D")


def test_parts_of_a_data_set_can_be_set():
    command = read_command(["dataset.verbalizers=[' negative',' positive']"])
    assert command.spec.verbalizers == (" negative", " positive")
    with pytest.raises(UserError, match="unknown key 'verbaliser'"):
        read_command(["+dataset.verbaliser=x"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning_rat=1"], "unknown option 'learning_rat'; did you mean 'learning_rate'?"),
        (["+learning_rat=1"], "unknown option 'learning_rat'; did you mean 'learning_rate'?"),
        (["++foo.bar=1"], "unknown option 'foo.bar'"),
        (["dataset=sst2"], "dataset: there is no 'sst2' .*did you mean 'sst-2'"),
        (["dataset="], "dataset: there is no ''"),
        (["dataset=null"], "dataset"),
        (["~dataset"], "dataset"),
        (["~learning_rate"], "option 'learning_rate' is not set"),
        (["--config-name=builtn"], "--config-name: there is no 'builtn' .*did you mean 'builtin'"),
        (["--config-name"], "--config-name needs a value"),
        (["--learning_rate=1"], "unknown flag '--learning_rate=1'"),
        (["-x"], "unknown flag '-x'"),
        (["--config-nam=builtin"], "unknown flag .*did you mean '--config-name'"),
        (["--multirun"], "'--multirun' has no place here"),
        (["agnews"], "'agnews' is not of the form key=value"),
        (["learning_rate=fast"], "learning_rate: 'fast' is not a number"),
        (["learning_rate=-1"], "learning_rate: -1.0 is out of range; it must be more than 0"),
        (["gradient_clip=maybe"], "gradient_clip: 'maybe' is not true or false"),
        (["top_k=2.5"], "top_k: 2.5 is not a whole number"),
        (["guidance=seq"], "guidance: 'seq' is not one of token, sequence; did you mean"),
        (["source_str=<x"], "source_str: cannot read the value of 'source_str=<x'"),
        (["learning_rate.x=1"], "learning_rate"),
        (["output_folder=${nowhere}"], "nowhere"),
        (["report_to=wandb"], "report_to: 'wandb' is not a list"),
        (["dataset_seed=7"], "dataset_seed: 7 is out of range"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(words, message):
    with pytest.raises(UserError, match=message) as caught:
        read_command(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ['["a b", " c "]', "null", "12", "'x'", "{a: 1}", "${x}", "a=b", "", "[]", "\\n", "%", "#no comment", '"', "a,b"],
)
def test_a_commands_own_options_are_taken_as_they_were_typed(text):
    command = read_command([f"prompts={text}", "split=dev"], EXTRA)
    assert command.extra == {"prompts": text, "split": "dev"}
    assert command.options["prompts"] == text


def test_a_commands_own_options_have_defaults_and_count_as_known():
    assert read_command([], EXTRA).extra == EXTRA
    with pytest.raises(UserError, match="unknown option 'promts'; did you mean 'prompts'"):
        read_command(["promts=x"], EXTRA)
    with pytest.raises(UserError, match="unknown option 'prompts'"):
        read_command(["prompts=x"])


def test_quoted_text_keeps_its_characters():
    assert read_command(["source_str='<|endoftext|>'"]).settings.models.source_str == "<|endoftext|>"
    assert read_command(['source_str="a = b, c"']).settings.models.source_str == "a = b, c"
    assert read_command(["source_str=' '"]).settings.models.source_str == " "
    assert read_command(["output_folder=/tmp/a-b_c.d/2024"]).settings.run.output_folder == "/tmp/a-b_c.d/2024"


def test_reading_a_command_twice_leaves_nothing_behind():
    assert read_command(["random_seed=5"]).settings.run.random_seed == 5
    assert read_command([]).settings.run.random_seed == 0


def test_a_sweep_is_checked_value_by_value():
    check_sweep(["--multirun", "dataset=mr,agnews", "random_seed=range(0,3)", "report_to=[]", "source_str='a, b'"])
    check_sweep(["-m", "--config-name=builtin", "agg_func=sum,max"])
    for words, message in (
        (["agg_func=sum,mx"], "agg_func: 'mx' is not one of"),
        (["random_seed=0,1", "dataset=mr,nowhere"], "there is no 'nowhere'"),
        (["random_sed=0,1"], "did you mean 'random_seed'"),
    ):
        with pytest.raises(UserError, match=message):
            check_sweep(["--multirun", *words])


def test_help_explains_every_option():
    text = help_text("python prompt_task/run_fsc.py")
    assert text.startswith("usage: python prompt_task/run_fsc.py")
    for key in published_options():
        assert f"\n{key}: " in text
