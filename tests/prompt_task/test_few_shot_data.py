import logging
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from common.errors import UserError
from prompt_task import few_shot_data
from prompt_task.few_shot_data import (
    SPLIT_NAMES,
    DatasetSpec,
    Example,
    fill_template,
    load_few_shot_splits,
    prepare_command,
    read_examples,
    split_folder,
)

MAPPING = {
    "name": "toy",
    "verbalizers": [" bad", " good"],
    "masked_template": "{sentence} {prompt} <mask> .",
    "left_to_right_template": "{sentence} {prompt}",
}
SPEC = DatasetSpec.from_mapping(MAPPING)
TWO_CLASSES = "text\tlabel\na\t0\nb\t1\n"

any_text = st.text(st.characters(codec="utf-8"), max_size=40)
cell = st.text(st.characters(codec="utf-8", exclude_characters="\t\n"), min_size=1).filter(str.strip)


def write_split(base: Path, contents: dict[str, str] | None = None, name: str = "toy", seed: int = 0) -> Path:
    """A split with one example a class, but for the files whose contents are given."""
    folder = split_folder(base, name, 1, seed)
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text((contents or {}).get(split, TWO_CLASSES))
    return folder


def write_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "train.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class TestDatasetSpec:
    def test_keeps_the_leading_blank_and_the_order_of_verbalizers(self):
        assert SPEC.verbalizers == (" bad", " good")

    def test_takes_what_hydra_composes(self):
        assert DatasetSpec.from_mapping(OmegaConf.create(MAPPING)) == SPEC

    def test_reads_a_yaml_file(self, tmp_path):
        OmegaConf.save(OmegaConf.create(MAPPING), tmp_path / "toy.yaml")
        assert DatasetSpec.from_yaml(tmp_path / "toy.yaml") == SPEC

    @pytest.mark.parametrize("content", ["- a\n- b\n", "name: [", "name: toy\nname: toy\n"])
    def test_a_yaml_file_that_is_no_mapping_is_an_error_that_names_it(self, tmp_path, content):
        (tmp_path / "toy.yaml").write_text(content)
        with pytest.raises(UserError, match=r"toy\.yaml"):
            DatasetSpec.from_yaml(tmp_path / "toy.yaml")

    def test_a_missing_yaml_file_is_an_error_that_names_it(self, tmp_path):
        with pytest.raises(UserError, match=r"nowhere\.yaml"):
            DatasetSpec.from_yaml(tmp_path / "nowhere.yaml")

    def test_a_missing_key_is_named(self):
        with pytest.raises(UserError, match="dataset 'toy': the key 'verbalizers' is missing"):
            DatasetSpec.from_mapping({k: v for k, v in MAPPING.items() if k != "verbalizers"})

    def test_one_template_is_enough(self):
        kinds = ("masked_template", "left_to_right_template")
        for one, other in (kinds, kinds[::-1]):
            spec = DatasetSpec.from_mapping({k: v for k, v in MAPPING.items() if k != other})
            assert (getattr(spec, one), getattr(spec, other)) == (MAPPING[one], "")
        with pytest.raises(UserError, match="masked_template or left_to_right_template is needed"):
            DatasetSpec.from_mapping({k: v for k, v in MAPPING.items() if k not in kinds})

    def test_verbalizers_may_depend_on_the_task_lm(self):
        by_task_lm = MAPPING | {"verbalizers": ["a", "b"], "verbalizers_by_task_lm": {"x/y": [" a", " b"]}}
        assert DatasetSpec.from_mapping(by_task_lm, "x/y").verbalizers == (" a", " b")
        assert DatasetSpec.from_mapping(by_task_lm, "other").verbalizers == ("a", "b")
        assert DatasetSpec.from_mapping(by_task_lm).verbalizers == ("a", "b")
        with pytest.raises(UserError, match="verbalizers_by_task_lm: 1 is not a mapping"):
            DatasetSpec.from_mapping(MAPPING | {"verbalizers_by_task_lm": 1})

    def test_a_folder_gets_the_general_verbalizers_and_is_told_of_the_others(self, tmp_path, caplog):
        by_task_lm = MAPPING | {"verbalizers": ["a", "b"], "verbalizers_by_task_lm": {"x/y": [" a", " b"]}}
        assert DatasetSpec.from_mapping(by_task_lm, str(tmp_path)).verbalizers == ("a", "b")
        assert "has verbalizers of its own for x/y" in caplog.text
        caplog.clear()
        DatasetSpec.from_mapping(by_task_lm, "x/y")
        DatasetSpec.from_mapping(by_task_lm)
        DatasetSpec.from_mapping(MAPPING, str(tmp_path))
        assert not caplog.text

    def test_an_unknown_key_names_the_nearest(self):
        with pytest.raises(UserError, match="unknown key 'verbaliser'; did you mean 'verbalizers'"):
            DatasetSpec.from_mapping(MAPPING | {"verbaliser": []})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"name": "../etc"}, "names a folder"),
            ({"name": 5}, "name: 5 is not text"),
            ({"verbalizers": " bad"}, "is not a list"),
            ({"verbalizers": [True, " good"]}, "True is not text; put it in quotes"),
            ({"verbalizers": [" ", " good"]}, "' ' is blank"),
            ({"verbalizers": [" good"]}, "at least two classes"),
            ({"verbalizers": [" good", " bad", " good"]}, "' good' stands for 2 classes"),
            ({"hub_labels": [1]}, "1 values for 2 verbalizers"),
            ({"hub_labels": [1, 1]}, "1 stands for 2 classes"),
            ({"hub_text_columns": []}, "the list is empty"),
            ({"masked_template": "{sentence} {prompt}"}, "slot '<mask>' is missing"),
            ({"masked_template": "{sentence} {prompt} <mask> <mask>"}, "slot '<mask>' comes more than once"),
            ({"masked_template": "{prompt} <mask>"}, "slot '{sentence}' is missing"),
            ({"left_to_right_template": "{sentence}"}, "slot '{prompt}' is missing"),
            ({"left_to_right_template": "{sentence} {prompt} <mask>"}, "slot '<mask>' has no place here"),
            ({"left_to_right_template": "{sentences} {prompt}"}, "unknown slot '{sentences}'; did you mean '{sent"),
            ({"left_to_right_template": None}, "None is not text"),
        ],
    )  # fmt: skip
    def test_what_makes_no_sense_is_an_error_that_says_what(self, change, message):
        with pytest.raises(UserError) as error:
            DatasetSpec.from_mapping(MAPPING | change)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


class TestFillTemplate:
    def test_fills_every_slot_once(self):
        assert fill_template("{sentence} {prompt} <mask> .", "A film.", "Grade", "[MASK]") == "A film. Grade [MASK] ."

    def test_strips_nothing(self):
        assert fill_template("{sentence} {prompt}", " a ", " b  ", None) == " a   b  "

    def test_slots_in_texts_are_data(self):
        filled = fill_template("{sentence}|{prompt}|<mask>", "{prompt} <mask>", "{sentence} \\1 {0}", "M")
        assert filled == "{prompt} <mask>|{sentence} \\1 {0}|M"

    def test_a_mask_without_its_token_is_an_error(self):
        with pytest.raises(ValueError, match="mask_token"):
            fill_template("{sentence} {prompt} <mask>", "a", "b", None)

    @given(sentence=any_text, prompt=any_text, mask=any_text)
    def test_the_parts_stand_verbatim_in_their_places(self, sentence, prompt, mask):
        assert fill_template("<mask> : {prompt} {sentence} .", sentence, prompt, mask) == (
            mask + " : " + prompt + " " + sentence + " ."
        )


class TestReadExamples:
    @pytest.mark.parametrize("column", ["text", "sentence"])
    def test_both_names_of_the_text_column(self, tmp_path, column):
        path = write_file(tmp_path, f"{column}\tlabel\ngood film\t1\n")
        assert read_examples(path, 2) == ([Example("good film", 1)], 0)

    @pytest.mark.parametrize(
        "text",
        [
            '"unbalanced', 'He said ""hi""', "`` bad '' is", "'", "null", "12", "true", "NaN", " outer blanks  ",
            "caf\u00e9 \u2028 \x85 \x0b \x0c end", "a\rb", "\\n \\t", "#36;10", "\ufeffbom",
        ],
    )  # fmt: skip
    def test_texts_are_verbatim(self, tmp_path, text):
        path = write_file(tmp_path, f"text\tlabel\nfirst\t0\n{text}\t1\nlast\t0\n")
        assert read_examples(path, 2) == ([Example("first", 0), Example(text, 1), Example("last", 0)], 0)

    def test_byte_order_mark_line_ends_and_column_order_do_not_matter(self, tmp_path):
        path = write_file(tmp_path, b"\xef\xbb\xbflabel\tid\ttext\r\n1\t7\t good \r\n0\t8\tbad\r\n\r\n")
        assert read_examples(path, 2) == ([Example(" good ", 1), Example("bad", 0)], 0)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "the file is empty"),
            ("\n\n", "the file is empty"),
            ("text\tlabel\n", "no examples"),
            ("review\tlabel\na\t0\n", "no column 'text' or 'sentence'; its columns are 'review', 'label'"),
            ("text\tclass\na\t0\n", "no column 'label'; its columns are 'text', 'class'"),
            ("text\tsentence\tlabel\na\tb\t0\n", "both a column 'text' and a column 'sentence'"),
            ("text\tlabel\tlabel\na\t0\t0\n", "line 1: 2 columns are called 'label'"),
            ("text\tlabel\na\t0\nb\tc\t0\n", "line 3: 3 cells where the header has 2"),
            ("text\tlabel\na\t0\n\nb\t0\n", "line 3: 1 cells where the header has 2"),
            ("text\tlabel\na\t0\nb\tgood\n", "line 3: the label 'good' is not an integer"),
            ("text\tlabel\na\t1.0\n", "line 2: the label '1.0' is not an integer"),
            ("text\tlabel\na\t\n", "line 2: the label '' is not an integer"),
            ("text\tlabel\na\t" + "9" * 5000 + "\n", "is not an integer"),
            ("text\tlabel\na\t2\n", "line 2: the label 2 is out of range; with 2 verbalizers it must be 0..1"),
            ("text\tlabel\na\t-1\n", "line 2: the label -1 is out of range"),
            ("text\tlabel\n  \t1\n", "all 1 rows have a blank text"),
            (b"text\tlabel\na\t0\ncaf\xe9\t1\n", "line 3: not UTF-8"),
        ],
    )
    def test_what_is_wrong_names_file_and_line(self, tmp_path, content, message):
        path = write_file(tmp_path, content)
        with pytest.raises(UserError) as error:
            read_examples(path, 2)
        assert str(path) in str(error.value)
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_missing_file_is_an_error(self, tmp_path):
        with pytest.raises(UserError, match="No such file"):
            read_examples(tmp_path / "train.tsv", 2)

    def test_blank_texts_are_left_out_and_counted(self, tmp_path, caplog):
        path = write_file(tmp_path, 'text\tlabel\n"a ""b"""\t0\n\t1\n  \t1\n""\t0\n')
        assert read_examples(path, 2) == ([Example('a "b"', 0)], 3)
        assert "3 of 4 rows left out" in caplog.text

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(rows=st.lists(st.tuples(cell, st.integers(0, 6)), min_size=1, max_size=8))
    def test_every_text_without_tab_and_line_feed_comes_back_verbatim(self, tmp_path, rows):
        path = write_file(tmp_path, "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
        assert read_examples(path, 7, "unquoted") == ([Example(*row) for row in rows], 0)

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
    @given(content=st.binary(max_size=60) | st.text("tex label\t\n\r01\"'", max_size=60).map(str.encode))
    def test_any_file_gives_examples_or_one_clear_line(self, tmp_path, content):
        for start in (b"", b"text\tlabel\n"):
            path = write_file(tmp_path, start + content)
            try:
                examples, _ = read_examples(path, 2)
            except UserError as error:
                assert str(path) in str(error)
                assert "\n" not in str(error)
            else:
                assert examples


class TestLoadFewShotSplits:
    def test_each_dataset_seed_is_one_published_split(self, tmp_path):
        for seed, split in enumerate((100, 13, 21, 42, 87)):
            folder = tmp_path / "1-shot" / "toy" / f"1-{split}"
            folder.mkdir(parents=True)
            for name in ("train", "dev", "test"):
                (folder / f"{name}.tsv").write_text(f"text\tlabel\n{name} {split}\t0\nb\t1\n")
            splits = load_few_shot_splits(SPEC, str(tmp_path), 1, seed)
            assert [splits.train[0], splits.dev[0], splits.test[0]] == [
                Example(f"{name} {split}", 0) for name in ("train", "dev", "test")
            ]

    @pytest.mark.parametrize("seed", [-1, 5, 100, True])
    def test_other_dataset_seeds_are_errors(self, tmp_path, seed):
        with pytest.raises(UserError, match=r"dataset_seed: .* is not one of 0\.\.4"):
            load_few_shot_splits(SPEC, str(tmp_path), 1, seed)

    def test_no_shots_is_an_error(self, tmp_path):
        with pytest.raises(UserError, match="num_shots"):
            load_few_shot_splits(SPEC, str(tmp_path), 0, 0)

    @pytest.mark.parametrize("base_path", ["nowhere", "./nowhere"])
    def test_missing_data_is_told_with_the_command_that_makes_it(self, base_path, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            UserError, match=r"base_path: no folder .*/nowhere; this makes it: python .*prepare_fsc_data"
        ):
            load_few_shot_splits(SPEC, base_path, 16, 0)

    def test_a_missing_data_set_is_told_with_those_that_are_there(self, tmp_path):
        write_split(tmp_path, name="other")
        with pytest.raises(UserError, match=r"no folder .*1-shot/toy/1-100 \(.*1-shot holds other\)"):
            load_few_shot_splits(SPEC, str(tmp_path), 1, 0)

    def test_data_below_the_project_is_found_from_a_folder_in_it(self, tmp_path, monkeypatch):
        project = tmp_path / "project"
        write_split(project / "data")
        (project / "prompt_task" / "data" / "1-shot").mkdir(parents=True)  # of another data set
        monkeypatch.setattr(few_shot_data, "ROOT", project)
        monkeypatch.chdir(project / "prompt_task")
        assert len(load_few_shot_splits(SPEC, "./data", 1, 0).train) == 2
        write_split(Path("data"), {"train": TWO_CLASSES + "c\t1\n"})
        assert len(load_few_shot_splits(SPEC, "./data", 1, 0).train) == 3

    def test_a_missing_split_is_told_with_those_that_are_there(self, tmp_path):
        write_split(tmp_path, seed=1)
        with pytest.raises(UserError, match=r"no folder .*1-21 \(.*toy holds 1-13\).*--dataset_seeds=2"):
            load_few_shot_splits(SPEC, str(tmp_path), 1, 2)

    def test_a_missing_file_is_told_with_those_that_are_there(self, tmp_path):
        (write_split(tmp_path) / "test.tsv").unlink()
        with pytest.raises(UserError, match=r"no file .*test\.tsv \(.* holds dev\.tsv, train\.tsv\)"):
            load_few_shot_splits(SPEC, str(tmp_path), 1, 0)

    def test_data_that_is_not_built_in_is_not_sent_to_the_hub(self):
        with pytest.raises(UserError, match="base_path says where your own data lies"):
            load_few_shot_splits(SPEC, "builtin/data", 16, 0)

    @pytest.mark.parametrize("split", ["train", "dev"])
    def test_a_class_absent_from_train_or_dev_is_an_error(self, tmp_path, split):
        write_split(tmp_path, {split: "text\tlabel\na\t0\nb\t0\n"})
        with pytest.raises(UserError, match=rf"{split}\.tsv: no example of class 1 \(' good'\)"):
            load_few_shot_splits(SPEC, str(tmp_path), 1, 0)

    def test_a_class_absent_from_test_is_none(self, tmp_path):
        write_split(tmp_path, {"test": "text\tlabel\na\t0\n"})
        assert load_few_shot_splits(SPEC, str(tmp_path), 1, 0).test == [Example("a", 0)]

    def test_other_counts_than_num_shots_are_a_warning(self, tmp_path, caplog):
        write_split(tmp_path, {"dev": TWO_CLASSES + "c\t1\n"})
        with caplog.at_level(logging.WARNING):
            load_few_shot_splits(SPEC, str(tmp_path), 1, 0)
        assert len(caplog.records) == 1
        assert "1 of class 0, 2 of class 1, where num_shots is 1" in caplog.text


class TestPrepareCommand:
    def test_names_what_differs_from_the_defaults_and_quotes_it(self, monkeypatch):
        monkeypatch.chdir(Path(__file__).resolve().parents[2])
        spec = DatasetSpec.from_mapping(MAPPING | {"hub_id": "someone/toy"})
        assert prepare_command(spec, "my data", 4, 2) == (
            "python scripts/prepare_fsc_data.py --dataset=toy '--base_path=my data' --dataset_seeds=2 --num_shots=4"
        )

    def test_asks_for_files_where_the_hub_has_none(self):
        assert prepare_command(SPEC, "data", 16, 0).endswith("--train_file=TRAIN.csv --test_file=TEST.csv")


@pytest.mark.parametrize(("name", "num_test"), [("sst-2", 1821), ("agnews", 7600)])
@pytest.mark.parametrize("seed", range(len(SPLIT_NAMES)))
def test_the_published_splits_load(name, num_test, seed):
    root = Path(__file__).resolve().parents[2]
    base = Path(os.environ.get("FSC_DATA", root.parent / "shared" / "data"))
    if not split_folder(base, name, 16, seed).is_dir():
        pytest.skip("the published splits are not here; FSC_DATA names the folder that holds 16-shot")
    spec = DatasetSpec.from_yaml(root / "configs" / "dataset" / f"{name}.yaml")
    splits = load_few_shot_splits(spec, str(base), 16, seed)
    assert len(splits.test) == num_test
    assert sum('""' in example.text for example in splits.test) == 0
    assert sum('"' in example.text for example in splits.test) == {"agnews": 281, "sst-2": 0}[name]
    for examples in (splits.train, splits.dev):
        labels = [example.label for example in examples]
        assert [labels.count(label) for label in range(len(spec.verbalizers))] == [16] * len(spec.verbalizers)
    assert not {example.text for example in splits.train} & {example.text for example in splits.dev}
