"""The command line of summarization; see common/training/command_line.py."""

from collections.abc import Sequence

from common.training.command_line import ROOT, CommandLine, Option
from common.training.console import as_typed
from sum_task.settings import SummarizationSettings

DEFAULTS = ROOT / "configs" / "sum_config.yaml"

COMMAND = CommandLine(
    SummarizationSettings,
    DEFAULTS,
    as_typed("python sum_task/run_sum.py"),
    "Trains a summarizer with learned token-level guidance and tests it.",
)


def read_command(words: Sequence[str]) -> SummarizationSettings:
    """Checked settings from the words after the command; see `CommandLine.read`."""
    return COMMAND.read(words)


def explained_options() -> tuple[Option, ...]:
    """Every option with its group and explanation."""
    return COMMAND.explained_options
