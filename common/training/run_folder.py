"""The folder of a run: opened fresh or for going on, never overwritten unasked; `results.json` comes last."""

import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.training.checkpoint import checkpoint_folders, latest_checkpoint
from common.training.files import write_json_atomic, write_text_atomic
from common.training.inputs import Fingerprint
from common.training.run_files import read_config

logger = logging.getLogger(__name__)

COMPLETE = "; the run is complete, overwrite=true replaces it"

PACKAGES = ("token-guidance", "torch", "transformers", "tokenizers", "numpy", "safetensors", "hydra-core")


class RunFolder:
    """Paths of one run's files.

    Attributes:
        path: the folder.
        checkpoint: the checkpoint from which this run goes on, or None for a fresh run.
    """

    def __init__(self, path: Path, checkpoint: Path | None = None):
        self.path = path
        self.checkpoint = checkpoint
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.report = path / "report.html"
        self.predictions = path / "predictions.jsonl"
        self.policy = path / "policy"
        self.reward_model = path / "reward_model"
        self.checkpoints = path / "checkpoints"

    @property
    def is_complete(self) -> bool:
        return self.results.is_file()

    def prepare(self) -> None:
        """Make the folder. What it held is removed, unless this run goes on from a checkpoint in it.

        Raises:
            UserError: it cannot be written.
        """
        try:
            if self.checkpoint is None and self.path.exists():
                self.results.unlink(missing_ok=True)  # first: without it the folder no longer claims to be whole
                for entry in sorted(self.path.iterdir(), key=lambda entry: entry == self.config):
                    if entry.is_dir() and not entry.is_symlink():
                        shutil.rmtree(entry)
                    else:
                        entry.unlink()  # config.yaml last: a folder half emptied is still known as a run's
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output folder '{self.path}' cannot be written: {error.strerror}") from None

    def write_config(
        self, options: Mapping[str, Any], command: list[str], inputs: Mapping[str, Fingerprint] | None = None
    ) -> None:
        """Write everything that is needed to run it again, and the fingerprints of its inputs."""
        content = {"command": command, "options": dict(options), "inputs": inputs or {}, "environment": environment()}
        write_text_atomic(self.config, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``: the mark of a whole run."""
        write_json_atomic(self.results, results)

    def checkpoint_folder(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def drop_old_checkpoints(self, keep: int) -> None:
        """Keep the newest `keep` checkpoints."""
        for old in checkpoint_folders(self.checkpoints)[:-keep]:
            with suppress(FileNotFoundError):  # somebody else removes it too
                shutil.rmtree(old)


def open_run_folder(path: Path, *, overwrite: bool = False, resume: bool = False) -> RunFolder:
    """Decide what becomes of a run's folder. Nothing is written or removed before `RunFolder.prepare`.

    Args:
        path: the folder.
        overwrite: empty it if it holds a run.
        resume: go on from its newest checkpoint if it has one; a run without one starts again.

    Raises:
        UserError: it holds a run and neither was asked for, it holds something else, or it cannot be written.
    """
    folder = RunFolder(path)
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):  # found now and not after the models are loaded
        raise UserError(f"output folder '{path}' cannot be written: '{there}' is not writable")
    try:
        # What was being written when the disk became read-only, or at a kill, is nothing.
        occupied = path.exists() and (not path.is_dir() or any(p.suffix != ".partial" for p in path.iterdir()))
        if not occupied:
            return folder
        if not _holds_run(folder):
            raise UserError(f"output folder '{path}' is not empty and holds no run; choose another")
    except OSError as error:
        raise UserError(f"output folder '{path}' cannot be read: {error.strerror}") from None
    if resume:
        folder.checkpoint = latest_checkpoint(folder.checkpoints)
    elif not overwrite:
        raise UserError(
            f"output folder '{path}' already holds a {'complete' if folder.is_complete else 'partial'} run; "
            "go on with it (resume=auto), replace it (overwrite=true) or choose another folder"
        )
    return folder


@contextmanager
def folders_made(folder: Path) -> Iterator[None]:
    """Make a folder with its parents; those of them that are empty at the end go again.

    Raises:
        UserError: it cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder '{folder}' cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, as it should be
            for place in missing:
                place.rmdir()


@contextmanager
def start_undone(folder: RunFolder) -> Iterator[None]:
    """Remove the run's folder, made in this block, where the block ends in an error before anything was learnt."""
    was_there = folder.path.exists()
    try:
        yield
    except Exception:
        learnt = folder.checkpoints.exists() or (folder.metrics.exists() and folder.metrics.stat().st_size)
        if not was_there and not learnt:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _holds_run(folder: RunFolder) -> bool:
    """Whether `config.yaml` is one that a run wrote: a folder of something else must never be emptied."""
    if not folder.config.is_file():
        return False
    try:
        read_config(folder.config)
    except UserError:
        return False
    return True


def check_same_options(
    before: Mapping[str, Any], now: Mapping[str, Any], neutral: Collection[str], where: Path, advice: str = ""
) -> None:
    """Refuse to go on with options that would change the result; `advice` says what can be done.

    Raises:
        UserError: naming each option that differs, with both values.
    """
    changed = changed_options(before, now, neutral)
    if changed:
        raise UserError(f"cannot go on from '{where}' with other options: {changed}{advice}")


def check_resumable(changes: str, where: Path, advice: str | None) -> bool:
    """Refuse to go on from `where` with `changes`; `advice` says what can be done, None that they are wanted.

    Returns:
        Whether there are none. Where there are, nothing that was remembered of the data or of a model holds.

    Raises:
        UserError: naming what differs.
    """
    if changes and advice is not None:
        raise UserError(f"cannot go on from '{where}' with {changes}{advice}")
    if changes:
        logger.warning("going on from '%s' with %s", where, changes)
    return not changes


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any], neutral: Collection[str]) -> str:
    """The options that differ, each with both values, as text; the neutral ones, which change no result, left out."""
    keys = [key for key in sorted(before.keys() | now.keys()) if key not in neutral]
    return "; ".join(
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)
    )


def environment() -> dict[str, Any]:
    """Versions, platform and git commit of this run."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "packages": versions,
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """Commit of the checkout that this file belongs to, with ``-dirty`` where files differ; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
