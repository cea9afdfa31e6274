"""Loading articles and summaries."""

import csv
import json
import os
from pathlib import Path

import pytest

from common.errors import UserError
from sum_task import data as module
from sum_task.data import Row, load_splits

ROWS = [{"document": f"article {number}", "summary": f"summary {number}"} for number in range(10)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Train and validation as the keyword arguments that name them."""
    return {f"{split}_file": write_jsonl(tmp_path / f"{split}.jsonl", ROWS) for split in ("train", "validation")}


def load_text(tmp_path, name, content, **options):
    """Train from a file with this content."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    other = write_jsonl(tmp_path / "other.jsonl", [{"document": "d", "summary": "s", "a": "d", "b": "s"}])
    return list(load_splits(train_file=str(path), validation_file=other, **options).train)


def both(rows):
    """The same rows for train and validation."""
    return {"train": rows, "validation": rows}


class TestFiles:
    def test_rows_in_their_order(self, files, tmp_path):
        splits = load_splits(**files, test_file=write_jsonl(tmp_path / "t.jsonl", ROWS[:2]))

        assert splits.train == [Row(f"article {number}", f"summary {number}") for number in range(10)]
        assert (len(splits.validation), len(splits.test)) == (10, 2)
        assert splits.left_out == {"train": 0, "validation": 0, "test": 0}

    def test_no_test_file_no_test_rows(self, files):
        assert len(load_splits(**files).test) == 0

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.jsonl", '{"document": "d1", "summary": "s1"}\n\n{"document": "d,\\n2", "summary": "s2"}'),
            ("a.json", '\n [{"document": "d1", "summary": "s1"},\n {"document": "d,\\n2", "summary": "s2"}]'),
            ("a.json", '{"document": "d1", "summary": "s1"}\n{"document": "d,\\n2", "summary": "s2"}\n'),
            ("a.csv", 'id,summary,document\n1,s1,d1\n2,s2,"d,\n2"\n'),
            ("A.CSV", '\ufeffdocument,summary\r\nd1,s1\r\n"d,\n2",s2\r\n'),
        ],
    )
    def test_formats(self, tmp_path, name, content):
        assert load_text(tmp_path, name, content) == [Row("d1", "s1"), Row("d,\n2", "s2")]

    def test_texts_are_kept_as_they_stand(self, tmp_path):
        rows = [{"document": '  "quoted"\t\u2028null é ', "summary": "12"}]
        path = tmp_path / "a.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

        assert load_text(tmp_path, "b.csv", path.read_bytes()) == [Row(**dict(zip(Row._fields, rows[0].values())))]  # noqa: B905
        assert load_text(tmp_path, "b.jsonl", json.dumps(rows[0])) == load_text(tmp_path, "b.csv", path.read_bytes())

    def test_long_articles(self, tmp_path):
        assert len(load_text(tmp_path, "a.csv", "document,summary\n" + "x" * 300_000 + ",s\n")[0].source) == 300_000

    def test_blank_texts_are_left_out_and_counted(self, tmp_path, caplog):
        rows = [
            {"document": "d", "summary": "s"},
            {"document": " \n", "summary": "s"},
            {"document": "d", "summary": None},
        ]
        splits = load_splits(
            train_file=write_jsonl(tmp_path / "train.jsonl", rows),
            validation_file=write_jsonl(tmp_path / "validation.jsonl", ROWS),
        )

        assert splits.train == [Row("d", "s")]
        assert splits.left_out == {"train": 2, "validation": 0}
        assert "train.jsonl: 2 of 3 rows left out" in caplog.text


class TestColumns:
    @pytest.mark.parametrize(
        ("header", "options"),
        [
            ("article,highlights", {}),
            ("summary,text", {}),
            ("body,summary", {"text_column": "body"}),
            ("article,title", {"summary_column": "title"}),
        ],
    )
    def test_usual_names_or_those_given(self, tmp_path, header, options):
        path = tmp_path / "a.csv"
        path.write_text(f"{header}\n1,2\n", encoding="utf-8")
        splits = load_splits(train_file=str(path), validation_file=str(path), **options)

        expected = Row("2", "1") if header == "summary,text" else Row("1", "2")
        assert list(splits.train) == [expected]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {},
                "which columns hold article and summary? (found: 'a', 'b'); say it with text_column and summary_column",
            ),
            ({"text_column": "aa", "summary_column": "b"}, "text_column: no column 'aa'"),
            ({"text_column": "a", "summary_column": "c"}, "summary_column: no column 'c'"),
            ({"text_column": "a"}, "which columns hold article and summary?"),
            ({"text_column": "a", "summary_column": "a"}, "text_column and summary_column both name 'a'"),
        ],
    )
    def test_missing_columns(self, tmp_path, options, message):
        with pytest.raises(UserError) as error:
            load_text(tmp_path, "a.csv", "a,b\n1,2\n", **options)

        assert message in str(error.value)


class TestWhatCannotBeRead:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.jsonl", "", "there are no rows"),
            ("a.json", "[]", "there are no rows"),
            ("a.csv", "document,summary\n", "there are no rows"),
            ("a.jsonl", '{"document": "", "summary": "s"}', "all 1 rows have a blank article or summary"),
            ("a.jsonl", '{"document": "d", "summary": "s"}\n{"document": ', "a.jsonl, line 2: not JSON"),
            ("a.json", '[{"document": "d"}', "a.json: not JSON"),
            ("a.jsonl", '["d", "s"]', "line 1: not a JSON object"),
            ("a.json", '["d", "s"]', "item 1: not a JSON object"),
            ("a.jsonl", '{"document": "d", "summary": 7}', "line 1: column 'summary' holds int, not text"),
            ("a.jsonl", '{"document": "d", "summary": "s"}\n{"document": "d"}', "line 2: no column 'summary'"),
            ("a.jsonl", '{"document": "\\ud800", "summary": "s"}', "line 1: column 'document' holds half a character"),
            ("a.jsonl", b'{"document": "d", "summary": "s"}\n\xff', "line 2: not UTF-8"),
            ("a.csv", b"document,summary\nd,\xe9\n", "line 2: not UTF-8"),
            ("a.csv", "document,summary\nd,s,x\n", "line 2: 3 cells where the header has 2"),
            ("a.csv", 'document,summary\n"d,s\n', "unexpected end of data"),
            ("a.csv", "summary,summary\n1,2\n", "2 columns are called 'summary'"),
            ("a.txt", "", "is not a .csv, .tsv, .json, .jsonl, .parquet file"),
        ],
    )
    def test_one_line_says_where(self, tmp_path, name, content, message):
        with pytest.raises(UserError) as error:
            load_text(tmp_path, name, content)

        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_no_such_file(self, files, tmp_path):
        with pytest.raises(UserError, match=r"test_file: no file .*missing\.csv"):
            load_splits(**files, test_file=str(tmp_path / "missing.csv"))

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator can read everything")
    def test_unreadable_file(self, files):
        Path(files["train_file"]).chmod(0)

        with pytest.raises(UserError, match="cannot read"):
            load_splits(**files)

    def test_no_data_or_too_much(self, files):
        with pytest.raises(UserError, match="no data for train: give dataset_name, or train_file and validation_file"):
            load_splits()
        with pytest.raises(UserError, match="no data for validation"):
            load_splits(train_file=files["train_file"])
        with pytest.raises(UserError, match="dataset_name and train_file are both given"):
            load_splits(dataset_name="xsum", **files)


class TestDraws:
    def test_train_is_drawn_by_seed_and_the_others_are_not(self, files):
        draws = [load_splits(**files, max_train_samples=4, max_eval_samples=4, seed=seed) for seed in (0, 0, 1, 2)]

        assert draws[0] == draws[1]
        assert len({tuple(splits.train) for splits in draws}) > 1
        assert all(splits.validation == draws[0].validation for splits in draws)
        assert all(len(splits.train) == len(splits.validation) == 4 for splits in draws)

    def test_the_order_is_kept(self, files):
        train = load_splits(**files, max_train_samples=5).train

        assert sorted(train) == train

    def test_more_than_there_are(self, files):
        assert len(load_splits(**files, max_train_samples=11).train) == 10


class TestHub:
    """The hub's loader with data on the disk, and its refusals."""

    @pytest.fixture
    def hub(self, monkeypatch):
        """Stands in for `datasets.load_dataset`: keeps the calls, answers with what is put into `answers`."""
        import datasets

        calls, answers = [], []

        def load_dataset(*args, **options):
            calls.append((*args, options.get("revision")))
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return datasets.DatasetDict({key: datasets.Dataset.from_list(rows) for key, rows in answer.items()})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls, answers

    def test_rows_and_published_names(self, hub):
        calls, answers = hub
        rows = [{"article": f"d{n}", "highlights": f"s{n}", "id": "x"} for n in range(6)]
        rows[2]["article"], rows[4]["highlights"] = " ", None
        answers.append({"train": rows, "validation": rows[:1], "test": rows[:2]})

        splits = load_splits(dataset_name="cnn_dailymail", max_train_samples=3)

        assert calls == [("abisee/cnn_dailymail", "3.0.0", None)]
        assert splits.left_out == {"train": 2, "validation": 0, "test": 0}
        assert len(splits.train) == 3
        assert set(splits.train) < {Row("d0", "s0"), Row("d1", "s1"), Row("d3", "s3"), Row("d5", "s5")}
        assert list(splits.test[1:]) == [Row("d1", "s1")]
        assert splits.test[-1] == Row("d1", "s1")

    def test_configuration_and_columns_of_other_data_sets(self, hub):
        calls, answers = hub
        rows = [{"text": "d", "title": "s"}]
        answers.append(both(rows))

        splits = load_splits(dataset_name="me/mine", dataset_config="v2", summary_column="title")

        assert calls == [("me/mine", "v2", None)]
        assert (splits.train[0], len(splits.test)) == (Row("d", "s"), 0)

    def test_a_data_set_that_comes_as_a_script_is_read_from_its_parquet_branch(self, hub):
        calls, answers = hub
        rows = [{"document": "d", "summary": "s"}]
        script = RuntimeError("Dataset scripts are no longer supported, but found xsum.py")
        answers += [script, both(rows)]

        load_splits(dataset_name="xsum")

        assert calls == [("EdinburghNLP/xsum", None, None), ("EdinburghNLP/xsum", None, "refs/convert/parquet")]

    def test_the_nearest_of_the_usual_data_sets_is_named(self, hub):
        hub[1].append(ConnectionError("there is none"))
        with pytest.raises(UserError, match="did you mean 'xsum'"):
            load_splits(dataset_name="xsumm")

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (
                ConnectionError("Couldn't reach the Hub\nsecond line"),
                "cannot load me/x: Couldn't reach the Hub; train_file",
            ),
            (ValueError("BuilderConfig 'v9' not found."), "BuilderConfig 'v9' not found."),
            ({"train": [{"document": "d", "summary": "s"}]}, "has no split 'validation' (found: train)"),
            (both([{"document": ["d"], "summary": "s"}]), "'document' holds lists"),
            (both([{"document": 1, "summary": "s"}]), "'document' holds int64"),
            (both([{"document": "", "summary": "s"}]), "all 1 rows have a blank"),
        ],
    )
    def test_one_line_says_what_is_wrong(self, hub, answer, message):
        hub[1].append(answer)

        with pytest.raises(UserError) as error:
            load_splits(dataset_name="me/x")

        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_folder_on_the_disk(self, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        (tmp_path / "xsum").mkdir()
        for split in ("train", "validation"):
            write_jsonl(tmp_path / "xsum" / f"{split}.jsonl", ROWS)

        splits = load_splits(dataset_name=str(tmp_path / "xsum"))

        assert list(splits.train) == [Row(row["document"], row["summary"]) for row in ROWS]


class TestShippedReports:
    def test_they_are_read(self, tmp_path, monkeypatch):
        (tmp_path / "reports").mkdir()
        for split in ("train", "validation", "test"):
            write_jsonl(tmp_path / "reports" / f"{split}.jsonl", ROWS)
        monkeypatch.setattr(module, "resolve", lambda name: str(tmp_path))

        splits = load_splits(dataset_name="builtin/data")

        assert len(splits.train) == len(splits.validation) == len(splits.test) == 10

    def test_a_wrong_name(self):
        with pytest.raises(UserError, match="'builtin/dat' is not built in; did you mean 'builtin/data'"):
            load_splits(dataset_name="builtin/dat")


@pytest.mark.parametrize(("name", "count"), [("xsum", 800), ("cnn_dailymail", 140)])
def test_real_news(name, count):
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("FSC_DATA", default)) / "summarization" / name
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    paths = {f"{split}_file": str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}

    splits = load_splits(**paths)

    assert len(splits.train) == count
    assert splits.left_out == {"train": 0, "validation": 0, "test": 0}
