import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from common.language_models.line_breaks import decode_lines, line_break
from common.language_models.token_carry import token_spans
from sum_task.evaluation_metrics import per_example
from sum_task.text_format import TextFormat
from tests.sum_task.tiny import byte_tokenizer, word_tokenizer


def words_with(mark, special=False, anywhere=False):
    words = ["<pad>", "</s>", "<unk>", "a", "b", ".", *([] if special or anywhere else [mark])]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    if special or anywhere:
        made.add_tokens([mark], special_tokens=special)
    return made


@pytest.mark.parametrize(
    "tokenizer",
    [words_with("<n>"), words_with("<n>", anywhere=True), words_with("[NEWLINE]"), words_with("<br>", special=True)],
    ids=["blanks", "anywhere", "other", "special"],
)
def test_a_mark_is_a_line_break_in_both_directions(tokenizer):
    mark = line_break(tokenizer)
    assert mark is not None
    text_format = TextFormat(tokenizer, True, "", "", 20)
    (ids,) = text_format.targets(["a .\nb ."], 10)
    assert mark.token_id in ids and tokenizer.unk_token_id not in ids
    lines = text_format.text(ids).split("\n")
    assert [line.strip() for line in lines] == ["a .", "b ."]
    (scores,) = per_example([text_format.text(ids)], ["a .\nb ."], [""], meteor=False)
    assert scores["rouge1"] == scores["rougeLsum"] == 100
    text, spans = token_spans(tokenizer, ids, mark)
    assert text == decode_lines(tokenizer, ids[:-1], mark, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text[slice(*spans[ids.index(mark.token_id)])].strip(" ") == "\n"


def test_spans_of_a_marked_text_are_those_of_the_text():
    mark = line_break(words_with("<n>"))
    assert mark is not None
    assert mark.mark("a .\nb") == "a . <n> b"
    assert mark.unmarked("a .\nb", [(0, 1), (2, 3), (4, 7), (8, 9)]) == [(0, 1), (2, 3), (3, 4), (4, 5)]


def test_a_vocabulary_without_a_mark_or_with_line_breaks_of_its_own_stays_as_it_is():
    assert line_break(word_tokenizer()) is None
    assert line_break(byte_tokenizer()) is None
    tokenizer = words_with("<n>x")
    assert line_break(tokenizer) is None
    assert TextFormat(tokenizer, True, "", "", 20).text([3, 5]) == "a ."
