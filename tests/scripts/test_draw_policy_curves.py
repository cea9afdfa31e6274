"""Curves of policies over seeds, from logs worked out by hand."""

import json

import numpy as np
import pytest

from common.errors import UserError
from common.reporting.run_table import collect
from scripts import draw_policy_curves
from scripts.collect_results import REPLIES
from scripts.draw_policy_curves import band, curve, main
from tests.written_runs import write_run


@pytest.fixture
def runs(tmp_path):
    """Two seeds of token rewards, one of them longer, one of sequence rewards, and one run without a policy."""
    for name, granularity, seed, judged in (
        ("a", "token", 0, [-3, -1, -2, 0]), ("b", "token", 1, [-5, -5, 0, 0, 7, 7]), ("c", "sequence", 0, [-4, -4]),
    ):  # fmt: skip
        options = {"dataset_name": "planted", "granularity": granularity, "stage": "all", "seed": seed}
        results = {"status": "complete", "task": "chat", "dataset": "planted", "policy_judge_after": judged[-1],
                   "policy_steps": len(judged), "rollouts": 64 * len(judged)}  # fmt: skip
        folder = write_run(tmp_path / name, results, options)
        events = [
            {"phase": "policy", "round": 0, "step": step, "seconds": 1, "policy/judge": value}
            for step, value in enumerate(judged, 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    results = {"status": "complete", "task": "chat", "dataset": "planted", "reward_rank_accuracy": 0.9}
    write_run(
        tmp_path / "d", results, {"dataset_name": "planted", "granularity": "token", "stage": "reward", "seed": 0}
    )
    return tmp_path


def test_points_are_means_over_steps_and_bands_over_seeds(runs):
    rows, problems = collect([runs], (REPLIES,))
    token = next(row for row in rows if len(row.runs) == 2)
    assert token.label == "granularity=token, stage=all"
    curves = [curve(run, "policy/judge", 2) for run in token.runs.values()]
    assert curves[0].tolist() == [[96, -2], [224, -1]]  # of steps 1 and 2: 64 and 128 rollouts
    rollouts, mean, deviation = band(curves)
    assert rollouts.tolist() == [96, 224]
    assert mean.tolist() == [(-2 - 5) / 2, (-1 + 0) / 2]
    np.testing.assert_allclose(deviation, [3 / 2**0.5, 1 / 2**0.5])
    assert band(curves[:1])[2].tolist() == [0, 0]
    assert [problem.kind for problem in problems] == ["missing"] * 2


def test_a_picture_has_a_line_for_each_method(runs, tmp_path, capsys):
    output = tmp_path / "curves.svg"
    assert main([str(runs), f"--output={output}", "--steps_a_point=2"]) == 0
    assert "<svg" in output.read_text() and str(output) in capsys.readouterr().out
    rows, _ = collect([runs], (REPLIES,))
    assert draw_policy_curves.draw(rows, "policy/judge", 2, output) == 2
    for words, line in (
        (["--steps_a_point=9"], "no complete run with a policy has 9 steps of 'policy/judge'"),
        (["--output=x.txt"], "is no .png"),
        (["--steps_a_point=0"], "at least 1"),
    ):
        with pytest.raises(UserError, match=line):
            main([str(runs), f"--output={output}", *words])
