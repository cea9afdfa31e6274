"""Tables as Markdown, whatever their cells hold."""

import re
from collections.abc import Sequence
from typing import Any

from common.errors import printable_text


def markdown_table(records: Sequence[dict[str, Any]]) -> str:
    """Records as a Markdown table; their texts cannot break out of a cell."""
    names = list(records[0])

    def line(cells: Sequence[Any]) -> str:
        return f"| {' | '.join(markdown_text(cell) for cell in cells)} |"

    return "\n".join(
        [line(names), f"| {' | '.join(['---'] * len(names))} |", *(line(list(record.values())) for record in records)]
    )


def markdown_text(text: Any) -> str:
    """A text as Markdown that is but text: no cell's end, mark-up, HTML, entity, or link, not even a bare address."""
    plain = " ".join(printable_text(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"[\\|`*\[\]~!$]", r"\\\g<0>", plain)
    plain = plain.replace("://", "&#58;//").replace("@", "&#64;")
    return re.sub(r"(?i)(www)\.", r"\1&#46;", plain)
