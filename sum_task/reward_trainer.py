"""Learns token rewards from ranked summaries: one round = a policy held still, a reward model fitted to its samples.

A batch samples K summaries of each article, ranks them by the preference, aggregates the token rewards of each to a
score and takes the ListMLE loss against the ranking. The policy stands still during a round, so the summaries of
several batches are sampled at once: writing a token for many takes little longer than for a few.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.aggregation import aggregate_token_rewards
from common.errors import UserError
from common.grounding_loss import list_mle_loss
from common.swaps import draw_places, swap_tokens
from common.training.checkpoint import StateTree, load_optimizer_state, optimizer_state
from common.training.engine import Engine
from common.training.plateau import Plateau
from common.training.progress import Progress
from common.training.random_keys import Key, Purpose, keyed_generator, seed_global
from common.training.ranking_figures import RankingFigures, ratio
from common.training.stepper import Stepper
from common.training.tracking import MetricsLog
from sum_task.batching import Batch, Collator, TokenizedRows, shuffled_batches, sorted_batches
from sum_task.models import Sources, Summaries, SummaryPolicy, SummaryRewardModel
from sum_task.preferences import Preference
from sum_task.settings import RewardSettings

logger = logging.getLogger(__name__)

_SAMPLED_AT_ONCE = 4  # batches; a decoder-only policy would need memory for K times as many articles


@dataclass
class Swaps:
    """References of B articles, each followed by itself with one token replaced by the policy's likeliest other one.

    Attributes:
        summaries: N = 2 B of them.
        places: (B,) column of the token in question.
    """

    summaries: Summaries
    places: Tensor


@dataclass
class RankedSummaries:
    """Sampled summaries of B articles with their preference.

    Attributes:
        batch: the articles.
        summaries: N = B * K of them, those of an article one after the other.
        preferences: (B, K), higher is better.
        ranks: (B, K), the same order without ties: equal preferences are put in random order.
        swaps: of the same articles; None where they are not asked for.
    """

    batch: Batch
    summaries: Summaries
    preferences: Tensor
    ranks: Tensor
    swaps: Swaps | None = None


def break_ties(preferences: Tensor, noise: Tensor) -> Tensor:
    """Ranks (B, K), 0 the lowest, in the order of the preferences (B, K); equal ones in the order of `noise` (B, K)."""
    by_noise = noise.argsort(-1)
    by_both = by_noise.gather(-1, preferences.gather(-1, by_noise).argsort(dim=-1, stable=True))
    return by_both.argsort(-1)


class RewardTrainer:
    """Fits the token reward model to the preference over what the policy writes now."""

    def __init__(
        self,
        reward: SummaryRewardModel,
        policy: SummaryPolicy,
        preference: Preference,
        train: TokenizedRows,
        validation: TokenizedRows,
        settings: RewardSettings,
        engine: Engine,
        log: MetricsLog,
    ):
        self.reward = reward
        self.policy = policy
        self.preference = preference
        self.train = train
        self.validation = validation
        self.settings = settings
        self.engine = engine
        self.log = log
        self.collate: Collator = policy.collator(settings.pad_lengths)
        self.rounds_done = 0
        self.steps_done = 0  # over all rounds
        self.last_figures: dict[str, float] = {}  # of the weights that the last round chose
        self._round: _Round | None = None
        self.stepper = Stepper("reward", settings.clip_norm, engine)
        # Which token of each row's reference is swapped, in every round.
        self._swap_noise = torch.rand(len(validation), generator=keyed_generator(Purpose.SWAPS, settings.seed))
        batch_size = settings.reward_learning_batch_size * engine.count
        batches = math.ceil(len(train) / batch_size)
        self.batches_per_round = max(1, math.ceil(settings.rew_num_train_epochs * batches))
        self.steps_per_epoch = batches / settings.rew_gradient_accumulation_steps
        self.steps_per_round = math.ceil(self.batches_per_round / settings.rew_gradient_accumulation_steps)
        self._batch_size = batch_size
        self.sampled_at_once = settings.rew_sampling_batches or (_SAMPLED_AT_ONCE if policy.is_encoder_decoder else 1)

    def run_round(self, after_step: Callable[[], None] = lambda: None) -> None:
        """One round: warm weights, fresh optimizer; ends with the weights that were best in validation.

        `after_step` is called after each step but the last; state taken there lets `run_round` go on from it.
        """
        settings = self.settings
        model = self.reward.model
        current = self._round = self._round or self._begin_round()
        plateau = current.plateau
        # The policy stands still during a round, so one sample serves all its validations.
        validation = self._validation_sets(Purpose.VALIDATION_SAMPLES, self.rounds_done)
        for held_out_sets in validation:
            held_out_sets.swaps = self._swaps(held_out_sets.batch)
        batches = self._round_batches()
        accumulate = settings.rew_gradient_accumulation_steps
        ranked = self.ranked_from(batches, current.steps * accumulate)
        period = max(settings.rew_eval_period, 1 / self.steps_per_epoch)  # at most after every step
        evaluate_at = {
            round(k * period * self.steps_per_epoch)
            for k in range(1, math.ceil(settings.rew_num_train_epochs / period) + 1)
        } | {self.steps_per_round}
        began, steps_since, sampled_tokens = time.monotonic(), 0, 0.0  # those of this process, not of the round
        title = f"reward learning, round {self.rounds_done}"
        with Progress(self.steps_per_round, title, initial=current.steps) as bar:
            while current.steps < self.steps_per_round and not plateau.should_stop:
                step = current.steps + 1
                sizes = [len(rows) for rows in batches[(step - 1) * accumulate : step * accumulate]]
                figures, norm = self._step(list(itertools.islice(ranked, len(sizes))), sum(sizes), step)
                current.since_log += figures
                sampled_tokens += figures.sampled_tokens
                current.steps = step
                self.steps_done += 1
                steps_since += 1
                bar.update(1, loss=f"{ratio(figures.loss, figures.sets):.3f}")
                evaluate = step in evaluate_at
                if evaluate or step % settings.log_every == 0:
                    values = current.since_log.means()
                    seconds = time.monotonic() - began
                    values |= {
                        "reward/gradient_norm": norm,
                        "reward/skipped_steps": self.stepper.skipped,
                        "reward/learning_rate": plateau.learning_rate,
                        "perf/reward_steps_per_second": steps_since / seconds,
                        "perf/sampled_tokens_per_second": sampled_tokens / seconds,
                    }
                    if math.isnan(values["reward/rank_accuracy"]):
                        logger.warning(
                            "reward learning, round %d, step %d: in no ranking set were two preferences different (the "
                            "policy writes one summary an article, or the preference gives equal scores), so there was "
                            "nothing to learn",
                            self.rounds_done,
                            step,
                        )
                    if evaluate:
                        held_out = self._validate(validation)
                        logger.info(
                            "reward learning, round %d, step %d: dev loss %.4f, rank accuracy %.3f, swap accuracy %.3f",
                            self.rounds_done,
                            step,
                            held_out["reward/dev_loss"],
                            held_out["reward/dev_rank_accuracy"],
                            held_out.get("reward/dev_swap_accuracy", math.nan),
                        )
                        values |= held_out
                        if plateau.update(held_out["reward/dev_loss"], step):
                            current.chosen = held_out
                    self.log.log("reward", self.rounds_done, step, **values)
                    current.since_log = RankingFigures()
                    began, steps_since, sampled_tokens = time.monotonic(), 0, 0.0
                if step < self.steps_per_round and not plateau.should_stop:
                    after_step()
        if not plateau.restore_best():
            logger.warning("no validation of the reward model gave a number; its last weights are used")
        self.last_figures = current.chosen
        model.eval()
        self._round = None
        self.rounds_done += 1

    def _begin_round(self) -> "_Round":
        model = self.reward.model
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.settings.rew_learning_rate)
        self.stepper.optimizer = optimizer
        return _Round(optimizer, Plateau(self.settings.plateau(), optimizer, model))

    def _round_batches(self) -> list[list[int]]:
        """Rows of each batch of this round; each round takes other ones."""
        batches: list[list[int]] = []
        epoch = 0
        while len(batches) < self.batches_per_round:
            key = (Purpose.REWARD_SHUFFLE, self.settings.seed, self.rounds_done, epoch)
            batches += shuffled_batches(self.train, self._batch_size, *key)
            epoch += 1
        return batches[: self.batches_per_round]

    def agreement(self, step: int) -> dict[str, float]:
        """How far the reward orders fresh summaries of the policy as it is after `step` as the preference does.

        Articles are those by which a round validates; the summaries are sampled anew at each step.
        """
        figures = self._validate(self._validation_sets(Purpose.AGREEMENT_SAMPLES, step))
        return {"eval/guidance_agreement": figures["reward/dev_rank_accuracy"]}

    def _validation_sets(self, purpose: Purpose, round_or_step: int) -> list[RankedSummaries]:
        batches = sorted_batches(self.validation, self._batch_size)
        count = max(1, round(self.settings.rew_validation_share * len(batches)))
        generator = keyed_generator(Purpose.VALIDATION_BATCHES, self.settings.seed)  # the same ones in every round
        kept = sorted(torch.randperm(len(batches), generator=generator)[:count].tolist())
        keys: list[Key] = [(purpose, self.settings.seed, round_or_step, i) for i in kept]
        at_once = self.sampled_at_once
        ranked: list[RankedSummaries | None] = []
        for first in range(0, count, at_once):
            part = slice(first, first + at_once)
            ranked += self.rank(self.validation, [batches[i] for i in kept[part]], keys[part])
        return [sets for sets in ranked if sets is not None]

    def ranked_from(self, batches: Sequence[list[int]], first: int) -> Iterator[RankedSummaries | None]:
        """Ranked summaries of the round's batches from number `first` on; None where this process has no row of one.

        Which batches are sampled at once does not depend on `first`: a run that is resumed within them writes them
        again.
        """
        at_once = self.sampled_at_once
        accumulate = self.settings.rew_gradient_accumulation_steps
        for begin in range(first - first % at_once, len(batches), at_once):
            numbers = range(begin, min(begin + at_once, len(batches)))
            keys = [self._key(n // accumulate + 1, n % accumulate) for n in numbers]
            ranked = self.rank(self.train, [batches[n] for n in numbers], keys)
            yield from ranked[max(0, first - begin) :]

    def _key(self, step: int, number: int) -> Key:
        """Of the random numbers with which the batch of that number within a step of this round is sampled."""
        return Purpose.REWARD_SAMPLES, self.settings.seed, self.rounds_done, step, number

    @torch.no_grad()
    def rank(
        self, data: TokenizedRows, batches: Sequence[list[int]], keys: Sequence[Key]
    ) -> list[RankedSummaries | None]:
        """Sample summaries of several batches at once and rank them.

        Args:
            data: the rows.
            batches: the rows of each batch, in all processes.
            keys: of the random numbers of each batch.

        Returns:
            Those of this process's rows of each batch; None where it has none.

        Raises:
            UserError: the preference gives a score that is not a finite number.
        """
        settings = self.settings
        per_source = settings.reward_learning_samples
        mine: list[Batch | None] = []
        noises, tie_noises = [], []
        for rows, key in zip(batches, keys, strict=True):
            generator = keyed_generator(*key)
            noise = torch.rand(len(rows), per_source, settings.max_target_length, generator=generator)
            tie_noise = torch.rand(len(rows), per_source, generator=generator)
            kept = self.engine.share(range(len(rows)))
            noises.append(noise[kept])
            tie_noises.append(tie_noise[kept])
            mine.append(self.collate(data, [rows[i] for i in kept]).to(self.policy.device) if kept else None)
        own = [batch for batch in mine if batch is not None]
        if not own:
            return [None] * len(batches)
        was_training = self.policy.lm.training
        self.policy.lm.eval()
        with self.engine.autocast():
            sources = self.policy.join([self.policy.encode(batch.source_ids, batch.source_mask) for batch in own])
            summaries = self._sample(sources, torch.cat(noises))
        self.policy.lm.train(was_training)
        written = [row for batch in own for row in batch.rows for _ in range(per_source)]
        scores = self.preference(
            self.policy.texts(summaries), [row.standard for row in written], [row.source for row in written]
        )
        if not bool(scores.isfinite().all()):
            raise UserError(f"preference: '{settings.preference}' gave a score that is not a finite number")
        preferences = scores.view(-1, per_source)
        ranks = break_ties(preferences, torch.cat(tie_noises))
        ranked: list[RankedSummaries | None] = []
        first = 0
        for batch in mine:
            if batch is None:
                ranked.append(None)
                continue
            end = first + len(batch.rows)
            part = summaries.part(first * per_source, end * per_source)
            ranked.append(RankedSummaries(batch, part, preferences[first:end], ranks[first:end]))
            first = end
        return ranked

    def _sample(self, sources: Sources, noise: Tensor) -> Summaries:
        settings = self.settings
        return self.policy.sample(
            sources, noise.shape[1], noise.flatten(0, 1), settings.sampling_top_k, settings.sampling_temperature
        )

    def _step(
        self, batches: Sequence[RankedSummaries | None], sets_in_step: int, step: int
    ) -> tuple[RankingFigures, float]:
        """One optimizer step over some batches, which hold so many ranking sets in all processes.

        Returns the figures of all processes and the gradient norm.
        """
        figures = RankingFigures()
        for number, ranked in enumerate(batches):
            if ranked is None:
                continue
            where = (self.rounds_done, step, number, self.engine.rank)
            seed_global(Purpose.REWARD_DROPOUT, self.settings.seed, *where)
            self.reward.model.train()
            loss, found = self._loss(ranked)
            if not math.isfinite(found.loss):
                raise UserError(f"reward step {step}: the loss is {found.loss}; a lower rew_learning_rate may help")
            self.stepper.backward(loss * (found.sets / sets_in_step))
            figures += found
        norm, _ = self.stepper.step()
        self.reward.model.eval()
        return figures.over(self.engine), norm

    def _loss(self, ranked: RankedSummaries) -> tuple[Tensor, RankingFigures]:
        """ListMLE loss, the mean over the ranking sets, and the sums for the log."""
        sets, per_source = ranked.preferences.shape
        with self.engine.autocast():
            rewards, mask = self.reward.own_rewards(ranked.batch, ranked.summaries)
        per_set = (sets, per_source, -1)
        scores = aggregate_token_rewards(
            rewards.view(per_set), mask.view(per_set), self.settings.agg_func, self.settings.soft_maxmin_temp
        )
        loss = list_mle_loss(scores, ranked.ranks.to(scores.device))
        figures = RankingFigures.of(loss, scores, rewards, mask, ranked.preferences, self.reward.model.config.bound)
        figures.sampled_tokens = float(ranked.summaries.mask.sum())
        return loss, figures

    @torch.no_grad()
    def _validate(self, validation: list[RankedSummaries]) -> dict[str, float]:
        self.reward.model.eval()
        figures = RankingFigures()
        for ranked in validation:
            figures += self._loss(ranked)[1]
            if ranked.swaps is not None:
                figures += self._swap_figures(ranked.batch, ranked.swaps)
        return figures.over(self.engine).held_out()

    @torch.no_grad()
    def _swaps(self, batch: Batch) -> Swaps:
        """One token of each reference replaced; the policy is used in evaluation mode."""
        tokens, mask = batch.target_ids, batch.target_mask
        places = draw_places(mask, self._swap_noise[batch.indices])
        was_training = self.policy.lm.training
        self.policy.lm.eval()
        with self.engine.autocast():
            sources = self.policy.encode(batch.source_ids, batch.source_mask)
            logits = self.policy.logits(sources, Summaries(tokens, mask))
        self.policy.lm.train(was_training)
        rows = torch.arange(len(tokens), device=tokens.device)
        swapped = swap_tokens(tokens, places, logits[rows, places, : len(self.policy.tokenizer)])
        both = torch.stack([tokens, swapped], 1).flatten(0, 1)
        return Swaps(Summaries(both, mask.repeat_interleave(2, 0)), places)

    def _swap_figures(self, batch: Batch, swaps: Swaps) -> RankingFigures:
        with self.engine.autocast():
            rewards = self.reward.policy_rewards(batch, swaps.summaries)
        pairs = rewards.unflatten(0, (-1, 2))  # (B, 2, T)
        rows = torch.arange(len(pairs), device=rewards.device)
        right, swapped = pairs[rows, :, swaps.places].unbind(1)
        seen = ((right - swapped).sign() + 1) / 2
        return RankingFigures(swaps=len(pairs), swaps_seen=seen.sum().item())

    def save_state(self, state: StateTree) -> None:
        """Add what going on needs to a checkpoint, also from the middle of a round.

        The samples of the round's validation are not in it: the policy writes the same ones again.
        """
        state.put("reward/weights", dict(self.reward.model.state_dict()))
        progress: dict[str, Any] = {"rounds_done": self.rounds_done, "steps_done": self.steps_done}
        progress |= {"last_figures": self.last_figures, "stepper": self.stepper.state(), "round": None}
        if self._round is not None:
            current = self._round
            figures = vars(current.since_log)
            progress["round"] = {"steps": current.steps, "chosen": current.chosen, "since_log": figures}
            state.put("reward/optimizer", *optimizer_state(current.optimizer))
            state.put("reward/plateau", *current.plateau.state())
        state.put("reward/progress", {}, progress)

    def load_state(self, state: StateTree) -> None:
        """Undo `save_state`."""
        self.reward.model.load_state_dict(state.get("reward/weights")[0])
        values = state.get("reward/progress")[1]
        self.rounds_done, self.steps_done = values["rounds_done"], values["steps_done"]
        self.last_figures = values["last_figures"]
        self.stepper.load_state(values["stepper"])
        self._round = None
        if values["round"] is not None:
            current = self._begin_round()
            load_optimizer_state(current.optimizer, *state.get("reward/optimizer"))
            current.plateau.load_state(*state.get("reward/plateau"))
            current.steps, current.chosen = values["round"]["steps"], values["round"]["chosen"]
            current.since_log = RankingFigures(**values["round"]["since_log"])
            self._round = current


@dataclass
class _Round:
    """The state of a round under way.

    Attributes:
        optimizer, plateau: of the round.
        steps: optimizer steps done.
        chosen: the validation figures of the best weights so far.
        since_log: figures since the last log line.
    """

    optimizer: torch.optim.Optimizer
    plateau: Plateau
    steps: int = 0
    chosen: dict[str, float] = field(default_factory=dict)
    since_log: RankingFigures = field(default_factory=RankingFigures)
