"""Replies of language models: learn token, segment or sequence rewards from a file of preferences.

python chat_task/run_chat.py --train_file=prefs.jsonl --model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct
python chat_task/run_chat.py --config=configs/chat_builtin.yaml
accelerate launch --num_processes=2 chat_task/run_chat.py --train_file=prefs.jsonl
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from chat_task.command_line import read_command
from chat_task.data import Preferences, load_preferences
from chat_task.models import load_reward_model
from chat_task.ranked_sets import encode_sets
from chat_task.report import write_run_report
from chat_task.reward_stage import Found, RewardStage, pairs_count, training_arguments
from chat_task.settings import NEUTRAL, ChatSettings
from common.errors import UserError, run_command
from common.intervals import interval_figures, interval_results
from common.language_models.adapters import check_adapters
from common.language_models.saved import check_saved, few_numbers
from common.reporting.trust import interval_text
from common.text_scores import load_entropy_model, load_lm
from common.token_reward_model import TokenRewardModel
from common.training.files import write_folder_atomic
from common.training.run import Run, RunOptions, open_run
from common.training.run_folder import RunFolder
from common.training.runtime import describe

logger = logging.getLogger("chat_task.run_chat")  # not __name__, which is __main__ for a command


def run(settings: ChatSettings) -> dict[str, Any]:
    """One run: data, model, training, evaluation, files. Returns the content of ``results.json``.

    Raises:
        UserError: for bad input and for what the machine refuses.
        Interrupted: SIGTERM or SIGINT came; what there is to go on from is on the disk.
    """
    check_adapters(settings.models.lora_rank)
    with open_run(run_options(settings)) as run:
        results = run.finished or _learn(run, settings)
        if run.engine.is_main:
            print_summary(run.folder, results)
        return results


def _learn(run: Run, settings: ChatSettings) -> dict[str, Any]:
    arguments = training_arguments(settings.reward, run)
    # Data and models.
    preferences = load_preferences(columns=settings.columns.columns, **vars(settings.data))
    logger.info("%d ranking sets, %d held out", len(preferences.train), len(preferences.validation))
    model, reply_format, reading = load_reward_model(settings.models, settings.text)
    model.config.trained_on = {
        "task": "chat", "dataset": settings.data.dataset_name or settings.data.train_file,
        "granularity": settings.models.granularity, "agg_func": settings.reward.agg_func,
    }  # fmt: skip
    device: Any = run.runtime.device
    model.to(device)
    describe("reward model", model)
    entropy_model = load_entropy_model(reading, model.is_encoder_decoder, run.runtime.device)
    train, validation = (
        encode_sets(sets, reply_format, reading, entropy_model, settings.text.long_rows)
        for sets in (preferences.train, preferences.validation)
    )
    del entropy_model

    run.begin()
    # Reward learning.
    stage = RewardStage(run, settings.reward, model, reply_format, reading, train, validation, arguments)
    before = stage.figures_before()
    run.restore(stage.load_state)
    with run.checkpoints(stage.save_state) as checkpointer:
        stage.train(checkpointer)

    # What it knows of the held-out sets.
    found = stage.evaluate()
    swaps: dict[str, Any] = {"reward_swap_accuracy": None}
    if settings.run.swap_test and settings.models.granularity == "token":
        try:
            lm = load_lm(settings.models.reference_model, model.is_encoder_decoder, run.runtime.device)
            answers = stage.swap_answers(lm)
            swaps = {"reward_swap_accuracy": answers.share}
            swaps |= interval_results(interval_figures("reward/dev_swap", answers), "swap")
        except UserError as error:
            logger.warning("no swap test: %s", error)
    results = _results(settings, stage, preferences, found) | before | run.figures()
    results |= swaps | {"cut": train.counts, "validation_cut": validation.counts}

    def write_files() -> None:
        with write_folder_atomic(run.folder.reward_model) as temporary:
            stage.trainer.save_reward_model(temporary, stage.reading)
        check_saved(
            "reward model", run.folder.reward_model, few_numbers(stage.model),
            lambda: few_numbers(TokenRewardModel.from_pretrained(run.folder.reward_model)),
        )  # fmt: skip
        write_run_report(run.folder, results, found, validation, reply_format, stage.model.config.bound)

    run.finish(results, write_files)
    return results


def run_options(settings: ChatSettings) -> RunOptions:
    """The part of the options that concerns the run as such."""
    options = settings.options()
    return RunOptions.of(
        settings.run,
        task="chat",
        folder=output_folder(settings),
        all=options,
        neutral=NEUTRAL,
        inputs={name: options[name] for name in INPUTS},
        how_to_resume="the same command and --resume",
        checkpoint_path=None,
        trackers=settings.run.report_to,
    )


# The options that name what is read.
INPUTS = (
    "dataset_name", "train_file", "validation_file", "chat_template", "model_name_or_path",
    "reference_model_name_or_path", "rew_checkpoint_path", "agg_func",
)  # fmt: skip


def output_folder(settings: ChatSettings) -> Path:
    """The run's folder; by default named after what distinguishes runs."""
    if settings.run.output_dir is not None:
        return Path(settings.run.output_dir)
    data = settings.data.dataset_name or Path(str(settings.data.train_file)).stem
    name = f"{settings.models.granularity}-{settings.reward.agg_func}-{settings.run.seed}"
    if settings.run.expid is not None:
        name += f"-{settings.run.expid}"
    return Path("outputs", "chat", data.replace("/", "-"), name)


def _results(settings: ChatSettings, stage: RewardStage, preferences: Preferences, found: Found) -> dict[str, Any]:
    """Final figures and counts."""
    return {
        "status": "complete",
        "task": "chat",
        "stage": settings.run.stage,
        "dataset": settings.data.dataset_name or settings.data.train_file,
        "seed": settings.run.seed,
        "granularity": settings.models.granularity,
        "agg_func": settings.reward.agg_func,
        "rew_head": stage.model.config.head,
        "model": settings.models.rew_checkpoint_path or settings.models.model_name_or_path,
        **found.figures,
        "reward_steps": stage.steps_done,
        "train_sets": len(preferences.train),
        "validation_sets": len(preferences.validation),
        "validation_pairs": pairs_count(found.table),
        "bad_rows": len(preferences.bad_rows),
    }


def print_summary(folder: RunFolder, results: dict[str, Any]) -> None:
    """The last lines of a run: what came out and where it lies."""
    print(
        f"\nrank accuracy on {results['validation_pairs']} held-out pairs: {results['reward_rank_accuracy']:.3f} "
        f"({interval_text(results, 'reward_rank') or 'no interval'}; before training "
        f"{results['reward_rank_accuracy_before']:.3f}, by length alone "
        f"{results['reward_length_only_accuracy']:.3f}, chance 0.5)"
    )
    if results["reward_swap_accuracy"] is not None:
        print(
            f"swap accuracy, a token against the LM's likeliest other one: {results['reward_swap_accuracy']:.3f} "
            f"({interval_text(results, 'reward_swap') or 'no interval'})"
        )
    if "span_auc" in results:
        print(
            f"area under the curve of marked errors: {results['span_auc']:.3f} "
            f"(before training {results['span_auc_before']:.3f}, chance 0.5)"
        )
    if results["bad_rows"]:
        print(f"rows left out: {results['bad_rows']}")
    print(f"{results['reward_steps']} steps in {results['wall_seconds']:.0f} s")
    for path in (folder.results, folder.report, folder.reward_model):
        print(f"  {path}")


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    transformers_logging.disable_progress_bar()
    run(read_command(sys.argv[1:] if words is None else words))
    return 0


if __name__ == "__main__":
    run_command(main)
