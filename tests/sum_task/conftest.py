"""What tests of summarization share."""

import pytest

from sum_task import evaluation_metrics
from tests.sum_task.tiny import TinyWorld


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Tiny data and models."""
    return TinyWorld(tmp_path_factory.mktemp("tiny"))


def stand_in_for_wordnet(monkeypatch):
    """Let a constant take METEOR's place in evaluations."""

    class ConstantMeteor:
        def __call__(self, predictions, references):
            return [0.5] * len(predictions)

    monkeypatch.setattr(evaluation_metrics, "Meteor", ConstantMeteor)
    monkeypatch.setattr(evaluation_metrics, "require_wordnet", lambda: None)


@pytest.fixture
def without_wordnet(monkeypatch):
    """METEOR's place in evaluations is taken by a constant."""
    stand_in_for_wordnet(monkeypatch)
