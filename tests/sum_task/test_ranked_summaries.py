"""Sampling and ranking of summaries."""

import pytest
import torch

from common.training.engine import Engine, start_engine
from sum_task import ranked_summaries
from sum_task.ranked_summaries import break_ties
from sum_task.sampling import sample_summaries
from tests.sum_task.tiny import spied
from tests.sum_task.trainers import make_reward_trainer


def test_ties_are_broken_by_noise_and_nothing_else():
    preferences = torch.tensor([[0.5, 0.2, 0.5], [3.0, 1.0, 2.0]])
    assert break_ties(preferences, torch.tensor([[0.1, 0.9, 0.8]] * 2)).tolist() == [[1, 0, 2], [2, 0, 1]]
    assert break_ties(preferences, torch.tensor([[0.8, 0.9, 0.1]] * 2)).tolist() == [[2, 0, 1], [2, 0, 1]]


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_summaries_of_several_batches_are_sampled_at_once_and_are_the_same(tiny, tmp_path, monkeypatch, model):
    found = {}
    for at_once in (1, 2, 4):
        folder = tmp_path / str(at_once)
        folder.mkdir()
        name = getattr(tiny, model)
        trainer = make_reward_trainer(tiny, folder, rew_sampling_batches=at_once, model_name_or_path=name)
        counts = []
        sample = spied(sample_summaries, lambda policy, sources, *_, c=counts: c.append(len(sources.ids)))
        monkeypatch.setattr(ranked_summaries, "sample_summaries", sample)
        batches = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        found[at_once] = list(trainer.ranked_from(batches, 0))
        assert counts == {1: [4, 4, 3], 2: [8, 3], 4: [11]}[at_once]
    for together in (found[2], found[4]):
        for ranked, expected in zip(together, found[1], strict=True):
            assert ranked.batch.indices == expected.batch.indices
            assert torch.equal(ranked.batch.sources.tokens, expected.batch.sources.tokens)
            assert torch.equal(ranked.summaries.tokens * ranked.summaries.mask,
                               expected.summaries.tokens * expected.summaries.mask)  # fmt: skip
            assert torch.equal(ranked.summaries.mask, expected.summaries.mask)
            assert torch.equal(ranked.preferences, expected.preferences)
            assert torch.equal(ranked.ranks, expected.ranks)


@pytest.mark.parametrize(("model", "count"), [("t5", 4), ("llama", 1)])
def test_by_default_an_encoder_decoder_samples_four_batches_at_once(tiny, tmp_path, model, count):
    trainer = make_reward_trainer(tiny, tmp_path, model_name_or_path=getattr(tiny, model))
    assert trainer.ranker.at_once == count


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_what_is_sampled_together_does_not_depend_on_where_a_round_goes_on(tiny, tmp_path, first):
    trainer = make_reward_trainer(tiny, tmp_path, rew_sampling_batches=2)
    batches = [[0, 1], [2, 3, 4], [5, 6], [7]]
    whole = list(trainer.ranked_from(batches, 0))
    rest = list(trainer.ranked_from(batches, first))
    assert [sets.batch.indices for sets in rest] == batches[first:]
    for sets, expected in zip(rest, whole[first:], strict=True):
        assert torch.equal(sets.summaries.tokens, expected.summaries.tokens)
        assert torch.equal(sets.ranks, expected.ranks)


def test_a_process_without_rows_of_a_batch_takes_the_others(tiny, tmp_path):
    class Second(Engine):
        """The second of two."""

        def share(self, items):
            return list(items)[1::2]

    trainer = make_reward_trainer(
        tiny, tmp_path, engine=Second(start_engine("cpu").accelerator), rew_sampling_batches=4
    )
    ranked = list(trainer.ranked_from([[0, 1], [2], [3, 4, 5]], 0))
    assert [None if sets is None else sets.batch.indices for sets in ranked] == [[1], None, [4]]
    alone = list(trainer.ranked_from([[2]], 0))
    assert alone == [None]
