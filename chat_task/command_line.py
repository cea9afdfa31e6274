"""The command line of rewards for replies; see common/training/command_line.py."""

from collections.abc import Sequence

from chat_task.settings import ChatSettings
from common.training.command_line import ROOT, CommandLine
from common.training.console import as_typed

DEFAULTS = ROOT / "configs" / "chat_config.yaml"

COMMAND = CommandLine(
    ChatSettings,
    DEFAULTS,
    as_typed("python chat_task/run_chat.py"),
    "Learns token, segment or sequence rewards from ranked replies.",
)


def read_command(words: Sequence[str]) -> ChatSettings:
    """Checked settings from the words after the command; see `CommandLine.read`."""
    return COMMAND.read(words)
