"""Learning of token rewards from ranked summaries."""

import math

import pytest
import torch

from common.training.random_keys import Purpose
from common.training.ranking_figures import RankingFigures
from common.training.stepper import Stepper
from common.training.tracking import read_metrics
from sum_task import ranked_summaries
from sum_task.batching import Padded
from sum_task.preferences import Preference
from sum_task.reward_loss import RewardLoss
from tests.sum_task.tiny import spied
from tests.sum_task.trainers import make_reward_trainer


def test_rounds_learn_which_token_is_preferred(tiny, tmp_path):
    trainer = make_reward_trainer(
        tiny, tmp_path, agg_func="sum", rew_num_train_epochs=40, rew_eval_period=10, rew_validation_share=1
    )
    trainer.run_round()
    assert trainer.last_figures["reward/dev_rank_accuracy"] > 0.9
    events = read_metrics(tmp_path / "metrics.jsonl")
    assert events[-1]["reward/loss"] < events[0]["reward/loss"]
    assert {event["phase"] for event in events} == {"reward"}


def test_first_loss_of_the_published_head_is_that_of_equal_scores(tiny, tmp_path):
    trainer = make_reward_trainer(tiny, tmp_path, head_init_gain=1e-4, reward_learning_samples=4)
    trainer.run_round()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["reward/loss"] == pytest.approx(math.log(24), abs=1e-4)


def test_best_weights_of_the_round_are_the_ones_that_stay(tiny, tmp_path, monkeypatch):
    trainer = make_reward_trainer(tiny, tmp_path, rew_num_train_epochs=2, rew_eval_period=0.5)
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
    trainer = make_reward_trainer(tiny, tmp_path)
    before = {name: p.clone() for name, p in trainer.ranker.policy.lm.state_dict().items()}
    trainer.ranker.policy.lm.train()
    trainer.run_round()
    assert all(torch.equal(before[name], p) for name, p in trainer.ranker.policy.lm.state_dict().items())
    assert all(p.grad is None for p in trainer.ranker.policy.lm.parameters())


def samples_that_depend_on_the_article(policy, sources, per_source, *_):
    tokens = sources.ids[:, 2:5].repeat_interleave(per_source, 0)  # (N, 3), behind the prefix
    tokens = 3 + (tokens + torch.arange(len(tokens)).unsqueeze(1) % per_source) % 15
    return Padded(tokens, torch.ones_like(tokens, dtype=torch.bool))


def test_one_batch_of_twelve_is_three_of_four(tiny, tmp_path, monkeypatch):
    """Accumulation changes nothing where the articles are the same: here all of them, in one step."""
    monkeypatch.setattr(ranked_summaries, "sample_summaries", samples_that_depend_on_the_article)
    ends = []
    for batch, accumulate in ((12, 1), (4, 3)):
        folder = tmp_path / str(batch)
        folder.mkdir()
        trainer = make_reward_trainer(
            tiny, folder, reward_learning_batch_size=batch, rew_gradient_accumulation_steps=accumulate
        )
        trainer.ranker.preference = Preference("place", lambda p, r, s: [float(i % 3) for i in range(len(p))])
        trainer.run_round()
        ends.append(trainer.reward.model.state_dict())
        assert trainer.steps_done == 1
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_last_partial_accumulation_is_divided_by_what_it_holds(tiny, tmp_path, monkeypatch):
    """Three batches, two a step: the second step holds one, whose loss counts whole."""
    trainer = make_reward_trainer(tiny, tmp_path)
    losses, parts = [], []
    plain = RewardLoss.__call__

    def loss(self, ranked):
        found = plain(self, ranked)
        losses.append(found.tensors[0])
        return found

    monkeypatch.setattr(RewardLoss, "__call__", loss)
    backward = spied(Stepper.backward, lambda self, part: parts.append(part.item()))
    monkeypatch.setattr(Stepper, "backward", backward)
    monkeypatch.setattr(trainer, "_validate", lambda _: {"reward/dev_loss": 1.0, "reward/dev_rank_accuracy": 0.5})
    trainer.run_round()
    values = [loss.item() for loss in losses]
    assert parts == pytest.approx([values[0] / 2, values[1] / 2, values[2]])


def test_early_stop_ends_a_round(tiny, tmp_path, monkeypatch):
    trainer = make_reward_trainer(tiny, tmp_path, rew_num_train_epochs=50, rew_eval_period=0.5, early_stop_count=2)
    monkeypatch.setattr(trainer, "_validate", lambda _: {"reward/dev_loss": 1.0, "reward/dev_rank_accuracy": 0.5})
    trainer.run_round()
    assert trainer.steps_done < 10


def test_equal_preferences_are_no_ranking_and_the_round_says_so_and_goes_on(tiny, tmp_path, caplog):
    trainer = make_reward_trainer(tiny, tmp_path)
    trainer.ranker.preference = Preference("constant", lambda p, r, s: [0.5] * len(p))
    trainer.run_round()
    assert "round 0, step 1: in no ranking set were two preferences different" in caplog.text
    assert all(p.isfinite().all() for p in trainer.reward.model.parameters())
    assert trainer.rounds_done == 1


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_swap_accuracy_is_how_often_a_references_token_beats_the_policys_likeliest_other(tiny, tmp_path, name):
    options = {"rew_validation_share": 1, "reward_learning_batch_size": 8, "separator": " : "}
    trainer = make_reward_trainer(tiny, tmp_path, model_name_or_path=getattr(tiny, name), **options)
    policy = trainer.ranker.policy
    policy.lm.eval()
    [ranked_set] = trainer._validation_sets(Purpose.VALIDATION_SAMPLES, 0)
    batch = ranked_set.batch
    swaps = ranked_set.swaps = trainer.ranker.swaps(batch, trainer._swap_noise[batch.indices])
    rows = torch.arange(len(batch.rows))
    references, swapped = swaps.summaries.tokens[::2], swaps.summaries.tokens[1::2]
    assert torch.equal(references, batch.targets.tokens)
    assert (references != swapped).nonzero().tolist() == torch.stack([rows, swaps.places], 1).tolist()
    assert not (references[rows, swaps.places] == policy.end_id).any()
    with torch.no_grad():
        sources = policy.encode(batch.sources)
        logits = policy.logits(sources, batch.targets)[rows, swaps.places]
    own, other = (tokens[rows, swaps.places] for tokens in (references, swapped))
    for row in rows:
        ranked = logits[row, : len(policy.tokenizer)].argsort(descending=True)
        assert other[row] == next(token for token in ranked if token != own[row])

    # A reward by which the greater id is the better token.
    trainer.reward.policy_rewards = lambda batch, summaries: summaries.tokens.double()
    held_out = trainer._validate([ranked_set])
    assert held_out["reward/dev_swap_accuracy"] == (own > other).sum().item() / len(trainer.validation)
    assert held_out["reward/dev_swap_low"] < held_out["reward/dev_swap_accuracy"] <= held_out["reward/dev_swap_high"]
    assert "reward/swap_accuracy" not in RankingFigures().means()
