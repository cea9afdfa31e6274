"""What a summarization run leaves behind: models, predictions, the figures of ``results.json``, its last lines."""

import math
from pathlib import Path
from typing import Any

from common.language_models.saved import check_saved, few_numbers
from common.reporting.intervals import interval_results
from common.reporting.trust import interval_text
from common.training.files import write_jsonl_atomic
from common.training.run_folder import RunFolder
from sum_task.batching import TokenizedRows
from sum_task.data import Splits
from sum_task.policy import SummaryPolicy
from sum_task.policy_trainer import PolicyTrainer
from sum_task.reward_model import SummaryRewardModel
from sum_task.settings import SummarizationSettings
from sum_task.summary_evaluation import COMPARED_FIGURES, Evaluation


def save_models(folder: RunFolder, policy: SummaryPolicy, reward: SummaryRewardModel | None) -> None:
    """Write both models, load them again and compare.

    Raises:
        UserError: what was saved is not what was trained.
    """
    policy.save_pretrained(folder.policy)
    check_saved(
        "policy", folder.policy, few_numbers(policy.lm),
        lambda: few_numbers(SummaryPolicy.from_pretrained(str(folder.policy)).lm),
    )  # fmt: skip
    if reward is not None:
        reward.save_pretrained(folder.reward_model)
        check_saved(
            "reward model", folder.reward_model, few_numbers(reward.model),
            lambda: few_numbers(SummaryRewardModel.from_pretrained(str(folder.reward_model)).model),
        )  # fmt: skip


def best_policy_folder(folder: RunFolder) -> Path:
    """Where the policy lies that was best in validation; the reported one is the last."""
    return folder.path / "best_policy"


def write_predictions(folder: RunFolder, data: TokenizedRows, evaluation: Evaluation) -> None:
    rows = [
        {"source": row.source, "reference": row.reference, "prediction": prediction, **scores}
        for row, prediction, scores in zip(data.rows, evaluation.predictions, evaluation.scores, strict=True)
    ]
    write_jsonl_atomic(folder.predictions, rows)


def final_results(
    settings: SummarizationSettings,
    trainer: PolicyTrainer,
    evaluation: Evaluation,
    tested_on: str,
    splits: Splits,
) -> dict[str, Any]:
    """Final figures and counts."""
    learnt = trainer.reward_trainer
    held_out = learnt.last_figures if learnt is not None else {}
    return {
        "status": "complete",
        "task": "summarization",
        "dataset": settings.data.dataset_name or settings.data.train_file,
        "seed": settings.run.seed,
        "guidance": settings.policy.guidance,
        "agg_func": settings.reward.agg_func,
        "rew_head": learnt.reward.model.config.head if learnt is not None else None,
        "preference": settings.reward.preference,
        "tested_on": tested_on,
        **{f"test_{name}": value for name, value in evaluation.means.items()},
        "reward_rank_accuracy": held_out.get("reward/dev_rank_accuracy"),
        "reward_swap_accuracy": held_out.get("reward/dev_swap_accuracy"),
        **interval_results(held_out, "rank"),
        **interval_results(held_out, "swap"),
        "reward_dev_loss": held_out.get("reward/dev_loss"),
        "validation": trainer.last_validation,
        "best_validation_score": trainer.best_score,
        "best_policy_step": trainer.best_step,
        "policy_steps": trainer.steps_done,
        "reward_rounds": learnt.rounds_done if learnt is not None else 0,
        "reward_steps": learnt.steps_done if learnt is not None else 0,
        "train_rows": len(splits.train),
        "validation_rows": len(splits.validation),
        "test_rows": len(evaluation.predictions),
        "rows_left_out": splits.left_out,
        "model": settings.models.model_name_or_path or settings.models.config_name or settings.models.model_type,
        "reward_model": settings.models.reward_model_name if settings.policy.uses_rewards else None,
    }


def print_summary(folder: RunFolder, results: dict[str, Any]) -> None:
    """The last lines of a run: what came out and where it lies."""

    def figures(kind: str) -> str:
        found = {name: results.get(f"{kind}_{name}") for name in COMPARED_FIGURES if name != "length"}
        return ", ".join(
            f"{name} {value:.{3 if name == 'preference' else 2}f}" for name, value in found.items() if value is not None
        )

    print(f"\n{results['tested_on']} ({results['test_rows']} rows): {figures('test')}")
    if "compared_rouge1" in results:
        print(f"the first {results['compared_rows']} of them: {figures('compared')}")
    if "untrained_rouge1" in results:  # those of older runs do not say
        print(f"  before training: {figures('untrained')}\n  first three sentences: {figures('lead3')}")
    accuracy = results["reward_rank_accuracy"]
    if accuracy is not None and not math.isnan(accuracy):
        trust = interval_text(results, "reward_rank") or "no interval"
        print(f"rank accuracy of the reward model on held-out summaries: {accuracy:.3f} ({trust}; chance: 0.5)")
    accuracy = results["reward_swap_accuracy"]
    if accuracy is not None:
        trust = interval_text(results, "reward_swap") or "no interval"
        print(f"swap accuracy, a reference's token against the likeliest other: {accuracy:.3f} ({trust}; chance: 0.5)")
    if any(results["rows_left_out"].values()):
        print(f"rows left out, article or summary blank: {results['rows_left_out']}")
    print(f"{results['policy_steps']} policy steps in {results['wall_seconds']:.0f} s")
    paths = [folder.predictions, folder.results, folder.report, folder.policy]
    for path in paths + ([folder.reward_model] if folder.reward_model.is_dir() else []):
        print(f"  {path}")
