"""Two processes score the prompts of a run together, and find what one finds."""

import csv
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.training.engine import Engine, start_engine
from prompt_task.command_line import CONFIGS
from prompt_task.few_shot_data import Example
from prompt_task.prompt_scorer import PromptScorer, owners
from prompt_task.run_fsc import run
from scripts.benchmarks import process_throughput
from tests.tiny_runs import SpyTaskLM

ROOT = CONFIGS.parent
EXAMPLES = [Example(f"text {i}", i % 2) for i in range(7)]
LAUNCH = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
    "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",
)  # fmt: skip


@dataclass
class Table:
    """Where two threads, in place of processes, lay what they exchange."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=20))
    data: list[bytes] = field(default_factory=lambda: [b"", b""])


class Threads(Engine):
    def __init__(self, rank: int, table: Table):
        super().__init__(start_engine("cpu").accelerator)
        self.rank, self.count, self.table = rank, 2, table

    def _exchange(self, data: bytes) -> list[bytes]:
        self.table.data[self.rank] = data
        self.table.barrier.wait()
        everyone = list(self.table.data)
        self.table.barrier.wait()
        return everyone


def together(work):
    """What `work` gives to each of two engine."""
    table = Table()
    engines = [Threads(rank, table) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(work, engine) for engine in engines]]


def test_each_process_asks_for_its_share_and_both_know_all():
    def work(engine):
        spy: Any = SpyTaskLM()
        scorer = PromptScorer(spy, EXAMPLES, engine=engine)
        return scorer.score(["a", "bb"]).score.tolist(), set(spy.asked), scorer.pairs_scored

    alone: Any = SpyTaskLM()
    expected = PromptScorer(alone, EXAMPLES).score(["a", "bb"]).score.tolist()
    (first, asked, count), (second, other_asked, other_count) = together(work)
    assert first == second == expected
    assert not asked & other_asked
    assert asked | other_asked == set(alone.asked)
    assert {len(asked), len(other_asked)} == {6, 8}  # 7 examples, each with both prompts in one process
    assert count == other_count == 14


def test_shares_are_alike_in_length_and_an_example_stays_where_it_is():
    examples = [Example("x" * length, 0) for length in (5, 1, 8, 3, 7, 2, 6, 4)]
    assert owners(examples, 2) == [0, 0, 0, 1, 1, 1, 1, 0]  # lengths 1, 4, 5, 8 and 2, 3, 6, 7

    def work(engine):
        lm: Any = SpyTaskLM()
        scorer = PromptScorer(lm, examples, engine=engine)
        scorer.score(["a"], torch.tensor([0, 1, 2, 4]))  # three of the first's and one of the second's
        return {text for text, _ in lm.asked}, set(scorer.own_sentences)

    (first, own), (second, others) = together(work)
    assert len(first) == len(second) == 2
    assert first < own and second & others and not first & second


def test_what_one_process_cannot_read_is_raised_in_both():
    class Narrow(SpyTaskLM):
        def class_probabilities(self, pairs):
            if any(text == "text 0" for text, _ in pairs):
                raise UserError("no room")
            return super().class_probabilities(pairs)

    def work(engine):
        lm: Any = Narrow()
        with pytest.raises(UserError, match="no room"):
            PromptScorer(lm, EXAMPLES, engine=engine).score(["a"])

    together(work)


def test_processes_that_ask_for_different_prompts_stop():
    def work(engine):
        lm: Any = SpyTaskLM()
        with pytest.raises(RuntimeError, match="come apart"):
            PromptScorer(lm, EXAMPLES, engine=engine).score(["ab"[engine.rank]])

    together(work)


def test_tensors_and_plain_data_travel_as_they_are():
    def work(engine):
        tensors = {"half": torch.arange(engine.rank + 1).half(), "mask": torch.tensor([True, False])}
        return engine.gather([0.1, float("nan"), "é"]), engine.gather_tensors(tensors)

    for values, tensors in together(work):
        assert [value[0] for value in values] == [0.1, 0.1]
        assert values[0][1] != values[0][1]
        assert values[0][2] == "é"
        assert [part["half"].tolist() for part in tensors] == [[0.0], [0.0, 1.0]]
        assert tensors[0]["half"].dtype == torch.float16
        assert tensors[1]["mask"].tolist() == [True, False]


@pytest.mark.slow
def test_a_run_in_two_processes_is_that_of_one(world, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = {"max_train_steps": 12, "log_every": 1, "num_candidates": 3}
    expected = run(world.command(output_folder=one, **options))
    done = subprocess.run(
        [sys.executable, *LAUNCH, str(ROOT / "prompt_task" / "run_fsc.py"), *world.words(output_folder=two, **options)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("prompts scored in") == 1  # the main process alone speaks
    results = json.loads((two / "results.json").read_text())
    assert results["processes"] == 2
    for name in ("test_accuracy", "best_dev_score", "prompts_scored", "pairs_scored", "sentences_cut", "candidates"):
        assert results[name] == pytest.approx(expected[name], abs=1e-3), name
    tables = [list(csv.DictReader((folder / "prompts.csv").open(newline=""))) for folder in (one, two)]
    assert [row["prompt"] for row in tables[0]] == [row["prompt"] for row in tables[1]]
    for part in ("policy/adaptor", "reward_model/model"):
        a, b = (load_file(folder / f"{part}.safetensors") for folder in (one, two))
        assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a), part


@pytest.mark.slow
def test_the_throughput_of_processes_is_that_of_the_same_run(world, tmp_path, capsys):
    output = tmp_path / "throughput.json"
    process_throughput.main(["--turns=1", f"--output={output}", *world.words(max_train_steps=4)])
    figures = json.loads(output.read_text())
    assert set(figures["pairs_per_second"]) == {"1", "2"}
    assert f"ratio {figures['ratio']:.2f}" in capsys.readouterr().out


def test_runs_that_scored_other_prompts_are_not_compared():
    def turn(prompt):
        return {count: {"pairs": 8, "seconds": 4.0 / count, "prompts": ["a", prompt][:count]} for count in (1, 2)}

    same = {count: {"pairs": 8, "seconds": 4.0 / count, "prompts": ["a"]} for count in (1, 2)}
    assert process_throughput.compare([same], 2)["ratio"] == 2
    with pytest.raises(UserError, match="not score the same prompts"):
        process_throughput.compare([same, turn("b")], 2)
