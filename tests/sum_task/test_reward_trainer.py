"""Learning of token rewards from ranked summaries."""

import math

import pytest
import torch

from common.training.engine import Engine, start_engine
from common.training.ranking_figures import RankingFigures
from common.training.stepper import Stepper
from common.training.tracking import MetricsLog, read_metrics
from sum_task.batching import tokenize
from sum_task.data import load_splits
from sum_task.models import Summaries, load_policy, load_reward_model
from sum_task.preferences import Preference
from sum_task.reward_trainer import RewardTrainer, break_ties
from tests.sum_task.tiny import spied


def count_of(word):
    """Prefers summaries by how often a word stands in them."""
    return Preference(word, lambda predictions, references, sources: [p.split().count(word) for p in predictions])


def make_trainer(tiny, folder, preference=None, engine=None, **changes):
    settings = tiny.settings(**changes)
    torch.manual_seed(settings.run.seed)
    splits = load_splits(train_file=tiny.train, validation_file=tiny.validation)
    policy = load_policy(settings.models, settings.text, settings.evaluation)
    reward = load_reward_model(settings.models, settings.text, policy)
    train, validation = (tokenize(rows, policy.format, 6) for rows in (splits.train, splits.validation))
    log = MetricsLog(folder / "metrics.jsonl")
    preference = preference or count_of("flood")
    engine = engine or start_engine("cpu")
    return RewardTrainer(reward, policy, preference, train, validation, settings.reward, engine, log)


def test_ties_are_broken_by_noise_and_nothing_else():
    preferences = torch.tensor([[0.5, 0.2, 0.5], [3.0, 1.0, 2.0]])
    assert break_ties(preferences, torch.tensor([[0.1, 0.9, 0.8]] * 2)).tolist() == [[1, 0, 2], [2, 0, 1]]
    assert break_ties(preferences, torch.tensor([[0.8, 0.9, 0.1]] * 2)).tolist() == [[2, 0, 1], [2, 0, 1]]


def test_rounds_learn_which_token_is_preferred(tiny, tmp_path):
    trainer = make_trainer(
        tiny, tmp_path, agg_func="sum", rew_num_train_epochs=40, rew_eval_period=10, rew_validation_share=1
    )
    trainer.run_round()
    assert trainer.last_figures["reward/dev_rank_accuracy"] > 0.9
    events = read_metrics(tmp_path / "metrics.jsonl")
    assert events[-1]["reward/loss"] < events[0]["reward/loss"]
    assert {event["phase"] for event in events} == {"reward"}


def test_first_loss_of_the_published_head_is_that_of_equal_scores(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, head_init_gain=1e-4, reward_learning_samples=4)
    trainer.run_round()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["reward/loss"] == pytest.approx(math.log(24), abs=1e-4)


def test_best_weights_of_the_round_are_the_ones_that_stay(tiny, tmp_path, monkeypatch):
    trainer = make_trainer(tiny, tmp_path, rew_num_train_epochs=2, rew_eval_period=0.5)
    losses = iter([2.0, 1.0, 3.0, 4.0])
    seen = []

    def validate(validation):
        seen.append({name: p.clone() for name, p in trainer.reward.model.state_dict().items()})
        return {"reward/dev_loss": next(losses), "reward/dev_rank_accuracy": float(len(seen))}

    monkeypatch.setattr(trainer, "_validate", validate)
    trainer.run_round()
    best = trainer.reward.model.state_dict()
    assert all(torch.equal(best[name], seen[1][name]) for name in best)
    assert any(not torch.equal(best[name], seen[-1][name]) for name in best)
    assert trainer.last_figures["reward/dev_rank_accuracy"] == 2
    assert not trainer.reward.model.training


def test_policy_stands_still_and_its_dropout_stays_off(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path)
    before = {name: p.clone() for name, p in trainer.policy.lm.state_dict().items()}
    trainer.policy.lm.train()
    trainer.run_round()
    assert all(torch.equal(before[name], p) for name, p in trainer.policy.lm.state_dict().items())
    assert all(p.grad is None for p in trainer.policy.lm.parameters())


def samples_that_depend_on_the_article(sources, per_source, *_):
    tokens = sources.ids[:, 2:5].repeat_interleave(per_source, 0)  # (N, 3), behind the prefix
    tokens = 3 + (tokens + torch.arange(len(tokens)).unsqueeze(1) % per_source) % 15
    return Summaries(tokens, torch.ones_like(tokens, dtype=torch.bool))


def test_one_batch_of_twelve_is_three_of_four(tiny, tmp_path):
    """Accumulation changes nothing where the articles are the same: here all of them, in one step."""
    ends = []
    for batch, accumulate in ((12, 1), (4, 3)):
        folder = tmp_path / str(batch)
        folder.mkdir()
        trainer = make_trainer(
            tiny, folder, reward_learning_batch_size=batch, rew_gradient_accumulation_steps=accumulate
        )
        trainer.policy.sample = samples_that_depend_on_the_article
        trainer.preference = Preference("place", lambda p, r, s: [float(i % 3) for i in range(len(p))])
        trainer.run_round()
        ends.append(trainer.reward.model.state_dict())
        assert trainer.steps_done == 1
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_last_partial_accumulation_is_divided_by_what_it_holds(tiny, tmp_path, monkeypatch):
    """Three batches, two a step: the second step holds one, whose loss counts whole."""
    trainer = make_trainer(tiny, tmp_path)
    losses, parts = [], []
    plain = trainer._loss

    def loss(ranked):
        found = plain(ranked)
        losses.append(found[0])
        return found

    trainer._loss = loss
    backward = spied(Stepper.backward, lambda self, part: parts.append(part.item()))
    monkeypatch.setattr(Stepper, "backward", backward)
    monkeypatch.setattr(trainer, "_validate", lambda _: {"reward/dev_loss": 1.0, "reward/dev_rank_accuracy": 0.5})
    trainer.run_round()
    values = [loss.item() for loss in losses]
    assert parts == pytest.approx([values[0] / 2, values[1] / 2, values[2]])


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_summaries_of_several_batches_are_sampled_at_once_and_are_the_same(tiny, tmp_path, model):
    found = {}
    for at_once in (1, 2, 4):
        folder = tmp_path / str(at_once)
        folder.mkdir()
        name = getattr(tiny, model)
        trainer = make_trainer(tiny, folder, rew_sampling_batches=at_once, model_name_or_path=name)
        counts = []
        trainer.policy.sample = spied(trainer.policy.sample, lambda sources, *_, c=counts: c.append(len(sources.ids)))
        batches = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        found[at_once] = list(trainer.ranked_from(batches, 0))
        assert counts == {1: [4, 4, 3], 2: [8, 3], 4: [11]}[at_once]
    for together in (found[2], found[4]):
        for ranked, expected in zip(together, found[1], strict=True):
            assert ranked.batch.indices == expected.batch.indices
            assert torch.equal(ranked.batch.source_ids, expected.batch.source_ids)
            assert torch.equal(ranked.summaries.tokens * ranked.summaries.mask,
                               expected.summaries.tokens * expected.summaries.mask)  # fmt: skip
            assert torch.equal(ranked.summaries.mask, expected.summaries.mask)
            assert torch.equal(ranked.preferences, expected.preferences)
            assert torch.equal(ranked.ranks, expected.ranks)


@pytest.mark.parametrize(("model", "count"), [("t5", 4), ("llama", 1)])
def test_by_default_an_encoder_decoder_samples_four_batches_at_once(tiny, tmp_path, model, count):
    trainer = make_trainer(tiny, tmp_path, model_name_or_path=getattr(tiny, model))
    assert trainer.sampled_at_once == count


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_what_is_sampled_together_does_not_depend_on_where_a_round_goes_on(tiny, tmp_path, first):
    trainer = make_trainer(tiny, tmp_path, rew_sampling_batches=2)
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

    trainer = make_trainer(tiny, tmp_path, engine=Second(start_engine("cpu").accelerator), rew_sampling_batches=4)
    ranked = list(trainer.ranked_from([[0, 1], [2], [3, 4, 5]], 0))
    assert [None if sets is None else sets.batch.indices for sets in ranked] == [[1], None, [4]]
    alone = list(trainer.ranked_from([[2]], 0))
    assert alone == [None]


def test_early_stop_ends_a_round(tiny, tmp_path, monkeypatch):
    trainer = make_trainer(tiny, tmp_path, rew_num_train_epochs=50, rew_eval_period=0.5, early_stop_count=2)
    monkeypatch.setattr(trainer, "_validate", lambda _: {"reward/dev_loss": 1.0, "reward/dev_rank_accuracy": 0.5})
    trainer.run_round()
    assert trainer.steps_done < 10


def test_equal_preferences_are_no_ranking_and_the_round_says_so_and_goes_on(tiny, tmp_path, caplog):
    trainer = make_trainer(tiny, tmp_path)
    trainer.preference = Preference("constant", lambda p, r, s: [0.5] * len(p))
    trainer.run_round()
    assert "round 0, step 1: in no ranking set were two preferences different" in caplog.text
    assert all(p.isfinite().all() for p in trainer.reward.model.parameters())
    assert trainer.rounds_done == 1


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_swap_accuracy_is_how_often_a_references_token_beats_the_policys_likeliest_other(tiny, tmp_path, name):
    trainer = make_trainer(tiny, tmp_path, model_name_or_path=getattr(tiny, name), separator=" : ")
    policy = trainer.policy
    policy.lm.eval()
    batch = trainer.collate(trainer.validation, range(len(trainer.validation)))
    swaps = trainer._swaps(batch)
    rows = torch.arange(len(batch.rows))
    references, swapped = swaps.summaries.tokens[::2], swaps.summaries.tokens[1::2]
    assert torch.equal(references, batch.target_ids)
    assert (references != swapped).nonzero().tolist() == torch.stack([rows, swaps.places], 1).tolist()
    assert not (references[rows, swaps.places] == policy.end_id).any()
    with torch.no_grad():
        sources = policy.encode(batch.source_ids, batch.source_mask)
        logits = policy.logits(sources, Summaries(batch.target_ids, batch.target_mask))[rows, swaps.places]
    own, other = (tokens[rows, swaps.places] for tokens in (references, swapped))
    for row in rows:
        ranked = logits[row, : len(policy.tokenizer)].argsort(descending=True)
        assert other[row] == next(token for token in ranked if token != own[row])

    # A reward by which the greater id is the better token.
    trainer.reward.policy_rewards = lambda batch, summaries: summaries.tokens.double()
    figures = trainer._swap_figures(batch, swaps)
    assert (figures.swaps, figures.swaps_seen) == (len(rows), (own > other).sum().item())
    held_out = figures.held_out()
    assert held_out["reward/dev_swap_accuracy"] == figures.swaps_seen / len(rows)
    assert held_out["reward/dev_swap_low"] < held_out["reward/dev_swap_accuracy"] <= held_out["reward/dev_swap_high"]
    assert "reward/swap_accuracy" not in RankingFigures().means()
