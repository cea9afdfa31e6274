"""Texts as token ids."""

import pytest

from common.errors import UserError
from sum_task.text_format import TextFormat
from tests.sum_task.tiny import word_tokenizer


def text_format(encoder_decoder=True, length=20, tokenizer=None):
    return TextFormat(tokenizer or word_tokenizer(), encoder_decoder, "summarize : ", " . town", length)


def words(form, ids):
    return form.tokenizer.convert_ids_to_tokens(ids)


def test_encoder_decoder_source_is_cut_at_the_end_and_keeps_its_end_token():
    form = text_format(length=5)
    [ids] = form.sources(["the storm hit the city"])
    assert words(form, ids) == ["summarize", ":", "the", "storm", "</s>"]


def test_of_a_decoder_only_source_the_article_alone_is_cut():
    form = text_format(False, length=6)
    [ids] = form.sources(["the storm hit the city"])
    assert words(form, ids) == ["summarize", ":", "the", "storm", ".", "town"]
    with pytest.raises(UserError, match="take 4 tokens of 4"):
        text_format(False, length=4).sources(["the storm"])


@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_summary_ends_with_the_end_token_even_when_it_is_cut(encoder_decoder):
    form = text_format(encoder_decoder)
    short, long = form.targets(["the city", "the storm hit the city"], 4)
    assert words(form, short) == ["the", "city", "</s>"]
    assert words(form, long) == ["the", "storm", "hit", "</s>"]
