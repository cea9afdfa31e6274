"""What a chat run leaves behind: the figures of ``results.json`` and its last lines."""

from typing import Any

from chat_task.data import Preferences
from chat_task.reward_stage import Found, RewardStage, pairs_count
from chat_task.settings import ChatSettings
from common.reporting.trust import interval_text
from common.training.run_folder import RunFolder


def final_results(settings: ChatSettings, stage: RewardStage, preferences: Preferences, found: Found) -> dict[str, Any]:
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
    print()
    paths = [folder.results, folder.report]
    if "reward_rank_accuracy" in results:
        paths.append(folder.reward_model)
        print(
            f"rank accuracy on {results['validation_pairs']} held-out pairs: {results['reward_rank_accuracy']:.3f} "
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
                f"area under the curve of marked errors: {results['span_auc']:.3f} (before training "
                f"{results['span_auc_before']:.3f}, chance 0.5); of words {results['span_auc_words']:.3f}"
            )
        if results["bad_rows"]:
            print(f"rows left out: {results['bad_rows']}")
        print(f"{results['reward_steps']} steps of reward learning")
    if "policy_steps" in results:
        paths += [folder.predictions, folder.policy]
        shown = {
            "score": "score of the replies",
            "judge": "the judge's score of the replies",
            "reply_length": "their tokens",
        }
        for name, words in shown.items():
            if f"policy_{name}_after" in results:
                before, after = (results[f"policy_{name}_{when}"] for when in ("before", "after"))
                print(f"{words} to {results['held_out_prompts']} held-out prompts: {after:.3f} (before {before:.3f})")
        if "policy_samples_judge" in results:
            print(f"the judge's score of the samples of the last steps: {results['policy_samples_judge']:.3f}")
        if "policy_win_rate" in results:
            rate, low, high, controlled = (
                results[f"policy_win_rate{part}"] for part in ("", "_low", "_high", "_length_controlled")
            )
            print(
                f"won against the start by the judge: {rate:.3f} ({low:.3f} to {high:.3f}; at equal length "
                f"{controlled:.3f}, chance 0.5)"
            )
        print(f"{results['policy_steps']} steps of policy learning, {results['rollouts']} samples")
    print(f"{results['wall_seconds']:.0f} s")
    for path in paths:
        print(f"  {path}")
