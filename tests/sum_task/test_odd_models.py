"""Policies and reward models that work in a way of their own: as well as others, or one line."""

import json
import logging
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from common.errors import UserError
from common.token_reward_model import TokenRewardModel
from sum_task.batching import pad
from sum_task.loading import load_policy, load_reward_model
from sum_task.policy import SummaryPolicy
from sum_task.sampling import sample_summaries
from sum_task.search import search_summaries
from tests.sum_task.tiny import ARTICLES, WORDS, batch_of, encode, noise, word_tokenizer

DECODER: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
T5: dict[str, Any] = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "init_std": 0.3,
}  # fmt: skip


def tokenizer_of(words, behind="</s>", **options):
    """One token a word; `behind` a text stands what is given."""
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(token, words[token]) for token in behind.split()]
    made.post_processor = processors.TemplateProcessing(single=f"$A {behind}", special_tokens=special)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **options
    )


def saved(folder, config, tokenizer, change=None):
    """The folder of a model of random weights."""
    torch.manual_seed(1)
    auto = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
    model = auto.from_config(config)
    if change is not None:
        change(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def vocabulary():
    return {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}


def check_policy(policy: SummaryPolicy):
    """Samples are those of the teacher-forced distribution, alone and beside others; search finds the same."""
    policy.lm.eval()
    sources = encode(policy, ARTICLES, extra_padding=2)
    greedy = sample_summaries(policy, sources, 2, noise(6), 1, 1.0)
    with torch.no_grad():
        logits = policy.logits(sources, greedy)
    best = policy.possible(logits.flatten(0, 1)).argmax(-1).view(greedy.tokens.shape)
    assert torch.equal(best[greedy.mask], greedy.tokens[greedy.mask])
    assert search_summaries(policy, sources, 6).lists() == greedy.lists()[::2]
    numbers = noise(3, seed=5)
    together = sample_summaries(policy, sources, 1, numbers, None, 1.0).lists()
    for row, article in enumerate(ARTICLES):
        alone = encode(policy, [article])
        assert sample_summaries(policy, alone, 1, numbers[row : row + 1], None, 1.0).lists() == together[row : row + 1]
        longest = greedy.lists()[2 * row]
        with torch.no_grad():
            said = policy.logits(alone, pad([longest, longest], policy.pad_id))[0]
        torch.testing.assert_close(said, logits[2 * row, : len(longest)], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        hf.MambaConfig(vocab_size=25, state_size=4, **DECODER),
        hf.RwkvConfig(vocab_size=25, attention_hidden_size=16, **DECODER),
        hf.OpenAIGPTConfig(vocab_size=25, n_embd=16, n_layer=2, n_head=2, n_positions=64),
        hf.OPTConfig(
            vocab_size=25, word_embed_proj_dim=8, ffn_dim=32, do_layer_norm_before=False, num_attention_heads=2,
            **DECODER,
        ),
        hf.SwitchTransformersConfig(
            vocab_size=25, num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, **T5
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_other_memories_widths_and_encoder_outputs(tiny, tmp_path, config):
    name = saved(tmp_path / "model", config, word_tokenizer())
    settings = tiny.settings(model_name_or_path=name, separator=" : ")
    policy = load_policy(settings.models, settings.text, settings.evaluation)
    check_policy(policy)
    reward = load_reward_model(settings.models, settings.text, policy)
    samples = sample_summaries(policy, encode(policy, ARTICLES), 2, noise(6), None, 1.0)
    rewards = reward.policy_rewards(batch_of(policy, ARTICLES), samples)
    rewards.sum().backward()
    reward.save_pretrained(tmp_path / "reward")
    again = tiny.reward_model(policy, rew_checkpoint_path=tmp_path / "reward", separator=" : ")
    torch.testing.assert_close(again.policy_rewards(batch_of(policy, ARTICLES), samples), rewards)


def test_what_reads_in_both_directions_is_refused(tiny, tmp_path):
    config = hf.XLNetConfig(vocab_size=25, d_model=16, n_layer=2, n_head=2, d_inner=32)
    name = saved(tmp_path / "model", config, word_tokenizer())
    with pytest.raises(UserError, match="xlnet reads in both directions"):
        tiny.policy(model_name_or_path=name)
    with pytest.raises(UserError, match="xlnet reads in both directions"):
        TokenRewardModel.from_backbone(name)


def test_limits_of_source_and_target_have_lines_of_their_own(tiny, tmp_path, caplog):
    config = hf.LEDConfig(
        **{k: v for k, v in BART.items() if k != "max_position_embeddings"}, vocab_size=25, attention_window=4,
        max_encoder_position_embeddings=48, max_decoder_position_embeddings=32, decoder_start_token_id=1,
    )  # fmt: skip
    name = saved(tmp_path / "led", config, word_tokenizer())
    tiny.policy(model_name_or_path=name)
    for option, value, limit in (("max_source_length", 80, 48), ("max_target_length", 40, 32)):
        with pytest.raises(UserError, match=f"^{option}: a led of {limit} positions .* cannot be lengthened$"):
            tiny.policy(model_name_or_path=name, **{option: value})
    assert "are lengthened" not in caplog.text


def test_a_language_code_starts_summaries_and_nothing_stands_behind_their_end(tiny, tmp_path):
    words = vocabulary() | {"en_XX": 24}
    tokenizer = tokenizer_of(words, "</s> en_XX", additional_special_tokens=["en_XX"])
    name = saved(tmp_path / "mbart", hf.MBartConfig(vocab_size=25, **BART), tokenizer)
    policy = tiny.policy(model_name_or_path=name)
    assert policy.start == (24,)
    assert policy.format.targets(["storm hit city"], 6)[0][-1] == 1
    assert 24 not in policy.format.targets(["storm hit city"], 6)[0]
    policy.lm.generation_config.forced_eos_token_id = None
    check_policy(policy)
    policy.save_pretrained(tmp_path / "policy")
    assert SummaryPolicy.from_pretrained(str(tmp_path / "policy")).start == (24,)
    with pytest.raises(UserError, match=r"^target_language: .* does not tell languages apart"):
        tiny.policy(model_name_or_path=name, target_language="de_DE")


class TwoLanguages(hf.PreTrainedTokenizerFast):
    """NLLB's way: a code before every text, and attributes that say which."""

    src_lang: Any = "en_XX"
    tgt_lang: Any = None

    def __call__(self, text=None, text_target=None, add_special_tokens=True, **options):
        code = self.src_lang if text_target is None else self.tgt_lang
        texts = text if text_target is None else text_target
        found = super().__call__(texts, add_special_tokens=False, verbose=False)["input_ids"]
        rows = [found] if isinstance(texts, str) else found
        if add_special_tokens:
            rows = [[self.convert_tokens_to_ids(code), *row, self.eos_token_id] for row in rows]
        return {"input_ids": rows[0] if isinstance(texts, str) else rows}


def test_multilingual_tokenizers_are_told_the_languages(tiny, tmp_path, monkeypatch):
    words = vocabulary() | {"en_XX": 24, "de_DE": 25}
    plain = tokenizer_of(words)
    made = TwoLanguages(tokenizer_object=plain._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = hf.MBartConfig(vocab_size=26, decoder_start_token_id=1, **BART)
    name = saved(tmp_path / "nllb", config, plain)
    monkeypatch.setattr("sum_task.loading.load_tokenizer", lambda *_: made)
    with pytest.raises(UserError, match=r"^target_language: needed by the multilingual tokenizer of '.*nllb'"):
        tiny.policy(model_name_or_path=name)
    with pytest.raises(UserError, match=r"^target_language: .* knows no language 'xx'"):
        tiny.policy(model_name_or_path=name, target_language="xx")
    policy = tiny.policy(model_name_or_path=name, source_language="de_DE", target_language="en_XX")
    assert policy.start == (1, 24)  # the decoder's own start token, then the language
    assert policy.format.sources(["storm"])[0][0] == 25
    assert policy.format.targets(["storm hit"], 6) == [[words["storm"], words["hit"], 1]]


def test_ids_beyond_the_number_of_tokens_can_be_drawn_and_rows_without_a_token_never(tiny, tmp_path):
    words = {word: i for i, word in enumerate(["<pad>", "<x>", "<unk>", *WORDS])} | {"</s>": 40}
    config = hf.T5Config(vocab_size=60, **T5 | {"eos_token_id": 40})
    policy = tiny.policy(model_name_or_path=saved(tmp_path / "holes", config, tokenizer_of(words)))
    policy.lm.eval()
    drawn = sample_summaries(policy, encode(policy, ARTICLES), 300, noise(900), None, 3.0)
    found = set(drawn.tokens[drawn.mask].tolist())
    assert 40 in found
    assert found <= set(words.values())


def test_generation_settings_of_a_checkpoint_are_said_and_can_be_set(tiny, tmp_path, caplog):
    def change(model):
        with torch.no_grad():
            model.shared.weight[1] *= 40
        model.generation_config.min_length, model.generation_config.no_repeat_ngram_size = 56, 2

    name = saved(tmp_path / "t5", hf.T5Config(vocab_size=25, **T5), word_tokenizer(), change)
    with caplog.at_level(logging.WARNING):
        kept = tiny.policy(model_name_or_path=name)
    assert "min_length=56" in caplog.text and "no_repeat_ngram_size=2" in caplog.text
    assert "cannot end within 6" in caplog.text
    kept.lm.eval()
    assert not (search_summaries(kept, encode(kept, ARTICLES), 6).tokens == 1).any()
    caplog.clear()
    options = {"min_length": 2, "no_repeat_ngram_size": 0, "length_penalty": 0.5, "num_beams": 2}
    policy = tiny.policy(model_name_or_path=name, **options)
    assert "come with the model" not in caplog.text
    policy.lm.eval()
    assert {len(ids) for ids in search_summaries(policy, encode(policy, ARTICLES), 6).lists()} <= {1, 3, 4, 5, 6}
    policy.save_pretrained(tmp_path / "policy")
    written = json.loads((tmp_path / "policy" / "generation_config.json").read_text())
    assert (written["min_new_tokens"], written["length_penalty"]) == (2, 0.5)


def test_weights_that_a_class_computes_need_not_be_in_the_file(tiny, tmp_path):
    config = hf.MarianConfig(vocab_size=25, decoder_start_token_id=0, forced_eos_token_id=None, **BART)
    name = saved(tmp_path / "marian", config, word_tokenizer())
    settings = tiny.settings(model_name_or_path=name)
    policy = load_policy(settings.models, settings.text, settings.evaluation)
    check_policy(policy)
    reward = load_reward_model(settings.models, settings.text, policy)
    positions: Any = reward.model.backbone.encoder.embed_positions.weight
    torch.testing.assert_close(positions, policy.lm.model.encoder.embed_positions.weight)
    assert positions[1, 0].item() == pytest.approx(torch.sin(torch.tensor(1.0)).item())
