"""The benchmark of reward learning on replies: every way on a tiny model, and the same numbers first."""

import json

import pytest
import torch

from common.errors import UserError
from scripts.benchmarks import chat_measure, chat_task_speed
from scripts.benchmarks.chat_measure import WAYS, Case, PlainRewards

pytest.importorskip("trl")


@pytest.fixture(autouse=True)
def _same_threads_after():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def case(way="project", head="after", **fields):
    return Case(**{"way": way, "head": head, "replies": 3, "prompt_length": 9, "reply_length": 6, "varied": True,
                   "steps": 2} | fields)  # fmt: skip


@pytest.mark.parametrize("head", ["after", "likelihood"])
def test_both_ways_give_the_same_losses(tmp_path, head):
    assert max(chat_task_speed.compare(case(head=head), None, 0, tmp_path).values()) <= 1e-5


def test_speed_is_not_reported_for_different_numbers(tmp_path, monkeypatch):
    right = PlainRewards.scores
    monkeypatch.setattr(PlainRewards, "scores", lambda *given: right(*given) * 1.01)
    with pytest.raises(UserError, match="the loss of the ranking differs"):
        chat_task_speed.compare(case(), None, 0, tmp_path)


def test_every_way_is_measured_on_the_same_sets(tmp_path):
    found = {way: chat_measure.measure(case(way), None, 0, tmp_path) for way in WAYS}
    for of_way in found.values():
        assert len(of_way["clock"]["cpu"]) == 2 and len(of_way["losses"]) == 3
        assert of_way["peak"] >= of_way["states"] > 0
    # Both read the sets of an epoch in an order of their own.
    assert sorted(found["project"]["losses"]) == pytest.approx(sorted(found["rows"]["losses"]), abs=1e-4)
    assert found["pairs"]["losses"] != pytest.approx(found["rows"]["losses"], abs=1e-2)


@pytest.mark.slow
def test_report_of_a_whole_run(tmp_path, monkeypatch, capsys):
    def in_this_process(case, arguments):
        return chat_measure.measure(case, None, 0, tmp_path)

    monkeypatch.setattr(chat_task_speed, "in_own_process", in_this_process)
    words = ["--prompt_length=8", "--reply_length=4", "--replies=2", "--steps=1", f"--output={tmp_path / 'speed.json'}"]
    assert chat_task_speed.main(words) == 0
    report = capsys.readouterr().out
    assert "prompts of 8 and 2 replies of 4 tokens, all equal:" in report
    assert report.count("| TRL's RewardTrainer, the same pairs |") == 2
    assert "| 8 x 4 |" in report
    assert len(json.loads((tmp_path / "speed.json").read_text())["growth"]) == 5


def test_one_process_prints_one_case(capsys):
    fields = {"way": "rows", "head": "after", "replies": 2, "prompt_length": 4, "reply_length": 3, "varied": False,
              "steps": 1}  # fmt: skip
    chat_measure.main(["--case", json.dumps(fields)])
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["losses"]) == 2
