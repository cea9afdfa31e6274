"""Few-shot classification data: what a data set is, its templates, and its splits as tab-separated files.

A file holds a header and one example a row; `common.training.data_files.read_tsv` says which of two dialects it is
written in.
"""

import dataclasses
import logging
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.builtin import PREFIX, resolve
from common.errors import UserError, nearest
from common.training.console import ROOT, as_typed
from common.training.data_files import read_tsv

logger = logging.getLogger(__name__)

SPLIT_NAMES = (100, 13, 21, 42, 87)
"""Names of the published splits, by dataset seed 0..4."""

TEXT_COLUMNS = ("text", "sentence")
LABEL_COLUMN = "label"
SPLITS = ("train", "dev", "test")

_SLOTS = ("{sentence}", "{prompt}", "<mask>")
_SLOT = re.compile("|".join(map(re.escape, _SLOTS)))
_WORD_IN_BRACES = re.compile(r"\{\s*[A-Za-z_]*\s*\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: its classes, its templates and, for building splits, where to find it on the model hub.

    Attributes:
        name: folder of its splits.
        verbalizers: the word that stands for each class, by label; a leading blank belongs to the word.
        masked_template: text for a masked task LM, with ``{sentence}``, ``{prompt}`` and ``<mask>``; empty: none.
        left_to_right_template: text for a left-to-right task LM, with ``{sentence}`` and ``{prompt}``; empty: none.
        hub_id: the data set's id on the model hub; None where it is not there.
        hub_config: its configuration there.
        hub_revision: its branch or commit there; None is the main branch.
        hub_text_columns: columns that make up the text, joined by a blank.
        hub_label_column: column of the label.
        hub_train_split: split from which train and dev are drawn.
        hub_test_split: split that becomes test.
        hub_labels: the values of the label column in the order of the verbalizers; None is 0, 1, 2, ...
    """

    name: str
    verbalizers: tuple[str, ...]
    masked_template: str = ""
    left_to_right_template: str = ""
    hub_id: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    hub_text_columns: tuple[str, ...] = ("text",)
    hub_label_column: str = "label"
    hub_train_split: str = "train"
    hub_test_split: str = "test"
    hub_labels: tuple[int | str, ...] | None = None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], task_lm: str = "") -> "DatasetSpec":
        """Make a data set from the content of its YAML file.

        ``verbalizers_by_task_lm``, where it is given, holds those of single task LMs, by their name.

        Raises:
            UserError: an unknown or missing key, a value of the wrong type, fewer than two verbalizers, two that are
                equal, no template or one without its slots.
        """
        where = f"dataset '{mapping['name']}'" if "name" in mapping else "dataset"
        mapping = dict(mapping)
        by_task_lm = mapping.pop("verbalizers_by_task_lm", {})
        if not isinstance(by_task_lm, Mapping):
            raise UserError(f"{where}: verbalizers_by_task_lm: {by_task_lm!r} is not a mapping of task LMs to words")
        if task_lm in by_task_lm:
            mapping["verbalizers"] = by_task_lm[task_lm]
        elif by_task_lm and task_lm and Path(task_lm).expanduser().is_dir():
            logger.warning(
                "%s has verbalizers of its own for %s; the folder '%s' is none of these names and gets %s, unless "
                "dataset.verbalizers says otherwise", where, ", ".join(by_task_lm), task_lm, mapping.get("verbalizers"),
            )  # fmt: skip
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in mapping:
            if key not in fields:
                raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), fields)} (keys: {', '.join(fields)})")
        for key, field in fields.items():
            if key not in mapping and field.default is dataclasses.MISSING:
                raise UserError(f"{where}: the key '{key}' is missing")
        spec = cls(**{key: _checked_value(f"{where}: {key}", key, value) for key, value in mapping.items()})
        if not _NAME.fullmatch(spec.name):
            raise UserError(f"{where}: name: it names a folder; only letters, digits, '.', '_' and '-' are allowed")
        if len(spec.verbalizers) < 2:
            raise UserError(f"{where}: verbalizers: at least two classes are needed")
        _check_distinct(f"{where}: verbalizers", spec.verbalizers)
        if spec.hub_labels is not None:
            if len(spec.hub_labels) != len(spec.verbalizers):
                raise UserError(
                    f"{where}: hub_labels: {len(spec.hub_labels)} values for {len(spec.verbalizers)} verbalizers"
                )
            _check_distinct(f"{where}: hub_labels", spec.hub_labels)
        if not spec.masked_template and not spec.left_to_right_template:
            raise UserError(f"{where}: masked_template or left_to_right_template is needed, by the kind of task LM")
        if spec.masked_template:
            _check_template(f"{where}: masked_template", spec.masked_template, _SLOTS)
        if spec.left_to_right_template:
            _check_template(f"{where}: left_to_right_template", spec.left_to_right_template, _SLOTS[:2])
        return spec

    @classmethod
    def from_yaml(cls, path: str | Path) -> "DatasetSpec":
        """Read a data set's YAML file, such as one of configs/dataset.

        Raises:
            UserError: the file cannot be read, or see `from_mapping`.
        """
        try:
            content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        except AssertionError:  # OmegaConf's, of a file that holds a text in quotes
            content = None
        except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise UserError(f"{path}: not a mapping of keys to values")
        return cls.from_mapping({str(key): value for key, value in content.items()})


@dataclass(frozen=True)
class Example:
    """A text, as it stands in its file, and the index of its class."""

    text: str
    label: int


@dataclass(frozen=True)
class FewShotSplits:
    """The examples of one dataset seed, none with a blank text.

    Attributes:
        left_out: number of rows with a blank text, by split.
    """

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)


def fill_template(template: str, sentence: str, prompt: str, mask_token: str | None) -> str:
    """Put a sentence, a prompt and the task LM's mask token into the slots of a template.

    One pass: what the sentence or the prompt contains is data, also where it spells a slot. Neither is stripped.

    Args:
        template: text with ``{sentence}``, ``{prompt}`` and, for a masked task LM, ``<mask>``.
        mask_token: how the task LM's tokenizer spells its mask; None for a left-to-right one.

    Raises:
        ValueError: the template has a mask and `mask_token` is None.

    >>> fill_template("{sentence} {prompt} <mask> .", "a {prompt}", "Grade", "[MASK]")
    'a {prompt} Grade [MASK] .'
    """
    fillings = {"{sentence}": sentence, "{prompt}": prompt}
    if mask_token is not None:
        fillings["<mask>"] = mask_token
    elif "<mask>" in template:
        raise ValueError(f"mask_token: needed for the template {template!r}")
    return _SLOT.sub(lambda slot: fillings[slot[0]], template)


def split_folder(base_path: str | Path, name: str, num_shots: int, dataset_seed: int) -> Path:
    """The folder of one split: ``{base_path}/{num_shots}-shot/{name}/{num_shots}-{split}``."""
    return Path(base_path) / f"{num_shots}-shot" / name / f"{num_shots}-{SPLIT_NAMES[dataset_seed]}"


def find_split(base_path: str, name: str, num_shots: int, dataset_seed: int) -> Path:
    """The folder of one split below `base_path`: from the current folder or, if it is not there, from the project's."""
    folder = split_folder(resolve(base_path), name, num_shots, dataset_seed)
    return folder if folder.is_dir() or not (ROOT / folder).is_dir() else ROOT / folder


def load_few_shot_splits(
    spec: DatasetSpec, base_path: str, num_shots: int, dataset_seed: int, tsv_quoting: str = "auto"
) -> FewShotSplits:
    """Read train, dev and test of a data set.

    Args:
        spec: the data set.
        base_path: folder that holds ``16-shot``, see `find_split`, or ``builtin/data``.
        num_shots: examples a class in train and in dev.
        dataset_seed: 0..4, the splits named 100, 13, 21, 42 and 87.
        tsv_quoting: see `common.training.data_files.read_tsv`.

    Raises:
        UserError: a missing folder or file (with the command that makes it), a file that is not in the format,
            a label that the data set lacks, or a class without examples in train or dev.
    """
    if isinstance(dataset_seed, bool) or dataset_seed not in range(len(SPLIT_NAMES)):
        raise UserError(f"dataset_seed: {dataset_seed} is not one of 0..{len(SPLIT_NAMES) - 1}")
    if num_shots < 1:
        raise UserError(f"num_shots: {num_shots} is out of range; it must be at least 1")
    folder = find_split(base_path, spec.name, num_shots, dataset_seed)
    _check_present(folder, spec, base_path, num_shots, dataset_seed)
    splits, left_out = {}, {}
    for split in SPLITS:
        path = folder / f"{split}.tsv"
        splits[split], left_out[split] = read_examples(path, len(spec.verbalizers), tsv_quoting)
    for split in ("train", "dev"):
        _check_classes(folder / f"{split}.tsv", splits[split], spec, num_shots)
    return FewShotSplits(**splits, left_out=left_out)


def read_examples(path: str | Path, num_classes: int, tsv_quoting: str = "auto") -> tuple[list[Example], int]:
    """Read a tab-separated file of examples: a text column ``text`` or ``sentence`` and an integer ``label``.

    Returns:
        The examples, and the number of rows that are left out because their text is blank.

    Raises:
        UserError: the file is not in the format, naming file and line.
    """
    header, rows = read_tsv(path, tsv_quoting)
    found = f"its columns are {', '.join(map(repr, header))}"
    texts = [name for name in TEXT_COLUMNS if name in header]
    if not texts:
        raise UserError(f"{path}: no column 'text' or 'sentence'; {found}")
    if len(texts) > 1:
        raise UserError(f"{path}: both a column 'text' and a column 'sentence'; keep the one that holds the text")
    if LABEL_COLUMN not in header:
        raise UserError(f"{path}: no column '{LABEL_COLUMN}'; {found}")
    text_at, label_at = header.index(texts[0]), header.index(LABEL_COLUMN)
    examples = []
    for line, row in rows:
        text, label = row[text_at], row[label_at]
        if not _INTEGER.fullmatch(label):
            raise UserError(f"{path}, line {line}: the label {_shown(label)} is not an integer")
        if not 0 <= int(label) < num_classes:
            raise UserError(
                f"{path}, line {line}: the label {label} is out of range; with {num_classes} verbalizers it must be "
                f"0..{num_classes - 1}"
            )
        if text.strip():
            examples.append(Example(text, int(label)))
    if not examples:
        what = f"all {len(rows)} rows have a blank text" if rows else "only a header"
        raise UserError(f"{path}: no examples, {what}")
    left_out = len(rows) - len(examples)
    if left_out:
        logger.warning("%s: %d of %d rows left out, text blank", path, left_out, len(rows))
    return examples, left_out


def prepare_command(spec: DatasetSpec, base_path: str, num_shots: int, dataset_seed: int) -> str:
    """The command that builds a split, to be typed in the current working directory."""
    words = [f"--dataset={spec.name}", f"--base_path={base_path}", f"--dataset_seeds={dataset_seed}"]
    if num_shots != 16:
        words.append(f"--num_shots={num_shots}")
    if spec.hub_id is None:
        words += ["--train_file=TRAIN.csv", "--test_file=TEST.csv"]
    return f"{as_typed('python scripts/prepare_fsc_data.py')} {shlex.join(words)}"


def _check_present(folder: Path, spec: DatasetSpec, base_path: str, num_shots: int, dataset_seed: int) -> None:
    missing = [f"{split}.tsv" for split in SPLITS if not (folder / f"{split}.tsv").is_file()]
    if not missing:
        return
    command = prepare_command(spec, base_path, num_shots, dataset_seed)
    root = Path(resolve(base_path))
    if folder.is_dir():
        what = f"no file {folder / missing[0]} ({_content(folder)})"
        remedy = f"add it, or make all three files anew: {command} --overwrite"
    elif root.is_dir():
        nearest_folder = next(parent for parent in folder.parents if parent.is_dir())
        what, remedy = f"no folder {folder} ({_content(nearest_folder)})", f"this makes it: {command}"
    else:
        what, remedy = f"base_path: no folder {root.absolute()}", f"this makes it: {command}"
    if base_path.startswith(PREFIX):
        remedy = "base_path says where your own data lies"
    raise UserError(f"{what}; {remedy}")


def _content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{folder} holds {shown or 'nothing'}"


def _check_classes(path: Path, examples: Sequence[Example], spec: DatasetSpec, num_shots: int) -> None:
    counts = Counter(example.label for example in examples)
    for label, verbalizer in enumerate(spec.verbalizers):
        if not counts[label]:
            raise UserError(f"{path}: no example of class {label} ('{verbalizer}')")
    if any(count != num_shots for count in counts.values()):
        shown = ", ".join(f"{counts[label]} of class {label}" for label in range(len(spec.verbalizers)))
        logger.warning("%s: %s, where num_shots is %d", path, shown, num_shots)


def _checked_value(where: str, key: str, value: Any) -> Any:
    """`value` in the type of the field `key`."""
    if key in ("verbalizers", "hub_text_columns", "hub_labels"):
        if value is None and key == "hub_labels":
            return None
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{where}: {value!r} is not a list")
        kinds = (str, int) if key == "hub_labels" else (str,)
        for item in value:
            if not isinstance(item, kinds) or isinstance(item, bool):
                raise UserError(f"{where}: {item!r} is not text; put it in quotes")
            if isinstance(item, str) and not item.strip():
                raise UserError(f"{where}: {item!r} is blank")
        if not value:
            raise UserError(f"{where}: the list is empty")
        return tuple(value)
    if value is None and key in ("hub_id", "hub_config", "hub_revision"):
        return None
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {value!r} is not text" + ("; put it in quotes" if value is not None else ""))
    return value


def _check_distinct(where: str, values: Sequence[int | str]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise UserError(f"{where}: {value!r} stands for {count} classes")


def _check_template(where: str, template: str, slots: Sequence[str]) -> None:
    allowed = " ".join(slots)
    for word in _WORD_IN_BRACES.findall(template):
        if word not in slots:
            raise UserError(f"{where}: unknown slot '{word}'{nearest(word, slots)} (slots: {allowed})")
    for slot in _SLOTS:
        wanted = int(slot in slots)
        if template.count(slot) != wanted:
            problem = "is missing" if wanted and slot not in template else "comes more than once"
            if not wanted:
                problem = "has no place here"
            raise UserError(f"{where}: the slot '{slot}' {problem} in '{template}' (slots: {allowed})")


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 40 else cell[:37] + "...")
