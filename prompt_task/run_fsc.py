"""Few-shot prompt generation: learn token rewards from ranked prompts, train a policy with them, test its prompts.

For example:
    python prompt_task/run_fsc.py dataset=agnews dataset_seed=1 random_seed=1 agg_func=max
    python prompt_task/run_fsc.py --config-name=builtin
"""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from transformers.utils import logging as transformers_logging

from common.errors import Interrupted, UserError, exit_interrupted, exit_with, run_command
from common.intervals import interval_results
from common.language_models.replies import ReplyFormat
from common.language_models.saved import check_saved, few_numbers
from common.reporting.trust import interval_text
from common.token_reward_model import TokenRewardModel
from common.training.checkpoint import StateTree
from common.training.console import as_typed
from common.training.files import write_folder_atomic
from common.training.launcher import honour_launcher
from common.training.random_keys import Purpose, seed_global
from common.training.run import Run, open_run
from common.training.run_folder import RunFolder
from common.training.run_options import RunOptions
from common.training.runtime import describe, random_state, restore_random_state
from prompt_task.candidates import Candidate, CandidateTable, score_candidates, write_candidates
from prompt_task.class_accuracy import answers_by_text, class_accuracies
from prompt_task.command_line import Command, check_sweep, command_from, help_text, read_command
from prompt_task.few_shot_data import FewShotSplits, find_split, load_few_shot_splits
from prompt_task.policy_trainer import PolicyTrainer
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.report import write_run_report
from prompt_task.reward_trainer import RewardTrainer
from prompt_task.settings import NEUTRAL
from prompt_task.task_lm import TaskLM, load_task_lm

logger = logging.getLogger("prompt_task.run_fsc")  # not __name__, which is __main__ for a command

# Prompts of the untrained policy that the report shows beside the candidates.
NUM_START_PROMPTS = 5


def run(command: Command, task_lm: TaskLM | None = None) -> dict[str, Any]:
    """One run: data, models, training, test, files. Returns the content of ``results.json``.

    `task_lm` may be one that is loaded already, for several runs in one process.

    Raises:
        UserError: for bad input and for what the machine refuses.
        Interrupted: SIGTERM or SIGINT came; what there is to go on from is on the disk.
    """
    settings = honour_launcher(command.settings, {"mixed_precision": "no"})
    options = command.options | {"mixed_precision": settings.run.mixed_precision}
    command = replace(command, settings=settings, options=options)
    with open_run(run_options(command)) as run:
        results = run.finished or _train_and_test(run, command, task_lm)
        if run.engine.is_main:
            print_summary(run.folder, results)
        return results


def _train_and_test(run: Run, command: Command, task_lm: TaskLM | None) -> dict[str, Any]:
    settings, spec, device = command.settings, command.spec, run.runtime.device

    # Data and models.
    splits = load_few_shot_splits(spec, **vars(settings.data))
    if task_lm is None:
        task_lm = load_task_lm(spec=spec, device=device, **vars(settings.classifier))
    logger.info(
        "%s, split %d: %d train, %d dev, %d test texts; task LM %s",
        spec.name, settings.data.dataset_seed, len(splits.train), len(splits.dev), len(splits.test),
        settings.classifier.task_lm,
    )  # fmt: skip
    task_lm.read_ahead([example.text for example in (*splits.train, *splits.dev)])
    # What loading the task LM drew is none of the policy's business.
    seed_global(Purpose.INITIAL_WEIGHTS, settings.run.random_seed)
    policy = PromptPolicy.from_lm(
        settings.models.policy_lm,
        source_str=settings.models.source_str,
        prompt_length=settings.models.prompt_length,
        hidden_size=settings.models.hidden_size,
        residual=settings.models.adaptor_residual,
    ).to(device)
    generator = run.runtime.generator(Purpose.PROMPTS_BEFORE_TRAINING)
    with run.engine.autocast():
        start = policy.sample(NUM_START_PROMPTS, generator, settings.policy.top_k, settings.policy.top_p).tokens
    reward_model = TokenRewardModel.from_backbone(
        settings.models.policy_lm,
        bound="softplus" if settings.models.use_softplus else "sigmoid",
        head_hidden_size=settings.models.hidden_size,
        head_init_gain=settings.models.head_init_gain,
        head=settings.models.rew_head,
    )
    reward_model.config.trained_on = {
        "task": "prompt", "dataset": spec.name, "task_lm": settings.classifier.task_lm,
        "agg_func": settings.reward.agg_func,
    }  # fmt: skip
    reward_model.to(device)  # type: ignore[arg-type]  # transformers' annotation of `to` lacks devices
    if settings.models.rew_freeze_backbone:
        reward_model.backbone.requires_grad_(False)
    describe("policy", policy.adaptor, policy.lm)
    describe("reward model", reward_model)
    train_scorer, dev_scorer, test_scorer = (
        PromptScorer(task_lm, examples, **vars(settings.preference), engine=run.engine)
        for examples in (splits.train, splits.dev, splits.test)
    )

    # Reward learning and policy learning in turn.
    run.begin()
    shared = run.runtime, run.engine, run.log
    reward_trainer = RewardTrainer(reward_model, policy, train_scorer, dev_scorer, settings.reward, *shared)
    candidates = CandidateTable(policy, train_scorer, dev_scorer)
    trainer = PolicyTrainer(policy, reward_trainer, train_scorer, dev_scorer, candidates, settings.policy, *shared)
    state = _State(reward_model, reward_trainer, trainer, train_scorer, dev_scorer)
    if run.restore(state.load) and not run.same_options:
        train_scorer.forget()
        dev_scorer.forget()
    with run.checkpoints(state.save) as checkpointer:
        trainer.train(checkpointer)

    # The best prompts by their dev score are tested, and for comparison the empty one and some of the untrained policy.
    best = candidates.best(settings.evaluation.num_candidates)
    empty = Candidate("")
    score_candidates(test_scorer, [empty, *best], "test", show_progress=True)
    for split, scorer in (("train", train_scorer), ("dev", dev_scorer)):
        score_candidates(scorer, [empty], split)
    untrained = [Candidate(text, tuple(row)) for text, row in zip(policy.texts(start), start.tolist(), strict=True)]
    score_candidates(dev_scorer, untrained, "dev")
    table = [*best, *candidates.best()[len(best) :]]
    run.engine.on_main(lambda: write_candidates(run.folder.path / "prompts.csv", table))
    cut = {"sentences_cut": int(run.engine.total(task_lm.sentences_cut)[0])}
    results = _results(command, splits, trainer, test_scorer, best, empty) | cut | run.figures()

    def write_files() -> None:
        save_models(run.folder, policy, reward_model)
        write_run_report(run.folder, results, best, untrained, empty, policy, reward_model)

    run.finish(results, write_files)
    return results


@torch.no_grad()
def save_models(folder: RunFolder, policy: PromptPolicy, reward_model: TokenRewardModel) -> None:
    """Write both models, load them again and compare.

    Raises:
        UserError: what was saved is not what was trained.
    """

    def writes(policy: PromptPolicy) -> torch.Tensor:
        return policy.logits(policy.source_ids.unsqueeze(0)).float().softmax(-1).cpu()

    policy.save_pretrained(folder.policy)
    check_saved("policy", folder.policy, writes(policy), lambda: writes(PromptPolicy.from_pretrained(folder.policy)))
    with write_folder_atomic(folder.reward_model) as temporary:
        reward_model.save_pretrained(temporary)
        ReplyFormat(policy.tokenizer, False, policy.settings["source_str"], special_tokens=False).save(temporary)
    check_saved(
        "reward model", folder.reward_model, few_numbers(reward_model),
        lambda: few_numbers(TokenRewardModel.from_pretrained(folder.reward_model)),
    )  # fmt: skip


def run_options(command: Command) -> RunOptions:
    """The part of a command that concerns the run as such."""
    settings = command.settings
    data = settings.data
    split = find_split(data.base_path, command.spec.name, data.num_shots, data.dataset_seed)
    return RunOptions.of(
        settings.run,
        task="fsc",
        folder=output_folder(command),
        all=command.options,
        neutral=NEUTRAL,
        inputs={
            "base_path": str(split),
            "preference": settings.preference.preference,
            "agg_func": settings.reward.agg_func,
            "guidance": settings.policy.guidance,
            "task_lm": settings.classifier.task_lm,
            "policy_lm": settings.models.policy_lm,
        },
        seed=settings.run.random_seed,
        how_to_resume="the same command and resume=auto",
        length="max_train_steps",
    )  # fmt: skip


def output_folder(command: Command) -> Path:
    """The run's folder; by default named after what distinguishes runs."""
    settings = command.settings
    if settings.run.output_folder is not None:
        return Path(settings.run.output_folder)
    name = f"{settings.policy.guidance}-{settings.reward.agg_func}-{settings.run.random_seed}"
    return Path("outputs", "fsc", f"{command.spec.name}-{settings.data.dataset_seed}", name)


@dataclass
class _State:
    """What a checkpoint of this task holds."""

    reward_model: TokenRewardModel
    reward_trainer: RewardTrainer
    trainer: PolicyTrainer
    train_scorer: PromptScorer
    dev_scorer: PromptScorer

    def save(self, state: StateTree) -> None:
        state.put("reward_model", dict(self.reward_model.state_dict()))
        self.reward_trainer.save_state(state)
        self.trainer.save_state(state)
        state.put("scorer/train", *self.train_scorer.state())
        state.put("scorer/dev", *self.dev_scorer.state())
        state.put("random", *random_state())

    def load(self, state: StateTree) -> None:
        self.reward_model.load_state_dict(state.get("reward_model")[0])
        self.reward_trainer.load_state(state)
        self.trainer.load_state(state)
        self.train_scorer.load_state(*state.get("scorer/train"))
        self.dev_scorer.load_state(*state.get("scorer/dev"))
        restore_random_state(*state.get("random"))


def _results(
    command: Command,
    splits: FewShotSplits,
    trainer: PolicyTrainer,
    test_scorer: PromptScorer,
    best: list[Candidate],
    empty: Candidate,
) -> dict[str, Any]:
    """Final figures and counts. A candidate that failed has no test accuracy and cannot be among the reported."""
    settings = command.settings
    reported = [c for c in best if c.test_accuracy is not None][: settings.evaluation.num_reported]
    if not reported:
        raise UserError("no candidate prompt could be tested; prompts.csv says why")
    accuracies = [float(c.test_accuracy) for c in reported if c.test_accuracy is not None]
    right = test_scorer.right([c.prompt for c in reported])
    by_class = class_accuracies(right, test_scorer.labels, command.spec.verbalizers)
    if empty.test_accuracy is not None:
        of_empty = class_accuracies(test_scorer.right([empty.prompt]), test_scorer.labels, command.spec.verbalizers)
        by_class = [row | {"empty_prompt": other["accuracy"]} for row, other in zip(by_class, of_empty, strict=True)]
    scorers = (trainer.train_scorer, trainer.dev_scorer)
    learnt = trainer.reward_trainer.last_figures
    return {
        "status": "complete",
        "task": "prompt",
        "dataset": command.spec.name,
        "dataset_seed": settings.data.dataset_seed,
        "seed": settings.run.random_seed,
        "guidance": settings.policy.guidance,
        "agg_func": settings.reward.agg_func,
        "rew_head": settings.models.rew_head,
        "test_accuracy": sum(accuracies) / len(accuracies),
        "test_accuracy_interval": list(answers_by_text(right).interval),
        "test_texts": len(test_scorer.examples),
        "test_by_class": by_class,
        "reported_prompts": [
            {
                "prompt": c.prompt,
                "test_accuracy": c.test_accuracy,
                "test_accuracy_interval": list(answers_by_text(row.unsqueeze(0)).interval),
            }
            for c, row in zip(reported, right, strict=True)
        ],
        "empty_prompt_test_accuracy": empty.test_accuracy,
        "best_dev_score": reported[0].dev_score,
        "reward_rank_accuracy": learnt.get("reward/dev_rank_accuracy"),
        "reward_swap_accuracy": learnt.get("reward/dev_swap_accuracy"),
        **interval_results(learnt, "rank"),
        **interval_results(learnt, "swap"),
        "policy_steps": trainer.steps_done,
        "best_policy_step": trainer.plateau.best_step,
        "reward_rounds": trainer.reward_trainer.rounds_done,
        "reward_steps": trainer.reward_trainer.steps_done,
        "prompts_scored": sum(scorer.prompts_scored for scorer in scorers),
        "pairs_scored": sum(scorer.pairs_scored for scorer in scorers),
        "candidates": len(trainer.candidates),
        "failed_candidates": sum(c.error is not None for c in trainer.candidates.best()),
        "rows_left_out": splits.left_out,
        "task_lm": settings.classifier.task_lm,
        "policy_lm": settings.models.policy_lm,
    }


def print_summary(folder: RunFolder, results: dict[str, Any]) -> None:
    """The last lines of a run: what came out and where it lies."""
    interval = interval_text(results, "test_accuracy", as_percent=True)
    print(
        f"\ntest accuracy (mean of the top {len(results['reported_prompts'])}): {results['test_accuracy']:.1%}"
        + (f" ({interval})" if interval else "")
    )
    if "test_by_class" in results:
        print(
            "by class: "
            + ", ".join(f"{row['class'].strip()} {row['accuracy']:.1%}" for row in results["test_by_class"])
        )
    if results["empty_prompt_test_accuracy"] is not None:
        print(f"with an empty prompt: {results['empty_prompt_test_accuracy']:.1%}")
    for entry in results["reported_prompts"]:
        print(f"  {entry['test_accuracy']:.1%}  {entry['prompt']!r}")
    if results["failed_candidates"]:
        print(f"{results['failed_candidates']} candidates could not be scored; prompts.csv says why")
    if any(results.get("rows_left_out", {}).values()):
        print(f"rows left out, text blank: {results['rows_left_out']}")
    print(f"{results['prompts_scored']} prompts scored in {results['wall_seconds']:.0f} s")
    for path in (folder.path / "prompts.csv", folder.results, folder.report, folder.policy, folder.reward_model):
        print(f"  {path}")


@hydra.main(version_base=None, config_path="../configs", config_name="fsc_config")
def multirun(config: DictConfig) -> None:
    """One job of Hydra's multirun."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    try:
        run(command_from({str(key): value for key, value in values.items()}, {}))
    except UserError as error:
        exit_with(error)
    except Interrupted as interrupted:
        exit_interrupted(interrupted)


def main() -> int:
    """Read the command line and run; Hydra's own engine takes over where several runs are asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    transformers_logging.disable_progress_bar()
    words = sys.argv[1:]
    if any(word in ("--help", "-h") for word in words):
        print(as_typed(help_text("python prompt_task/run_fsc.py")))
        return 0
    if any(word in ("--multirun", "-m") for word in words):
        check_sweep(words)
    if any(word in ("--multirun", "-m", "--cfg", "-c", "--hydra-help", "--info") for word in words):
        multirun()
        return 0
    run(read_command(words))
    return 0


if __name__ == "__main__":
    run_command(main)
