"""What a prompt run leaves behind: its models, the figures of ``results.json``, its last lines."""

from typing import Any

import torch

from common.errors import UserError
from common.language_models.capabilities import exactly
from common.language_models.replies import ReplyFormat
from common.language_models.saved import check_saved, few_numbers
from common.reporting.intervals import interval_results
from common.reporting.trust import interval_text
from common.token_reward_model import TokenRewardModel
from common.training.files import write_folder_atomic
from common.training.run_folder import RunFolder
from prompt_task.candidates import Candidate
from prompt_task.class_accuracy import answers_by_text, class_accuracies
from prompt_task.command_line import Command
from prompt_task.few_shot_data import FewShotSplits
from prompt_task.policy_trainer import PolicyTrainer
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer


@exactly()
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


def final_results(
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
