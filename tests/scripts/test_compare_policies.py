"""Replies of policies compared by hand-made judges; a reward model judges in tests/chat_task/test_run_chat.py."""

import json

import pytest

from common.errors import UserError
from scripts.compare_policies import comparison, main, pair_by_seed, read_answers
from tests.written_runs import write_run


def policy_run(folder, seed, scores, before=(0.0, 0.0), replies=([1, 2], [3]), prompts=("a", "b"), **options):
    rows = [
        {"prompt": prompt, "prediction": "x", "ids": ids, "judge": score, "ids_before": [9], "judge_before": start}
        for prompt, ids, score, start in zip(prompts, replies, scores, before, strict=True)
    ]
    return write_run(folder, {"status": "complete", "task": "chat"}, {"seed": seed} | options, rows)


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_gains_and_wins_by_hand(tmp_path, capsys):
    one = policy_run(tmp_path / "one", 0, [1.0, 3.0])
    other = policy_run(tmp_path / "other", 0, [2.0, 1.0], replies=([1, 2, 3], [4, 5]))
    assert main([str(one)]) == 0
    head, _, line = cells(capsys.readouterr().out)
    assert head[:4] == ["seed", "replies", "judge's score", "the others'"]
    assert line[:4] == ["0", "2", "2.000", "0.000"] and line[4] == "2.000 (1.000 to 3.000)"
    assert line[5] == "1.000 (1.000 to 1.000)" and line[7:] == ["1.5", "1.0"]
    main([str(one), "--over", str(other)])
    (line,) = cells(capsys.readouterr().out)[2:]
    assert line[4] == "0.500 (-1.000 to 2.000)" and line[5] == "0.500 (0.000 to 1.000)"


def test_seeds_stand_apart_and_together(tmp_path):
    runs = [
        policy_run(tmp_path / "c", 10, [5.0, 5.0], prompts=("b", "c")),
        policy_run(tmp_path / "a", 2, [1.0, 3.0]),
    ]
    lines = comparison(pair_by_seed(*zip(*map(read_answers, runs), strict=True)))
    assert [line["seed"] for line in lines] == ["2", "10", "all"]
    # Prompt b was answered twice: drawn thrice it has (3 + 5) / 2, the smallest is a alone.
    assert lines[2]["gain"] == "3.500 (1.000 to 5.000)" and lines[2]["replies"] == "4"


def test_the_same_reply_is_a_tie(tmp_path, capsys):
    one = policy_run(tmp_path / "one", 0, [1.0, 3.0])
    other = policy_run(tmp_path / "other", 0, [1.0 + 1e-6, 1.0])
    main([str(one), "--over", str(other)])
    assert cells(capsys.readouterr().out)[2][5].startswith("0.500")


def test_what_cannot_be_compared_is_one_line(tmp_path):
    whole = policy_run(tmp_path / "whole", 0, [1.0, 3.0])
    again = policy_run(tmp_path / "again", 0, [1.0, 3.0], judge_checkpoint_path="other")
    elsewhere = policy_run(tmp_path / "elsewhere", 0, [1.0, 3.0], prompts=("a", "z"))
    unjudged = policy_run(tmp_path / "unjudged", 0, [None, 3.0])
    seed = policy_run(tmp_path / "seed", 1, [1.0, 3.0])
    rewards = write_run(tmp_path / "rewards", {"status": "complete", "task": "chat"}, {"seed": 0})
    empty = write_run(tmp_path / "empty", {"status": "complete", "task": "chat"}, {"seed": 0}, [])
    summaries = write_run(tmp_path / "sum", {"status": "complete"}, {"seed": 0}, [{"source": "a", "prediction": "b"}])
    for runs, line in (
        ([whole, again], "are both of seed 0"),
        ([whole, "--over", again], "had different judges; name one by --judge"),
        ([whole, "--over", elsewhere], "have other held-out prompts"),
        ([unjudged], "had no judge"),
        ([whole, "--over", seed], "no run of seed 0 on one of the sides"),
        ([rewards], "predictions.jsonl"),
        ([empty], "holds no reply"),
        ([summaries], "line 1: not what the policy stage of a chat run writes"),
        ([whole, "--judge", tmp_path / "nowhere"], "cannot load the tokenizer of '.*policy'"),
        ([tmp_path / "nowhere"], "config.yaml' cannot be read"),
    ):
        with pytest.raises(UserError, match=line):
            main(list(map(str, runs)))
    file = whole / "predictions.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text().splitlines()[0]) | {"ids": "12"}))
    with pytest.raises(UserError, match="line 1: not what the policy stage"):
        main([str(whole)])
