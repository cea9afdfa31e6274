"""Trains the summarizer with the learned token rewards, and has them learnt anew on the way."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from common.errors import UserError
from common.training.checkpoint import StateTree, load_optimizer_state, optimizer_state
from common.training.engine import Engine
from common.training.interruption import Checkpointer
from common.training.progress import Progress, Rate
from common.training.random_keys import Purpose, keyed_generator, seed_global
from common.training.stepper import Stepper
from common.training.tracking import MetricsLog
from sum_task.batching import TokenizedRows, shuffled_batches
from sum_task.policy import SummaryPolicy
from sum_task.policy_loss import PolicyLoss
from sum_task.reward_trainer import RewardTrainer
from sum_task.settings import PolicySettings

logger = logging.getLogger(__name__)


class PolicyTrainer:
    """Alternates policy steps with rounds of reward learning and validates on the way.

    Args:
        policy: what is trained.
        reward_trainer: learns the token rewards; None without guidance.
        train: the rows to learn from.
        validate: tests the policy on validation data and returns its figures, of which ``eval/score`` decides which
            policy is the best.
        keep_best: called after each validation that was the best so far.
        settings: see there.
        engine, log: of the run.
    """

    def __init__(
        self,
        policy: SummaryPolicy,
        reward_trainer: RewardTrainer | None,
        train: TokenizedRows,
        validate: Callable[[], dict[str, float]],
        keep_best: Callable[[], None],
        settings: PolicySettings,
        engine: Engine,
        log: MetricsLog,
    ):
        self.policy = policy
        self.reward_trainer = reward_trainer
        self.train_data = train
        self.validate = validate
        self.keep_best = keep_best
        self.settings = settings
        self.engine = engine
        self.log = log
        reward = None if reward_trainer is None else reward_trainer.reward
        preference = None if reward_trainer is None else reward_trainer.ranker.preference
        self.loss = PolicyLoss(policy, reward, preference, [len(ids) for ids in train.targets], settings, engine)
        self.collate = policy.collator(settings.pad_lengths, not settings.ignore_pad_token_for_loss)
        self.stepper = Stepper("policy", settings.clip_norm, engine)
        self._new_optimizer()
        self.steps_done = 0
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.last_validation: dict[str, float] = {}
        self._since_log: list[dict[str, float]] = []  # figures of the steps since the last log line
        self._batch_size = settings.per_device_train_batch_size * engine.count
        batches = math.ceil(len(train) / self._batch_size)
        self.steps_per_epoch = math.ceil(batches / settings.gradient_accumulation_steps)
        self.max_steps = math.ceil(settings.num_train_epochs * self.steps_per_epoch)
        self._reward_steps: set[int] = set()
        if settings.reward_retrain_epochs > 0:
            # As published, by the rows that a full step reads: an epoch's last step may read fewer.
            epoch = len(train) / (self._batch_size * settings.gradient_accumulation_steps)
            self._reward_steps = steps_every(settings.reward_retrain_period, settings.reward_retrain_epochs, epoch)
        self._validation_steps = steps_every(
            settings.policy_eval_period, settings.num_train_epochs, self.steps_per_epoch
        )
        self._epoch_batches: tuple[int, list[list[int]]] = (-1, [])

    @property
    def optimizer_steps(self) -> int:
        """Steps done of both models: what checkpoints are numbered by."""
        return self.steps_done + (self.reward_trainer.steps_done if self.reward_trainer is not None else 0)

    def train(self, checkpointer: Checkpointer | None = None) -> None:
        """Run to the last step. After a checkpoint was loaded it goes on from there, also within a round.

        Raises:
            Interrupted: the checkpointer was asked to stop, and has saved the run's state.
        """
        checkpointer = checkpointer or Checkpointer()
        rate = Rate(self.steps_done)

        def after_step(due: bool = False) -> None:
            checkpointer.after_step(self.optimizer_steps, due)

        with Progress(self.max_steps, "policy learning", initial=self.steps_done) as bar:
            while self.steps_done < self.max_steps or self._learns_rewards_alone:
                if self._reward_is_due():
                    with bar.paused(), rate.paused():
                        self._learn_rewards(after_step)
                        after_step(due=checkpointer.periodic)
                    if not self.max_steps:
                        break
                step = self.steps_done + 1
                figures = self._step(step)
                self.steps_done = step
                self._since_log.append(figures)
                bar.update(1, loss=f"{figures['policy/loss']:.3f}")
                if step % self.settings.log_every == 0 or step == self.max_steps:
                    self._log(step, rate.steps_per_second(step))
                if step in self._validation_steps or step == self.max_steps:
                    with rate.paused():
                        self._validate(step)
                after_step(due=checkpointer.periodic and step == self.max_steps)

    @property
    def _round(self) -> int:
        return max(self.reward_trainer.rounds_done - 1, 0) if self.reward_trainer is not None else 0

    def _reward_is_due(self) -> bool:
        if self.reward_trainer is None or self.steps_done not in self._reward_steps:
            return False
        return self.reward_trainer.rounds_done == sum(step < self.steps_done for step in self._reward_steps)

    @property
    def _learns_rewards_alone(self) -> bool:
        """Whether a run without policy steps has its one round before it."""
        return not self.max_steps and self._reward_is_due()

    def _learn_rewards(self, after_step: Callable[[], None]) -> None:
        assert self.reward_trainer is not None
        self.forget_rewards()
        self.reward_trainer.run_round(after_step)
        if self.settings.reset_optim:
            self._new_optimizer()

    def _new_optimizer(self) -> None:
        settings = self.settings
        trained = [p for p in self.policy.lm.parameters() if p.requires_grad]
        groups = [  # norms and biases, which are vectors, do not decay
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate)
        self.stepper.optimizer = self.optimizer

    def _batches(self, step: int) -> list[list[int]]:
        """Rows of each batch of a step."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        if self._epoch_batches[0] != epoch:
            key = (Purpose.POLICY_SHUFFLE, self.settings.seed, epoch)
            self._epoch_batches = (epoch, shuffled_batches(self.train_data, self._batch_size, *key))
        count = self.settings.gradient_accumulation_steps
        return self._epoch_batches[1][place * count : (place + 1) * count]

    def _step(self, step: int) -> dict[str, float]:
        """One optimizer step. Returns its figures, and as ``tokens`` how many it read in all processes."""
        settings, known = self.settings, self.loss.reference_rewards
        batches = self._batches(step)
        rows_in_step = sum(len(rows) for rows in batches)
        learns_rewards = known is not None and any(known.lack(rows) for rows in batches)  # the same in all processes
        shares = [self.engine.share(rows) for rows in batches]
        own = [self.collate(self.train_data, mine).to(self.policy.device) if mine else None for mine in shares]
        weighed = self.loss.weigh(own)
        self.policy.lm.train()
        found: list[tuple[float, dict[str, torch.Tensor]]] = []
        for number, (rows, batch) in enumerate(zip(batches, own, strict=True)):
            generator = keyed_generator(Purpose.POLICY_SAMPLES, settings.seed, step, number)
            shape = (len(rows), settings.num_reinforce_samples, settings.max_target_length)
            noise = torch.rand(shape, generator=generator) if settings.uses_samples else None
            # With samples every process takes part, to learn how many tokens the others' samples have.
            if batch is None:
                if noise is not None:
                    self.engine.total(0.0)
                continue
            seed_global(Purpose.POLICY_DROPOUT, settings.seed, step, number, self.engine.rank)
            if noise is not None:
                noise = noise[self.engine.share(range(len(rows)))]
            share = len(rows) / rows_in_step
            loss, figures = self.loss(batch, noise, rows, share, weighed[number])
            self.stepper.backward(loss * share)
            found.append((share, figures))
        new_rewards = [rewards for _, rewards in known.fresh] if known is not None else []
        values = [value for _, figures in found for value in figures.values()]
        norm, fetched = self.stepper.step(*values, *new_rewards)
        if known is not None and learns_rewards:
            known.keep(fetched[len(values) :], self.engine)
        sums = {"tokens": float(sum(batch.sources.count + batch.targets.count for batch in own if batch is not None))}
        named = ((share, name) for share, figures in found for name in figures)
        for (share, name), value in zip(named, fetched, strict=False):
            sums[name] = sums.get(name, 0.0) + value.item() * share
        everyone = self.engine.gather(sums)  # the first process has a row of every batch
        sums = {name: sum(part.get(name, 0.0) for part in everyone) for name in everyone[0]}
        if not math.isfinite(sums["policy/loss"]):
            raise UserError(f"policy step {step}: the loss is {sums['policy/loss']}; a lower learning_rate may help")
        return sums | {"policy/gradient_norm": norm}

    def _log(self, step: int, rate: float) -> None:
        """A line of the means since the last one."""
        rows = self._since_log
        values = {name: sum(row[name] for row in rows) / len(rows) for name in rows[-1]}
        values["perf/tokens_per_second"] = rate * values.pop("tokens")
        values["policy/skipped_steps"] = self.stepper.skipped
        values["perf/policy_steps_per_second"] = rate
        values["perf/seconds_left"] = (self.max_steps - step) / rate
        self.log.log("policy", self._round, step, **values)
        self._since_log = []

    def forget_rewards(self) -> None:
        """Compute the rewards of all references anew."""
        if self.loss.reference_rewards is not None:
            self.loss.reference_rewards.forget()

    def _validate(self, step: int) -> None:
        self.policy.lm.eval()
        figures = self.validate()
        if self.reward_trainer is not None:
            figures |= self.reward_trainer.agreement(step)
        self.last_validation = figures
        logger.info("policy step %d: validation score %.2f", step, figures["eval/score"])
        if self.best_score is None or figures["eval/score"] > self.best_score:
            self.best_score, self.best_step = figures["eval/score"], step
            self.keep_best()
        self.log.log("eval", self._round, step, **figures)

    def save_state(self, state: StateTree) -> None:
        """Add everything that going on needs to a checkpoint."""
        state.put("policy/weights", dict(self.policy.lm.state_dict()))
        state.put("policy/optimizer", *optimizer_state(self.optimizer))
        state.put("policy/stepper", {}, self.stepper.state())
        names = ("steps_done", "best_score", "best_step", "last_validation", "_since_log")
        progress: dict[str, Any] = {name: getattr(self, name) for name in names}
        state.put("policy/progress", {}, progress)
        if self.loss.reference_rewards is not None:
            state.put("policy/reference_rewards", {"values": self.loss.reference_rewards.values})
        if self.reward_trainer is not None:
            self.reward_trainer.save_state(state)

    def load_state(self, state: StateTree) -> None:
        """Undo `save_state`."""
        self.policy.lm.load_state_dict(state.get("policy/weights")[0])
        load_optimizer_state(self.optimizer, *state.get("policy/optimizer"))
        self.stepper.load_state(state.get("policy/stepper")[1])
        for name, value in state.get("policy/progress")[1].items():
            setattr(self, name, value)
        known = self.loss.reference_rewards
        if known is not None and "policy/reference_rewards" in state.values:
            values = state.get("policy/reference_rewards")[0]["values"]
            if values.shape == known.values.shape:
                known.values.copy_(values)
        if self.reward_trainer is not None:
            self.reward_trainer.load_state(state)


def steps_every(period: float, end: float, epoch: float) -> set[int]:
    """Steps done at each multiple of `period` epochs of `epoch` steps up to `end` epochs, which counts.

    A period of less than a step is a step.
    """
    period = max(period, 1 / epoch)
    count = math.floor(end / period + 1e-9) + 1
    return {math.floor(k * period * epoch + 1e-9) for k in range(count)}
