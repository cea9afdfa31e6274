"""Prompts and replies as token ids."""

import pytest

from common.errors import UserError
from common.language_models.replies import ReplyFormat
from tests.sum_task.tiny import word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
USER = {"role": "user", "content": "the storm"}


def words(reply_format, ids):
    return reply_format.tokenizer.convert_ids_to_tokens(ids)


@pytest.fixture
def causal():
    return ReplyFormat(word_tokenizer(), False, max_prompt_length=4, max_reply_length=3)


@pytest.fixture
def chat():
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["user", "assistant"])
    tokenizer.chat_template = TEMPLATE
    return ReplyFormat(tokenizer, False)


def test_a_prompt_is_cut_from_the_left_and_a_reply_from_the_right(causal):
    # The tokenizer ends texts of its own accord; a prompt goes on.
    assert words(causal, causal.encode_prompt("the storm hit")[0]) == ["the", "storm", "hit"]
    ids, cut = causal.encode_prompt("a b the storm hit town")
    assert (words(causal, ids), cut) == (["the", "storm", "hit", "town"], True)
    whole, long = causal.encode_reply("", "two killed"), causal.encode_reply("", "two killed on monday")
    assert (words(causal, whole.ids), whole.has_end, whole.cut) == (["two", "killed", "</s>"], True, False)
    assert (words(causal, long.ids), long.has_end, long.cut) == (["two", "killed", "on"], False, True)


def test_an_encoder_reads_its_prompt_to_the_end_token():
    reader = ReplyFormat(word_tokenizer(), True, "summarize : {prompt}", max_prompt_length=4)
    assert words(reader, reader.encode_prompt("a storm")[0]) == [":", "a", "storm", "</s>"]
    assert words(reader, reader.encode_prompt("storm")[0]) == ["summarize", ":", "storm", "</s>"]


def test_an_empty_prompt_is_an_end_token_and_an_empty_reply_nothing_else(causal):
    assert words(causal, causal.encode_prompt("")[0]) == ["</s>"]
    assert words(causal, causal.encode_reply("", "").ids) == ["</s>"]


def test_messages_go_through_the_chat_template(chat):
    assert words(chat, chat.encode_prompt([USER])[0]) == ["user", "the", "storm", "</s>", "assistant"]
    # The template ends a reply itself; as text or as messages it is the same.
    reply = chat.encode_reply([USER], "two killed", with_spans=True)
    assert (words(chat, reply.ids), reply.has_end) == (["two", "killed", "</s>"], True)
    assert reply.spans[:2] == ((0, 3), (4, 10)) and reply.spans[2][0] >= len("two killed")
    assert chat.encode_reply([USER], [{"role": "assistant", "content": "two killed"}]).ids == reply.ids


def test_spans_are_characters_of_the_reply(causal):
    assert causal.encode_reply("", "two  killed", with_spans=True).spans == ((0, 3), (5, 11), (11, 12))


def test_broken_messages_are_one_line(causal, chat):
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        causal.encode_prompt([USER])
    with pytest.raises(UserError, match="messages as the reply to a prompt that is text"):
        causal.encode_reply("a", [USER])
    chat.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="refuses the messages: roles must alternate"):
        chat.encode_prompt([USER])
    chat.tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(UserError, match="writes the prompt in another way"):
        chat.encode_reply([USER], "two")
