"""Learning token rewards from rankings: what a step is, and that it learns."""

import dataclasses
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from chat_task.ranked_sets import collate, encode_sets
from chat_task.reward_trainer import TokenRewardTrainer, set_scores
from common.errors import UserError
from common.language_models.kept_entropies import KeptEntropies
from common.reply_rewards import RewardReading
from common.reporting.marked_tokens import area_under_curve
from common.token_reward_model import TokenRewardModel
from tests.chat_task.tiny import ranking_sets, reply_format, reward_model


def arguments(folder, **options):
    fixed = {"learning_rate": 1e-2, "max_grad_norm": 0.0, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
             "logging_steps": 1, "save_strategy": "no", "seed": 1}  # fmt: skip
    return TrainingArguments(str(folder), **fixed | {"per_device_train_batch_size": 8} | options)


def trainer_of(folder, model, sets, **options):
    own = {name: options.pop(name) for name in ("eval_dataset", "agg_func") if name in options}
    return TokenRewardTrainer(
        model, arguments(folder, **options), train_dataset=sets, reply_format=reply_format(model), **own
    )


def test_scores_of_sets_of_different_size():
    rewards = torch.tensor([[[1.0, 2, 3], [4, 0, 0], [0, 0, 0]], [[1, 1, 1], [2, 2, 2], [3, 3, 9]]])
    ends = torch.tensor([[[1, 1, 1], [1, 0, 0], [0, 0, 0]], [[1, 1, 1], [0, 1, 1], [0, 0, 1]]]).bool()
    # avg: C = 2, the mean length of the two: 2 * 2 and 2 * 4; C = 2 of three: 2 * 1, 2 * 2, 2 * 9
    assert set_scores(rewards, ends, "avg").tolist() == [[4, 8, 0], [2, 4, 18]]
    assert set_scores(rewards, ends, "mean").tolist() == [[2, 4, 0], [1, 2, 9]]


@pytest.mark.parametrize("split", [{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 5},
                                   {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}])  # fmt: skip
def test_a_step_is_the_same_however_its_sets_are_split(tmp_path, split):
    # Ten sets of different size and weight, one step: the last batch of three is short.
    sets = [dataclasses.replace(item, weight=1.0 + n % 3) for n, item in enumerate(ranking_sets(10))]
    found = []
    for options in ({"per_device_train_batch_size": 10}, split):
        model = reward_model()
        trainer = trainer_of(tmp_path, model, sets, max_steps=1, optim="sgd", **options)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses[0], {name: p.detach().clone() for name, p in model.named_parameters()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=1e-4, atol=1e-6)


def test_a_model_that_was_evaluated_is_still_prepared_for_training(tmp_path, monkeypatch):
    # accelerate passes over what it has prepared, if only for evaluation: each process would train a model of its own.
    model = reward_model()
    trainer = trainer_of(tmp_path, model, ranking_sets(8), max_steps=1, eval_dataset=ranking_sets(4, seed=1))
    trainer.evaluate()
    assert model._is_accelerate_prepared
    prepare, marked = trainer.accelerator.prepare_model, []

    def spy(given, **options):
        marked.append(hasattr(given, "_is_accelerate_prepared"))
        return prepare(given, **options)

    monkeypatch.setattr(trainer.accelerator, "prepare_model", spy)
    trainer.train()
    assert marked == [False]


@pytest.mark.parametrize(("kind", "head", "bound"), [("llama", "after", "softplus"), ("t5", "linear", "none")])
def test_it_learns_which_words_are_bad(tmp_path, kind, head, bound):
    model = reward_model(kind, head=head, bound=bound)
    held_out = ranking_sets(30, seed=1)
    trainer = trainer_of(
        tmp_path, model, ranking_sets(200), max_steps=60, eval_dataset=held_out, agg_func="sum", eval_strategy="no"
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_rank_accuracy"] > 0.85 > before["eval_rank_accuracy"]
    assert after["eval_loss"] < before["eval_loss"]
    # Rankings alone say which tokens are bad.
    batch = collate(list(trainer.eval_dataset))
    model.eval()
    rewards = model.reply_rewards(*(batch[n] for n in ("prompt_ids", "prompt_mask", "reply_ids", "reply_mask")))
    ids = model_ids(["storm", "flood", "fire"])
    is_bad = torch.isin(batch["reply_ids"], ids) & batch["ends"]
    assert area_under_curve((-rewards[batch["ends"]]).tolist(), is_bad[batch["ends"]].tolist()) > 0.9


def model_ids(words):
    tokenizer = reply_format(reward_model()).tokenizer
    return torch.tensor(tokenizer.convert_tokens_to_ids(words))


def test_rows_as_they_stand_in_a_file_and_a_tokenizer_are_enough(tmp_path):
    model = reward_model()
    rows = [{"prompt": "a", "chosen": "town", "rejected": "storm fire"}] * 4
    tokenizer = reply_format(model).tokenizer
    args = arguments(tmp_path, max_steps=1)
    trainer = TokenRewardTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    # Bradley-Terry of two equal scores; nearly equal here
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    with pytest.raises(UserError, match="texts need processing_class"):
        TokenRewardTrainer(model, arguments(tmp_path), train_dataset=rows)
    with pytest.raises(UserError, match=r"^row 1: no two different replies"):
        TokenRewardTrainer(model, arguments(tmp_path), train_dataset=[rows[0] | {"chosen": "storm fire"}],
                           processing_class=tokenizer)  # fmt: skip


def lm():
    torch.manual_seed(0)
    fields = reward_model().config.backbone
    fields.pop("model_type")
    return LlamaForCausalLM(LlamaConfig(**fields)).eval()


def test_where_rewards_are_read():
    model = reward_model()
    sets, formats = ranking_sets(6), reply_format(model)
    tokens = encode_sets(sets, formats, RewardReading("token"))
    sequence = encode_sets(sets, formats, RewardReading("sequence"))
    whole = encode_sets(sets, formats, RewardReading("segment", cut=99.0), KeptEntropies(lm))
    some = encode_sets(sets, formats, RewardReading("segment", cut=2.9), KeptEntropies(lm))
    for rows in zip(tokens, sequence, whole, some, strict=True):
        for ids, *places in zip(rows[0].reply_ids, *(row.ends for row in rows), strict=True):
            last = len(ids) - 1  # the end token
            assert places[0] == list(range(last)) and places[1] == [last] and places[2] == [last - 1]
            assert places[3][-1] == last - 1 and len(places[3]) <= len(places[0])
    assert sum(len(p) for r in some for p in r.ends) - sum(len(r.ends) for r in some) > 0


def test_long_rows_are_cut_or_dropped_and_counted():
    model = reward_model()
    sets = ranking_sets(20)
    cut = encode_sets(sets, reply_format(model, max_prompt_length=2, max_reply_length=4), RewardReading())
    assert cut.counts["prompts_cut"] > 0 and cut.counts["replies_cut"] > 0 and len(cut) == 20
    assert max(len(ids) for item in cut for ids in item.reply_ids) == 4
    formats = reply_format(model, max_reply_length=5)
    dropped = encode_sets(sets, formats, RewardReading(), long_rows="drop")
    assert dropped.counts["sets_dropped"] == 20 - len(dropped) > 0
    with pytest.raises(UserError, match="all 20 sets"):
        encode_sets(sets, reply_format(model, max_reply_length=1), RewardReading(), long_rows="drop")


def test_a_saved_folder_gives_the_same_rewards_of_texts(tmp_path):
    model = reward_model()
    trainer = trainer_of(tmp_path / "t", model, ranking_sets(8), max_steps=2)
    trainer.train()
    trainer.save_reward_model(tmp_path / "saved")
    again = TokenRewardModel.from_pretrained(tmp_path / "saved")
    (scored,) = again.score_texts(["town storm"], sources=["in the"])
    tokenizer = trainer.reply_format.tokenizer
    ids = tokenizer("in the town storm")["input_ids"]
    expected = model.eval()(torch.tensor([ids]))[0, 2:]
    torch.testing.assert_close(torch.tensor(scored.rewards[:2]), expected[:2], rtol=1e-6, atol=1e-6)
    assert (scored.tokens, scored.offsets[:2]) == (["town", "storm", "</s>"], [(0, 4), (5, 10)])
    assert math.isnan(scored.rewards[2]) and scored.score == pytest.approx(sum(scored.rewards[:2]) / 2)
    (same,) = again.score_texts(["town storm"], sources=["in the"], spread="last")
    assert same.rewards == pytest.approx(scored.rewards, abs=0, nan_ok=True)
