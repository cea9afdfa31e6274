"""Training of the summarizer."""

import time

import pytest
import torch
from torch.nn import functional as F

from common.errors import UserError
from common.policy_losses import reward_weighted_mle_loss
from common.token_reward_model import bound_rewards
from common.training.checkpoint import StateTree
from common.training.engine import start_engine
from common.training.tracking import MetricsLog, read_metrics
from sum_task.batching import tokenize
from sum_task.data import load_splits
from sum_task.models import Summaries, load_policy, load_reward_model
from sum_task.policy_trainer import PolicyTrainer, steps_every
from sum_task.preferences import make_preference
from sum_task.reward_trainer import RewardTrainer
from tests.sum_task.tiny import spied


def make_trainer(tiny, folder, **changes):
    settings = tiny.settings(**changes)
    torch.manual_seed(settings.run.seed)
    splits = load_splits(train_file=tiny.train, validation_file=tiny.validation)
    policy = load_policy(settings.models, settings.text, settings.evaluation)
    train, validation = (tokenize(rows, policy.format, 6) for rows in (splits.train, splits.validation))
    log = MetricsLog(folder / "metrics.jsonl")
    shared = (start_engine("cpu"), log)
    reward_trainer = None
    if settings.policy.uses_rewards:
        reward = load_reward_model(settings.models, settings.text, policy)
        preference = make_preference("rouge1")
        reward_trainer = RewardTrainer(reward, policy, preference, train, validation, settings.reward, *shared)
    scores = iter(range(100))
    return PolicyTrainer(
        policy,
        reward_trainer,
        train,
        lambda: {"eval/score": float(next(scores))},
        lambda: None,
        settings.policy,
        *shared,
    )


def whole_batch(trainer):
    return trainer.collate(trainer.train_data, list(range(len(trainer.train_data))))


def test_loss_is_the_reward_weighted_likelihood_with_rewards_read_at_the_labels(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path)
    batch = whole_batch(trainer)
    labels = Summaries(batch.target_ids, batch.target_mask)
    loss, figures = trainer._loss(batch, None, list(range(12)))
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.source_ids, batch.source_mask), labels)
        # [start, y1, y2, ...] in, the reward of y_t read where it has just been read: one place further.
        start = torch.zeros(12, 1, dtype=torch.long)
        model = trainer.reward_trainer.reward.model.eval()
        rewards = model(
            input_ids=batch.source_ids, attention_mask=batch.source_mask,
            decoder_input_ids=torch.cat([start, labels.tokens], 1),
            decoder_attention_mask=torch.cat([torch.ones(12, 1).bool(), labels.mask], 1),
        )[:, 1:]  # fmt: skip
    expected = reward_weighted_mle_loss(logits, labels.tokens, rewards, labels.mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert figures["policy/mle_loss"] == loss.item()


def test_no_guidance_is_the_mean_token_likelihood(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, guidance="none")
    batch = whole_batch(trainer)
    labels = Summaries(batch.target_ids, batch.target_mask)
    loss, _ = trainer._loss(batch, None, list(range(12)))
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.source_ids, batch.source_mask), labels)
    expected = F.cross_entropy(logits[labels.mask], labels.tokens[labels.mask])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sequence_guidance_weighs_a_summary_by_its_score_against_the_others_of_the_step(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, guidance="sequence")
    trainer._batches = lambda step: [list(range(5)), list(range(5, 12))]
    batch = whole_batch(trainer)
    labels = Summaries(batch.target_ids, batch.target_mask)
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.source_ids, batch.source_mask), labels)
        rewards = trainer._label_rewards(batch, labels)
    scores = torch.stack([row[real].mean() for row, real in zip(rewards, labels.mask, strict=True)])
    weights = ((scores - scores.mean()) / scores.std(correction=0) / 0.5).exp()
    assert weights.max() / weights.min() > 10
    losses = F.cross_entropy(logits.mT, labels.tokens, reduction="none")
    each_token = weights.unsqueeze(-1) * labels.mask
    expected = (each_token * losses).sum() / each_token.sum()
    figures, _ = trainer._step(1)
    assert figures["policy/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_sequence_guidance_of_equal_scores_is_plain_likelihood(tiny, tmp_path):
    losses = []
    for guidance in ("sequence", "none"):
        (tmp_path / guidance).mkdir()
        trainer = make_trainer(tiny, tmp_path / guidance, guidance=guidance, per_device_train_batch_size=12)
        trainer._batches = lambda step: [list(range(12))]
        if guidance == "sequence":
            trainer._label_rewards = lambda batch, labels: torch.full(labels.mask.shape, 0.3)
        losses.append(trainer._step(1)[0]["policy/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("shares", ["batch", "sequence"])
def test_product_credit_weighs_each_token_by_its_summary_and_its_advantage(tiny, tmp_path, shares):
    trainer = make_trainer(tiny, tmp_path, credit="product", rew_head="likelihood", weight_shares=shares)
    trainer._batches = lambda step: [list(range(5)), list(range(5, 12))]
    batch = whole_batch(trainer)
    labels = Summaries(batch.target_ids, batch.target_mask)
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.source_ids, batch.source_mask), labels)
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
    figures, _ = trainer._step(1)
    assert figures["policy/loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("policy", ["t5", "llama"])
def test_an_advantage_by_the_published_head_is_over_the_policys_likeliest_tokens(tiny, tmp_path, policy):
    options = {"credit": "exp-advantage", "weight_shares": "batch", "expectation_tokens": 3}
    trainer = make_trainer(tiny, tmp_path, model_name_or_path=getattr(tiny, policy), **options)
    batch = whole_batch(trainer)
    labels = Summaries(batch.target_ids, batch.target_mask)
    reward = trainer.reward_trainer.reward
    with torch.no_grad():
        logits = trainer.policy.logits(trainer.policy.encode(batch.source_ids, batch.source_mask), labels)
        rewards = reward.policy_rewards(batch, labels)
        expected = torch.zeros_like(rewards)
        for place in range(labels.tokens.shape[1]):
            likely = logits[:, place].softmax(-1).topk(3, -1)
            for k in range(3):
                tokens = labels.tokens.clone()
                tokens[:, place] = likely.indices[:, k]
                share = likely.values[:, k] / likely.values.sum(-1)
                expected[:, place] += share * reward.policy_rewards(batch, Summaries(tokens, labels.mask))[:, place]
    found = trainer._judge(batch, labels, logits)
    torch.testing.assert_close(found[0], rewards, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1][labels.mask], expected[labels.mask], rtol=0, atol=1e-5)
    advantage = (rewards - expected).masked_fill(~labels.mask, 0)
    weights = (advantage / advantage[labels.mask].std(correction=0)).exp() * labels.mask
    weighed = trainer._weigh([batch])[0]
    torch.testing.assert_close(weighed.weights, weights, rtol=1e-3, atol=1e-4)


def test_the_preference_itself_can_score_references_and_samples(tiny, tmp_path):
    """An oracle: compared with itself a reference has the best score, with another text one below."""
    trainer = make_trainer(tiny, tmp_path, guidance="sequence", sequence_score="preference")
    trainer.train_data.rows[3] = trainer.train_data.rows[3]._replace(compared="summarize")
    batch = whole_batch(trainer)
    scores = trainer._reference_scores(batch)
    assert scores.tolist() == [0.0 if row == 3 else 1.0 for row in range(12)]
    weighed = trainer._weigh([batch])[0]
    assert weighed.weights[3, 0] < 0.01 * weighed.weights[0, 0]


def test_leave_one_out_compares_the_samples_of_an_article(tiny, tmp_path):
    options = {"reinforce_coeff": 1.0, "mle_coeff": 0.0, "reinforce_credit": "sequence"}
    trainer = make_trainer(tiny, tmp_path, **options, reinforce_baseline="leave-one-out", num_reinforce_samples=3)
    batch = whole_batch(trainer)
    sources = trainer.policy.encode(batch.source_ids, batch.source_mask)
    noise = torch.rand(36, 6, generator=torch.Generator().manual_seed(0))
    samples = trainer.policy.sample(sources, 3, noise, None, 1.0)
    weights, rewards = trainer._weigh_samples(batch, samples, trainer.policy.logits(sources, samples))
    scores = ((rewards * samples.mask).sum(-1) / samples.mask.sum(-1)).view(12, 3)
    others = (scores.sum(-1, keepdim=True) - scores) / 2
    torch.testing.assert_close(weights[:, 0], (scores - others).flatten())
    figures, _ = trainer._step(1)
    assert "policy/mle_loss" not in figures
    assert figures["policy/loss"] == figures["policy/reinforce_loss"]


@pytest.mark.parametrize("guidance", ["token", "sequence", "none"])
def test_accumulation_changes_nothing(tiny, tmp_path, guidance):
    ends = []
    for batch, accumulate in ((12, 1), (4, 3)):
        folder = tmp_path / str(batch)
        folder.mkdir()
        trainer = make_trainer(
            tiny, folder, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate, guidance=guidance
        )
        trainer._batches = lambda step, b=batch: [list(range(i, i + b)) for i in range(0, 12, b)]
        losses = [trainer._step(step)[0]["policy/loss"] for step in (1, 2)]
        ends.append((losses, trainer.policy.lm.state_dict()))
    if guidance != "none":  # plain likelihood is the mean over the tokens of each batch
        assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-5)
        assert all(torch.allclose(ends[0][1][n], ends[1][1][n], atol=1e-5) for n in ends[0][1])


def test_reward_model_is_in_evaluation_mode_and_gets_no_gradient(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, reinforce_coeff=1.0, max_entropy_coeff=0.1)
    model = trainer.reward_trainer.reward.model
    model.train()
    modes = []
    model.register_forward_hook(lambda m, *_: modes.append((m.training, torch.is_grad_enabled())))
    trainer._step(1)
    assert set(modes) == {(False, False)}
    assert all(p.grad is None for p in model.parameters())


def test_gradients_that_are_not_finite_change_no_weight_and_stop_the_run_after_some(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, guidance="none", num_train_epochs=10)
    weights = dict(trainer.policy.lm.named_parameters())
    before = {name: value.detach().clone() for name, value in weights.items()}
    next(iter(weights.values())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match=r"^policy learning: the gradient was not finite for 10 steps in a row"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    logged = [event.get("policy/skipped_steps") for event in read_metrics(tmp_path / "metrics.jsonl")]
    assert [count for count in logged if count is not None] == list(range(1, 10))


def test_rounds_come_before_the_first_step_and_periodically_in_the_first_epochs(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, num_train_epochs=4, gradient_accumulation_steps=1, reward_retrain_epochs=2)
    rounds = []

    def run_round(*_):
        rounds.append(trainer.steps_done)
        trainer.reward_trainer.rounds_done = len(rounds)

    trainer.reward_trainer.run_round = run_round
    trainer.train()
    assert trainer.steps_per_epoch == 3
    assert rounds == [0, 1, 3, 4, 6]  # every half epoch of three steps, to the end of the second
    validated = [e["step"] for e in read_metrics(tmp_path / "metrics.jsonl") if e["phase"] == "eval"]
    assert validated == [3, 6, 9, 12]


def test_learning_rate_is_constant_and_reset_optim_starts_afresh(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, reset_optim="true", gradient_accumulation_steps=1)
    made = []
    trainer._new_optimizer = spied(trainer._new_optimizer, lambda: made.append(trainer.steps_done))
    trainer.train()
    assert made == [0, 1]
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.settings.learning_rate


def test_training_fits_the_references(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, guidance="token", learning_rate=1e-2, num_train_epochs=20)
    trainer.train()
    losses = [e["policy/loss"] for e in read_metrics(tmp_path / "metrics.jsonl") if e["phase"] == "policy"]
    assert losses[-1] < 0.6 * losses[0]


def test_reinforce_term_raises_what_is_rewarded(tiny, tmp_path):
    """With rewards of one for a single token, REINFORCE alone makes the policy write it more often."""
    trainer = make_trainer(tiny, tmp_path, reinforce_coeff=1.0, learning_rate=1e-2, num_reinforce_samples=4)
    wanted = 6
    trainer._rewards = lambda batch, summaries: (summaries.tokens == wanted).float() * summaries.mask
    shares = []
    plain = trainer.policy.sample

    def sample(*args):
        found = plain(*args)
        shares.append((found.tokens[found.mask] == wanted).float().mean().item())
        return found

    trainer.policy.sample = sample
    trainer._batches = lambda step: [list(range(12))]
    from sum_task import policy_trainer

    original = policy_trainer.reward_weighted_mle_loss
    policy_trainer.reward_weighted_mle_loss = lambda logits, *_: logits.sum() * 0
    try:
        for step in range(1, 31):
            trainer._step(step)
    finally:
        policy_trainer.reward_weighted_mle_loss = original
    assert sum(shares[-5:]) / 5 > sum(shares[:5]) / 5 + 0.2


def test_entropy_term_raises_the_entropy(tiny, tmp_path):
    ends = {}
    for coefficient in (0.0001, 5.0):
        folder = tmp_path / str(coefficient)
        folder.mkdir()
        trainer = make_trainer(tiny, folder, max_entropy_coeff=coefficient, learning_rate=1e-2)
        ends[coefficient] = [trainer._step(step)[0]["policy/entropy"] for step in (1, 2, 1, 2, 1, 2, 1, 2)][-1]
    assert ends[5.0] > ends[0.0001] + 0.05


def count_rewarded(trainer):
    """Rows whose references the reward model is asked to weigh, in the order in which it is."""
    asked = []
    trainer._rewards = spied(trainer._rewards, lambda batch, summaries: asked.extend(batch.indices))
    return asked


def test_rewards_of_a_reference_are_computed_once_between_two_rounds(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, num_train_epochs=4, gradient_accumulation_steps=1, reward_retrain_epochs=1)
    asked = count_rewarded(trainer)
    trainer.train()  # three steps an epoch; rounds after steps 0, 1 and 3, each of which makes the next steps ask anew
    first, second, third = asked[:4], asked[4:12], asked[12:]
    assert len(set(first + second)) == 12
    assert sorted(third) == list(range(12))


def test_rates_are_those_of_the_steps_alone(tiny, tmp_path, monkeypatch):
    """Rounds and validations that end between two lines of the log."""
    trainer = make_trainer(tiny, tmp_path, num_train_epochs=2, gradient_accumulation_steps=1, log_every=100)
    plain = trainer.reward_trainer.run_round

    def run_round(*given):
        plain(*given)
        time.sleep(1)

    trainer.reward_trainer.run_round = run_round
    trainer.train()
    (line,) = (event for event in read_metrics(tmp_path / "metrics.jsonl") if event["phase"] == "policy")
    assert trainer.reward_trainer.rounds_done > 1
    assert line["perf/policy_steps_per_second"] > trainer.steps_done / trainer.reward_trainer.rounds_done


def test_remembered_rewards_change_no_step(tiny, tmp_path):
    options = {"num_train_epochs": 3, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 5}
    ends = []
    for remembers in (True, False):
        folder = tmp_path / str(remembers)
        folder.mkdir()
        trainer = make_trainer(tiny, folder, **options)
        if not remembers:
            trainer.reference_rewards = None
        asked = count_rewarded(trainer)
        trainer.train()
        ends.append((len(asked), trainer.policy.lm.state_dict()))
    assert ends[0][0] < ends[1][0]
    assert all(torch.allclose(ends[0][1][name], ends[1][1][name], atol=1e-6) for name in ends[0][1])


def test_learnt_padding_is_rewarded_in_each_batch_anew(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, ignore_pad_token_for_loss="false", num_train_epochs=2)
    asked = count_rewarded(trainer)
    trainer.train()
    assert len(asked) == 24


def test_remembered_rewards_are_in_the_checkpoint(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, gradient_accumulation_steps=1)
    trainer._step(1)
    state = StateTree()
    trainer.save_state(state)
    other = make_trainer(tiny, tmp_path)
    other.load_state(state)
    values = trainer.reference_rewards.values
    known = [row for row in range(12) if trainer.reference_rewards.knows(row)]
    assert sorted(known) == sorted(row for rows in trainer._batches(1) for row in rows)
    assert torch.equal(other.reference_rewards.values[~values.isnan()], values[~values.isnan()])
    assert torch.equal(other.reference_rewards.values.isnan(), values.isnan())


def test_published_rounds_on_cnn_dm():
    """287,113 rows, 8 x 4 a step: the published step numbers."""
    assert steps_every(1e-300, 2, 4) == set(range(9))  # at most every step, and at once
    assert sorted(steps_every(0.5, 2, 287_113 / 32)) == [0, 4486, 8972, 13458, 17944]


def test_norms_and_biases_do_not_decay(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    named = {name: decays[id(p)] for name, p in trainer.policy.lm.named_parameters()}
    assert {decay for name, decay in named.items() if "layer_norm" in name} == {0.0}
    assert {decay for name, decay in named.items() if "layer_norm" not in name} == {0.1}
