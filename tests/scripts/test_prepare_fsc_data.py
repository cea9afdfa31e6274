import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from common.errors import UserError
from prompt_task.few_shot_data import DatasetSpec, load_few_shot_splits, split_folder
from scripts import prepare_fsc_data

YAML = """\
name: toy
verbalizers: [" bad", " good"]
masked_template: "{sentence} {prompt} <mask> ."
left_to_right_template: "{sentence} {prompt}"
"""


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(YAML)


def write_jsonl(path: str, rows: list[tuple[Any, Any]], text: str = "text", label: str = "label") -> None:
    Path(path).write_text("".join(json.dumps({text: t, label: y}) + "\n" for t, y in rows))


def local_rows(per_class: int, word: str = "review") -> list[tuple[str, int]]:
    return [(f"{word} {i} of class {label}", label) for i in range(per_class) for label in (0, 1)]


def prepare(*words: str) -> None:
    prepare_fsc_data.main(
        ["--dataset=toy.yaml", "--num_shots=2", "--train_file=train.jsonl", "--test_file=test.jsonl", *words]
    )


def load(seed: int = 0, spec: str = "toy.yaml", shots: int = 2, base: str = "data"):
    return load_few_shot_splits(DatasetSpec.from_yaml(spec), base, shots, seed)


def everything(base: str = "data") -> dict[str, bytes]:
    return {str(path.relative_to(base)): path.read_bytes() for path in Path(base).rglob("*") if path.is_file()}


class TestSplits:
    def test_are_balanced_disjoint_and_in_the_published_layout(self):
        write_jsonl("train.jsonl", local_rows(20))
        write_jsonl("test.jsonl", local_rows(3, "unseen"))
        prepare()
        folders = sorted(str(path) for path in Path("data/2-shot/toy").iterdir())
        assert folders == [f"data/2-shot/toy/2-{split}" for split in (100, 13, 21, 42, 87)]
        for seed in range(5):
            splits = load(seed)
            for examples in (splits.train, splits.dev):
                assert Counter(example.label for example in examples) == {0: 2, 1: 2}
                assert all(example.text.endswith(str(example.label)) for example in examples)
            assert not {e.text for e in splits.train} & {e.text for e in splits.dev}
            assert [(e.text, e.label) for e in splits.test] == local_rows(3, "unseen")
        assert len({tuple(e.text for e in load(seed).train) for seed in range(5)}) > 1

    def test_are_the_same_whenever_they_are_made_and_whichever_are_asked_for(self):
        write_jsonl("train.jsonl", local_rows(20))
        write_jsonl("test.jsonl", local_rows(3, "unseen"))
        prepare()
        prepare("--base_path=again", "--dataset_seeds", "3", "1")
        again = everything("again")
        assert len(again) == 6
        assert again == {name: content for name, content in everything().items() if name in again}

    def test_share_no_text_with_test_and_hold_none_twice(self):
        shared = [("seen", 0), ("also seen", 1)]
        write_jsonl("train.jsonl", local_rows(4) * 3 + shared * 10)
        write_jsonl("test.jsonl", shared)
        prepare()
        for seed in range(5):
            splits = load(seed)
            texts = [example.text for example in (*splits.train, *splits.dev)]
            assert len(set(texts)) == len(texts) == 8
            assert not {"seen", "also seen"} & set(texts)

    def test_avoid_the_whole_test_file_where_only_a_part_becomes_test(self):
        write_jsonl("train.jsonl", local_rows(30))
        write_jsonl("test.jsonl", local_rows(26))
        prepare("--max_test=5")
        whole = {text for text, _ in local_rows(26)}
        splits = [load(seed) for seed in range(5)]
        assert all(not whole & {e.text for e in (*s.train, *s.dev)} for s in splits)
        assert all(len(s.test) == 5 and s.test == splits[0].test for s in splits)

    def test_a_class_that_is_too_small_is_named_and_nothing_is_written(self):
        write_jsonl("train.jsonl", [*local_rows(3), ("one more", 0)])
        write_jsonl("test.jsonl", local_rows(1, "unseen"))
        with pytest.raises(UserError, match=r"class 1 \(' good'\) has 3 distinct texts .* need 4"):
            prepare()
        assert not Path("data").exists()

    def test_texts_become_fit_for_the_format_and_are_counted(self, capsys):
        write_jsonl("train.jsonl", local_rows(20))
        write_jsonl("test.jsonl", [("a\tb\r\n\nc", 0), (' "q" ', 1), ("half \ud83d", 1), ("", 1), (None, 0)])
        prepare()
        assert [example.text for example in load().test] == ["a b c", ' "q" ', "half  "]
        output = capsys.readouterr().out
        assert "became a blank in 2 texts" in output
        assert "2 rows without text were left out of test" in output

    def test_the_summary_says_where_they_are(self, capsys):
        write_jsonl("train.jsonl", local_rows(20))
        write_jsonl("test.jsonl", local_rows(3, "unseen"))
        prepare("--dataset_seeds", "0")
        assert capsys.readouterr().out.splitlines() == [
            "data/2-shot/toy/2-100: train and dev 2 of each of 2 classes",
            "test, the same in each: 6 examples (3 bad, 3 good) of test.jsonl",
        ]


class TestOverwriting:
    def test_is_refused_before_anything_is_written(self):
        write_jsonl("train.jsonl", local_rows(20))
        write_jsonl("test.jsonl", local_rows(3, "unseen"))
        prepare("--dataset_seeds", "4")
        before = everything()
        with pytest.raises(UserError, match=r"2-87 is already there; --overwrite replaces it"):
            prepare()
        assert everything() == before

    def test_replaces_the_whole_split(self):
        write_jsonl("train.jsonl", local_rows(20))
        write_jsonl("test.jsonl", local_rows(3, "unseen"))
        prepare()
        extra = split_folder("data", "toy", 2, 0) / "notes.txt"
        extra.write_text("mine")
        write_jsonl("test.jsonl", local_rows(1, "new"))
        prepare("--overwrite")
        assert len(load().test) == 2
        assert not extra.exists()
        assert all(path.suffix == ".tsv" for path in map(Path, everything()))


class TestLocalFiles:
    TEXTS = ('He said "hi", and left', "null", "12", " outer blanks ", "caf\u00e9 \u2028 x")

    @pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl"])
    def test_every_format_gives_the_texts_verbatim(self, kind):
        rows = [{"text": text, "label": str(i % 2)} for i, text in enumerate(self.TEXTS)]
        if kind == "csv":
            quoted = ("".join(f'"{r["text"].replace(chr(34), chr(34) * 2)}",{r["label"]}\r\n') for r in rows)
            content = "text,label\r\n" + "".join(quoted)
        elif kind == "tsv":
            content = "text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in rows)
        elif kind == "json":
            content = json.dumps(rows)
        else:
            content = "\n".join(json.dumps(r) for r in rows) + "\n\n"
        Path(f"rows.{kind}").write_bytes(content.encode())
        write_jsonl("train.jsonl", local_rows(20))
        prepare(f"--test_file=rows.{kind}")
        assert [(e.text, e.label) for e in load().test] == [(text, i % 2) for i, text in enumerate(self.TEXTS)]

    def test_columns_and_label_values_can_be_named(self):
        rows = [(f"t{i}", "neg" if i % 2 else "pos") for i in range(20)]
        write_jsonl("train.jsonl", rows, "review", "verdict")
        write_jsonl("test.jsonl", [("good", "pos"), ("bad", "neg")], "review", "verdict")
        prepare("--text_column", "review", "--label_column=verdict", "--labels", "neg", "pos")
        assert [(e.text, e.label) for e in load().test] == [("good", 1), ("bad", 0)]

    def test_several_text_columns_are_joined_by_a_blank(self):
        rows = [{"title": f" T{i} ", "body": body, "label": i % 2} for i, body in enumerate(["B", "", None, "B"])]
        Path("test.json").write_text(json.dumps(rows))
        train = [{"title": "t", "body": str(i), "label": i % 2} for i in range(20)]
        Path("train.json").write_text(json.dumps(train))
        prepare("--train_file=train.json", "--test_file=test.json", "--text_column", "title", "body")
        assert [e.text for e in load().test] == ["T0 B", "T1", "T2", "T3 B"]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("test.csv", "", "no rows"),
            ("test.csv", "text,label\n", "no rows"),
            ("test.csv", "text,text\na,0\n", "2 columns are called 'text'"),
            ("test.csv", "text,label\na,b,0\n", "line 2: 3 cells where the header has 2"),
            ("test.csv", 'text,label\n"a,0\n', "unexpected end of data"),
            ("test.csv", "sentence,label\na,0\n", "no column 'text' (found: sentence, label); --text_column"),
            ("test.tsv", "text\tlabel\na\tb\t0\n", "line 2: 3 cells"),
            ("test.json", '{"text": "a"}', "no column 'label'"),
            ("test.json", '[{"text": "a", "label": 0}, 3]', "item 2: not a JSON object"),
            ("test.json", "[" * 100_000, "not JSON"),
            ("test.jsonl", '{"text": "a", "label": 0}\nnonsense\n', "line 2: not JSON"),
            ("test.jsonl", '{"text": 5, "label": 0}\n', "column 'text': 5 is not text"),
            ("test.jsonl", '{"text": "a", "label": -1}\n', "the label '-1' of row 1 is not one of 0, 1 (found: -1)"),
            ("test.jsonl", '{"text": " ", "label": 1}\n', "there is no text in it"),
        ],
    )
    def test_what_is_wrong_names_the_file(self, name, content, message):
        write_jsonl("train.jsonl", local_rows(20))
        Path(name).write_text(content)
        with pytest.raises(UserError) as error:
            prepare(f"--test_file={name}")
        assert name in str(error.value)
        assert message in str(error.value)
        assert not Path("data").exists()


class TestOptions:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--dataset=agnew"], "there is no 'agnew' in .*did you mean 'agnews'"),
            (["--dataset=agnews", "--num_shot=4"], "unrecognized arguments: --num_shot=4; did you mean '--num_shots'"),
            (["--dataset=agnews", "--num_shots=0"], "num_shots: 0 is out of range"),
            (["--dataset=agnews", "--max_test=0"], "max_test: 0 is out of range"),
            (["--dataset=agnews", "--dataset_seeds", "5"], "5 is not one of 0..4"),
            (["--dataset=agnews", "--dataset_seeds", "1", "1"], "comes twice"),
            (["--dataset=agnews", "--labels", "a", "b"], "2 values for 4 verbalizers"),
            (["--dataset=agnews", "--train_file=a.csv"], "together or not at all"),
            (["--dataset=agnews", "--train_file=a.txt", "--test_file=b.csv"], "must end with one of .csv"),
            (["--dataset=agnews", "--base_path=builtin/data"], "choose a folder"),
            (["--dataset=toy.yaml"], "'toy' has no hub_id"),
            (["--dataset=reviews"], "'reviews' has no hub_id"),
        ],
    )
    def test_a_mistake_is_found_before_anything_is_read(self, words, message, monkeypatch):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("data was loaded"))
        with pytest.raises(UserError, match=message):
            prepare_fsc_data.main(words)


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch):
        """The hub's data sets, by split; the calls that asked for them are recorded."""
        calls = []

        def use(**splits: Dataset) -> list[Any]:
            def load_dataset(*arguments, split, **options):
                calls.append((*arguments, split, options))
                return splits[split]

            monkeypatch.setattr(datasets, "load_dataset", load_dataset)
            return calls

        return use

    def test_a_label_column_in_another_order_is_mapped_by_its_names(self, hub):
        names = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]
        features = Features({"text": Value("string"), "coarse_label": ClassLabel(names=names)})
        rows = {"text": [f"{name} {i}?" for i in range(4) for name in names], "coarse_label": [*range(6)] * 4}
        test = {"text": [f"test {name}" for name in names], "coarse_label": [*range(6)]}
        calls = hub(train=Dataset.from_dict(rows, features), test=Dataset.from_dict(test, features))
        prepare_fsc_data.main(["--dataset=trec", "--num_shots=2", "--dataset_seeds", "0"])
        assert calls[0] == ("CogComp/trec", None, "train", {"revision": "refs/convert/parquet"})
        splits = load(spec=str(prepare_fsc_data.CONFIGS / "trec.yaml"))
        order = ["DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM"]  # those of Description, Entity, Expression, ...
        for example in splits.train + splits.dev:
            assert example.text.startswith(order[example.label])
        assert [example.text for example in sorted(splits.test, key=lambda e: e.label)] == [f"test {n}" for n in order]

    def test_numbered_labels_stand_for_themselves(self, hub):
        train = {
            "text": [f"s {i}" for i in range(20)],
            "label": [0, 1] * 10,
            "label_text": ["negative", "positive"] * 10,
        }
        held_out = {"text": ["no", "yes"], "label": [0, 1], "label_text": ["negative", "positive"]}
        hub(train=Dataset.from_dict(train), test=Dataset.from_dict(held_out))
        prepare_fsc_data.main(["--dataset=sst-2", "--num_shots=2", "--dataset_seeds", "0"])
        test = load(spec=str(prepare_fsc_data.CONFIGS / "sst-2.yaml")).test
        assert [(e.text, e.label) for e in test] == [("no", 0), ("yes", 1)]

    def test_a_test_split_without_labels_is_an_error(self, hub):
        rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]})
        hub(train=rows, test=rows)
        with pytest.raises(UserError, match=r"fancyzhx/ag_news \(split train\): the label '-1' of row 2"):
            prepare_fsc_data.main(["--dataset=agnews"])

    def test_other_columns_than_expected_are_named(self, hub):
        hub(train=Dataset.from_dict({"content": ["a"], "label": [0]}))
        with pytest.raises(UserError, match=r"no column 'text' \(found: content, label\)"):
            prepare_fsc_data.main(["--dataset=agnews"])

    def test_a_hub_out_of_reach_is_one_clear_line(self, monkeypatch):
        def load_dataset(*_, **__):
            raise ConnectionError("Couldn't reach the Hub\nlong explanation")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(UserError, match=r"cannot load fancyzhx/ag_news .* reach the Hub; --train_file"):
            prepare_fsc_data.main(["--dataset=agnews"])


def test_the_command_ends_with_code_2_and_one_line():
    command = [sys.executable, prepare_fsc_data.__file__, "--dataset=toy.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: 'toy' has no hub_id; give your own files with --train_file and --test_file\n"
