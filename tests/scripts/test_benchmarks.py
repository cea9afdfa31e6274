"""The benchmarks run, on tiny models, and refuse to time two ways that do not give the same numbers."""

import json
import random

import pytest
import torch

from common.errors import UserError
from prompt_task.task_lm import make_task_lm
from scripts.benchmarks import (
    left_to_right_cache,
    measuring,
    memory,
    models,
    prompt_task_speed,
    reward_pool,
    throughput_curve,
    whole_run,
)
from scripts.benchmarks.project import Project
from scripts.benchmarks.straightforward import Straightforward

WORDS = "a the film plot was and with dull bright slow moving terrible great World Sports Business Tech".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in the published layout with a few short texts."""
    base = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    for dataset, classes in (("sst-2", 2), ("agnews", 4)):
        folder = base / "16-shot" / dataset / "16-100"
        folder.mkdir(parents=True)
        for split in ("train", "dev", "test"):
            texts = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(5 * classes)]
            rows = [f"{text}\t{number % classes}\n" for number, text in enumerate(texts)]
            (folder / f"{split}.tsv").write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")
    return str(base)


@pytest.fixture(autouse=True)
def _same_threads_after():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tiny(base_path: str, *words: str) -> list[str]:
    return ["--tiny", "--base_path", base_path, *words]


def test_speed_times_both_ways_and_composes_a_run(base_path, tmp_path, capsys):
    output = tmp_path / "speed.json"
    prompt_task_speed.main(tiny(base_path, "--repeats", "1", "--no_memory", "--output", str(output)))
    figures = json.loads(output.read_text(encoding="utf-8"))
    for way in ("straightforward", "project"):
        assert all(seconds > 0 for clock in figures["seconds"][way].values() for seconds in clock["cpu"])
    assert figures["differences"]["class probability"] <= 1e-5 < figures["differences"]["spread of class probabilities"]
    run = figures["runs"]["full rounds"]["project"]
    assert run["total"] == pytest.approx(sum(seconds for part, seconds in run.items() if part != "total"))
    assert "| reward-learning step, s |" in capsys.readouterr().out


def test_policy_steps_are_logged_where_they_should_be_however_often_they_are_timed(base_path, tmp_path):
    setting = models.make_setting("sst-2", base_path, tiny=True)
    task_lm = make_task_lm(
        models.make_masked_lm(setting), setting.task_tokenizer, setting.spec, torch.device("cpu"), True
    )
    project = Project(
        setting, task_lm, models.make_policy(setting), models.make_reward_model(setting), seed=0, folder=tmp_path
    )
    for logged in (False, True, True, False, True):
        assert (project.policy_step(logged) > 0) == logged
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == [200, 300, 400]
    assert all(event["perf/policy_steps_per_second"] > 0 for event in events)


def test_speed_is_not_reported_for_different_numbers(base_path, monkeypatch):
    right = Straightforward.class_probabilities
    monkeypatch.setattr(Straightforward, "class_probabilities", lambda *args: right(*args) + 1e-4)
    with pytest.raises(UserError, match="class probability differs"):
        prompt_task_speed.main(tiny(base_path, "--repeats", "1", "--no_memory"))


@pytest.mark.parametrize("way", memory.WAYS)
def test_memory_of_each_way_is_measured(base_path, tmp_path, way):
    setting = models.make_setting("sst-2", base_path, tiny=True)
    found = memory.measure(way, setting, seed=0, folder=tmp_path)
    assert found["peak"] >= found["states"] > 0
    assert found["peak"] >= found["states"] + found["scoring"]


def test_peak_memory_sees_what_is_gone_again():
    measuring.reset_peak()
    before = measuring.resident_mib()
    torch.ones(64 * measuring.MIB // 4)
    assert measuring.peak_mib() - before >= 60


def test_cache_gives_the_same_probabilities(base_path, capsys):
    left_to_right_cache.main(tiny(base_path, "--repeats", "1"))
    report = capsys.readouterr().out
    assert "| sst-2, 6 x 8 |" in report
    assert "| agnews, 6 x 16 |" in report


def test_cache_is_not_reported_for_different_numbers(base_path, monkeypatch):
    load = left_to_right_cache._load

    def load_wrong(*arguments):
        task_lm, policy = load(*arguments)
        right = task_lm._read_whole
        monkeypatch.setattr(task_lm, "_read_whole", lambda ids: right(ids) + torch.tensor([1e-3, 0.0]))
        return task_lm, policy

    monkeypatch.setattr(left_to_right_cache, "_load", load_wrong)
    with pytest.raises(UserError, match="differ by"):
        left_to_right_cache.main(tiny(base_path, "--repeats", "1", "--datasets", "sst-2"))


def test_throughput_scores_every_pair_and_draws_the_curve(base_path, tmp_path):
    output, plot = tmp_path / "curve.json", tmp_path / "curve.svg"
    throughput_curve.main(tiny(base_path, "--prompts", "2", "4", "--output", str(output), "--plot", str(plot)))
    points = json.loads(output.read_text(encoding="utf-8"))["points"]
    assert [point["pairs"] for point in points] == [20, 40]
    assert "pairs a second" in plot.read_text(encoding="utf-8")


def test_exponent_of_proportional_times_is_one():
    points = [{"pairs": pairs, "seconds": 0.25 * pairs} for pairs in (64, 128, 512)]
    assert throughput_curve.exponent(points) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_pool_runs_on_the_built_in_models(tmp_path, capsys):
    output = tmp_path / "pool.json"
    short = ["max_train_steps=2", "rew_max_train_steps=2", "rew_num_train_epochs=1", "rew_validation_batches=1"]
    short += ["early_stop_eval_period=2", "num_validation_prompts=1", "candidate_steps=1", "num_candidates=1"]
    short += ["num_reported=1", "num_final_prompts=1"]
    reward_pool.main(["--seeds", "0", "--pool_sizes", "16", "--output", str(output), *short])
    runs = json.loads(output.read_text(encoding="utf-8"))["runs"]
    assert [row["pool_size"] for row in runs] == [0, 16]
    assert all(0 <= row["test_accuracy"] <= 1 for row in runs)
    assert "| pool of 16 |" in capsys.readouterr().out


def test_pool_needs_the_file_of_the_speed_benchmark(tmp_path):
    file = tmp_path / "other.json"
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"not a file of prompt_task_speed\.py"):
        reward_pool.main(["--seeds", "--speed", str(file)])


def test_price_of_a_run_by_hand(base_path):
    """100 steps in two rounds of 2 epochs x 5 steps; 16 train, 8 dev and 100 test texts; 2 validation batches."""
    setting = models.make_setting("sst-2", base_path, tiny=True)
    settings = setting.settings.replaced(
        max_train_steps=100, reward_retrain_period=40, rew_num_train_epochs=2,
        rew_max_train_steps=10, rew_validation_batches=2, prompt_train_batch_size=4, reward_learning_samples=4,
        log_every=10,
        early_stop_eval_period=50, num_validation_prompts=3, candidate_steps=20, eval_steps=10,
        num_final_prompts=3, num_candidates=5, reward_example_share=0.75,
    )  # fmt: skip
    assert whole_run.count_rounds(settings) == 2
    prices = whole_run.Prices(reward_step=7, reward_update=3, reward_validation=2, policy_update=11, pair=1)
    sizes = (16, 8, 100)
    assert whole_run.whole_run(settings, prices, sizes, straightforward=True) == {
        "reward steps": 2 * 10 * 7,
        "reward validation": 8 * 2 + 8 * 4 * 6,  # 2 rounds x 2 epochs x 2 batches of 4 prompts on 6 of 8 texts
        "policy steps": 100 * 11 + 100 * 4 * 16,
        "policy validation": 2 * 12 * 8,
        "candidates": (2 + 3) * 8,
        "test": 5 * 100,
        "total": 140 + 208 + 7500 + 192 + 40 + 500,
    }
    assert whole_run.whole_run(settings, prices, sizes, straightforward=False, pool_size=9) == {
        "reward steps": 2 * 9 * 16 + 2 * 10 * 3,
        "reward validation": 8 * 2 + 2 * 3 * 4 * 8,  # scored once a round, on all of dev, one batch with its swaps
        "policy steps": 100 * 11 + 11 * 4 * 16,
        "policy validation": 2 * 12 * 8,
        "candidates": (2 + 3) * (16 + 8),
        "test": 5 * 100,
        "total": 348 + 208 + 1804 + 192 + 120 + 500,
    }


def test_tokenizers_have_the_vocabularies_of_the_models(base_path):
    setting = models.make_setting("sst-2", base_path, tiny=True)
    ids = range(len(setting.policy_tokenizer))
    assert len(ids) == setting.sizes.gpt2_vocabulary
    assert max(setting.task_tokenizer.get_vocab().values()) < setting.sizes.roberta_vocabulary
    prompt = " filler00000 filler00001"
    for tokenizer in (setting.policy_tokenizer, setting.task_tokenizer):
        assert tokenizer.tokenize(prompt) == [" filler00000", " filler00001"]
    assert setting.policy_tokenizer.decode(setting.policy_tokenizer.encode(prompt)) == prompt
