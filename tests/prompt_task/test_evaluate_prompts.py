from common.training.program import run_command

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.reporting.intervals import wilson
from common.training.data_files import unmarked_cell
from prompt_task import evaluate_prompts, run_fsc
from prompt_task.evaluate_prompts import read_prompts
from prompt_task.task_lm import TaskLM
from tests.tiny_runs import as_typed

ROOT = Path(evaluate_prompts.__file__).resolve().parent.parent
# What an option parser, a shell, YAML or a table would each make something else of.
ODD = [
    " blank before",
    "blank after ",
    "  ",
    "null",
    "12",
    "1e3",
    "true",
    "NaN",
    'say "hi"',
    "it's",
    "{x}",
    "[1, 2]",
    "${y}",
    "a=b",
    "a,b",
    "back\\slash",
    "\\n",
    "line\nbreak",
    "carriage\rreturn",
    "tab\t",
    "#no comment",
    "café 映",
    "'; touch PWNED; '",
    "$(touch PWNED)",
    "%s",
    "<mask>",
    "",
]


@pytest.fixture
def evaluate(world, monkeypatch, capsys):
    """Run the command's `main` in this process: its exit code, output and error output."""

    def call(*words, **options):
        own = {"base_path": world.data, "num_shots": 3, "task_lm": world.masked, "device": "cpu", "quiet": True}
        typed = [f"{key}={as_typed(value)}" for key, value in (own | options).items()]
        monkeypatch.setattr(sys, "argv", ["evaluate_prompts.py", *typed, *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            run_command(evaluate_prompts.main)
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call


@pytest.fixture
def asked(monkeypatch):
    """The prompts that the task LM is asked about."""
    prompts: list[str] = []
    original = TaskLM.class_probabilities

    def spied(self, pairs):
        prompts.extend(prompt for _, prompt in pairs if prompt not in prompts)
        return original(self, pairs)

    monkeypatch.setattr(TaskLM, "class_probabilities", spied)
    return prompts


def rows(path):
    """The rows of a table of prompts, with the prompts as they were."""
    with open(path, encoding="utf-8", newline="") as file:
        return [row | {"prompt": unmarked_cell(row["prompt"])} for row in csv.DictReader(file)]


def test_prompts_of_the_command_line_reach_the_task_lm_verbatim(evaluate, asked, tmp_path):
    code, out, _ = evaluate(prompts=json.dumps(ODD), output_file=tmp_path / "scores.csv")
    assert code == 0
    assert sorted(asked) == sorted(ODD)
    assert [row["prompt"] for row in rows(tmp_path / "scores.csv")] == ODD
    for prompt in ODD:
        assert repr(prompt) in out


@pytest.mark.parametrize("prompt", ["null", "12", "true", "1.0", "{}"])
def test_a_single_odd_prompt_is_text(prompt, evaluate, asked):
    assert evaluate(prompts=json.dumps([prompt]))[0] == 0
    assert asked == [prompt]


def test_every_form_of_file_gives_its_prompts_verbatim(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(ODD), encoding="utf-8")
    assert read_prompts(None, str(tmp_path / "p.json")) == ODD
    with open(tmp_path / "p.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", "prompt", "note"])
        writer.writerows([i, prompt, ""] for i, prompt in enumerate(ODD))
    assert read_prompts(None, str(tmp_path / "p.csv")) == ODD
    lines = [prompt for prompt in ODD if prompt and "\n" not in prompt and "\r" not in prompt]
    (tmp_path / "p.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_prompts(None, str(tmp_path / "p.txt")) == lines


def test_files_saved_by_other_programs_are_read_too(tmp_path):
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbfprompt\r\n a \r\n")
    assert read_prompts(None, str(tmp_path / "p.csv")) == [" a "]
    (tmp_path / "p.txt").write_bytes(b" a \r\nb\r\n")
    assert read_prompts(None, str(tmp_path / "p.txt")) == [" a ", "b"]


@pytest.mark.parametrize(
    ("prompts", "name", "content", "words"),
    [
        (None, None, None, "give either prompts="),
        ('["a"]', "p.txt", "a", "give either prompts="),
        ("a b", None, None, "prompts: not JSON"),
        ('"a"', None, None, "prompts: must be a JSON list of at least one text"),
        ("[]", None, None, "at least one text"),
        ("[1]", None, None, "at least one text"),
        ('["a", null]', None, None, "at least one text"),
        (r'["\ud800"]', None, None, "not a text"),
        (None, "p.csv", "text\na\n", "line 2: no column 'prompt' .found: 'text'"),
        (None, "p.csv", "prompt\n", "holds no prompt"),
        (None, "p.csv", "", "holds no prompt"),
        (None, "p.txt", "\n\n", "holds no prompt"),
        (None, "p.json", "{", "not JSON"),
        (None, "p.txt", b"\xff\xfe", "not UTF-8"),
        (None, "nowhere.txt", None, "cannot read"),
    ],
)
def test_what_is_no_list_of_prompts_is_an_error_that_says_so(prompts, name, content, words, tmp_path):
    path = None if name is None else str(tmp_path / name)
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words):
        read_prompts(prompts, path)


def test_the_prompts_of_a_run_get_the_accuracy_that_the_run_reported(world, evaluate, tmp_path):
    run_fsc.run(world.command(output_folder=tmp_path / "run"))
    trained = {row["prompt"]: row for row in rows(tmp_path / "run" / "prompts.csv") if row["test_accuracy"]}
    for split in ("train", "dev", "test"):
        out = tmp_path / f"{split}.csv"
        assert evaluate(prompts_file=tmp_path / "run" / "prompts.csv", split=split, output_file=out)[0] == 0
        again = {row["prompt"]: row for row in rows(out)}
        for prompt, row in trained.items():
            for name in (f"{split}_accuracy", f"{split}_score"):
                assert float(again[prompt][name]) == pytest.approx(float(row[name]), abs=1e-3)


def test_the_test_split_is_the_default_and_all_its_examples_count(evaluate):
    code, out, _ = evaluate(prompts='["great"]')
    assert code == 0
    assert out.startswith("sst-2, test (6 examples), task LM")
    assert evaluate(prompts='["great"]', split="train")[1].startswith("sst-2, train (6 examples)")


def test_an_accuracy_has_its_binomial_interval_on_the_screen_and_in_the_table(evaluate, tmp_path):
    _, out, _ = evaluate(prompts=json.dumps(["great", "dull " * 300]), output_file=tmp_path / "s.csv")
    good, bad = rows(tmp_path / "s.csv")
    low, high = wilson(float(good["test_accuracy"]), 6)
    assert (float(good["test_accuracy_low"]), float(good["test_accuracy_high"])) == pytest.approx((low, high))
    assert f"{low:6.1%} to {high:6.1%}" in out
    assert bad["test_accuracy_low"] == bad["test_accuracy_high"] == ""


def test_equal_prompts_are_scored_once(evaluate, tmp_path):
    evaluate(prompts='["a", "b", "a"]', output_file=tmp_path / "s.csv")
    assert [row["prompt"] for row in rows(tmp_path / "s.csv")] == ["a", "b"]


def test_the_task_lm_of_the_command_line_is_the_one_that_is_asked(world, evaluate, tmp_path):
    evaluate(prompts='["great"]', output_file=tmp_path / "a.csv")
    evaluate(prompts='["great"]', output_file=tmp_path / "b.csv", task_lm=world.left_to_right)
    assert rows(tmp_path / "a.csv")[0]["test_score"] != rows(tmp_path / "b.csv")[0]["test_score"]


def test_coefficients_scale_the_score_and_standardizing_is_for_training_alone(evaluate, tmp_path):
    for name, options in (
        ("a", {}),
        ("b", {"correct_coeff": 400, "incorrect_coeff": 360}),
        ("c", {"compute_zscore": True}),
    ):
        evaluate(prompts='["great", "dull"]', output_file=tmp_path / name, **options)
    one, two, three = ([float(row["test_score"]) for row in rows(tmp_path / name)] for name in "abc")
    assert two == pytest.approx([2 * score for score in one], rel=1e-4)
    assert three == one


def test_a_prompt_that_fails_is_shown_with_its_error_and_the_others_are_scored(evaluate, tmp_path):
    code, out, _ = evaluate(prompts=json.dumps(["great", "dull " * 300]), output_file=tmp_path / "s.csv")
    assert code == 0
    assert "failed" in out
    assert "leaves no room" in out
    good, bad = rows(tmp_path / "s.csv")
    assert good["error"] == ""
    assert "leaves no room" in bad["error"]


def test_only_failures_are_exit_code_1(evaluate):
    assert evaluate(prompts=json.dumps(["dull " * 300]))[0] == 1


def test_cut_texts_are_mentioned(evaluate, world, tmp_path):
    folder = Path(world.data) / "3-shot" / "sst-2" / "3-100"
    copy = tmp_path / "3-shot" / "sst-2" / "3-100"
    copy.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        text = (folder / f"{part}.tsv").read_text(encoding="utf-8")
        (copy / f"{part}.tsv").write_text(text.replace("funny test", "film " * 200 + "test"), encoding="utf-8")
    _, out, _ = evaluate(prompts='["great"]', base_path=tmp_path)
    assert "1 texts were longer than the task LM reads" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": '["a"]', "split": "tset"}, "split: 'tset' is not one of test, dev, train; did you mean 'test'?"),
        ({"prompts": "a"}, "prompts: not JSON"),
        ({}, "give either prompts="),
        ({"promts": "[]"}, "unknown option 'promts'; did you mean 'prompts'?"),
        ({"prompts": '["a"]', "dataset": "sst2"}, "did you mean 'sst-2'?"),
        ({"prompts": '["a"]', "task_lm": "/no/such"}, "cannot load '/no/such'"),
        ({"prompts": '["a"]', "output_file": "/no/such/folder/x.csv"}, "cannot write /no/such/folder/x.csv"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(options, words, evaluate, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, error = evaluate(**options)
    assert code == 2
    assert error.count("\n") == 1
    assert words in error


def test_help_explains_the_options(evaluate):
    code, out, _ = evaluate("--help")
    assert code == 0
    for word in ("prompts_file", "split", "output_file", "python prompt_task/evaluate_prompts.py"):
        assert word in out


def test_the_command_works_as_typed_and_runs_nothing_that_a_prompt_says(world, tmp_path):
    words = [
        f"base_path={world.data}",
        "num_shots=3",
        f"task_lm={world.masked}",
        f"prompts={json.dumps(ODD)}",
        "output_file=s.csv",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "prompt_task" / "evaluate_prompts.py"), *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    assert [row["prompt"] for row in rows(tmp_path / "s.csv")] == ODD
