"""The policy's loss: reward-weighted likelihood of references, REINFORCE and entropy of samples, and what weighs them.

Figures stay on the device; the CPU asks for them once a step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from common.credit import NEED_EXPECTATION, Judged, reference_weights, sample_weights, shares_over_batch
from common.language_models.evaluation_mode import evaluation_mode
from common.policy_losses import (
    at_real_tokens,
    negative_entropy,
    reinforce_loss,
    reward_weighted_mle_loss,
    shared_likelihood_loss,
)
from common.training.engine import Engine
from common.transfers import upload
from sum_task.batching import Batch, Padded
from sum_task.policy import Sources, SummaryPolicy
from sum_task.preferences import Preference
from sum_task.reference_rewards import ReferenceRewards
from sum_task.reward_model import SummaryRewardModel
from sum_task.sampling import sample_summaries
from sum_task.settings import PolicySettings
from sum_task.step_weights import WeighedBatch, weigh_together


class PolicyLoss:
    """The loss of a batch; the rewards in it get no gradient, and the reward model is in evaluation mode.

    Args:
        policy: what learns.
        reward, preference: what judges summaries: token by token, and as a whole; None without guidance.
        lengths: tokens of each training row's reference.
        settings: see there.
        engine: of the run.

    Attributes:
        reference_rewards: those of the references, from the reward model as the last round left it; None where they are
            not the same in every batch: those of learnt padding, and those with what the policy expects.
    """

    def __init__(
        self,
        policy: SummaryPolicy,
        reward: SummaryRewardModel | None,
        preference: Preference | None,
        lengths: Sequence[int],
        settings: PolicySettings,
        engine: Engine,
    ):
        self.policy = policy
        self.reward = reward
        self.preference = preference
        self.lengths = lengths
        self.settings = settings
        self.engine = engine
        self._known_scores: dict[int, float] = {}  # of references by the preference, with sequence_score=preference
        judged_anew = settings.reference_credit in NEED_EXPECTATION or settings.mle_coeff == 0
        remembers = settings.uses_rewards and settings.ignore_pad_token_for_loss and not judged_anew
        self.reference_rewards = ReferenceRewards(lengths) if remembers else None

    def __call__(
        self,
        batch: Batch,
        noise: Tensor | None,
        rows: Sequence[int],
        share_of_step: float = 1.0,
        weighed: WeighedBatch | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's part of the loss of a batch, and of its figures: the parts of all processes add up.

        Args:
            batch: this process's rows.
            noise: for samples, or None.
            rows: those of all processes.
            share_of_step: by which the batch's loss counts in the step's.
            weighed: the references against the others of the step; None: every batch for itself.
        """
        with self.engine.autocast():
            sources = self.policy.encode(batch.sources)
        loss, figures = torch.zeros((), device=self.policy.device), dict[str, Tensor]()
        if self.settings.mle_coeff > 0:
            mle_loss, figures = self._of_references(batch, sources, rows, share_of_step, weighed)
            loss = self.settings.mle_coeff * mle_loss
        if noise is not None:
            sample_loss, of_samples = self._of_samples(batch, sources, noise, len(rows))
            loss = loss + sample_loss
            figures |= of_samples
        return loss, figures | {"policy/loss": loss}

    def weigh(self, batches: Sequence[Batch | None]) -> list[WeighedBatch | None]:
        """The references of a step, each of their tokens weighed against all others, where the options ask for it.

        The step and not a batch, so that more are compared, and neither the number of processes nor of accumulated
        batches changes a weight. What the policy expects is that of the policy without dropout.
        """
        if self.settings.mle_coeff == 0 or not self.settings.weighs_whole_steps:
            return [None] * len(batches)
        kind = self.settings.reference_credit
        with evaluation_mode(self.policy.lm):
            judged = [None if batch is None else self._judged(batch) for batch in batches]
        return weigh_together(judged, lambda together: reference_weights(kind, together), self.engine)

    @torch.no_grad()
    def _judged(self, batch: Batch) -> Judged:
        """What is known of the references of a batch."""
        rewards, expected = None, None
        if self.settings.reference_credit in NEED_EXPECTATION:
            with self.engine.autocast():
                logits = self.policy.logits(self.policy.encode(batch.sources), batch.targets)
            rewards, expected = self.judge(batch, batch.targets, logits)
        else:
            rewards = self._reference_rewards(batch)
        return Judged(rewards, batch.targets.mask, expected, self._reference_scores(batch))

    def _of_references(
        self, batch: Batch, sources: Sources, rows: Sequence[int], share_of_step: float, weighed: WeighedBatch | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted maximum likelihood of the references; see `__call__`."""
        settings, labels = self.settings, batch.targets
        share = len(batch.rows) / len(rows)
        with self.engine.autocast():
            logits = self.policy.logits(sources, labels)
        if not settings.uses_rewards:
            loss = self._likelihood(logits, labels, rows)
            return loss, {"policy/mle_loss": loss}
        if weighed is not None:
            rewards = weighed.rewards
            if settings.shares_over_batch:
                shares = shares_over_batch(weighed.weights, labels.mask, weighed.total * share_of_step)
            else:
                shares = weighed.weights / weighed.weights.sum(-1, keepdim=True) / len(rows)
            loss = shared_likelihood_loss(logits, labels.tokens, shares, labels.known)
        else:
            rewards = self._reference_rewards(batch)
            loss = share * reward_weighted_mle_loss(
                logits, labels.tokens, rewards, labels.known, settings.reference_credit, settings.exp_in_wmle
            )
        return loss, {"policy/mle_loss": loss, "policy/token_reward": share * _mean_reward(rewards, labels)}

    def _likelihood(self, logits: Tensor, labels: Padded, rows: Sequence[int]) -> Tensor:
        """Maximum likelihood: the mean over the tokens of the whole batch, of which this is the part of some rows."""
        tokens = sum(self.lengths[i] for i in rows)
        if not self.settings.ignore_pad_token_for_loss:
            tokens = labels.mask.shape[1] * len(rows)
        chosen, ids = at_real_tokens(labels.known, logits, labels.tokens)
        return F.cross_entropy(chosen.float(), ids, reduction="sum") / tokens

    def _of_samples(
        self, batch: Batch, sources: Sources, noise: Tensor, rows_in_batch: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """REINFORCE and entropy terms on samples, drawn without gradient from the sources as they are encoded."""
        settings = self.settings
        with self.engine.autocast():
            samples = sample_summaries(
                self.policy, sources, noise.shape[1], noise.flatten(0, 1),
                settings.sampling_top_k, settings.sampling_temperature,
            )  # fmt: skip
            logits = self.policy.logits(sources, samples)
        share = samples.count / self.engine.total(float(samples.count))[0]
        row_share = len(batch.rows) / rows_in_batch
        loss = logits.new_zeros((), dtype=torch.float32)
        figures = {"policy/sample_length": torch.full_like(loss, row_share * samples.count / len(samples.known))}
        if settings.reinforce_coeff > 0:
            weights, rewards = self._sample_weights(batch, samples, logits)
            term = share * reinforce_loss(logits, samples.tokens, weights, samples.known)
            loss = loss + settings.reinforce_coeff * term
            figures["policy/reinforce_loss"] = term
            figures["policy/sample_reward"] = row_share * _mean_reward(rewards, samples)
        if settings.max_entropy_coeff > 0:
            term = share * negative_entropy(logits, samples.known)
            loss = loss + settings.max_entropy_coeff * term
            figures["policy/entropy"] = -term
        return loss, figures

    def _sample_weights(self, batch: Batch, samples: Padded, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and learned rewards of the tokens of samples, (N, T) each."""
        settings = self.settings
        per_source = len(samples.known) // len(batch.rows)
        rewards, expected, scores = self.rewards(batch, samples), None, None
        if settings.sample_credit in NEED_EXPECTATION:
            _, expected = self.judge(batch, samples, logits.detach())
        if settings.sequence_score == "preference":
            assert self.preference is not None
            rows = [row for row in batch.rows for _ in range(per_source)]
            found = self.preference.of_rows(self.policy.texts(samples), rows).float()
            scores = upload(found, samples.mask.device)
        compared = per_source if settings.reinforce_baseline == "leave-one-out" else None
        judged = Judged(rewards, samples.mask, expected, scores)
        return sample_weights(settings.sample_credit, judged, compared), rewards

    def _reference_scores(self, batch: Batch) -> Tensor | None:
        """With sequence_score=preference what the preference says of each reference, (B,); else None."""
        if self.settings.sequence_score == "learned":
            return None
        assert self.preference is not None
        known = self._known_scores
        missing = [place for place, row in enumerate(batch.indices) if row not in known]
        if missing:
            rows = [batch.rows[place] for place in missing]
            found = self.preference.of_rows([row.reference for row in rows], rows).float().tolist()
            known |= {batch.indices[place]: score for place, score in zip(missing, found, strict=True)}
        return upload(torch.tensor([known[row] for row in batch.indices]), batch.targets.mask.device)

    def _reference_rewards(self, batch: Batch) -> Tensor:
        """Token rewards (B, T) of the references, computed once a row between two rounds of reward learning."""
        if self.reference_rewards is None:
            return self.rewards(batch, batch.targets)
        return self.reference_rewards.of(batch, lambda part: self.rewards(part, part.targets))

    @torch.no_grad()
    def rewards(self, batch: Batch, summaries: Padded) -> Tensor:
        """Token rewards (N, T) of summaries."""
        assert self.reward is not None
        with evaluation_mode(self.reward.model), self.engine.autocast():
            return self.reward.policy_rewards(batch, summaries)

    @torch.no_grad()
    def judge(self, batch: Batch, summaries: Padded, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Token rewards of summaries, and what the policy expects in each state, (N, T) each."""
        assert self.reward is not None
        with evaluation_mode(self.reward.model), self.engine.autocast():
            return self.reward.judge(batch, summaries, logits, self.settings.expectation_tokens)


def _mean_reward(rewards: Tensor, summaries: Padded) -> Tensor:
    """Mean over the sequences of the mean token reward of each."""
    mask = summaries.mask
    return (rewards.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)).mean()
