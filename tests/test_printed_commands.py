"""Every command that README and docs print can be typed.

They are read off the Markdown. Each one's options go through the real reader of its program; slow tests then run it in
a copy of the project as it is printed, in a folder that holds what its placeholders name, with further words behind it
that make it small. A command whose program is not in `PROGRAMS` fails, so that whoever prints a new one says here how
it is made small.
"""

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser

from chat_task.command_line import read_command as read_chat_command
from common.errors import UserError
from prompt_task import evaluate_prompts
from prompt_task.command_line import read_command as read_prompt_command
from scripts import sweep
from sum_task.command_line import read_command as read_summary_command
from tests import tiny_models, written_runs
from tests.sum_task import tiny

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "configs" / "xsum_cpu.yaml"]
COMMAND = re.compile(r"([A-Z_]+=\S+ +)*(cd \S+ && )?(python|bash|accelerate|torchrun) ")
STAMPED = ("requirements.txt", "setup.py", "pyproject.toml")  # what install_packages.sh installs from
COPIED = ("chat_task", "common", "configs", "prompt_task", "scripts", "sum_task", "install_packages.sh", *STAMPED)

Reader = Callable[[list[str]], Any]


@dataclass(frozen=True)
class Printed:
    """A command as it is printed, on which page."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def commands_in(page: Path) -> Iterator[str]:
    """The commands of a page: in Markdown lines of fenced blocks and code spans, in YAML lines of comments."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        code = re.findall(r"^#   (.*)", text.replace("\\\n#", " "), re.MULTILINE)
    else:
        blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        code = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        code += re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in code:
        words = " ".join(line.split())
        if COMMAND.match(words):
            yield words


def printed_commands() -> list[Printed]:
    """All of them, each once."""
    found = {text: page for page in reversed(PAGES) for text in commands_in(page)}
    return [Printed(str(page.relative_to(ROOT)), text) for text, page in sorted(found.items())]


@dataclass(frozen=True)
class Call:
    """A command taken apart: the program, by path or after -m, and the words behind it."""

    program: str
    words: list[str]


def taken_apart(text: str) -> Call:
    words = shlex.split(text, comments=True)
    folder = ""
    while True:
        if words[0] == "cd":
            folder, words = words[1] + "/", words[3:]
        elif re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        else:
            break
    if words[0] == "accelerate":
        parsed = launch_command_parser().parse_args(words[2:])
        return Call("accelerate launch", [parsed.training_script, *parsed.training_script_args])
    if words[1] == "-m":
        return Call(words[2], words[3:])
    return Call(folder + words[1], words[2:])


class Read(Exception):
    """A program has read its flags; `rest` are the words that it did not know."""

    def __init__(self, rest: list[str]) -> None:
        super().__init__()
        self.rest = rest


def flags_of(module: str, read_rest: Reader | None = None) -> Reader:
    """A reader that starts a program and stops it once its argparse has read the words."""

    def read(words: list[str]) -> None:
        parse_known = argparse.ArgumentParser.parse_known_args

        def strictly(parser: Any, *arguments: Any) -> Any:
            rest = parse_known(parser, *arguments)[1]
            if rest:
                parser.error(f"unrecognized arguments: {' '.join(rest)}")
            raise Read([])

        def known(parser: Any, *arguments: Any) -> Any:
            raise Read(parse_known(parser, *arguments)[1])

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Read) as stopped:
            patch.setattr(argparse.ArgumentParser, "parse_args", strictly)
            patch.setattr(argparse.ArgumentParser, "parse_known_args", known)
            patch.setattr(sys, "argv", [module, *words])
            importlib.import_module(module).main()
        if read_rest is not None:
            read_rest(stopped.value.rest)
        else:
            assert not stopped.value.rest

    return read


def read_sweep(task: str) -> Reader:
    """What the sweep would start is read for the first seed: others differ in a number."""

    def read(words: list[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["sweep.py", task, *words, "--seeds", "0", "--dry_run"])
            sweep.main()

    return read


def read_launched(words: list[str]) -> None:
    call = taken_apart(shlex.join(["python", *words]))
    PROGRAMS[call.program].read(call.words)


def read_nothing(words: list[str]) -> None:
    assert not words, "this program takes no options"


PROMPT_RUN = [
    "hidden_size=16", "prompt_length=3", "reward_learning_samples=2",
    "reward_learning_batch_size=4", "prompt_train_batch_size=4", "rew_num_train_epochs=1",
    "rew_max_train_steps=1", "rew_validation_batches=1", "num_reinforce_samples=4",
    "max_train_steps=2", "early_stop_eval_period=2", "num_validation_prompts=1",
    "candidate_steps=1", "prompt_infer_batch_size=1", "num_candidates=1",
    "num_reported=1", "reward_pool_size=0", "checkpoint_steps=0",
    "device=cpu", "quiet=true",
]  # fmt: skip
PROMPT_MODELS = ["base_path=DATA", "policy_lm=POLICY"]
MASKED, LEFT_TO_RIGHT = ["task_lm=MASKED"], ["task_lm=POLICY"]
SUMMARY_RUN = [
    "max_source_length=24", "max_target_length=6", "head_hidden_size=8",
    "max_train_samples=4", "max_eval_samples=2", "max_predict_samples=2",
    "reward_learning_batch_size=2", "per_device_train_batch_size=2", "num_train_epochs=1",
    "gradient_accumulation_steps=1", "rew_num_train_epochs=1", "reward_retrain_epochs=0.5",
    "device=cpu", "quiet=true",
]  # fmt: skip
SUMMARY_DATA = [
    "dataset_name=null", "dataset_config=null", "train_file=ROWS", "validation_file=ROWS", "test_file=ROWS",
]  # fmt: skip
SUMMARY_MODELS = ["model_name_or_path=TOKENIZER", "rew_model_name_or_path=TOKENIZER"]
BUILTIN_SUMMARIES = [word for word in SUMMARY_RUN if not word.startswith("max_source_length")]


def small_prompt_run(words: Sequence[str]) -> list[str]:
    if "--help" in words:
        return []
    if "--config-name=builtin" in words:
        return PROMPT_RUN
    left_to_right = any("smollm2" in word or "task_lm=gpt2" in word for word in words)
    # To the tiny tokenizers the published verbalizers of AG News are two tokens.
    topics = ["dataset.verbalizers=[' World',' Sports',' Business',' Tech']"] if "dataset=agnews" in words else []
    pool = ["reward_pool_size=4"] if any("pool_candidates" in word for word in words) else []
    return [*PROMPT_RUN, *pool, *PROMPT_MODELS, *topics, *(LEFT_TO_RIGHT if left_to_right else MASKED)]


def small_summary_run(words: Sequence[str]) -> list[str]:
    if "--help" in words:
        return []
    is_builtin = any("builtin.yaml" in word for word in words)
    own = BUILTIN_SUMMARIES if is_builtin else [*SUMMARY_RUN, *SUMMARY_DATA]
    if not is_builtin:
        has_policy = any(word.lstrip("-").startswith("model_name_or_path=WARM/") for word in words)
        own = [*own, *SUMMARY_MODELS[has_policy:]]
    return [f"--{word}" for word in own]


def small_chat_run(words: Sequence[str]) -> list[str]:
    small = ["--max_train_samples=4", "--max_eval_samples=6", "--device=cpu", "--quiet=true", "--overwrite=true"]
    if any("--stage=" in word for word in words):
        small += ["--policy_steps=1", "--prompts_per_step=2", "--samples_per_prompt=2", "--policy_batch_size=4"]
        small += ["--policy_eval_prompts=2"]
    if any("builtin.yaml" in word for word in words):
        return small
    # Of the published 2048 units none reacts to states that are 16 wide.
    small += ["--head_hidden_size=16"]
    small += ["--trained_layers=1"] if any("--trained_layers" in word for word in words) else []
    return [*small, "--model_name_or_path=POLICY", "--max_prompt_length=16", "--max_reply_length=8"]


def small_sweep(runner: Callable[[Sequence[str]], list[str]]) -> Callable[[Sequence[str]], list[str]]:
    """One seed of one data set; what is printed is not given twice."""

    def small(words: Sequence[str]) -> list[str]:
        if "--help" in words:
            return []
        printed = {word.partition("=")[0] for word in words}
        flags = ["--seeds", "0"]
        own = [word.removeprefix("--") for word in runner(words) if word != "--overwrite=true"]  # a sweep's own
        if "--datasets" in words:
            first_set = words[words.index("--datasets") + 1].split(",")[0]
            flags += ["--datasets", "builtin/data" if runner is small_summary_run else first_set]
            own = [word for word in own if not word.startswith("dataset_") and not word.endswith("_file=ROWS")]
        return [*flags, *(word for word in own if word.partition("=")[0] not in printed)]

    return small


@dataclass(frozen=True)
class Program:
    """How a program's words are read, and what is typed behind them to make it small.

    Attributes:
        read: its own reader of options; it raises where it refuses one.
        small: the further words, from those that are printed.
        not_run: why it is not run here.
        prints, codes: what it prints in any case, and its exit codes.
    """

    read: Reader
    small: Callable[[Sequence[str]], list[str]] = field(default=lambda words: [])
    not_run: str = ""
    prints: str = ""
    codes: tuple[int, ...] = (0,)


def benchmark(name: str, *small: str, read_rest: Reader | None = None) -> dict[str, Program]:
    module = f"scripts.benchmarks.{name}"
    return {module: Program(flags_of(module, read_rest), lambda words: list(small))}


def builtin_prompt_options(words: list[str]) -> Any:
    return read_prompt_command(["--config-name=builtin", *words])


PROGRAMS: dict[str, Program] = {
    "prompt_task/run_fsc.py": Program(
        lambda words: read_prompt_command([word for word in words if word != "--help"]), small_prompt_run
    ),
    "prompt_task/evaluate_prompts.py": Program(
        lambda words: read_prompt_command(words, evaluate_prompts.OWN_OPTIONS),
        lambda words: [*PROMPT_MODELS, *MASKED, "device=cpu"],
    ),
    "sum_task/run_sum.py": Program(
        lambda words: read_summary_command([word for word in words if word != "--help"]),
        lambda words: [*small_summary_run(words), *([] if "--help" in words else ["--overwrite"])],
    ),
    "chat_task/run_chat.py": Program(read_chat_command, small_chat_run),
    "chat_task/score_tokens.py": Program(flags_of("chat_task.score_tokens"), lambda words: ["--device", "cpu"]),
    "chat_task/rank_replies.py": Program(flags_of("chat_task.rank_replies"), not_run="it has tests"),
    "sum_task/generate.py": Program(
        flags_of("sum_task.generate"), lambda words: ["--max_length", "4", "--device", "cpu"]
    ),
    "sum_task/score_tokens.py": Program(
        lambda words: None if "--help" in words else flags_of("sum_task.score_tokens")(words),
        lambda words: [] if "--help" in words else ["--limit", "1", "--device", "cpu"],
    ),
    "scripts/compare_guidance.py": Program(
        flags_of("scripts.compare_guidance", read_prompt_command),
        lambda words: [
            "--dataset_seeds", "0", "--random_seeds", "0", "--methods", "token-sum", "--output", "DIR",
            *small_prompt_run(words),
        ],
    ),
    "scripts/collect_results.py": Program(flags_of("scripts.collect_results")),
    "scripts/compare_policies.py": Program(flags_of("scripts.compare_policies"), not_run="it has tests"),
    "scripts/lead_summaries.py": Program(
        flags_of("scripts.lead_summaries", read_summary_command),
        lambda words: [f"--{word}" for word in [*SUMMARY_DATA, "max_predict_samples=2"]],
    ),
    "scripts/make_noisy_references.py": Program(flags_of("scripts.make_noisy_references")),
    "scripts/credit_accuracy.py": Program(
        flags_of("scripts.credit_accuracy"),
        lambda words: ["--reward_model", "RUN/reward_model", "--output", "DIR", "--device", "cpu"],
    ),
    "scripts/draw_credit.py": Program(
        flags_of("scripts.draw_credit"), lambda words: ["--runs", "RUN", "--row", "0", "--output", "credit.png"]
    ),
    "scripts.benchmarks.process_throughput": Program(
        flags_of("scripts.benchmarks.process_throughput", read_prompt_command), not_run="it has tests"
    ),
    "scripts.benchmarks.trl_reference": Program(
        flags_of("scripts.benchmarks.trl_reference", read_chat_command), not_run="it has tests"
    ),
    "scripts/draw_policy_curves.py": Program(flags_of("scripts.draw_policy_curves"), not_run="it has tests"),
    "scripts/prepare_fsc_data.py": Program(
        flags_of("scripts.prepare_fsc_data"),
        lambda words: [
            "--train_file", "TOPICS", "--test_file", "OTHERS", "--text_column", "text", "--num_shots", "1",
            "--overwrite",
        ],
    ),
    "scripts/check_model.py": Program(flags_of("scripts.check_model"), not_run="it has tests"),
    "scripts/try_families.py": Program(flags_of("scripts.try_families"), not_run="it has tests"),
    "scripts/install_wordnet.py": Program(flags_of("scripts.install_wordnet")),
    "scripts/sweep_fsc.sh": Program(read_sweep("fsc"), small_sweep(small_prompt_run)),
    "scripts/sweep_chat.sh": Program(read_sweep("chat"), small_sweep(small_chat_run)),
    "scripts/sweep_sum.sh": Program(read_sweep("sum"), small_sweep(small_summary_run)),
    "scripts/quickstart.sh": Program(builtin_prompt_options, lambda words: PROMPT_RUN),
    "install_packages.sh": Program(read_nothing),
    "pip": Program(lambda words: None, not_run="tests/common/training/test_console.py installs it"),
    "scripts/test.sh": Program(read_nothing, not_run="it runs these very tests"),
    "scripts/benchmarks/gpu.sh": Program(
        flags_of("scripts.benchmarks.gpu"),
        lambda words: ["--tiny", "--repeats", "1", "--no_tests", "--device", "cpu", "--output", "DIR"],
        prints="## Steps",
    ),
    "accelerate launch": Program(read_launched, small_summary_run),
    **benchmark("prompt_task_speed", "--tiny"),
    **benchmark("memory", "--tiny"),
    **benchmark(
        "chat_task_speed", "--model", "builtin/report-lm", "--prompt_length", "8", "--reply_length", "4", "--replies",
        "2", "--steps", "1", "--output", "chat_speed.json",
    ),
    **benchmark("throughput_curve", "--tiny", "--prompts", "2", "4"),
    **benchmark(
        "reward_pool", "--pool_sizes", "4", "--seeds", "0", "--output", "pool.json", *PROMPT_RUN,
        read_rest=builtin_prompt_options,
    ),
    **benchmark("sum_task_speed", "--tiny", "--tokenizer", "TOKENIZER", "--repeats", "1", "--batches", "1"),
    **benchmark("left_to_right_cache", "--tiny", "--repeats", "1"),
    "scripts.benchmarks.soak": Program(
        flags_of("scripts.benchmarks.soak"),
        lambda words: ["--length", "0.02", "--minutes", "0.15", "--between", "6", "7"],
        prints="soak.json",
        codes=(0, 1),  # in so short a time memory grows
    ),
}  # fmt: skip
COMMANDS = printed_commands()


def test_commands_are_found():
    pages = {command.page for command in COMMANDS}
    assert {"README.md", "docs/results.md", "configs/xsum_cpu.yaml"} <= pages
    assert len(COMMANDS) >= 25


def test_commands_in_every_place_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Type `python a.py\n--x=1` and see `results.json`:\n\n```\nbash b.sh  # why\npython c.py \\\n  y=2\nls\n```\n"
        "| row | `OMP_NUM_THREADS=1 python d.py` |\n"
    )
    expected = ["bash b.sh # why", "python c.py y=2", "python a.py --x=1", "OMP_NUM_THREADS=1 python d.py"]
    assert list(commands_in(page)) == expected


def test_no_command_is_left_to_be_completed():
    for page in PAGES:
        assert not re.findall(r"`[^`\n]*\.\.\.[ `][^`\n]*`", page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_options_of_a_printed_command_are_read(command, monkeypatch):
    if "mine:" in command.text:
        mine: Any = ModuleType("mine")
        exec((ROOT / "docs" / "own_pieces.md").read_text().split("```python\n")[1].split("```")[0], vars(mine))
        monkeypatch.setitem(sys.modules, "mine", mine)
    call = taken_apart(command.text)
    assert call.program in PROGRAMS, f"say in PROGRAMS of {__file__} how {call.program} is read and made small"
    PROGRAMS[call.program].read(call.words)


@pytest.mark.parametrize("text", ["python prompt_task/run_fsc.py agg_fun=max", "python sum_task/run_sum.py --sed=0"])
def test_a_wrong_option_would_be_found(text):
    call = taken_apart(text)
    with pytest.raises(UserError, match="did you mean"):
        PROGRAMS[call.program].read(call.words)


@pytest.mark.parametrize(
    "text",
    ["python -m scripts.benchmarks.memory --bse_path X --way project", "accelerate launch --nm_processes=8 x.py"],
)
def test_a_flag_that_does_not_exist_would_be_found(text):
    with pytest.raises((SystemExit, UserError)):
        call = taken_apart(text)
        PROGRAMS[call.program].read(call.words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project that holds what placeholders name, where `python` is this one."""
    place = tmp_path_factory.mktemp("place")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    shrink_builtin(place / "configs")
    text = (ROOT / "docs" / "own_pieces.md").read_text(encoding="utf-8")
    (place / "mine.py").write_text(text.split("```python\n")[1].split("```")[0])
    rows = [json.loads(line) for line in Path(tiny.write_rows(place / "XSUM.jsonl", 12, 0)).read_text().splitlines()]
    with_clean = [row | {"clean_summary": row["summary"]} for row in rows]  # for --preference_column
    (place / "XSUM.jsonl").write_text("".join(json.dumps(row) + "\n" for row in with_clean))
    (place / "file.txt").write_text("A storm hit the town.")
    error = {"prompt": "a storm hit the town", "text": "the flood hit the town", "spans": [[4, 9]]}
    (place / "errors.jsonl").write_text(json.dumps(error))
    pairs = [
        {"prompt": f"{n}", "chosen": "a great film" + " and" * (n % 5), "rejected": "dull" + " dull" * (n % 3)}
        for n in range(60)
    ]
    (place / "prefs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    facts = {"document": "Then Anna met Bob in Paris on Monday .", "summary": "Now Bob met Anna on Monday ."}
    (place / "TRAIN.jsonl").write_text(json.dumps(facts))
    ranked = {"completions": ["a great film", "a dull film"], "scores": [0, -1], "wrong": [[], [[2, 6]]]}
    for name in ("ranked.jsonl", "held_out.jsonl"):
        (place / name).write_text("".join(json.dumps({"prompt": f"{name} {n}", **ranked}) + "\n" for n in range(4)))
    answered = {name: ranked[name] for name in ("completions", "scores")} | {
        "errors_in_first": [{"start": 2, "end": 7, "type": "Irrelevant"}]
    }
    (place / "qa_feedback.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Is it {n}?", **answered}) + "\n" for n in range(8))
    )
    for name in ("TOKENIZER", "google/flan-t5-small"):  # a sweep's model is none that could be given once more
        tiny.save_t5(place / name, tiny.word_tokenizer())
    tiny_models.save("gpt2", place / "POLICY")
    tiny_models.save("roberta", place / "MASKED")
    topics = [(f"{text} {number}", number % 4) for number, (text, _) in enumerate(tiny_models.TRAIN_TEXTS * 2)]
    for split in (100, 13, 21, 42, 87):
        for name in ("sst-2", "yelp-2"):
            tiny_models.write_splits(place / "DATA", name, tiny_models.TRAIN_TEXTS, 16, split)
        tiny_models.write_splits(place / "DATA", "agnews", topics, 16, split)
    shutil.copy(ROOT / "configs" / "dataset" / "agnews.yaml", place / "mine.yaml")
    lines = [json.dumps({"text": text, "label": label}) for text, label in topics * 2]
    (place / "TOPICS.jsonl").write_text("\n".join(dict.fromkeys(lines)))
    (place / "OTHERS.jsonl").write_text("\n".join(json.dumps({"text": f"{n}", "label": n}) for n in range(4)))
    written_runs.prompt_run(place / "outputs" / "sweep" / "fsc" / "sst-2" / "seed-0", 0.9)
    for folder in ("RUN", "WARM"):
        run_in(place, "python sum_task/run_sum.py", [*small_summary_run([]), f"--output_dir={place / folder}"])
    shutil.copytree(place / "RUN", place / "REWARD")
    small = ["--train_file=prefs.jsonl", "--rew_head=likelihood", *small_chat_run([]), "--output_dir=CHAT"]
    run_in(place, "python chat_task/run_chat.py", small)
    pretend_installed(place)
    return place


def shrink_builtin(configs: Path) -> None:
    """Less work in the built-in configurations, for commands that pass no options on."""
    prompts = (configs / "builtin.yaml").read_text()
    (configs / "builtin.yaml").write_text(re.sub(r"(rew_num_train_epochs|rew_max_train_steps): .*", r"\1: 1", prompts))
    replies = (configs / "chat_builtin.yaml").read_text()
    (configs / "chat_builtin.yaml").write_text(re.sub(r"(max_(train|eval)_samples): .*", r"\1: 8", replies))
    for name in ("sum_builtin.yaml", "sum_noisy_builtin.yaml"):
        with open(configs / name, "a") as file:
            file.write("\nmax_train_samples: 8\nmax_eval_samples: 2\nmax_predict_samples: 2\n")


def run_in(place: Path, text: str, small: Sequence[str], codes: Sequence[int] = (0,)) -> str:
    """Type a command and further words behind it in the copy. Gives back what it printed."""
    text = text.partition(" # ")[0]
    names = {"ROWS": "XSUM.jsonl", "TOPICS": "TOPICS.jsonl", "OTHERS": "OTHERS.jsonl"}
    absolute = re.compile(r"\b(DATA|POLICY|MASKED|TOKENIZER|ROWS|TOPICS|OTHERS)\b")  # one may go elsewhere
    behind = [absolute.sub(lambda found: str(place / names.get(found[0], found[0])), word) for word in small]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(place),
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VENV": str(place / "venv"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", f"{text} {shlex.join(behind)}"], cwd=place, env=environment, capture_output=True, text=True
    )
    assert done.returncode in codes, f"{text} {shlex.join(behind)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def pretend_installed(place: Path) -> None:
    """An environment whose Python is this one, with the stamp of install_packages.sh."""
    (place / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    python = place / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    parts = "\n".join((place / name).read_text().rstrip("\n") for name in STAMPED)
    packages = " ".join(sorted(f"{file.parent.name}/__init__.py" for file in place.glob("*/__init__.py")))
    stamp = f"checkout {place}, environment {place / 'venv'}\n{parts}\npackages: {packages}\n"
    (place / "venv" / "token-guidance-installed.txt").write_text(stamp)


def is_run(command: Printed) -> bool:
    program = PROGRAMS.get(taken_apart(command.text).program)
    return program is not None and not program.not_run


@pytest.mark.slow
@pytest.mark.parametrize("command", [*filter(is_run, COMMANDS)], ids=str)
def test_a_printed_command_runs_in_its_smallest_form(command, place):
    call = taken_apart(command.text)
    for name in ("DIR", "outputs/sum", "outputs/fsc", "outputs/sweep/sum", "speed.json"):
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    written_runs.summary_run(place / "outputs" / "sweep" / "sum" / "xsum" / "seed-0", 20.0)
    program = PROGRAMS[call.program]
    assert program.prints in run_in(place, command.text, program.small(call.words), program.codes)


@pytest.mark.slow
def test_the_python_of_the_readme_scores_the_tokens_of_a_text(place):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (place / "six_lines.py").write_text(code.replace("outputs/chat/quickstart", "CHAT"))
    lines = run_in(place, "python six_lines.py", []).splitlines()
    assert all(re.fullmatch(r"-?\d\.\d\d .*", line) for line in lines)
    assert len(lines) >= 8  # of a model that an earlier command may have made, which cuts replies there
