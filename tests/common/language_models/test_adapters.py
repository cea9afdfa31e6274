"""Adapters merged into the weights give the logits that they gave beside them, wherever they are put."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPT2Config,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PhimoeConfig,
    Qwen3MoeConfig,
)

from common.errors import UserError
from common.language_models.adapters import add_adapters, merged_state_dict

pytest.importorskip("peft")

SIZE: dict[str, Any] = {
    "vocab_size": 43, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
CONFIGS = {
    "fused experts": lambda: MixtralConfig(**SIZE, num_local_experts=2),
    "fused experts of another layout": lambda: GptOssConfig(
        **SIZE, head_dim=8, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention"] * 2
    ),
    "small experts": lambda: Qwen3MoeConfig(  # type: ignore[call-arg]
        **SIZE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
    ),
    "shared and routed experts": lambda: DeepseekV3Config(
        **SIZE | {"num_key_value_heads": 2}, moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=4,
        first_k_dense_replace=1, n_shared_experts=1,
    ),
    "experts by parallel layers": lambda: GraniteMoeConfig(**SIZE, num_local_experts=2, num_experts_per_tok=1),
    "one-dimensional convolutions": lambda: GPT2Config(vocab_size=43, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "tied head": lambda: LlamaConfig(**SIZE, tie_word_embeddings=True),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_merged_adapters_give_the_same_logits(name, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        add_adapters(model, 4, 8.0)
        assert torch.allclose(model(input_ids=ids).logits, plain, atol=1e-5)  # they begin as nothing
        for weight_name, weight in model.named_parameters():
            if ".lora_" in weight_name:
                weight.normal_(std=0.2)
        adapted = model(input_ids=ids).logits
        model.save_pretrained(tmp_path, state_dict=merged_state_dict(model))
        auto: Any = AutoModelForCausalLM
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        again = loaded.eval()(input_ids=ids).logits

    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not torch.allclose(adapted, plain, atol=0.01)
    torch.testing.assert_close(again, adapted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            MambaConfig(vocab_size=43, hidden_size=16, num_hidden_layers=1, state_size=4),
            "MambaForCausalLM takes no adapters",
        ),
        (PhimoeConfig(**SIZE, num_local_experts=2), "PhimoeForCausalLM cannot be read with adapters"),
    ],
    ids=["no place for them", "a router that gives more than scores"],
)
def test_a_family_that_cannot_have_them_is_refused_in_one_line(config, problem):
    model = AutoModelForCausalLM.from_config(config)

    with pytest.raises(UserError, match=f"lora_rank: {problem}") as caught:
        add_adapters(model, 4, 8.0)

    assert "\n" not in str(caught.value)


def test_a_rank_that_no_weight_has_is_refused():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZE))
    with pytest.raises(UserError, match=r"^lora_rank: 65536 is more than the rank of any weight"):
        add_adapters(model, 65536, 8.0)
