"""Learns token rewards from ranked prompts: one round = a policy held still, a reward model fitted to its prompts.

A step samples prompts, scores them with the task LM, draws ranking sets from them, aggregates the token rewards of
each prompt to a score and takes the ListMLE loss against the ranking.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from common.aggregation import aggregate_token_rewards
from common.grounding_loss import list_mle_loss, ordered_pairs
from common.reporting.intervals import Answers
from common.token_reward_model import TokenRewardModel
from common.training.checkpoint import StateTree, load_optimizer_state, optimizer_state
from common.training.engine import Engine
from common.training.plateau import Plateau
from common.training.progress import Progress, Rate
from common.training.random_keys import Purpose, seed_global
from common.training.ranking_figures import RankingFigures, in_words
from common.training.runtime import Runtime
from common.training.stepper import Stepper
from common.training.tracking import MetricsLog
from common.transfers import fetch, upload
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_rewards import highest, learned_scores, prompt_token_rewards
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.ranked_prompts import PromptRanker, RankedPrompts, SwappedPrompts
from prompt_task.settings import RewardSettings

logger = logging.getLogger(__name__)


class RewardTrainer:
    """Fits the token reward model to the preference over what the policy writes now."""

    def __init__(
        self,
        reward_model: TokenRewardModel,
        policy: PromptPolicy,
        train_scorer: PromptScorer,
        dev_scorer: PromptScorer,
        settings: RewardSettings,
        runtime: Runtime,
        engine: Engine,
        log: MetricsLog,
    ):
        self.reward_model = reward_model
        self.policy = policy
        self.train_scorer = train_scorer
        self.dev_scorer = dev_scorer
        self.settings = settings
        self.engine = engine
        self.log = log
        self.generator = runtime.generator(Purpose.PROMPT_REWARD_STREAM)
        self.ranker = PromptRanker(policy, settings, engine, self.generator)
        self.pool: torch.Tensor | None = None  # (P, T) prompts of all rounds so far, with `reward_pool_size`
        self.rounds_done = 0
        self.steps_done = 0  # optimizer steps over all rounds
        self.last_figures: dict[str, float] = {}  # on dev, of the weights that the last round chose
        self.steps_per_epoch = settings.rew_max_train_steps // settings.rew_num_train_epochs
        self.stepper = Stepper("reward", settings.clip_norm, engine, alike=True)
        self._round: _Round | None = None
        self._rate = Rate()

    def run_round(
        self, after_step: Callable[[], None] = lambda: None, stop_requested: Callable[[], bool] = lambda: False
    ) -> None:
        """One round: warm weights, fresh optimizer; ends with the best weights on dev in the model.

        `after_step` is called after each step but the last; state taken there lets `run_round` go on from it. It is
        also called, the round not begun, if `stop_requested` while the prompts of the round were being scored.
        """
        settings = self.settings
        current = self._round or self._begin_round(stop_requested)
        if current is None:
            return after_step()
        total = settings.rew_num_train_epochs * self.steps_per_epoch
        done = current.epochs_done * self.steps_per_epoch + current.steps
        title = f"reward learning, round {self.rounds_done}"
        self._rate = Rate(self.steps_done)
        with Progress(total, title, initial=done) as bar:
            while current.epochs_done < settings.rew_num_train_epochs and not current.plateau.should_stop:
                self.reward_model.train()
                while current.steps < self.steps_per_epoch:
                    if current.steps:
                        after_step()
                    bar.update(1, loss=f"{self._step(current):.3f}")
                self._end_epoch(current)
                if current.epochs_done < settings.rew_num_train_epochs and not current.plateau.should_stop:
                    after_step()
        if not current.plateau.restore_best():
            logger.warning("no validation of the reward model gave a number; its last weights are used")
        self.reward_model.eval()
        self.last_figures = current.chosen
        self._round = None
        self.rounds_done += 1

    def _begin_round(self, stop_requested: Callable[[], bool] = lambda: False) -> "_Round | None":
        """Score what serves the whole round. None, with nothing changed but what is known of prompts, if stopped."""
        settings = self.settings
        generator_before = self.generator.get_state()
        optimizer = torch.optim.Adam(self.reward_model.parameters(), lr=settings.rew_learning_rate)
        plateau = Plateau(settings.plateau(higher_is_better=False), optimizer, self.reward_model)
        # The policy stands still during a round, so one sample of its prompts serves every validation of the round:
        # their losses can be compared, and each prompt is scored on dev once.
        validation = []
        for _ in range(settings.rew_validation_batches):
            if not stop_requested():
                validation.append(self.ranker.ranked(self.dev_scorer, None))
        screens = settings.screening > 1 and self.rounds_done > 0  # before the first round the rewards know nothing
        new = self.ranker.pool(self.train_scorer, stop_requested, self.most_promising if screens else None)
        if stop_requested():
            self.generator.set_state(generator_before)
            return None
        if new is not None:
            self.pool = new if self.pool is None else torch.cat([self.pool, new])
            found = self.train_scorer.score(self.policy.texts(new)).score.mean().item()  # which it remembers
            self.log.log("reward", self.rounds_done, 0, **{"reward/pool_preference": found})
        self.stepper.optimizer = optimizer
        swaps = self.ranker.swapped(self.dev_scorer, validation[0].tokens)
        self._round = _Round(optimizer, plateau, validation, swaps, self.pool)
        return self._round

    def most_promising(self, tokens: torch.Tensor, count: int) -> torch.Tensor:
        """Of prompts (N, T) the `count` different ones with the highest learned scores, best first."""
        distinct = torch.unique(tokens, dim=0)
        with self.engine.autocast():
            scores = learned_scores(self.reward_model.eval(), self.policy.source_ids, distinct, self.settings)
        return highest(distinct, scores, count)

    def best_of_pool(self, count: int) -> torch.Tensor:
        """The `count` prompts (M, T) of all pools with the highest train scores, best first."""
        assert self.pool is not None  # see FewShotSettings.check
        distinct = torch.unique(self.pool, dim=0)
        return highest(distinct, self.train_scorer.score(self.policy.texts(distinct)).score, count)

    @torch.no_grad()
    def _swap_figures(self, swaps: SwappedPrompts) -> RankingFigures:
        """How often the token rewards at the swapped place have the order of the preferences of the two prompts."""
        rewards = self._rewards(swaps.tokens.flatten(0, 1)).cpu()
        pairs = rewards.view(swaps.tokens.shape)[:, torch.arange(len(swaps.places)), swaps.places]  # (2, N)
        better = (swaps.preferences[0] - swaps.preferences[1]).sign()
        seen = ((pairs[0] - pairs[1]).sign() * better + 1) / 2
        return RankingFigures(swaps=better.abs().sum().item(), swaps_seen=seen[better != 0].sum().item())

    def _rewards(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token rewards (N, T) of prompts (N, T)."""
        with self.engine.autocast():
            return prompt_token_rewards(self.reward_model, self.policy.source_ids, tokens)

    def _step(self, current: "_Round") -> float:
        """One optimizer step. Returns its loss."""
        settings = self.settings
        step = current.epochs_done * self.steps_per_epoch + current.steps + 1
        batches, parts = [], []
        for number in range(settings.rew_gradient_accumulation_steps):
            seed_global(Purpose.PROMPT_REWARD_DROPOUT, settings.random_seed, self.rounds_done, step, number)
            ranked = self.ranker.ranked(self.train_scorer, current.pool, settings.reward_example_share)
            loss, scores, rewards = self._loss(ranked)
            self.stepper.backward(loss / settings.rew_gradient_accumulation_steps)
            batches.append(ranked)
            parts += [loss, scores, rewards]
        norm, found = self.stepper.step(*parts)
        figures, distinct = RankingFigures(), 0.0
        for number, ranked in enumerate(batches):
            figures += self._figures(ranked, *found[3 * number : 3 * number + 3])
            distinct += len(torch.unique(ranked.tokens, dim=0)) / len(ranked.tokens)
        current.gradient_norms += norm
        current.distinct += distinct / settings.rew_gradient_accumulation_steps
        current.figures += figures
        current.steps += 1
        self.steps_done += 1
        return figures.loss / figures.sets

    def _loss(self, ranked: RankedPrompts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ListMLE loss of the ranking sets, their scores (B, K), and the token rewards (N, T)."""
        rewards = self._rewards(ranked.tokens)
        per_set = rewards[upload(ranked.sets, rewards.device)]  # (B, K, T)
        mask = torch.ones_like(per_set, dtype=torch.bool)
        scores = aggregate_token_rewards(per_set, mask, self.settings.agg_func, self.settings.soft_maxmin_temp)
        preferences = upload(ranked.preferences[ranked.sets], scores.device)
        return list_mle_loss(scores, preferences, generator=self.generator), scores, rewards

    def _figures(
        self, ranked: RankedPrompts, loss: torch.Tensor, scores: torch.Tensor, rewards: torch.Tensor
    ) -> RankingFigures:
        """The sums for the log of what `_loss` gave, on the CPU."""
        all_tokens = torch.ones_like(rewards, dtype=torch.bool)
        preferences = ranked.preferences[ranked.sets]
        bound = self.reward_model.config.bound
        figures = RankingFigures.of(loss, scores, rewards, all_tokens, preferences, bound)
        # A pair of prompts may stand in many sets; what was drawn independently is the prompts.
        by_prompt = torch.zeros(2, len(ranked.tokens))
        for counts, of_set in zip(by_prompt, ordered_pairs(scores, preferences), strict=True):
            counts.index_add_(0, ranked.sets.flatten(), of_set.flatten())
        return figures.of_units(Answers.of(by_prompt[0].tolist(), by_prompt[1].tolist(), units_of_an_answer=2))

    def _end_epoch(self, current: "_Round") -> None:
        figures = current.figures.means()
        figures["reward/gradient_norm"] = current.gradient_norms / current.steps
        figures["reward/distinct_prompts"] = current.distinct / current.steps
        current.restart()
        current.epochs_done += 1
        if math.isnan(figures["reward/rank_accuracy"]):
            logger.warning(
                "reward learning, round %d, epoch %d: in no ranking set were two preferences different (the policy "
                "writes one prompt, or the task LM answers all alike), so there was nothing to learn",
                self.rounds_done, current.epochs_done,
            )  # fmt: skip
        self.reward_model.eval()
        held_out = self._swap_figures(current.swaps)
        with torch.no_grad():
            for ranked in current.validation:
                held_out += self._figures(ranked, *fetch(*self._loss(ranked)))
        figures |= held_out.held_out()
        # All prompts have one length.
        figures = {name: value for name, value in figures.items() if not name.endswith("length_correlation")}
        figures["reward/learning_rate"] = current.plateau.learning_rate
        figures["reward/skipped_steps"] = self.stepper.skipped
        figures["perf/reward_steps_per_second"] = self._rate.steps_per_second(self.steps_done)
        step = current.epochs_done * self.steps_per_epoch
        logger.info("reward learning, round %d, step %d: %s", self.rounds_done, step, in_words(figures))
        if current.plateau.update(figures["reward/dev_loss"], step):
            current.chosen = {name: value for name, value in figures.items() if name.startswith("reward/dev_")}
        self.log.log("reward", self.rounds_done, step, **figures)

    def save_state(self, state: StateTree) -> None:
        """Add everything that going on needs to a checkpoint, also from the middle of a round."""
        state.put("reward/generator", {"state": self.generator.get_state()})
        state.put("reward/pool", {} if self.pool is None else {"tokens": self.pool})
        values: dict[str, Any] = {"rounds_done": self.rounds_done, "steps_done": self.steps_done, "round": None}
        values["stepper"] = self.stepper.state()
        values["last_figures"] = self.last_figures
        if self._round is not None:
            current = self._round
            names = ("epochs_done", "steps", "gradient_norms", "distinct", "chosen")
            values["round"] = {name: getattr(current, name) for name in names} | {"figures": vars(current.figures)}
            state.put("reward/swaps", dict(vars(current.swaps)))
            state.put("reward/optimizer", *optimizer_state(current.optimizer))
            state.put("reward/plateau", *current.plateau.state())
            batches = {f"{i}.{k}": v for i, batch in enumerate(current.validation) for k, v in vars(batch).items()}
            state.put("reward/validation", batches, len(current.validation))
        state.put("reward/progress", {}, values)

    def load_state(self, state: StateTree) -> None:
        """Undo `save_state`."""
        self.generator.set_state(state.get("reward/generator")[0]["state"])
        self.pool = state.get("reward/pool")[0].get("tokens")
        values = state.get("reward/progress")[1]
        self.rounds_done, self.steps_done = values["rounds_done"], values["steps_done"]
        self.stepper.load_state(values["stepper"])
        self.last_figures = values["last_figures"]
        self._round = None
        if values["round"] is None:
            return
        optimizer = torch.optim.Adam(self.reward_model.parameters(), lr=self.settings.rew_learning_rate)
        load_optimizer_state(optimizer, *state.get("reward/optimizer"))
        plateau = Plateau(self.settings.plateau(higher_is_better=False), optimizer, self.reward_model)
        plateau.load_state(*state.get("reward/plateau"))
        batches, count = state.get("reward/validation")
        names = ("tokens", "preferences", "sets")
        validation = [RankedPrompts(*(batches[f"{i}.{name}"] for name in names)) for i in range(count)]
        self.stepper.optimizer = optimizer
        swaps = SwappedPrompts(**state.get("reward/swaps")[0])
        progress = values["round"] | {"figures": RankingFigures(**values["round"]["figures"])}
        self._round = _Round(optimizer, plateau, validation, swaps, self.pool, **progress)


@dataclass
class _Round:
    """The state of a round under way.

    Attributes:
        optimizer, plateau, validation, swaps, pool: of the whole round.
        epochs_done: epochs that are over.
        steps: optimizer steps since.
        figures, gradient_norms, distinct: sums over these steps; the latter two of gradient norms and of the share of
            prompts that no other in their batch equals.
        chosen: figures of the best validation so far.
    """

    optimizer: torch.optim.Optimizer
    plateau: Plateau
    validation: list[RankedPrompts]
    swaps: SwappedPrompts
    pool: torch.Tensor | None
    epochs_done: int = 0
    steps: int = 0
    figures: RankingFigures = field(default_factory=RankingFigures)
    gradient_norms: float = 0.0
    distinct: float = 0.0
    chosen: dict[str, float] = field(default_factory=dict)

    def restart(self) -> None:
        """Begin the sums anew."""
        self.steps, self.figures, self.gradient_norms, self.distinct = 0, RankingFigures(), 0.0, 0.0
