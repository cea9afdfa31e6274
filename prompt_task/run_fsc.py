"""Few-shot prompt generation: learn token rewards from ranked prompts, train a policy with them, test its prompts.

For example:
    python prompt_task/run_fsc.py dataset=agnews dataset_seed=1 random_seed=1 agg_func=max
    python prompt_task/run_fsc.py --config-name=builtin
"""

from common.program import run_command

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from transformers.utils import logging as transformers_logging

from common.errors import Interrupted, UserError, exit_interrupted, exit_with
from common.token_reward_model import TokenRewardModel
from common.training.capacity import check_memory
from common.training.console import as_typed
from common.training.launcher import honour_launcher
from common.training.random_keys import Purpose, seed_global
from common.training.run import Run, open_run
from common.training.run_options import RunOptions
from common.training.runtime import describe
from prompt_task.candidates import Candidate, CandidateTable, score_candidates, write_candidates
from prompt_task.command_line import Command, check_sweep, command_from, help_text, read_command
from prompt_task.few_shot_data import find_split, load_few_shot_splits
from prompt_task.policy_trainer import PolicyTrainer
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.report import write_run_report
from prompt_task.results import final_results, print_summary, save_models
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
    settings = honour_launcher(command.settings, {"mixed_precision": "no", "device": "auto"})
    command = replace(command, settings=settings, options=command.options | settings.options())
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
    train_scorer, dev_scorer, test_scorer = (
        PromptScorer(task_lm, examples, **vars(settings.preference), engine=run.engine)
        for examples in (splits.train, splits.dev, splits.test)
    )
    task_lm.read_ahead([*train_scorer.own_sentences, *dev_scorer.own_sentences])
    # What loading the task LM drew is none of the policy's business.
    seed_global(Purpose.INITIAL_WEIGHTS, settings.run.random_seed)
    policy = PromptPolicy.from_lm(
        settings.models.policy_lm,
        source_str=settings.models.source_str,
        prompt_length=settings.models.prompt_length,
        hidden_size=settings.models.hidden_size,
        residual=settings.models.adaptor_residual,
    ).to(device)
    check_memory(settings.tables(policy.lm.config.vocab_size, policy.lm.config.hidden_size), device)
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

    # Reward learning and policy learning in turn.
    run.begin()
    shared = run.runtime, run.engine, run.log
    reward_trainer = RewardTrainer(reward_model, policy, train_scorer, dev_scorer, settings.reward, *shared)
    candidates = CandidateTable(policy, train_scorer, dev_scorer, settings.evaluation.candidate_split)
    trainer = PolicyTrainer(policy, reward_trainer, train_scorer, dev_scorer, candidates, settings.policy, *shared)
    if run.restore(trainer.load_state) and not run.same_options:
        train_scorer.forget()
        dev_scorer.forget()
    with run.checkpoints(trainer.save_state) as checkpointer:
        trainer.train(checkpointer)

    # The best candidates are tested, and for comparison the empty one and some of the untrained policy.
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
    results = final_results(command, splits, trainer, test_scorer, best, empty) | cut | run.figures()

    def write_files() -> None:
        save_models(run.folder, policy, reward_model)
        write_run_report(run.folder, results, best, untrained, empty, policy, reward_model)

    run.finish(results, write_files)
    return results


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
