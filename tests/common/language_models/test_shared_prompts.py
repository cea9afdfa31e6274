"""Prompts that are read once: the numbers of reading each reply behind its prompt, by whichever way a family knows."""

from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaModel,
    MistralConfig,
    MistralModel,
)

from common.language_models.shared_prompts import Layout, find_reader, read_from_cache, read_in_one_row

SMALL: dict[str, Any] = {"vocab_size": 20, "num_hidden_layers": 2}
LLAMA: dict[str, Any] = SMALL | {
    "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 0.3,
}  # fmt: skip
MODELS = {
    "llama": (lambda: LlamaModel(LlamaConfig(**LLAMA)), read_in_one_row),
    "llama with its head": (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), read_in_one_row),
    "positions": (lambda: GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2)), read_in_one_row),
    "window": (lambda: MistralModel(MistralConfig(**LLAMA, sliding_window=3)), read_in_one_row),
    "other attention": (lambda: LlamaModel(LlamaConfig(**LLAMA | {"attn_implementation": "eager"})), read_from_cache),
    "biases for distances": (
        lambda: BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=2, n_head=2)), read_from_cache,
    ),
    "no keys and values": (lambda: MambaModel(MambaConfig(hidden_size=16, state_size=4, **SMALL)), None),
}  # fmt: skip
PROMPTS = [[3, 4, 5, 6, 7], [8, 9]]
REPLIES, OWNERS = [[10, 11, 12, 13], [14], [15, 16, 17], [18, 19, 3, 4]], [0, 0, 1, 1]
EVEN = [[3, 4, 5], [6, 7, 8]], [[9, 10], [11, 12], [13, 14]], [0, 1, 1]


def padded(rows: list[list[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    widest = max(map(len, rows))
    padding = [[-100] * (widest - len(row)) for row in rows]
    ids = torch.tensor([[*p, *row] if left else [*row, *p] for row, p in zip(rows, padding, strict=True)])
    return ids, ids != -100


@pytest.mark.parametrize("name", MODELS)
def test_each_reply_is_as_if_it_stood_behind_its_prompt_alone(name):
    torch.manual_seed(0)
    make, way = MODELS[name]
    model = make().eval()
    reader = find_reader(model)
    assert reader is way
    assert (model.config._attn_implementation == "shared_prompts") == (reader is read_in_one_row)
    if reader is None:
        return
    for prompts, replies, owners in ((PROMPTS, REPLIES, OWNERS), EVEN):
        found = reader(model, *padded(prompts, left=True), *padded(replies), torch.tensor(owners))
        expected = []
        for reply, owner in zip(replies, owners, strict=True):
            output = model(input_ids=torch.tensor([[*prompts[owner], *reply]]))
            first = len(prompts[owner])
            if "logits" in output:
                expected.append(output.logits[0, first - 1 : -1])
            else:
                expected.append(output.last_hidden_state[0, first:])
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_prompt_through_all_its_replies(checkpointing):
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(**LLAMA)).train()
    assert find_reader(model) is read_in_one_row
    if checkpointing:
        model.activation_checkpointing_enable()
    weights = torch.randn(sum(map(len, REPLIES)), 16)
    found = read_in_one_row(model, *padded(PROMPTS), *padded(REPLIES), torch.tensor(OWNERS))
    (found * weights).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    done = 0
    for reply, owner in zip(REPLIES, OWNERS, strict=True):
        states = model(input_ids=torch.tensor([[*PROMPTS[owner], *reply]])).last_hidden_state[0, -len(reply) :]
        (states * weights[done : done + len(reply)]).sum().backward()
        done += len(reply)
    for weight, p in model.named_parameters():
        torch.testing.assert_close(gradients[weight], p.grad, rtol=1e-4, atol=1e-5)


def test_where_tokens_stand_by_hand():
    # Prompts of two tokens and one, replies of two tokens to the second and one to the first: a b | c | d e | f
    layout = Layout(torch.tensor([2, 1]), torch.tensor([2, 1]), torch.tensor([1, 0]), torch.device("cpu"))
    assert layout.positions.tolist() == [0, 1, 0, 1, 2, 2]
    assert layout.of_replies.tolist() == [3, 4, 5]
    assert layout.before.tolist() == [2, 3, 1]
    # Keys of a reply: two places of its prompt, two of itself.
    assert layout.reply_mask(None)[0, 0].int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 1]]
    assert layout.reply_mask(None)[1, 0, 0].int().tolist() == [1, 1, 1, 0]
    assert layout.reply_mask(2)[1, 0, 0].int().tolist() == [0, 1, 1, 0]
    assert layout.prompt_mask(2) is None
    mask = layout.prompt_mask(1)
    assert mask is not None and mask.int().tolist() == [[1, 0], [0, 1]]


def test_what_a_family_can_is_tried_and_leaves_it_as_it_was():
    model = GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2)).train()
    assert find_reader(model) is not None and model.training
    # Positions that are not those of the real tokens are found out: what is read must be the same, not alike.
    other = GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2)).eval()
    forward = other.forward
    other.forward = lambda position_ids=None, **inputs: forward(**inputs)
    assert find_reader(other) is None
    assert other.config._attn_implementation == "sdpa"
