"""Time and memory of reward learning on replies done one way, in a process of its own. Started by chat_task_speed.py.

Ways: ``project``: the trainer of `chat_task`; ``rows``: each reply of a set behind its own copy of the prompt, a row
each, padded to the longest, and the same loss; ``pairs``: each pair of a set, two pairs at a time; ``trl``: TRL's
RewardTrainer on those pairs, with a score a sequence.
"""

from common.training.program import run_command

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    TrainingArguments,
)

from chat_task.ranked_sets import EncodedSet, EncodedSets
from chat_task.ranking_rows import RankingSet
from chat_task.reward_trainer import TokenRewardTrainer
from common.grounding_loss import list_mle_loss
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.token_reward_model import TokenRewardModel, bound_rewards
from common.training.console import Parser
from scripts.benchmarks import models
from scripts.benchmarks.measuring import Clock, peak_mib, reset_peak, resident_mib

WAYS = ("project", "rows", "pairs", "trl")
PAIRS_AT_ONCE = 2
LEARNING_RATE = 1e-6
HEAD_WIDTH = 2048
TOKENIZER = "builtin/report-lm"  # of the tiny model


@dataclass(frozen=True)
class Case:
    """What is measured: optimizer steps on one ranking set each.

    Attributes:
        way: of `WAYS`.
        head: of the reward model.
        replies: K of a set.
        prompt_length, reply_length: in tokens; the mean where `varied`, when each is drawn from half to three halves.
        steps: how many, behind one that warms up.
    """

    way: str
    head: str
    replies: int
    prompt_length: int
    reply_length: int
    varied: bool
    steps: int


def in_own_process(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `measure` finds, from a fresh process."""
    words = [sys.executable, "-m", "scripts.benchmarks.chat_measure", "--case", json.dumps(asdict(case))]
    words += ["--threads", str(arguments.threads), "--seed", str(arguments.seed)]
    words += ["--model", arguments.model] if arguments.model else []
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(words, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def make_sets(case: Case, vocabulary: int, seed: int) -> EncodedSets:
    """A ranking set of random tokens for each step and the one before; rewards are read at every token."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> list[int]:
        if case.varied:
            length += int(torch.randint(-(length // 2), length // 2 + 1, (), generator=draw))
        return torch.randint(vocabulary, (length,), generator=draw).tolist()

    sets = []
    for _ in range(case.steps + 1):
        prompt, replies = tokens(case.prompt_length), [tokens(case.reply_length) for _ in range(case.replies)]
        scores = torch.randperm(case.replies, generator=draw).tolist()
        source = RankingSet("", ("",) * case.replies, tuple(map(float, scores)))
        sets.append(EncodedSet(source, prompt, replies, [list(range(len(reply))) for reply in replies]))
    return EncodedSets(sets)


class PlainRewards(nn.Module):
    """Token rewards as one writes them down with transformers: a whole sequence a row, an attention mask.

    Args:
        model: whose weights it has; its backbone is read anew, as transformers has it.
        backbone: name of that.
    """

    def __init__(self, model: TokenRewardModel, backbone: str) -> None:
        super().__init__()
        self.config, self.head = model.config, model.head
        kind = AutoModelForCausalLM if model.config.head == "likelihood" else AutoModel
        self.backbone = load_pretrained(kind, backbone, complete=True, dtype=torch.float32)

    def scores(self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> Tensor:
        """Mean reward of the tokens of each reply, (N,)."""
        longest = max(len(p) + len(r) for p, r in zip(prompts, replies, strict=True))
        ids, mask, of_reply = (torch.zeros(len(prompts), longest, dtype=torch.long) for _ in range(3))
        for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            whole = len(prompt) + len(reply)
            ids[row, :whole] = torch.tensor([*prompt, *reply])
            mask[row, :whole] = 1
            of_reply[row, len(prompt) : whole] = 1
        output = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False)
        if self.config.head == "likelihood":
            log_p = output.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            raw = self.head(nn.functional.pad(log_p, (1, 0)))
        else:
            raw = self.head(output.last_hidden_state).squeeze(-1)
        rewards = bound_rewards(raw, self.config.bound)
        return (rewards * of_reply).sum(-1) / of_reply.sum(-1)


def ranking_loss(plain: PlainRewards, item: EncodedSet) -> Tensor:
    """The loss of `TokenRewardTrainer` for a set without ties."""
    scores = plain.scores([item.prompt_ids] * len(item.reply_ids), item.reply_ids)
    return list_mle_loss(scores[None], torch.tensor([item.source.scores]))


def pair_losses(plain: PlainRewards, item: EncodedSet) -> Iterator[Tensor]:
    """Bradley-Terry losses of some pairs at a time, over the number of all; each is to be used before the next."""
    pairs = better_and_worse(item.source.scores)
    for first in range(0, len(pairs), PAIRS_AT_ONCE):
        chosen = pairs[first : first + PAIRS_AT_ONCE]
        rows = [k for pair in chosen for k in pair]
        scores = plain.scores([item.prompt_ids] * len(rows), [item.reply_ids[k] for k in rows]).view(-1, 2)
        yield -nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).sum() / len(pairs)


def better_and_worse(scores: Sequence[float]) -> list[tuple[int, int]]:
    """Numbers of the replies of each pair, the better one first."""
    return [p for p in itertools.permutations(range(len(scores)), 2) if scores[p[0]] > scores[p[1]]]


def measure(case: Case, model_name: str | None, seed: int, folder: Path) -> dict[str, Any]:
    """Clock over the steps, peak memory, losses. ``states`` is what the process holds before its first step."""
    backbone, tokenizer = make_backbone(model_name, folder)
    sets = make_sets(case, len(tokenizer), seed)
    if case.way == "trl":
        return _timed(_trl(backbone, tokenizer, sets, folder), case.steps)
    model = TokenRewardModel.from_backbone(backbone, head_hidden_size=HEAD_WIDTH, head_init_gain=1.0, head=case.head)
    if case.way != "project":
        plain = PlainRewards(model, backbone)
        del model  # whose backbone would count as memory of the plain way
        return _plain(case, plain, sets)
    arguments = TrainingArguments(**_arguments(folder, 1, 1))
    return _timed(TokenRewardTrainer(model, arguments, train_dataset=sets, agg_func="mean"), case.steps)


def _trl(backbone: str, tokenizer: Any, sets: EncodedSets, folder: Path) -> Any:
    from trl import RewardConfig, RewardTrainer

    rows = [
        {"chosen_ids": item.prompt_ids + item.reply_ids[i], "rejected_ids": item.prompt_ids + item.reply_ids[j]}
        for item in sets
        for i, j in better_and_worse(item.source.scores)
    ]
    model = load_pretrained(AutoModelForSequenceClassification, backbone, dtype=torch.float32, num_labels=1)
    of_a_set = len(rows) // len(sets)
    size = PAIRS_AT_ONCE if of_a_set % PAIRS_AT_ONCE == 0 else 1
    arguments = RewardConfig(
        **_arguments(folder, size, of_a_set // size), max_length=None, gradient_checkpointing=False, bf16=False
    )
    return RewardTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )  # fmt: skip


def _arguments(folder: Path, size: int, accumulation: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "num_train_epochs": 1, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip


class _Steps(TrainerCallback):
    """Takes the time of each step of a Trainer but the first."""

    def __init__(self) -> None:
        self.clock, self.states = Clock(), 0.0
        self._began = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:  # Adam has its states
            reset_peak()
            self.states = resident_mib()
        self._began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step > 1:
            wall, cpu = self._began
            self.clock.wall.append(time.perf_counter() - wall)
            self.clock.cpu.append(time.process_time() - cpu)


def _timed(trainer: Any, steps: int) -> dict[str, Any]:
    watch = _Steps()
    trainer.add_callback(watch)
    trainer.train()
    assert len(watch.clock.cpu) == steps
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"clock": asdict(watch.clock), "states": watch.states, "peak": peak_mib(), "losses": losses}


def _plain(case: Case, plain: PlainRewards, sets: EncodedSets) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(plain.parameters(), lr=LEARNING_RATE, weight_decay=0, fused=True)
    clock, states, losses = Clock(), 0.0, []

    def step(item: EncodedSet) -> float:
        total = 0.0
        for loss in [ranking_loss(plain, item)] if case.way == "rows" else pair_losses(plain, item):
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    for number, item in enumerate(sets):
        if number == 1:
            reset_peak()
            states, clock = resident_mib(), Clock()
        losses.append(clock.time(partial(step, item)))
    return {"clock": asdict(clock), "states": states, "peak": peak_mib(), "losses": losses}


def make_backbone(name: str | None, folder: Path) -> tuple[str, Any]:
    """Name of a decoder-only model and its tokenizer; None: a tiny one of random weights, made in `folder`."""
    if name is not None:
        return name, load_tokenizer(AutoTokenizer, name)
    tokenizer = load_tokenizer(AutoTokenizer, TOKENIZER)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    return str(folder / "tiny"), tokenizer


def main(words: Sequence[str] | None = None) -> None:
    """Measure one case and print it as JSON."""
    parser = Parser("scripts/benchmarks/chat_measure.py", __doc__)
    add_arguments(parser)
    parser.add_argument("--case", type=json.loads, required=True, help="fields of a Case as JSON")
    arguments = parser.parse_args(words)
    models.start(arguments.threads, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Case(**arguments.case), arguments.model, arguments.seed, Path(folder))))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is measured with what."""
    parser.add_argument("--model", metavar="NAME", help="decoder-only; else a tiny one, which is not for measuring")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    run_command(main)
