import copy
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models

from common.errors import UserError
from common.policy_losses import negative_entropy
from prompt_task.prompt_policy import PromptPolicy
from tests import tiny_models

LENGTH = 5


def policy_of(kind="gpt2", seed=0, spread=0.0, **options):
    lm, tokenizer = tiny_models.make(kind)
    source = {"gpt2": "<|endoftext|>", "llama": "<s>"}[kind]
    torch.manual_seed(seed)
    options = {**{"source_str": source, "hidden_size": 32}, **options}
    policy = PromptPolicy(lm, tokenizer, kind, **options)
    if spread:  # as if trained: the published initial weights are nearly nothing
        for parameter in policy.adaptor.parameters():
            torch.nn.init.normal_(parameter, std=spread)
    return policy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def teacher_forced(policy, tokens):
    """Logits (N, T, V) by the definition: each whole row through the LM at once, no cache."""
    source = policy.source_ids.expand(len(tokens), -1)
    return policy.logits(torch.cat([source, tokens], 1)[:, :-1], last=tokens.shape[1])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("residual", [False, True])
def test_the_logits_of_a_sample_are_those_of_reading_it_anew(kind, residual):
    policy = policy_of(kind, spread=0.5, residual=residual)
    rollout = policy.sample(20, generator(), with_logits=True)
    with torch.no_grad():
        expected = teacher_forced(policy, rollout.tokens)
    torch.testing.assert_close(rollout.logits, expected, atol=1e-4, rtol=1e-4)


def test_truncation_shapes_what_is_drawn_and_never_the_logits():
    policy = policy_of(spread=0.5)
    truncated = policy.sample(40, generator(), top_k=3, top_p=0.8, with_logits=True)
    assert truncated.logits.isfinite().all()
    torch.testing.assert_close(truncated.logits, teacher_forced(policy, truncated.tokens), atol=1e-4, rtol=1e-4)
    ranks = (truncated.logits > truncated.logits.gather(-1, truncated.tokens.unsqueeze(-1))).sum(-1)
    assert ranks.max() < 3
    free = policy.sample(40, generator(), with_logits=True)
    assert (free.logits > free.logits.gather(-1, free.tokens.unsqueeze(-1))).sum(-1).max() > 3


def test_a_prompt_has_exactly_so_many_tokens_also_where_end_tokens_are_drawn():
    policy = policy_of()
    with torch.no_grad():  # a bias of the adaptor that makes the end token all but certain
        embedding = policy.lm.get_output_embeddings().weight[0]
        policy.adaptor[2].bias.copy_(50 * embedding)
    tokens = policy.sample(10, generator()).tokens
    assert tokens.shape == (10, LENGTH)
    assert (tokens == policy.tokenizer.eos_token_id).float().mean() > 0.9
    assert policy_of(prompt_length=2).sample(3, generator()).tokens.shape == (3, 2)


def test_token_ids_are_never_turned_into_text_and_back_while_a_prompt_is_written(monkeypatch):
    policy = policy_of()

    def refuse(*args, **kwargs):
        raise AssertionError("the tokenizer has no part in sampling")

    for name in ("encode", "decode", "__call__", "batch_decode", "convert_ids_to_tokens"):
        monkeypatch.setattr(type(policy.tokenizer), name, refuse)
    assert policy.sample(200, generator()).tokens.unique().numel() > 100  # half characters among them
    policy.greedy()


def spy_on_lm(policy):
    """The shapes of the token ids that the LM is given from now on."""
    read = []
    policy.lm.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: read.append(tuple(inputs[0].shape))
    )
    return read


def test_the_lm_reads_each_distinct_beginning_once_and_never_the_last_token():
    policy = policy_of(spread=0.3)
    read = spy_on_lm(policy)
    tokens = policy.sample(30, generator(), top_k=3).tokens
    assert len(read) == LENGTH  # the source and the first four tokens
    distinct = [len(torch.unique(tokens[:, :length], dim=0)) for length in range(1, LENGTH)]
    assert distinct[0] <= 3
    assert read == [(1, 1), *((nodes, 1) for nodes in distinct)]


def test_greedy_decoding_reads_one_row_and_takes_the_most_probable_token():
    policy = policy_of(spread=0.5)
    read = spy_on_lm(policy)
    tokens = policy.greedy()
    assert read == [(1, 1)] * LENGTH
    assert tokens.tolist() == teacher_forced(policy, tokens.unsqueeze(0))[0].argmax(-1).tolist()


def test_a_source_of_several_tokens_is_read_as_one_text():
    policy = policy_of(spread=0.5, source_str="a great film")
    assert policy.source_ids.tolist() == policy.tokenizer("a great film")["input_ids"]
    rollout = policy.sample(8, generator(), with_logits=True)
    torch.testing.assert_close(rollout.logits, teacher_forced(policy, rollout.tokens), atol=1e-4, rtol=1e-4)


def test_a_source_of_no_token_is_an_error():
    with pytest.raises(UserError, match="source_str: '' is no token"):
        policy_of(source_str="")


def test_samples_depend_on_the_generator_alone():
    policy = policy_of()
    first = policy.sample(10, generator(1)).tokens
    torch.manual_seed(123)
    torch.rand(7)
    assert policy.sample(10, generator(1)).tokens.tolist() == first.tolist()
    assert policy.sample(10, generator(2)).tokens.tolist() != first.tolist()
    before = torch.get_rng_state()
    policy.sample(10, generator(1), with_logits=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_keeping_logits_does_not_change_what_is_drawn():
    policy = policy_of(spread=0.5)
    assert torch.equal(policy.sample(10, generator()).tokens, policy.sample(10, generator(), with_logits=True).tokens)
    assert policy.sample(10, generator()).logits is None


def test_the_published_policy_starts_near_the_uniform_distribution():
    policy = policy_of()
    logits = policy.sample(50, generator(), with_logits=True).logits
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert entropy.min() > math.log(logits.shape[-1]) - 1e-4
    assert policy.sample(400, generator()).tokens.unique().numel() > 0.95 * logits.shape[-1]


def test_with_residual_the_policy_starts_as_its_lm():
    policy = policy_of(residual=True)
    tokens = policy.sample(10, generator()).tokens
    ids = torch.cat([policy.source_ids.expand(10, -1), tokens], 1)[:, :-1]
    with torch.no_grad():
        expected = policy.lm(ids).logits.softmax(-1)
        found = teacher_forced(policy, tokens).softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert expected.max() > 0.1  # far from uniform


SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
# What a family does between its last state and its logits, or keeps of what it has read: (configuration, width, cache).
FAMILIES: dict[str, tuple[Callable[..., Any], int, bool]] = {
    "soft cap": (partial(hf.Gemma2Config, final_logit_softcapping=3.0, query_pre_attn_scalar=8), 16, True),
    "factor": (partial(hf.CohereConfig, logit_scale=0.3), 16, True),
    "divisor": (partial(hf.GraniteConfig, logits_scaling=4.0), 16, True),
    "projection": (partial(hf.OPTConfig, word_embed_proj_dim=8, do_layer_norm_before=False, init_std=0.3), 8, True),
    "transform": (partial(hf.BertConfig, is_decoder=True), 16, True),
    "state": (partial(hf.MambaConfig, state_size=4), 16, False),
    "other state": (partial(hf.RwkvConfig, attention_hidden_size=16), 16, False),
    "no cache": (partial(hf.OpenAIGPTConfig, n_embd=16, n_layer=2, n_head=2, n_positions=64), 16, False),
    "hybrid": (partial(hf.FalconH1Config, lm_head_multiplier=0.4, mamba_d_ssm=32, **MAMBA), 16, False),
}


def policy_of_family(config, rows=0, tokenizer=None, **options):
    tokenizer = tokenizer or tiny_models.byte_level_tokenizer()
    torch.manual_seed(0)
    lm = hf.AutoModelForCausalLM.from_config(config(**SIZES, vocab_size=len(tokenizer) + rows)).eval()
    return PromptPolicy(lm, tokenizer, "lm", **{"hidden_size": 32, "source_str": "a film", **options})


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_adaptor_of_zeros_beside_the_state_is_the_lm_itself_whatever_its_head_does(kind):
    config, width, cache = FAMILIES[kind]
    policy = policy_of_family(config, residual=True)
    assert policy.adaptor[2].out_features == width
    assert policy.keeps_cache == cache
    for parameter in policy.adaptor.parameters():
        torch.nn.init.zeros_(parameter)
    rollout = policy.sample(12, generator(), top_k=3, with_logits=True)
    source = policy.source_ids.expand(12, -1)
    with torch.no_grad():
        expected = policy.lm(torch.cat([source, rollout.tokens], 1)[:, :-1]).logits[:, source.shape[1] - 1 :]
    torch.testing.assert_close(rollout.logits, expected, atol=1e-5, rtol=1e-4)
    assert expected.softmax(-1).std() > 1e-4
    for parameter in policy.adaptor.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    rollout = policy.sample(12, generator(), top_k=3, with_logits=True)
    torch.testing.assert_close(rollout.logits, teacher_forced(policy, rollout.tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("holes", [False, True])
def test_a_row_of_the_head_that_no_token_belongs_to_is_never_written(holes):
    tokenizer = tiny_models.wordpiece_tokenizer()
    if holes:  # an id beyond the number of tokens
        vocabulary = tokenizer.get_vocab()
        last = max(vocabulary, key=vocabulary.__getitem__)
        made = Tokenizer(models.WordLevel(vocabulary | {last: len(vocabulary) + 30}, unk_token="[UNK]"))
        tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    policy = policy_of_family(hf.GPTNeoXConfig, 40, tokenizer)
    rollout = policy.sample(400, generator(), with_logits=True)
    known = set(tokenizer.get_vocab().values())
    assert set(rollout.tokens.flatten().tolist()) <= known
    assert rollout.logits.softmax(-1)[..., sorted(known)].sum(-1).min() > 1 - 1e-5
    entropy = -negative_entropy(rollout.logits, torch.ones_like(rollout.tokens, dtype=torch.bool))
    assert entropy.item() == pytest.approx(math.log(len(known)), abs=1e-3)
    entropy.backward()
    assert all(p.grad.isfinite().all() for p in policy.adaptor.parameters())
    unwritten = sorted(set(range(len(tokenizer) + 40)) - known)
    with torch.no_grad():  # the rows without a token become the most probable by far
        policy.lm.get_output_embeddings().weight[unwritten] = 100 * policy.adaptor[2].bias.sign()
    assert set(policy.greedy().tolist()) <= known
    assert set(policy.sample(50, generator(), top_k=5).tokens.flatten().tolist()) <= known


def test_a_model_that_reads_in_both_directions_is_no_policy():
    with pytest.raises(UserError, match="a bert reads in both directions; a prompt policy must"):
        policy_of_family(hf.BertConfig)


def test_a_model_whose_head_is_not_handed_its_states_is_refused():
    class Own(hf.GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = self.transformer(*args, **kwargs).last_hidden_state @ self.lm_head.weight.T * 2
            return output

    lm, tokenizer = tiny_models.make("gpt2")
    with pytest.raises(UserError, match=r"policy_lm: 'own' \(gpt2\) has no head that reads one state a token"):
        PromptPolicy(Own(lm.config), tokenizer, "own")


def test_numbers_that_have_diverged_are_an_error_that_says_what_to_do():
    policy = policy_of()
    with torch.no_grad():
        policy.adaptor[2].bias.fill_(math.nan)
    with pytest.raises(UserError, match="no finite numbers; a lower learning_rate"):
        policy.sample(3, generator())


def test_the_adaptor_has_the_published_shape_and_weights():
    policy = policy_of(hidden_size=2048)
    first, relu, last = policy.adaptor
    assert first.weight.shape == (2048, 16)
    assert last.weight.shape == (16, 2048)
    assert isinstance(relu, torch.nn.ReLU)
    for layer in (first, last):
        bound = 1e-4 * math.sqrt(6 / (16 + 2048))
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert torch.equal(layer.bias, torch.full_like(layer.bias, -1e-4))


def test_only_the_adaptor_gets_a_gradient():
    policy = policy_of(spread=0.5)
    policy.sample(8, generator(), with_logits=True).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.adaptor.parameters())
    assert all(p.grad is None and not p.requires_grad for p in policy.lm.parameters())
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained == {f"adaptor.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}


def test_the_gradient_is_that_of_reading_the_sample_anew():
    policy = policy_of(spread=0.5)
    rollout = policy.sample(8, generator(), top_k=4, with_logits=True)
    twin = copy.deepcopy(policy)
    for logits in (rollout.logits, teacher_forced(twin, rollout.tokens)):
        logits.log_softmax(-1).gather(-1, rollout.tokens.unsqueeze(-1)).mean().backward()
    for one, other in zip(policy.adaptor.parameters(), twin.adaptor.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_the_lm_never_drops_out_not_even_in_training_mode_of_the_run():
    policy = policy_of()
    assert not any(module.training for module in policy.lm.modules())


@pytest.mark.parametrize("text", [" great film", "  two blanks  ", "café", "a\nb\\n", '"null" {x}', "<|endoftext|>a"])
def test_the_text_of_a_prompt_is_its_tokens_verbatim(text):
    policy = policy_of()
    ids = policy.tokenizer.encode(text, add_special_tokens=False)
    assert policy.text(torch.tensor(ids)) == text
    pieces = policy.token_texts(torch.tensor(ids))
    assert len(pieces) == len(ids)
    assert "".join(pieces).replace("\ufffd\ufffd", "é") == text  # each half of an é has no text of its own
    assert policy.texts(torch.tensor([ids, ids])) == [text, text]


def test_a_policy_is_saved_without_its_lm_and_loaded_as_it_was(tmp_path):
    name = tiny_models.save("gpt2", tmp_path / "lm")
    policy = PromptPolicy.from_lm(name, prompt_length=3, hidden_size=24, residual=True)
    torch.nn.init.normal_(list(policy.adaptor.parameters())[2])
    policy.save_pretrained(tmp_path / "policy")
    loaded = PromptPolicy.from_pretrained(tmp_path / "policy")
    assert loaded.settings == policy.settings
    assert torch.equal(loaded.sample(9, generator()).tokens, policy.sample(9, generator()).tokens)
    assert torch.equal(loaded.greedy(), policy.greedy())
    assert (tmp_path / "policy" / "adaptor.safetensors").stat().st_size < 10_000


@pytest.mark.parametrize("damage", ["no adaptor", "torn adaptor", "other width", "no settings", "unknown setting"])
def test_a_damaged_policy_folder_is_an_error_that_names_it(damage, tmp_path):
    PromptPolicy.from_lm(tiny_models.save("gpt2", tmp_path / "lm"), hidden_size=24).save_pretrained(tmp_path / "p")
    adaptor, settings = tmp_path / "p" / "adaptor.safetensors", tmp_path / "p" / "policy.json"
    values = json.loads(settings.read_text())
    if damage == "no adaptor":
        adaptor.unlink()
    elif damage == "torn adaptor":
        adaptor.write_bytes(adaptor.read_bytes()[:-100])
    elif damage == "no settings":
        settings.unlink()
    else:
        settings.write_text(json.dumps(values | ({"hidden_size": 8} if damage == "other width" else {"x": 1})))
    with pytest.raises(UserError, match=r"'.*p' does not hold a prompt policy"):
        PromptPolicy.from_pretrained(tmp_path / "p")


def test_samples_follow_the_policys_distribution():
    policy = policy_of(spread=0.5, prompt_length=1)
    tokens = policy.sample(4000, generator()).tokens[:, 0]
    with torch.no_grad():
        expected = teacher_forced(policy, tokens[:1].unsqueeze(1))[0, 0].softmax(-1)
    found = tokens.bincount(minlength=len(expected)) / 4000
    assert (found - expected).abs().max() < 0.03
    assert expected.max() > 0.02


def test_the_cache_of_one_prompt_is_not_that_of_another():
    # Rows share nodes and part again: every row must go on from its own beginning.
    policy = policy_of(spread=0.5)
    rollout = policy.sample(64, generator(3), top_k=2, with_logits=True)
    assert len(torch.unique(rollout.tokens, dim=0)) > 8
    torch.testing.assert_close(rollout.logits, teacher_forced(policy, rollout.tokens), atol=1e-4, rtol=1e-4)


def test_a_prompt_that_the_model_has_no_places_for_is_one_line():
    lm, tokenizer = tiny_models.make("gpt2")
    places = lm.config.n_positions
    PromptPolicy(lm, tokenizer, "gpt2", prompt_length=places - 1)
    with pytest.raises(UserError, match=rf"prompt_length: .* at most {places} tokens, not {places + 1} with"):
        PromptPolicy(lm, tokenizer, "gpt2", prompt_length=places)
