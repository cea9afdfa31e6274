"""The page of one prompt run: figures, curves, and each candidate prompt coloured by its learned token rewards."""

from typing import Any

import torch
import yaml

from common.reporting.report import Fact, Report, TokenRewards, curves_from_metrics
from common.reporting.trust import interval_below, reward_accuracies
from common.token_reward_model import TokenRewardModel, reward_range
from common.training.run_folder import RunFolder
from common.training.tracking import read_metrics
from prompt_task.candidates import Candidate
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_rewards import prompt_token_rewards

CURVES = (
    ("eval/dev_score", "eval/best_dev_score"),
    ("eval/dev_accuracy", "policy/train_accuracy"),
    "policy/entropy",
    "policy/loss",
    ("reward/loss", "reward/dev_loss"),
    ("reward/rank_accuracy", "reward/dev_rank_accuracy", "reward/dev_swap_accuracy"),
    "policy/guidance_agreement",
    ("reward/token_std", "reward/saturation_share"),
    "policy/token_reward",
    "policy/distinct_prompts",
)
TITLES = {
    "eval/dev_score": "Score of sampled prompts on dev",
    "eval/dev_accuracy": "Accuracy of sampled prompts",
    "policy/entropy": "Policy entropy (nats a token)",
    "reward/loss": "ListMLE loss of the reward model",
    "reward/rank_accuracy": "Rank and swap accuracy of the reward model",
    "policy/guidance_agreement": "Rank accuracy on fresh prompts of the policy",
    "reward/token_std": "Spread of the token rewards, and their share at an end",
}


@torch.no_grad()
def candidate_token_rewards(
    candidates: list[Candidate], policy: PromptPolicy, reward_model: TokenRewardModel, kind: str = "candidate"
) -> list[TokenRewards]:
    """Token texts and learned rewards of prompts that the policy wrote, captioned `kind` 1, 2, ...

    And, where the reward model tells, the advantage of each token over what the policy would write in its place.
    """
    own = [c for c in candidates if c.token_ids]
    if not own:
        return []
    tokens = torch.tensor([c.token_ids for c in own])
    rewards = prompt_token_rewards(reward_model.eval(), policy.source_ids, tokens).tolist()
    advantages: list[Any] = [None] * len(own)
    if reward_model.tells_alternatives:
        ids = policy.with_source(tokens)
        logits = policy.logits(ids[:, :-1], last=tokens.shape[1])
        begin = ids.shape[1] - tokens.shape[1]
        given, expected = reward_model.rewards_and_expectations(logits, targets_from=begin, input_ids=ids)
        advantages = (given - expected).tolist()
    return [
        TokenRewards(
            policy.token_texts(row),
            reward,
            caption=f"{kind} {rank}",
            columns={"dev score": c.dev_score, "dev accuracy": c.dev_accuracy, "test accuracy": c.test_accuracy},
            advantages=advantage,
        )
        for rank, (c, row, reward, advantage) in enumerate(zip(own, tokens, rewards, advantages, strict=True), start=1)
    ]


def write_run_report(
    folder: RunFolder,
    results: dict[str, Any],
    best: list[Candidate],
    untrained: list[Candidate],
    empty: Candidate,
    policy: PromptPolicy,
    reward_model: TokenRewardModel,
) -> None:
    """Write ``report.html`` of a finished run; `untrained` are prompts that the policy wrote before its first step."""
    facts = {
        "test accuracy": Fact(
            f"{results['test_accuracy']:.1%}", interval_below(results, "test_accuracy", as_percent=True)
        ),
        "with an empty prompt": "-" if empty.test_accuracy is None else f"{empty.test_accuracy:.1%}",
        "prompts scored": results["prompts_scored"],
        "policy steps": results["policy_steps"],
        "wall time": f"{results['wall_seconds'] / 60:.1f} min",
    }
    accuracies, notices = reward_accuracies(results)
    subtitle = (
        f"task LM {results['task_lm']}, policy {results['policy_lm']}, guidance {results['guidance']}, "
        f"aggregation {results['agg_func']}, data split {results['dataset_seed']}, seed {results['seed']}"
    )
    report = Report(f"Few-shot prompts for {results['dataset']}", subtitle, facts | accuracies, notices)
    report.add_token_rewards(
        "Candidate prompts and their learned token rewards",
        [
            *candidate_token_rewards(best, policy, reward_model),
            *candidate_token_rewards(untrained, policy, reward_model, "before training"),
        ],
        reward_range(reward_model.config.bound),
        note="Best first; below them, prompts that the policy wrote before training. A token's colour is "
        "the reward that the last reward model gives it, or by choice that less what the policy would have got in its "
        "place; the result is the mean test accuracy of the first "
        f"{len(results['reported_prompts'])}.",
    )
    rows = [
        {
            "prompt": c.prompt or "(empty)",
            "train accuracy": c.train_accuracy,
            "dev accuracy": c.dev_accuracy,
            "test accuracy": c.test_accuracy,
            "dev score": c.dev_score,
            "error": c.error,
        }
        for c in [*best, empty]
    ]
    if all(row["error"] is None for row in rows):
        for row in rows:
            del row["error"]
    report.add_table("Tested prompts", rows, note="The last row is the prompt of no words, where a run starts from.")
    report.add_table(
        "Test accuracy by class",
        [
            {
                "class": row["class"].strip(),
                "texts": row["texts"],
                "accuracy": row["accuracy"],
                "95 % from": row["low"],
                "to": row["high"],
                **({"empty prompt": row["empty_prompt"]} if "empty_prompt" in row else {}),
            }
            for row in results["test_by_class"]
        ],
        note=f"Mean over the {len(results['reported_prompts'])} reported prompts. Intervals are binomial (Wilson); the "
        "answers of several prompts to one text count as far as they differ.",
    )
    report.add_curves("Training", curves_from_metrics(read_metrics(folder.metrics), CURVES, TITLES))
    options = yaml.safe_load(folder.config.read_text(encoding="utf-8"))["options"]
    report.add_details("Options", options)
    report.add_details("Environment", results["environment"]["packages"] | {"hardware": results["hardware"]})
    report.write(folder.report)
