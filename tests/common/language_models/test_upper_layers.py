"""Upper layers are trained as if all were, and nothing is kept of those below, whatever the family."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BartConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    T5Config,
)

from common.errors import UserError
from common.language_models.upper_layers import train_upper_layers

TOKENS: dict[str, Any] = {"vocab_size": 43, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
LLAMA: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
} | TOKENS  # fmt: skip
# Configuration, the first weights of the last block, and the weights behind it.
FAMILIES = {
    "llama": (LlamaConfig(**LLAMA), "layers.2.", ["norm.weight"]),
    "experts": (MixtralConfig(**LLAMA, num_local_experts=2), "layers.2.", ["norm.weight"]),
    "gpt2": (GPT2Config(vocab_size=43, n_embd=16, n_layer=3, n_head=2), "h.2.", ["ln_f.weight", "ln_f.bias"]),
    "projected": (
        OPTConfig(**LLAMA, ffn_dim=32, word_embed_proj_dim=8, do_layer_norm_before=True),
        "decoder.layers.2.",
        ["decoder.project_out.weight", "decoder.final_layer_norm.weight", "decoder.final_layer_norm.bias"],
    ),
    "no attention": (
        MambaConfig(**TOKENS, hidden_size=16, num_hidden_layers=3, state_size=4), "layers.2.", ["norm_f.weight"],
    ),
    "t5": (
        T5Config(vocab_size=43, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2),
        "decoder.block.2.",
        ["decoder.final_layer_norm.weight"],
    ),
    "bart": (
        BartConfig(**TOKENS, d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2,
                   decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32),
        "decoder.layers.2.",
        [],
    ),
}  # fmt: skip


def gradients(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[5, 6, 7, 8]])
    targets = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    output = model(input_ids=ids, use_cache=False, **targets)
    states = output[0]
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_block_and_what_is_behind_it_get_the_gradients_of_a_whole_pass(name):
    config, block, behind = FAMILIES[name]
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    whole = gradients(model)
    model.zero_grad()
    train_upper_layers(model, 1)
    found = gradients(model)
    expected = {n for n in whole if n.startswith(block)} | set(behind)
    assert len(expected) > len(behind)
    assert found.keys() == expected
    for weight, gradient in found.items():
        torch.testing.assert_close(gradient, whole[weight], rtol=1e-4, atol=1e-6)


def test_nothing_is_kept_of_what_is_frozen():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA, tie_word_embeddings=False))
    train_upper_layers(model, 2)
    needed: list[bool] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, given: needed.append(given[0].requires_grad))
    names = gradients(model).keys()
    assert needed == [False, False, True]
    assert not [n for n in names if "embed" in n or "lm_head" in n or "layers.0" in n]


def test_more_layers_than_there_are_is_one_line():
    model = AutoModel.from_config(LlamaConfig(**LLAMA))
    train_upper_layers(model, None)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(UserError, match=r"^trained_layers: 4, but LlamaModel has 3 of them$"):
        train_upper_layers(model, 4)
