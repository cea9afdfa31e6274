"""What replies are paid: where rewards are read, how they are normalised, and those of a model of other tokens."""

import json
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from common import reply_rewards
from common.errors import UserError
from common.reply_rewards import ReplyRewards, RewardReading, TokenRewardScorer, fit_reading, padded
from common.reply_surprise import likeliest_others, reply_entropies, reply_expectations
from common.segments import LocationNormalizer, next_token_entropies
from common.token_reward_model import TokenRewardModel
from tests import tiny_models

END = 9
UNIT = LocationNormalizer(0, 0, 0, 1, 1)
IDS = torch.tensor([[1, 2, 3, 4, 5, END], [6, 7, 8, 0, 0, 0], [END, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6])
PROMPTS = torch.ones(4, 1, dtype=torch.long)


class Ids:
    """Each token's reward is its id."""

    def score_tokens(self, prompt_ids, completion_ids, masks):
        assert bool(masks[1].any(-1).all())  # a reply without a token is never asked about
        return completion_ids.float()


def paid(reading, **options):
    return ReplyRewards(Ids(), reading, **options)(PROMPTS, IDS, (PROMPTS, MASK), {END})


def test_by_token_the_end_token_gets_nothing_unless_it_is_all():
    rewards, scores = paid(RewardReading())
    assert rewards.tolist() == [[1, 2, 3, 4, 5, 0], [6, 7, 8, 0, 0, 0], [END, 0, 0, 0, 0, 0], [0] * 6]
    assert scores.tolist() == [3, 7, 9, 0]


def test_increments_sum_to_the_score():
    rewards, scores = paid(RewardReading(normalizer=UNIT), payment="increment")
    # Means so far of the first: 1, 1.5, 2, 2.5, 3; of the second: 6, 6.5, 7.
    expected = [[1, 0.5, 0.5, 0.5, 0.5, 0], [6, 0.5, 0.5, 0, 0, 0], [END, 0, 0, 0, 0, 0], [0] * 6]
    torch.testing.assert_close(rewards, torch.tensor(expected))
    torch.testing.assert_close(rewards.sum(-1), scores)
    rewards, scores = paid(RewardReading(normalizer=UNIT, score="sum"), payment="increment")
    assert rewards.tolist() == [[1, 2, 3, 4, 5, 0], [6, 7, 8, 0, 0, 0], [END, 0, 0, 0, 0, 0], [0] * 6]
    assert scores.tolist() == [15, 21, END, 0]
    with pytest.raises(ValueError, match="payment: unknown value 'all'"):
        paid(RewardReading(), payment="all")


def test_by_sequence_the_last_token_is_read():
    rewards, scores = paid(RewardReading("sequence", normalizer=LocationNormalizer(0, 1, 0, 2, 1)))
    assert scores.tolist() == [9, 8, 9, 0]
    torch.testing.assert_close(rewards.sum(-1), torch.tensor([4, 3.5, 4, 0]))


def test_by_segment_each_is_divided_evenly(monkeypatch):
    def entropies(model, prompt_ids, completion_ids, masks):
        return torch.tensor([[0.1, 3, 0.1, 0.1, 0.1, 9], [0.1] * 6, [9] * 6])[: len(completion_ids)]

    monkeypatch.setattr(reply_rewards, "reply_entropies", entropies)
    reading = RewardReading("segment", cut=2.0, normalizer=UNIT)
    rewards, scores = paid(reading, entropy_model=torch.nn.Identity())
    # Segments end at [1, 4] of the first, at the last token of the second.
    torch.testing.assert_close(rewards[0], torch.tensor([1, 1, 5 / 3, 5 / 3, 5 / 3, 0]))
    torch.testing.assert_close(rewards[1], torch.tensor([8 / 3, 8 / 3, 8 / 3, 0, 0, 0]))
    assert scores.tolist() == [3.5, 8, 9, 0]
    rewards, _ = paid(reading, entropy_model=torch.nn.Identity(), payment="increment")
    torch.testing.assert_close(rewards[0], torch.tensor([1, 1, 0.5, 0.5, 0.5, 0]))  # 2, then 3.5 - 2


def test_segments_need_a_fitted_normaliser():
    with pytest.raises(UserError, match="needs a normaliser fitted on held-out replies"):
        ReplyRewards(Ids(), RewardReading("segment", cut=2.0), tiny_models.make("gpt2")[0])


def test_a_fitted_reading_is_kept_with_the_model(tmp_path):
    batch = (PROMPTS[:3], IDS[:3], (PROMPTS[:3], MASK[:3]))
    fitted = fit_reading(Ids(), RewardReading("sequence"), [batch, batch], {END})
    assert fitted.normalizer is not None
    assert fitted.normalizer.mean_intercept == pytest.approx(26 / 3)
    assert RewardReading.load(tmp_path) == RewardReading()
    fitted.save(tmp_path)
    assert RewardReading.load(tmp_path) == fitted
    file = tmp_path / reply_rewards.READING_FILE
    older = {key: value for key, value in json.loads(file.read_text()).items() if key != "score"}
    file.write_text(json.dumps(older))
    assert RewardReading.load(tmp_path) == fitted
    (tmp_path / reply_rewards.READING_FILE).write_text("{}")
    with pytest.raises(UserError, match="cannot read"):
        RewardReading.load(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_entropies_do_not_depend_on_padding(kind):
    model, _ = tiny_models.make(kind)
    whole = torch.tensor([[5, 6, 7, 8, 9]])
    expected = next_token_entropies(model(input_ids=whole).logits)[0, 2:]
    prompts, prompt_mask = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    ids, mask = torch.tensor([[7, 8, 9, 0], [4, 3, 2, 1]]), torch.tensor([[1, 1, 1, 0], [1] * 4])
    found = reply_entropies(model, prompts, ids, (prompt_mask, mask), batch_size=1)
    torch.testing.assert_close(found[0, :3], expected)
    assert found[0, 3] == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_what_an_lm_expected_of_each_token_of_padded_replies(kind):
    torch.manual_seed(0)
    size: Any = {
        "vocab_size": 12, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    model = T5ForConditionalGeneration(T5Config(**size)).eval() if kind == "t5" else tiny_models.make(kind)[0]
    prompts, prompt_mask = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    ids, mask = torch.tensor([[7, 8, 9, 0], [4, 3, 2, 1]]), torch.tensor([[1, 1, 1, 0], [1] * 4])
    given = model, prompts, ids, (prompt_mask, mask), 1
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    log_p, entropies = reply_expectations(*given)
    assert len(passes) == 2  # one a reply
    others = likeliest_others(*given)
    for row, length in ((0, 3), (1, 4)):
        prompt, reply = prompts[row][prompt_mask[row].bool()], ids[row, :length]
        if kind == "t5":
            start = torch.tensor([model.config.decoder_start_token_id])
            decoder_ids = torch.cat([start, reply[:-1]])[None]
            expected = model(input_ids=prompt[None], decoder_input_ids=decoder_ids).logits[0].log_softmax(-1)
        else:
            expected = model(input_ids=torch.cat([prompt, reply])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(log_p[row, :length], expected.gather(1, reply[:, None]).squeeze(1))
        torch.testing.assert_close(entropies[row, :length], -(expected.exp() * expected).sum(-1))
        best = expected.scatter(1, reply[:, None], -torch.inf).argmax(-1)
        assert others[row, :length].tolist() == best.tolist()
    assert log_p[0, 3] == entropies[0, 3] == others[0, 3] == 0


def reward_model(kind, folder):
    name = tiny_models.save(kind, folder / "backbone")
    tiny_models.KINDS[kind][1]().save_pretrained(folder / "reward")
    torch.manual_seed(0)
    TokenRewardModel.from_backbone(name, head_init_gain=1.0, head_hidden_size=8).save_pretrained(folder / "reward")
    return str(folder / "reward")


def encoded(tokenizer, prompts, replies):
    left, left_mask = padded([tokenizer(text)["input_ids"][::-1] for text in prompts])
    ids, mask = padded([[*tokenizer(text, add_special_tokens=False)["input_ids"], *end] for text, end in replies])
    return left.flip(1), ids, (left_mask.flip(1), mask)


def test_a_saved_reward_model_scores_a_policys_tokens(tmp_path):
    folder = reward_model("gpt2", tmp_path)
    scorer = TokenRewardScorer.from_pretrained(folder, batch_size=1)
    tokenizer = scorer.tokenizer
    end = [tokenizer.eos_token_id]
    batch = encoded(tokenizer, ["the film", "a great long"], [(" is warm", end), (" night", [])])
    rewards = scorer.score_tokens(*batch)
    whole = torch.tensor([tokenizer("the film is warm")["input_ids"] + end])
    expected = TokenRewardModel.from_pretrained(folder)(input_ids=whole)[0, -3:]
    torch.testing.assert_close(rewards[0, :3], expected)
    assert len(expected.unique()) == 3

    policy = tiny_models.make("llama")[1]
    carrying = TokenRewardScorer.from_pretrained(folder, policy)
    assert carrying.other_tokenizer
    theirs = encoded(policy, ["the film", "a great long"], [("is warm", [policy.eos_token_id]), ("night", [])])
    carried = carrying.score_tokens(*theirs)
    # The same characters on the other side: each reply's rewards keep their sum.
    ours = encoded(tokenizer, ["the film", "a great long"], [("is warm", end), ("night", [])])
    torch.testing.assert_close(carried.sum(-1), scorer.score_tokens(*ours).sum(-1))
    assert carried.shape == theirs[1].shape
    assert bool((carried[theirs[2][1] == 0] == 0).all())
    with pytest.raises(UserError, match="the policy's own tokenizer"):
        ReplyRewards(carrying, RewardReading("sequence"))
    prompts = torch.cat([theirs[0], torch.full((2, 1), policy.eos_token_id)], 1)
    with pytest.raises(UserError, match="special tokens of the policy's chat template"):
        carrying.score_tokens(prompts, theirs[1], (torch.ones_like(prompts), theirs[2][1]))
