"""Masks that transformers takes as they stand, which it would else look into, and for which models they are."""

from typing import Any

import pytest
import torch
import transformers as hf

from common.language_models.masks import Masks
from tests.pretended_device import pretended_device

SIZE: dict[str, Any] = {"vocab_size": 25, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
DECODER: dict[str, Any] = SIZE | {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
T5: dict[str, Any] = SIZE | {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}


def made(kind):
    torch.manual_seed(0)
    if kind == "t5":
        return hf.T5ForConditionalGeneration(hf.T5Config(**T5)).eval()
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER)).eval()
    if kind == "window":
        return hf.MistralForCausalLM(hf.MistralConfig(**DECODER, num_key_value_heads=2, sliding_window=4)).eval()
    if kind == "eager":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER)).eval()
        model.set_attn_implementation("eager")
        return model
    # Its positions count the tokens of the mask, and nobody tells it others.
    return hf.BloomForCausalLM(hf.BloomConfig(**SIZE, hidden_size=16, n_layer=1, n_head=2)).eval()


def padded(left):
    ids = torch.arange(2, 12).view(2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, slice(2) if left else slice(3, None)] = False
    return ids, mask


def _given(model: Any, mask: torch.Tensor) -> Any:
    return Masks(model)(mask, 5)


def test_a_cpu_gives_the_usual_masks():
    _, mask = padded(left=True)
    assert torch.equal(_given(made("llama"), mask), mask.long())


def test_a_decoder_only_model_reads_the_same_with_a_ready_mask_and_the_cpu_does_not_wait():
    model, (ids, mask) = made("llama"), padded(left=True)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits
    with pretended_device() as mode, torch.no_grad():
        model.to("cuda")
        masks: Any = Masks(model)
        given: Any = masks(mask.to("cuda"), 5)
        assert given.shape == (2, 1, 5, 5)
        before = mode.count
        found = model(input_ids=ids.to("cuda"), attention_mask=given, position_ids=positions.to("cuda")).logits
        assert mode.count == before
        assert masks(mask.to("cuda")).shape == (2, 1, 1, 5)
        assert masks(mask.to("cuda"), 5, hides=False).shape == (2, 5)  # the fast path of attention, for one look
    torch.testing.assert_close(found[mask], expected[mask])


def test_an_encoder_decoder_reads_the_same_with_a_ready_mask_and_the_cpu_does_not_wait():
    model, (ids, mask) = made("t5"), padded(left=False)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=ids).logits
    with pretended_device() as mode, torch.no_grad():
        model.to("cuda")
        masks: Any = Masks(model)
        given: Any = masks(mask.to("cuda"))
        assert given.shape == (2, 1, 1, 5)
        before = mode.count
        there = ids.to("cuda")
        found = model(input_ids=there, attention_mask=given, decoder_input_ids=there).logits
        assert mode.count == before
        assert masks(mask.to("cuda"), hides=False) is None
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["window", "eager", "bloom"])
def test_a_model_that_reads_otherwise_gets_the_usual_masks(kind):
    model, (_, mask) = made(kind), padded(left=True)
    with pretended_device():
        model.to("cuda")
        found = _given(model, mask.to("cuda"))
    assert torch.equal(found, mask.long())


def test_a_model_is_asked_in_evaluation_mode_and_keeps_its_own():
    model = made("t5").train()
    with pretended_device():
        model.to("cuda")
        Masks(model)(torch.ones(1, 3, device="cuda", dtype=torch.bool))
    assert model.training
