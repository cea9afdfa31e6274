from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from common.baseline_rewards import EvenRewards, LogRatioRewards, PrefixDifferenceRewards
from common.token_reward_model import TokenRewardConfig, TokenRewardModel

PROMPTS = torch.tensor([[0, 0, 5], [3, 4, 5]])
REPLIES = torch.tensor([[6, 7, 8, 1], [6, 1, 0, 0]])
MASKS = torch.tensor([[0, 0, 1], [1, 1, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
LLAMA: dict[str, Any] = {
    "vocab_size": 12, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 12, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
CONFIGS = {"llama": lambda: LlamaConfig(**LLAMA), "t5": lambda: T5Config(**T5)}


def lm(kind, seed):
    torch.manual_seed(seed)
    return {"llama": LlamaForCausalLM, "t5": T5ForConditionalGeneration}[kind](CONFIGS[kind]()).eval()


def reward_model(kind):
    torch.manual_seed(0)
    config = TokenRewardConfig(backbone=CONFIGS[kind]().to_dict(), head_hidden_size=8, head_init_gain=1.0)
    return TokenRewardModel(config).eval()


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_log_ratio(kind):
    tuned, reference = lm(kind, 1), lm(kind, 2)
    found = LogRatioRewards(tuned, reference, scale=0.5).score_tokens(PROMPTS, REPLIES, MASKS)
    for row, (prompt, reply) in enumerate((([5], [6, 7, 8, 1]), ([3, 4, 5], [6, 1]))):
        ratio = torch.zeros(len(reply))
        for model, sign in ((tuned, 1), (reference, -1)):
            if kind == "t5":
                inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[0, *reply[:-1]]])}
                logits = model(**inputs).logits[0]
            else:
                logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
            ratio += sign * logits.log_softmax(-1)[torch.arange(len(reply)), torch.tensor(reply)].detach()
        torch.testing.assert_close(found[row, : len(reply)], 0.5 * ratio, rtol=1e-4, atol=1e-5)
        assert not found[row, len(reply) :].any()
    same = LogRatioRewards(tuned, tuned).score_tokens(PROMPTS, REPLIES, MASKS)
    assert not same.any()


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_prefix_differences_add_up_to_the_score_of_the_reply(kind):
    model = reward_model(kind)
    found = PrefixDifferenceRewards(model).score_tokens(PROMPTS, REPLIES, MASKS)
    scores = model.reply_rewards(PROMPTS, MASKS[0], REPLIES[:, None], MASKS[1][:, None].bool())[:, 0]
    # With the first token's own difference the sum telescopes from there.
    torch.testing.assert_close(found[0, 1:].sum(), scores[0, 3] - scores[0, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1, 1], scores[1, 1] - scores[1, 0], rtol=1e-4, atol=1e-6)
    assert not found[1, 2:].any()


class Fixed:
    def score_tokens(self, *_):
        return torch.tensor([[9.0, 9, 9, 2], [9, 3, 7, 7]])


def test_a_sequence_score_spread_evenly():
    found = EvenRewards(Fixed()).score_tokens(PROMPTS, REPLIES, MASKS)
    assert found.tolist() == [[0.5] * 4, [1.5, 1.5, 0, 0]]
