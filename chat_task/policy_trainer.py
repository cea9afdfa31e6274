"""Policy learning on replies: TRL's GRPO with token rewards, as a stage of a run of this project.

The arms ``token``, ``segment`` and ``sequence`` differ in where rewards are read and in nothing else. Needs the extra
``trl``.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from chat_task.judges import Judge
from chat_task.settings import PolicySettings
from chat_task.trainer_in_run import RunCallback, TrainerInRun, TrainerStage
from chat_task.written_replies import Replies, write_replies
from common.errors import UserError
from common.integrations.trl import DenseGRPOTrainer
from common.language_models.pretrained import load_pretrained
from common.language_models.saved import check_saved, few_numbers
from common.reply_rewards import ReplyRewards
from common.reporting.win_rate import win_rate_figures
from common.training.checkpoint import StateTree
from common.training.files import json_text
from common.training.interruption import Checkpointer
from common.training.random_keys import Purpose
from common.training.run import Run

SHOWN_TEXTS = 3  # replies that trackers get before and after
LAST_STEPS = 20  # whose samples results.json has the mean of

# What TRL calls what is logged here.
LOGGED = {
    "policy/loss": "loss",
    "policy/learning_rate": "learning_rate",
    "policy/gradient_norm": "grad_norm",
    "policy/score": "dense/score",
    "policy/score_std": "dense/score_std",
    "policy/advantage_rms": "dense/advantage_rms",
    "policy/judge": "rewards/judge/mean",
    "policy/entropy": "entropy",
    "policy/kl": "kl",
    "policy/reply_length": "completions/mean_length",
    "policy/cut_share": "completions/clipped_ratio",
}


class PolicyTrainer(TrainerStage):
    """Trains a policy within a run. What is left in the run is for its runner to write, see :meth:`save`.

    Args:
        run: which has begun.
        settings: see :class:`PolicySettings`.
        model: the policy, decoder-only.
        tokenizer: its own.
        rewards: what its replies are paid by.
        prompts: to learn on, each text or messages.
        held_out: prompts whose replies are compared before and after.
        judge: see there.
        learned: what results.json says of the stage before, if there was one; a checkpoint keeps it.

    Raises:
        UserError: settings that do not fit together; fewer prompts than a step needs.
    """

    def __init__(
        self,
        run: Run,
        settings: PolicySettings,
        model: Any,
        tokenizer: Any,
        rewards: ReplyRewards,
        prompts: Sequence[Any],
        held_out: Sequence[Any],
        judge: Judge | None = None,
        learned: dict[str, Any] | None = None,
    ) -> None:
        self._run, self._settings, self._rewards = run, settings, rewards
        self._tokenizer, self._judge, self.learned = tokenizer, judge, learned or {}
        self.held_out = list(held_out)
        accumulation = settings.accumulation(run.engine.count)
        settings.check_prompts(len(prompts))
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        precision = run.options.mixed_precision
        args = GRPOConfig(
            output_dir=str(run.folder.path / "trl"),
            max_steps=settings.policy_steps,
            per_device_train_batch_size=settings.policy_batch_size,
            gradient_accumulation_steps=accumulation,
            num_generations=settings.samples_per_prompt,
            max_completion_length=settings.max_reply_length,
            temperature=settings.temperature,
            learning_rate=settings.policy_learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=round(settings.policy_warmup_share * settings.policy_steps),
            scale_rewards=settings.advantage_scale,
            loss_type=settings.policy_loss,
            beta=settings.kl_coeff,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            gradient_checkpointing=settings.gradient_checkpointing,
            seed=run.options.seed % 2**32,
            use_cpu=run.runtime.device.type == "cpu",
            save_strategy="no",  # checkpoints are the run's, see RunCallback
            save_total_limit=run.options.keep_checkpoints + 1,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,  # progress is shown as in all runs
        )
        trainer = _Trainer(
            model,
            rewards.scorer,
            reading=rewards.reading,
            entropy_model=rewards.entropy_model,
            baseline=settings.baseline,
            discount=settings.discount,
            reward_funcs=None if judge is None else _as_reward_function(judge),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            processing_class=tokenizer,
            peft_config=_adapters(settings),
        )
        trainer.reply_rewards = rewards  # itself, which may be more than a scorer and a reading
        super().__init__("policy", trainer)
        self.before: Replies | None = None
        self.after: Replies | None = None

    def state_values(self) -> dict[str, Any]:
        """See there."""
        before = None if self.before is None else vars(self.before)
        return {"before": before, "held_out": json_text(self.held_out), "learned": self.learned}

    def load_state(self, state: StateTree) -> None:
        """See there."""
        _, values = state.get("policy")
        if values.get("held_out") != json_text(self.held_out):
            raise UserError(
                "the checkpoint has replies to other held-out prompts (policy_eval_prompts, data, seed), or is of a "
                "version that did not note which; start anew"
            )
        super().load_state(state)
        self.before, self.learned = Replies(**values["before"]), values["learned"]

    def train(self, checkpointer: Checkpointer) -> None:
        """Replies before, training, replies after.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
        """
        if self.before is None:
            self.before = self._write_replies()
        steps_before = self.learned.get("reward_steps", 0)
        self.take_steps(RunCallback(self._run, checkpointer, "policy", LOGGED, Purpose.REPLY_SAMPLES, steps_before))
        self.after = self._write_replies()

    def _write_replies(self) -> Replies:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        settings = self._settings
        replies = write_replies(
            model, self._tokenizer, self.held_out, self._rewards, self.trainer.eos_token_ids,
            settings.max_reply_length, settings.policy_batch_size, self._judge,
        )  # fmt: skip
        figures = {f"eval/{name}": value for name, value in replies.figures().items()}
        self._run.log.log("eval", 0, self.steps_done, **figures)
        shown = zip(self.held_out[:SHOWN_TEXTS], replies.texts, replies.scores, strict=False)
        rows = [{"prompt": prompt, "reply": text, "score": f"{score:.3f}"} for prompt, text, score in shown]
        self._run.log.texts(self.steps_done, rows)
        return replies

    def results(self) -> dict[str, Any]:
        """What ``results.json`` says of this stage."""
        assert self.before is not None and self.after is not None  # after `train`
        samples = self._settings.prompts_per_step * self._settings.samples_per_prompt
        figures: dict[str, Any] = {
            "policy_steps": self.steps_done,
            "rollouts": self.steps_done * samples,
            "held_out_prompts": len(self.held_out),
        }
        for when, replies in (("before", self.before), ("after", self.after)):
            figures |= {f"policy_{name}_{when}": value for name, value in replies.figures().items()}
        for name in ("score", "judge"):
            logged = LOGGED[f"policy/{name}"]
            of_steps = [entry[logged] for entry in self.trainer.state.log_history if logged in entry][-LAST_STEPS:]
            if of_steps:
                figures[f"policy_samples_{name}"] = sum(of_steps) / len(of_steps)
        if self.before.judged is not None and self.after.judged is not None:
            # A reply that is the same again is a tie, whatever padding it was read with.
            pairs = zip(self.after.ids, self.before.ids, self.after.judged, self.before.judged, strict=True)
            judged = [earlier if ids == same else score for ids, same, score, earlier in pairs]
            lengths = ([len(ids) for ids in replies.ids] for replies in (self.after, self.before))
            if all(map(math.isfinite, [*judged, *self.before.judged])):
                rates = win_rate_figures(judged, self.before.judged, *lengths)
                figures |= {f"policy_{name}": value for name, value in rates.items()}
        return figures

    def save(self, folder: Path) -> None:
        """The policy, adapters merged into it, and its tokenizer; the policy is loaded again and compared.

        Raises:
            UserError: what was saved is not what was trained.
        """
        model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_fp32_wrapper=False)
        has_adapters = self._settings.policy_lora_rank > 0
        trained = few_numbers(model.get_base_model() if has_adapters else model)
        if has_adapters:
            model = model.merge_and_unload()
        model.save_pretrained(folder)
        self._tokenizer.save_pretrained(folder)

        def load() -> Tensor:
            saved = load_pretrained(AutoModelForCausalLM, str(folder), complete=True, dtype=model.dtype)
            return few_numbers(saved.to(model.device))

        check_saved("policy", folder, trained, load)


class _Trainer(TrainerInRun, DenseGRPOTrainer):
    pass


def _as_reward_function(judge: Judge) -> Callable[..., list[float]]:
    """The judge as TRL logs it, beside the rewards that train."""

    def function(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        texts = [item if isinstance(item, str) else item[-1]["content"] for item in completions]
        return [float(value) for value in judge(prompts, texts, completion_ids)]

    function.__name__ = "judge"
    return function


def _adapters(settings: PolicySettings) -> Any:
    if settings.policy_lora_rank == 0:
        return None
    from peft import LoraConfig  # slow to import

    options: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(r=settings.policy_lora_rank, lora_alpha=settings.policy_lora_alpha, **options)
