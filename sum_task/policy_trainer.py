"""Trains the summarizer with the learned token rewards: reward-weighted MLE, optional REINFORCE and entropy terms."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.credit import NEED_EXPECTATION, Judged, reference_weights, sample_weights, shares_over_batch
from common.errors import UserError
from common.policy_losses import (
    negative_entropy,
    reinforce_loss,
    reward_weighted_mle_loss,
    shared_likelihood_loss,
)
from common.training.checkpoint import StateTree, load_optimizer_state, optimizer_state
from common.training.engine import Engine
from common.training.interruption import Checkpointer
from common.training.progress import Progress
from common.training.random_keys import Purpose, keyed_generator, seed_global
from common.training.stepper import Stepper
from common.training.tracking import MetricsLog
from sum_task.batching import Batch, Collator, TokenizedRows, shuffled_batches
from sum_task.data import Row
from sum_task.models import Sources, Summaries, SummaryPolicy, SummaryRewardModel
from sum_task.reference_rewards import ReferenceRewards
from sum_task.reward_trainer import RewardTrainer
from sum_task.settings import PolicySettings
from sum_task.step_weights import WeighedBatch, weigh_together

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
        self.collate: Collator = policy.collator(settings.pad_lengths, not settings.ignore_pad_token_for_loss)
        self.stepper = Stepper("policy", settings.clip_norm, engine)
        self._new_optimizer()
        self.steps_done = 0
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.last_validation: dict[str, float] = {}
        self._since_log: list[dict[str, float]] = []  # figures of the steps since the last log line
        # From the reward model as the last round left it. Those of learnt padding differ from batch to batch.
        self.reference_rewards: ReferenceRewards | None = None
        self._known_scores: dict[int, float] = {}  # of references by the preference, with sequence_score=preference
        judged_anew = settings.reference_credit in NEED_EXPECTATION or settings.mle_coeff == 0
        if settings.uses_rewards and settings.ignore_pad_token_for_loss and not judged_anew:
            self.reference_rewards = ReferenceRewards([len(ids) for ids in train.targets])
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
        settings = self.settings
        checkpointer = checkpointer or Checkpointer()
        tokens, steps_since, began = 0.0, 0, time.monotonic()

        def after_step(due: bool = False) -> None:
            checkpointer.after_step(self.optimizer_steps, due)

        with Progress(self.max_steps, "policy learning", initial=self.steps_done) as bar:
            while self.steps_done < self.max_steps:
                if self._reward_is_due():
                    assert self.reward_trainer is not None
                    round_began = time.monotonic()
                    self.forget_rewards()
                    with bar.paused():
                        self.reward_trainer.run_round(after_step)
                    if settings.reset_optim:
                        self._new_optimizer()
                    after_step(due=checkpointer.periodic)
                    began += time.monotonic() - round_began  # no part of what the steps since the last line took
                step = self.steps_done + 1
                figures, read = self._step(step)
                self.steps_done = step
                self._since_log.append(figures)
                tokens += read
                steps_since += 1
                bar.update(1, loss=f"{figures['policy/loss']:.3f}")
                if step % settings.log_every == 0 or step == self.max_steps:
                    rows = self._since_log
                    values = {name: sum(row[name] for row in rows) / len(rows) for name in figures}
                    seconds = time.monotonic() - began
                    values["policy/skipped_steps"] = self.stepper.skipped
                    values["perf/policy_steps_per_second"] = steps_since / seconds
                    values["perf/tokens_per_second"] = tokens / seconds
                    values["perf/seconds_left"] = (self.max_steps - step) * seconds / steps_since
                    self.log.log("policy", self._round, step, **values)
                    self._since_log = []
                    tokens, steps_since, began = 0.0, 0, time.monotonic()
                if step in self._validation_steps or step == self.max_steps:
                    validation_began = time.monotonic()
                    self._validate(step)
                    began += time.monotonic() - validation_began
                after_step(due=checkpointer.periodic and step == self.max_steps)

    @property
    def _round(self) -> int:
        return max(self.reward_trainer.rounds_done - 1, 0) if self.reward_trainer is not None else 0

    def _reward_is_due(self) -> bool:
        if self.reward_trainer is None or self.steps_done not in self._reward_steps:
            return False
        return self.reward_trainer.rounds_done == sum(step < self.steps_done for step in self._reward_steps)

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

    def _step(self, step: int) -> tuple[dict[str, float], float]:
        """One optimizer step. Returns its figures, and the tokens it read in all processes."""
        batches = self._batches(step)
        rows_in_step = sum(len(rows) for rows in batches)
        known = self.reference_rewards
        learns_rewards = known is not None and any(known.lack(rows) for rows in batches)  # the same in all processes
        sums: dict[str, float] = {}
        tokens = 0
        own: list[Batch | None] = []
        for rows in batches:
            mine = self.engine.share(rows)
            own.append(self.collate(self.train_data, mine).to(self.policy.device) if mine else None)
        weighed: list[WeighedBatch | None] = [None] * len(own)
        if self.settings.mle_coeff > 0 and self.settings.weighs_whole_steps:
            weighed = self._weigh(own)
        self.policy.lm.train()
        for number, (rows, batch) in enumerate(zip(batches, own, strict=True)):
            generator = keyed_generator(Purpose.POLICY_SAMPLES, self.settings.seed, step, number)
            shape = (len(rows), self.settings.num_reinforce_samples, self.settings.max_target_length)
            noise = torch.rand(shape, generator=generator) if self.settings.uses_samples else None
            # With samples every process takes part, to learn how many tokens the others' samples have.
            if batch is None:
                if noise is not None:
                    self.engine.total(0.0)
                continue
            seed_global(Purpose.POLICY_DROPOUT, self.settings.seed, step, number, self.engine.rank)
            if noise is not None:
                noise = noise[self.engine.share(range(len(rows)))]
            share = len(rows) / rows_in_step
            loss, found = self._loss(batch, noise, rows, share, weighed[number])
            self.stepper.backward(loss * share)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value * share
            tokens += int(batch.source_mask.sum() + batch.target_mask.sum())
        norm, _ = self.stepper.step()
        if learns_rewards:
            assert self.reference_rewards is not None
            self.reference_rewards.exchange(self.engine)
        names = self._figure_names
        totals = self.engine.total(*(sums.get(name, 0.0) for name in names), float(tokens))
        figures = dict(zip(names, totals[:-1], strict=True))
        if not math.isfinite(figures["policy/loss"]):
            raise UserError(f"policy step {step}: the loss is {figures['policy/loss']}; a lower learning_rate may help")
        return figures | {"policy/gradient_norm": norm}, totals[-1]

    @property
    def _figure_names(self) -> list[str]:
        settings = self.settings
        names = ["policy/loss"]
        if settings.mle_coeff > 0:
            names += ["policy/mle_loss", *(["policy/token_reward"] if settings.uses_rewards else [])]
        names += ["policy/reinforce_loss", "policy/sample_reward"] if settings.reinforce_coeff > 0 else []
        names += ["policy/entropy"] if settings.max_entropy_coeff > 0 else []
        return names + (["policy/sample_length"] if settings.uses_samples else [])

    def _loss(
        self,
        batch: Batch,
        noise: Tensor | None,
        rows: list[int],
        share_of_step: float = 1.0,
        weighed: WeighedBatch | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """This process's part of the loss of a batch, and of its figures: the parts of all processes add up.

        Args:
            batch: this process's rows.
            noise: for samples, or None.
            rows: those of all processes.
            share_of_step: by which the batch's loss counts in the step's.
            weighed: the references against the others of the step; None: every batch for itself.
        """
        with self.engine.autocast():
            sources = self.policy.encode(batch.source_ids, batch.source_mask)
        loss, figures = torch.zeros((), device=self.policy.device), dict[str, float]()
        if self.settings.mle_coeff > 0:
            mle_loss, figures = self._reference_loss(batch, sources, rows, share_of_step, weighed)
            loss = self.settings.mle_coeff * mle_loss
        if noise is not None:
            sample_loss, sample_figures = self._sample_loss(batch, sources, noise, len(rows))
            loss = loss + sample_loss
            figures |= sample_figures
        figures["policy/loss"] = loss.item()
        return loss, figures

    def _reference_loss(
        self, batch: Batch, sources: Sources, rows: list[int], share_of_step: float, weighed: WeighedBatch | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted maximum likelihood of the references; see `_loss`."""
        settings = self.settings
        labels = Summaries(batch.target_ids, batch.target_mask)
        share = len(batch.rows) / len(rows)
        with self.engine.autocast():
            logits = self.policy.logits(sources, labels)
        figures = {}
        if weighed is not None:
            if settings.shares_over_batch:
                shares = shares_over_batch(weighed.weights, labels.mask, weighed.total * share_of_step)
            else:
                shares = weighed.weights / weighed.weights.sum(-1, keepdim=True) / len(rows)
            mle_loss = shared_likelihood_loss(logits, labels.tokens, shares, labels.mask)
            figures["policy/token_reward"] = share * _mean_reward(weighed.rewards, labels.mask)
        elif settings.uses_rewards:
            rewards = self._label_rewards(batch, labels)
            mle_loss = share * reward_weighted_mle_loss(
                logits, labels.tokens, rewards, labels.mask, settings.reference_credit, settings.exp_in_wmle
            )
            figures["policy/token_reward"] = share * _mean_reward(rewards, labels.mask)
        else:
            mle_loss = self._plain_loss(logits, labels, rows)
        figures["policy/mle_loss"] = mle_loss.item()
        return mle_loss, figures

    def _weigh(self, batches: Sequence[Batch | None]) -> list[WeighedBatch | None]:
        """The references of a step, each of their tokens weighed against all others.

        The step and not a batch, so that more are compared, and neither the number of processes nor of accumulated
        batches changes a weight. What the policy expects is that of the policy without dropout.
        """
        judged: list[Judged | None] = []
        self.policy.lm.eval()
        for batch in batches:
            if batch is None:
                judged.append(None)
                continue
            labels = Summaries(batch.target_ids, batch.target_mask)
            if self.settings.reference_credit in NEED_EXPECTATION:
                with torch.no_grad(), self.engine.autocast():
                    sources = self.policy.encode(batch.source_ids, batch.source_mask)
                    logits = self.policy.logits(sources, labels)
                    rewards, expected = self._judge(batch, labels, logits)
                judged.append(Judged(rewards, labels.mask, expected, self._reference_scores(batch)))
            else:
                rewards = self._label_rewards(batch, labels)
                judged.append(Judged(rewards, labels.mask, scores=self._reference_scores(batch)))
        kind = self.settings.reference_credit
        return weigh_together(judged, lambda together: reference_weights(kind, together), self.engine)

    def _reference_scores(self, batch: Batch) -> Tensor | None:
        """With sequence_score=preference what the preference says of each reference, (B,); else None."""
        if self.settings.sequence_score == "learned":
            return None
        missing = [place for place, row in enumerate(batch.indices) if row not in self._known_scores]
        if missing:
            rows = [batch.rows[place] for place in missing]
            for place, score in zip(missing, self._preferences([row.reference for row in rows], rows), strict=True):
                self._known_scores[batch.indices[place]] = float(score)
        return torch.tensor([self._known_scores[row] for row in batch.indices]).to(batch.target_ids.device)

    def _preferences(self, texts: Sequence[str], rows: Sequence[Row]) -> Tensor:
        """What the preference says of summaries of some rows, (N,)."""
        assert self.reward_trainer is not None
        preference = self.reward_trainer.preference
        return preference(texts, [row.standard for row in rows], [row.source for row in rows]).float()

    def _plain_loss(self, logits: Tensor, labels: Summaries, rows: list[int]) -> Tensor:
        """Maximum likelihood: the mean over the tokens of the whole batch, of which this is the part of some rows."""
        if self.settings.ignore_pad_token_for_loss:
            tokens = sum(len(self.train_data.targets[i]) for i in rows)
        else:
            tokens = labels.mask.shape[1] * len(rows)
        losses = F.cross_entropy(logits[labels.mask].float(), labels.tokens[labels.mask], reduction="sum")
        return losses / tokens

    def _sample_loss(
        self, batch: Batch, sources: Sources, noise: Tensor, rows_in_batch: int
    ) -> tuple[Tensor, dict[str, float]]:
        """REINFORCE and entropy terms on samples, drawn without gradient from the sources as they are encoded."""
        settings = self.settings
        with self.engine.autocast():
            samples = self.policy.sample(
                sources, noise.shape[1], noise.flatten(0, 1), settings.sampling_top_k, settings.sampling_temperature
            )
            logits = self.policy.logits(sources, samples)
        tokens = int(samples.mask.sum())
        share = tokens / self.engine.total(float(tokens))[0]
        loss = logits.new_zeros((), dtype=torch.float32)
        row_share = len(batch.rows) / rows_in_batch
        figures = {"policy/sample_length": row_share * tokens / len(samples.mask)}
        if settings.reinforce_coeff > 0:
            weights, rewards = self._weigh_samples(batch, samples, logits)
            term = share * reinforce_loss(logits, samples.tokens, weights, samples.mask)
            loss = loss + settings.reinforce_coeff * term
            figures["policy/reinforce_loss"] = term.item()
            figures["policy/sample_reward"] = row_share * _mean_reward(rewards, samples.mask)
        if settings.max_entropy_coeff > 0:
            term = share * negative_entropy(logits, samples.mask)
            loss = loss + settings.max_entropy_coeff * term
            figures["policy/entropy"] = -term.item()
        return loss, figures

    def _weigh_samples(self, batch: Batch, samples: Summaries, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and learned rewards of the tokens of samples, (N, T) each."""
        settings = self.settings
        per_source = len(samples.mask) // len(batch.rows)
        rewards, expected, scores = self._rewards(batch, samples), None, None
        if settings.sample_credit in NEED_EXPECTATION:
            with torch.no_grad(), self.engine.autocast():
                _, expected = self._judge(batch, samples, logits.detach())
        if settings.sequence_score == "preference":
            rows = [row for row in batch.rows for _ in range(per_source)]
            scores = self._preferences(self.policy.texts(samples), rows).to(samples.mask.device)
        compared = per_source if settings.reinforce_baseline == "leave-one-out" else None
        judged = Judged(rewards, samples.mask, expected, scores)
        return sample_weights(settings.sample_credit, judged, compared), rewards

    def forget_rewards(self) -> None:
        """Compute the rewards of all references anew."""
        if self.reference_rewards is not None:
            self.reference_rewards.forget()

    def _label_rewards(self, batch: Batch, labels: Summaries) -> Tensor:
        """Token rewards (B, T) of the references, computed once a row between two rounds of reward learning."""
        known = self.reference_rewards
        if known is None:
            return self._rewards(batch, labels)
        missing = [place for place, row in enumerate(batch.indices) if not known.knows(row)]
        if missing:
            part = batch if len(missing) == len(batch.rows) else batch.only(missing)
            found = self._rewards(part, Summaries(part.target_ids, part.target_mask)).cpu()
            for row, rewards in zip(part.indices, found, strict=True):
                known.put(row, rewards)
        return known.table(batch.indices, labels.mask.shape[1]).to(labels.tokens.device)

    @torch.no_grad()
    def _rewards(self, batch: Batch, summaries: Summaries) -> Tensor:
        """Token rewards of summaries, the reward model in evaluation mode."""
        with self.engine.autocast():
            return self._reward_model().policy_rewards(batch, summaries)

    def _judge(self, batch: Batch, summaries: Summaries, logits: Tensor) -> tuple[Tensor, Tensor]:
        return self._reward_model().judge(batch, summaries, logits, self.settings.expectation_tokens)

    def _reward_model(self) -> SummaryRewardModel:
        """In evaluation mode."""
        assert self.reward_trainer is not None
        self.reward_trainer.reward.model.eval()
        return self.reward_trainer.reward

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
        if self.reference_rewards is not None:
            state.put("policy/reference_rewards", {"values": self.reference_rewards.values})
        if self.reward_trainer is not None:
            self.reward_trainer.save_state(state)

    def load_state(self, state: StateTree) -> None:
        """Undo `save_state`."""
        self.policy.lm.load_state_dict(state.get("policy/weights")[0])
        load_optimizer_state(self.optimizer, *state.get("policy/optimizer"))
        self.stepper.load_state(state.get("policy/stepper")[1])
        for name, value in state.get("policy/progress")[1].items():
            setattr(self, name, value)
        if self.reference_rewards is not None and "policy/reference_rewards" in state.values:
            values = state.get("policy/reference_rewards")[0]["values"]
            if values.shape == self.reference_rewards.values.shape:
                self.reference_rewards.values.copy_(values)
        if self.reward_trainer is not None:
            self.reward_trainer.load_state(state)


def _mean_reward(rewards: Tensor, mask: Tensor) -> float:
    """Mean over the sequences of the mean token reward of each."""
    return (rewards.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)).mean().item()


def steps_every(period: float, end: float, epoch: float) -> set[int]:
    """Steps done at each multiple of `period` epochs of `epoch` steps up to `end` epochs, which counts.

    A period of less than a step is a step.
    """
    period = max(period, 1 / epoch)
    count = math.floor(end / period + 1e-9) + 1
    return {math.floor(k * period * epoch + 1e-9) for k in range(count)}
