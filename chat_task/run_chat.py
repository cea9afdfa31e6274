"""Replies of language models: token, segment or sequence rewards from a file of preferences, and a policy by them.

python chat_task/run_chat.py --train_file=prefs.jsonl --model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct
python chat_task/run_chat.py --config=configs/chat_builtin.yaml
python chat_task/run_chat.py --stage=all --config=configs/chat_builtin.yaml
accelerate launch --num_processes=2 chat_task/run_chat.py --train_file=prefs.jsonl
"""

from common.training.program import run_command

import functools
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from chat_task.command_line import DEFAULTS, read_command
from chat_task.data import Preferences, load_preferences, prompt_key
from chat_task.judges import Judge, builtin_errors, load_judge
from chat_task.known_rewards import KnownRewards
from chat_task.models import check_head, check_reading, load_policy, load_reward_model, load_rewards
from chat_task.ranked_sets import encode_sets
from chat_task.ranking_rows import RankingSet
from chat_task.report import write_policy_report, write_reward_report
from chat_task.results import final_results, print_summary
from chat_task.reward_stage import RewardStage, training_arguments
from chat_task.reward_trainer import check_fsdp_version
from chat_task.settings import NEUTRAL, ChatSettings
from chat_task.written_replies import PolicyPrompt, write_predictions
from common.errors import UserError
from common.language_models.adapters import check_adapters, is_in_parts, weights_to_save
from common.language_models.kept_entropies import KeptEntropies
from common.language_models.replies import PLACE, ReplyFormat, Text
from common.language_models.saved import check_saved, few_numbers, weight_sums
from common.language_models.text_scores import load_lm
from common.reply_rewards import ReplyRewards
from common.reporting.intervals import interval_figures, interval_results
from common.token_reward_model import TokenRewardModel
from common.training.capacity import check_memory
from common.training.command_line import read_yaml
from common.training.files import write_folder_atomic
from common.training.launcher import check_wrapped, honour_launcher
from common.training.run import Run, open_run
from common.training.run_options import RunOptions
from common.training.runtime import describe

SETS_TO_TRY = 8  # held-out ranking sets of which a few numbers are made before anything is written
REWARD_PAGE = "reward_report.html"  # of the stage before a policy's, whose page is the run's

logger = logging.getLogger("chat_task.run_chat")  # not __name__, which is __main__ for a command


def run(settings: ChatSettings) -> dict[str, Any]:
    """One run: data, model, training, evaluation, files. Returns the content of ``results.json``.

    Raises:
        UserError: for bad input and for what the machine refuses.
        Interrupted: SIGTERM or SIGINT came; what there is to go on from is on the disk.
    """
    settings = honour_launcher(settings, read_yaml(DEFAULTS), plain_forward=settings.run.stage == "reward")
    check_adapters(settings.models.lora_rank)
    if settings.run.stage != "reward":
        if importlib.util.find_spec("trl") is None:
            raise UserError("stage: learning a policy needs TRL: pip install 'token-guidance[trl]'")
        check_adapters(settings.policy.policy_lora_rank)
        if settings.policy.paid_by == "learned" and settings.run.stage == "policy":
            check_reading(str(settings.models.rew_checkpoint_path), settings.models.granularity)
    with open_run(run_options(settings)) as run:
        results = run.finished or _learn(run, settings)
        if run.engine.is_main:
            print_summary(run.folder, results)
        return results


def _learn(run: Run, settings: ChatSettings) -> dict[str, Any]:
    """The stages that are asked for, one after the other; of those that a checkpoint lies behind, what they found."""
    if settings.run.extend and settings.rate_of_length is not None:
        logger.warning(
            "extend: by %s the learning rate depends on the number of steps; those that were taken had the rates of a "
            "shorter run, and the others get those of the longer one", settings.rate_of_length,
        )  # fmt: skip
    if settings.run.stage != "reward":
        settings.policy.accumulation(run.engine.count)
    check_wrapped(run.engine.accelerator)
    check_fsdp_version(run.engine.accelerator)
    arguments = training_arguments(settings.reward, run)
    preferences = load_preferences(columns=settings.columns.names, **vars(settings.data))
    logger.info("%d ranking sets, %d held out", len(preferences.train), len(preferences.validation))
    policy = None
    if settings.run.stage != "reward":
        model, tokenizer = load_policy(settings)
        check_memory(settings.policy.tables(model.config.vocab_size), run.runtime.device)
        reply_format = ReplyFormat(tokenizer, False, settings.text.prompt_template, settings.text.max_prompt_length)
        asked, held_out = (policy_prompts(sets, reply_format) for sets in (preferences.train, preferences.validation))
        prompts = [prompt.read for prompt in asked]
        settings.policy.check_prompts(len(prompts))
        judge = load_judge(settings, model, tokenizer, prompts, run.runtime.device)
        policy = Policy(model, tokenizer, prompts, held_out[: settings.policy.policy_eval_prompts], judge)
    learned: dict[str, Any] = {}
    if settings.run.stage != "policy":
        if run.goes_on_in("policy"):
            run.begin()  # from here on its folder has the reward model
        else:
            learned = _learn_rewards(run, settings, preferences, arguments)
    if policy is None:
        run.finish(learned, lambda: None)
        return learned
    return _learn_policy(run, settings, policy, learned)


class Policy(NamedTuple):
    """What learns from rewards, and what it is asked while it learns and to see what it has learnt."""

    model: Any
    tokenizer: Any
    prompts: list[Text]
    held_out: list[PolicyPrompt]
    judge: Judge | None


def _learn_rewards(
    run: Run, settings: ChatSettings, preferences: Preferences, arguments: TrainingArguments
) -> dict[str, Any]:
    """Learns a reward model and writes it, with its page. Returns what ``results.json`` says of it."""
    model, reply_format, reading = load_reward_model(settings.models, settings.text, settings.reward.agg_func)
    model.config.trained_on = {
        "task": "chat", "dataset": settings.data.dataset_name or settings.data.train_file,
        "granularity": settings.models.granularity, "agg_func": settings.reward.agg_func,
    }  # fmt: skip
    device: Any = run.runtime.device
    model.to(device)
    describe("reward model", model)
    frozen = settings.models.reference_model
    load_frozen = functools.partial(load_lm, frozen, model.is_encoder_decoder, run.runtime.device)
    entropies = KeptEntropies(load_frozen, frozen) if settings.models.granularity == "segment" else None
    train, validation = (
        encode_sets(sets, reply_format, reading, entropies, settings.text.long_rows)
        for sets in (preferences.train, preferences.validation)
    )
    del entropies
    check_head(model, validation[:SETS_TO_TRY])

    run.begin()
    # Reward learning.
    stage = RewardStage(run, settings.reward, model, reply_format, reading, train, validation, arguments)
    before = stage.figures_before()
    run.restore(stage.load_state)
    with run.checkpoints(stage.save_state, stage.trainer.in_parts) as checkpointer:
        stage.train(checkpointer)

    # What it knows of the held-out sets.
    found = stage.evaluate()
    swaps: dict[str, Any] = {"reward_swap_accuracy": None}
    with_swaps = settings.run.swap_test and settings.models.granularity == "token"
    if with_swaps or "span_auc" in found.figures:
        try:
            lm = load_frozen()
            found.figures.update(stage.span_figures(found.rewards, lm))
            if with_swaps:
                answers = stage.swap_answers(lm)
                swaps = {"reward_swap_accuracy": answers.share}
                swaps |= interval_results(interval_figures("reward/dev_swap", answers), "swap")
        except UserError as error:
            logger.warning("no swap test, and no language model beside the rewards at marked errors: %s", error)
    results = final_results(settings, stage, preferences, found) | before | run.figures()
    results |= swaps | {"cut": train.counts, "validation_cut": validation.counts}

    weights, in_parts = weights_to_save(stage.model), is_in_parts(stage.model)  # every process asks for its parts

    def write_files() -> None:
        trained = weight_sums(weights or {}) if in_parts else few_numbers(stage.bare_model())
        with write_folder_atomic(run.folder.reward_model) as temporary:
            stage.trainer.write_reward_model(temporary, weights, stage.reading)

        def load() -> Tensor:
            saved = TokenRewardModel.from_pretrained(run.folder.reward_model)
            return weight_sums(saved.state_dict()) if in_parts else few_numbers(saved)

        check_saved("reward model", run.folder.reward_model, trained, load)
        page = run.folder.report if settings.run.stage == "reward" else run.folder.path / REWARD_PAGE
        write_reward_report(page, run.folder, results, found, validation, reply_format, stage.model.config.bound)

    run.engine.on_main(write_files)
    return results


def _learn_policy(run: Run, settings: ChatSettings, policy: Policy, learned: dict[str, Any]) -> dict[str, Any]:
    """Trains the policy by rewards that are learnt or known, and writes it, with its page."""
    from chat_task.policy_trainer import PolicyTrainer  # needs the extra trl

    rewards: ReplyRewards
    if settings.policy.paid_by == "known":
        rewards = KnownRewards(builtin_errors(settings), policy.tokenizer, settings.policy.payment)
    else:
        source = settings.models.rew_checkpoint_path if settings.run.stage == "policy" else run.folder.reward_model
        rewards = load_rewards(str(source), settings.models.granularity, policy.tokenizer, settings.policy.payment)
    if settings.run.stage == "policy":
        run.begin()  # else the stage before has
    trainer = PolicyTrainer(
        run, settings.policy, policy.model, policy.tokenizer, rewards, policy.prompts,
        [prompt.read for prompt in policy.held_out], policy.judge, learned,
    )  # fmt: skip
    run.restore(trainer.load_state)
    with run.checkpoints(trainer.save_state) as checkpointer:
        trainer.train(checkpointer)
    results = trainer.learned | {
        "status": "complete", "task": "chat", "stage": settings.run.stage, "seed": settings.run.seed,
        "dataset": settings.data.dataset_name or settings.data.train_file, "granularity": settings.models.granularity,
        "paid_by": settings.policy.paid_by, "payment": settings.policy.payment, "policy": settings.policy_model,
        "rewards": settings.models.rew_checkpoint_path, **trainer.results(), **run.figures(),
    }  # fmt: skip

    def write_files() -> None:
        trainer.save(run.folder.policy)
        assert trainer.before is not None and trainer.after is not None  # after `train`
        write_predictions(run.folder.predictions, policy.held_out, trainer.before, trainer.after)
        write_policy_report(run.folder, results, trainer.held_out, trainer.before, trainer.after)

    run.finish(results, write_files)
    return results


def policy_prompts(sets: Sequence[RankingSet], reply_format: ReplyFormat) -> list[PolicyPrompt]:
    """The different prompts of ranking sets; those that are too long are left out and counted.

    Raises:
        UserError: none is left.
    """
    found: dict[str, PolicyPrompt | None] = {}
    for item in sets:
        prompt = item.prompt
        text = reply_format.prompt_template.replace(PLACE, prompt) if isinstance(prompt, str) else list(prompt)
        fits = not reply_format.encode_prompt(prompt)[1]
        found.setdefault(prompt_key(item), PolicyPrompt(prompt, text) if fits and text else None)
    kept = [prompt for prompt in found.values() if prompt is not None]
    if len(kept) < len(found):
        logger.warning("prompts longer than max_prompt_length: %d of %d", len(found) - len(kept), len(found))
    if not kept:
        raise UserError(f"max_prompt_length: all {len(found)} prompts are longer than {reply_format.max_prompt_length}")
    return kept


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
        length="num_train_epochs" if settings.run.stage == "reward" else "policy_steps",
        trackers=settings.run.report_to,
    )


# The options that name what is read.
INPUTS = (
    "dataset_name", "train_file", "validation_file", "chat_template", "model_name_or_path",
    "reference_model_name_or_path", "rew_checkpoint_path", "judge_checkpoint_path",
    "policy_model_name_or_path", "agg_func",
)  # fmt: skip


def output_folder(settings: ChatSettings) -> Path:
    """The run's folder; by default named after what distinguishes runs."""
    data = settings.data.dataset_name or Path(str(settings.data.train_file)).stem
    return settings.run.folder("chat", data, f"{settings.models.granularity}-{settings.reward.agg_func}")


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    transformers_logging.disable_progress_bar()
    run(read_command(sys.argv[1:] if words is None else words))
    return 0


if __name__ == "__main__":
    run_command(main)
