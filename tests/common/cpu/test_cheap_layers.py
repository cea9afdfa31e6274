"""Cheap layers give the numbers and gradients of transformers' own, and keep less."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MT5Config, T5Config
from transformers import MT5ForConditionalGeneration as MT5
from transformers import T5ForConditionalGeneration as T5
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from common.cpu.cheap_layers import ReLUDropout, _RMSNorm, use_cheap_layers
from common.cpu.dropout import PIECE, CheapDropout, draw_kept

SIZE: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 3, "vocab_size": 50}
T5_SIZE = SIZE | {"decoder_start_token_id": 0, "pad_token_id": 0}


def with_random_weights(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def kept_for_backward(work):
    """What autograd keeps of `work`, each tensor once."""
    kept = {}

    def note(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        work()
    return list(kept.values())


@pytest.mark.parametrize("kind", [T5LayerNorm, MT5LayerNorm, LlamaRMSNorm])
def test_a_norm_by_hand(kind):
    model: Any = nn.Sequential(kind(2, eps=0.5))
    use_cheap_layers(model)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 10.0]))
    # mean of squares (1 + 6) / 2 = 3.5, with epsilon 4, its root 2
    states = torch.tensor([[1.0, 6.0**0.5]])
    torch.testing.assert_close(model(states), torch.tensor([[0.5, 5 * 6.0**0.5]]))


@pytest.mark.parametrize("kind", [T5LayerNorm, MT5LayerNorm, LlamaRMSNorm])
@pytest.mark.parametrize("shape", [(3, 5, 16), (2, PIECE // 16 + 3, 16), (1, 16)])
def test_a_norm_gives_what_transformers_gives(kind, shape):
    own: Any = with_random_weights(nn.Sequential(kind(16, eps=1e-3)))
    ours = copy.deepcopy(own)
    use_cheap_layers(ours)
    generator = torch.Generator().manual_seed(1)
    states, direction = (torch.randn(shape, generator=generator) for _ in range(2))
    found = []
    for model in (own, ours):
        read = states.clone().requires_grad_()
        output = model(read)
        (output * direction).sum().backward()
        found.append((output.detach(), read.grad, model[0].weight.grad))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_the_gradient_of_a_norm_against_finite_differences():
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-2), (states, weight))


def test_a_norm_keeps_its_input_alone_and_a_frozen_weight_gets_no_gradient():
    model = nn.Sequential(T5LayerNorm(16))
    use_cheap_layers(model)
    model[0].weight.requires_grad_(False)
    states = torch.randn(100, 16, requires_grad=True)
    large = [t for t in kept_for_backward(lambda: model(states)) if t.numel() > 100]
    assert [t.data_ptr() for t in large] == [states.data_ptr()]
    model(states).sum().backward()
    assert model[0].weight.grad is None


def test_half_precision_is_left_to_transformers():
    own = nn.Sequential(T5LayerNorm(16)).bfloat16()
    ours = copy.deepcopy(own)
    use_cheap_layers(ours)
    states = torch.randn(5, 16, dtype=torch.bfloat16)
    assert torch.equal(ours(states), own(states))


def test_relu_and_dropout_in_one():
    layer = ReLUDropout(0.25)
    states = torch.linspace(-1, 1, 2 * PIECE + 10)
    torch.manual_seed(3)
    kept = draw_kept(states.shape, 0.25)
    expected = states.clamp(min=0) * kept / 0.75
    read = states.clone().requires_grad_()
    torch.manual_seed(3)
    output = layer(read * 1)
    torch.testing.assert_close(output.detach(), expected)
    (output * 2).sum().backward()
    torch.testing.assert_close(read.grad, 2 * ((states > 0) & kept) / 0.75)


def test_in_half_precision_output_and_gradient_have_the_same_mean():
    torch.manual_seed(6)
    states = torch.randn(400, 1000).exp().bfloat16().requires_grad_()
    output = ReLUDropout(0.1)(states * 1)
    output.backward(states.detach())
    kept = output != 0
    pair: Any = (output, states.grad)
    for values in pair:
        assert (values[kept].double().sum() / states[kept].double().sum()).item() == pytest.approx(1 / 0.9, rel=3e-4)


def test_on_other_devices_dropout_is_pytorchs_own(monkeypatch):
    drawn = []
    monkeypatch.setattr("common.cpu.cheap_layers.draw_kept", lambda *given: drawn.append(given))
    output = ReLUDropout(0.5)(torch.empty(3, 4, device="meta"))
    assert (output.shape, output.device.type, drawn) == ((3, 4), "meta", [])


def test_relu_and_dropout_keep_their_output_alone():
    layer = ReLUDropout(0.5)
    states = torch.randn(50, 50, requires_grad=True) * 1
    output = []
    kept = kept_for_backward(lambda: output.append(layer(states)))
    assert [t.data_ptr() for t in kept] == [output[0].data_ptr()]


@pytest.mark.parametrize("train", [False, True])
def test_without_dropout_it_is_relu(train):
    layer = ReLUDropout(0.0 if train else 0.5).train(train)
    states = torch.randn(7, 3, requires_grad=True)
    output = layer(states * 1)
    output.sum().backward()
    torch.testing.assert_close(output, states.relu(), rtol=0, atol=0)
    torch.testing.assert_close(states.grad, (states > 0).float(), rtol=0, atol=0)


def test_nan_is_not_hidden():
    assert ReLUDropout(0.5)(torch.full((100,), torch.nan)).isnan().all()


MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "t5": (T5, T5Config, T5_SIZE),
    "t5, gated": (T5, T5Config, T5_SIZE | {"feed_forward_proj": "gated-gelu"}),
    "mt5, relu": (MT5, MT5Config, T5_SIZE | {"feed_forward_proj": "relu"}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 50}),
    "llama": (
        LlamaForCausalLM, LlamaConfig,
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"vocab_size": 50},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_cheap_layers_gives_the_numbers_and_gradients_of_its_own(name):
    kind, config_kind, fields = MODELS[name]
    own = with_random_weights(kind(config_kind(**fields))).eval()
    ours = copy.deepcopy(own)
    use_cheap_layers(ours)
    assert ours.state_dict().keys() == own.state_dict().keys()
    ids = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(4))
    losses = [model(input_ids=ids, labels=ids).loss for model in (own, ours)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for loss in losses:
        loss.backward()
    for (place, parameter), other in zip(own.named_parameters(), ours.parameters(), strict=True):
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-5 * scale, msg=place)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_cheap_layers_can_be_copied_and_saved(name, tmp_path):
    kind, config_kind, fields = MODELS[name]
    model = kind(config_kind(**fields)).eval()
    use_cheap_layers(model)
    model.save_pretrained(tmp_path)
    ids = torch.arange(1, 8).unsqueeze(0)
    expected = model(input_ids=ids, labels=ids).logits
    torch.testing.assert_close(copy.deepcopy(model)(input_ids=ids, labels=ids).logits, expected)
    torch.testing.assert_close(kind.from_pretrained(tmp_path).eval()(input_ids=ids, labels=ids).logits, expected)


def test_which_layers_are_replaced():
    def kinds(name):
        kind, config_kind, fields = MODELS[name]
        model = kind(config_kind(**fields))
        use_cheap_layers(model)
        return model, {type(module) for module in model.modules()}

    model, found = kinds("t5")
    assert {ReLUDropout, CheapDropout} <= found
    assert found.isdisjoint({nn.Dropout, T5LayerNorm, nn.ReLU})
    assert sum(isinstance(module, T5LayerNorm) for module in model.modules()) == 2 * 2 + 2 * 3 + 2
    _, found = kinds("t5, gated")
    assert {GELUTanh, CheapDropout} <= found
    assert found.isdisjoint({nn.Dropout, T5LayerNorm, NewGELUActivation, ReLUDropout})
    _, found = kinds("gpt2")
    assert {GELUTanh, CheapDropout, nn.LayerNorm} <= found
    assert found.isdisjoint({nn.Dropout, NewGELUActivation})


class OwnDropout(nn.Dropout):
    """A kind that does something of its own."""


class OwnNorm(T5LayerNorm):
    """The same."""


def test_plain_layers_are_replaced_in_their_mode_and_others_are_not():
    inner = nn.Sequential(OwnDropout(0.3), nn.Dropout(0.4).eval(), nn.Dropout(0.1, inplace=True), OwnNorm(2))
    model = nn.Sequential(nn.Dropout(0.2), inner, nn.Linear(2, 2))
    for _ in range(2):  # a second call changes nothing
        use_cheap_layers(model)
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
        assert [type(layer) for layer in layers] == [CheapDropout, OwnDropout, CheapDropout, nn.Dropout]
        assert [layer.p for layer in layers] == [0.2, 0.3, 0.4, 0.1]
        assert [layer.training for layer in layers] == [True, True, False, True]
        assert type(inner[3]) is OwnNorm


def test_the_mode_of_a_feed_forward_block_is_kept_and_its_dropout_is_drawn_once():
    model = T5(T5Config(**T5_SIZE, dropout_rate=0.5)).eval()
    use_cheap_layers(model)
    block = model.encoder.block[0].layer[1].DenseReluDense
    assert not block.act.training
    model.train()
    states = torch.ones(200, 16)
    torch.manual_seed(5)
    output = block(states)
    torch.manual_seed(5)
    hidden = block.wi(states).relu()
    torch.testing.assert_close(output, block.wo(hidden * draw_kept(hidden.shape, 0.5) * 2))
