"""The price of a whole run from that of its parts: a run of the published length takes days on a CPU."""

import math
from dataclasses import dataclass

from prompt_task.settings import FewShotSettings


@dataclass(frozen=True)
class Prices:
    """Seconds of each part of a run.

    Attributes:
        reward_step: one step of reward learning, fresh prompts scored.
        reward_update: the same on prompts that are scored already.
        reward_validation: loss of the reward model on one batch of ranking sets that are scored already.
        policy_update: one policy step, without a log line.
        pair: scoring one prompt on one example.
    """

    reward_step: float
    reward_update: float
    reward_validation: float
    policy_update: float
    pair: float


def count_rounds(settings: FewShotSettings) -> int:
    """Rounds of reward learning: every `reward_retrain_period` steps of the first half, its start and end included."""
    return 1 + settings.policy.max_train_steps // 2 // settings.policy.reward_retrain_period


def whole_run(
    settings: FewShotSettings,
    prices: Prices,
    num_examples: tuple[int, int, int],
    straightforward: bool,
    pool_size: int = 0,
    epochs: int | None = None,
) -> dict[str, float]:
    """Seconds of a run by part, all rounds and the policy to their last step.

    Both ways:

    * reward steps: rounds x steps x price of a step; with a pool, rounds x (pool x train examples x price of a pair
      + steps x price of a step on scored prompts).
    * policy steps: steps x price of an update, and log lines of `prompt_train_batch_size` prompts on train: one
      a step in the straightforward way, one every `log_every` steps in the project.
    * reward validation: rounds x epochs x batches x price of a batch. The straightforward way scores each batch anew,
      on the share of dev that a step takes of train; the project scores it once a round, on all of dev.
    * policy validation: `num_validation_prompts` batches on dev every `early_stop_eval_period` steps.
    * candidates: the greedy prompt every `eval_steps` of the last `candidate_steps` steps and the last samples, on
      dev; in the project on train too. All are taken to be different.
    * test: `num_candidates` prompts on the test texts.

    Args:
        prices: of this way.
        num_examples: of train, dev and test.
        straightforward: which way.
        pool_size: prompts of a pool, 0 for none; for the project only.
        epochs: of each round; all that the settings allow by default.
    """
    train, dev, test = num_examples
    prompts = settings.reward.prompt_train_batch_size
    rounds = count_rounds(settings)
    steps_per_epoch = settings.reward.rew_max_train_steps // settings.reward.rew_num_train_epochs
    epochs = settings.reward.rew_num_train_epochs if epochs is None else epochs
    reward_steps = rounds * epochs * steps_per_epoch
    validations = rounds * epochs * settings.reward.rew_validation_batches
    greedy = min(settings.policy.candidate_steps, settings.policy.max_train_steps) // settings.policy.eval_steps
    candidates = greedy + settings.policy.num_final_prompts

    if straightforward:
        log_lines = settings.policy.max_train_steps
        validation_pairs = validations * prompts * math.ceil(settings.reward.reward_example_share * dev)
        candidate_pairs = candidates * dev
    else:
        log_lines = 1 + settings.policy.max_train_steps // settings.policy.log_every
        validation_pairs = (
            rounds * (settings.reward.rew_validation_batches + 1) * prompts * dev
        )  # swaps of one batch too
        candidate_pairs = candidates * (train + dev)
    if pool_size:
        reward = rounds * pool_size * train * prices.pair + reward_steps * prices.reward_update
    else:
        reward = reward_steps * prices.reward_step
    policy_validations = settings.policy.max_train_steps // settings.policy.early_stop_eval_period
    parts = {
        "reward steps": reward,
        "reward validation": validations * prices.reward_validation + validation_pairs * prices.pair,
        "policy steps": settings.policy.max_train_steps * prices.policy_update
        + log_lines * prompts * train * prices.pair,
        "policy validation": policy_validations * settings.policy.num_validation_prompts * prompts * dev * prices.pair,
        "candidates": candidate_pairs * prices.pair,
        "test": settings.evaluation.num_candidates * test * prices.pair,
    }
    return parts | {"total": sum(parts.values())}
