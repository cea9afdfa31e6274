import pytest
import torch
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from common.errors import UserError
from common.language_models.adapters import add_adapters, merged_state_dict
from common.language_models.saved import check_saved, few_numbers
from tests import tiny_models


def tiny_mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=32,
        )
    )  # fmt: skip


def trained_adapters(model):
    add_adapters(model, 4, 16.0)
    for name, p in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_what_adapters_changed_is_in_the_folder(family, tmp_path):
    """Linear layers, transposed ones of GPT-2, and the fused experts of a mixture with one adapter in another."""
    pytest.importorskip("peft")
    model = tiny_mixtral() if family == "mixtral" else tiny_models.make(family)[0]
    before = few_numbers(model)
    names = set(model.state_dict())
    trained_adapters(model)
    merged = merged_state_dict(model)
    assert set(merged or {}) == names
    model.save_pretrained(tmp_path, state_dict=merged)
    again = few_numbers(type(model).from_pretrained(tmp_path))
    assert not torch.allclose(before, again, atol=1e-3)
    check_saved("policy", tmp_path, few_numbers(model), lambda: again)


def test_a_folder_that_lost_something_is_named(tmp_path):
    model = tiny_models.make("llama")[0]
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    check_saved("policy", tmp_path, few_numbers(model), lambda: few_numbers(again))
    with torch.no_grad():
        again.model.norm.weight.mul_(0)
    with pytest.raises(UserError, match=r"the policy in .* is not what was trained.*differ by up to"):
        check_saved("policy", tmp_path, few_numbers(model), lambda: few_numbers(again))
    with pytest.raises(UserError, match="other shapes"):
        check_saved("policy", tmp_path, few_numbers(model), lambda: few_numbers(again)[:, :2])

    def missing():
        raise UserError("there is no such folder")

    with pytest.raises(UserError, match=r"the saved policy cannot be loaded again.*no such folder"):
        check_saved("policy", tmp_path, few_numbers(model), missing)
