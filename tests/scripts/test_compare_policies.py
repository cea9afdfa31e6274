"""Replies of policies compared: scores of hand-made runs, and a reward model that judges again."""

import json

import pytest
import torch

from common.errors import UserError
from common.reply_rewards import RewardReading
from common.token_reward_model import TokenRewardConfig, TokenRewardModel
from scripts.compare_policies import comparison, judged_by_model, judged_by_runs, main, pair_by_seed, read_answers
from tests import tiny_models
from tests.written_runs import write_run

RESULTS = {"status": "complete", "task": "chat"}


def policy_run(folder, seed, scores, before=(0.0, 0.0), replies=([1, 2], [3]), prompts=("a", "b"), **options):
    rows = [
        {"prompt": prompt, "prompt_read": prompt, "prediction": "x", "ids": ids, "score": 0.0, "judge": score,
         "prediction_before": "y", "ids_before": [9], "score_before": 0.0, "judge_before": start}
        for prompt, ids, score, start in zip(prompts, replies, scores, before, strict=True)
    ]  # fmt: skip
    return write_run(folder, RESULTS, {"seed": seed} | options, rows)


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]


def test_gains_and_wins_by_hand(tmp_path, capsys):
    one = policy_run(tmp_path / "one", 0, [1.0, 3.0])
    other = policy_run(tmp_path / "other", 0, [2.0, 1.0], replies=([1, 2, 3], [4, 5]))
    assert main([str(one)]) == 0
    head, _, line = cells(capsys.readouterr().out)
    assert head[:4] == ["seed", "replies", "score", "score of the others"]
    assert line[:4] == ["0", "2", "2.000", "0.000"] and line[4] == "2.000 (1.000 to 3.000)"
    assert line[5] == "1.000 (1.000 to 1.000)" and line[7:] == ["1.5", "1.0"]
    main([str(one), "--over", str(other)])
    shown = capsys.readouterr().out
    (line,) = cells(shown)[2:]
    assert line[4] == "0.500 (-1.000 to 2.000)" and line[5] == "0.500 (0.000 to 1.000)"
    assert f"{one} over {other}, judged by the runs." in shown


def test_seeds_stand_apart_and_together(tmp_path):
    runs = [
        policy_run(tmp_path / "c", 10, [5.0, 5.0], prompts=("b", "c")),
        policy_run(tmp_path / "a", 2, [1.0, 3.0]),
    ]
    ones, others = zip(*map(read_answers, runs), strict=True)
    lines = comparison(pair_by_seed(ones, others), judged_by_runs([*ones, *others]))
    assert [line["seed"] for line in lines] == ["2", "10", "all"]
    # Prompt b was answered twice: drawn thrice it has (3 + 5) / 2, the smallest is a alone.
    assert lines[2]["gain"] == "3.500 (1.000 to 5.000)" and lines[2]["replies"] == "4"


def test_the_same_reply_is_a_tie(tmp_path, capsys):
    one = policy_run(tmp_path / "one", 0, [1.0, 3.0])
    other = policy_run(tmp_path / "other", 0, [1.0 + 1e-6, 3.0 + 1e-6])
    main([str(one), "--over", str(other)])
    line = cells(capsys.readouterr().out)[2]
    assert line[4:6] == ["0.000 (0.000 to 0.000)", "0.500 (0.500 to 0.500)"]


def reward_model(folder, tokenizer, seed=0):
    language_model, _ = tiny_models.make("llama", seed=seed)
    config = TokenRewardConfig(backbone=language_model.config.to_dict(), head="linear", bound="none")
    TokenRewardModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    RewardReading().save(folder)
    return folder


def saved_policy(folder, chat_template=None):
    model, tokenizer = tiny_models.make("llama")
    tokenizer.chat_template = chat_template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_a_judge_reads_each_reply_once_and_in_any_company(tmp_path, monkeypatch):
    template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    prompts = [[{"role": "user", "content": "cat dog"}], *(f"{'cat ' * n}dog" for n in range(1, 20))]
    replies = [[5] * (1 + n % 7) for n in range(20)]
    runs = [
        policy_run(tmp_path / f"{n}", n, [None] * 20, [None] * 20, replies, prompts, judge_checkpoint_path=f"{n}")
        for n in range(2)
    ]
    for run in runs:
        tokenizer = saved_policy(run / "policy", template)
    folder = str(reward_model(tmp_path / "judge", tokenizer))
    answers = [item for run in runs for item in read_answers(run)]
    together = judged_by_model(answers, folder, torch.device("cpu"))
    assert len(together) == 40
    monkeypatch.setattr("scripts.compare_policies.BATCH_SIZE", 1)
    alone = judged_by_model(answers, folder, torch.device("cpu"))
    assert together == pytest.approx(alone, abs=1e-5) and len(set(together.values())) > 20


def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = policy_run(tmp_path / "whole", 0, [1.0, 3.0])
    again = policy_run(tmp_path / "again", 0, [1.0, 3.0], judge_checkpoint_path="other")
    elsewhere = policy_run(tmp_path / "elsewhere", 0, [1.0, 3.0], prompts=("a", "z"))
    unjudged = policy_run(tmp_path / "unjudged", 0, [None, 3.0])
    seed = policy_run(tmp_path / "seed", 1, [1.0, 3.0])
    rewards = write_run(tmp_path / "rewards", RESULTS, {"seed": 0})
    empty = write_run(tmp_path / "empty", RESULTS, {"seed": 0}, [])
    summaries = write_run(tmp_path / "sum", RESULTS | {"task": "summarization"}, {"seed": 0}, [{"source": "a"}])
    strange = policy_run(tmp_path / "strange", "a", [1.0, 3.0])
    judge = reward_model(tmp_path / "judge", saved_policy(elsewhere / "policy"))
    for runs, line in (
        ([whole, again], "are both of seed 0; give one"),
        ([whole, "--over", again], "had different judges; name one by --judge"),
        ([whole, "--over", elsewhere], "have other held-out prompts"),
        ([unjudged], "had no judge"),
        ([whole, "--over", seed], "RUNS: no run of seed 1"),
        ([whole, seed, "--over", whole], "--over: no run of seed 1"),
        ([rewards], "no whole chat run with a policy stage"),
        ([summaries], "no whole chat run with a policy stage"),
        ([strange], "no whole chat run with a policy stage"),
        ([empty], "holds no reply"),
        ([whole, "--judge", tmp_path / "nowhere"], "--judge: '.*nowhere' is no folder"),
        (["whole", "--judge", judge], "whole/policy' is no folder"),
        ([elsewhere, "--judge", elsewhere / "policy"], "--judge: "),
        ([tmp_path / "nowhere"], "config.yaml' cannot be read"),
    ):
        with pytest.raises(UserError, match=line):
            main(list(map(str, runs)))
    file = elsewhere / "predictions.jsonl"
    row = json.loads(file.read_text().splitlines()[0])
    for change, line in (
        ({"ids": "12"}, "line 1: .* ids is no list of token ids"),
        ({"ids_before": [-1]}, "ids_before is no list of token ids"),
        ({"judge": True}, "judge is no number"),
        ({"judge": 10**400}, "line 1"),
        ({"prediction": None}, "prediction is no text"),
        ({"prompt_read": 5}, "prompt_read"),
        ({"prompt_read": ""}, "prompt_read is empty"),
        ({"prompt_read": [{"role": "user", "content": "a"}]}, "messages, and its policy no chat template"),
        ({"ids": [10**9]}, "token ids that its policy has not"),
    ):
        file.write_text(json.dumps(row | change))
        with pytest.raises(UserError, match=line):
            main([str(elsewhere), "--judge", str(judge)])
    file.write_text(json.dumps(row))
    for text in ("[1]", "no json", '{"eos_token_id": "a"}', '{"eos_token_id": [[1]]}', '{"max_new_tokens": -3}'):
        (elsewhere / "policy" / "generation_config.json").write_text(text)
        with pytest.raises(UserError, match="policy'"):
            main([str(elsewhere), "--judge", str(judge)])
