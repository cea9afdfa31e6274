"""Articles and their summaries: data sets of the model hub, the shipped reports, or files of rows.

Rows whose article or summary is blank are left out and counted.
"""

import logging
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

from common.builtin import resolve
from common.errors import UserError, nearest
from common.training.data_files import FILE_TYPES, is_table, read_rows, shown_columns, text_cell

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
BUILTIN_DATA = {
    "builtin/data": {split: f"reports/{split}.jsonl" for split in SPLITS},
    # Noisy references to learn from, see scripts/make_noisy_references.py; clean ones to test on.
    "builtin/noisy-data": {
        "train": "noisy-reports/train.jsonl",
        "validation": "reports/validation.jsonl",
        "test": "reports/test.jsonl",
    },
}

HUB_IDS = {"xsum": "EdinburghNLP/xsum", "cnn_dailymail": "abisee/cnn_dailymail", "samsum": "knkarthick/samsum"}
"""Where the data sets lie that the hub once knew by a short name."""

HUB_CONFIGS = {"abisee/cnn_dailymail": "3.0.0"}

COLUMNS = {
    "xsum": ("document", "summary"),
    "cnn_dailymail": ("article", "highlights"),
    "samsum": ("dialogue", "summary"),
    "multi_news": ("document", "summary"),
    "big_patent": ("description", "abstract"),
    "billsum": ("text", "summary"),
    "orange_sum": ("text", "summary"),
}
"""Columns of article and summary by data set, without the part of its id before the slash."""

_USUAL_COLUMNS = tuple(dict.fromkeys((*COLUMNS.values(), ("article", "summary"), ("source", "reference"))))
_PARQUET_BRANCH = "refs/convert/parquet"
_EVALUATION_SEED = 0


def article_column(found: Collection[str]) -> str:
    """The column of articles among those found: ``source``, as runs write it, or a usual name."""
    names = dict.fromkeys(("source", *(text for text, _ in _USUAL_COLUMNS)))
    return next((name for name in names if name in found), "source")


class Row(NamedTuple):
    """An article and its human summary.

    Attributes:
        source, reference: the two texts.
        compared: what summaries of the article are compared with in place of `reference`; None: with that.
    """

    source: str
    reference: str
    compared: str | None = None

    @property
    def standard(self) -> str:
        """What the preference compares summaries of the article with."""
        return self.reference if self.compared is None else self.compared


@dataclass(frozen=True)
class Splits:
    """Rows of each split, none with a blank text; `test` can be empty.

    Attributes:
        left_out: number of rows with a blank article or summary, by split.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    left_out: dict[str, int]


def load_splits(
    *,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    text_column: str | None = None,
    summary_column: str | None = None,
    preference_column: str | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    max_predict_samples: int | None = None,
    seed: int = 0,
) -> Splits:
    """Load train, validation and test.

    Args:
        dataset_name: a data set of the model hub, a folder that `datasets.load_dataset` reads, or ``builtin/data``.
        dataset_config: the configuration of that data set; ``3.0.0`` for ``cnn_dailymail`` if none is given.
        train_file: a file that `common.training.data_files.read_rows` reads, instead of `dataset_name`.
        validation_file: needed beside `train_file`.
        test_file: optional.
        text_column: column of the article; by default that of the data set, or one of the usual names.
        summary_column: column of the summary, likewise.
        preference_column: column of train with what the preference compares summaries with; None: the summary.
        max_train_samples: at most so many rows of train, drawn with `seed`, in their order.
        max_eval_samples: at most so many rows of validation, the same for every `seed`.
        max_predict_samples: at most so many rows of test, the same for every `seed`.
        seed: which rows of train are drawn.

    Raises:
        UserError: no data or two kinds of it are named, something cannot be read, a column is missing or holds no text,
            or a split has no row with both texts.
    """
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    limits = {"train": max_train_samples, "validation": max_eval_samples, "test": max_predict_samples}
    if dataset_name is not None:
        given = [split for split in SPLITS if files[split] is not None]
        if given:
            raise UserError(f"dataset_name and {given[0]}_file are both given; choose one")
        builtin = dataset_name.startswith("builtin/")
        tables = _builtin_tables(dataset_name) if builtin else _hub_tables(dataset_name, dataset_config)
    else:
        tables = _file_tables(files)
    columns = _Columns(text_column, summary_column, dataset_name)

    rows: dict[str, Sequence[Row]] = {"test": ()}
    left_out = {}
    for split, table in tables.items():
        usable, count = table.usable_rows(columns, preference_column if split == "train" else None)
        left_out[split] = count - len(usable)
        if not usable:
            why = f"all {count} rows have a blank article or summary" if count else "there are no rows"
            raise UserError(f"{table.name}: nothing to work with, {why}")
        if left_out[split]:
            logger.warning("%s: %d of %d rows left out, article or summary blank", table.name, left_out[split], count)
        rows[split] = _draw(usable, limits[split], seed if split == "train" else _EVALUATION_SEED)
    return Splits(rows["train"], rows["validation"], rows["test"], left_out)


def load_rows(path: str, text_column: str | None = None, summary_column: str | None = None) -> list[Row]:
    """The rows of one csv, json or jsonl file that have both texts.

    Raises:
        UserError: see `load_splits`.
    """
    if Path(path).suffix.lower() not in FILE_TYPES:
        raise UserError(f"{path} is not a {', '.join(FILE_TYPES)} file")
    rows, count = _FileTable(Path(path).expanduser()).usable_rows(_Columns(text_column, summary_column, None))
    if not rows:
        raise UserError(f"{path}: nothing to work with among {count} rows")
    return list(rows)


class _Columns:
    """Which columns hold article and summary."""

    def __init__(self, text: str | None, summary: str | None, dataset_name: str | None) -> None:
        self._given = (text, summary)
        known = COLUMNS.get(dataset_name.rsplit("/", 1)[-1]) if dataset_name else None
        self._candidates = (known,) if known else _USUAL_COLUMNS
        if text is not None and text == summary:
            raise UserError(f"text_column and summary_column both name '{text}'")

    def find(self, where: str, found: Collection[str], compared: str | None) -> tuple[str, ...]:
        """The two columns among those found, and the third if one is asked for.

        Raises:
            UserError: one of them is not there.
        """
        if compared is None:
            return self._find(where, found)
        if compared not in found:
            raise UserError(
                f"{where}: preference_column: no column '{compared}'{nearest(compared, found)} ({shown_columns(found)})"
            )
        return (*self._find(where, found), compared)

    def _find(self, where: str, found: Collection[str]) -> tuple[str, str]:
        for flag, name in zip(("text_column", "summary_column"), self._given, strict=True):
            if name is not None and name not in found:
                raise UserError(f"{where}: {flag}: no column '{name}'{nearest(name, found)} ({shown_columns(found)})")
        for candidate in self._candidates:
            text, summary = (given or usual for given, usual in zip(self._given, candidate, strict=True))
            if text in found and summary in found and text != summary:
                return text, summary
        raise UserError(
            f"{where}: which columns hold article and summary? ({shown_columns(found)}); say it with text_column and "
            "summary_column"
        )


class _FileTable:
    """A local file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def usable_rows(self, columns: _Columns, compared: str | None = None) -> tuple[Sequence[Row], int]:
        """The rows that have both texts, and the number of all rows."""
        rows = []
        count = 0
        found: tuple[str, ...] | None = None
        for where, cells in read_rows(self._path):
            count += 1
            if found is None:
                found = columns.find(where, cells, compared)
            row = Row(*(text_cell(where, cells, column) for column in found))
            if row.source.strip() and row.reference.strip():
                rows.append(row)
        return rows, count


class _HubTable:
    """A split of a data set that lies on the disk in Arrow's format."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name = name
        self._dataset = dataset

    def usable_rows(self, columns: _Columns, compared: str | None = None) -> tuple[Sequence[Row], int]:
        """The rows that have both texts, read when they are asked for, and the number of all rows."""
        found = columns.find(self.name, self._dataset.column_names, compared)
        for column in found:
            kind = getattr(self._dataset.features[column], "dtype", None)
            if kind not in ("string", "large_string"):
                raise UserError(f"{self.name}: column '{column}' holds {kind or 'lists or objects'}, not text")
        texts = self._dataset.select_columns(list(found))
        usable = []
        count = 0
        for batch in texts.iter(batch_size=1000):
            for source, reference in zip(batch[found[0]], batch[found[1]], strict=True):
                if source and reference and source.strip() and reference.strip():
                    usable.append(count)
                count += 1
        return _LazyRows(texts, found, usable), count


class _LazyRows(Sequence[Row]):
    """Rows of a data set on the disk; a copy of it in memory would take gigabytes in each process."""

    def __init__(self, texts: Any, columns: tuple[str, ...], places: Sequence[int]) -> None:
        self._texts, self._columns, self._places = texts, columns, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        cells = self._texts[self._places[index]]
        return Row(*(cells[column] for column in self._columns))

    def take(self, places: Iterable[int]) -> "_LazyRows":
        """The rows at these places."""
        return _LazyRows(self._texts, self._columns, [self._places[place] for place in places])


def _draw(rows: Sequence[Row], limit: int | None, seed: int) -> Sequence[Row]:
    """At most `limit` of the rows, in their order."""
    if limit is None or limit >= len(rows):
        return rows
    places = sorted(random.Random(f"{seed} rows").sample(range(len(rows)), limit))
    return rows.take(places) if isinstance(rows, _LazyRows) else [rows[place] for place in places]


def _file_tables(files: Mapping[str, str | None]) -> dict[str, _FileTable]:
    for split in ("train", "validation"):
        if files[split] is None:
            raise UserError(f"no data for {split}: give dataset_name, or train_file and validation_file")
    paths = {split: Path(file).expanduser() for split, file in files.items() if file is not None}
    for split, path in paths.items():
        if not is_table(path):
            raise UserError(f"{split}_file: {path} is not a {', '.join(FILE_TYPES)} file")
    for split, path in paths.items():
        if not path.is_file():
            raise UserError(f"{split}_file: no file {path.absolute()}")
    return {split: _FileTable(path) for split, path in paths.items()}


def _builtin_tables(name: str) -> dict[str, _FileTable]:
    if name not in BUILTIN_DATA:
        raise UserError(f"dataset_name: '{name}' is not built in{nearest(name, BUILTIN_DATA)}")
    folder = Path(resolve("builtin/data"))
    return {split: _FileTable(folder / file) for split, file in BUILTIN_DATA[name].items()}


def _hub_tables(name: str, config: str | None) -> dict[str, _HubTable]:
    """The splits of a data set of the hub; no code of the hub is run."""
    from datasets import Dataset, DatasetDict, load_dataset  # slow to import, and not needed for local files
    from datasets.exceptions import DatasetsError

    hub_id = HUB_IDS.get(name, name)
    config = config or HUB_CONFIGS.get(hub_id)

    def load(revision: str | None) -> Any:
        try:
            return load_dataset(hub_id, config, revision=revision)
        except RuntimeError as error:
            # Where a data set still comes as a script, the hub keeps a copy of its rows in this branch.
            if revision is None and "scripts are no longer supported" in str(error):
                return load(_PARQUET_BRANCH)
            raise

    try:
        dataset = load(None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(
            f"dataset_name: cannot load {hub_id}: {reason}; train_file, validation_file and test_file read local files"
            f"{'' if name in COLUMNS else nearest(name, COLUMNS)}"
        ) from error
    if not isinstance(dataset, DatasetDict):
        raise UserError(f"dataset_name: {hub_id} has no splits")
    for split in ("train", "validation"):
        if split not in dataset:
            raise UserError(f"dataset_name: {hub_id} has no split '{split}' (found: {', '.join(map(str, dataset))})")
    tables: dict[str, Dataset] = {split: dataset[split] for split in SPLITS if split in dataset}
    return {split: _HubTable(f"{hub_id} (split {split})", table) for split, table in tables.items()}
