"""The project's own trainers on the models of a benchmark: what is measured is what a run executes."""

from pathlib import Path
from typing import Any

import torch

from common.token_reward_model import TokenRewardModel
from common.training.engine import start_engine
from common.training.runtime import start_runtime
from common.training.tracking import MetricsLog
from prompt_task.candidates import CandidateTable
from prompt_task.policy_trainer import PolicyTrainer
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.reward_trainer import RewardTrainer
from prompt_task.task_lm import TaskLM
from scripts.benchmarks.models import Setting


class Project:
    """Trainers of the prompt task that can be asked for single steps."""

    def __init__(
        self,
        setting: Setting,
        task_lm: TaskLM,
        policy: PromptPolicy,
        reward_model: TokenRewardModel,
        seed: int,
        folder: Path,
        device: str = "cpu",
    ):
        # One batch in place of 25 is sampled and scored for validation at the start of a round: its price is known
        # from the other measurements, and the rest would only take the benchmark longer.
        settings = setting.settings.replaced(rew_validation_batches=1)
        runtime = start_runtime(seed, device, torch.get_num_threads(), torch.get_float32_matmul_precision())
        log = MetricsLog(
            folder / "metrics.jsonl", settings.run.trackers, project="benchmark", config={}, seconds_before=0
        )
        shared = runtime, start_engine(device), log
        self.settings = settings
        self.policy = policy
        self.train_scorer = PromptScorer(task_lm, setting.splits.train, **vars(settings.preference))
        self.dev_scorer = PromptScorer(task_lm, setting.splits.dev, **vars(settings.preference))
        self.reward_trainer = RewardTrainer(
            reward_model, policy, self.train_scorer, self.dev_scorer, settings.reward, *shared
        )
        candidates = CandidateTable(policy, self.train_scorer, self.dev_scorer)
        self.policy_trainer = PolicyTrainer(
            policy, self.reward_trainer, self.train_scorer, self.dev_scorer, candidates, settings.policy, *shared
        )
        self._round: Any = None
        self._step = 0  # of the policy

    def begin_round(self) -> None:
        """What a round of reward learning does before its first step, with one validation batch."""
        self._round = self.reward_trainer._begin_round()
        self.reward_trainer.reward_model.train()

    def reward_step(self) -> int:
        """A step of reward learning; gives the number of pairs that the task LM was asked."""
        return self._pairs_of(lambda: self.reward_trainer._step(self._round))

    def set_pool(self, pool: torch.Tensor | None) -> None:
        """Let reward steps draw from these prompts (P, T), as with `reward_pool_size`, or from fresh ones again."""
        self._round.pool = pool

    def validate_reward(self) -> None:
        """The end of an epoch of reward learning: the loss of one validation batch, best weights kept."""
        self._round.steps = max(self._round.steps, 1)  # over which means are taken
        self.reward_trainer._end_epoch(self._round)
        self.reward_trainer.reward_model.train()

    def policy_step(self, logged: bool) -> int:
        """A policy step with or without its log line; gives the number of pairs that the task LM was asked."""
        period = self.settings.policy.log_every
        # Every step comes later than the one before, as in a run: a log line shows the rate since the last one.
        self._step = (self._step // period + 1) * period if logged else max(self._step, period) + 1
        return self._pairs_of(lambda: self.policy_trainer._step(self._step))

    def known_prompts(self, count: int) -> torch.Tensor:
        """Prompts (N, T) that the scorer takes for scored: their probabilities are made up."""
        tokens = self.policy.sample(count, torch.Generator().manual_seed(0), self.settings.policy.top_k).tokens
        prompts = self.policy.texts(tokens)
        table = torch.rand(len(prompts), len(self.train_scorer.examples), self.train_scorer.task_lm.num_classes)
        counts = {"prompts_scored": self.train_scorer.prompts_scored, "pairs_scored": self.train_scorer.pairs_scored}
        self.train_scorer.load_state({"known": table.softmax(-1)}, {"prompts": prompts, **counts})
        return tokens

    def _pairs_of(self, step: Any) -> int:
        before = self.train_scorer.pairs_scored
        step()
        return self.train_scorer.pairs_scored - before
