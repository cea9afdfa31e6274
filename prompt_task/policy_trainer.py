"""Trains the prompt policy with the learned token rewards: REINFORCE + maximum entropy, reward relearnt on the way."""

import logging
import math

import torch

from common.aggregation import aggregate_token_rewards
from common.credit import leave_one_out_by_position
from common.errors import UserError
from common.grounding_loss import rank_accuracy
from common.policy_losses import negative_entropy, reinforce_loss, token_weights
from common.training.checkpoint import StateTree, load_optimizer_state, optimizer_state
from common.training.engine import Engine
from common.training.interruption import Checkpointer
from common.training.plateau import Plateau
from common.training.progress import Progress, Rate
from common.training.random_keys import Purpose
from common.training.runtime import Runtime, random_state, restore_random_state
from common.training.stepper import Stepper
from common.training.tracking import MetricsLog
from common.transfers import upload
from prompt_task.candidates import CandidateTable
from prompt_task.prompt_policy import PromptPolicy, Rollout
from prompt_task.prompt_rewards import prompt_token_rewards
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.reward_trainer import RewardTrainer
from prompt_task.settings import PolicySettings

logger = logging.getLogger(__name__)

SHOWN_TEXTS = 5  # prompts that trackers get at each validation


class PolicyTrainer:
    """Alternates policy steps with rounds of reward learning, validates, and collects candidate prompts."""

    def __init__(
        self,
        policy: PromptPolicy,
        reward_trainer: RewardTrainer,
        train_scorer: PromptScorer,
        dev_scorer: PromptScorer,
        candidates: CandidateTable,
        settings: PolicySettings,
        runtime: Runtime,
        engine: Engine,
        log: MetricsLog,
    ):
        self.policy = policy
        self.reward_trainer = reward_trainer
        self.reward_model = reward_trainer.reward_model
        self.train_scorer = train_scorer
        self.dev_scorer = dev_scorer
        self.candidates = candidates
        self.settings = settings
        self.runtime = runtime
        self.engine = engine
        self.log = log
        self.generator = runtime.generator(Purpose.PROMPT_POLICY_STREAM)
        self.optimizer = torch.optim.Adam(policy.adaptor.parameters(), lr=settings.learning_rate)
        self.stepper = Stepper("policy", settings.clip_norm, engine, self.optimizer, alike=True)
        self.plateau = Plateau(settings.plateau(higher_is_better=True), self.optimizer, policy)
        self.steps_done = 0
        self._rate = Rate()
        self._round_at: int | None = None  # steps done at the last round of reward learning
        # Once training is finished, the best weights are in the policy and its samples among the candidates. A
        # checkpoint has the weights of the last step all the same: a longer run goes on from them.
        self.finished = False
        self._last_weights: dict[str, torch.Tensor] = {}

    @property
    def optimizer_steps(self) -> int:
        """Steps done of both models: what checkpoints are numbered by."""
        return self.steps_done + self.reward_trainer.steps_done

    def train(self, checkpointer: Checkpointer | None = None) -> None:
        """Run to the last step or to early stop, then put the best weights into the policy and add their samples.

        After a checkpoint was loaded it goes on from there, also within a round of reward learning.

        Raises:
            Interrupted: the checkpointer was asked to stop, and has saved the run's state.
        """
        if self.finished:
            return
        settings = self.settings
        checkpointer = checkpointer or Checkpointer()

        self._rate = Rate(self.steps_done)

        def after_step(due: bool = False) -> None:
            checkpointer.after_step(self.optimizer_steps, due)

        if settings.early_stop_eval_period > settings.max_train_steps:
            logger.warning(
                "early_stop_eval_period=%d is more than max_train_steps=%d: the policy is never validated, so the "
                "rate schedule and early stopping cannot act and its last weights are used",
                settings.early_stop_eval_period, settings.max_train_steps,
            )  # fmt: skip
        with Progress(settings.max_train_steps, "policy learning", initial=self.steps_done) as bar:
            while not self._is_over:
                if self._reward_is_due():
                    with bar.paused(), self._rate.paused():
                        self.reward_trainer.run_round(after_step, lambda: checkpointer.stop_requested)
                        if settings.pool_candidates:
                            self.candidates.add(self.reward_trainer.best_of_pool(settings.pool_candidates))
                    self._round_at = self.steps_done
                    after_step(due=checkpointer.periodic)
                step = self.steps_done + 1
                loss = self._step(step)
                self.steps_done = step
                bar.update(1, loss=f"{loss:.3f}")
                if step % settings.early_stop_eval_period == 0:
                    self._validate(step)
                stops_soon = self.plateau.countdown <= 2
                if step % settings.eval_steps == 0 and (stops_soon or step > self._steps_before_end):
                    with self.engine.autocast():
                        greedy = self.policy.greedy()
                    of_the_end = None if stops_soon else step
                    self.candidates.add(greedy.expand(settings.prompt_infer_batch_size, -1), of_the_end)
                if not self._is_over:
                    after_step(due=bool(settings.save_steps) and step % settings.save_steps == 0)
        self._last_weights = {name: w.clone() for name, w in self.policy.adaptor.state_dict().items()}
        stream = self.generator.get_state()
        self.plateau.restore_best()
        last = self._sample(settings.num_final_prompts * settings.screening, self.generator).tokens
        if settings.screening > 1:
            last = self.reward_trainer.most_promising(last, settings.num_final_prompts)
        self.candidates.add(last, of_the_end=0)
        self.generator.set_state(stream)
        self.finished = True
        after_step(due=checkpointer.periodic or bool(settings.save_steps))

    @property
    def _is_over(self) -> bool:
        return self.steps_done >= self.settings.max_train_steps or self.plateau.should_stop

    @property
    def _steps_before_end(self) -> int:
        """Steps before those whose greedy prompts are candidates because they are the last."""
        return max(self.settings.max_train_steps - self.settings.candidate_steps, 0)

    def _reward_is_due(self) -> bool:
        """Before step 1, and every `reward_retrain_period` steps of the first half of all steps, its end included."""
        in_first_half = 2 * self.steps_done <= self.settings.max_train_steps
        return (
            self.steps_done % self.settings.reward_retrain_period == 0
            and in_first_half
            and self._round_at != self.steps_done
        )

    def _sample(self, count: int, generator: torch.Generator, with_logits: bool = False) -> Rollout:
        with self.engine.autocast():
            return self.policy.sample(count, generator, self.settings.top_k, self.settings.top_p, with_logits)

    def _step(self, step: int) -> float:
        settings = self.settings
        rollout = self._sample(settings.num_reinforce_samples, self.generator, with_logits=True)
        assert rollout.logits is not None
        tokens = upload(rollout.tokens, rollout.logits.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)  # every prompt has exactly prompt_length tokens
        with torch.no_grad(), self.engine.autocast():
            rewards = prompt_token_rewards(self.reward_model.eval(), self.policy.source_ids, rollout.tokens)
        weights = token_weights(rewards, mask, settings.token_guidance)
        if settings.reinforce_baseline:
            weights = leave_one_out_by_position(weights, mask, len(weights))
        known = torch.ones(tokens.shape, dtype=torch.bool)  # on the CPU, which then waits for no device to know it
        policy_loss = reinforce_loss(rollout.logits, tokens, weights, known)
        entropy_loss = negative_entropy(rollout.logits, known)
        loss = policy_loss + settings.max_entropy_coeff * entropy_loss
        self.stepper.backward(loss)
        norm, values = self.stepper.step(loss, policy_loss, -entropy_loss, rewards.mean())
        names = ("policy/loss", "policy/reinforce_loss", "policy/entropy", "policy/token_reward")
        figures: dict[str, float] = {name: value.item() for name, value in zip(names, values, strict=True)}
        if not math.isfinite(figures["policy/loss"]):
            raise UserError(f"policy step {step}: the loss is {figures['policy/loss']}; a lower learning_rate may help")
        figures["policy/gradient_norm"] = norm
        figures["policy/skipped_steps"] = self.stepper.skipped
        if step % settings.log_every == 0 or step == 1:
            self._log(step, rollout.tokens, rewards, figures)
        return figures["policy/loss"]

    def _log(self, step: int, tokens: torch.Tensor, rewards: torch.Tensor, figures: dict[str, float]) -> None:
        """One log line; only here are sampled prompts scored, and only so many as reward learning samples."""
        settings = self.settings
        shown = tokens[: settings.prompt_train_batch_size]
        scores = self.train_scorer.score(self.policy.texts(shown))
        # The prompts are fresh ones: the reward model has not been trained on them.
        per_set = rewards[: len(shown)].unsqueeze(0)
        learned = aggregate_token_rewards(
            per_set, torch.ones_like(per_set, dtype=torch.bool), settings.agg_func, settings.soft_maxmin_temp
        )
        agreement = rank_accuracy(learned, scores.score.unsqueeze(0)).item() if len(shown) > 1 else math.nan
        rate = self._rate.steps_per_second(step)
        figures |= {
            "policy/train_score": scores.score.mean().item(),
            "policy/train_accuracy": scores.accuracy.mean().item(),
            "policy/distinct_prompts": len(torch.unique(tokens, dim=0)) / len(tokens),
            "policy/guidance_agreement": agreement,
            "policy/learning_rate": self.plateau.learning_rate,
            "perf/policy_steps_per_second": rate,
            "perf/sequences_per_second": rate * len(tokens),
            "perf/tokens_per_second": rate * tokens.numel(),
            "perf/seconds_left": (settings.max_train_steps - step) / rate,
            "perf/prompts_scored": float(self.train_scorer.prompts_scored + self.dev_scorer.prompts_scored),
        }
        self.log.log("policy", self.reward_trainer.rounds_done - 1, step, **figures)

    def _validate(self, step: int) -> None:
        """Score sampled prompts on dev. The same random numbers each time, so that only the policy differs."""
        settings = self.settings
        generator = self.runtime.generator(Purpose.PROMPT_VALIDATION)
        count = settings.num_validation_prompts * settings.prompt_train_batch_size
        tokens = self._sample(count, generator).tokens
        texts = self.policy.texts(tokens)
        scores = self.dev_scorer.score(texts)
        shown = zip(texts[:SHOWN_TEXTS], scores.accuracy.tolist(), strict=False)
        self.log.texts(step, [{"prompt": repr(text), "dev accuracy": f"{accuracy:.3f}"} for text, accuracy in shown])
        figures = {
            "eval/dev_score": scores.score.mean().item(),
            "eval/dev_accuracy": scores.accuracy.mean().item(),
            "eval/best_dev_score": scores.score.max().item(),
        }
        self.plateau.update(figures["eval/dev_score"], step)
        logger.info("policy step %d: dev score %.2f, accuracy %.3f", step, *list(figures.values())[:2])
        figures["eval/countdown"] = float(self.plateau.countdown)
        self.log.log("eval", self.reward_trainer.rounds_done - 1, step, **figures)

    def save_state(self, state: StateTree) -> None:
        """Add everything that going on needs to a checkpoint."""
        state.put("policy/weights", self._last_weights or dict(self.policy.adaptor.state_dict()))
        state.put("policy/optimizer", *optimizer_state(self.optimizer))
        state.put("policy/stepper", {}, self.stepper.state())
        state.put("policy/plateau", *self.plateau.state())
        state.put("policy/generator", {"state": self.generator.get_state()})
        state.put("policy/candidates", {}, self.candidates.state())
        progress = {name: getattr(self, name) for name in ("steps_done", "finished", "_round_at")}
        state.put("policy/progress", {}, progress)
        state.put("reward_model", dict(self.reward_model.state_dict()))
        self.reward_trainer.save_state(state)
        state.put("scorer/train", *self.train_scorer.state())
        state.put("scorer/dev", *self.dev_scorer.state())
        state.put("random", *random_state())

    def load_state(self, state: StateTree) -> None:
        """Undo `save_state`."""
        self.reward_model.load_state_dict(state.get("reward_model")[0])
        self.reward_trainer.load_state(state)
        self.train_scorer.load_state(*state.get("scorer/train"))
        self.dev_scorer.load_state(*state.get("scorer/dev"))
        self.policy.adaptor.load_state_dict(state.get("policy/weights")[0])
        load_optimizer_state(self.optimizer, *state.get("policy/optimizer"))
        self.stepper.load_state(state.get("policy/stepper")[1])
        self.plateau.load_state(*state.get("policy/plateau"))
        self.generator.set_state(state.get("policy/generator")[0]["state"])
        self.candidates.load_state(state.get("policy/candidates")[1])
        progress = state.get("policy/progress")[1]
        restore_random_state(*state.get("random"))
        for name in ("steps_done", "finished", "_round_at"):
            setattr(self, name, progress[name])
        if self.finished and self._is_over:
            self.plateau.restore_best()
            return
        # A longer run than the one that wrote the checkpoint goes on from its last step.
        self.finished = False
        self.candidates.drop_of_the_end(self._steps_before_end)
        longest, period = self.settings.max_train_steps, self.settings.reward_retrain_period
        due = range(0, min(self.steps_done, longest // 2 + 1), period)
        missed = [step for step in due if step > (self._round_at or 0)]
        if missed:
            logger.warning(
                "rewards are learnt in the first half of all steps: from its start a run of %d steps would have learnt "
                "them after %s steps too; this one goes on without", longest, ", ".join(map(str, missed)),
            )  # fmt: skip
