"""One self-contained HTML page about a run: headline figures, curves, tables and token rewards as colour.

The page holds no script and asks the network for nothing; a content security policy in it forbids both. Every text is
data: it is escaped, characters that do not print are made visible, and its writing direction stays inside its own
element, so that a sampled prompt can hold anything without changing the page.
"""

import csv
import io
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.errors import printable_text
from common.training.data_files import marked_cell
from common.training.files import write_text_atomic

TEMPLATE = "report_template.html.j2"

# A curve of more points than this is drawn as the mean of so many stretches, with their range behind it.
MAX_CURVE_POINTS = 160
MAX_TICK_LETTERS = 88  # that fit side by side below a chart
SHORT_CELL = 12  # characters that are kept on one line

NO_VALUE = "\N{EN DASH}"

# A sequence of at most so many tokens shows its rewards as figures under the tokens.
MAX_TOKENS_WITH_FIGURES = 16

TOKEN_LEVELS = 15
NUM_SERIES_COLORS = 6


@dataclass(frozen=True)
class TokenPalette:
    """Colours of the lowest, middle and highest token reward and of the text on all of them, as "#rrggbb"."""

    low: str
    middle: str
    high: str
    text: str

    def levels(self) -> list[str]:
        """`TOKEN_LEVELS` colours from low to high."""
        half = (TOKEN_LEVELS - 1) // 2
        down = [_mix(self.middle, self.low, (half - i) / half) for i in range(half)]
        return [*down, self.middle, *(_mix(self.middle, self.high, (i + 1) / half) for i in range(half))]


# Orange to blue is told apart with every common form of colour blindness; the text is readable on each level.
LIGHT_TOKENS = TokenPalette(low="#f0a04b", middle="#f4f2ee", high="#62b0e8", text="#16181d")
DARK_TOKENS = TokenPalette(low="#9a5411", middle="#2b2f37", high="#12679f", text="#f4f5f7")


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: its heading.
        ylabel: what the y axis shows, with its unit.
        series: points (x, y) by the name of the curve; points that are not finite are left out.
        vlines: x at which a new round of reward learning begins.
        note: a remark below the chart.
        xlabel: what the x axis shows.
    """

    title: str
    ylabel: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    vlines: Sequence[float] = ()
    note: str = ""
    xlabel: str = "step"


@dataclass(frozen=True)
class PointsPanel:
    """One chart of single values by group, such as the result of each seed by method, with the mean as a bar.

    Attributes:
        title: its heading.
        ylabel: what the y axis shows, with its unit.
        groups: values by the name of the group; values that are not finite are left out.
        note: a remark below the chart.
    """

    title: str
    ylabel: str
    groups: Mapping[str, Sequence[float]]
    note: str = ""


@dataclass(frozen=True)
class Fact:
    """A headline figure with a small line below it, such as its interval."""

    value: Any
    below: str = ""


@dataclass(frozen=True)
class TokenRewards:
    """One sequence with the learned reward of each of its tokens.

    Attributes:
        tokens: text of each token.
        rewards: one for each token.
        caption: what the sequence is.
        columns: figures or texts about the whole sequence, by name.
        advantages: of each token, where they are known: its reward less what is expected in its place.
        preferred: of each token, another one that the reward wrongly prefers in its place, or None.
    """

    tokens: Sequence[str]
    rewards: Sequence[float]
    caption: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    advantages: Sequence[float] | None = None
    preferred: Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        for name in ("rewards", "advantages", "preferred"):
            values = getattr(self, name)
            if values is not None and len(self.tokens) != len(values):
                raise ValueError(f"{name}: {len(values)} of them for {len(self.tokens)} tokens")


class Report:
    """Collects the sections of a page, in the order in which they are added, and writes it.

    Args:
        title: heading of the page.
        subtitle: one line below it.
        facts: headline figures, by name, shown large; a handful. Values or `Fact`s.
        notices: what a reader must know before believing the figures; each stands out below them.
    """

    def __init__(
        self,
        title: str,
        subtitle: str = "",
        facts: Mapping[str, Any] | None = None,
        notices: Sequence[str] = (),
    ) -> None:
        self._title = title
        self._subtitle = subtitle
        shown = {name: fact if isinstance(fact, Fact) else Fact(fact) for name, fact in (facts or {}).items()}
        self._facts = {name: {"value": _formatted(fact.value), "below": fact.below} for name, fact in shown.items()}
        self._notices = list(notices)
        self._sections: list[dict[str, Any]] = []

    def add_table(self, heading: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> None:
        """Add a table of one row a mapping. Columns stand in the order in which their names first occur.

        The numbers of a column get as many decimals each; None and numbers that are not finite show as a dash. The
        reader may sort by any column, and copy the table with all digits.
        """
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = [_column([row.get(name) for row in rows]) for name in names]
        self._add(
            "table", heading, note, names=names, columns=columns, num_rows=len(rows), number=len(self._sections),
            copied=_tab_separated(names, rows),
        )  # fmt: skip

    def add_details(self, heading: str, items: Mapping[str, Any], note: str = "") -> None:
        """Add names and values that most readers skip, such as the options of the run; folded at first."""
        self._add("details", heading, note, entries={name: _formatted(value) for name, value in items.items()})

    def add_curves(self, heading: str, panels: Sequence[Panel], note: str = "") -> None:
        """Add charts side by side. A panel without a point is left out, and so is a section without a panel."""
        charts: list[dict[str, Any]] = []
        for panel in panels:
            finite = {name: _finite(points) for name, points in panel.series.items()}
            curves = {name: points for name, points in finite.items() if points}
            if curves:
                prefix = f"chart-{len(self._sections)}-{len(charts)}-"
                charts.append(
                    {
                        "panel": panel,
                        "svg": _chart_svg(panel, curves, prefix),
                        "figures": {name: _figure(points[-1][1]) for name, points in curves.items()},
                        "figures_are": "last value",
                        "binned": any(len(points) > MAX_CURVE_POINTS for points in curves.values()),
                    }
                )
        if charts:
            self._add("curves", heading, note, charts=charts)

    def add_points(self, heading: str, panels: Sequence[PointsPanel], note: str = "") -> None:
        """Add charts of single values side by side. What is empty is left out, as by `add_curves`."""
        charts: list[dict[str, Any]] = []
        for panel in panels:
            finite = {
                name: [value for value in values if math.isfinite(value)] for name, values in panel.groups.items()
            }
            groups = {name: values for name, values in finite.items() if values}
            if groups:
                prefix = f"chart-{len(self._sections)}-{len(charts)}-"
                charts.append(
                    {
                        "panel": panel,
                        "svg": _points_svg(panel, groups, prefix),
                        "figures": {name: _figure(sum(values) / len(values)) for name, values in groups.items()},
                        "figures_are": "mean",
                        "binned": False,
                    }
                )
        if charts:
            self._add("curves", heading, note, charts=charts)

    def add_token_rewards(
        self,
        heading: str,
        sequences: Sequence[TokenRewards],
        scale: tuple[float, float] | None = None,
        note: str = "",
    ) -> None:
        """Add sequences whose tokens are coloured by their rewards, in the order given.

        The colours are those of the fixed `scale`, so that rewards that are all but equal look it; the reader may
        stretch them to what the sequences have, and choose advantages where all of them have some; those have a scale
        around 0. A token is marked where another is wrongly preferred.

        Args:
            heading: heading of the section.
            sequences: the sequences; those of one section share a scale.
            scale: rewards that get the lowest and the highest colour, as do all beyond: what the rewards can be
                (`common.token_reward_model.reward_range`). None, where they have no bounds: the lowest and the highest
                of the sequences.
            note: a remark below the heading.
        """
        rewards = [r for sequence in sequences for r in sequence.rewards if math.isfinite(r)]
        shown = (min(rewards, default=0.0), max(rewards, default=1.0))
        low, high = scale or shown
        decimals = _decimals_of_scale(*shown)
        advantages = [a for sequence in sequences for a in sequence.advantages or [] if math.isfinite(a)]
        has_advantages = bool(advantages) and all(sequence.advantages is not None for sequence in sequences)
        furthest = max(map(abs, advantages), default=0.0)
        names = list(dict.fromkeys(name for sequence in sequences for name in sequence.columns))
        columns = [_column([sequence.columns.get(name) for sequence in sequences]) for name in names]
        rows = [
            {
                "caption": sequence.caption,
                "right_to_left": _right_to_left("".join(sequence.tokens)),
                "with_figures": len(sequence.tokens) <= MAX_TOKENS_WITH_FIGURES,
                "tokens": [
                    {
                        "text": token,
                        "reward": _fixed(reward, decimals),
                        "level": _level(reward, low, high),
                        "stretched_level": _level(reward, *shown),
                        "advantage": _fixed(advantage, _decimals_of_scale(-furthest, furthest)),
                        "advantage_level": _level(advantage, -furthest, furthest),
                        "preferred": preferred,
                    }
                    for token, reward, advantage, preferred in zip(
                        sequence.tokens,
                        sequence.rewards,
                        sequence.advantages or [math.nan] * len(sequence.tokens),
                        sequence.preferred or [None] * len(sequence.tokens),
                        strict=True,
                    )
                ],
            }
            for sequence in sequences
        ]
        self._add(
            "tokens", heading, note, names=names, columns=columns, rows=rows, number=len(self._sections),
            ends=[_figure(low), _figure(high)] if scale else [_fixed(end, decimals) for end in shown],
            stretched_ends=[_fixed(end, decimals) for end in shown], has_fixed_scale=scale is not None,
            advantage_ends=[_fixed(end, _decimals_of_scale(-furthest, furthest)) for end in (-furthest, furthest)],
            has_advantages=has_advantages,
            has_preferred=any(text is not None for sequence in sequences for text in sequence.preferred or ()),
        )  # fmt: skip

    def html(self) -> str:
        """The page as text. Equal content gives equal text."""
        return _template().render(
            title=self._title,
            subtitle=self._subtitle,
            facts=self._facts,
            notices=self._notices,
            max_columns=max((len(section.get("names", ())) for section in self._sections), default=0),
            sections=self._sections,
            light=LIGHT_TOKENS,
            dark=DARK_TOKENS,
            num_series_colors=NUM_SERIES_COLORS,
        )

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all.

        Raises:
            UserError: the disk is full, or the folder is missing or cannot be written.
        """
        write_text_atomic(path, self.html())

    def _add(self, kind: str, heading: str, note: str, **content: Any) -> None:
        self._sections.append({"kind": kind, "heading": heading, "note": note, **content})


def curves_from_metrics(
    events: Sequence[Mapping[str, Any]],
    metrics: Sequence[str | Sequence[str]],
    titles: Mapping[str, str] | None = None,
) -> list[Panel]:
    """Charts of the metrics of a run, with the rounds of reward learning marked.

    Events of the phase "reward" stand at the reward steps taken so far over all rounds (their `step` starts anew in
    each round), all others at their `step`. A metric that occurs in both kinds gets a panel for each.

    Args:
        events: those of `metrics.jsonl`, oldest first.
        metrics: what each panel shows: the name of a metric, or several names for several curves in one panel.
        titles: titles by metric (the first of a panel), in place of one made from the metric's name.

    Returns:
        One panel an entry of `metrics`; none for an entry of which there are no values.
    """
    steps_before, round_steps = _reward_steps(events)
    policy_rounds: dict[int, float] = {}
    for event in events:
        if event["phase"] == "policy":
            policy_rounds.setdefault(event["round"], event["step"])

    panels = []
    for names in ([entry] if isinstance(entry, str) else list(entry) for entry in metrics):
        title = (titles or {}).get(names[0]) or _title_of(names[0])
        for is_reward in (True, False):
            series: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
            for event in events:
                if (event["phase"] == "reward") == is_reward:
                    x = event["step"] + (steps_before[event["round"]] if is_reward else 0)
                    for name in names:
                        if event.get(name) is not None:
                            series[name].append((x, event[name]))
            if any(series.values()):
                panels.append(
                    Panel(
                        title=title,
                        ylabel=", ".join(name for name in names if series[name]),
                        series={name: points for name, points in series.items() if points},
                        vlines=round_steps if is_reward else list(policy_rounds.values())[1:],
                        xlabel="reward step" if is_reward else "policy step",
                    )
                )
    return panels


def visible_text(text: Any) -> Markup:
    """`text` escaped for HTML, with a visible stand-in for each character that does not print."""
    return Markup("").join(_visible(character) for character in str(text))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible_text
    environment.filters["printable"] = printable_text
    environment.filters["token"] = _token_text
    return environment.get_template(TEMPLATE)


def _reward_steps(events: Sequence[Mapping[str, Any]]) -> tuple[dict[int, int], list[float]]:
    """Reward steps taken before each round, and those numbers for all rounds but the first."""
    last_step: dict[int, int] = {}
    for event in events:
        if event["phase"] == "reward":
            last_step[event["round"]] = max(event["step"], last_step.get(event["round"], 0))
    steps_before = {}
    taken = 0
    for number, steps in sorted(last_step.items()):
        steps_before[number] = taken
        taken += steps
    return steps_before, [float(x) for x in steps_before.values()][1:]


def _title_of(metric: str) -> str:
    words = metric.replace("/", " ").replace("_", " ")
    return words[:1].upper() + words[1:]


# Marks that scripts and emoji need between their letters; they are left alone.
_JOINERS = "\u200c\u200d"


def _visible(character: str) -> Markup:
    category = unicodedata.category(character)
    if character in "\n\t":
        stand_in = "↵" if character == "\n" else "⇥"
        return Markup('<span class="control">{}</span>{}').format(stand_in, character)
    if category == "Cc" and ord(character) < 0x20:
        return Markup('<span class="control">{}</span>').format(chr(0x2400 + ord(character)))
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and character not in _JOINERS:
        return Markup('<span class="control">U+{:04X}</span>').format(ord(character))
    return escape(character)


def _token_text(token: str) -> Markup:
    """A token's text; its blanks get a mark that is drawn behind them, so that the text can be copied as it is."""
    if not token.strip(_JOINERS):
        return Markup('<span class="control">{}</span>').format("empty" if not token else "joiner")
    parts = []
    for is_blank, characters in groupby(token, key=lambda c: unicodedata.category(c) == "Zs"):
        for character in characters:
            if is_blank:
                parts.append(Markup('<span class="blank">{}</span>').format(character))
            elif character in "\n\t":
                # The chip of a token stays on one line: the stand-in takes the character's place.
                parts.append(Markup('<span class="control">{}</span>').format("↵" if character == "\n" else "⇥"))
            else:
                parts.append(_visible(character))
    return Markup("").join(parts)


def _right_to_left(text: str) -> bool:
    """Whether the first letter with a direction is written from right to left."""
    for character in text:
        direction = unicodedata.bidirectional(character)
        if direction in ("L", "R", "AL"):
            return direction != "L"
    return False


def _level(reward: float, low: float, high: float) -> int | None:
    """Index of the colour of a reward, None if it is not a number."""
    if math.isnan(reward):
        return None
    share = 0.5 if high <= low else min(max((reward - low) / (high - low), 0.0), 1.0)
    return round(share * (TOKEN_LEVELS - 1))


def _decimals_of_scale(low: float, high: float) -> int:
    """Enough to tell the colours of the scale apart, also where a fresh head gives all but equal rewards."""
    return min(max(1 - math.floor(math.log10(high - low)), 2), 6) if high > low else 4


def _mix(start: str, end: str, share: float) -> str:
    channels = [(int(start[i : i + 2], 16), int(end[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in channels)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _column(values: Sequence[Any]) -> dict[str, Any]:
    """Texts of a column's cells, numbers with one number of decimals for all; ``short``: each fits on a line."""
    present = [v for v in values if v is not None]
    floats = [v for v in present if isinstance(v, float) and math.isfinite(v)]
    largest = max((abs(v) for v in floats), default=0.0)
    decimals = 3 if largest < 10 else 2 if largest < 100 else 1
    if floats and largest < 0.001 and largest > 0:
        return {"numeric": True, "short": True, "cells": [_formatted(v) for v in values], "places": _places(values)}
    cells = [_fixed(v, decimals) if isinstance(v, float) else _formatted(v) for v in values]
    numeric = bool(present) and all(_is_number(v) for v in present)
    short = all(len(cell) <= SHORT_CELL for cell in cells)
    return {"numeric": numeric, "short": short, "cells": cells, "places": _places(values)}


_LEADING_NUMBER = re.compile(r"\s*([-+]?\d+(?:\.\d+)?)(?![\w.])")


def _places(values: Sequence[Any]) -> list[tuple[int, int]]:
    """Where each row stands in rising and in falling order of a column: equal ones as they were, what is missing last.

    Texts that all begin with a number, such as "91.20 (0.40)", are in the order of these.
    """
    present = {i: v for i, v in enumerate(values) if v not in (None, "") and not (_is_number(v) and math.isnan(v))}
    leading = {i: _LEADING_NUMBER.match(str(v)) for i, v in present.items()}
    if all(_is_number(v) for v in present.values()):
        keys: dict[int, Any] = present
    elif all(leading.values()):
        keys = {i: float(match[1]) for i, match in leading.items() if match}
    else:
        keys = {i: str(v).casefold() for i, v in present.items()}
    rising, falling = sorted(present, key=keys.__getitem__), sorted(present, key=keys.__getitem__, reverse=True)
    last = [len(values)] * len(values)
    up, down = last.copy(), last.copy()
    for places, order in ((up, rising), (down, falling)):
        for place, row in enumerate(order):
            places[row] = place
    return list(zip(up, down, strict=True))


def _tab_separated(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table to be pasted into a sheet, where no cell becomes a formula and none breaks out of its line."""

    def cell(value: Any) -> str:
        if value is None or (_is_number(value) and not math.isfinite(value)):
            return ""
        return str(value) if _is_number(value) else marked_cell(printable_text(value))

    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    writer.writerow([cell(name) for name in names])
    writer.writerows([cell(row.get(name)) for name in names] for row in rows)
    return stream.getvalue()


def _formatted(value: Any) -> str:
    if value is None:
        return NO_VALUE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _figure(value) if isinstance(value, float) else str(value)


def _figure(value: float) -> str:
    """A number for reading, with four significant digits."""
    if not math.isfinite(value):
        return NO_VALUE
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:.0f}"


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else NO_VALUE


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


# matplotlib draws with these stand-ins; in the SVG they become the page's colours, which follow dark and light.
_INK, _GRID, _ROUND = "#000001", "#000002", "#000003"
_SERIES = [f"#0000{i + 16:02x}" for i in range(NUM_SERIES_COLORS)]
_COLORS = {
    _INK: "var(--muted)",
    _GRID: "var(--line)",
    _ROUND: "var(--round)",
    **{color: f"var(--series-{i})" for i, color in enumerate(_SERIES)},
}


def _chart_svg(panel: Panel, curves: Mapping[str, list[tuple[float, float]]], prefix: str) -> Markup:
    """One chart of curves as inline SVG without a title, which the page sets."""
    with _svg_settings(prefix):
        figure, axes = _empty_chart()
        for x in panel.vlines:
            axes.axvline(x, color=_ROUND, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        at: dict[float, list[str]] = {}  # what each x is to tell
        for index, (name, points) in enumerate(curves.items()):
            color = _SERIES[index % NUM_SERIES_COLORS]
            dashes = "-" if index < NUM_SERIES_COLORS else "--"
            if len(points) > MAX_CURVE_POINTS:
                stretches = _stretches(points)
                xs, means, lows, highs = zip(*stretches, strict=True)
                texts = [f"{_figure(m)} ({_figure(a)} to {_figure(b)})" for _, m, a, b in stretches]
                axes.fill_between(xs, lows, highs, color=color, alpha=0.2, linewidth=0)
                axes.plot(xs, means, color=color, linewidth=1.8, linestyle=dashes)
            else:
                marker = "o" if len(points) <= 24 else ""
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, color=color, linewidth=1.8, linestyle=dashes, marker=marker, markersize=3.5)
                texts = [_figure(y) for y in ys]
            for x, text in zip(xs, texts, strict=True):
                at.setdefault(x, []).append(f"{name} {text}")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(x=0.02, y=0.08)
        axes.set_xlabel(printable_text(panel.xlabel), color=_INK)
        svg = _drawn(figure, prefix, _description(panel, curves))
        # A strip for each x, up to half way to its neighbours.
        box, height = axes.get_window_extent(), figure.bbox.height
        told = sorted(at)
        middles = [float(axes.transData.transform((x, 0.0))[0]) for x in told]
        edges = [box.x0, *((a + b) / 2 for a, b in pairwise(middles)), box.x1]
        for x, (left, right) in zip(told, pairwise(edges), strict=True):
            place = {"x": left, "y": height - box.y1, "width": right - left, "height": box.height}
            _tell(svg, "rect", place, f"{panel.xlabel} {_figure(x)}: {', '.join(at[x])}")
        return _as_markup(svg)


def _points_svg(panel: PointsPanel, groups: Mapping[str, list[float]], prefix: str) -> Markup:
    """One chart of single values as inline SVG; the page names the groups by their colours."""
    with _svg_settings(prefix):
        figure, axes = _empty_chart()
        for index, values in enumerate(groups.values()):
            color = _SERIES[index % NUM_SERIES_COLORS]
            mean = sum(values) / len(values)
            axes.plot([index - 0.28, index + 0.28], [mean, mean], color=color, linewidth=2.4, solid_capstyle="round")
            axes.plot(spread(index, len(values)), values, "o", color=color, markersize=5.5, clip_on=False)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        width = max(8, MAX_TICK_LETTERS // len(groups))
        axes.set_xticks(
            range(len(groups)), [f"{wrapped(name, width)}\nn = {len(values)}" for name, values in groups.items()]
        )
        axes.margins(y=0.12)
        figures = (
            f"{name} mean {_figure(sum(values) / len(values))} of {', '.join(_figure(v) for v in values)}"
            for name, values in groups.items()
        )
        svg = _drawn(figure, prefix, f"{panel.title}: {'; '.join(figures)}")
        for index, (name, values) in enumerate(groups.items()):
            for x, value in zip(spread(index, len(values)), values, strict=True):
                left, low = axes.transData.transform((x, value))
                place = {"cx": float(left), "cy": figure.bbox.height - float(low), "r": 6.0}
                _tell(svg, "circle", place, f"{name}: {_figure(value)}")
        return _as_markup(svg)


def wrapped(label: str, width: int = 28) -> str:
    """A method's label as a few short lines for an axis."""
    parts = [part if len(part) <= width else part[: width - 1] + "…" for part in printable_text(label).split(", ")]
    return "\n".join(parts[:4] + (["…"] if len(parts) > 4 else []))


def spread(center: float, count: int) -> list[float]:
    """Where `count` points of one group stand beside each other: always the same, so that charts can be compared."""
    return [center + 0.2 * ((i + 0.5) / count - 0.5) * min(count, 4) / 2 for i in range(count)]


def _svg_settings(prefix: str) -> Any:
    """Settings in which the text stays text, in the page's font, and is never read as a formula."""
    return matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": prefix, "text.parse_math": False, "font.size": 9}
    )


def _empty_chart() -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.0, 2.9), dpi=72, layout="constrained")  # of SVG: places in both are the same
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, pad=5)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def _drawn(figure: Figure, prefix: str, label: str) -> ElementTree.Element:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return _inline_svg(stream.getvalue(), prefix, label=label)


def _tell(svg: ElementTree.Element, shape: str, place: Mapping[str, float], text: str) -> None:
    """Lay an unseen shape over a chart that shows `text` under the pointer."""
    attributes = {"class": "tell"} | {name: f"{value:.1f}" for name, value in place.items()}
    title = ElementTree.SubElement(ElementTree.SubElement(svg, shape, attributes), "title")
    title.text = printable_text(text)


def _as_markup(svg: ElementTree.Element) -> Markup:
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _stretches(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """(mean x, mean y, lowest y, highest y) of `MAX_CURVE_POINTS` stretches of a curve."""
    bounds = [round(i * len(points) / MAX_CURVE_POINTS) for i in range(MAX_CURVE_POINTS + 1)]
    stretches = []
    for start, end in pairwise(bounds):
        xs, ys = zip(*points[start:end], strict=True)
        stretches.append((sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return stretches


def _description(panel: Panel, curves: Mapping[str, list[tuple[float, float]]]) -> str:
    """What a reader who does not see the chart is told."""
    parts = []
    for name, points in curves.items():
        ys = [y for _, y in points]
        parts.append(
            f"{name} from {_figure(ys[0])} to {_figure(ys[-1])}, lowest {_figure(min(ys))}, highest {_figure(max(ys))}"
        )
    return f"{panel.title}: {'; '.join(parts)}"


def _inline_svg(svg: bytes, prefix: str, label: str) -> ElementTree.Element:
    """matplotlib's SVG file as an element of the page: no metadata, own names, colours of the page."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            # The style sheet would hold for the whole page; the metadata names a document type on the network.
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                value = prefix + value
            elif name == "href":
                value = "#" + prefix + value.removeprefix("#")
            elif name in ("style", "fill", "stroke"):
                value = re.sub(r"#0000[0-9a-f]{2}", lambda match: _COLORS.get(match[0], match[0]), value)
                value = re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", value)
            value = value.replace("url(#", f"url(#{prefix}")
            value = re.sub(r"fill-opacity: [\d.]+", "fill-opacity: var(--band)", value)
            element.set(name, value)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", printable_text(label))
    return root
