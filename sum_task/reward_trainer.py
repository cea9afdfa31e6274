"""Learns token rewards from ranked summaries: one round = a policy held still, a reward model fitted to its samples.

A step takes ranked summaries (`sum_task.ranked_summaries`) and their loss (`sum_task.reward_loss`).
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from common.errors import UserError
from common.language_models.evaluation_mode import evaluation_mode
from common.training.checkpoint import StateTree, load_optimizer_state, optimizer_state
from common.training.engine import Engine
from common.training.plateau import Plateau
from common.training.progress import Progress, Rate
from common.training.random_keys import Key, Purpose, keyed_generator, seed_global
from common.training.ranking_figures import RankingFigures, in_words, ratio
from common.training.stepper import Stepper
from common.training.tracking import MetricsLog
from common.transfers import fetch
from sum_task.batching import TokenizedRows, shuffled_batches
from sum_task.policy import SummaryPolicy
from sum_task.preferences import Preference
from sum_task.ranked_summaries import RankedSummaries, SummaryRanker
from sum_task.reward_loss import RewardLoss
from sum_task.reward_model import SummaryRewardModel
from sum_task.settings import RewardSettings

logger = logging.getLogger(__name__)


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
        self.ranker = SummaryRanker(policy, preference, settings, engine)
        self.loss = RewardLoss(reward, settings, engine)
        self.train = train
        self.validation = validation
        self.settings = settings
        self.engine = engine
        self.log = log
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

    def run_round(self, after_step: Callable[[], None] = lambda: None) -> None:
        """One round: warm weights, fresh optimizer; ends with the weights that were best in validation.

        `after_step` is called after each step but the last; state taken there lets `run_round` go on from it.
        """
        current = self._round = self._round or self._begin_round()
        # The policy stands still during a round, so one sample serves all its validations.
        validation = self._validation_sets(Purpose.VALIDATION_SAMPLES, self.rounds_done)
        for held_out in validation:
            held_out.swaps = self.ranker.swaps(held_out.batch, self._swap_noise[held_out.batch.indices])
        batches, accumulate = self._round_batches(), self.settings.rew_gradient_accumulation_steps
        ranked = self.ranked_from(batches, current.steps * accumulate)
        evaluate_at, rate = self._validation_steps(), Rate(current.steps)
        title = f"reward learning, round {self.rounds_done}"
        with Progress(self.steps_per_round, title, initial=current.steps) as bar:
            while current.steps < self.steps_per_round and not current.plateau.should_stop:
                step = current.steps + 1
                sizes = [len(rows) for rows in batches[(step - 1) * accumulate : step * accumulate]]
                figures, norm = self._step(list(itertools.islice(ranked, len(sizes))), sum(sizes), step)
                current.since_log += figures
                current.steps = step
                self.steps_done += 1
                bar.update(1, loss=f"{ratio(figures.loss, figures.sets):.3f}")
                if step in evaluate_at or step % self.settings.log_every == 0:
                    values = self._means(current, norm, rate.steps_per_second(step))
                    if step in evaluate_at:
                        with rate.paused():
                            values |= self._validated(current, validation)
                    self.log.log("reward", self.rounds_done, step, **values)
                if step < self.steps_per_round and not current.plateau.should_stop:
                    after_step()
        if not current.plateau.restore_best():
            logger.warning("no validation of the reward model gave a number; its last weights are used")
        self.last_figures = current.chosen
        self.reward.model.eval()
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

    def ranked_from(self, batches: Sequence[list[int]], first: int) -> Iterator[RankedSummaries | None]:
        """Ranked summaries of the round's batches from number `first` on; see `SummaryRanker.in_turn`."""
        accumulate = self.settings.rew_gradient_accumulation_steps
        keys: list[Key] = [
            (Purpose.REWARD_SAMPLES, self.settings.seed, self.rounds_done, n // accumulate + 1, n % accumulate)
            for n in range(len(batches))
        ]
        return self.ranker.in_turn(self.train, batches, keys, first)

    def _validation_steps(self) -> set[int]:
        """Steps of a round after which it is validated, at most after every one, and at its end."""
        period = max(self.settings.rew_eval_period, 1 / self.steps_per_epoch)
        count = math.ceil(self.settings.rew_num_train_epochs / period)
        return {round(k * period * self.steps_per_epoch) for k in range(1, count + 1)} | {self.steps_per_round}

    def _validation_sets(self, purpose: Purpose, round_or_step: int) -> list[RankedSummaries]:
        return self.ranker.validation_sets(self.validation, self._batch_size, purpose, round_or_step)

    def agreement(self, step: int) -> dict[str, float]:
        """How far the reward orders fresh summaries of the policy as it is after `step` as the preference does.

        Articles are those by which a round validates; the summaries are sampled anew at each step.
        """
        figures = self._validate(self._validation_sets(Purpose.AGREEMENT_SAMPLES, step))
        return {"eval/guidance_agreement": figures["reward/dev_rank_accuracy"]}

    def _means(self, current: "_Round", norm: float, rate: float) -> dict[str, float]:
        """Figures of the steps since the last log line."""
        sums, current.since_log = current.since_log, RankingFigures()
        steps, current.logged = current.steps - current.logged, current.steps
        values = sums.means()
        if math.isnan(values["reward/rank_accuracy"]):
            logger.warning(
                "reward learning, round %d, step %d: in no ranking set were two preferences different (the policy "
                "writes one summary an article, or the preference gives equal scores), so there was nothing to learn",
                self.rounds_done, current.steps,
            )  # fmt: skip
        return values | {
            "reward/gradient_norm": norm,
            "reward/skipped_steps": self.stepper.skipped,
            "reward/learning_rate": current.plateau.learning_rate,
            "perf/reward_steps_per_second": rate,
            "perf/sampled_tokens_per_second": rate * sums.sampled_tokens / steps,
        }

    def _validated(self, current: "_Round", validation: list[RankedSummaries]) -> dict[str, float]:
        """Figures on held-out summaries, of which rate, early stopping and best weights take note."""
        found = self._validate(validation)
        logger.info("reward learning, round %d, step %d: %s", self.rounds_done, current.steps, in_words(found))
        if current.plateau.update(found["reward/dev_loss"], current.steps):
            current.chosen = found
        return found

    def _step(
        self, batches: Sequence[RankedSummaries | None], sets_in_step: int, step: int
    ) -> tuple[RankingFigures, float]:
        """One optimizer step over some batches, which hold so many ranking sets in all processes.

        Returns the figures of all processes and the gradient norm.
        """
        scored = []
        self.reward.model.train()
        for number, ranked in enumerate(batches):
            if ranked is None:
                continue
            where = (self.rounds_done, step, number, self.engine.rank)
            seed_global(Purpose.REWARD_DROPOUT, self.settings.seed, *where)
            scored.append(self.loss(ranked))
            self.stepper.backward(scored[-1].tensors[0] * (len(ranked.preferences) / sets_in_step))
        norm, fetched = self.stepper.step(*(tensor for part in scored for tensor in part.tensors))
        self.reward.model.eval()
        figures = self.loss.figures(scored, fetched).over(self.engine)
        if not math.isfinite(figures.loss):
            loss = figures.loss / sets_in_step
            raise UserError(f"reward step {step}: the loss is {loss}; a lower rew_learning_rate may help")
        return figures, norm

    @torch.no_grad()
    def _validate(self, validation: Sequence[RankedSummaries]) -> dict[str, float]:
        with evaluation_mode(self.reward.model):
            scored = [self.loss(ranked) for ranked in validation]
            found = (self.loss.swaps_seen(ranked) for ranked in validation)
            seen = [answers for answers in found if answers is not None]
        fetched = fetch(*(tensor for part in scored for tensor in part.tensors), *seen)
        figures = self.loss.figures(scored, fetched)
        for answers in fetched[3 * len(scored) :]:
            figures += RankingFigures(swaps=len(answers), swaps_seen=answers.sum().item())
        return figures.over(self.engine).held_out()

    def save_state(self, state: StateTree) -> None:
        """Add what going on needs to a checkpoint, also from the middle of a round.

        The samples of the round's validation are not in it: the policy writes the same ones again.
        """
        state.put("reward/weights", dict(self.reward.model.state_dict()))
        progress: dict[str, Any] = {"rounds_done": self.rounds_done, "steps_done": self.steps_done}
        progress |= {"last_figures": self.last_figures, "stepper": self.stepper.state(), "round": None}
        if self._round is not None:
            current = self._round
            numbers = {name: getattr(current, name) for name in ("steps", "logged", "chosen")}
            progress["round"] = numbers | {"since_log": vars(current.since_log)}
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
            current = self._round = self._begin_round()
            load_optimizer_state(current.optimizer, *state.get("reward/optimizer"))
            current.plateau.load_state(*state.get("reward/plateau"))
            for name, value in values["round"].items():
                setattr(current, name, RankingFigures(**value) if name == "since_log" else value)


@dataclass
class _Round:
    """The state of a round under way.

    Attributes:
        optimizer, plateau: of the round.
        steps: optimizer steps done.
        logged: those of them before the last log line.
        chosen: the validation figures of the best weights so far.
        since_log: figures since the last log line.
    """

    optimizer: torch.optim.Optimizer
    plateau: Plateau
    steps: int = 0
    logged: int = 0
    chosen: dict[str, float] = field(default_factory=dict)
    since_log: RankingFigures = field(default_factory=RankingFigures)
