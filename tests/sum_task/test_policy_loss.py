"""The policy's loss and what weighs it."""

import pytest
import torch
from torch.nn import functional as F

from common.policy_losses import reward_weighted_mle_loss
from common.token_reward_model import bound_rewards
from sum_task import policy_loss
from sum_task.batching import Padded
from sum_task.sampling import sample_summaries
from tests.sum_task.trainers import count_rewarded, make_policy_trainer, whole_batch


def test_loss_is_the_reward_weighted_likelihood_with_rewards_read_at_the_labels(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path)
    batch = whole_batch(trainer)
    labels = batch.targets
    loss, figures = trainer.loss(batch, None, list(range(12)))
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.sources), labels)
        # [start, y1, y2, ...] in, the reward of y_t read where it has just been read: one place further.
        start = torch.zeros(12, 1, dtype=torch.long)
        model = trainer.reward_trainer.reward.model.eval()
        rewards = model(
            input_ids=batch.sources.tokens, attention_mask=batch.sources.mask,
            decoder_input_ids=torch.cat([start, labels.tokens], 1),
            decoder_attention_mask=torch.cat([torch.ones(12, 1).bool(), labels.mask], 1),
        )[:, 1:]  # fmt: skip
    expected = reward_weighted_mle_loss(logits, labels.tokens, rewards, labels.mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert figures["policy/mle_loss"].item() == loss.item()


def test_no_guidance_is_the_mean_token_likelihood(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, guidance="none")
    batch = whole_batch(trainer)
    labels = batch.targets
    loss, _ = trainer.loss(batch, None, list(range(12)))
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.sources), labels)
    expected = F.cross_entropy(logits[labels.mask], labels.tokens[labels.mask])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sequence_guidance_weighs_a_summary_by_its_score_against_the_others_of_the_step(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, guidance="sequence")
    trainer._batches = lambda step: [list(range(5)), list(range(5, 12))]
    batch = whole_batch(trainer)
    labels = batch.targets
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.sources), labels)
        rewards = trainer.loss._reference_rewards(batch)
    scores = torch.stack([row[real].mean() for row, real in zip(rewards, labels.mask, strict=True)])
    weights = ((scores - scores.mean()) / scores.std(correction=0) / 0.5).exp()
    assert weights.max() / weights.min() > 10
    losses = F.cross_entropy(logits.mT, labels.tokens, reduction="none")
    each_token = weights.unsqueeze(-1) * labels.mask
    expected = (each_token * losses).sum() / each_token.sum()
    figures = trainer._step(1)
    assert figures["policy/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_sequence_guidance_of_equal_scores_is_plain_likelihood(tiny, tmp_path):
    losses = []
    for guidance in ("sequence", "none"):
        (tmp_path / guidance).mkdir()
        trainer = make_policy_trainer(tiny, tmp_path / guidance, guidance=guidance, per_device_train_batch_size=12)
        trainer._batches = lambda step: [list(range(12))]
        if guidance == "sequence":
            trainer.loss._reference_rewards = lambda batch: torch.full(batch.targets.mask.shape, 0.3)
        losses.append(trainer._step(1)["policy/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("shares", ["batch", "sequence"])
def test_product_credit_weighs_each_token_by_its_summary_and_its_advantage(tiny, tmp_path, shares):
    trainer = make_policy_trainer(tiny, tmp_path, credit="product", rew_head="likelihood", weight_shares=shares)
    trainer._batches = lambda step: [list(range(5)), list(range(5, 12))]
    batch = whole_batch(trainer)
    labels = batch.targets
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.sources), labels)
        # The reward model starts as the policy: r(s, a) = bound(0.25 log p(a | s) + 1), of every token.
        table = bound_rewards(0.25 * logits.log_softmax(-1) + 1, "softplus")
    rewards = table.gather(-1, labels.tokens.unsqueeze(-1)).squeeze(-1)
    advantage = rewards - (logits.softmax(-1) * table).sum(-1)
    scores = (rewards * labels.mask).sum(-1) / labels.mask.sum(-1)
    of_summary = ((scores - scores.mean()) / scores.std(correction=0) / 0.5).exp()
    of_token = F.softplus(1 + advantage / advantage[labels.mask].std(correction=0))
    weights = of_summary.unsqueeze(-1) * of_token * labels.mask
    losses = F.cross_entropy(logits.mT, labels.tokens, reduction="none")
    if shares == "batch":
        expected = (weights * losses).sum() / weights.sum()
    else:
        expected = ((weights * losses).sum(-1) / weights.sum(-1)).mean()
    figures = trainer._step(1)
    assert figures["policy/loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("policy", ["t5", "llama"])
def test_an_advantage_by_the_published_head_is_over_the_policys_likeliest_tokens(tiny, tmp_path, policy):
    options = {"credit": "exp-advantage", "weight_shares": "batch", "expectation_tokens": 3}
    trainer = make_policy_trainer(tiny, tmp_path, model_name_or_path=getattr(tiny, policy), **options)
    batch = whole_batch(trainer)
    labels = batch.targets
    reward = trainer.reward_trainer.reward
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.sources), labels)
        rewards = reward.policy_rewards(batch, labels)
        expected = torch.zeros_like(rewards)
        for place in range(labels.tokens.shape[1]):
            likely = logits[:, place].softmax(-1).topk(3, -1)
            for k in range(3):
                tokens = labels.tokens.clone()
                tokens[:, place] = likely.indices[:, k]
                share = likely.values[:, k] / likely.values.sum(-1)
                expected[:, place] += share * reward.policy_rewards(batch, Padded(tokens, labels.mask))[:, place]
    found = trainer.loss.judge(batch, labels, logits)
    torch.testing.assert_close(found[0], rewards, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1][labels.mask], expected[labels.mask], rtol=0, atol=1e-5)
    advantage = (rewards - expected).masked_fill(~labels.mask, 0)
    weights = (advantage / advantage[labels.mask].std(correction=0)).exp() * labels.mask
    weighed = trainer.loss.weigh([batch])[0]
    torch.testing.assert_close(weighed.weights, weights, rtol=1e-3, atol=1e-4)


def test_the_preference_itself_can_score_references_and_samples(tiny, tmp_path):
    """An oracle: compared with itself a reference has the best score, with another text one below."""
    trainer = make_policy_trainer(tiny, tmp_path, guidance="sequence", sequence_score="preference")
    trainer.train_data.rows[3] = trainer.train_data.rows[3]._replace(compared="summarize")
    batch = whole_batch(trainer)
    scores = trainer.loss._reference_scores(batch)
    assert scores.tolist() == [0.0 if row == 3 else 1.0 for row in range(12)]
    weighed = trainer.loss.weigh([batch])[0]
    assert weighed.weights[3, 0] < 0.01 * weighed.weights[0, 0]


def test_leave_one_out_compares_the_samples_of_an_article(tiny, tmp_path):
    options = {"reinforce_coeff": 1.0, "mle_coeff": 0.0, "reinforce_credit": "sequence"}
    trainer = make_policy_trainer(
        tiny, tmp_path, **options, reinforce_baseline="leave-one-out", num_reinforce_samples=3
    )
    batch = whole_batch(trainer)
    sources = trainer.policy.encode(batch.sources)
    noise = torch.rand(36, 6, generator=torch.Generator().manual_seed(0))
    samples = sample_summaries(trainer.policy, sources, 3, noise, None, 1.0)
    weights, rewards = trainer.loss._sample_weights(batch, samples, trainer.policy.logits(sources, samples))
    scores = ((rewards * samples.mask).sum(-1) / samples.mask.sum(-1)).view(12, 3)
    others = (scores.sum(-1, keepdim=True) - scores) / 2
    torch.testing.assert_close(weights[:, 0], (scores - others).flatten())
    figures = trainer._step(1)
    assert "policy/mle_loss" not in figures
    assert figures["policy/loss"] == figures["policy/reinforce_loss"]


def test_reward_model_is_in_evaluation_mode_and_gets_no_gradient(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, reinforce_coeff=1.0, max_entropy_coeff=0.1)
    model = trainer.reward_trainer.reward.model
    model.train()
    modes = []
    model.register_forward_hook(lambda m, *_: modes.append((m.training, torch.is_grad_enabled())))
    trainer._step(1)
    assert set(modes) == {(False, False)}
    assert all(p.grad is None for p in model.parameters())


def test_reinforce_term_raises_what_is_rewarded(tiny, tmp_path, monkeypatch):
    """With rewards of one for a single token, REINFORCE alone makes the policy write it more often."""
    trainer = make_policy_trainer(tiny, tmp_path, reinforce_coeff=1.0, learning_rate=1e-2, num_reinforce_samples=4)
    wanted = 6
    trainer.loss.rewards = lambda batch, summaries: (summaries.tokens == wanted).float() * summaries.mask
    shares = []
    plain = policy_loss.sample_summaries

    def sample(*args):
        found = plain(*args)
        shares.append((found.tokens[found.mask] == wanted).float().mean().item())
        return found

    monkeypatch.setattr(policy_loss, "sample_summaries", sample)
    trainer._batches = lambda step: [list(range(12))]
    monkeypatch.setattr(policy_loss, "reward_weighted_mle_loss", lambda logits, *_: logits.sum() * 0)
    for step in range(1, 31):
        trainer._step(step)
    assert sum(shares[-5:]) / 5 > sum(shares[:5]) / 5 + 0.2


def test_entropy_term_raises_the_entropy(tiny, tmp_path):
    ends = {}
    for coefficient in (0.0001, 5.0):
        folder = tmp_path / str(coefficient)
        folder.mkdir()
        trainer = make_policy_trainer(tiny, folder, max_entropy_coeff=coefficient, learning_rate=1e-2)
        ends[coefficient] = [trainer._step(step)["policy/entropy"] for step in (1, 2, 1, 2, 1, 2, 1, 2)][-1]
    assert ends[5.0] > ends[0.0001] + 0.05


def test_rewards_of_a_reference_are_computed_once_between_two_rounds(tiny, tmp_path):
    trainer = make_policy_trainer(
        tiny, tmp_path, num_train_epochs=4, gradient_accumulation_steps=1, reward_retrain_epochs=1
    )
    asked = count_rewarded(trainer)
    trainer.train()  # three steps an epoch; rounds after steps 0, 1 and 3, each of which makes the next steps ask anew
    first, second, third = asked[:4], asked[4:12], asked[12:]
    assert len(set(first + second)) == 12
    assert sorted(third) == list(range(12))


def test_remembered_rewards_change_no_step(tiny, tmp_path):
    options = {"num_train_epochs": 3, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 5}
    ends = []
    for remembers in (True, False):
        folder = tmp_path / str(remembers)
        folder.mkdir()
        trainer = make_policy_trainer(tiny, folder, **options)
        if not remembers:
            trainer.loss.reference_rewards = None
        asked = count_rewarded(trainer)
        trainer.train()
        ends.append((len(asked), trainer.policy.lm.state_dict()))
    assert ends[0][0] < ends[1][0]
    assert all(torch.allclose(ends[0][1][name], ends[1][1][name], atol=1e-6) for name in ends[0][1])


def test_learnt_padding_is_rewarded_in_each_batch_anew(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, ignore_pad_token_for_loss="false", num_train_epochs=2)
    asked = count_rewarded(trainer)
    trainer.train()
    assert len(asked) == 24
