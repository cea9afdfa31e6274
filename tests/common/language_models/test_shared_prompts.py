from typing import Any

import torch
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaModel

from common.language_models.shared_prompts import can_share_prompts


def test_what_a_family_can_is_tried_and_leaves_it_as_it_was():
    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 20, "num_hidden_layers": 1}
    gpt2 = GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=32)).train()
    llama = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, **small)).eval()
    mamba = MambaModel(MambaConfig(hidden_size=16, state_size=4, **small)).eval()
    assert can_share_prompts(gpt2) and gpt2.training
    assert can_share_prompts(llama) and not llama.training
    assert not can_share_prompts(mamba)
    # Positions that are not those of the real tokens are found out: what is read must be the same, not alike.
    forward = gpt2.forward
    gpt2.forward = lambda position_ids=None, **inputs: forward(**inputs)
    assert not can_share_prompts(gpt2)
