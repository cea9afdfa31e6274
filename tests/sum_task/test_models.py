"""Policy and reward model: what is sampled, scored and searched, whatever stands beside it in a batch."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from common.token_reward_model import bound_rewards
from sum_task.batching import Batch, pad
from sum_task.data import Row
from sum_task.models import Summaries, SummaryPolicy, load_policy, load_reward_model
from tests.sum_task.tiny import byte_tokenizer, save_t5, word_tokenizer

ARTICLES = ["the storm hit the city on monday .", "a flood .", "two killed in town fire on friday"]


@pytest.fixture(params=["t5", "llama"])
def policy(request, tiny):
    """An encoder-decoder and a decoder-only policy."""
    name = getattr(tiny, request.param)
    policy = tiny.policy(model_name_or_path=name, separator=" : ")
    policy.lm.eval()
    return policy


def encode(policy: SummaryPolicy, articles, extra_padding=0):
    lists = policy.format.sources(articles)
    width = max(map(len, lists)) + extra_padding
    ids, mask = pad(lists, policy.pad_id, width, left=not policy.is_encoder_decoder)
    return policy.encode(ids, mask)


def noise(rows, length=6, seed=0):
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(seed))


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
    joined = policy.sample(policy.join(parts), 2, numbers, None, 1.0)
    for part, first, end in ((parts[0], 0, 2), (parts[1], 2, 6)):
        alone = policy.sample(part, 2, numbers[first:end], None, 1.0)
        assert joined.part(first, end).lists() == alone.lists()
        assert joined.part(first, end).tokens.shape == alone.tokens.shape


def test_samples_follow_the_policy_own_distribution(policy):
    sources = encode(policy, ARTICLES[:1])
    samples = policy.sample(sources, 4000, noise(4000, 1), None, 1.0)
    with torch.no_grad():
        logits = policy.logits(sources, Summaries(torch.tensor([[3]]), torch.ones(1, 1, dtype=torch.bool)))
    expected = logits[0, 0, : len(policy.tokenizer)].softmax(-1)
    found = torch.bincount(samples.tokens[:, 0], minlength=len(expected)) / 4000
    assert float((found - expected).abs().max()) < 0.03


def test_greedy_samples_are_the_most_probable_tokens_of_one_teacher_forced_pass(policy):
    """With top_k 1 each token must be the argmax that logits() gives for the prefix: caches, positions, masks agree."""
    sources = encode(policy, ARTICLES)
    samples = policy.sample(sources, 2, noise(6), 1, 1.0)
    with torch.no_grad():
        logits = policy.logits(sources, samples)[..., : len(policy.tokenizer)]
    assert torch.equal(logits.argmax(-1)[samples.mask], samples.tokens[samples.mask])
    assert torch.equal(samples.tokens[::2], samples.tokens[1::2])


def test_sample_does_not_depend_on_batch_padding_or_ended_rows(policy):
    numbers = noise(9, seed=1)
    together = policy.sample(encode(policy, ARTICLES, extra_padding=3), 3, numbers, None, 1.0).lists()
    for row, article in enumerate(ARTICLES):
        rows = slice(3 * row, 3 * row + 3)
        assert policy.sample(encode(policy, [article]), 3, numbers[rows], None, 1.0).lists() == together[rows]
    assert len({len(ids) for ids in together}) > 1  # some ended before others


def test_logits_do_not_depend_on_padding(policy):
    tokens, mask = pad([[5, 6, 7, 1], [8, 1], [9, 4, 1]], policy.pad_id)
    with torch.no_grad():
        together = policy.logits(encode(policy, ARTICLES, extra_padding=2), Summaries(tokens, mask))
        for row, article in enumerate(ARTICLES):
            length = int(mask[row].sum())
            alone = policy.logits(
                encode(policy, [article]), Summaries(tokens[row : row + 1, :length], mask[row : row + 1, :length])
            )
            torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=1e-5)


def test_sampling_keeps_dropout_off_and_the_mode_as_it_was(tiny, tmp_path):
    from tests.sum_task.tiny import word_tokenizer

    name = save_t5(tmp_path / "dropping", word_tokenizer(), dropout=0.5)
    policy = tiny.policy(model_name_or_path=name)
    policy.lm.eval()
    sources = encode(policy, ARTICLES)
    calm = policy.sample(sources, 2, noise(6), None, 1.0)
    policy.lm.train()
    assert policy.sample(sources, 2, noise(6), None, 1.0).lists() == calm.lists()
    assert policy.lm.training


def test_padding_token_within_a_sample_is_a_real_token(tiny):
    policy = tiny.policy()
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight[1] = 0  # the end token has a logit of 0, as have all ...
        policy.lm.get_output_embeddings().weight[2:] = 0
    samples = policy.sample(encode(policy, ARTICLES), 20, noise(60, 8), None, 1.0)
    inner = [ids[:-1] for ids in samples.lists()]
    assert any(policy.tokenizer.pad_token_id in ids for ids in inner)
    assert int(samples.mask.sum()) == sum(map(len, samples.lists()))


def test_search_ends_at_the_end_token(policy):
    found = policy.search(encode(policy, ARTICLES), 5)
    for ids in found.lists():
        assert policy.end_id not in ids[:-1]
        assert 1 <= len(ids) <= 5
    assert len(policy.search(encode(policy, ARTICLES), 5, num_beams=2).lists()) == 3


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_greedy_search_writes_the_most_probable_tokens(tiny, name):
    policy = tiny.policy(model_name_or_path=getattr(tiny, name), separator=" : ")
    with torch.no_grad():  # rows of the head that belong to no token of the tokenizer
        head = policy.lm.get_output_embeddings().weight
        head[len(policy.tokenizer) :] = 0
    policy.lm.eval()
    sampled = policy.sample(encode(policy, ARTICLES), 1, noise(3), 1, 1.0)
    searched = policy.search(encode(policy, ARTICLES), 6)
    assert policy.texts(sampled) == policy.texts(searched)


def batch_of(policy: SummaryPolicy, articles):
    lists = policy.format.sources(articles)
    ids, mask = pad(lists, policy.pad_id, left=not policy.is_encoder_decoder)
    rows = [Row(article, "") for article in articles]
    return Batch(rows, ids, mask, ids, mask, list(range(len(articles))))


@pytest.mark.parametrize("head", ["after", "likelihood"])
@pytest.mark.parametrize(
    "pair", [("t5", "t5"), ("llama", "llama"), ("t5", "byte_t5"), ("t5", "llama"), ("llama", "t5")]
)
def test_rewards_of_a_summary_do_not_depend_on_what_stands_beside_it(tiny, pair, head):
    names = {"model_name_or_path": getattr(tiny, pair[0]), "rew_model_name_or_path": getattr(tiny, pair[1])}
    names["rew_head"] = head
    policy = tiny.policy(**names, separator=" : ")
    reward = tiny.reward_model(policy, **names, separator=" : ")
    assert reward.reads_policy_tokens == (pair[0] == pair[1])
    lists = [[5, 6, 7, 1], [8, 1], [9, 4, 1], [3, 3, 3, 3], [1], [10, 11, 1]]
    tokens, mask = pad(lists, policy.pad_id)
    with torch.no_grad():
        together = reward.policy_rewards(batch_of(policy, ARTICLES), Summaries(tokens, mask))
        own, own_mask = reward.own_rewards(batch_of(policy, ARTICLES), Summaries(tokens, mask))
        for row, ids in enumerate(lists):
            alone = reward.policy_rewards(
                batch_of(policy, [ARTICLES[row // 2]]), Summaries(torch.tensor([ids]), torch.ones(1, len(ids)).bool())
            )
            torch.testing.assert_close(together[row, : len(ids)], alone[0], atol=1e-5, rtol=1e-5)
    assert bool((together[~mask] == 0).all())
    # Carried over or not, the rewards of a summary keep their sum.
    torch.testing.assert_close(together.sum(-1), (own * own_mask).sum(-1), atol=1e-5, rtol=1e-5)


def test_reward_of_a_token_does_not_look_at_later_ones(tiny):
    policy = tiny.policy()
    reward = tiny.reward_model(policy)
    mask = torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        one = reward.policy_rewards(batch_of(policy, ARTICLES[:1]), Summaries(torch.tensor([[5, 6, 7]]), mask))
        two = reward.policy_rewards(batch_of(policy, ARTICLES[:1]), Summaries(torch.tensor([[5, 6, 9]]), mask))
    assert torch.equal(one[0, :2], two[0, :2])
    assert one[0, 2] != two[0, 2]  # read where the token itself has just been read


def test_likelihood_head_knows_what_the_language_model_knows_and_is_told_by_its_folder(tiny, tmp_path):
    """The backbone is the policy itself, so a reward is bound(0.25 log p + 1) of the policy's own probability."""
    for name in ("t5", "llama"):
        settings = tiny.settings(model_name_or_path=getattr(tiny, name), rew_head="likelihood", separator=" : ")
        policy = load_policy(settings.models, settings.text, settings.evaluation)
        policy.lm.eval()
        reward = load_reward_model(settings.models, settings.text, policy)
        tokens, mask = pad([[5, 6, 7, 1], [8, 1]], policy.pad_id)
        batch, summaries = batch_of(policy, ARTICLES[:2]), Summaries(tokens, mask)
        with torch.no_grad():
            logits = policy.logits(policy.encode(batch.source_ids, batch.source_mask), summaries)
            log_p = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            expected = bound_rewards(0.25 * log_p + 1, "softplus").masked_fill(~mask, 0)
            torch.testing.assert_close(reward.policy_rewards(batch, summaries), expected, atol=1e-6, rtol=0)
            reward.save_pretrained(tmp_path / name)
            published = tiny.settings(rew_checkpoint_path=tmp_path / name, separator=" : ")
            again = load_reward_model(published.models, published.text, policy)
            torch.testing.assert_close(again.policy_rewards(batch, summaries), expected, atol=1e-6, rtol=0)


def test_position_embeddings(tiny):
    long = {"model_name_or_path": tiny.llama, "max_source_length": 400}
    with pytest.raises(UserError, match="resize_position_embeddings=true"):
        tiny.policy(**long, resize_position_embeddings=False)
    with pytest.raises(UserError, match="cannot be lengthened"):
        tiny.policy(**long)


def test_policy_of_random_weights(tiny):
    settings = tiny.settings(model_name_or_path="null", config_name=tiny.t5)
    torch.manual_seed(5)
    fresh = load_policy(settings.models, settings.text, settings.evaluation)
    assert fresh.lm.config.d_model == 16
    assert load_reward_model(settings.models, settings.text, fresh).model.backbone.config.d_model == 16
    with pytest.raises(UserError, match="did you mean 't5'"):
        tiny.policy(model_name_or_path="null", model_type="t55")
    with pytest.raises(UserError, match="is a t5, not a bart"):
        tiny.policy(model_type="bart")


def test_tokenizer_of_another_name_lengthens_the_vocabulary(tiny):
    policy = tiny.policy(tokenizer_name=tiny.byte_t5)
    assert len(policy.tokenizer) == len(byte_tokenizer())
    embeddings = policy.lm.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    assert embeddings.num_embeddings >= len(policy.tokenizer)


def test_encoder_runs_once_for_all_samples_of_a_batch(tiny):
    policy = tiny.policy()
    reward = tiny.reward_model(policy)
    rows = []
    for model in (policy.lm, reward.model.backbone):
        model.get_encoder().register_forward_hook(
            lambda m, a, k, o: rows.append(k["input_ids"].shape[0]), with_kwargs=True
        )
    batch = batch_of(policy, ARTICLES)
    samples = policy.sample(policy.encode(batch.source_ids, batch.source_mask), 4, noise(12), None, 1.0)
    reward.own_rewards(batch, samples)
    assert rows == [3, 3]
