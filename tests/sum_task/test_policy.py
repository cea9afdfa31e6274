"""The policy: what is sampled, scored and searched, whatever stands beside it in a batch."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from sum_task.batching import Padded, pad
from sum_task.sampling import sample_summaries
from sum_task.search import search_summaries
from tests.sum_task.tiny import ARTICLES, encode, noise, save_t5, word_tokenizer


@pytest.fixture(params=["t5", "llama"])
def policy(request, tiny):
    """An encoder-decoder and a decoder-only policy."""
    name = getattr(tiny, request.param)
    policy = tiny.policy(model_name_or_path=name, separator=" : ")
    policy.lm.eval()
    return policy


def save_bart(folder, tokenizer):
    """An encoder-decoder whose decoder cannot share the states of a source."""
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=None, eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_gpt2(folder, tokenizer):
    """A decoder-only model of learned positions."""
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("save", [save_bart, save_gpt2])
def test_joined_sources_give_the_samples_of_each(tiny, tmp_path, save):
    torch.manual_seed(0)
    policy = tiny.policy(model_name_or_path=save(tmp_path / "model", word_tokenizer()), separator=" : ")
    policy.lm.eval()
    parts, numbers = [encode(policy, ARTICLES[:1]), encode(policy, ARTICLES[1:])], noise(6)
    joined = sample_summaries(policy, policy.join(parts), 2, numbers, None, 1.0)
    for part, rows in ((parts[0], slice(0, 2)), (parts[1], slice(2, 6))):
        alone = sample_summaries(policy, part, 2, numbers[rows], None, 1.0)
        assert joined.rows(rows).lists() == alone.lists()
        assert joined.rows(rows).tokens.shape == alone.tokens.shape


def test_samples_follow_the_policy_own_distribution(policy):
    sources = encode(policy, ARTICLES[:1])
    samples = sample_summaries(policy, sources, 4000, noise(4000, 1), None, 1.0)
    with torch.no_grad():
        logits = policy.logits(sources, Padded(torch.tensor([[3]]), torch.ones(1, 1, dtype=torch.bool)))
    expected = logits[0, 0, : len(policy.tokenizer)].softmax(-1)
    found = torch.bincount(samples.tokens[:, 0], minlength=len(expected)) / 4000
    assert float((found - expected).abs().max()) < 0.03


def test_greedy_samples_are_the_most_probable_tokens_of_one_teacher_forced_pass(policy):
    """With top_k 1 each token must be the argmax that logits() gives for the prefix: caches, positions, masks agree."""
    sources = encode(policy, ARTICLES)
    samples = sample_summaries(policy, sources, 2, noise(6), 1, 1.0)
    with torch.no_grad():
        logits = policy.logits(sources, samples)[..., : len(policy.tokenizer)]
    assert torch.equal(logits.argmax(-1)[samples.mask], samples.tokens[samples.mask])
    assert torch.equal(samples.tokens[::2], samples.tokens[1::2])


def test_sample_does_not_depend_on_batch_padding_or_ended_rows(policy):
    numbers = noise(9, seed=1)
    together = sample_summaries(policy, encode(policy, ARTICLES, extra_padding=3), 3, numbers, None, 1.0).lists()
    for row, article in enumerate(ARTICLES):
        rows = slice(3 * row, 3 * row + 3)
        assert (
            sample_summaries(policy, encode(policy, [article]), 3, numbers[rows], None, 1.0).lists() == together[rows]
        )
    assert len({len(ids) for ids in together}) > 1  # some ended before others


def test_logits_do_not_depend_on_padding(policy):
    summaries = pad([[5, 6, 7, 1], [8, 1], [9, 4, 1]], policy.pad_id)
    with torch.no_grad():
        together = policy.logits(encode(policy, ARTICLES, extra_padding=2), summaries)
        for row, article in enumerate(ARTICLES):
            alone = policy.logits(encode(policy, [article]), summaries.rows([row]))[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_sampling_keeps_dropout_off_and_the_mode_as_it_was(tiny, tmp_path):
    from tests.sum_task.tiny import word_tokenizer

    name = save_t5(tmp_path / "dropping", word_tokenizer(), dropout=0.5)
    policy = tiny.policy(model_name_or_path=name)
    policy.lm.eval()
    sources = encode(policy, ARTICLES)
    calm = sample_summaries(policy, sources, 2, noise(6), None, 1.0)
    policy.lm.train()
    assert sample_summaries(policy, sources, 2, noise(6), None, 1.0).lists() == calm.lists()
    assert policy.lm.training


def test_padding_token_within_a_sample_is_a_real_token(tiny):
    policy = tiny.policy()
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight[1] = 0  # the end token has a logit of 0, as have all ...
        policy.lm.get_output_embeddings().weight[2:] = 0
    samples = sample_summaries(policy, encode(policy, ARTICLES), 20, noise(60, 8), None, 1.0)
    inner = [ids[:-1] for ids in samples.lists()]
    assert any(policy.tokenizer.pad_token_id in ids for ids in inner)
    assert int(samples.mask.sum()) == sum(map(len, samples.lists()))


def test_search_ends_at_the_end_token(policy):
    found = search_summaries(policy, encode(policy, ARTICLES), 5)
    for ids in found.lists():
        assert policy.end_id not in ids[:-1]
        assert 1 <= len(ids) <= 5
    assert len(search_summaries(policy, encode(policy, ARTICLES), 5, num_beams=2).lists()) == 3


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_greedy_search_writes_the_most_probable_tokens(tiny, name):
    policy = tiny.policy(model_name_or_path=getattr(tiny, name), separator=" : ")
    with torch.no_grad():  # rows of the head that belong to no token of the tokenizer
        head = policy.lm.get_output_embeddings().weight
        head[len(policy.tokenizer) :] = 0
    policy.lm.eval()
    sampled = sample_summaries(policy, encode(policy, ARTICLES), 1, noise(3), 1, 1.0)
    searched = search_summaries(policy, encode(policy, ARTICLES), 6)
    assert policy.texts(sampled) == policy.texts(searched)
