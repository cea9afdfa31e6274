"""Training of the summarizer."""

import time

import pytest
import torch

from common.errors import UserError
from common.training.checkpoint import StateTree
from common.training.tracking import read_metrics
from sum_task.policy_trainer import steps_every
from tests.sum_task.tiny import spied
from tests.sum_task.trainers import make_policy_trainer


@pytest.mark.parametrize("guidance", ["token", "sequence", "none"])
def test_accumulation_changes_nothing(tiny, tmp_path, guidance):
    ends = []
    for batch, accumulate in ((12, 1), (4, 3)):
        folder = tmp_path / str(batch)
        folder.mkdir()
        trainer = make_policy_trainer(
            tiny, folder, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate, guidance=guidance
        )
        trainer._batches = lambda step, b=batch: [list(range(i, i + b)) for i in range(0, 12, b)]
        losses = [trainer._step(step)["policy/loss"] for step in (1, 2)]
        ends.append((losses, trainer.policy.lm.state_dict()))
    if guidance != "none":  # plain likelihood is the mean over the tokens of each batch
        assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-5)
        assert all(torch.allclose(ends[0][1][n], ends[1][1][n], atol=1e-5) for n in ends[0][1])


def test_gradients_that_are_not_finite_change_no_weight_and_stop_the_run_after_some(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, guidance="none", num_train_epochs=10)
    weights = dict(trainer.policy.lm.named_parameters())
    before = {name: value.detach().clone() for name, value in weights.items()}
    next(iter(weights.values())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match=r"^policy learning: the gradient was not finite for 10 steps in a row"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    logged = [event.get("policy/skipped_steps") for event in read_metrics(tmp_path / "metrics.jsonl")]
    assert [count for count in logged if count is not None] == list(range(1, 10))


def test_rounds_come_before_the_first_step_and_periodically_in_the_first_epochs(tiny, tmp_path):
    trainer = make_policy_trainer(
        tiny, tmp_path, num_train_epochs=4, gradient_accumulation_steps=1, reward_retrain_epochs=2
    )
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


def test_no_policy_step_leaves_one_round_of_rewards(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, num_train_epochs=0)
    before = {name: value.clone() for name, value in trainer.policy.lm.state_dict().items()}
    trainer.train()
    trainer.train()  # as after a resume: what is done stays done
    assert (trainer.steps_done, trainer.reward_trainer.rounds_done) == (0, 1) and trainer.reward_trainer.steps_done > 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.policy.lm.state_dict().items())


def test_learning_rate_is_constant_and_reset_optim_starts_afresh(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, reset_optim="true", gradient_accumulation_steps=1)
    made = []
    trainer._new_optimizer = spied(trainer._new_optimizer, lambda: made.append(trainer.steps_done))
    trainer.train()
    assert made == [0, 1]
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.settings.learning_rate


def test_training_fits_the_references(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, guidance="token", learning_rate=1e-2, num_train_epochs=20)
    trainer.train()
    losses = [e["policy/loss"] for e in read_metrics(tmp_path / "metrics.jsonl") if e["phase"] == "policy"]
    assert losses[-1] < 0.6 * losses[0]


def test_rates_are_those_of_the_steps_alone(tiny, tmp_path, monkeypatch):
    """Rounds and validations that end between two lines of the log."""
    trainer = make_policy_trainer(tiny, tmp_path, num_train_epochs=2, gradient_accumulation_steps=1, log_every=100)
    plain = trainer.reward_trainer.run_round

    def run_round(*given):
        plain(*given)
        time.sleep(1)

    trainer.reward_trainer.run_round = run_round
    trainer.train()
    (line,) = (event for event in read_metrics(tmp_path / "metrics.jsonl") if event["phase"] == "policy")
    assert trainer.reward_trainer.rounds_done > 1
    assert line["perf/policy_steps_per_second"] > trainer.steps_done / trainer.reward_trainer.rounds_done


def test_remembered_rewards_are_in_the_checkpoint(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, gradient_accumulation_steps=1)
    trainer._step(1)
    state = StateTree()
    trainer.save_state(state)
    other = make_policy_trainer(tiny, tmp_path)
    other.load_state(state)
    values = trainer.loss.reference_rewards.values
    known = [row for row in range(12) if trainer.loss.reference_rewards.knows(row)]
    assert sorted(known) == sorted(row for rows in trainer._batches(1) for row in rows)
    assert torch.equal(other.loss.reference_rewards.values[~values.isnan()], values[~values.isnan()])
    assert torch.equal(other.loss.reference_rewards.values.isnan(), values.isnan())


def test_published_rounds_on_cnn_dm():
    """287,113 rows, 8 x 4 a step: the published step numbers."""
    assert steps_every(1e-300, 2, 4) == set(range(9))  # at most every step, and at once
    assert sorted(steps_every(0.5, 2, 287_113 / 32)) == [0, 4486, 8972, 13458, 17944]


def test_norms_and_biases_do_not_decay(tiny, tmp_path):
    trainer = make_policy_trainer(tiny, tmp_path, weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    named = {name: decays[id(p)] for name, p in trainer.policy.lm.named_parameters()}
    assert {decay for name, decay in named.items() if "layer_norm" in name} == {0.0}
    assert {decay for name, decay in named.items() if "layer_norm" not in name} == {0.1}
