from common.training.program import run_command

import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from common.errors import Interrupted, UserError
from common.training.run_folder import RunFolder
from common.training.sweep_run import Outcome, Plan, PlannedRun, carry_out
from common.training.tracking import read_metrics
from prompt_task.command_line import read_command
from scripts import sweep
from sum_task.meteor import require_wordnet
from tests.tiny_runs import TINY, as_typed

ROOT = Path(sweep.__file__).resolve().parent.parent


ADVICE = "--output=elsewhere"


def call(monkeypatch, capsys, *words):
    """Run the command in this process and return (exit code, what it printed, its error lines)."""
    monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        run_command(sweep.main)
    printed = capsys.readouterr()
    return caught.value.code, printed.out, printed.err


def start(*words, cwd=ROOT, timeout=500, **environment):
    """Run the command as the shell script does, in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "sweep.py"), *map(str, words)],
        cwd=cwd, capture_output=True, text=True, timeout=timeout,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
    )  # fmt: skip


def runs_of(task, *words):
    """(folder name, words) of every run."""
    flags, rest = sweep._flags(list(words), sweep.TASKS[task])
    return [(name, words) for name, words, _ in sweep.combinations(sweep.TASKS[task], flags, rest)]


def needs(launcher):
    """Skip where the packages of a launcher are not installed."""
    try:
        sweep.check_launcher(launcher)
    except UserError as error:
        if "sbatch" not in str(error):
            pytest.skip(str(error))


class TestCombinations:
    def test_data_sets_seeds_and_options_are_crossed(self):
        found = runs_of("fsc", "--datasets", "sst-2,agnews", "--seeds", "1-2", "agg_func=max")
        assert [name for name, _ in found] == [
            f"{dataset}/agg_func=max/seed-{seed}" for dataset in ("sst-2", "agnews") for seed in (1, 2)
        ]  # fmt: skip
        assert found[-1][1] == ["dataset=agnews", "agg_func=max", "dataset_seed=2", "random_seed=2"]

    def test_without_any_word_it_is_three_seeds_of_the_default(self):
        assert [name for name, _ in runs_of("fsc")] == [f"sst-2/default/seed-{seed}" for seed in (0, 1, 2)]

    def test_both_seeds_of_a_prompt_run_can_be_crossed(self):
        found = runs_of("fsc", "dataset_seed=0,1", "random_seed=5,6")
        assert [name.split("/")[2] for name, _ in found] == [
            "split-0-seed-5", "split-0-seed-6", "split-1-seed-5", "split-1-seed-6",
        ]  # fmt: skip

    def test_folders_are_named_by_the_keys_that_are_swept_however_they_are_typed(self):
        one = runs_of("fsc", "--seeds", "3", "top_p=0.9", "learning_rate=1e-4,1e-3", "agg_func=max", "device=cpu")
        other = runs_of("fsc", "agg_func=sum,max", "learning_rate=0.001,0.0001", "--seeds", "3", "top_p=0.9")
        assert one[0][0] == "sst-2/agg_func=max,learning_rate=0.0001/seed-3" and "top_p=0.9" in one[0][1]
        assert {name for name, _ in one} < {name for name, _ in other}

    def test_a_configuration_is_part_of_the_name(self):
        (found,) = runs_of("fsc", "--config-name", "builtin", "--seeds", "0")
        assert found == ("reviews/builtin/seed-0", ["--config-name=builtin", "dataset_seed=0", "random_seed=0"])

    def test_replies_take_a_file_of_preferences(self):
        words = ("train_file=prefs.jsonl", "--seeds", "4", "granularity=token,sequence", "--agg_func=mean")
        names = [name for name, _ in runs_of("chat", *words)]
        assert [name.split("/")[0] for name in names] == ["prefs", "prefs"] and "granularity=sequence" in names[1]

    def test_summaries_take_their_options_in_both_forms(self):
        words = ("--datasets", "xsum,cnn_dailymail:3.0.0", "--seeds", "4", "--agg_func=avg", "guidance=none")
        one, other = runs_of("sum", *words)
        options = ["--agg_func=avg", "--guidance=none", "--seed=4"]
        assert one == ("xsum/agg_func=avg,guidance=none/seed-4", ["--dataset_name=xsum", *options])
        assert other[0] == "cnn_dailymail-3.0.0/agg_func=avg,guidance=none/seed-4"
        assert other[1] == ["--dataset_name=cnn_dailymail", "--dataset_config=3.0.0", *options]

    def test_quotes_hold_commas_together(self):
        found = runs_of(
            "sum", "--datasets=xsum", "--seeds=0", "preference='0.5*meteor+0.5*rouge2',meteor", "report_to=[]"
        )
        assert [words[1] for _, words in found] == ["--preference=0.5*meteor+0.5*rouge2", "--preference=meteor"]
        found = runs_of("fsc", "--seeds=0", "source_str='a, (b)',c")
        assert [sweep.TASKS["fsc"].options(words)["source_str"] for _, words in found] == ["a, (b)", "c"]

    @pytest.mark.parametrize("typed", ["0,1,2", "0-2", "0-1,2", " 0, 1,2"])
    def test_seeds(self, typed):
        assert sweep.seed_list(typed) == [0, 1, 2]

    @pytest.mark.parametrize("typed", ["", "a", "2-0", "0,,1", "1,1", "0-2,1", "-1", "0-99999", "1.5", "²"])
    def test_what_is_no_list_of_seeds(self, typed):
        with pytest.raises(UserError, match="--seeds"):
            sweep.seed_list(typed)


class TestNames:
    @pytest.mark.parametrize("label", ["agg_func=max", "a.b,c=1e-05", "cnn_dailymail", "x+y"])
    def test_a_plain_label_is_its_own_name(self, label):
        assert sweep.safe_name(label) == label

    def test_a_data_set_in_a_folder_stays_readable(self):
        assert sweep.safe_name("builtin/data") == "builtin-data"

    @given(st.text(max_size=300))
    def test_a_name_is_always_one_folder_that_is_not_hidden(self, label):
        name = sweep.safe_name(label)
        assert re.fullmatch(r"[A-Za-z0-9_,=+-][A-Za-z0-9_.,=+-]*", name)
        assert len(name) < 200

    @pytest.mark.parametrize(("one", "other"), [("a b", "a:b"), ("x" * 300, "x" * 301), ("é", "è"), ("..", ".")])
    def test_labels_that_look_alike_once_changed_are_told_apart(self, one, other):
        assert sweep.safe_name(one) != sweep.safe_name(other)

    @given(st.text(max_size=30) | st.text("\\'${a}\",", max_size=12))
    def test_any_text_comes_through_the_option_parser(self, text):
        for word in (sweep.quoted(text), sweep.hydra_word(text)):
            parsed = OverridesParser.create().parse_override(f"key={word}").value()
            assert OmegaConf.create({"key": parsed}).key == text

    @pytest.mark.parametrize(
        "text", ["null", "True", "inf", "1e-3", "7", "sst-2", "builtin/masked-lm", "${a}", "\\${a}"]
    )
    def test_text_that_looks_like_something_else_stays_text(self, text):
        parsed = OverridesParser.create().parse_override(f"key={sweep.hydra_word(text)}").value()
        assert OmegaConf.create({"key": parsed}).key == text


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "the first word says which task"),
            (["fsd"], "the first word says which task"),
            (["fsc", "agg_fnc=max"], "unknown option 'agg_fnc'; did you mean 'agg_func'?"),
            (["fsc", "agg_func=max,mim"], "agg_func: 'mim' is not one of sum, avg, max, min, mean; did"),
            (["fsc", "--datasets", "sst-2,ag"], "dataset: there is no 'ag'"),
            (["fsc", "--datasets", "sst-2,"], "--datasets: 'sst-2,' is no list"),
            (["fsc", "--datasets", "cr", "dataset=mr"], "--datasets and dataset= both name the data sets"),
            (["fsc", "--seeds", "0", "random_seed=1"], "--seeds and random_seed= both give the seeds"),
            (["fsc", "--seeds", "5"], "dataset_seed: 5 is out of range; it must be at most 4"),
            (["fsc", "output_folder=x"], "output_folder: a sweep sets this itself"),
            (["fsc", "agg_func=max", "agg_func=sum"], "agg_func: given twice"),
            (["fsc", "agg_func=max,max"], "two runs would have the folder"),
            (["fsc", "learning_rate=interval(0,1)"], "names no values"),
            (["fsc", "source_str='a"], "cannot read 'source_str='a'"),
            (["fsc", "--launcher", "slrum"], "--launcher: invalid choice: 'slrum'"),
            (["fsc", "--jobs", "2"], "--jobs: is for --launcher local"),
            (["fsc", "--launcher", "local", "--jobs", "0"], "--jobs: 0 is out of range"),
            (["fsc", "--sedes", "0"], "'--sedes' is neither a flag nor of the form key=value; did you mean '--seeds'?"),
            (["fsc", "max"], "'max' is neither a flag nor of the form key=value"),
            (["sum", "--agg_fnc=max", "dataset_name=xsum"], "unknown flag '--agg_fnc'; did you mean '--agg_func'?"),
            (["sum", "agg_func=max"], "no data: give dataset_name"),
            (["sum", "--config=none.yaml"], "--config: there is no file 'none.yaml'"),
        ],
    )
    def test_is_one_line_before_anything_starts(self, words, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        code, _, err = call(monkeypatch, capsys, *words)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_slurm_without_slurm(self, monkeypatch, capsys):
        needs("slurm")
        monkeypatch.setenv("PATH", "/nowhere")
        code, _, err = call(monkeypatch, capsys, "fsc", "--launcher", "slurm")
        assert (code, "there is no sbatch here" in err) == (2, True)

    def test_a_launcher_that_is_not_installed_names_its_extra(self, monkeypatch, capsys):
        gone = sweep.LAUNCHERS["ray"]._replace(package="hydra_plugins.no_such_launcher")
        monkeypatch.setitem(sweep.LAUNCHERS, "ray", gone)
        code, _, err = call(monkeypatch, capsys, "fsc", "--launcher", "ray")
        assert (code, "pip install -e '.[ray]'" in err) == (2, True)


class TestStates:
    TASK = sweep.TASKS["fsc"]

    def options(self, *words):
        return self.TASK.options(["agg_func=max", *words])

    def write(self, folder, complete, **changed):
        folder.mkdir(parents=True, exist_ok=True)
        config = {"command": [], "options": self.options() | changed, "environment": {}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        if complete:
            (folder / "results.json").write_text('{"status": "complete"}')

    def test_complete_begun_and_new(self, tmp_path):
        self.write(tmp_path / "whole", True)
        self.write(tmp_path / "begun", False)
        self.write(tmp_path / "far", False)
        (tmp_path / "far" / "checkpoints" / "step-000003").mkdir(parents=True)
        (tmp_path / "far" / "checkpoints" / "step-000003" / "state.json").write_text("{}")
        texts = {
            name: sweep.state_of(tmp_path / name, self.options(), self.TASK, ADVICE).text
            for name in ("whole", "begun", "far", "new")
        }
        assert texts == {"whole": "complete", "begun": "starts", "far": "goes on", "new": "starts"}

    def test_what_changes_no_result_may_differ(self, tmp_path):
        self.write(tmp_path, True)
        options = self.options("device=cuda", "save_steps=7")
        assert sweep.state_of(tmp_path, options, self.TASK, ADVICE).text == "complete"

    def test_a_run_with_other_options_is_neither_complete_nor_overwritten(self, tmp_path):
        self.write(tmp_path, True)
        state = sweep.state_of(tmp_path, self.options("learning_rate=0.5"), self.TASK, ADVICE)
        assert (state.to_run, state.is_wrong) == (False, True)
        assert "learning_rate was 5e-05, is 0.5" in state.text

    def test_damaged_results_are_named(self, tmp_path):
        self.write(tmp_path, False)
        (tmp_path / "results.json").write_text("{")
        assert sweep.state_of(tmp_path, self.options(), self.TASK, ADVICE).is_wrong


def test_a_sweep_that_differs_in_one_value_alone_is_told_where_to_lie(tmp_path, monkeypatch, capsys):
    output = tmp_path / "s"
    command = ["fsc", "--seeds=0", f"--output={output}", "agg_func=max"]
    folder = output / "sst-2" / "agg_func=max" / "seed-0"
    options = read_command(["agg_func=max", "random_seed=0", "dataset_seed=0"]).options
    folder.mkdir(parents=True)
    RunFolder(folder).write_config(options, [])
    code, out, _ = call(monkeypatch, capsys, *command, "learning_rate=0.5", "--dry-run")
    assert "learning_rate was 5e-05, is 0.5" in out
    place = f"{output}-agg_func=max,learning_rate=0.5"
    assert f"; a sweep of its own lies elsewhere: --output={place}" in out
    code, out, _ = call(monkeypatch, capsys, *command, "learning_rate=0.5", "--dry-run", f"--output={place}")
    assert code == 0 and "seed-0: starts" in out


def test_a_dry_run_shows_the_commands_and_writes_nothing(tmp_path, monkeypatch, capsys):
    code, out, _ = call(
        monkeypatch, capsys, "fsc", "--seeds", "0,1", "--output", tmp_path / "s (1)", "agg_func=max", "--dry-run"
    )
    assert code == 0
    assert "sst-2/agg_func=max/seed-1: starts" in out
    assert out.count("run_fsc.py") == 2
    assert not list(tmp_path.iterdir())


def test_the_command_of_a_run_is_what_the_runner_reads(tmp_path):
    folder = tmp_path / "o'dd \\ ${name} (1), ü"
    words = sweep.command(sweep.TASKS["fsc"], ["agg_func=max"], folder)[2:]
    settings = read_command(words).settings
    assert settings.run.output_folder == str(folder)
    assert settings.run.resume == "auto"


@pytest.mark.parametrize("task", ["fsc", "sum", "chat"])
def test_the_scripts_explain_themselves_without_installing_anything(task, tmp_path):
    for name in ("help.sh", "start_sweep.sh"):
        shutil.copy(ROOT / "scripts" / name, tmp_path)
    script = shutil.copy(ROOT / "scripts" / f"sweep_{task}.sh", tmp_path)  # where there is nothing to install from
    for word in ("--help", "-h"):
        done = subprocess.run(["bash", script, "--seeds", "0", word], capture_output=True, text=True, check=True)
        for flag in [
            "--datasets",
            "--seeds",
            "--output",
            "--launcher",
            "--jobs",
            "--dry_run",
            "hydra.launcher.",
            "DIR",
        ]:
            assert flag in done.stdout
        assert done.stdout.strip() == sweep.help_text(Path(script)).strip()


@pytest.mark.parametrize("task", ["fsc", "sum", "chat"])
def test_the_scripts_install_and_hand_on_every_word_as_it_is(task, tmp_path):
    checkout, bin_folder = tmp_path / "check out", tmp_path / "check out" / ".venv" / "bin"
    (checkout / "scripts").mkdir(parents=True)
    bin_folder.mkdir(parents=True)
    for name in ("help.sh", "start_sweep.sh", f"sweep_{task}.sh"):
        shutil.copy(ROOT / "scripts" / name, checkout / "scripts")
    (checkout / "install_packages.sh").write_text("echo installing\n")
    (bin_folder / "python").write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    (bin_folder / "python").chmod(stat.S_IRWXU)
    words = ["source_str='a, b'", "$(touch x)", "*", "--seeds", "0-4"]
    environment = {key: value for key, value in os.environ.items() if key not in ("VENV", "VIRTUAL_ENV")}
    done = subprocess.run(
        ["bash", str(checkout / "scripts" / f"sweep_{task}.sh"), *words],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["installing", str(checkout / "scripts" / "sweep.py"), task, *words]
    assert not (tmp_path / "x").exists()
    # An activated environment with the project is used as it is, and nothing is installed.
    own = tmp_path / "own" / "bin"
    own.mkdir(parents=True)
    (own / "python").write_text("#!/bin/sh\necho own\n")
    (own / "python").chmod(stat.S_IRWXU)
    done = subprocess.run(
        ["bash", str(checkout / "scripts" / f"sweep_{task}.sh")],
        capture_output=True, text=True, check=True, env=environment | {"VIRTUAL_ENV": str(own.parent)},
    )  # fmt: skip
    assert done.stdout == "own\n"


def write_stub_plan(output):
    """A plan of one run that ends well, one that fails, one that is killed, and one more that ends well."""
    write = (
        "import pathlib, sys; folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True); "
        "(folder / 'results.json').write_text('{\"status\": \"complete\"}')"
    )
    codes = [write, "raise SystemExit('error: no luck')", "import os; os.kill(os.getpid(), 9)", write]
    names = [f"data/m/seed-{i}" for i in range(4)]
    runs = [PlannedRun(n, [sys.executable, "-c", c, str(output / n)]) for n, c in zip(names, codes, strict=True)]
    plan = Plan(output / ".sweep" / "one", "fsc", str(output.parent), runs)
    plan.write()
    return plan


LAUNCH = """
import sys
from pathlib import Path
from common.training.sweep_run import Plan
from scripts import sweep
plan = Plan.read(Path(sys.argv[1]))
lost = sweep.launch(plan, sys.argv[2], 2, sys.argv[3:])
print("LOST", lost)
"""


def launch(tmp_path, launcher, *words, **environment):
    """The stub plan through a launcher: the plan, and what the launching process said."""
    plan = write_stub_plan(tmp_path / "a sweep (1)")
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(plan.folder), launcher, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return plan, done.stdout


def check_launched(plan):
    statuses = [plan.outcome(number).status for number in range(4)]
    assert statuses == ["done", "failed", "failed", "done"]
    bad = sweep.failures(plan, "")
    assert list(bad) == ["data/m/seed-1", "data/m/seed-2"]
    assert bad["data/m/seed-1"].startswith("error: no luck (exit code 1); log: ")
    assert "(signal 9)" in bad["data/m/seed-2"]


@pytest.mark.parametrize(
    "launcher",
    ["serial", pytest.param("local", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow)],
)
def test_a_run_that_fails_or_is_killed_stops_no_other(launcher, tmp_path):
    needs(launcher)
    plan, out = launch(tmp_path, launcher)
    assert "LOST \n" in out
    check_launched(plan)


SBATCH = """#!/usr/bin/env bash
# Stands in for Slurm's: keeps the submission and runs each task of its array, but for the one that is lost.
script="${@: -1}"
cp "$script" "$FAKE_SLURM/submission.sh"
last="$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")"
for task in $(seq 0 "$last"); do
    [[ "$task" != "${LOST_TASK:-none}" ]] || continue
    SLURM_JOB_ID=$((77 + task)) SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 \\
        SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here \\
        bash "$FAKE_SLURM/submission.sh" >"$FAKE_SLURM/task-$task.txt" 2>&1 &
done
echo "Submitted batch job 77"
"""
SRUN = """#!/usr/bin/env bash
while [[ "$1" == -* ]]; do [[ "$1" == --unbuffered ]] || shift; shift; done
exec "$@"
"""
SACCT = """#!/usr/bin/env bash
echo 'JobID|State|NodeList'
[[ -z "${LOST_TASK:-}" ]] || echo "77_$LOST_TASK|NODE_FAIL|here"
"""


@pytest.fixture
def slurm(tmp_path):
    """A PATH with stand-ins for Slurm's commands, and the folder where these keep what they were given."""
    needs("slurm")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


@pytest.mark.slow
def test_slurm_gets_one_array_with_the_options_that_were_typed(tmp_path, slurm):
    words = ("hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1", "hydra.launcher.timeout_min=600")
    plan, out = launch(tmp_path, "slurm", *words, **slurm)
    submission = (tmp_path / "slurm" / "submission.sh").read_text()
    for line in (
        "#SBATCH --array=0-3%4", "#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=1", "#SBATCH --time=600",
        "#SBATCH --job-name=sweep-fsc",
    ):  # fmt: skip
        assert line in submission.splitlines()
    # The folder's odd name reaches the job as one word.
    assert f"submitit.core._submit '{plan.folder}/.submitit/%j'" in submission
    assert "LOST \n" in out
    check_launched(plan)


@pytest.mark.slow
def test_a_job_that_slurm_loses_is_named_and_the_others_count(tmp_path, slurm):
    plan, out = launch(tmp_path, "slurm", LOST_TASK="3", **slurm)
    assert re.search(r"LOST \S+", out)
    assert plan.outcome(3) is None
    bad = sweep.failures(plan, out.split("LOST ")[1].strip())
    assert bad["data/m/seed-3"].startswith("no word from it (")
    assert plan.outcome(0) == Outcome("done", "", plan.outcome(0).seconds)


@pytest.mark.slow
def test_an_option_that_the_launcher_does_not_have_is_one_line(tmp_path):
    plan = write_stub_plan(tmp_path / "sweep")
    done = subprocess.run(
        [
            sys.executable, "-c",
            "import sys; from common.training.program import run_command; from pathlib import Path; "
            "from common.training.sweep_run import Plan; from scripts import sweep; "
            "run_command(lambda: sweep.launch(Plan.read(Path(sys.argv[1])), 'serial', "
            "1, ['hydra.launcher.partition=gpu']))", str(plan.folder),
        ],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: --launcher serial: ")
    assert "partition" in done.stderr
    assert plan.outcome(0) is None


def tiny_words(**changed):
    """The built-in models with the settings of a tiny run."""
    left_out = ("top_k", "save_steps", "quiet")
    return [f"{key}={as_typed(value)}" for key, value in (TINY | changed).items() if key not in left_out]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_a_sweep_on_the_built_in_models(launcher, tmp_path):
    needs(launcher)
    words = (
        "fsc", "--config-name", "builtin", "--seeds", "0,1", "--launcher", launcher, "--output", tmp_path / "sw",
        "guidance=token,sequence", *tiny_words(),
    )  # fmt: skip
    # A run that another process is writing: it is left alone, named, and taken up by the next call.
    names = [name for name, _ in runs_of("fsc", "--config-name", "builtin", "--seeds", "0,1", *words[9:])]
    assert len(names) == 4
    folder = tmp_path / "sw" / names[1]
    folder.parent.mkdir(parents=True)
    with open(folder.with_name(f".{folder.name}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first = start(*words)
    assert first.returncode == 1, first.stderr[-3000:]
    assert "3 of 4 runs are complete" in first.stdout
    assert f"failed: {names[1]}: another process is writing this run" in first.stderr
    second = start(*words)
    assert second.returncode == 0, second.stderr[-3000:]
    assert [line.rsplit(": ", 1)[1] for line in second.stdout.splitlines()[1:5]] == [
        "complete", "starts", "complete", "complete",
    ]  # fmt: skip
    third = start(*words)
    assert (third.returncode, "4 of 4 runs are complete" in third.stdout) == (0, True)
    collected = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "collect_results.py"), str(tmp_path / "sw")],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert collected.returncode == 0, collected.stderr
    assert re.search(r"\| reviews \| sequence \| sum \| 2 \|", collected.stdout)
    assert re.search(r"\| reviews \| token \| sum \| 2 \|", collected.stdout)
    assert "In no mean" not in collected.stdout


@pytest.mark.slow
def test_a_failed_run_of_a_real_sweep_is_named_and_the_rest_goes_on(tmp_path):
    words = (
        "fsc", "--config-name=builtin", "--seeds=0", "--output", tmp_path / "sw",
        "task_lm=builtin/none,builtin/masked-lm", *tiny_words(),
    )  # fmt: skip
    done = start(*words)
    assert done.returncode == 1, done.stderr
    assert "1 of 2 runs are complete" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert "builtin/none" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_sweep_ends_its_runs_in_order_and_begins_no_other(number, tmp_path):
    code = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit('state saved'));"
        f"pathlib.Path({str(tmp_path / 'began')!r}).touch(); time.sleep(60)"
    )
    runs = [PlannedRun(name, [sys.executable, "-c", code]) for name in ("a/b/c", "d/e/f")]
    plan = Plan(tmp_path / ".sweep" / "1", "fsc", str(tmp_path), runs)
    plan.write()

    def send():
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(Interrupted, match="the same command goes on from here"), sweep.stopping(plan, waits=True):
        carry_out(plan.folder, 0)
        carry_out(plan.folder, 1)
    thread.join()
    assert [getattr(plan.outcome(number), "reason", None) for number in (0, 1)] == [
        "state saved (exit code 1)", "the sweep was stopped before it began",
    ]  # fmt: skip
    assert not list(plan.folder.glob("*.pid"))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_its_checkpoint(tmp_path):
    options = ("fsc", "--config-name=builtin", "--seeds=0", "save_steps=2", *tiny_words(max_train_steps=40))
    words = (*options, "--output", tmp_path / "killed")
    with subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "sweep.py"), *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    ) as first:  # fmt: skip
        while not list(tmp_path.rglob("step-*/state.json")):
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        (runner,) = psutil.Process(first.pid).children()
        runner.kill()
        _, said = first.communicate(timeout=100)
    assert first.returncode == 1
    assert "(signal 9)" in said
    assert not list(tmp_path.rglob("results.json"))
    second = start(*words)
    assert second.returncode == 0, second.stderr
    assert "seed-0: goes on" in second.stdout
    alone = start(*options, "--output", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    (resumed,), (expected,) = ([*(tmp_path / name).rglob("results.json")] for name in ("killed", "alone"))
    for name in ("policy_steps", "reward_steps", "prompts_scored", "test_accuracy"):
        assert json.loads(resumed.read_text())[name] == json.loads(expected.read_text())[name]
    steps = [event["step"] for event in read_metrics(resumed.with_name("metrics.jsonl")) if event["phase"] == "policy"]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_a_sweep_of_summaries_on_the_built_in_models(tmp_path):
    try:
        require_wordnet()
    except UserError as error:
        pytest.skip(str(error))
    needs("local")
    words = (
        "sum", "--config=configs/sum_builtin.yaml", "--seeds=0,1", "--output", tmp_path / "sw", "--launcher", "local",
        "guidance=none", "max_train_samples=8", "max_eval_samples=2", "max_predict_samples=4", "num_train_epochs=1",
        "preference=rouge1", "device=cpu", "per_device_eval_batch_size=4",
    )  # fmt: skip
    done = start(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = sorted(file.parent.name for file in tmp_path.rglob("results.json"))
    assert folders == ["seed-0", "seed-1"]
    assert json.loads(next(tmp_path.rglob("results.json")).read_text())["task"] == "summarization"
    again = start(*words)
    assert (again.returncode, again.stdout.count(": complete")) == (0, 2)
