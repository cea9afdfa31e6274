"""Build few-shot splits of a data set: balanced train and dev, a test file, for each dataset seed.

    python scripts/prepare_fsc_data.py --dataset=agnews
    python scripts/prepare_fsc_data.py --dataset=my_dataset.yaml --train_file=train.csv --test_file=test.csv

The first form reads the data set from the model hub, the second from your own csv, tsv, json, jsonl or parquet
files. They write {base_path}/16-shot/{dataset}/16-{100,13,21,42,87}/{train,dev,test}.tsv,
where run_fsc.py looks for them.
"""

from common.training.program import run_command

import argparse
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError, nearest
from common.training.console import Parser
from common.training.data_files import FILE_TYPES, TSV_QUOTING, is_table, read_rows, tsv_text
from common.training.files import write_folder_atomic, write_text_atomic
from common.training.ranges import COUNT, INDEX
from prompt_task.few_shot_data import SPLIT_NAMES, DatasetSpec, Example, split_folder

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "dataset"
FORBIDDEN = re.compile("[\t\r\n\ud800-\udfff]+")
"""What would break an example's line in two; the last are halves of characters, which UTF-8 cannot hold."""

COLUMN_HINT = "--text_column and --label_column say which to read"


@dataclass(frozen=True)
class Table:
    """Labels and texts of a source; of a large one few texts are ever read.

    Attributes:
        source: what messages call it.
        labels: as the source spells them, one a row.
        read: the text of a row, as it stands.
        changed: rows whose text had to be changed for the format.
    """

    source: str
    labels: Sequence[Any]
    read: Callable[[int], str]
    changed: set[int] = field(default_factory=set)

    def text(self, row: int) -> str:
        """The text of a row, without what the format cannot hold."""
        text = self.read(row)
        clean = FORBIDDEN.sub(" ", text)
        if clean != text:
            self.changed.add(row)
        return clean


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line, build every split that it asks for and say where they are."""
    options = read_options(words)
    spec = find_spec(options)
    check_files(options, spec)
    folders = [split_folder(options.base_path, spec.name, options.num_shots, seed) for seed in options.dataset_seeds]
    for folder in folders:
        if folder.exists() and not options.overwrite:
            raise UserError(f"{folder} is already there; --overwrite replaces it")

    if options.train_file is not None:
        train, test = (read_file(path, spec, options.tsv_quoting) for path in (options.train_file, options.test_file))
    else:
        train, test = read_hub(spec, spec.hub_train_split), read_hub(spec, spec.hub_test_split)
    train_classes, test_classes = classes_of(train, spec), classes_of(test, spec)
    examples, empty = all_examples(test, test_classes)
    if not examples:
        raise UserError(f"{test.source}: there is no text in it")
    test_texts = {example.text for example in examples}
    if options.max_test is not None and options.max_test < len(examples):
        kept = random.Random(0).sample(range(len(examples)), options.max_test)
        examples = [examples[i] for i in sorted(kept)]

    for folder, seed in zip(folders, options.dataset_seeds, strict=True):
        generator = random.Random(SPLIT_NAMES[seed])
        few = draw(train, train_classes, spec, options.num_shots, test_texts, generator)
        write_split(folder, *few, examples)
        print(f"{folder}: train and dev {options.num_shots} of each of {len(spec.verbalizers)} classes")

    by_class = Counter(example.label for example in examples)
    shown = ", ".join(f"{by_class[label]} {verbalizer.strip()}" for label, verbalizer in enumerate(spec.verbalizers))
    print(f"test, the same in each: {len(examples)} examples ({shown}) of {test.source}")
    changed = len(train.changed) + len(test.changed)
    if changed:
        print(f"what breaks a line (tabs, line breaks) became a blank in {changed} texts")
    if empty:
        print(f"{empty} rows without text were left out of test")


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line and check each option by itself."""
    own = Parser("scripts/prepare_fsc_data.py", __doc__)
    add = own.add_argument
    add("--dataset", required=True, help="a file of configs/dataset, such as agnews, or the path of a YAML of your own")
    add("--base_path", default="./data", help="folder below which the splits go (default: %(default)s)")
    add("--num_shots", type=COUNT, default=16, help="examples a class in train and in dev (default: %(default)s)")
    add(
        "--dataset_seeds", type=INDEX, nargs="+", default=list(range(len(SPLIT_NAMES))), help="0..4 (default: all five)"
    )
    add(
        "--max_test", type=COUNT, help="at most so many test examples, drawn at random, the same for every dataset seed"
    )
    add("--train_file", help="file of your own from which train and dev are drawn: csv, tsv, json, jsonl or parquet")
    add("--test_file", help="file of your own that becomes test")
    add(
        "--tsv_quoting",
        choices=TSV_QUOTING,
        default="auto",
        help="are cells of tsv files quoted? (%(default)s)",
    )
    add("--text_column", nargs="+", help="column of the text, or several to be joined (default: the data set's)")
    add("--label_column", help="column of the label (default: the data set's)")
    add("--labels", nargs="+", help="values of the label column in the verbalizers' order (default: the data set's)")
    add("--overwrite", action="store_true", help="replace splits that are already there")
    options: argparse.Namespace = own.parse_args(words)
    if options.base_path.startswith("builtin/"):
        raise UserError(f"--base_path: '{options.base_path}' names what is shipped with the project; choose a folder")
    for seed in options.dataset_seeds:
        if seed not in range(len(SPLIT_NAMES)):
            raise UserError(f"--dataset_seeds: {seed} is not one of 0..{len(SPLIT_NAMES) - 1}")
    if len(set(options.dataset_seeds)) < len(options.dataset_seeds):
        raise UserError("--dataset_seeds: one of them comes twice")
    return options


def find_spec(options: argparse.Namespace) -> DatasetSpec:
    """The data set that the options name, with the columns and label values that they give."""
    dataset = options.dataset
    path = Path(dataset)
    if path.suffix not in (".yaml", ".yml"):
        known = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
        if dataset not in known:
            raise UserError(
                f"--dataset: there is no '{dataset}' in {CONFIGS}{nearest(dataset, known)} (there are: "
                f"{', '.join(known)}; one of your own is named by the path of its YAML file)"
            )
        path = CONFIGS / f"{dataset}.yaml"
    spec = DatasetSpec.from_yaml(path)
    given = {
        "hub_text_columns": options.text_column,
        "hub_label_column": options.label_column,
        "hub_labels": options.labels,
    }
    return DatasetSpec.from_mapping(asdict(spec) | {key: value for key, value in given.items() if value is not None})


def check_files(options: argparse.Namespace, spec: DatasetSpec) -> None:
    """Check where the data comes from before any of it is read."""
    if (options.train_file is None) != (options.test_file is None):
        raise UserError("--train_file and --test_file are given together or not at all")
    if options.train_file is None:
        if spec.hub_id is None:
            raise UserError(f"'{spec.name}' has no hub_id; give your own files with --train_file and --test_file")
        return
    for name in ("train_file", "test_file"):
        path = Path(getattr(options, name))
        if not is_table(path):
            raise UserError(f"--{name}: '{path}' must end with one of {' '.join(FILE_TYPES)}")


def read_file(path: str, spec: DatasetSpec, tsv_quoting: str) -> Table:
    """Read a file of rows, every cell as it stands."""
    labels, texts = [], []
    for where, row in read_rows(path, tsv_quoting):
        check_columns(where, row, spec)
        labels.append(row[spec.hub_label_column])
        texts.append(join_columns(where, row, spec.hub_text_columns))
    if not labels:
        raise UserError(f"{path}: no rows")
    return Table(path, labels, texts.__getitem__)


def check_columns(where: str, found: Collection[str], spec: DatasetSpec) -> None:
    """Check that the columns of text and label are among those found."""
    for column in (*spec.hub_text_columns, spec.hub_label_column):
        if column not in found:
            raise UserError(f"{where}: no column '{column}' (found: {', '.join(found)}); {COLUMN_HINT}")


def read_hub(spec: DatasetSpec, split: str) -> Table:
    """Load one split of the hub's data set; no code of the hub is run."""
    from datasets import ClassLabel, load_dataset  # slow to import, and not needed for local files
    from datasets.exceptions import DatasetsError

    source = f"{spec.hub_id} (split {split})"
    try:
        rows = load_dataset(spec.hub_id, spec.hub_config, revision=spec.hub_revision, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"cannot load {source} from the model hub: {reason}; --train_file and --test_file read files of your own"
        ) from None
    check_columns(source, rows.column_names, spec)
    labels = rows[spec.hub_label_column][:]
    feature = rows.features[spec.hub_label_column]
    if isinstance(feature, ClassLabel) and set(label_values(spec)) <= set(feature.names):
        labels = [feature.int2str(label) if label in range(feature.num_classes) else label for label in labels]
    return Table(source, labels, lambda row: join_columns(f"{source}, row {row + 1}", rows[row], spec.hub_text_columns))


def join_columns(where: str, row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """One column as it stands; several without outer blanks, joined by one; what is empty is left out."""
    cells = ["" if row[column] is None else row[column] for column in columns]
    for column, cell in zip(columns, cells, strict=True):
        if not isinstance(cell, str):
            raise UserError(f"{where}: column '{column}': {cell!r} is not text")
    return cells[0] if len(cells) == 1 else " ".join(cell.strip() for cell in cells if cell.strip())


def label_values(spec: DatasetSpec) -> list[str]:
    """How the label column spells each class."""
    return [str(value) for value in spec.hub_labels or range(len(spec.verbalizers))]


def classes_of(table: Table, spec: DatasetSpec) -> list[int]:
    """The class of each row."""
    values = label_values(spec)
    index = {value: label for label, value in enumerate(values)}
    classes = [index.get(str(value), -1) for value in table.labels]
    if -1 in classes:
        row = classes.index(-1)
        found = sorted({str(value) for value in table.labels})
        shown = ", ".join(found[:12]) + (", ..." if len(found) > 12 else "")
        classes_shown = ", ".join(map(repr, spec.verbalizers))
        raise UserError(
            f"{table.source}: the label '{table.labels[row]}' of row {row + 1} is not one of {', '.join(values)} "
            f"(found: {shown}); --labels says which values stand for {classes_shown}, in this order"
        )
    return classes


def all_examples(table: Table, classes: Sequence[int]) -> tuple[list[Example], int]:
    """Every row that has a text, in its order, and the number of those that have none."""
    examples = [Example(table.text(row), label) for row, label in enumerate(classes)]
    kept = [example for example in examples if example.text.strip()]
    return kept, len(examples) - len(kept)


def draw(
    table: Table,
    classes: Sequence[int],
    spec: DatasetSpec,
    num_shots: int,
    excluded: set[str],
    generator: random.Random,
) -> tuple[list[Example], list[Example]]:
    """Draw train and dev: `num_shots` a class each, no text twice and none of those excluded."""
    used = set(excluded)
    train: list[Example] = []
    dev: list[Example] = []
    for label, verbalizer in enumerate(spec.verbalizers):
        rows = [row for row, own in enumerate(classes) if own == label]
        generator.shuffle(rows)
        chosen: list[Example] = []
        for row in rows:
            text = table.text(row)
            if text.strip() and text not in used:
                used.add(text)
                chosen.append(Example(text, label))
            if len(chosen) == 2 * num_shots:
                break
        if len(chosen) < 2 * num_shots:
            raise UserError(
                f"{table.source}: class {label} ('{verbalizer}') has {len(chosen)} distinct texts that are not in "
                f"test; {num_shots} for train and {num_shots} for dev need {2 * num_shots}"
            )
        train += chosen[:num_shots]
        dev += chosen[num_shots:]
    return train, dev


def write_split(folder: Path, train: list[Example], dev: list[Example], test: list[Example]) -> None:
    """Write the three files; the folder appears whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder.parent}: {error.strerror}") from None
    with write_folder_atomic(folder) as partial:
        for name, examples in (("train", train), ("dev", dev), ("test", test)):
            rows = [("text", "label"), *((example.text, example.label) for example in examples)]
            write_text_atomic(partial / f"{name}.tsv", tsv_text(rows))


if __name__ == "__main__":
    run_command(main)
