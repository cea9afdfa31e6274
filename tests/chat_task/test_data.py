"""Preferences from files: every form, bad rows, and which prompts are held out."""

import json
import logging
from collections import Counter
from pathlib import Path

import pandas
import pytest

from chat_task.data import load_preferences, prompt_key, split_by_prompt
from chat_task.ranking_rows import Columns, ranking_set
from common.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "preferences"
USER, GOOD, POOR = ({"role": r, "content": c} for r, c in (("user", "2 + 2?"), ("assistant", "4"), ("assistant", "5")))


def write(path, rows):
    if path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".csv":
        cells = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
        pandas.DataFrame(cells).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class TestRows:
    def test_pairs_of_text(self):
        found = ranking_set({"prompt": "p", "chosen": "good", "rejected": "bad", "margin": 0.5}, Columns())
        assert (found.prompt, found.replies, found.scores, found.margin) == ("p", ("good", "bad"), (1, 0), 0.5)

    def test_pairs_that_hold_their_prompt(self):
        # As TRL takes them: text up to where the two differ, at a whole word; messages up to the first other one.
        found = ranking_set({"chosen": "Q: is it? A: yes it is", "rejected": "Q: is it? A: yellow"}, Columns())
        assert (found.prompt, found.replies) == ("Q: is it? A: ", ("yes it is", "yellow"))
        found = ranking_set({"chosen": [USER, GOOD], "rejected": [USER, POOR]}, Columns())
        assert (found.prompt, found.replies) == ((USER,), ((GOOD,), (POOR,)))
        # A prompt that stands apart and in the replies too is one prompt.
        found = ranking_set({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [POOR]}, Columns())
        assert (found.prompt, found.replies) == ((USER,), ((GOOD,), (POOR,)))

    def test_a_mark_says_where_the_reply_begins(self):
        columns = Columns(prompt_end="\n\nAssistant:")
        row = {
            "chosen": "\n\nHuman: a\n\nAssistant: I am so sorry",
            "rejected": "\n\nHuman: a\n\nAssistant: I am so what",
        }
        assert ranking_set(row, columns).replies == (" I am so sorry", " I am so what")
        with pytest.raises(UserError, match="does not begin with the prompt"):
            ranking_set(row | {"rejected": "\n\nHuman: b\n\nAssistant: x"}, columns)

    def test_rankings_with_other_names_ranks_and_weights(self):
        columns = Columns(prompt="q", completions="answers", ranks="places", weight="votes", spans="marks")
        row = {"q": "p", "answers": ["a", "b", "c"], "places": [2, 1, 2], "votes": 3, "marks": [[[0, 1]], [], []]}
        found = ranking_set(row, columns)
        assert (found.scores, found.weight, found.spans) == ((-2, -1, -2), 3, (((0, 1),), (), ()))

    @pytest.mark.parametrize(
        ("marks", "spans"),
        [
            ([[[0, 1]], None], (((0, 1),), None)),
            ([[0, 1], [2, 3]], (((0, 1), (2, 3)), None)),  # spans alone are the first reply's
            ([{"start": 0, "end": 1, "type": "Irrelevant"}], (((0, 1),), None)),
            ([[{"start": 0, "end": 1}], []], (((0, 1),), ())),
            ([], ((), None)),
        ],
    )
    def test_marked_errors_of_each_reply_or_of_the_first(self, marks, spans):
        row = {"prompt": "p", "chosen": "abc", "rejected": "d", "marks": marks}
        assert ranking_set(row, Columns(spans="marks")).spans == spans

    @pytest.mark.parametrize(
        ("marks", "words"), [([[[0]], []], "is no list of"), (3, "is no list of"), ([[], [], []], "3 entries for 2")]
    )
    def test_marks_that_make_no_sense_are_one_line(self, marks, words):
        with pytest.raises(UserError, match=words):
            ranking_set({"prompt": "p", "chosen": "abc", "rejected": "d", "marks": marks}, Columns(spans="marks"))

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"prompt": "p", "chosen": "x", "rejected": "x"}, "no two different replies"),
            ({"prompt": "p", "completions": ["x"], "scores": [1]}, "no two different replies"),
            ({"prompt": "p", "chosen": "x", "rejected": " "}, "an empty reply"),
            ({"prompt": "p", "chosen": "x"}, "no 'rejected' (found: 'prompt', 'chosen')"),
            ({"prompt": "p", "chosen": "x", "rejected": None}, "no 'rejected'"),
            ({"prompt": "p", "answers": ["x"]}, "neither 'chosen' and 'rejected' nor 'completions'"),
            ({"prompt": "p", "completions": ["x", "y"], "scores": [1, "2"]}, "'scores' holds '2', which is no number"),
            ({"prompt": "p", "completions": ["x", "y"], "scores": [1, float("nan")]}, "holds nan, which is no number"),
            ({"prompt": "p", "completions": ["x", "y"], "scores": [1]}, "1 numbers for 2 replies"),
            ({"prompt": "p", "completions": ["x", "y"], "socres": [1, 2]}, "no 'scores'; did you mean 'socres'"),
            ({"prompt": "p", "completions": "x", "scores": [1]}, "'completions' is str, not a list"),
            ({"prompt": 3, "chosen": "x", "rejected": "y"}, "'prompt' is int, neither text nor messages"),
            ({"prompt": [{"role": "user"}], "chosen": "x", "rejected": "y"}, "a message without role and content"),
            ({"prompt": [USER], "chosen": [{"role": "a", "content": None}], "rejected": "y"}, "is no text"),
            ({"prompt": "p", "chosen": "x", "rejected": "y", "margin": "wide"}, "'margin' holds 'wide'"),
            ({"prompt": "p", "chosen": "x", "rejected": "\ud800"}, "half a character"),
        ],
    )
    def test_bad_rows_are_one_line(self, row, words):
        with pytest.raises(UserError, match=r"^data, row 7: ") as error:
            ranking_set(row, Columns(), "data, row 7")
        assert words in str(error.value) and "\n" not in str(error.value)


ROWS = [
    {"prompt": f"p{i}", "completions": ["a b", "c", "d"][: 2 + i % 2], "scores": [1, 2, 2.5][: 2 + i % 2]}
    for i in range(20)
]


class TestFiles:
    @pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
    def test_every_format_gives_the_same_sets(self, tmp_path, kind):
        found = load_preferences(columns=Columns(), train_file=write(tmp_path / f"a.{kind}", ROWS))
        everything = sorted(found.train + found.validation, key=lambda item: int(item.prompt[1:]))
        assert [item.prompt for item in everything] == [row["prompt"] for row in ROWS]
        assert [item.replies for item in everything] == [tuple(row["completions"]) for row in ROWS]
        assert [item.scores for item in everything] == [tuple(row["scores"]) for row in ROWS]

    def test_bad_rows_end_it_or_are_left_out_and_counted(self, tmp_path, caplog):
        file = write(tmp_path / "a.jsonl", [*ROWS, {"prompt": "x", "completions": ["a"], "scores": [1]}])
        with pytest.raises(UserError, match=r"a\.jsonl, line 21: no two different replies; bad_rows=skip"):
            load_preferences(columns=Columns(), train_file=file)
        with caplog.at_level(logging.WARNING):
            found = load_preferences(columns=Columns(), train_file=file, bad_rows="skip")
        assert len(found.train) + len(found.validation) == 20
        assert found.bad_rows == [f"{file}, line 21: no two different replies"] and "line 21" in caplog.text

    def test_what_cannot_be_read_is_one_line(self, tmp_path):
        for options, words in (
            ({}, "give either"),
            ({"train_file": str(tmp_path / "no.jsonl")}, "no file"),
            ({"train_file": str(tmp_path / "a.txt")}, r"is not a \.csv"),
            ({"dataset_name": "builtin/planted"}, "did you mean 'builtin/planted-errors'"),
        ):
            with pytest.raises(UserError, match=words):
                load_preferences(columns=Columns(), **options)
        (tmp_path / "bad.parquet").write_bytes(b"PAR")
        with pytest.raises(UserError, match="no parquet file"):
            load_preferences(columns=Columns(), train_file=str(tmp_path / "bad.parquet"))


class TestSplit:
    def test_no_prompt_is_on_both_sides_and_other_rows_change_nothing(self):
        pairs = [{"prompt": f"p{i % 30}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(90)]
        sets = [ranking_set(row, Columns()) for row in pairs]
        train, held = split_by_prompt(sets, 0.2, seed=1)
        assert len(train) + len(held) == 90 and len(held) == 18
        assert not {prompt_key(s) for s in train} & {prompt_key(s) for s in held}
        assert split_by_prompt(sets[::-1], 0.2, seed=1)[1] == held[::-1]
        assert split_by_prompt(sets, 0.2, seed=2)[1] != held

    def test_limits(self, tmp_path):
        file = write(tmp_path / "a.jsonl", ROWS)
        found = load_preferences(
            columns=Columns(), train_file=file, validation_share=0.5, max_train_samples=3, max_eval_samples=2
        )
        assert (len(found.train), len(found.validation)) == (3, 2)


def test_planted_errors_know_the_true_reward_of_each_token():
    found = load_preferences(columns=Columns(spans="wrong"), dataset_name="builtin/planted-errors")
    assert len(found.train) + len(found.validation) == 2400
    kinds = set()
    for item in found.train[:300]:
        assert item.spans is not None and len(set(item.replies)) == 4
        for reply, score, spans in zip(item.replies, item.scores, item.spans, strict=True):
            words = [reply[start:end] for start, end in spans]
            assert len(words) <= -score and all(word and " " not in word for word in words)
            assert (score == 0) == (not words)
            kinds |= {"wrong" if word not in item.prompt.split() else "gap" for word in words}
    assert kinds == {"wrong", "gap"}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real preferences")
@pytest.mark.parametrize(
    ("name", "columns", "rows", "replies"),
    [
        ("summeval_rankings_train", Columns(completions="candidates"), 50, 12),
        ("news_summary_pairs", Columns(), 482, 2),
        ("hh_harmless_pairs", Columns(prompt_end="\n\nAssistant:"), 1000, 2),
        ("alpaca_eval_rankings", Columns(), 613, 10),
        ("qa_feedback_rankings_with_spans", Columns(spans="errors_in_first"), 322, 4),
    ],
)
def test_real_preferences_load_by_column_names_alone(name, columns, rows, replies):
    found = load_preferences(columns=columns, train_file=str(REAL / f"{name}.jsonl"), bad_rows="skip")
    sets = found.train + found.validation
    assert len(sets) + len(found.bad_rows) == rows and len(found.bad_rows) <= rows // 20
    assert max(len(item.replies) for item in sets) == replies
    assert all(item.prompt for item in sets)
    if columns.spans is not None:
        marked = [(len(item.replies[0]), (item.spans or ())[0] or ()) for item in sets]
        assert sum(len(spans) for _, spans in marked) == 887
        assert all(end <= length for length, spans in marked for _, end in spans)


def test_rankings_taken_apart_into_pairs(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = {"columns": Columns(), "train_file": str(tmp_path / "rows.jsonl"), "validation_share": 0.25}
    whole = load_preferences(**options)
    found = load_preferences(pairs_per_set=2, **options)
    assert found.validation == whole.validation
    sizes = {item.prompt: len(item.replies) for item in whole.train}
    counts = Counter(item.prompt for item in found.train)
    assert counts == {prompt: min(size * (size - 1) // 2, 2) for prompt, size in sizes.items()}
    of_prompt = {item.prompt: dict(zip(item.replies, item.scores, strict=True)) for item in whole.train}
    for pair in found.train:
        assert pair.scores[0] > pair.scores[1]
        assert [of_prompt[pair.prompt][reply] for reply in pair.replies] == list(pair.scores)
    other = load_preferences(pairs_per_set=2, seed=1, **options)
    kept = {item.prompt for item in found.train} & {item.prompt for item in other.train}
    drawn = [{(item.prompt, item.replies) for item in part.train if item.prompt in kept} for part in (found, other)]
    assert drawn[0] != drawn[1]


def test_rankings_without_a_preference_give_no_pairs(tmp_path):
    row = {"completions": ["a", "b"], "scores": [1, 1]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{n}", **row}) + "\n" for n in range(4)))
    with pytest.raises(UserError, match="pairs_per_set: no two replies"):
        load_preferences(columns=Columns(), train_file=str(tmp_path / "rows.jsonl"), pairs_per_set=2)
