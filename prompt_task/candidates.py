"""The prompts that may be reported: collected during training, ranked, tested at the end."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from common.data_files import marked_cell
from common.errors import UserError
from common.training.files import write_text_atomic
from common.training.progress import Progress
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer, PromptScores

logger = logging.getLogger(__name__)

CANDIDATE_SPLITS = ("dev", "both")

COLUMNS = (
    "prompt", "token_ids", "train_score", "dev_score", "test_accuracy",
    "train_accuracy", "dev_accuracy", "test_score", "error",
)  # fmt: skip


@dataclass
class Candidate:
    """One prompt with its figures; None where it was not scored.

    Attributes:
        of_the_end: the policy step after which it was added only because the run's end was near, 0 at the end itself;
            None where a longer run would have it too.
    """

    prompt: str
    token_ids: tuple[int, ...] | None = None
    train_score: float | None = None
    train_accuracy: float | None = None
    dev_score: float | None = None
    dev_accuracy: float | None = None
    test_score: float | None = None
    test_accuracy: float | None = None
    error: str | None = None
    of_the_end: int | None = None


def ranked(candidates: Iterable[Candidate], split: str) -> list[Candidate]:
    """By the score on a split, or by the mean of those on ``both``, best first; without a score they come last."""

    def score(candidate: Candidate) -> float:
        names = ("train", "dev") if split == "both" else (split,)
        found = [getattr(candidate, f"{name}_score") for name in names]
        return -math.inf if None in found else sum(found) / len(found)

    return sorted(candidates, key=score, reverse=True)


class CandidateTable:
    """Distinct candidate prompts; each is scored on train and dev once.

    Args:
        policy: whose tokens they are of.
        train_scorer, dev_scorer: of the two splits.
        split: of `CANDIDATE_SPLITS`, by whose scores they are ranked.
    """

    def __init__(self, policy: PromptPolicy, train_scorer: PromptScorer, dev_scorer: PromptScorer, split: str = "dev"):
        self.policy = policy
        self.split = split
        self.train_scorer = train_scorer
        self.dev_scorer = dev_scorer
        self._by_prompt: dict[str, Candidate] = {}

    def __len__(self) -> int:
        return len(self._by_prompt)

    def add(self, tokens: torch.Tensor, of_the_end: int | None = None) -> None:
        """Add prompts (N, T). Two token sequences with one text are one prompt to the task LM."""
        for row, text in zip(tokens, self.policy.texts(tokens), strict=True):
            known = self._by_prompt.get(text)
            if known is not None and (known.of_the_end is None or of_the_end is not None):
                continue
            candidate = Candidate(text, tuple(row.tolist()), of_the_end=of_the_end)
            self._by_prompt.pop(text, None)
            self._by_prompt[text] = candidate
            for scorer, split in ((self.train_scorer, "train"), (self.dev_scorer, "dev")):
                with nullcontext() if of_the_end is None else scorer.leaving_no_trace(text):
                    score_candidates(scorer, [candidate], split)

    def drop_of_the_end(self, last_step: int) -> None:
        """Forget those that were `of_the_end` up to a step: of a longer run they are none."""
        kept = (c for c in self._by_prompt.values() if c.of_the_end is None or c.of_the_end > last_step)
        self._by_prompt = {candidate.prompt: candidate for candidate in kept}

    def best(self, count: int | None = None) -> list[Candidate]:
        """Candidates by their score on the split, best first; those that could not be scored come last."""
        return ranked(self._by_prompt.values(), self.split)[:count]

    def state(self) -> list[dict[str, Any]]:
        """For a checkpoint."""
        return [vars(candidate) for candidate in self._by_prompt.values()]

    def load_state(self, rows: list[dict[str, Any]]) -> None:
        """Undo `state`."""
        rows = [row | {"token_ids": tuple(row["token_ids"])} for row in rows]
        self._by_prompt = {row["prompt"]: Candidate(**row) for row in rows}


def score_candidates(
    scorer: PromptScorer, candidates: list[Candidate], split: str, show_progress: bool = False
) -> None:
    """Fill in score and accuracy on one split. A prompt that cannot be scored keeps the reason and is reported."""
    prompts = [candidate.prompt for candidate in candidates]
    with Progress(len(prompts) * len(scorer.examples), f"testing {len(prompts)} prompts", "text") as bar:
        on_pairs = bar.update if show_progress else None
        try:
            _fill(candidates, scorer.score(prompts, on_pairs=on_pairs), split)
            return
        except UserError:
            if len(candidates) == 1:
                logger.debug("prompt %r cannot be scored on %s", prompts[0], split)
        for candidate in candidates:
            try:
                _fill([candidate], scorer.score([candidate.prompt], on_pairs=on_pairs), split)
            except UserError as error:
                candidate.error = f"{split}: {error}"
                logger.warning("a candidate cannot be scored: %s", error)


def _fill(candidates: list[Candidate], scores: PromptScores, split: str) -> None:
    for candidate, score, accuracy in zip(candidates, scores.score, scores.accuracy, strict=True):
        setattr(candidate, f"{split}_score", float(score))
        setattr(candidate, f"{split}_accuracy", float(accuracy))


def write_candidates(
    path: Path, candidates: list[Candidate], further: Mapping[str, Sequence[float | None]] | None = None
) -> None:
    """Write ``prompts.csv``, in the order given; texts are quoted and marked (`marked_cell`): any prompt survives.

    Args:
        path: of the file.
        candidates: a row each.
        further: more columns, a value a row.
    """
    rows = [{name: getattr(candidate, name) for name in COLUMNS} for candidate in candidates]
    for row in rows:
        row["prompt"], row["error"] = marked_cell(row["prompt"]), row["error"] and marked_cell(row["error"])
        row["token_ids"] = " ".join(map(str, row["token_ids"])) if row["token_ids"] else ""
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for name, values in (further or {}).items():
        table[name] = list(values)
    write_text_atomic(path, table.to_csv(index=False, quoting=2, lineterminator="\n"))
