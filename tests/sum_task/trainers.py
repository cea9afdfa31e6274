"""Trainers on the tiny world, to be asked for single steps."""

import torch

from common.training.engine import start_engine
from common.training.tracking import MetricsLog
from sum_task.data import load_splits
from sum_task.loading import load_policy, load_reward_model
from sum_task.policy_trainer import PolicyTrainer
from sum_task.preferences import Preference, make_preference
from sum_task.reward_trainer import RewardTrainer
from sum_task.tokenizing import tokenize
from tests.sum_task.tiny import spied


def count_of(word: str) -> Preference:
    """Prefers summaries by how often a word stands in them."""
    return Preference(word, lambda predictions, references, sources: [p.split().count(word) for p in predictions])


def make_reward_trainer(tiny, folder, preference=None, engine=None, **changes):
    settings, policy, train, validation = _world(tiny, changes)
    reward = load_reward_model(settings.models, settings.text, policy)
    log = MetricsLog(folder / "metrics.jsonl")
    preference = preference or count_of("flood")
    engine = engine or start_engine("cpu")
    return RewardTrainer(reward, policy, preference, train, validation, settings.reward, engine, log)


def make_policy_trainer(tiny, folder, **changes):
    settings, policy, train, validation = _world(tiny, changes)
    shared = (start_engine("cpu"), MetricsLog(folder / "metrics.jsonl"))
    reward_trainer = None
    if settings.policy.uses_rewards:
        reward = load_reward_model(settings.models, settings.text, policy)
        preference = make_preference("rouge1")
        reward_trainer = RewardTrainer(reward, policy, preference, train, validation, settings.reward, *shared)
    scores = iter(range(100))

    def validate():
        return {"eval/score": float(next(scores))}

    return PolicyTrainer(policy, reward_trainer, train, validate, lambda: None, settings.policy, *shared)


def _world(tiny, changes):
    """Settings, policy, and the rows to learn from and to validate on."""
    settings = tiny.settings(**changes)
    torch.manual_seed(settings.run.seed)
    splits = load_splits(train_file=tiny.train, validation_file=tiny.validation)
    policy = load_policy(settings.models, settings.text, settings.evaluation)
    train, validation = (tokenize(rows, policy.format, 6) for rows in (splits.train, splits.validation))
    return settings, policy, train, validation


def whole_batch(trainer):
    return trainer.collate(trainer.train_data, list(range(len(trainer.train_data))))


def count_rewarded(trainer):
    """Rows whose references the reward model is asked to weigh, in the order in which it is."""
    asked = []
    trainer.loss.rewards = spied(trainer.loss.rewards, lambda batch, summaries: asked.extend(batch.indices))
    return asked
