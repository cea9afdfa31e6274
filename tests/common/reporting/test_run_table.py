import pytest

from common.errors import UserError
from common.reporting.run_table import CONFIDENCE, Metric, TaskTable, collect, mean_and_std, paired
from common.training.sweep_run import Outcome
from tests.written_runs import prompt_run, summary_run, write_plan

ACCURACY = Metric("test accuracy", "test_accuracy", 100.0)
TASK = TaskTable(
    name="prompt", title="Prompts", dataset="dataset", seeds=("dataset_seed", "random_seed"),
    ignored=frozenset({"output_folder", "device"}), metrics=(ACCURACY,),
)  # fmt: skip
SUMMARIES = TaskTable(
    name="summarization", title="Summaries", dataset="dataset_name", seeds=("seed",),
    ignored=frozenset({"output_dir", "expid"}), metrics=(Metric("ROUGE-L", "test_rougeL"),),
    unread={("guidance", "none"): frozenset({"agg_func", "credit"})},
)  # fmt: skip


def gather(*paths):
    return collect(list(paths), (TASK, SUMMARIES))


def kinds(problems):
    return sorted(problem.kind for problem in problems)


def test_runs_that_differ_in_seed_and_place_are_one_row(tmp_path):
    prompt_run(tmp_path / "a", 0.90, seed=0)
    prompt_run(tmp_path / "deep" / "er" / "b", 0.92, seed=1, device="cuda")
    prompt_run(tmp_path / "c", 0.97, seed=2)
    rows, problems = gather(tmp_path)
    assert not problems
    (row,) = rows
    assert list(row.runs) == [(0, 0), (1, 1), (2, 2)]
    mean, std = mean_and_std(list(row.values(ACCURACY).values()))
    # (90 + 92 + 97) / 3 = 93; deviations -3, -1, 4; (9 + 1 + 16) / 2 = 13
    assert mean == pytest.approx(93)
    assert std == pytest.approx(13**0.5)
    assert row.label == "token, sum"


def test_one_value_has_no_deviation():
    assert mean_and_std([3.0]) == (3.0, None)


def test_any_option_that_can_change_the_result_makes_a_row(tmp_path):
    prompt_run(tmp_path / "a", 0.9)
    prompt_run(tmp_path / "b", 0.8, learning_rate=1e-4)
    prompt_run(tmp_path / "c", 0.7, agg_func="max")
    prompt_run(tmp_path / "d", 0.6, dataset="agnews")
    prompt_run(tmp_path / "e", 0.5, correct_coeff=1)
    rows, _ = gather(tmp_path)
    labels = {(row.dataset, row.label) for row in rows}
    assert labels == {
        ("agnews", "token, sum"),
        ("sst-2", "token, max, correct_coeff=(not an option), learning_rate=5e-05"),
        ("sst-2", "token, sum, correct_coeff=(not an option), learning_rate=5e-05"),
        ("sst-2", "token, sum, correct_coeff=(not an option), learning_rate=0.0001"),
        ("sst-2", "token, sum, correct_coeff=1, learning_rate=5e-05"),
    }


def test_other_words_of_the_same_data_set_make_a_row(tmp_path):
    prompt_run(tmp_path / "a", 0.9)
    config = prompt_run(tmp_path / "b", 0.8) / "config.yaml"
    config.write_text(config.read_text().replace("' great'", "' fine'"))
    rows, problems = gather(tmp_path)
    assert [row.label for row in rows] == [
        "token, sum, dataset.verbalizers=[' terrible', ' fine']",
        "token, sum, dataset.verbalizers=[' terrible', ' great']",
    ]
    assert not problems


def test_options_that_a_method_does_not_read_tell_nothing_apart(tmp_path):
    summary_run(tmp_path / "a", 40, credit="product")
    summary_run(tmp_path / "b", 41, guidance="none", credit="product")
    summary_run(tmp_path / "c", 42, guidance="none", credit="reward", seed=1)
    rows, problems = gather(tmp_path)
    assert [(row.label, len(row.runs)) for row in rows] == [("none", 2), ("token, avg", 1)]
    assert kinds(problems) == ["missing"]
    summary_run(tmp_path / "d", 43, credit="reward")
    rows, _ = gather(tmp_path)
    assert [row.label for row in rows] == ["none", "token, avg, credit=product", "token, avg, credit=reward"]


def test_folders_of_their_own_seed_are_one_option(tmp_path):
    for seed in (0, 1, 12):
        summary_run(tmp_path / f"own-{seed}", 40, seed=seed, rew_checkpoint_path=f"r/token/seed-{seed}/reward_model")
        summary_run(tmp_path / f"named-{seed}", 41, seed=seed, rew_checkpoint_path=f"r/token_avg_{seed}/reward_model")
        summary_run(tmp_path / f"shared-{seed}", 42, seed=seed, rew_checkpoint_path="r/token/seed-0/reward_model/")
    rows, problems = gather(tmp_path)
    assert not problems
    assert [(row.options, list(row.runs)) for row in rows] == [
        ({"rew_checkpoint_path": f"r/{folder}"}, [(0,), (1,), (12,)])
        for folder in ("token/seed-0/reward_model/", "token/seed-{seed}/reward_model", "token_avg_{seed}/reward_model")
    ]
    summary_run(tmp_path / "other", 43, seed=1, rew_checkpoint_path="r/token/seed-11/reward_model")
    assert len(gather(tmp_path)[0]) == 4  # of another seed


def test_a_duplicate_is_listed_and_not_averaged_in(tmp_path):
    prompt_run(tmp_path / "a", 0.9)
    prompt_run(tmp_path / "b", 0.1)
    prompt_run(tmp_path / "c", 0.9)
    rows, problems = gather(tmp_path)
    assert [row.values(ACCURACY) for row in rows] == [{(0, 0): pytest.approx(90)}]
    assert kinds(problems) == ["duplicate", "duplicate"]
    assert "OTHER FIGURES" in problems[0].reason
    assert "the same figures" in problems[1].reason


def test_a_folder_that_is_named_twice_is_one_run(tmp_path):
    prompt_run(tmp_path / "x" / "a", 0.9)
    (tmp_path / "link").symlink_to(tmp_path / "x")
    rows, problems = gather(tmp_path, tmp_path / "x", tmp_path / "x" / "a", tmp_path / "link")
    assert len(rows) == 1
    assert not problems


def test_a_partial_run_is_listed_and_not_averaged_in(tmp_path):
    prompt_run(tmp_path / "a", 0.9)
    prompt_run(tmp_path / "b", None, seed=1)
    torn = prompt_run(tmp_path / "c", 0.8, seed=2)
    (torn / "results.json").write_text('{"status": "comp')
    running = prompt_run(tmp_path / "d", 0.8, seed=3)
    (running / "results.json").write_text('{"status": "running", "task": "prompt"}')
    broken = prompt_run(tmp_path / "e", 0.8, seed=4)
    (broken / "config.yaml").write_text("command: []\noptions: [\n")
    rows, problems = gather(tmp_path)
    assert [list(row.runs) for row in rows] == [[(0, 0)]]
    assert {(problem.where.rsplit("/", 1)[1], problem.kind) for problem in problems} == {
        ("b", "partial"), ("c", "unreadable"), ("d", "partial"), ("e", "unreadable"),
    }  # fmt: skip
    assert all("\n" not in problem.reason for problem in problems)


def test_a_seed_that_another_row_has_is_missing(tmp_path):
    for seed in (0, 1):
        prompt_run(tmp_path / f"a{seed}", 0.9, seed=seed)
    prompt_run(tmp_path / "b0", 0.8, seed=0, agg_func="max")
    prompt_run(tmp_path / "other", 0.8, seed=7, dataset="agnews")
    _, problems = gather(tmp_path)
    (missing,) = problems
    assert (missing.kind, missing.where) == ("missing", "sst-2, token, max")
    assert "dataset_seed=1, random_seed=1" in missing.reason


def test_what_a_sweep_planned_and_did_not_finish_is_listed_with_its_reason(tmp_path):
    prompt_run(tmp_path / "d" / "m" / "seed-0", 0.9)
    prompt_run(tmp_path / "d" / "m" / "seed-1", None, seed=1)
    failed = Outcome("failed", "error: no memory")
    write_plan(
        tmp_path,
        {"d/m/seed-0": Outcome("done"), "d/m/seed-1": failed, "d/m/seed-2": failed, "d/m/seed-3": None},
    )
    _, problems = gather(tmp_path)
    assert [(p.where.rsplit("/", 1)[1], p.kind, p.reason) for p in problems] == [
        ("seed-1", "failed", "error: no memory"),
        ("seed-2", "failed", "error: no memory"),
        ("seed-3", "missing", "it was planned and has not begun"),
    ]


def test_a_failure_that_was_mended_since_is_none(tmp_path):
    write_plan(tmp_path, {"d/m/seed-0": Outcome("failed", "x"), "d/m/seed-1": Outcome("failed", "x")}, "20260101-a")
    prompt_run(tmp_path / "d" / "m" / "seed-0", 0.9)
    prompt_run(tmp_path / "d" / "m" / "seed-1", None, seed=1)
    write_plan(tmp_path, {"d/m/seed-1": None}, "20260102-a")  # under way again
    _, problems = gather(tmp_path)
    assert kinds(problems) == ["partial"]


def test_a_damaged_plan_is_listed_and_the_runs_count(tmp_path):
    prompt_run(tmp_path / "d" / "m" / "seed-0", 0.9)
    plan = write_plan(tmp_path, {"d/m/seed-0": Outcome("done")})
    (plan.folder / "plan.json").write_text("{")
    rows, problems = gather(tmp_path)
    assert len(rows) == 1
    assert kinds(problems) == ["unreadable"]


def test_both_tasks_stand_in_one_collection(tmp_path):
    prompt_run(tmp_path / "a", 0.9)
    summary_run(tmp_path / "b", 40.0, seed=0)
    summary_run(tmp_path / "c", 42.0, seed=1)
    summary_run(tmp_path / "d", 30.0, seed=1, guidance="none")
    rows, _ = gather(tmp_path)
    assert [(row.task.name, row.label, len(row.runs)) for row in rows] == [
        ("prompt", "token, sum", 1), ("summarization", "none", 1), ("summarization", "token, avg", 2),
    ]  # fmt: skip


def test_a_path_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        gather(tmp_path / "none")


class TestPaired:
    def rows(self, tmp_path, first, second):
        for agg_func, accuracies in (("max", first), ("sum", second)):
            for seed, accuracy in accuracies.items():
                prompt_run(tmp_path / f"{agg_func}{seed}", accuracy, seed=seed, agg_func=agg_func)
        return gather(tmp_path)[0]

    def compare(self, one, other):
        found = paired(one, other, ACCURACY)
        assert found is not None
        return found

    def test_only_seeds_that_both_have_count(self, tmp_path):
        one, other = self.rows(tmp_path, {0: 0.9, 1: 0.8, 2: 0.1}, {0: 0.7, 1: 0.7, 5: 1.0})
        found = self.compare(one, other)
        assert found.n == 2
        # Differences 20 and 10
        assert found.difference == pytest.approx(15)
        assert (found.mean_one, found.mean_other) == (pytest.approx(85), pytest.approx(70))
        assert self.compare(other, one).difference == pytest.approx(-15)

    def test_a_constant_difference_has_an_interval_of_no_width(self, tmp_path):
        one, other = self.rows(tmp_path, {s: 0.5 + s / 20 for s in range(5)}, {s: 0.4 + s / 20 for s in range(5)})
        found = self.compare(one, other)
        assert found.low == pytest.approx(10)
        assert found.high == pytest.approx(10)

    def test_the_interval_is_that_of_the_mean(self, tmp_path):
        differences = [1.0, 3.0, 2.0, 5.0, -1.0, 4.0, 2.0, 0.0]
        first = {seed: 0.5 + d / 100 for seed, d in enumerate(differences)}
        one, other = self.rows(tmp_path, first, dict.fromkeys(first, 0.5))
        found = self.compare(one, other)
        # Mean 2; the deviation over n is 1.871, over sqrt(8) 0.661; 1.96 of those is 1.30.
        assert CONFIDENCE == 0.95
        assert found.low == pytest.approx(2 - 1.30, abs=0.15)
        assert found.high == pytest.approx(2 + 1.30, abs=0.15)
        assert self.compare(one, other) == found

    def test_below_five_seeds_there_is_no_interval_and_without_one_no_comparison(self, tmp_path):
        one, other = self.rows(tmp_path, {s: 0.9 + s / 100 for s in range(4)}, dict.fromkeys(range(6), 0.8))
        assert (self.compare(one, other).low, self.compare(one, other).high) == (None, None)
        one, other = self.rows(tmp_path / "apart", {0: 0.9}, {1: 0.7})
        assert paired(one, other, ACCURACY) is None
