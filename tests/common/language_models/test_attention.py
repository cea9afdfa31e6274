"""Attention for T5's kind gives the numbers of transformers' own, and stores less."""

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartModel, MT5Config, MT5Model, T5Config, T5Model

from common.cpu.cheap_layers import use_cheap_layers
from common.cpu.dropout import draw_kept, kept_share
from common.language_models import attention
from common.language_models.attention import SHARED_SOURCE, _Attention, share_sources
from tests.sum_task.tiny import spied

SIZE: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 3, "vocab_size": 50}
SOURCES, PER_SOURCE, LENGTH, WRITTEN = 2, 3, 7, 5


def make_pair(kind, config_kind, **options):
    """Two models of the same weights: as transformers makes it, and sharing sources."""
    torch.manual_seed(0)
    config = config_kind(**SIZE, decoder_start_token_id=0, pad_token_id=0, **options)
    own, ours = kind(config), kind(config)
    with torch.no_grad():
        for stack in (own.encoder, own.decoder):  # a bias as large as the scores: one that is left out shows
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_()
    ours.load_state_dict(own.state_dict())
    assert share_sources(ours)
    return own, ours


def read(model, shared, with_padding):
    """Decoder states (B * K, T, d) and the gradient of every weight."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (SOURCES, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    if with_padding:
        mask[0, 4:] = 0
    written = torch.randint(1, 50, (SOURCES * PER_SOURCE, WRITTEN), generator=generator)
    states = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    if not shared:
        states, mask = states.repeat_interleave(PER_SOURCE, 0), mask.repeat_interleave(PER_SOURCE, 0)
    hidden = model(
        encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=written, use_cache=False
    ).last_hidden_state
    if hidden.requires_grad:
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return hidden.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("kind", "config_kind"), [(T5Model, T5Config), (MT5Model, MT5Config)])
@pytest.mark.parametrize("with_padding", [False, True])
def test_sequences_of_a_source_share_its_keys_and_values(kind, config_kind, with_padding):
    own, ours = make_pair(kind, config_kind, dropout_rate=0.0)
    expected, gradients = read(own, shared=False, with_padding=with_padding)
    found, found_gradients = read(ours, shared=True, with_padding=with_padding)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


class PlainAttention:
    """What `_Attention` computes, written plainly and differentiated by autograd."""

    @staticmethod
    def apply(query, key, value, bias, mask, dropout):
        scores = query @ key.transpose(2, 3) + (0 if bias is None else bias)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return (scores.softmax(-1) * draw_kept(scores.shape, dropout) / kept_share(dropout)) @ value


@pytest.mark.parametrize("with_padding", [False, True])
def test_dropout_is_that_of_the_weights(with_padding, monkeypatch):
    _, ours = make_pair(T5Model, T5Config, dropout_rate=0.3)
    torch.manual_seed(2)
    found, found_gradients = read(ours.train(), shared=True, with_padding=with_padding)
    ours.zero_grad()
    monkeypatch.setattr("common.language_models.attention._Attention", PlainAttention)
    torch.manual_seed(2)
    expected, gradients = read(ours, shared=True, with_padding=with_padding)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def random_inputs(queries, keys):
    generator = torch.Generator().manual_seed(6)
    shapes = [(2, 3, queries, 4), (2, 3, keys, 4), (2, 3, keys, 4), (1, 3, queries, keys), (2, 3, queries, 4)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
MASKS = {
    "padding at the end": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None],
    "padding at both ends and within": torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 1, 1]]).bool()[:, None, None],
    "nothing to see": torch.tensor([[0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]).bool()[:, None, None],
    "a query that sees nothing": torch.cat([CAUSAL[1:, :], CAUSAL[:1] & False])[None, None],
    "causal": CAUSAL[None, None],
    "causal, with padding": CAUSAL & torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_masks(mask, dropout):
    *inputs, direction = random_inputs(5, 5)
    found = []
    ways: list[Any] = [PlainAttention, _Attention]
    for way in ways:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        torch.manual_seed(7)
        output = way.apply(*leaves, mask, dropout)
        (output * direction).sum().backward()
        found.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_padding_at_the_end_is_not_read():
    query, key, value, _, direction = random_inputs(2, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()[:, None, None]
    key, value = (tensor.masked_fill(~mask.transpose(2, 3), torch.nan).requires_grad_() for tensor in (key, value))
    output = _Attention.apply(query.requires_grad_(), key, value, None, mask, 0.3)
    assert output.isfinite().all()
    output.backward(direction)
    assert query.grad.isfinite().all()
    for tensor in (key, value):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.masked_select(~mask.transpose(2, 3)).abs().max() == 0


def test_scores_are_computed_in_parts(monkeypatch):
    _, ours = make_pair(T5Model, T5Config, dropout_rate=0.0)
    expected, gradients = read(ours, shared=True, with_padding=True)
    ours.zero_grad()
    monkeypatch.setattr("common.language_models.attention._SCORES_AT_ONCE", 2 * LENGTH**2)  # two heads, then the third
    found, found_gradients = read(ours, shared=True, with_padding=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradients, gradients)


def test_no_scores_are_kept_for_the_backward_pass():
    _, ours = make_pair(T5Model, T5Config, dropout_rate=0.3)
    kept = []

    def note(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ours.train().encoder(input_ids=torch.ones(SOURCES, LENGTH, dtype=torch.long))
    score_sized = [t for t in kept if t.numel() == SOURCES * SIZE["num_heads"] * LENGTH**2]
    assert {t.dtype for t in score_sized} == {torch.bool}


@pytest.mark.parametrize("in_cache", [0, 10**9])
def test_without_gradient_the_numbers_are_the_same(in_cache, monkeypatch):
    monkeypatch.setattr(attention, "_SCORES_IN_CACHE", in_cache)
    own, ours = make_pair(T5Model, T5Config, dropout_rate=0.0)
    expected = read(own, shared=False, with_padding=True)[0]
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    found = read(ours, shared=True, with_padding=True)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "in_cache", [SOURCES * SIZE["num_heads"] * LENGTH**2 - 1, SOURCES * SIZE["num_heads"] * LENGTH**2]
)
def test_bias_and_mask_become_one_tensor_where_that_is_small(in_cache, monkeypatch):
    _, ours = make_pair(T5Model, T5Config, dropout_rate=0.0)
    calls = []
    noted = spied(attention.sdpa_attention_forward, lambda *given, **_: calls.append(given))
    monkeypatch.setattr(attention, "sdpa_attention_forward", noted)
    monkeypatch.setattr(attention, "_SCORES_IN_CACHE", in_cache)
    with torch.no_grad():
        ours.eval().encoder(input_ids=torch.ones(SOURCES, LENGTH, dtype=torch.long))
    assert len(calls) == (SIZE["num_layers"] if in_cache >= SOURCES * SIZE["num_heads"] * LENGTH**2 else 0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_dropout_is_drawn_again_alike_where_states_are_computed_again(reentrant):
    _, ours = make_pair(T5Model, T5Config, dropout_rate=0.3)
    use_cheap_layers(ours.train())
    torch.manual_seed(8)
    expected, gradients = read(ours, shared=True, with_padding=True)
    ours.zero_grad()
    ours.activation_checkpointing_enable({"use_reentrant": reentrant})
    ours.get_input_embeddings().register_forward_hook(lambda module, given, output: output.requires_grad_())
    torch.manual_seed(8)
    found, found_gradients = read(ours, shared=True, with_padding=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradients, gradients)


def test_other_families_and_other_attention_stay_as_they_are():
    bart = BartModel(BartConfig(
        d_model=8, vocab_size=20, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=8,
    ))  # fmt: skip
    assert not share_sources(bart)
    assert bart.config._attn_implementation == "sdpa"
    eager = T5Model._from_config(T5Config(**SIZE), attn_implementation="eager")
    assert not share_sources(eager)
    assert eager.config._attn_implementation == "eager"


def test_saved_configurations_do_not_name_it():
    _, ours = make_pair(T5Model, T5Config)
    assert SHARED_SOURCE not in ours.config.to_json_string(use_diff=False)
