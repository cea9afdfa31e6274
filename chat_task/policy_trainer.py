"""Policy learning on replies: TRL's GRPO with token rewards, as a stage of a run of this project.

The arms ``token``, ``segment`` and ``sequence`` differ in where rewards are read and in nothing else. Needs the extra
``trl``.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from trl import GRPOConfig

from common.errors import UserError
from common.integrations.trl import BASELINES, SCALES, DenseGRPOTrainer, prompt_tokens
from common.language_models.pretrained import load_pretrained
from common.language_models.saved import check_saved, few_numbers
from common.reply_rewards import ReplyRewards, RewardReading, TokenRewardScorer
from common.reporting.report import Report, TokenRewards, curves_from_metrics
from common.training.checkpoint import StateTree
from common.training.interruption import Checkpointer
from common.training.random_keys import Purpose, seed_global
from common.training.run import Run
from common.training.settings import setting
from common.training.tracking import read_metrics

logger = logging.getLogger(__name__)

Judge = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]

CURVES = (
    ("policy/score", "policy/judge"),
    ("policy/reply_length",),
    "policy/entropy",
    "policy/kl",
    "policy/advantage_rms",
)
TITLES = {
    "policy/score": "Score of the policy's samples",
    "policy/reply_length": "Tokens of a sample",
    "policy/entropy": "Policy entropy (nats a token)",
    "policy/kl": "KL from the start (nats a token)",
    "policy/advantage_rms": "Size of the advantages",
}
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
SHOWN_PROMPTS = 6
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class PolicySettings:
    """How a policy learns from rewards; the same for every granularity.

    Attributes:
        policy_steps: optimizer steps; each writes its own samples.
        prompts_per_step, samples_per_prompt: their product is the samples of a step.
        policy_batch_size: samples that are in the memory of the backward pass at once, in each process.
        max_reply_length: tokens of a sample at most, its end token included.
        policy_learning_rate, policy_warmup_share: AdamW, linear warm-up over that share of the steps, then constant.
        baseline, advantage_scale, policy_loss: see :class:`DenseGRPOTrainer`; names of losses are TRL's.
        kl_coeff: of the divergence from the start; 0 keeps no copy of it.
        temperature: of the samples.
        policy_lora_rank, policy_lora_alpha: of adapters; rank 0 trains all weights.
        gradient_checkpointing: computes activations again in the backward pass.
    """

    policy_steps: int = setting(minimum=1)
    prompts_per_step: int = setting(minimum=1)
    samples_per_prompt: int = setting(minimum=2)
    policy_batch_size: int = setting(minimum=1)
    max_reply_length: int = setting(minimum=1)
    policy_learning_rate: float = setting(above=0)
    policy_warmup_share: float = setting(minimum=0, maximum=1)
    baseline: str = setting(choices=BASELINES)
    advantage_scale: str = setting(choices=SCALES)
    policy_loss: str = setting(choices=("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"))
    kl_coeff: float = setting(minimum=0)
    temperature: float = setting(above=0)
    policy_lora_rank: int = setting(minimum=0)
    policy_lora_alpha: int = setting(minimum=1)
    gradient_checkpointing: bool = setting()

    def accumulation(self, processes: int) -> int:
        """Backward passes of a step.

        Raises:
            UserError: the samples of a step are no multiple of what all processes read at once.
        """
        samples, at_once = self.prompts_per_step * self.samples_per_prompt, self.policy_batch_size * processes
        if samples % at_once:
            raise UserError(
                f"policy_batch_size: {samples} samples of a step (prompts_per_step x samples_per_prompt) are no "
                f"multiple of {self.policy_batch_size} in each of {processes} processes"
            )
        return samples // at_once


@dataclass(frozen=True)
class Replies:
    """The most likely replies of a policy to some prompts, and what they are paid.

    Attributes:
        texts, tokens: of each reply, without special tokens; and its tokens one by one.
        rewards: of those tokens.
        scores: of each reply.
        judged: what the judge gives it, where there is one.
    """

    texts: list[str]
    tokens: list[list[str]]
    rewards: list[list[float]]
    scores: list[float]
    judged: list[float] | None

    def figures(self) -> dict[str, float]:
        """Means over the replies."""
        figures = {
            "score": sum(self.scores) / len(self.scores),
            "reply_length": sum(map(len, self.tokens)) / len(self.tokens),
        }
        return figures if self.judged is None else figures | {"judge": sum(self.judged) / len(self.judged)}


def load_rewards(folder: str | Path, granularity: str, policy_tokenizer: Any) -> ReplyRewards:
    """A saved reward model as what replies are paid by.

    Args:
        folder: of the reward model; its reading lies beside it.
        granularity: what the run asks for; that of the reward model has to be the same.
        policy_tokenizer: the policy's.

    Raises:
        UserError: it cannot be loaded, has another granularity, or its normaliser was never fitted.
    """
    reading = RewardReading.load(folder)
    if reading.granularity != granularity:
        raise UserError(f"granularity: the reward model '{folder}' is read by {reading.granularity}, not {granularity}")
    if reading.normalizer is None:
        raise UserError(f"the reward model '{folder}' has no fitted normaliser; train it again, or see fit_reading")
    scorer = TokenRewardScorer.from_pretrained(str(folder), policy_tokenizer)
    surprised = None
    if reading.entropy_model is not None and granularity == "segment":
        surprised = load_pretrained(
            AutoModelForCausalLM, reading.entropy_model, complete=True, dtype=torch.float32
        ).eval()
    return ReplyRewards(scorer, reading, surprised)


class PolicyTrainer:
    """Trains a policy within a run. What is left in the run is for its runner to write, see :meth:`save`.

    Args:
        run: which has begun.
        settings: see :class:`PolicySettings`.
        model: the policy, decoder-only.
        tokenizer: its own.
        rewards: what its replies are paid by.
        prompts: to learn on, each text or messages.
        held_out: prompts whose replies are compared before and after.
        judge: scores of replies (prompts, texts) by something else than the rewards, for the figures alone.

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
    ) -> None:
        self._run, self._settings, self._rewards = run, settings, rewards
        self._tokenizer, self._held_out, self._judge = tokenizer, list(held_out), judge
        accumulation = settings.accumulation(run.engine.count)
        if len(prompts) < settings.prompts_per_step:
            raise UserError(f"prompts_per_step: {settings.prompts_per_step}, but there are {len(prompts)} prompts")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        precision = run.options.mixed_precision
        self._checkpoints = run.folder.path / "trl"
        args = GRPOConfig(
            output_dir=str(self._checkpoints),
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
            save_strategy="no",  # checkpoints are the run's, see _RunCallback
            save_total_limit=run.options.keep_checkpoints + 1,
            logging_steps=1,
            report_to="none",
            disable_tqdm=run.options.quiet,
        )
        self.trainer = _Trainer(
            model,
            rewards.scorer,
            reading=rewards.reading,
            entropy_model=rewards.entropy_model,
            baseline=settings.baseline,
            reward_funcs=None if judge is None else _as_reward_function(judge),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
            processing_class=tokenizer,
            peft_config=_adapters(settings),
        )
        self.trainer.remove_callback(PrinterCallback)
        self._resume_from: Path | None = None
        self.before: Replies | None = None
        self.after: Replies | None = None

    @property
    def steps_done(self) -> int:
        return self.trainer.state.global_step

    def save_state(self, state: StateTree) -> None:
        """Write TRL's own checkpoint and note which one it is."""
        self.trainer._save_checkpoint(self.trainer.model, None)
        before = None if self.before is None else vars(self.before)
        state.put("policy", {}, {"steps": self.steps_done, "before": before})

    def load_state(self, state: StateTree) -> None:
        """Go on from what :meth:`save_state` noted."""
        _, values = state.get("policy")
        folder = self._checkpoints / f"checkpoint-{values['steps']}"
        if not folder.is_dir():
            raise ValueError(f"'{folder}' is gone")
        self._resume_from, self.before = folder, Replies(**values["before"])

    def train(self, checkpointer: Checkpointer) -> None:
        """Replies before, training, replies after.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
        """
        if self.before is None:
            self.before = self.write_replies()
            self._log_replies(self.before)
        self.trainer.add_callback(_RunCallback(self._run, checkpointer))
        self.trainer.train(resume_from_checkpoint=None if self._resume_from is None else str(self._resume_from))
        self.after = self.write_replies()
        self._log_replies(self.after)

    @torch.no_grad()
    def write_replies(self) -> Replies:
        """The most likely replies to the held-out prompts, and what they are paid."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        was_training, device = model.training, self.trainer.accelerator.device
        model.eval()
        ends = self.trainer.eos_token_ids
        tokens, rewards, texts, scores = [], [], [], []
        size = self._settings.policy_batch_size
        for start in range(0, len(self._held_out), size):
            prompt_ids, prompt_mask = (
                part.to(device) for part in prompt_tokens(self._tokenizer, self._held_out[start : start + size])
            )
            whole = model.generate(
                input_ids=prompt_ids, attention_mask=prompt_mask, do_sample=False, eos_token_id=ends,
                max_new_tokens=self._settings.max_reply_length, pad_token_id=self._tokenizer.pad_token_id,
            )  # fmt: skip
            ids = whole[:, prompt_ids.shape[1] :]
            ended = torch.isin(ids, torch.tensor(ends, device=device)).long()
            mask = (ended.cumsum(-1) - ended == 0).long()  # up to the first end token, with it
            paid = self._rewards(prompt_ids, ids, (prompt_mask, mask), ends)
            scores += paid.scores.tolist()
            for row_ids, row_rewards, row_mask in zip(ids, paid.rewards, mask.bool(), strict=True):
                reply = row_ids[row_mask].tolist()
                tokens.append([self._tokenizer.decode([token]) for token in reply])
                rewards.append(row_rewards[row_mask].tolist())
                texts.append(self._tokenizer.decode(reply, skip_special_tokens=True))
        model.train(was_training)
        judged = None if self._judge is None else [float(value) for value in self._judge(self._held_out, texts)]
        return Replies(texts, tokens, rewards, scores, judged)

    def results(self) -> dict[str, Any]:
        """What ``results.json`` says of this stage."""
        assert self.before is not None and self.after is not None  # after `train`
        samples = self._settings.prompts_per_step * self._settings.samples_per_prompt
        return {
            "granularity": self._rewards.reading.granularity,
            "policy_steps": self.steps_done,
            "rollouts": self.steps_done * samples,
            "held_out_prompts": len(self._held_out),
            "before": self.before.figures(),
            "after": self.after.figures(),
        }

    def save(self, folder: Path) -> None:
        """The policy, adapters merged into it, and its tokenizer; the policy is loaded again and compared.

        Raises:
            UserError: what was saved is not what was trained.
        """
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
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

    def add_to_report(self, report: Report) -> None:
        """Curves of this stage, and replies before and after, coloured by what their tokens are paid."""
        assert self.before is not None and self.after is not None  # after `train`
        report.add_curves(
            "Policy learning", curves_from_metrics(read_metrics(self._run.folder.metrics), CURVES, TITLES)
        )
        rows = []
        for number, prompt in enumerate(self._held_out[:SHOWN_PROMPTS]):
            for name, replies in (("before", self.before), ("after", self.after)):
                columns: dict[str, Any] = {"prompt": _excerpt(prompt), "score": replies.scores[number]}
                if replies.judged is not None:
                    columns["judge"] = replies.judged[number]
                rows.append(TokenRewards(replies.tokens[number], replies.rewards[number], name, columns))
        report.add_token_rewards(
            "Replies before and after", rows, note="The most likely reply to each held-out prompt, coloured by what "
            "each token is paid: normalised, that of a segment divided over its tokens.",
        )  # fmt: skip

    def _log_replies(self, replies: Replies) -> None:
        figures = {f"eval/{name}": value for name, value in replies.figures().items()}
        self._run.log.log("eval", 0, self.steps_done, **figures)


class _Trainer(DenseGRPOTrainer):
    def store_flos(self) -> None:
        """Nothing: it would wait for all processes, and the main one alone writes a run's checkpoints."""


class _RunCallback(TrainerCallback):
    """TRL's steps as those of a run: its log, its checkpoints, its signals."""

    def __init__(self, run: Run, checkpointer: Checkpointer) -> None:
        self._run, self._checkpointer = run, checkpointer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Not at the end of the step before, whose figures are logged after it.
        if state.global_step:
            self._checkpointer.after_step(state.global_step)
        # Samples that are named need no state of any process in the checkpoint.
        words = self._run.options.seed, state.global_step, self._run.engine.rank
        seed_global(Purpose.REPLY_SAMPLES, *words)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        found = {name: logs[theirs] for name, theirs in LOGGED.items() if logs and logs.get(theirs) is not None}
        if found:
            self._run.log.log("policy", 0, state.global_step, **found)


def _as_reward_function(judge: Judge) -> Callable[..., list[float]]:
    """The judge as TRL logs it, beside the rewards that train."""

    def function(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        texts = [item if isinstance(item, str) else item[-1]["content"] for item in completions]
        return [float(value) for value in judge(prompts, texts)]

    function.__name__ = "judge"
    return function


def _adapters(settings: PolicySettings) -> Any:
    if settings.policy_lora_rank == 0:
        return None
    from peft import LoraConfig  # slow to import

    options: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(r=settings.policy_lora_rank, lora_alpha=settings.policy_lora_alpha, **options)


def _excerpt(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return text if len(text) <= SHOWN_CHARACTERS else "\N{HORIZONTAL ELLIPSIS}" + text[-SHOWN_CHARACTERS:]
