import copy
import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import processors
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from common.errors import UserError
from prompt_task.few_shot_data import fill_template
from prompt_task.task_lm import (
    LeftToRightTaskLM,
    batches_by_length,
    common_length,
    context_length,
    load_task_lm,
    looks_masked,
    make_task_lm,
    pad_right,
    verbalizer_ids,
)
from tests import tiny_models
from tests.tiny_models import KINDS, LEFT_TO_RIGHT, MASKED, SPEC

CPU = torch.device("cpu")
MASK_FIRST = dataclasses.replace(SPEC, masked_template="<mask> {prompt} {sentence}")
LONG_TEMPLATE = dataclasses.replace(SPEC, left_to_right_template="the film : {sentence} It was {prompt} and")
SENTENCES = (
    "a warm film",
    "dull",
    "a long , long night with a great start and the worst end of the year ",
    "café 12% ",
)
PROMPTS = ("", " great", "great", "absolutely Rated Grade", "<mask>", "[MASK] {sentence}", '"null" \\ \n x')
PAIRS = [(sentence, prompt) for sentence in SENTENCES for prompt in PROMPTS]


def task_lm(kind, spec=SPEC, seed=0, **options):
    model, tokenizer = tiny_models.make(kind, seed)
    return make_task_lm(model, tokenizer, spec, CPU, kind in MASKED, **options)


@torch.no_grad()
def plain_probabilities(kind, pairs, spec=SPEC, seed=0, model=None):
    """The definition: one text at a time through the whole model, softmax over the verbalizers' logits."""
    made, tokenizer = tiny_models.make(kind, seed)
    model = model or made
    columns = verbalizer_ids(tokenizer, spec.verbalizers, spec.name)
    rows = []
    for sentence, prompt in pairs:
        if kind in MASKED:
            before, after = spec.masked_template.split("<mask>")
            parts = [fill_template(part, sentence, prompt, None) for part in (before, after)]
            encoding = tokenizer(parts[0] + tokenizer.mask_token + parts[1], return_offsets_mapping=True)
            ids = encoding["input_ids"]
            ends = [end for _, end in encoding["offset_mapping"]]
            position = ends.index(len(parts[0]) + len(tokenizer.mask_token))
        else:
            ids = tokenizer(fill_template(spec.left_to_right_template, sentence, prompt, None))["input_ids"]
            position = -1
        rows.append(model(torch.tensor([ids])).logits[0, position, columns].softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_the_softmax_over_the_verbalizer_logits_of_the_whole_model(kind):
    found = task_lm(kind).class_probabilities(PAIRS)
    expected = plain_probabilities(kind, PAIRS)
    assert expected.std(0).min() > 0.02  # the inputs make a difference, so that an agreement says something
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", MASKED)
def test_the_mask_may_stand_before_the_sentence(kind):
    found = task_lm(kind, MASK_FIRST).class_probabilities(PAIRS)
    torch.testing.assert_close(found, plain_probabilities(kind, PAIRS, MASK_FIRST), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("spec", [SPEC, MASK_FIRST], ids=["mask last", "mask first"])
def test_a_sentence_or_prompt_that_spells_the_mask_is_text_and_the_templates_mask_is_read(kind, spec):
    lm = task_lm(kind, spec)
    mask = lm.tokenizer.mask_token
    pairs = [(f"a {mask} film", "great"), ("a film", f"great {mask} great"), (f"{mask} a {mask}", mask)]
    torch.testing.assert_close(lm.class_probabilities(pairs), plain_probabilities(kind, pairs, spec), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_a_left_to_right_template_may_go_on_after_the_prompt(kind):
    found = task_lm(kind, LONG_TEMPLATE).class_probabilities(PAIRS)
    torch.testing.assert_close(found, plain_probabilities(kind, PAIRS, LONG_TEMPLATE), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_a_left_to_right_template_may_begin_with_the_prompt(kind):
    spec = dataclasses.replace(SPEC, left_to_right_template="{prompt} {sentence} It was")
    found = task_lm(kind, spec).class_probabilities(PAIRS)
    torch.testing.assert_close(found, plain_probabilities(kind, PAIRS, spec), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_batches_nor_their_order_change_a_probability(kind):
    together = task_lm(kind).class_probabilities(PAIRS)
    one_by_one = task_lm(kind, tokens_per_batch=1)
    reverse = task_lm(kind, tokens_per_batch=40).class_probabilities(PAIRS[::-1]).flip(0)
    single = torch.cat([one_by_one.class_probabilities([pair]) for pair in PAIRS])
    torch.testing.assert_close(one_by_one.class_probabilities(PAIRS), together, atol=1e-5, rtol=0)
    torch.testing.assert_close(single, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(reverse, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_the_sentence_cache_changes_no_probability(kind):
    without = task_lm(kind)
    without.reuses_sentences = False
    expected = without.class_probabilities(PAIRS)
    for mib in (0, 1024):
        cached = task_lm(kind, sentence_cache_mib=mib)
        assert cached.reuses_sentences
        first, again = cached.class_probabilities(PAIRS), cached.class_probabilities(PAIRS)
        torch.testing.assert_close(first, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_a_sentence_is_read_once_for_all_prompts_and_calls(kind):
    lm = task_lm(kind)
    read = []
    lm.model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].numel()))
    sentence = " ".join(["the worst film of the year"] * 4)
    lm.class_probabilities([(sentence, prompt) for prompt in ("great", "dull", "Grade")])
    whole = len(lm.tokenizer(sentence)["input_ids"])
    assert read[0] == whole  # the sentence, then three suffixes
    assert sum(read[1:]) < whole
    read.clear()
    lm.class_probabilities([(sentence, "Movie")])
    assert sum(read) < 5


def test_no_more_memory_than_allowed_is_kept_of_sentences():
    lm = task_lm("gpt2", sentence_cache_mib=1)
    token_bytes = 2 * 2 * 16 * 4  # layers x (key, value) x width x float32
    sentences = [f"{word} " * 100 + str(i) for i, word in enumerate(["film"] * 60)]
    lm.class_probabilities([(sentence, "great") for sentence in sentences])
    kept = sum(state.numel() * 4 for state in lm._states.values())
    assert 2**20 - 110 * token_bytes < kept <= 2**20


@pytest.mark.parametrize("kind", KINDS)
def test_only_one_position_and_one_column_a_class_are_computed(kind):
    lm = task_lm(kind)
    head = lm.model.get_output_embeddings()
    shapes = []
    head.register_forward_hook(lambda module, inputs, output: shapes.append((inputs[0].shape, output.shape)))
    lm.class_probabilities(PAIRS)
    assert head.weight.shape == (2, 16)
    assert sum(seen[0] for seen, _ in shapes) == len(PAIRS)
    for seen, computed in shapes:
        assert seen == (seen[0], 1, 16)
        assert computed == (seen[0], 1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_example_loses_its_own_end_never_the_prompt_or_the_mask(kind):
    lm = task_lm(kind)
    words = ["great", "dull", "warm", "long", "film"]
    long_sentence = " ".join(itertools.islice(itertools.cycle(words), 200))
    found = lm.class_probabilities([(long_sentence, "absolutely Rated Grade")])
    assert lm.sentences_cut == 1
    fitting = [
        shorter
        for count in range(1, 200)
        if len(lm.tokenizer(lm.fill(shorter := " ".join(long_sentence.split()[:count]), "absolutely Rated Grade"))[
            "input_ids"
        ]) <= lm.max_tokens
    ]  # fmt: skip
    # Words are tokens here, so the longest beginning that fits is what must have been read.
    expected = plain_probabilities(kind, [(fitting[-1], "absolutely Rated Grade")])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    other = lm.class_probabilities([(long_sentence, "terrible")])
    assert (found - other).abs().max() > 1e-3


def test_long_examples_are_cut_the_same_with_the_mask_first():
    lm = task_lm("roberta", MASK_FIRST)
    found = lm.class_probabilities([("film " * 200, "Grade")])
    room = lm.max_tokens - 2 - 2  # start and end token, mask, prompt
    expected = plain_probabilities("roberta", [("film" + " film" * (room - 2), "Grade")], MASK_FIRST)
    ids = lm._encode([("film " * 200, "Grade")])[0][0]
    assert len(ids) <= lm.max_tokens
    assert ids[1] == lm.tokenizer.mask_token_id
    assert found.shape == expected.shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_leaves_no_room_for_a_sentence_is_an_error_that_shows_it(kind):
    with pytest.raises(UserError, match=r"prompt 'dull dull .* leaves no room"):
        task_lm(kind).class_probabilities([("a film", "dull " * 300)])


def test_the_context_of_roberta_like_models_is_shorter_than_their_position_table():
    model, tokenizer = tiny_models.make("roberta")
    assert model.config.max_position_embeddings == 66
    tokenizer.model_max_length = 10**30
    assert context_length(model, tokenizer) == 64
    tokenizer.model_max_length = 20
    assert context_length(model, tokenizer) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_no_pairs_give_an_empty_table(kind):
    assert task_lm(kind).class_probabilities([]).shape == (0, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_verbalizer_of_several_tokens_is_an_error_that_names_it(kind):
    spec = dataclasses.replace(SPEC, verbalizers=(" great", " unbelievable"))
    with pytest.raises(UserError, match="dataset toy: the verbalizer ' unbelievable' is not one token"):
        task_lm(kind, spec)


def test_an_unknown_verbalizer_is_an_error_not_the_unknown_token():
    spec = dataclasses.replace(SPEC, verbalizers=(" great", " 映"))
    model, tokenizer = tiny_models.make("bert")
    assert tokenizer.encode(" 映", add_special_tokens=False) == [tokenizer.unk_token_id]
    with pytest.raises(UserError, match="' 映' is not one token"):
        make_task_lm(model, tokenizer, spec, CPU, True)


def test_two_classes_on_one_token_are_an_error():
    spec = dataclasses.replace(SPEC, verbalizers=(" Great", " great"))  # one word to a model of lower case
    with pytest.raises(UserError, match="' Great' and ' great' are the same token"):
        task_lm("bert", spec)


def test_a_verbalizer_is_found_where_the_tokenizer_puts_blanks_of_its_own():
    _, tokenizer = tiny_models.make("llama")
    ids = verbalizer_ids(tokenizer, (" terrible", " great"), "toy")
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁terrible", "▁great"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_task_lm_is_loaded_and_its_kind_is_read_off_the_model(kind, tmp_path):
    name = tiny_models.save(kind, tmp_path)
    lm = load_task_lm(name, SPEC, CPU)
    assert type(lm).__name__ == ("MaskedTaskLM" if kind in MASKED else "LeftToRightTaskLM")
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert not lm.model.training
    torch.testing.assert_close(lm.class_probabilities(PAIRS), plain_probabilities(kind, PAIRS), atol=1e-5, rtol=0)


def test_a_masked_lm_without_its_head_is_an_error_not_random_weights(tmp_path):
    model, tokenizer = tiny_models.make("roberta")
    model.roberta.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="lacks weights of RobertaForMaskedLM"):
        load_task_lm(str(tmp_path), SPEC, CPU, is_mask_lm=True)


def test_a_left_to_right_model_cannot_be_taken_for_a_masked_one(tmp_path):
    name = tiny_models.save("gpt2", tmp_path)
    with pytest.raises(UserError, match=r"cannot load .* with AutoModelForMaskedLM"):
        load_task_lm(name, SPEC, CPU, is_mask_lm=True)


def test_a_masked_model_cannot_be_taken_for_a_left_to_right_one(tmp_path):
    name = tiny_models.save("roberta", tmp_path)
    with pytest.raises(UserError, match=r"is_mask_lm: .* reads in both directions"):
        load_task_lm(name, SPEC, CPU, is_mask_lm=False)


def test_the_kind_of_a_model_is_read_off_its_architecture_or_its_family():
    assert looks_masked(hf.RobertaConfig(architectures=["RobertaForMaskedLM"]))
    assert looks_masked(hf.BertConfig(architectures=["BertForPreTraining"]))
    assert looks_masked(hf.RobertaConfig())
    assert looks_masked(hf.XLMConfig(architectures=["XLMWithLMHeadModel"]))
    assert not looks_masked(hf.XLMConfig(architectures=["XLMWithLMHeadModel"], causal=True))
    assert not looks_masked(hf.GPT2Config(architectures=["GPT2LMHeadModel"]))
    assert not looks_masked(hf.BertGenerationConfig(architectures=["BertGenerationDecoder"], is_decoder=True))
    assert not looks_masked(hf.GPT2Config())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_weights_give_about_the_same_probabilities(kind, tmp_path):
    lm = load_task_lm(tiny_models.save(kind, tmp_path), SPEC, CPU, task_lm_dtype="bfloat16")
    assert lm.model.dtype == torch.bfloat16
    found = lm.class_probabilities(PAIRS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain_probabilities(kind, PAIRS), atol=0.15, rtol=0)


def test_numbers_that_overflow_are_an_error_that_says_what_to_do():
    lm = task_lm("gpt2")
    with torch.no_grad():
        lm.model.transformer.ln_f.weight.fill_(float("inf"))
    with pytest.raises(UserError, match=r"task_lm_dtype: .* overflow"):
        lm.class_probabilities([("a film", "great")])


SLIDING = {
    "mistral": lambda size: MistralForCausalLM(
        MistralConfig(
            vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, sliding_window=40, max_position_embeddings=128, initializer_range=0.4,
        )
    ),
    "gemma2": lambda size: Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, sliding_window=40, max_position_embeddings=128, initializer_range=0.4,
            final_logit_softcapping=3.0,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIDING)
def test_sentences_longer_than_a_sliding_window_give_the_same_probabilities(name):
    tokenizer = tiny_models.sentencepiece_like_tokenizer()
    torch.manual_seed(0)
    model = SLIDING[name](len(tokenizer)).eval()
    whole = copy.deepcopy(model)
    lm = make_task_lm(model, tokenizer, SPEC, CPU, False)
    assert isinstance(lm, LeftToRightTaskLM)
    assert lm.reuses_sentences
    pairs = [(" ".join([sentence] * 5), prompt) for sentence, prompt in PAIRS]
    assert max(len(tokenizer(lm.fill(*pair))["input_ids"]) for pair in pairs) > 40
    expected = plain_probabilities("llama", pairs, model=whole)
    torch.testing.assert_close(lm.class_probabilities(pairs), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(lm.class_probabilities(pairs), expected, atol=1e-5, rtol=0)


def test_a_model_whose_head_cannot_be_narrowed_is_read_whole():
    model, tokenizer = tiny_models.make("gpt2")
    whole = copy.deepcopy(model)

    class Reversed(torch.nn.Linear):
        """A head whose output is no row by row product: its columns depend on how many there are."""

        def forward(self, hidden):
            return super().forward(hidden) * self.out_features

    for one in (model, whole):
        head = Reversed(16, len(tokenizer), bias=False)
        head.weight = torch.nn.Parameter(model.get_output_embeddings().weight.detach().clone())
        one.set_output_embeddings(head)
    lm = make_task_lm(model, tokenizer, SPEC, CPU, False)
    assert not lm._readout.narrowed
    expected = plain_probabilities("gpt2", PAIRS, model=whole)
    torch.testing.assert_close(lm.class_probabilities(PAIRS), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", MASKED)
def test_the_last_layer_of_a_masked_lm_is_computed_at_the_mask_alone(kind):
    lm = task_lm(kind)
    widths = []
    for layer in lm.model.base_model.encoder.layer:
        layer.intermediate.register_forward_hook(lambda module, given, output: widths.append(output.shape[1]))
    lm.class_probabilities(PAIRS[:1])
    *others, last = widths
    assert last == 1
    assert all(width > 1 for width in others)


def test_a_feed_forward_layer_that_works_in_chunks_is_read_whole():
    model, tokenizer = tiny_models.make(MASKED[0])
    model.config.chunk_size_feed_forward = 2
    whole = copy.deepcopy(model)
    lm = make_task_lm(model, tokenizer, SPEC, CPU, True)
    assert lm._readout._last_output is None
    expected = plain_probabilities(MASKED[0], PAIRS, model=whole)
    torch.testing.assert_close(lm.class_probabilities(PAIRS), expected, atol=1e-5, rtol=0)


MASKED_SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 130, "pad_token_id": 0, "initializer_range": 0.4,
}  # fmt: skip
# What a masked LM may do that BERT does not: (configuration, is its head narrowed, does padding change its numbers).
MASKED_FAMILIES: dict[str, tuple[Callable[..., Any], bool, bool]] = {
    "mixes neighbours": (partial(hf.FNetConfig, tpu_short_seq_length=130), True, True),
    "two-part head": (
        partial(hf.MobileBertConfig, embedding_size=12, intra_bottleneck_size=16), False, False,
    ),
    "narrow embeddings": (partial(hf.ElectraConfig, embedding_size=8), True, False),
    "convolutions": (partial(hf.ConvBertConfig, embedding_size=8, head_ratio=1, conv_kernel_size=3), True, True),
    "head of its own": (partial(hf.XLMConfig, emb_dim=16, n_layers=2, n_heads=2), True, False),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED_FAMILIES)
def test_a_masked_lm_of_another_kind_says_what_it_says_of_each_text_alone(name):
    config, narrowed, padded_differs = MASKED_FAMILIES[name]
    tokenizer = tiny_models.wordpiece_tokenizer()
    torch.manual_seed(0)
    model = hf.AutoModelForMaskedLM.from_config(config(**MASKED_SIZES, vocab_size=len(tokenizer))).eval()
    whole = copy.deepcopy(model)
    lm = make_task_lm(model, tokenizer, SPEC, CPU, True)
    assert lm._readout.narrowed == narrowed
    assert lm._equal_lengths == padded_differs
    expected = plain_probabilities("bert", PAIRS, model=whole)
    assert expected.std(0).min() > 1e-4
    torch.testing.assert_close(lm.class_probabilities(PAIRS), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(lm.class_probabilities(PAIRS[:1]), expected[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_the_class_is_read_where_the_text_ends_not_behind_an_end_token(kind):
    model, tokenizer = tiny_models.make(kind)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    whole, plain = copy.deepcopy(model), copy.deepcopy(tokenizer)
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    lm = make_task_lm(model, tokenizer, SPEC, CPU, False)
    assert isinstance(lm, LeftToRightTaskLM) and lm.reuses_sentences
    columns = verbalizer_ids(plain, SPEC.verbalizers, "toy")
    with torch.no_grad():
        expected = [
            whole(torch.tensor([plain(lm.fill(*pair))["input_ids"]])).logits[0, -1, columns].softmax(-1)
            for pair in PAIRS
        ]
    torch.testing.assert_close(lm.class_probabilities(PAIRS), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_the_narrowed_head_of_a_half_precision_model_is_computed_in_float32(kind, dtype):
    model, tokenizer = tiny_models.make(kind)
    lm = make_task_lm(model.to(dtype), tokenizer, SPEC, CPU, kind in MASKED)
    head = lm.model.get_output_embeddings()
    seen = []
    head.register_forward_hook(lambda module, given, output: seen.append((given[0], output)))
    found = lm.class_probabilities(PAIRS)
    whole = lm._readout.whole
    for states, logits in seen:
        bias = None if whole.bias is None else whole.bias[lm.verbalizer_ids].float()
        expected = torch.nn.functional.linear(states.float(), whole.weight[lm.verbalizer_ids].float(), bias)
        assert states.dtype == dtype
        assert torch.equal(logits, expected)
    assert (found[:, 0] != found[:, 1]).all()
    rounded = torch.cat([logits for _, logits in seen]).to(dtype)
    assert not torch.equal(rounded.float(), torch.cat([logits for _, logits in seen]))


def test_a_half_precision_model_whose_head_cannot_be_narrowed_is_computed_in_float32(caplog):
    tokenizer = tiny_models.wordpiece_tokenizer()
    config, *_ = MASKED_FAMILIES["two-part head"]
    model = hf.AutoModelForMaskedLM.from_config(config(**MASKED_SIZES, vocab_size=len(tokenizer))).eval()
    lm = make_task_lm(model.bfloat16(), tokenizer, SPEC, CPU, True)
    assert lm.model.dtype == torch.float32
    assert "task_lm_dtype: so that logits do not tie" in caplog.text


@pytest.mark.parametrize("config", [hf.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=600)])
def test_a_left_to_right_lm_without_keys_and_values_reads_each_text_whole(config):
    torch.manual_seed(0)
    tokenizer = tiny_models.byte_level_tokenizer()
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    whole = copy.deepcopy(model)
    lm = make_task_lm(model, tokenizer, SPEC, CPU, False)
    assert isinstance(lm, LeftToRightTaskLM) and not lm.reuses_sentences
    expected = plain_probabilities("gpt2", PAIRS, model=whole)
    torch.testing.assert_close(lm.class_probabilities(PAIRS), expected, atol=1e-5, rtol=0)


def test_batches_of_equal_length_end_where_the_length_changes():
    assert list(batches_by_length([3, 2, 3, 2, 5], 100, equal=True)) == [[1, 3], [0, 2], [4]]


def test_batches_hold_texts_of_like_length_within_the_budget():
    lengths = [5, 1, 9, 1, 2, 30]
    batches = list(batches_by_length(lengths, 10))
    assert batches == [[1, 3, 4], [0], [2], [5]]  # 3 x 2, 1 x 5, 1 x 9, and one that is too long by itself
    assert list(batches_by_length([], 10)) == []


def test_padding_stands_on_the_right_and_is_masked():
    ids, mask = pad_right([[5, 6, 7], [8]], 0, CPU)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_last_token_is_always_read_anew():
    assert common_length([1, 2, 3], [1, 2, 3, 4]) == 3
    assert common_length([1, 2, 3], [1, 2, 3]) == 2  # its logits are wanted
    assert common_length([1, 9], [1, 2, 3]) == 1
    assert common_length([], [1, 2]) == 0


@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_reading_ahead_makes_numbers_independent_of_what_was_asked_before(kind):
    lm = task_lm(kind)
    lm.read_ahead(SENTENCES)
    kept = {prefix: state.clone() for prefix, state in lm._states.items()}
    assert len(kept) == len(SENTENCES)
    expected = lm.class_probabilities(PAIRS)
    other = task_lm(kind)
    other.class_probabilities([("another sentence", "great"), (SENTENCES[1], "x")])
    other.read_ahead(SENTENCES[::-1])
    other.class_probabilities(PAIRS[3:5])
    assert all(torch.equal(other._states[prefix], state) for prefix, state in kept.items())
    assert torch.equal(other.class_probabilities(PAIRS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_ahead_changes_no_probability(kind):
    lm = task_lm(kind, sentence_cache_mib=0)
    lm.read_ahead([*SENTENCES, "film " * 500])
    torch.testing.assert_close(lm.class_probabilities(PAIRS), plain_probabilities(kind, PAIRS), atol=1e-5, rtol=0)
    lm = task_lm(kind)
    lm.read_ahead([*SENTENCES, "film " * 500])
    torch.testing.assert_close(lm.class_probabilities(PAIRS), plain_probabilities(kind, PAIRS), atol=1e-5, rtol=0)
