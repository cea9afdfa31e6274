import logging
import math

import pytest
import torch

from common.errors import UserError
from common.policy_losses import negative_entropy
from common.training.interruption import Checkpointer
from prompt_task import policy_trainer
from prompt_task.prompt_rewards import prompt_token_rewards
from prompt_task.prompt_scorer import PromptScores
from tests.engines import scaled
from tests.tiny_runs import DEV, TRAIN, make_run, noted, same_weights, weights_of


def without_reward_learning(run, monkeypatch):
    """Rounds of reward learning only note at which policy step they would have been."""
    rounds = []

    def run_round(*args, **kwargs):
        rounds.append(run.trainer.steps_done)
        run.reward_trainer.rounds_done += 1

    monkeypatch.setattr(run.reward_trainer, "run_round", run_round)
    return rounds


def note_calls(target, name, monkeypatch, note):
    """Call `note` with the arguments of each call of a function, which works as before."""
    monkeypatch.setattr(target, name, noted(getattr(target, name), note))


def dev_scores(run, monkeypatch, scores):
    """Validations give these mean scores, one after the other; the last one again and again."""
    left = list(scores)

    def score(prompts, *args, **kwargs):
        if (
            len(prompts) != run.settings.policy.num_validation_prompts * run.settings.policy.prompt_train_batch_size
        ):  # a candidate
            return PromptScores(torch.zeros(len(prompts)), torch.zeros(len(prompts)))
        value = left.pop(0) if len(left) > 1 else left[0]
        return PromptScores(torch.full((len(prompts),), float(value)), torch.zeros(len(prompts)))

    monkeypatch.setattr(run.dev_scorer, "score", score)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_train_steps": 20, "reward_retrain_period": 4}, [0, 4, 8]),  # in the first ten steps
        ({"max_train_steps": 24, "reward_retrain_period": 4}, [0, 4, 8, 12]),  # the end of the first half counts
        ({"max_train_steps": 23, "reward_retrain_period": 4}, [0, 4, 8]),
        ({"max_train_steps": 10, "reward_retrain_period": 100}, [0]),
        ({"max_train_steps": 1, "reward_retrain_period": 1}, [0]),
        ({"max_train_steps": 6, "reward_retrain_period": 1}, [0, 1, 2, 3]),
    ],
)
def test_the_reward_is_learnt_before_step_1_and_every_period_of_the_first_half(options, expected, monkeypatch):
    run = make_run(early_stop_eval_period=100, **options)
    rounds = without_reward_learning(run, monkeypatch)
    run.trainer.train()
    assert rounds == expected


def test_policy_steps_follow_each_round_with_the_new_rewards():
    run = make_run(max_train_steps=10, reward_retrain_period=2)
    run.trainer.train()
    assert [event["phase"] for event in run.log.events[:3]] == ["reward", "reward", "policy"]
    assert run.reward_trainer.rounds_done == 3
    assert {event["round"] for event in run.log.of("policy")} == {0, 2}  # steps 1, 5 and 10


def test_rewards_used_as_weights_come_from_the_model_in_evaluation_mode(monkeypatch):
    run = make_run(dropout=0.5)
    without_reward_learning(run, monkeypatch)
    run.reward_model.train()  # however a round may have left it
    modes, rewards, samples = [], [], []
    run.reward_model.register_forward_pre_hook(
        lambda module, inputs: modes.append([m.training for m in run.reward_model.modules()])
    )
    note_calls(policy_trainer, "token_weights", monkeypatch, lambda reward, *_: rewards.append(reward))
    note_calls(policy_trainer, "reinforce_loss", monkeypatch, lambda logits, tokens, *_: samples.append(tokens))
    run.trainer._step(1)
    assert not any(modes[0])
    again = prompt_token_rewards(run.reward_model.eval(), run.policy.source_ids, samples[0])
    torch.testing.assert_close(rewards[0], again)
    assert not rewards[0].requires_grad


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda rewards: rewards),
        ({"guidance": "sequence"}, lambda rewards: rewards.mean(-1, keepdim=True).expand_as(rewards)),
        ({"use_q_for_weight": True}, lambda rewards: rewards.flip(-1).cumsum(-1).flip(-1)),
    ],
    ids=["token", "sequence", "reward-to-go"],
)
def test_the_weight_of_each_token_follows_the_guidance(options, expected, monkeypatch):
    run = make_run(**options)
    rewards, weights = [], []
    note_calls(policy_trainer, "token_weights", monkeypatch, lambda reward, *_: rewards.append(reward))
    note_calls(policy_trainer, "reinforce_loss", monkeypatch, lambda logits, tokens, weight, *_: weights.append(weight))
    run.trainer._step(1)
    assert rewards[0].std() > 1e-4
    torch.testing.assert_close(weights[0], expected(rewards[0]))


def test_the_loss_is_the_weighted_likelihood_and_the_negative_entropy_of_untruncated_logits(monkeypatch):
    run = make_run(max_entropy_coeff=0.3, top_k=4)
    logits, tokens = [], []
    note_calls(policy_trainer, "reinforce_loss", monkeypatch, lambda *args: logits.append(args[0]))
    note_calls(policy_trainer, "reinforce_loss", monkeypatch, lambda *args: tokens.append(args[1]))
    loss = run.trainer._step(1)
    assert logits[0].isfinite().all()
    log_p = logits[0].log_softmax(-1)
    rewards = prompt_token_rewards(run.reward_model, run.policy.source_ids, tokens[0])
    likelihood = -(rewards * log_p.gather(-1, tokens[0].unsqueeze(-1)).squeeze(-1)).mean()
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    assert loss == pytest.approx((likelihood - 0.3 * entropy).item(), abs=1e-4)
    event = run.log.of("policy")[0]
    assert event["policy/loss"] == loss
    assert event["policy/reinforce_loss"] == pytest.approx(likelihood.item(), abs=1e-4)
    assert event["policy/entropy"] == pytest.approx(entropy.item(), abs=1e-4)
    assert event["policy/token_reward"] == pytest.approx(rewards.mean().item(), abs=1e-5)


def test_a_step_changes_the_adaptor_alone():
    run = make_run()
    before, reward = weights_of(run.policy), weights_of(run.reward_model)
    run.trainer._step(1)
    changed = {name for name, value in weights_of(run.policy).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("adaptor.")}
    assert same_weights(weights_of(run.reward_model), reward)


def test_the_entropy_term_keeps_the_policy_exploring(monkeypatch):
    def entropy(coefficient):
        run = make_run(max_entropy_coeff=coefficient, max_train_steps=30, early_stop_eval_period=100)
        without_reward_learning(run, monkeypatch)
        for parameter in run.policy.adaptor.parameters():  # far from uniform, as after some training
            torch.nn.init.normal_(parameter, std=0.5)
        run.trainer.train()
        logits = run.policy.sample(64, torch.Generator().manual_seed(0), with_logits=True).logits
        return -negative_entropy(logits, torch.ones(logits.shape[:2])).item()

    assert entropy(5.0) > entropy(0.0) + 0.5


@pytest.mark.parametrize("clip", [True, False])
def test_gradients_are_clipped_to_the_norm_where_that_is_asked_for(clip, monkeypatch):
    run = make_run(gradient_clip=clip, gradient_clip_norm=1e-6)
    norms = []
    note_calls(
        run.trainer.optimizer, "step", monkeypatch,
        lambda: norms.append(torch.stack([p.grad.norm() for p in run.policy.adaptor.parameters()]).norm().item()),
    )  # fmt: skip
    run.trainer._step(1)
    assert (norms[0] < 1.01e-6) == clip
    assert run.log.of("policy")[0]["policy/gradient_norm"] > 2e-6  # what it was before


@pytest.mark.parametrize("part", ["policy", "reward"])
def test_gradients_that_are_not_finite_change_no_weight_and_stop_the_run_after_some(part):
    run = make_run(log_every=1)
    current = run.reward_trainer._begin_round()
    model = run.policy.adaptor if part == "policy" else run.reward_model
    before = weights_of(model)
    next(model.parameters()).register_hook(lambda gradient: gradient * math.nan)

    def step(number):
        return run.trainer._step(number) if part == "policy" else run.reward_trainer._step(current)

    for number in range(1, 10):
        step(number)
    assert same_weights(weights_of(model), before)
    if part == "policy":
        assert run.log.values("policy/skipped_steps") == list(range(1, 10))
    with pytest.raises(UserError, match=f"^{part} learning: the gradient was not finite for 10 steps in a row"):
        step(10)


def test_prompts_are_scored_only_for_log_lines(monkeypatch):
    run = make_run(max_train_steps=12, log_every=5, early_stop_eval_period=100, candidate_steps=1, eval_steps=100)
    without_reward_learning(run, monkeypatch)
    scored = []
    note_calls(
        run.train_scorer,
        "score",
        monkeypatch,
        lambda prompts, *_, **__: scored.append((run.trainer.steps_done + 1, len(prompts))),
    )
    run.trainer.train()
    at_steps = [entry for entry in scored if entry[1] > 1]  # candidates come one by one
    assert at_steps == [(1, 8), (5, 8), (10, 8)]
    assert [event["step"] for event in run.log.of("policy")] == [1, 5, 10]
    assert all(pair[0].startswith("train") for pair in run.task_lm.asked[: 3 * 8 * len(TRAIN)])


def test_a_log_line_scores_no_more_prompts_than_reward_learning_samples(monkeypatch):
    run = make_run(num_reinforce_samples=20, prompt_train_batch_size=6)
    run.trainer._step(1)
    assert len(run.task_lm.prompts()) <= 6
    assert run.log.of("policy")[0]["policy/distinct_prompts"] > 6 / 20  # of all samples


def test_validation_scores_fresh_samples_on_all_of_dev_with_the_same_random_numbers_each_time():
    run = make_run()
    state = run.trainer.generator.get_state()
    run.trainer._validate(3)
    run.trainer._validate(6)
    assert torch.equal(run.trainer.generator.get_state(), state)  # training goes on as without a validation
    assert {sentence for sentence, _ in run.task_lm.asked} == {example.text for example in DEV}
    first, second = run.log.of("eval")
    assert first["eval/dev_score"] == second["eval/dev_score"]
    assert (first["eval/countdown"], second["eval/countdown"]) == (7, 6)
    scores = run.dev_scorer.score(run.task_lm.prompts())
    assert len(run.task_lm.prompts()) == 8
    assert first["eval/dev_score"] == pytest.approx(scores.score.mean().item(), abs=1e-3)
    assert first["eval/best_dev_score"] == pytest.approx(scores.score.max().item(), abs=1e-3)


def test_standardized_rankings_do_not_enter_validation():
    # Their mean is 0 for every policy: early stopping would be blind.
    run = make_run(compute_zscore=True)
    run.trainer._validate(3)
    assert abs(run.log.values("eval/dev_score")[0]) > 1e-3


def test_validations_come_every_period(monkeypatch):
    run = make_run(max_train_steps=10, early_stop_eval_period=3)
    without_reward_learning(run, monkeypatch)
    run.trainer.train()
    assert [event["step"] for event in run.log.of("eval")] == [3, 6, 9]


def test_negative_scores_that_rise_are_gains(monkeypatch):
    run = make_run(max_train_steps=30, early_stop_eval_period=1, early_stop_count=3, lr_decay=0.1, weight_decay_count=0)
    without_reward_learning(run, monkeypatch)
    dev_scores(run, monkeypatch, [-50 + i for i in range(30)])
    run.trainer.train()
    assert run.trainer.steps_done == 30
    assert run.trainer.plateau.best == -21
    assert run.trainer.plateau.learning_rate == run.settings.policy.learning_rate


def test_negative_scores_that_fall_stop_training(monkeypatch):
    run = make_run(max_train_steps=30, early_stop_eval_period=2, early_stop_count=3)
    without_reward_learning(run, monkeypatch)
    dev_scores(run, monkeypatch, [-50, -50.001, -50.002, -49.998, -60])
    run.trainer.train()
    assert run.trainer.steps_done == 8  # one gain, three validations without: 0.002 is less than 1e-4 of 50
    assert run.trainer.plateau.best_step == 2


def test_the_best_policy_is_restored_before_the_last_samples_and_no_update_follows(monkeypatch):
    run = make_run(max_train_steps=9, early_stop_eval_period=3, candidate_steps=1, eval_steps=100)
    without_reward_learning(run, monkeypatch)
    dev_scores(run, monkeypatch, [-10, -5, -7])
    step, at_last = run.trainer._step, []
    after_step: dict[int, dict[str, torch.Tensor]] = {}

    def spied(number):
        loss = step(number)
        after_step[number] = weights_of(run.policy)
        return loss

    monkeypatch.setattr(run.trainer, "_step", spied)
    note_calls(
        run.candidates,
        "add",
        monkeypatch,
        lambda tokens, *_, **__: at_last.append((len(tokens), weights_of(run.policy))),
    )
    run.trainer.train()
    assert [count for count, _ in at_last] == [4]
    assert same_weights(at_last[0][1], after_step[6])
    assert same_weights(weights_of(run.policy), after_step[6])
    assert not same_weights(after_step[6], after_step[9])
    assert run.trainer.plateau.best_step == 6


def candidate_steps_of(run, monkeypatch):
    """The policy steps after which a greedy prompt joins the candidates, and how many samples join at the end."""
    added = []
    note_calls(
        run.candidates, "add", monkeypatch, lambda tokens, *_, **__: added.append((run.trainer.steps_done, len(tokens)))
    )
    run.trainer.train()
    return [step for step, count in added if count == 1], added[-1]


def test_greedy_prompts_join_the_candidates_in_the_last_steps(monkeypatch):
    run = make_run(max_train_steps=20, candidate_steps=6, eval_steps=2, early_stop_eval_period=100)
    without_reward_learning(run, monkeypatch)
    greedy, last = candidate_steps_of(run, monkeypatch)
    assert greedy == [16, 18, 20]
    assert last == (20, 4)


def test_greedy_prompts_join_the_candidates_once_the_countdown_is_at_2(monkeypatch):
    run = make_run(max_train_steps=40, candidate_steps=1, eval_steps=1, early_stop_eval_period=2, early_stop_count=4)
    without_reward_learning(run, monkeypatch)
    dev_scores(run, monkeypatch, [-1])  # a gain at step 2, none at 4 and 6
    greedy, last = candidate_steps_of(run, monkeypatch)
    assert greedy == [6, 7, 8, 9, 10]
    assert last == (10, 4)


def test_a_gain_ends_the_collection_again(monkeypatch):
    run = make_run(max_train_steps=14, candidate_steps=1, eval_steps=1, early_stop_eval_period=2, early_stop_count=4)
    without_reward_learning(run, monkeypatch)
    dev_scores(run, monkeypatch, [-3, -3, -3, -2, -1, 0])
    assert candidate_steps_of(run, monkeypatch)[0] == [6, 7, 14]


def test_a_greedy_candidate_is_what_the_policy_writes_then(monkeypatch):
    run = make_run(max_train_steps=2, candidate_steps=2, eval_steps=1, early_stop_eval_period=100, num_final_prompts=1)
    without_reward_learning(run, monkeypatch)
    added: list[torch.Tensor] = []
    greedy: list[torch.Tensor] = []
    note_calls(run.candidates, "add", monkeypatch, lambda tokens, *_, **__: added.append(tokens))
    note_calls(run.candidates, "add", monkeypatch, lambda *_, **__: greedy.append(run.policy.greedy()))
    run.trainer.train()
    assert [tokens.tolist() for tokens in added[:2]] == [[row.tolist()] for row in greedy[:2]]


def test_a_run_too_short_for_a_validation_ends_well_and_says_what_cannot_act(caplog):
    run = make_run(max_train_steps=2, early_stop_eval_period=500)
    with caplog.at_level(logging.WARNING):
        run.trainer.train()
    assert "early_stop_eval_period" in caplog.text
    assert run.trainer.plateau.best is None
    assert len(run.candidates) > 0
    assert all(math.isfinite(candidate.dev_score) for candidate in run.candidates.best())


def test_training_that_diverged_ends_with_a_reason(monkeypatch):
    run = make_run()
    with torch.no_grad():
        run.policy.adaptor[2].bias.fill_(math.nan)
    with pytest.raises(UserError, match="logits are no finite numbers; a lower learning_rate"):
        run.trainer._step(7)
    run = make_run()
    monkeypatch.setattr(policy_trainer, "reinforce_loss", lambda logits, *_: logits.sum() * math.inf)
    with pytest.raises(UserError, match=r"policy step 7: the loss is .*; a lower learning_rate"):
        run.trainer._step(7)


def test_checkpoints_are_due_every_save_steps():
    saved: list[int] = []
    run = make_run(max_train_steps=9, save_steps=4)
    run.trainer.train(Checkpointer(saved.append))
    assert saved == [4 + 4, 8 + 8, 9 + 8]  # policy steps and the reward steps before them; the last is the end
    run = make_run(max_train_steps=9, save_steps=0)
    run.trainer.train(Checkpointer(saved.append))
    assert len(saved) == 3


def test_checkpoints_are_due_every_so_many_steps_of_either_model_and_after_rounds():
    saved: list[int] = []
    run = make_run(max_train_steps=9, save_steps=0)  # rounds of 4 steps before policy steps 1 and 5
    run.trainer.train(Checkpointer(saved.append, every=3))
    assert saved == [3, 4, 6, 9, 12, 15, 17]


def test_a_published_run_has_seven_rounds(monkeypatch):
    run = make_run(max_train_steps=12_000, reward_retrain_period=1000)
    done = run.trainer.reward_trainer
    rounds = []
    for run.trainer.steps_done in range(12_000):
        if run.trainer._reward_is_due():
            rounds.append(run.trainer.steps_done)
            done.rounds_done += 1
    assert rounds == [0, 1000, 2000, 3000, 4000, 5000, 6000]


def test_fp16_scales_the_losses_of_both_models_and_learns_what_float32_learns():
    whole = make_run(dropout=0.0, max_train_steps=3)
    whole.trainer.train()
    half = make_run(dropout=0.0, max_train_steps=3, engine=scaled())
    scaler = half.trainer.stepper.engine.accelerator.scaler
    losses = []

    def backward(loss):
        losses.append(loss)
        scaler.scale(loss).backward()

    half.trainer.stepper.backward = backward
    half.trainer.train()
    assert all(loss.dtype == torch.float32 for loss in losses)
    assert half.trainer.stepper.skipped == half.reward_trainer.stepper.skipped == 0
    for module in ("policy", "reward_model"):
        pairs = zip(getattr(whole, module).parameters(), getattr(half, module).parameters(), strict=True)
        assert all(q.dtype == torch.float32 and torch.allclose(p, q, atol=0.05) for p, q in pairs)
