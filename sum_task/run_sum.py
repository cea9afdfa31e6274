"""Summarization: learn token rewards from ranked summaries, train a policy with them, test its summaries.

python sum_task/run_sum.py --dataset_name=xsum --seed=0
python sum_task/run_sum.py --config=configs/sum_builtin.yaml --seed=1
accelerate launch --num_processes=2 sum_task/run_sum.py --dataset_name=xsum
"""

from common.training.program import run_command

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from common.cpu import use_kernels
from common.language_models.adapters import add_adapters, check_adapters
from common.language_models.pretrained import enable_checkpointing
from common.training.capacity import check_memory
from common.training.command_line import read_yaml
from common.training.engine import Engine
from common.training.launcher import honour_launcher
from common.training.run import Run, open_run
from common.training.run_options import RunOptions
from common.training.runtime import describe
from sum_task.batching import TokenizedRows
from sum_task.command_line import DEFAULTS, read_command
from sum_task.data import Splits, load_splits
from sum_task.evaluate_library import load_metrics
from sum_task.evaluation_metrics import check_available, metric_files
from sum_task.loading import load_policy, load_reward_model
from sum_task.policy_trainer import PolicyTrainer
from sum_task.preferences import make_preference
from sum_task.report import write_run_report
from sum_task.results import best_policy_folder, final_results, print_summary, save_models, write_predictions
from sum_task.reward_trainer import RewardTrainer
from sum_task.rouge import note_other_letters
from sum_task.settings import NEUTRAL, RewardSettings, SummarizationSettings, TextSettings
from sum_task.summary_evaluation import (
    COMPARED_ROWS,
    evaluate,
    first_means,
    without_training,
)
from sum_task.tokenizing import tokenize

SHOWN_TEXTS = 3  # summaries that trackers get at each validation

logger = logging.getLogger("sum_task.run_sum")  # not __name__, which is __main__ for a command


def run(settings: SummarizationSettings) -> dict[str, Any]:
    """One run: data, models, training, test, files. Returns the content of ``results.json``.

    Raises:
        UserError: for bad input and for what the machine refuses.
        Interrupted: SIGTERM or SIGINT came; what there is to go on from is on the disk.
    """
    settings = honour_launcher(settings, read_yaml(DEFAULTS))
    check_available(bertscore=settings.evaluation.bertscore)
    check_adapters(settings.models.lora_rank)
    use_kernels(settings.run.cpu_kernels)
    with open_run(run_options(settings)) as run:
        results = run.finished or _train_and_test(run, settings)
        if run.engine.is_main:
            print_summary(run.folder, results)
        return results


def _train_and_test(run: Run, settings: SummarizationSettings) -> dict[str, Any]:
    engine = run.engine

    # Data and models.
    splits = load_splits(**vars(settings.data))
    logger.info(
        "%s: %d train, %d validation, %d test rows, left out %s",
        settings.data.dataset_name or settings.data.train_file, len(splits.train), len(splits.validation),
        len(splits.test), splits.left_out,
    )  # fmt: skip
    rows = settings.policy.per_device_train_batch_size * settings.policy.gradient_accumulation_steps * engine.count
    settings.policy.check_rows(min(rows, len(splits.train)))
    note_other_letters([row.reference for row in (splits.test or splits.validation)], settings.evaluation.rouge_words)
    preference, metrics = (
        make_preference(settings.reward.preference, settings.evaluation.rouge_words),
        load_metrics(settings.evaluation.eval_metrics),
    )
    policy = load_policy(settings.models, settings.text, settings.evaluation)
    reward = load_reward_model(settings.models, settings.text, policy) if settings.policy.uses_rewards else None
    if reward is not None:
        reward.model.config.trained_on = {
            "task": "summary", "dataset": settings.data.dataset_name or settings.data.train_file,
            "preference": settings.reward.preference, "agg_func": settings.reward.agg_func,
        }  # fmt: skip
        if settings.policy.needs_expectation:
            reward.check_expectations()
    for model in [policy.lm] + ([reward.model.backbone] if reward is not None else []):
        add_adapters(model, settings.models.lora_rank, settings.models.lora_alpha)
        if settings.models.gradient_checkpointing:
            enable_checkpointing(model)
    rows = max(len(splits.train), len(splits.validation), len(splits.test))
    check_memory(settings.tables(policy.lm.config.vocab_size, rows), run.runtime.device)
    policy.to(run.runtime.device)
    describe("policy", policy.lm)
    if reward is not None:
        reward.to(run.runtime.device)
        describe("reward model", reward.model)
    train, validation, test = _tokenize_all(splits, policy.format, settings.text, engine)
    tested, tested_on = (test, "test") if len(test) else (validation, "validation")

    run.begin()
    # Before a checkpoint is loaded: of a run that goes on it is the same.
    before = without_training(policy, tested, settings.evaluation, engine, preference)
    # Reward learning and policy learning in turn.
    reward_trainer = None
    if reward is not None:
        _note_periods(settings.reward)
        reward_trainer = RewardTrainer(reward, policy, preference, train, validation, settings.reward, engine, run.log)

    def validate() -> dict[str, float]:
        found = evaluate(policy, validation, settings.evaluation, engine, "validation", preference)
        shown = zip(validation.rows[:SHOWN_TEXTS], found.predictions, strict=False)
        run.log.texts(trainer.steps_done, [{"summary": text, "reference": row.reference} for row, text in shown])
        return {f"eval/{name}": value for name, value in found.means.items()}

    def keep_best() -> None:
        if engine.is_main:
            policy.save_pretrained(best_policy_folder(run.folder))

    trainer = PolicyTrainer(policy, reward_trainer, train, validate, keep_best, settings.policy, engine, run.log)
    if run.restore(trainer.load_state) and not run.same_options:
        trainer.forget_rewards()
    with run.checkpoints(trainer.save_state) as checkpointer:
        trainer.train(checkpointer)

    # The last policy writes the summaries that are reported.
    evaluation = evaluate(
        policy, tested, settings.evaluation, engine, tested_on, preference, settings.evaluation.bertscore, metrics
    )
    results = final_results(settings, trainer, evaluation, tested_on, splits) | before | run.figures()
    results["compared_rows"] = min(COMPARED_ROWS, len(tested))
    if len(tested) > COMPARED_ROWS:
        results |= {f"compared_{name}": mean for name, mean in first_means(evaluation, COMPARED_ROWS).items()}

    def write_files() -> None:
        save_models(run.folder, policy, reward)
        write_predictions(run.folder, tested, evaluation)
        write_run_report(
            run.folder, results, evaluation, tested.rows, reward, policy, settings.policy.expectation_tokens
        )

    run.finish(results, write_files)
    return results


def run_options(settings: SummarizationSettings) -> RunOptions:
    """The part of the options that concerns the run as such."""
    options = settings.options()
    return RunOptions.of(
        settings.run,
        task="sum",
        folder=output_folder(settings),
        all=options,
        neutral=NEUTRAL,
        inputs={name: options[name] for name in INPUTS} | metric_files(options["preference"], *options["eval_metrics"]),
        how_to_resume="the same command and --resume",
        length="num_train_epochs",
        trackers=settings.run.report_to,
    )


# The options that name what is read.
INPUTS = (
    "dataset_name", "train_file", "validation_file", "test_file", "model_name_or_path", "rew_model_name_or_path",
    "config_name", "tokenizer_name", "policy_checkpoint_path", "rew_checkpoint_path", "preference",
    "agg_func", "guidance",
)  # fmt: skip


def output_folder(settings: SummarizationSettings) -> Path:
    """The run's folder; by default named after what distinguishes runs."""
    data = settings.data.dataset_name or Path(str(settings.data.train_file)).stem
    return settings.run.folder("sum", data, f"{settings.policy.guidance}-{settings.reward.agg_func}")


def _tokenize_all(
    splits: Splits, text_format: Any, text: TextSettings, engine: Engine
) -> tuple[TokenizedRows, TokenizedRows, TokenizedRows]:
    def work() -> tuple[TokenizedRows, TokenizedRows, TokenizedRows]:
        overwrite = text.overwrite_cache and engine.is_main
        workers = text.preprocessing_num_workers

        def one(rows: Any, max_target_length: int) -> TokenizedRows:
            return tokenize(rows, text_format, max_target_length, workers, overwrite)

        return (
            one(splits.train, text.max_target_length),
            one(splits.validation, text.eval_target_length),
            one(splits.test, text.eval_target_length),
        )

    done = work() if engine.is_main else None
    engine.gather(None)  # the others find what is cached
    return done or work()


def _note_periods(reward: RewardSettings) -> None:
    if reward.rew_eval_period >= reward.rew_num_train_epochs:
        logger.warning(
            "a round of reward learning (rew_num_train_epochs=%g) is validated at its end alone (rew_eval_period=%g): "
            "lr_decay and early_stop_count cannot act",
            reward.rew_num_train_epochs,
            reward.rew_eval_period,
        )


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    transformers_logging.disable_progress_bar()
    run(read_command(sys.argv[1:] if words is None else words))
    return 0


if __name__ == "__main__":
    run_command(main)
