"""From where a run starts: nothing, a checkpoint in its folder, one of another run, or the end of the run it extends.

An extension works in a folder beside the complete run's, which stays as it is until the longer one is whole and takes
its place.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.training.checkpoint import latest_checkpoint
from common.training.files import replace_folder
from common.training.run_files import read_config, read_results
from common.training.run_folder import RunFolder, open_run_folder
from common.training.run_options import RunOptions

# What a run that goes on from a checkpoint of another folder takes over: figures so far, and what is not written again.
TAKEN_OVER = ("metrics.jsonl", "best_policy", "reward_model", "reward_report.html")


@dataclass(frozen=True)
class Origin:
    """From where a run starts.

    Attributes:
        folder: where it writes until it is whole.
        checkpoint: from which it goes on, or None.
        complete: its folder holds the whole run, and it is not to be replaced.
    """

    folder: Path
    checkpoint: Path | None = None
    complete: bool = False

    @property
    def run(self) -> RunFolder | None:
        """The run that wrote the checkpoint; None where the checkpoint lies in no run's folder."""
        if self.checkpoint is None:
            return None
        run = RunFolder(self.checkpoint.absolute().parent.parent)
        return run if run.config.is_file() and run.checkpoints == self.checkpoint.absolute().parent else None

    @property
    def is_elsewhere(self) -> bool:
        """Whether the checkpoint is none of the folder's own."""
        return self.checkpoint is not None and (self.run is None or self.run.path != self.folder.absolute())

    def take_over(self) -> None:
        """Copy what the run needs of the one that wrote the checkpoint, which lies in another folder."""
        if self.run is None:
            return
        for name in TAKEN_OVER:
            there = self.run.path / name
            if there.is_dir():
                shutil.copytree(there, self.folder / name)
            elif there.is_file():
                shutil.copyfile(there, self.folder / name)

    def plain(self) -> list[Any]:
        """As JSON, for other processes."""
        return [str(self.folder), self.checkpoint and str(self.checkpoint), self.complete]

    @classmethod
    def of(cls, plain: list[Any]) -> "Origin":
        """Undo `plain`."""
        folder, checkpoint, complete = plain
        return cls(Path(folder), checkpoint and Path(checkpoint), complete)


def find_origin(options: RunOptions) -> Origin:
    """See what there is to start from.

    Raises:
        UserError: the folder is occupied and nothing says what is to become of it, or there is nothing to extend.
    """
    if options.extend:
        return _end_to_extend(options)
    folder = open_run_folder(options.folder, overwrite=options.overwrite, resume=options.resume != "none")
    given = Path(options.checkpoint_path) if options.checkpoint_path else None
    return Origin(options.folder, folder.checkpoint or given, folder.is_complete and not options.overwrite)


def extension_folder(folder: Path) -> Path:
    """Where the run in `folder` is extended."""
    return folder.with_name(f".{folder.name}.extended")


def _end_to_extend(options: RunOptions) -> Origin:
    complete, extended = RunFolder(options.folder), RunFolder(extension_folder(options.folder))
    if extended.is_complete:  # a kill came before it took its place
        replace_folder(extended.path, complete.path)
    if not complete.is_complete:
        raise UserError(
            f"extend: there is no complete run in '{complete.path}'; resume=auto goes on with a partial one"
        )
    length, asked = options.length, options.all[options.length]
    done = read_config(complete.config).options.get(length)
    if not isinstance(done, int | float):
        raise UserError(f"'{complete.config}' is not what this task's runs write: it has no {length}")
    if asked <= done:
        raise UserError(f"extend: the run in '{complete.path}' has {length}={done:g}; {length}={asked:g} is no more")
    steps = read_results(complete.results).get("policy_steps")
    if length.endswith("steps") and isinstance(steps, int) and steps < done:
        raise UserError(f"extend: the run in '{complete.path}' ended by itself after {steps} of {done:g} steps")
    checkpoint = latest_checkpoint(extended.checkpoints) or latest_checkpoint(complete.checkpoints)
    if checkpoint is None:
        raise UserError(
            f"extend: the run in '{complete.path}' kept no checkpoint (checkpoint_minutes=0 and checkpoint_steps=0)"
        )
    return Origin(extended.path, checkpoint)
