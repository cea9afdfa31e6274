"""Few-shot prompt generation: learn token rewards from ranked prompts, train a policy with them, test its prompts.

For example:
    python prompt_task/run_fsc.py dataset=agnews dataset_seed=1 random_seed=1 agg_func=max
    python prompt_task/run_fsc.py --config-name=builtin
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig, OmegaConf
from transformers.utils import logging as transformers_logging

from common.errors import Interrupted, UserError, exit_interrupted, exit_with, run_command
from common.token_reward_model import TokenRewardModel
from common.training.checkpoint import StateTree, load_checkpoint, save_checkpoint
from common.training.interruption import Checkpointer, StopRequest, telling_how_to_go_on
from common.training.progress import set_quiet, set_verbose
from common.training.random_keys import Purpose, seed_global
from common.training.run_folder import (
    COMPLETE,
    RunFolder,
    check_resumable,
    check_same_options,
    environment,
    open_run_folder,
)
from common.training.runtime import (
    describe,
    hardware,
    peak_memory_mib,
    random_state,
    restore_random_state,
    start_runtime,
)
from common.training.tracking import MetricsLog, check_trackers, truncate_after
from prompt_task.candidates import Candidate, CandidateTable, score_candidates, write_candidates
from prompt_task.command_line import Command, check_sweep, command_from, help_text, read_command
from prompt_task.few_shot_data import load_few_shot_splits
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
    checkpoints = RunFolder(output_folder(command)).checkpoints
    with telling_how_to_go_on(checkpoints, "the same command and resume=auto"), StopRequest() as stop:
        return _run(command, task_lm, stop)


def _run(command: Command, task_lm: TaskLM | None, stop: StopRequest) -> dict[str, Any]:
    started = time.monotonic()
    settings, spec = command.settings, command.spec
    check_trackers(settings.trackers)
    splits = load_few_shot_splits(spec, settings.base_path, settings.num_shots, settings.dataset_seed)
    set_quiet(settings.quiet)
    set_verbose(settings.verbose)
    runtime = start_runtime(settings.random_seed, settings.device, settings.num_threads)
    checkpoint = load_checkpoint(Path(settings.checkpoint_path)) if settings.checkpoint_path else None
    folder = open_run_folder(output_folder(command), overwrite=settings.overwrite, resume=settings.resume != "none")
    if folder.is_complete and not settings.overwrite:  # resume=auto of a run with nothing left to do
        before = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["options"]
        check_same_options(before, plain_options(command.options), NEUTRAL, folder.path, COMPLETE)
        finished: dict[str, Any] = json.loads(folder.results.read_text(encoding="utf-8"))
        print_summary(folder, finished)
        return finished
    if folder.checkpoint is not None:
        checkpoint = load_checkpoint(folder.checkpoint)
    if checkpoint is not None:
        where = folder.checkpoint or Path(str(settings.checkpoint_path))
        before = checkpoint.values["run"]["options"]
        same_options = check_resumable(before, plain_options(command.options), NEUTRAL, where, settings.resume)

    if task_lm is None:
        task_lm = load_task_lm(
            settings.task_lm, spec, runtime.device, settings.is_mask_lm, settings.task_lm_dtype,
            settings.scoring_tokens_per_batch, settings.sentence_cache_mib,
        )  # fmt: skip
    logger.info(
        "%s, split %d: %d train, %d dev, %d test texts; task LM %s",
        spec.name, settings.dataset_seed, len(splits.train), len(splits.dev), len(splits.test), settings.task_lm,
    )  # fmt: skip
    task_lm.read_ahead([example.text for example in (*splits.train, *splits.dev)])
    # What loading the task LM drew is none of the policy's business.
    seed_global(Purpose.INITIAL_WEIGHTS, settings.random_seed)
    policy = PromptPolicy.from_lm(
        settings.policy_lm,
        source_str=settings.source_str,
        prompt_length=settings.prompt_length,
        hidden_size=settings.hidden_size,
        residual=settings.adaptor_residual,
    ).to(runtime.device)
    generator = runtime.generator(Purpose.PROMPTS_BEFORE_TRAINING)
    start = policy.sample(NUM_START_PROMPTS, generator, settings.top_k, settings.top_p).tokens
    reward_model = TokenRewardModel.from_backbone(
        settings.policy_lm,
        bound="softplus" if settings.use_softplus else "sigmoid",
        head_hidden_size=settings.hidden_size,
        head_init_gain=settings.head_init_gain,
        head=settings.rew_head,
    )
    reward_model.to(runtime.device)  # type: ignore[arg-type]  # transformers' annotation of `to` lacks devices
    describe("policy", policy.adaptor, policy.lm)
    if settings.rew_freeze_backbone:
        reward_model.backbone.requires_grad_(False)
    describe("reward model", reward_model)

    def scorer(examples: Any) -> PromptScorer:
        return PromptScorer(task_lm, examples, settings.correct_coeff, settings.incorrect_coeff)

    train_scorer, dev_scorer = scorer(splits.train), scorer(splits.dev)
    seconds_before = 0.0
    if checkpoint is not None:
        logger.info("going on from %s", folder.checkpoint or settings.checkpoint_path)
        seconds_before = checkpoint.values["run"]["seconds"]
        if folder.checkpoint is not None:
            truncate_after(folder.metrics, checkpoint.values["run"]["events"])
    folder.prepare()
    folder.write_config(plain_options(command.options), sys.argv)
    log = MetricsLog(
        folder.metrics, settings.trackers, project="token-guidance-fsc", config=plain_options(command.options),
        seconds_before=seconds_before,
    )  # fmt: skip
    with log:
        reward_trainer = RewardTrainer(reward_model, policy, train_scorer, dev_scorer, settings, runtime, log)
        candidates = CandidateTable(policy, train_scorer, dev_scorer)
        trainer = PolicyTrainer(policy, reward_trainer, train_scorer, dev_scorer, candidates, settings, runtime, log)
        parts = (reward_model, reward_trainer, trainer, train_scorer, dev_scorer)
        if checkpoint is not None:
            _load_state(checkpoint, *parts)
            if not same_options:
                train_scorer.forget()
                dev_scorer.forget()

        def save(steps: int) -> None:
            log.sync()
            state = StateTree()
            _save_state(state, *parts)
            progress = {"options": plain_options(command.options), "events": log.events, "seconds": log.seconds}
            state.put("run", {}, progress)
            save_checkpoint(folder.checkpoint_folder(steps), state)
            folder.drop_old_checkpoints(settings.keep_checkpoints)
            logger.info("checkpoint after %d optimizer steps: %s", steps, folder.checkpoint_folder(steps))

        with stop.after_steps():
            trainer.train(Checkpointer(save, settings.checkpoint_steps, stop))
        policy.save_pretrained(folder.policy)
        reward_model.save_pretrained(folder.reward_model)

        best = candidates.best(settings.num_candidates)
        empty = Candidate("")
        test_scorer = scorer(splits.test)
        score_candidates(test_scorer, [empty, *best], "test", show_progress=True)
        for split, split_scorer in (("train", train_scorer), ("dev", dev_scorer)):
            score_candidates(split_scorer, [empty], split)
        untrained = [Candidate(text, tuple(row)) for text, row in zip(policy.texts(start), start.tolist(), strict=True)]
        score_candidates(dev_scorer, untrained, "dev")
        write_candidates(folder.path / "prompts.csv", [*best, *candidates.best()[len(best) :]])
        results = _results(command, trainer, best, empty, log.seconds)
        results["sentences_cut"] = task_lm.sentences_cut
        results["seconds_in_this_process"] = time.monotonic() - started
    write_run_report(folder, results, best, untrained, empty, policy, reward_model)
    folder.write_results(results)
    print_summary(folder, results)
    return results


def output_folder(command: Command) -> Path:
    """The run's folder; by default named after what distinguishes runs."""
    settings = command.settings
    if settings.output_folder is not None:
        return Path(settings.output_folder)
    name = f"{settings.guidance}-{settings.agg_func}-{settings.random_seed}"
    return Path("outputs", "fsc", f"{command.spec.name}-{settings.dataset_seed}", name)


def plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """A command's options as plain data."""
    plain = OmegaConf.to_container(OmegaConf.create(options))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _save_state(
    state: StateTree,
    reward_model: TokenRewardModel,
    reward_trainer: RewardTrainer,
    trainer: PolicyTrainer,
    train_scorer: PromptScorer,
    dev_scorer: PromptScorer,
) -> None:
    state.put("reward_model", dict(reward_model.state_dict()))
    reward_trainer.save_state(state)
    trainer.save_state(state)
    state.put("scorer/train", *train_scorer.state())
    state.put("scorer/dev", *dev_scorer.state())
    state.put("random", *random_state())


def _load_state(
    state: StateTree,
    reward_model: TokenRewardModel,
    reward_trainer: RewardTrainer,
    trainer: PolicyTrainer,
    train_scorer: PromptScorer,
    dev_scorer: PromptScorer,
) -> None:
    try:
        reward_model.load_state_dict(state.get("reward_model")[0])
        reward_trainer.load_state(state)
        trainer.load_state(state)
        train_scorer.load_state(*state.get("scorer/train"))
        dev_scorer.load_state(*state.get("scorer/dev"))
        restore_random_state(*state.get("random"))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoint does not fit this run: {error}") from None


def _results(
    command: Command, trainer: PolicyTrainer, best: list[Candidate], empty: Candidate, seconds: float
) -> dict[str, Any]:
    """Final figures and counts. A candidate that failed has no test accuracy and cannot be among the reported."""
    settings = command.settings
    reported = [c for c in best if c.test_accuracy is not None][: settings.num_reported]
    if not reported:
        raise UserError("no candidate prompt could be tested; prompts.csv says why")
    accuracies = [float(c.test_accuracy) for c in reported if c.test_accuracy is not None]
    scorers = (trainer.train_scorer, trainer.dev_scorer)
    learnt = trainer.reward_trainer.last_figures
    return {
        "status": "complete",
        "task": "prompt",
        "dataset": command.spec.name,
        "dataset_seed": settings.dataset_seed,
        "seed": settings.random_seed,
        "guidance": settings.guidance,
        "agg_func": settings.agg_func,
        "rew_head": settings.rew_head,
        "test_accuracy": sum(accuracies) / len(accuracies),
        "reported_prompts": [{"prompt": c.prompt, "test_accuracy": c.test_accuracy} for c in reported],
        "empty_prompt_test_accuracy": empty.test_accuracy,
        "best_dev_score": reported[0].dev_score,
        "reward_rank_accuracy": learnt.get("reward/dev_rank_accuracy"),
        "reward_swap_accuracy": learnt.get("reward/dev_swap_accuracy"),
        "policy_steps": trainer.steps_done,
        "best_policy_step": trainer.plateau.best_step,
        "reward_rounds": trainer.reward_trainer.rounds_done,
        "reward_steps": trainer.reward_trainer.steps_done,
        "prompts_scored": sum(scorer.prompts_scored for scorer in scorers),
        "pairs_scored": sum(scorer.pairs_scored for scorer in scorers),
        "candidates": len(trainer.candidates),
        "failed_candidates": sum(c.error is not None for c in trainer.candidates.best()),
        "task_lm": settings.task_lm,
        "policy_lm": settings.policy_lm,
        "wall_seconds": seconds,
        "peak_memory_mib": peak_memory_mib(trainer.runtime.device),
        "hardware": hardware(trainer.runtime.device),
        "environment": environment(),
    }


def print_summary(folder: RunFolder, results: dict[str, Any]) -> None:
    """The last lines of a run: what came out and where it lies."""
    print(f"\ntest accuracy (mean of the top {len(results['reported_prompts'])}): {results['test_accuracy']:.1%}")
    if results["empty_prompt_test_accuracy"] is not None:
        print(f"with an empty prompt: {results['empty_prompt_test_accuracy']:.1%}")
    for entry in results["reported_prompts"]:
        print(f"  {entry['test_accuracy']:.1%}  {entry['prompt']!r}")
    if results["failed_candidates"]:
        print(f"{results['failed_candidates']} candidates could not be scored; prompts.csv says why")
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
        print(help_text("python prompt_task/run_fsc.py"))
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
