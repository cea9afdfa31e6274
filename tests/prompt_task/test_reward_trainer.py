import copy
import logging
import math

import pytest
import torch

from common.training.checkpoint import StateTree
from common.training.runtime import random_state, restore_random_state
from prompt_task import reward_trainer
from prompt_task.prompt_rewards import prompt_token_rewards
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.ranked_prompts import draw_sets
from tests.tiny_runs import DEV, TRAIN, SpyTaskLM, make_run, noted, same_weights, untimed, weights_of


def spy_on_sampling(policy, monkeypatch):
    """The sizes of the samples that the policy draws from now on, and their texts."""
    sizes, texts, sample = [], [], policy.sample

    def spied(count, *args, **kwargs):
        rollout = sample(count, *args, **kwargs)
        sizes.append(count)
        texts.append(policy.texts(rollout.tokens))
        return rollout

    monkeypatch.setattr(policy, "sample", spied)
    return sizes, texts


def test_a_ranking_set_never_holds_a_prompt_twice():
    sets = draw_sets(8, 500, 5, torch.Generator().manual_seed(0))
    assert sets.shape == (500, 5)
    assert all(len(set(row)) == 5 for row in sets.tolist())
    counts = sets.flatten().bincount(minlength=8)
    assert counts.min() > 0.8 * counts.max()  # none is preferred
    assert len({tuple(row) for row in sets.tolist()}) > 400


def test_a_token_is_rewarded_where_the_model_has_just_read_it():
    run = make_run()
    source = run.policy.source_ids
    tokens = torch.tensor([[3, 4, 5], [3, 4, 6], [9, 4, 5]])
    rewards = prompt_token_rewards(run.reward_model, source, tokens)
    expected = run.reward_model(torch.cat([source.expand(3, -1), tokens], 1))[:, 1:]
    torch.testing.assert_close(rewards, expected)
    assert torch.equal(rewards[0, :2], rewards[1, :2])  # the same so far
    assert rewards[0, 2] != rewards[1, 2]  # another last token
    assert (rewards[0] != rewards[2]).all()  # another first token


def test_equal_prompts_are_computed_once():
    run = make_run()
    rows = []
    run.reward_model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    tokens = torch.tensor([[3, 4, 5], [1, 2, 3], [3, 4, 5], [1, 2, 3], [3, 4, 5]])
    rewards = prompt_token_rewards(run.reward_model, run.policy.source_ids, tokens)
    assert rows == [2]
    assert torch.equal(rewards[[0, 0, 1]], rewards[[2, 4, 3]])
    assert not torch.equal(rewards[0], rewards[1])


def test_each_copy_of_a_prompt_adds_to_the_gradient():
    run = make_run()
    tokens = torch.tensor([[3, 4, 5], [1, 2, 3], [3, 4, 5]])
    parameters = list(run.reward_model.parameters())
    once = torch.autograd.grad(prompt_token_rewards(run.reward_model, run.policy.source_ids, tokens).sum(), parameters)
    single = [
        torch.autograd.grad(run.reward_model(torch.cat([run.policy.source_ids, row])[None])[:, 1:].sum(), parameters)
        for row in tokens
    ]
    for found, *parts in zip(once, *single, strict=True):
        torch.testing.assert_close(found, sum(parts), atol=1e-5, rtol=1e-4)


def test_a_round_takes_all_its_steps_and_leaves_the_policy_as_it_is():
    run = make_run(rew_num_train_epochs=3, rew_max_train_steps=7)
    before, rewards_before = weights_of(run.policy), weights_of(run.reward_model)
    run.reward_trainer.run_round()
    assert run.reward_trainer.steps_done == 6  # two in each of three epochs
    assert run.reward_trainer.rounds_done == 1
    assert [event["step"] for event in run.log.of("reward")] == [2, 4, 6]
    assert [event["round"] for event in run.log.of("reward")] == [0, 0, 0]
    assert same_weights(weights_of(run.policy), before)
    assert not same_weights(weights_of(run.reward_model), rewards_before)


def test_training_drops_out_validation_and_the_finished_model_do_not(monkeypatch):
    run = make_run()
    modes = []
    loss = noted(run.reward_trainer._loss, lambda ranked: modes.append(run.reward_model.training))
    monkeypatch.setattr(run.reward_trainer, "_loss", loss)
    run.reward_trainer.run_round()
    epoch = [True, True, False, False]  # two steps, two validation batches
    assert modes == epoch * 2
    assert not run.reward_model.training


def test_a_step_samples_prompts_and_scores_them_on_80_percent_of_train():
    run = make_run(rew_num_train_epochs=1, rew_max_train_steps=1)
    run.reward_trainer.run_round()
    train = [pair for pair in run.task_lm.asked if pair[0].startswith("train")]
    assert len(train) == 8 * round(0.8 * len(TRAIN))
    assert len({sentence for sentence, _ in train}) == 8
    everything = make_run(rew_num_train_epochs=1, rew_max_train_steps=1, reward_example_share=1.0)
    everything.reward_trainer.run_round()
    assert len({s for s, _ in everything.task_lm.asked if s.startswith("train")}) == len(TRAIN)


def test_each_step_takes_another_part_of_the_examples():
    run = make_run(rew_num_train_epochs=1, rew_max_train_steps=6)
    run.reward_trainer.run_round()
    parts: dict[str, set[str]] = {}
    for sentence, prompt in run.task_lm.asked:
        if sentence.startswith("train"):
            parts.setdefault(prompt, set()).add(sentence)
    assert len({frozenset(part) for part in parts.values()}) > 2


def test_validation_prompts_are_sampled_and_scored_once_a_round(monkeypatch):
    run = make_run(rew_num_train_epochs=3, rew_max_train_steps=3)
    sizes, _ = spy_on_sampling(run.policy, monkeypatch)
    run.reward_trainer.run_round()
    assert sizes == [8] * (2 + 3)  # two validation batches, then one a step
    asked = [pair for pair in run.task_lm.asked if pair[0].startswith("dev")]
    assert len(asked) == (2 * 8 + 8) * len(DEV)  # and the prompts of the first batch with a token swapped
    assert run.task_lm.asked[: len(asked)] == asked
    run.reward_trainer.run_round()
    assert len([pair for pair in run.task_lm.asked if pair[0].startswith("dev")]) == 2 * len(asked)


def test_swap_accuracy_compares_the_token_rewards_with_the_preference_of_both_prompts(monkeypatch):
    run = make_run(dropout=0.0)
    trainer = run.reward_trainer
    prompts = run.policy.sample(8, torch.Generator().manual_seed(3)).tokens
    swaps = trainer.ranker.swapped(trainer.dev_scorer, prompts)
    assert torch.equal(swaps.tokens[0], prompts)
    rows = torch.arange(8)
    assert (swaps.tokens[0] != swaps.tokens[1]).nonzero().tolist() == torch.stack([rows, swaps.places], 1).tolist()
    assert set(swaps.places.tolist()) == {0, 1, 2}
    for row, place in enumerate(swaps.places.tolist()):  # the policy's likeliest other token, after the same tokens
        ids = torch.cat([run.policy.source_ids, prompts[row, :place]]).unsqueeze(0)
        with torch.no_grad():
            logits = run.policy.logits(ids)[0, 0]
        likeliest = [int(token) for token in logits.argsort(descending=True)[:2] if token != prompts[row, place]]
        assert swaps.tokens[1, row, place] == likeliest[0]
    scores = run.dev_scorer.score(run.policy.texts(swaps.tokens.flatten(0, 1))).score.view(2, 8)
    assert torch.equal(swaps.preferences, scores)

    def planted(model, source_ids, tokens):
        return tokens.double()  # the greater id is the better token

    monkeypatch.setattr(reward_trainer, "prompt_token_rewards", planted)
    greater = swaps.tokens[0][rows, swaps.places] > swaps.tokens[1][rows, swaps.places]
    different = scores[0] != scores[1]
    right = (greater == (scores[0] > scores[1]))[different]
    figures = trainer._swap_figures(swaps)
    assert (figures.swaps, figures.swaps_seen) == (len(right), right.sum().item())
    assert len(right) > 0


def test_validations_of_a_round_can_be_compared():
    run = make_run(rew_learning_rate=1e-12, rew_num_train_epochs=4)  # a model that stands still
    run.reward_trainer.run_round()
    losses = run.log.values("reward/dev_loss")
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-6)
    assert len(set(run.log.values("reward/loss"))) == 4


def test_the_best_weights_of_a_round_are_the_ones_that_are_used():
    run = make_run(rew_num_train_epochs=12, rew_max_train_steps=24, rew_learning_rate=0.1, random_seed=2)
    weights = []
    run.reward_trainer.run_round(lambda: weights.append(weights_of(run.reward_model)))
    losses = run.log.values("reward/dev_loss")
    best = losses.index(min(losses))
    assert best != len(losses) - 1, "the last epoch is the best one: this seed shows nothing"
    assert same_weights(weights_of(run.reward_model), weights[2 * best + 1])  # an epoch has two steps
    assert not same_weights(weights[-1], weights[best])


def test_a_round_ends_early_where_dev_brings_no_gain():
    run = make_run(rew_learning_rate=1e-12, rew_num_train_epochs=40, rew_max_train_steps=40, early_stop_count=3)
    run.reward_trainer.run_round()
    assert len(run.log.of("reward")) == 4  # one gain, three validations without


def test_the_rate_falls_after_more_than_so_many_validations_without_a_gain():
    run = make_run(
        rew_learning_rate=1e-5, rew_num_train_epochs=9, rew_max_train_steps=9, weight_decay_count=2, lr_decay=0.5,
        task_lm=SpyTaskLM(lambda sentence, prompt: 0.25),  # nothing to learn, and no step large enough for a gain
        dropout=0.0, head_init_gain=1e-4,
    )  # fmt: skip
    run.reward_trainer.run_round()
    rates = run.log.values("reward/learning_rate")
    assert rates == pytest.approx([1e-5] * 4 + [5e-6] * 3 + [2.5e-6])  # then seven without a gain have passed


def test_a_round_starts_with_a_fresh_optimizer_and_the_weights_of_the_last_one(monkeypatch):
    run = make_run(weight_decay_count=0, lr_decay=0.1)
    rounds, begin = [], run.reward_trainer._begin_round

    def spied(*arguments):
        current = begin(*arguments)
        rate = current.optimizer.param_groups[0]["lr"]
        rounds.append((len(current.optimizer.state), rate, current.plateau.best, weights_of(run.reward_model)))
        return current

    monkeypatch.setattr(run.reward_trainer, "_begin_round", spied)
    run.reward_trainer.run_round()
    after_first = weights_of(run.reward_model)
    run.reward_trainer.run_round()
    assert [state[:3] for state in rounds] == [(0, 1e-2, None)] * 2
    assert same_weights(rounds[1][3], after_first)
    assert not same_weights(rounds[0][3], after_first)
    assert [event["round"] for event in run.log.of("reward")] == [0, 0, 1, 1]


def test_accumulated_gradients_are_those_of_the_mean_loss():
    def gradients(run, accumulate):
        """Gradients of the first step, by the trainer or by the definition."""
        trainer = run.reward_trainer
        current = trainer._begin_round()
        run.reward_model.eval()
        if accumulate:
            found: list[torch.Tensor] = []
            current.optimizer.step = lambda: found.extend(p.grad.clone() for p in run.reward_model.parameters())
            loss = trainer._step(current)
            return found, loss
        losses = [trainer._loss(trainer.ranker.ranked(run.train_scorer, None, 0.8))[0] for _ in range(2)]
        mean = (losses[0] + losses[1]) / 2
        return torch.autograd.grad(mean, list(run.reward_model.parameters())), mean.item()

    found, loss = gradients(make_run(rew_gradient_accumulation_steps=2, gradient_clip=False), True)
    expected, mean = gradients(make_run(rew_gradient_accumulation_steps=2), False)
    assert loss == pytest.approx(mean, abs=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_gradients_do_not_add_up_over_steps():
    run = make_run()
    current = run.reward_trainer._begin_round()
    run.reward_trainer._step(current)
    assert all(p.grad is None or not p.grad.any() for p in run.reward_model.parameters())


@pytest.mark.parametrize("clip", [True, False])
def test_gradients_are_clipped_to_the_norm_where_that_is_asked_for(clip):
    run = make_run(gradient_clip=clip, gradient_clip_norm=1e-3)
    current = run.reward_trainer._begin_round()
    norms = []
    current.optimizer.step = lambda: norms.append(
        torch.stack([p.grad.norm() for p in run.reward_model.parameters() if p.grad is not None]).norm().item()
    )
    run.reward_trainer._step(current)
    assert (norms[0] < 1.01e-3) == clip
    assert current.gradient_norms > 2e-3  # what it was before


def test_a_pool_is_scored_once_and_nothing_else_is_drawn_from(monkeypatch):
    run = make_run(reward_pool_size=12, rew_num_train_epochs=3, rew_max_train_steps=9)
    sizes, texts = spy_on_sampling(run.policy, monkeypatch)
    shown = []
    score = noted(run.train_scorer.score, lambda prompts, *_, **__: shown.append(prompts))
    monkeypatch.setattr(run.train_scorer, "score", score)
    run.reward_trainer.run_round()
    assert sorted(sizes) == [8, 8, 12]  # two validation batches and the pool
    pool = texts[sizes.index(12)]
    assert shown.pop(0) == pool  # for its mean in the log
    assert len(shown) == 9
    assert all(set(prompts) <= set(pool) for prompts in shown)
    assert all(len(prompts) == 8 for prompts in shown)
    assert len({tuple(prompts) for prompts in shown}) == 9
    assert len([pair for pair in run.task_lm.asked if pair[0].startswith("train")]) == len(set(pool)) * len(TRAIN)
    run.reward_trainer.run_round()
    assert sizes.count(12) == 2  # another round, another pool


def test_later_pools_are_those_of_the_highest_learned_score_and_join_the_earlier_ones(monkeypatch):
    run = make_run(reward_pool_size=8, screening=4, rew_num_train_epochs=2, rew_max_train_steps=6)
    sizes, _ = spy_on_sampling(run.policy, monkeypatch)
    drawn: list[torch.Tensor] = []
    chosen = noted(run.reward_trainer.most_promising, lambda tokens, count: drawn.append(tokens))
    monkeypatch.setattr(run.reward_trainer, "most_promising", chosen)
    run.reward_trainer.run_round()
    assert sorted(sizes) == [8, 8, 8] and not drawn  # before it has learnt the reward chooses nothing
    first = run.reward_trainer.pool
    run.reward_trainer.run_round()
    assert sizes.count(32) == 1
    pool = run.reward_trainer.pool
    assert torch.equal(pool[:8], first)
    assert len(pool[8:]) == min(8, len({tuple(row.tolist()) for row in drawn[0]}))
    assert len({tuple(row.tolist()) for row in pool[8:]}) == len(pool[8:])
    means = [run.train_scorer.score(run.policy.texts(part)).score.mean().item() for part in (pool[:8], pool[8:])]
    assert run.log.values("reward/pool_preference") == means


def test_the_most_promising_prompts_are_found_by_brute_force_too():
    run = make_run()
    run.reward_trainer.run_round()
    tokens = run.policy.sample(40, torch.Generator().manual_seed(1)).tokens
    distinct = {tuple(row.tolist()) for row in tokens}
    with torch.no_grad():
        by_score = sorted(
            distinct,
            key=lambda row: (
                -float(prompt_token_rewards(run.reward_model.eval(), run.policy.source_ids, torch.tensor([row])).sum())
            ),
        )
    assert [tuple(row.tolist()) for row in run.reward_trainer.most_promising(tokens, 6)] == by_score[:6]
    assert len(run.reward_trainer.most_promising(tokens, 1000)) == len(distinct)


def test_the_best_of_the_pool_are_those_of_the_highest_train_score():
    run = make_run(reward_pool_size=12)
    run.reward_trainer.run_round()
    best = run.reward_trainer.best_of_pool(3)
    scores = run.train_scorer.score(run.policy.texts(torch.unique(run.reward_trainer.pool, dim=0))).score
    found = run.train_scorer.score(run.policy.texts(best)).score
    assert found.tolist() == sorted(scores.tolist(), reverse=True)[:3]


def test_without_a_pool_every_step_samples_anew(monkeypatch):
    run = make_run(rew_num_train_epochs=1, rew_max_train_steps=5)
    _, texts = spy_on_sampling(run.policy, monkeypatch)
    run.reward_trainer.run_round()
    assert len({tuple(sample) for sample in texts}) == 2 + 5


def test_with_the_published_head_the_loss_starts_at_the_logarithm_of_k_factorial():
    run = make_run(head_init_gain=1e-4, rew_num_train_epochs=1, rew_max_train_steps=1)
    run.reward_trainer.run_round()
    event = run.log.of("reward")[0]
    assert event["reward/loss"] == pytest.approx(math.log(math.factorial(3)), abs=1e-5)
    assert event["reward/rank_accuracy"] == pytest.approx(0.5, abs=0.2)


def test_prompts_that_the_task_lm_cannot_tell_apart_leave_the_loss_finite():
    run = make_run(task_lm=SpyTaskLM(lambda sentence, prompt: 0.5))
    run.reward_trainer.run_round()
    event = run.log.of("reward")[-1]
    assert math.isfinite(event["reward/loss"])
    assert math.isnan(event["reward/rank_accuracy"])  # there is no order to be right about


def test_ties_are_ordered_at_random_and_by_the_runs_own_generator():
    def losses(seed):
        run = make_run(task_lm=SpyTaskLM(lambda sentence, prompt: 0.5), random_seed=seed, dropout=0.0)
        run.reward_trainer.run_round()
        return run.log.values("reward/loss")

    assert losses(0) == losses(0) != losses(1)


@pytest.mark.parametrize("wanted", [True, False])
def test_standardized_rankings_are_asked_for_by_compute_zscore(wanted, monkeypatch):
    run = make_run(compute_zscore=wanted)
    asked, original = [], PromptScorer.score

    def note(self, *args, standardize=False, **kwargs):
        asked.append((self is run.dev_scorer, standardize))

    monkeypatch.setattr(PromptScorer, "score", noted(original, note))
    run.reward_trainer.run_round()
    assert set(asked) == {(True, wanted), (False, wanted)}


@pytest.mark.parametrize("step", range(1, 8))
@pytest.mark.parametrize("pool", [0, 12])
def test_a_round_goes_on_from_any_step_to_the_same_weights(pool, step):
    def fresh():
        return make_run(reward_pool_size=pool, rew_num_train_epochs=4, rew_max_train_steps=8, rew_learning_rate=0.05)

    whole = fresh()
    whole.reward_trainer.run_round()

    class Killed(Exception):
        pass

    state = StateTree()

    def kill_after_the_step():
        if run.reward_trainer.steps_done == step:
            run.reward_trainer.save_state(state)
            state.put("model", weights_of(run.reward_model))
            state.put("train", *run.train_scorer.state())
            state.put("random", *random_state())
            raise Killed

    run = fresh()
    with pytest.raises(Killed):
        run.reward_trainer.run_round(kill_after_the_step)
    saved = copy.deepcopy(state)

    again = fresh()
    again.reward_model.load_state_dict(saved.get("model")[0])
    again.reward_trainer.load_state(saved)
    again.train_scorer.load_state(*saved.get("train"))
    restore_random_state(*saved.get("random"))
    again.reward_trainer.run_round()
    assert same_weights(weights_of(again.reward_model), weights_of(whole.reward_model))
    epochs = [event for event in whole.log.events if event["step"]]  # and, at step 0, what the pool is worth
    assert untimed(again.log.events) == untimed(epochs[step // 2 :])  # an epoch has two steps
    assert again.reward_trainer.steps_done == 8
    assert again.reward_trainer.rounds_done == 1


def test_a_round_without_any_valid_validation_keeps_its_last_weights_and_says_so(monkeypatch, caplog):
    run = make_run()
    loss = run.reward_trainer._loss

    def nan_in_validation(ranked):
        result = loss(ranked)
        return result if run.reward_model.training else (result[0] * math.nan, *result[1:])

    monkeypatch.setattr(run.reward_trainer, "_loss", nan_in_validation)
    step, after_step = run.reward_trainer._step, []

    def stepped(current):
        figures = step(current)
        after_step.append(weights_of(run.reward_model))
        return figures

    monkeypatch.setattr(run.reward_trainer, "_step", stepped)
    with caplog.at_level(logging.WARNING):
        run.reward_trainer.run_round()
    assert "no validation of the reward model gave a number" in caplog.text
    assert same_weights(weights_of(run.reward_model), after_step[-1])


@pytest.mark.parametrize("agg_func", ["sum", "avg", "max", "min"])
def test_rankings_are_learnt_from_a_planted_preference(agg_func):
    # The task LM likes prompts with many of the letters a-m.
    def liking(sentence, prompt):
        share = sum(letter in "abcdefghijklm" for letter in prompt.lower()) / max(len(prompt), 1)
        return 0.1 + 0.8 * share if int(sentence.split()[1]) % 2 == 0 else 0.9 - 0.8 * share

    run = make_run(
        task_lm=SpyTaskLM(liking), agg_func=agg_func, rew_num_train_epochs=5, rew_max_train_steps=100, dropout=0.0,
        reward_learning_batch_size=32, prompt_train_batch_size=16, rew_learning_rate=3e-3, head_init_gain=0.1,
        top_k=30, rew_validation_batches=6,
    )  # fmt: skip
    run.reward_trainer.run_round()
    assert run.log.values("reward/dev_loss")[-1] < 1.5 < run.log.values("reward/dev_loss")[0]  # log 3! = 1.79
    assert run.log.values("reward/dev_rank_accuracy")[-1] > 0.75


def test_equal_answers_of_the_task_lm_are_no_ranking_and_the_run_says_so_and_goes_on(caplog):
    run = make_run(task_lm=SpyTaskLM(lambda sentence, prompt: 0.5))
    with caplog.at_level(logging.WARNING):
        run.trainer.train()
    assert "round 0, epoch 1: in no ranking set were two preferences different" in caplog.text
    assert all(math.isnan(value) for value in run.log.values("reward/rank_accuracy"))
    assert all(p.isfinite().all() for p in run.reward_model.parameters())
    assert run.trainer.finished


def test_a_policy_that_writes_one_prompt_is_named_and_the_run_goes_on(caplog, monkeypatch):
    run = make_run()
    sample = run.policy.sample

    def one_prompt(*args, **kwargs):
        rollout = sample(*args, **kwargs)
        rollout.tokens[:] = rollout.tokens[:1].clone()
        return rollout

    monkeypatch.setattr(run.policy, "sample", one_prompt)
    with caplog.at_level(logging.WARNING):
        run.trainer.train()
    assert "the policy writes one prompt" in caplog.text
    assert set(run.log.values("reward/distinct_prompts")) == {1 / 8}
    assert run.trainer.finished
