import csv
import json
import logging
from typing import cast

import pandas as pd
import pytest
import torch

from common.errors import UserError
from common.training.data_files import unmarked_cell
from prompt_task.candidates import COLUMNS, Candidate, CandidateTable, score_candidates, write_candidates
from prompt_task.evaluate_prompts import read_prompts
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.task_lm import TaskLM
from tests import tiny_models
from tests.tiny_runs import DEV, TRAIN, SpyTaskLM, make_run

ODD_TEXTS = [
    "=cmd|' /C calc'!A0",
    "'=quoted",
    "\x1b[31m",
    " leading and trailing ",
    "null",
    "12",
    "1e5",
    "true",
    "NaN",
    "",
    '"quoted"',
    "it's",
    "a,b;c\td",
    "{x} [y]",
    "café 映",
    "back\\slash \\n",
    "line\nbreak",
    "carriage\rreturn",
    "both\r\n",
    "=1+1",
    "'; touch x; '",
    "\x00\x07 control",
    "\ufffd",
]


class PickyTaskLM(SpyTaskLM):
    """Cannot read some prompts."""

    def class_probabilities(self, pairs):
        if any("unreadable" in prompt for _, prompt in pairs):
            raise UserError("this prompt leaves no room for a sentence")
        return super().class_probabilities(pairs)


def scorer(examples, task_lm=None):
    return PromptScorer(cast(TaskLM, task_lm or SpyTaskLM()), examples)


class Words:
    """A policy in as far as candidates need one: its tokens are numbers of these texts."""

    texts_of = ("great", " great", "gre", "at", "unreadable")

    def texts(self, tokens):
        return ["".join(self.texts_of[i] for i in row) for row in tokens.tolist()]


def table(task_lm=None):
    task_lm = task_lm or SpyTaskLM()
    return CandidateTable(cast(PromptPolicy, Words()), scorer(TRAIN, task_lm), scorer(DEV, task_lm))


def test_each_prompt_is_a_candidate_once_and_is_scored_on_train_and_dev_once():
    spy = SpyTaskLM()
    candidates = table(spy)
    candidates.add(torch.tensor([[0, 1], [1, 0], [0, 1]]))
    candidates.add(torch.tensor([[0, 1]]))
    assert len(candidates) == 2
    assert len(spy.asked) == len(set(spy.asked)) == 2 * (len(TRAIN) + len(DEV))
    best = candidates.best()
    assert {c.prompt for c in best} == {"great great", " greatgreat"}
    assert {c.token_ids for c in best} == {(0, 1), (1, 0)}


def test_token_sequences_of_one_text_are_one_prompt():
    candidates = table()
    candidates.add(torch.tensor([[2, 3, 0], [0, 2, 3]]))  # "greatgreat" twice
    assert len(candidates) == 1
    assert candidates.best()[0].token_ids == (2, 3, 0)


def test_candidates_carry_the_scores_of_their_split():
    candidates = table()
    candidates.add(torch.tensor([[0], [1]]))
    for c in candidates.best():
        train, dev = scorer(TRAIN).score([c.prompt]), scorer(DEV).score([c.prompt])
        assert c.train_score == pytest.approx(train.score.item())
        assert c.train_accuracy == pytest.approx(train.accuracy.item())
        assert c.dev_score == pytest.approx(dev.score.item())
        assert c.dev_accuracy == pytest.approx(dev.accuracy.item())
        assert c.test_accuracy is None


def test_all_are_ranked_by_dev_score_alone():
    run = make_run()
    run.candidates.add(run.policy.sample(30, torch.Generator().manual_seed(0)).tokens)
    best = run.candidates.best()
    scores = [c.dev_score for c in best]
    assert len(scores) > 20
    assert scores == sorted(scores, reverse=True)
    assert [c.train_score for c in best] != sorted((c.train_score for c in best), reverse=True)
    assert run.candidates.best(5) == best[:5]


def test_a_candidate_that_cannot_be_scored_is_kept_with_its_reason_and_stands_last(caplog):
    candidates = table(PickyTaskLM())
    with caplog.at_level(logging.WARNING):
        candidates.add(torch.tensor([[4], [0], [1]]))
    assert [c.prompt for c in candidates.best()][2] == "unreadable"
    failed = candidates.best()[2]
    assert failed.error == "dev: this prompt leaves no room for a sentence"
    assert failed.dev_score is None
    assert "a candidate cannot be scored" in caplog.text


def test_one_bad_prompt_does_not_take_the_others_with_it():
    prompts = [Candidate("a"), Candidate("unreadable"), Candidate("b")]
    score_candidates(scorer(DEV, PickyTaskLM()), prompts, "test")
    assert [c.error for c in prompts] == [None, "test: this prompt leaves no room for a sentence", None]
    assert [c.test_accuracy is None for c in prompts] == [False, True, False]
    assert prompts[0].test_accuracy == pytest.approx(scorer(DEV).score(["a"]).accuracy.item())


def test_candidates_survive_a_checkpoint():
    candidates = table(PickyTaskLM())
    candidates.add(torch.tensor([[0, 1], [4, 0]]))
    spy = SpyTaskLM()
    restored = table(spy)
    restored.load_state(json.loads(json.dumps(candidates.state())))
    assert restored.best() == candidates.best()
    restored.add(torch.tensor([[0, 1]]))
    assert not spy.asked


def test_the_table_of_candidates_holds_every_text_verbatim(tmp_path):
    candidates = [Candidate(text, (1, 2, i), 0.5, 0.25, -1.5, 0.75, None, 0.1) for i, text in enumerate(ODD_TEXTS)]
    path = tmp_path / "prompts.csv"
    write_candidates(path, candidates)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [unmarked_cell(row["prompt"]) for row in rows] == ODD_TEXTS
    assert [row["prompt"] for row in rows if row["prompt"].startswith(("=", "+", "-", "@"))] == []
    assert list(rows[0]) == list(COLUMNS)
    assert list(rows[0])[:5] == ["prompt", "token_ids", "train_score", "dev_score", "test_accuracy"]
    assert rows[3]["token_ids"] == "1 2 3"
    assert (rows[3]["dev_score"], rows[3]["test_accuracy"], rows[3]["error"]) == ("-1.5", "0.1", "")
    assert pd.read_csv(path)["dev_score"].tolist() == [-1.5] * len(ODD_TEXTS)


def test_the_table_of_candidates_can_be_given_to_evaluation(tmp_path):
    write_candidates(tmp_path / "prompts.csv", [Candidate(text) for text in ODD_TEXTS])
    assert read_prompts(None, str(tmp_path / "prompts.csv")) == ODD_TEXTS


def test_scores_are_written_in_full(tmp_path):
    value = 0.1 + 0.2
    write_candidates(tmp_path / "prompts.csv", [Candidate("a", (1,), dev_score=value)])
    with open(tmp_path / "prompts.csv", encoding="utf-8", newline="") as file:
        assert float(next(csv.DictReader(file))["dev_score"]) == value


def test_every_text_that_a_policy_can_write_survives(tmp_path):
    _, tokenizer = tiny_models.make("gpt2")
    texts = sorted({str(tokenizer.decode([i, j])) for i in range(0, 402, 3) for j in (0, 5, 200, 300)})
    write_candidates(tmp_path / "prompts.csv", [Candidate(text) for text in texts])
    assert read_prompts(None, str(tmp_path / "prompts.csv")) == texts
