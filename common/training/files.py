"""Writing files so that a reader never sees half of one.

A file or folder is written under a temporary name beside its place, flushed to the disk and then renamed. A kill at
any instant leaves the earlier content whole, and a full disk or a folder that cannot be written ends in one clear line.
"""

import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError

from common.errors import UserError

_PARTIAL = ".partial"
_REPLACED = ".replaced"


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that every parser reads: numbers that are not finite become null, NumPy and torch scalars plain.

    Raises:
        TypeError: for a value that has no JSON form.
    """
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all; line ends are kept as they are.

    Lone surrogates, which UTF-8 cannot hold, are written as backslash escapes (inside a JSON string, a valid escape).

    Raises:
        UserError: the disk is full, or the folder is missing or cannot be written.
    """
    write_bytes_atomic(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes_atomic(path: str | Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all.

    Raises:
        UserError: the disk is full, or the folder is missing or cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    with _writing(path):
        try:
            with open(partial, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all. See `json_text` and `write_text_atomic`."""
    write_text_atomic(path, json_text(value, indent=2) + "\n")


def write_jsonl_atomic(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line to `path`, whole or not at all. See `json_text` and `write_text_atomic`."""
    write_text_atomic(path, "".join(json_text(row) + "\n" for row in rows))


@contextmanager
def write_folder_atomic(path: str | Path) -> Iterator[Path]:
    """Fill the folder that is yielded; it takes the place of `path`, whole, when the block ends without an error.

    An existing folder at `path` is replaced. File systems cannot swap two folders in one step, so for an instant the
    old one stands beside its place under a hidden name; `restore_folder`, which is also called here first, puts it
    back after a kill in that instant.

    One process at a time may write a given folder.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    path = Path(path)
    with _writing(path):
        restore_folder(path)
        partial = path.with_name(f".{path.name}{_PARTIAL}")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            yield partial
            for folder, _, names in os.walk(partial):
                for name in names:
                    _sync_file(Path(folder, name))
                _sync_folder(Path(folder))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        replace_folder(partial, path)


def replace_folder(new: str | Path, path: str | Path) -> None:
    """Let the folder `new`, which lies beside `path`, take its place. See `write_folder_atomic`.

    Raises:
        UserError: the place cannot be written.
    """
    path = Path(path)
    replaced = _replaced(path)
    with _writing(path):
        if path.exists():
            os.rename(path, replaced)
        os.rename(new, path)
        _sync_folder(path.parent)
        if replaced.exists():
            shutil.rmtree(replaced)


def is_being_replaced(path: str | Path) -> bool:
    """Whether a kill, or another process at this instant, left the folder `path` half replaced."""
    return _replaced(Path(path)).exists()


def restore_folder(path: str | Path) -> None:
    """Undo what a kill in the middle of replacing the folder `path` left: afterwards it is the old or the new one."""
    path = Path(path)
    replaced = _replaced(path)
    if not replaced.exists():
        return
    with _writing(path):
        if path.exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, path)


class JsonLinesWriter:
    """Appends JSON objects to a file, one a line, each handed to the system at once.

    A last line that a kill tore in two is removed when the file is opened.

    Raises:
        UserError: the file cannot be written or the disk is full, also from the methods.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with _writing(self.path):
            self._drop_torn_line()
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open for the life of the writer

    def write(self, row: Any) -> None:
        """Append one object. A line goes out in one unbuffered write, so that a kill tears at most the last one."""
        line = (json_text(row) + "\n").encode("utf-8", errors="backslashreplace")
        with _writing(self.path):
            written = self._file.write(line)
            while written < len(line):
                written += self._file.write(line[written:])

    def sync(self) -> None:
        """Wait until every line so far is on the disk, before something else (a checkpoint) relies on it."""
        with _writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()

    def __enter__(self) -> "JsonLinesWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop_torn_line(self) -> None:
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)


def check_output(name: str, path: str | Path, *inputs: str | Path) -> None:
    """Check, before any work is done, that a file can be written and replaces none that is read.

    Args:
        name: of the option, for messages.
        path: what is to be written.
        inputs: files that are read.

    Raises:
        UserError: it is one of `inputs`, a folder, or cannot be written.
    """
    path = Path(path)
    for given in inputs:
        if path.exists() and Path(given).exists() and path.samefile(given):
            raise UserError(f"{name}: '{path}' is also read; write to another file")
    if path.is_dir():
        raise UserError(f"{name}: '{path}' is a folder")
    with _writing(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}{_REPLACED}")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into the line a user reads."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except SafetensorError as error:  # the form in which safetensors reports a full disk
        raise UserError(f"cannot write {path}: {error}") from error


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable; some network file systems do not offer this for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return _plain(value.item())
    raise TypeError(f"{type(value).__name__} has no JSON form")
