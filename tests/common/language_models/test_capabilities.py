"""What a model can do, against what is known of families that do it in different ways."""

from typing import Any

import pytest
import torch
import transformers as hf

from common.errors import UserError
from common.language_models.branches import can_branch
from common.language_models.capabilities import capabilities, head_width, states_width
from common.language_models.saved import few_numbers
from common.language_models.shared_prompts import find_reader

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
BART_SIZES: dict[str, Any] = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 1, "init_std": 0.3,
}  # fmt: skip


def made(config):
    """A model of random weights with its language-model head."""
    torch.manual_seed(0)
    auto = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
    return auto.from_config(config).eval()


def test_a_common_decoder_does_all():
    found = capabilities(made(hf.LlamaConfig(**SIZES)))
    assert (found.kind, found.width, found.vocabulary) == ("decoder-only", 16, 40)
    assert (found.source_positions, found.target_positions) == (64, 64)
    assert found.cache_by_rows and found.ignores_padding and found.left_to_right
    assert found.takes_positions and found.keeps_logits


@pytest.mark.parametrize("ask", [capabilities, head_width, can_branch, find_reader, few_numbers])
def test_ways_are_compared_in_float32_whatever_the_precision_of_the_run(ask):
    # On a CPU with bfloat16 units, and on CUDA, `medium` and `high` would round by more than the ways may differ.
    lm = made(hf.LlamaConfig(**SIZES))
    seen = set()
    lm.model.register_forward_pre_hook(lambda *_: seen.add(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        ask(lm if ask in (capabilities, head_width, few_numbers) else lm.model)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {"highest"}


def test_width_is_that_of_the_states_whatever_the_configuration_calls_hidden_size():
    options = SIZES | {"word_embed_proj_dim": 8, "ffn_dim": 32, "do_layer_norm_before": False, "init_std": 0.3}
    lm = made(hf.OPTConfig(**options))
    assert lm.config.hidden_size == 16
    assert capabilities(lm).width == states_width(lm.base_model) == 8
    # A table of 64 positions that begins with two rows no token reads.
    assert capabilities(lm).source_positions == 64


@pytest.mark.parametrize(
    ("config", "cache", "padding"),
    [
        (hf.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4), False, True),
        (hf.RwkvConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16), False, False),
        (hf.OpenAIGPTConfig(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64), False, True),
        (hf.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2), True, True),
    ],
)
def test_memory_and_padding_are_tried(config, cache, padding):
    found = capabilities(made(config))
    assert (found.cache_by_rows, found.ignores_padding, found.left_to_right) == (cache, padding, True)


def test_a_model_that_looks_ahead_is_found_out():
    found = capabilities(made(hf.XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=2, d_inner=32)))
    assert not found.left_to_right


def test_encoder_decoders_of_other_limits_and_other_encoder_outputs():
    led = hf.LEDConfig(
        **BART_SIZES, max_encoder_position_embeddings=48, max_decoder_position_embeddings=32, attention_window=4
    )
    found = capabilities(made(led))
    assert (found.kind, found.source_positions, found.target_positions) == ("encoder-decoder", 48, 32)
    assert found.cache_by_rows and found.ignores_padding and found.left_to_right
    sizes: dict[str, Any] = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    switch = hf.SwitchTransformersConfig(
        **sizes, num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1
    )
    found = capabilities(made(switch))
    assert (found.width, found.source_positions, found.cache_by_rows) == (
        16,
        None,
        True,
    )  # relative positions: no limit


def test_asking_leaves_the_model_as_it_was_and_what_cannot_read_is_one_line():
    lm = made(hf.LlamaConfig(**SIZES)).train()
    before = torch.get_rng_state()
    capabilities(lm)
    assert lm.training
    assert torch.equal(torch.get_rng_state(), before)
    lm.model.layers[0].mlp.up_proj = torch.nn.Linear(3, 3)
    with pytest.raises(UserError, match=r"^'broken' \(llama\) cannot read a few tokens: [^\n]*$"):
        capabilities(lm, "'broken'")


def test_a_model_in_training_mode_can_do_what_it_can_without_dropout():
    """As transformers makes a model of random weights."""
    sizes: dict[str, Any] = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = hf.T5Config(**sizes | {"decoder_start_token_id": 0, "dropout_rate": 0.5})
    lm = made(config).train()
    assert capabilities(lm) == capabilities(made(config))
    assert capabilities(lm).cache_by_rows and capabilities(lm).ignores_padding
