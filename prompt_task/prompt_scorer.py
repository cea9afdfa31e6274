"""The sequence-level preference of prompts: how well each lets the task LM classify labelled examples."""

import math
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from common.errors import UserError
from common.training.engine import Engine
from common.training.own_pieces import is_own, numbers, own_function, try_out
from prompt_task.few_shot_data import Example
from prompt_task.task_lm import TaskLM

# What a remembered prompt takes beside its probabilities: its text, a tensor's head, an entry of the table.
BYTES_PER_PROMPT = 700


@dataclass(frozen=True)
class PromptScores:
    """Scores of P prompts on E examples.

    Attributes:
        score: (P,) the preference: mean over examples of the scaled gap.
        accuracy: (P,) share of examples whose label is the one most probable class.
    """

    score: torch.Tensor
    accuracy: torch.Tensor


def label_gaps(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """p(label) - max p(other), (..., E). A tie with another class is 0, which is not correct.

    Args:
        probabilities: (..., E, C) class probabilities.
        labels: (E,) label of each example.
    """
    index = labels.expand(probabilities.shape[:-1]).unsqueeze(-1)
    own = probabilities.gather(-1, index).squeeze(-1)
    others = probabilities.scatter(-1, index, -torch.inf).amax(-1)
    return own - others


def preference(
    gaps: torch.Tensor, correct_coeff: float, incorrect_coeff: float, standardize: bool = False
) -> PromptScores:
    """Turn gaps (P, E) into one score a prompt: gap x `correct_coeff` where positive, else x `incorrect_coeff`.

    With `standardize` the scaled gaps of each example are brought to mean 0 and deviation 1 over the prompts that
    are scored together, so that an example on which all prompts differ widely does not decide the order alone.
    """
    correct = gaps > 0
    scaled = gaps * torch.where(correct, correct_coeff, incorrect_coeff)
    if standardize:
        scaled = (scaled - scaled.mean(0)) / (scaled.std(0, correction=0) + 1e-4)
    return PromptScores(scaled.mean(-1), correct.float().mean(-1))


def soft_accuracy(prompts: Sequence[str], probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A preference for accuracy, by its full name as one of the user's own: mean of sigmoid(gap / 0.1), times 100.

    On few examples it tells the accuracy of a prompt on others better than the published mean gap, which one confident
    answer can lift as much as several right ones (docs/results.md, SST-2).

    Args:
        prompts: P texts, which do not matter.
        probabilities: (P, E, C) class probabilities.
        labels: (E,) label of each example.

    Returns:
        (P,), 0 to 100.
    """
    return 100 * (label_gaps(probabilities, labels) / 0.1).sigmoid().mean(-1)


def check_preference(option: str, spec: str) -> None:
    """Try a preference of the user's on two prompts, three examples and two classes.

    See :mod:`common.training.own_pieces`.

    Raises:
        UserError: one line: it cannot be had, takes other arguments, fails, or gives back something else.
    """
    probabilities = torch.tensor([[[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [[0.5, 0.5], [0.2, 0.8], [0.6, 0.4]]])
    labels = torch.tensor([0, 1, 1])
    found = try_out(option, spec, prompts=["a prompt", "another"], probabilities=probabilities, labels=labels)
    numbers(f"{option}: '{spec}'", found, (2,))


def owners(examples: Sequence[Example], count: int) -> list[int]:
    """The process that reads each example: by length there and back, so that shares are alike in number and length."""
    order = sorted(range(len(examples)), key=lambda e: (len(examples[e].text), e))
    turn = [*range(count), *reversed(range(count))]
    place_of = {example: place for place, example in enumerate(order)}
    return [turn[place_of[e] % len(turn)] for e in range(len(examples))]


class PromptScorer:
    """Scores prompts on one split and remembers the class probabilities of each (prompt, example).

    A random part of the examples, as reward learning takes at each step, is then a selection from what is known;
    only what has not been asked before goes to the task LM. Several processes ask for the same and each reads its share
    of the examples.

    Args:
        task_lm: gives class probabilities.
        examples: the split.
        correct_coeff, incorrect_coeff: scale of positive and other gaps.
        preference: "gap", see `preference`, or ``package.module:function``, see `common.training.own_pieces`.
        memory_mib: memory for what is remembered; the prompt not asked for the longest time is forgotten first.
        engine: of the run; None: this process is alone.
    """

    def __init__(
        self,
        task_lm: TaskLM,
        examples: Sequence[Example],
        correct_coeff: float = 200.0,
        incorrect_coeff: float = 180.0,
        preference: str = "gap",
        memory_mib: float = 32,
        engine: Engine | None = None,
    ):
        self.task_lm = task_lm
        self.engine = engine
        self.examples = list(examples)
        self.labels = torch.tensor([example.label for example in examples])
        self._owners = owners(self.examples, engine.count if engine is not None else 1)
        self.correct_coeff = correct_coeff
        self.incorrect_coeff = incorrect_coeff
        self.preference = preference
        bytes_per_prompt = 4 * len(self.examples) * task_lm.num_classes + BYTES_PER_PROMPT
        self.max_prompts = int(memory_mib * 2**20 / bytes_per_prompt)
        self.prompts_scored = 0  # prompts sent to the task LM: the budget of a run
        self.pairs_scored = 0  # (prompt, example) pairs sent to the task LM
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()  # prompt -> (E, C), NaN where not asked yet

    def probabilities(
        self, prompts: Sequence[str], indices: torch.Tensor | None = None, on_pairs: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """Class probabilities (P, E, C) of prompts on the examples `indices` (all by default).

        `on_pairs` is told the number of pairs just computed, for a progress bar.
        """
        chosen = torch.arange(len(self.examples)) if indices is None else indices
        distinct = list(dict.fromkeys(prompts))
        for prompt in distinct:
            if prompt not in self._known:
                self._known[prompt] = torch.full((len(self.examples), self.task_lm.num_classes), torch.nan)
                self.prompts_scored += 1
            self._known.move_to_end(prompt)
        missing = [(p, int(e)) for p in distinct for e in chosen[self._known[p][chosen, 0].isnan()]]
        if missing:
            self.pairs_scored += len(missing)
            # In slices, so that a table over a large test file keeps a progress bar moving; by example, so that
            # a left-to-right task LM meets each sentence in one slice.
            missing.sort(key=lambda pair: pair[1])
            count = self.engine.count if self.engine is not None else 1
            slice_length = max(len(missing) if on_pairs is None else 8 * count * len(distinct), 1)
            for start in range(0, len(missing), slice_length):
                part = missing[start : start + slice_length]
                for (prompt, example), row in self._ask(part):
                    self._known[prompt][example] = row
                if on_pairs is not None:
                    on_pairs(len(part))
        table = torch.stack([self._known[prompt][chosen] for prompt in prompts])
        while len(self._known) > max(self.max_prompts, len(distinct)):
            self._known.popitem(last=False)
        return table

    def _ask(self, pairs: Sequence[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], torch.Tensor]]:
        """Each (prompt, example) with its class probabilities (C,), of all processes.

        Raises:
            UserError: a process cannot read its share; every process raises it.
        """
        engine = self.engine
        if engine is None or engine.count == 1:
            yield from zip(pairs, self._read(pairs), strict=True)
            return
        dealt = self._dealt(sorted({e for _, e in pairs}), engine.count)
        shares = [[pair for pair in pairs if dealt[pair[1]] == rank] for rank in range(engine.count)]
        mine, error = torch.empty(0, self.task_lm.num_classes), None
        try:
            if shares[engine.rank]:
                mine = self._read(shares[engine.rank])
        except UserError as caught:
            error = str(caught)
        asked = zlib.crc32(repr(pairs).encode("utf-8", "surrogatepass"))
        said = engine.gather((asked, error))
        if any(other != asked for other, _ in said):
            raise RuntimeError("the processes have come apart: they ask the task LM for different prompts")
        error = next((text for _, text in said if text is not None), None)
        if error is not None:
            raise UserError(error)
        for share, part in zip(shares, engine.gather_tensors({"found": mine}), strict=True):
            yield from zip(share, part["found"], strict=True)

    def _dealt(self, examples: Sequence[int], count: int) -> dict[int, int]:
        """The process of each example: its own, which may know the sentence; of more than an equal share, another."""
        most = math.ceil(len(examples) / count)
        shares = [[e for e in examples if self._owners[e] == rank] for rank in range(count)]
        spare = [e for share in shares for e in share[most:]]
        shares = [share[:most] for share in shares]
        for example in spare:
            min(shares, key=len).append(example)
        return {e: rank for rank, share in enumerate(shares) for e in share}

    @property
    def own_sentences(self) -> list[str]:
        """Of the examples that this process reads; another's only where a random part of them is not shared equally."""
        rank = self.engine.rank if self.engine is not None else 0
        return [example.text for example, owner in zip(self.examples, self._owners, strict=True) if owner == rank]

    def _read(self, pairs: Sequence[tuple[str, int]]) -> torch.Tensor:
        return self.task_lm.class_probabilities([(self.examples[e].text, prompt) for prompt, e in pairs])

    def score(
        self,
        prompts: Sequence[str],
        indices: torch.Tensor | None = None,
        on_pairs: Callable[[int], None] | None = None,
        standardize: bool = False,
    ) -> PromptScores:
        """Preference and accuracy of each prompt on the examples `indices` (all by default).

        `standardize` (see `preference`) is for ranking these prompts among each other alone: the scores then say
        nothing about prompts of another call, and their mean is always 0.
        """
        labels = self.labels if indices is None else self.labels[indices]
        probabilities = self.probabilities(prompts, indices, on_pairs)
        scores = preference(label_gaps(probabilities, labels), self.correct_coeff, self.incorrect_coeff, standardize)
        if not is_own(self.preference):
            return scores
        found = own_function(self.preference)(list(prompts), probabilities, labels)
        return PromptScores(
            numbers(f"preference: '{self.preference}'", found, (len(prompts),)).float(), scores.accuracy
        )

    def right(self, prompts: Sequence[str]) -> torch.Tensor:
        """Where the one most probable class is the label: (P, E), bool."""
        return label_gaps(self.probabilities(prompts), self.labels) > 0

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What is remembered, for a checkpoint: a later rounding of the same number could turn a ranking."""
        prompts = list(self._known)
        tensors = {"known": torch.stack(list(self._known.values()))} if prompts else {}
        counts = {"prompts_scored": self.prompts_scored, "pairs_scored": self.pairs_scored}
        return tensors, {"prompts": prompts, **counts}

    def forget(self) -> None:
        """Ask the task LM anew from now on: what it was asked is of other examples, or of another task LM."""
        self._known.clear()

    @contextmanager
    def leaving_no_trace(self, prompt: str) -> Iterator[None]:
        """Forget at the block's end what was asked of a prompt within it, and only that.

        Later answers then come from the batches that a run without this block would have asked for them in, and their
        last bits with them.
        """
        before = self._known.copy()
        if prompt in before:
            before[prompt] = before[prompt].clone()
        yield
        self._known = before

    def load_state(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Undo `state`."""
        rows = tensors["known"].unbind() if values["prompts"] else ()
        self._known = OrderedDict((p, row.clone()) for p, row in zip(values["prompts"], rows, strict=True))
        self.prompts_scored, self.pairs_scored = values["prompts_scored"], values["pairs_scored"]
