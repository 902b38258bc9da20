"""Charts of a page: SVG that takes the page's colours, so that it is read in light and in dark.

Each mark has a title, which a browser shows where the pointer rests.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from expkit.report import breakdown
from expkit.units import percent, seconds

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

INK, FAINT = "#010203", "#010204"
"""Stand for the page's colours of text and of grid lines."""
COLOUR = re.compile("#[0-9a-f]{6}")
VALUE = re.compile('="[^"]*"')
DECIMALS = re.compile(r"(\.\d)\d+")
IDS = re.compile(r' id="[a-zA-Z.]+_\d+"')
FONT = re.compile(r"'DejaVu Sans'[^;\"]*")
MARK = re.compile(r'<g id="mark(\d+)">')
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "path.simplify_threshold": 0.2,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
}
WIDE, ROW, BELOW = 7.2, 0.24, 0.5
"""Inches: the width of a chart, the height of a row and of what is below."""
LETTER = 0.068
"""Inches that a letter of a name takes, about."""
WIDE_TICKS = 100
"""From this ratio of the ends on, a logarithmic axis has only powers of ten."""
FAR = 30
"""From this ratio of the values on, an axis is logarithmic."""
LONGEST = 46
"""The most characters of a name beside its row."""


@dataclass(frozen=True)
class Spread:
    """One row of a chart of intervals.

    Attributes:
        samples: single values; they may be missing.
        low, high: the ends of the interval.
    """

    name: str
    colour: str
    middle: float
    low: float
    high: float
    samples: Sequence[float] = ()


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        low, high: ends of an interval at each point; they may be missing.
    """

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass
class _Drawing:
    """A figure with the titles of its marks."""

    titles: list[str] = field(default_factory=list)

    def mark(self, artist: Artist, title: str) -> None:
        artist.set_gid(f"mark{len(self.titles)}")
        self.titles.append(title)


def spreads(rows: Sequence[Spread], label: str, *, ratio: bool = False) -> str:
    """Draw each row's samples, interval and middle, the first row at the top.

    Args:
        ratio: the values are ratios, and 1 is marked; otherwise they are seconds.
    """
    values = [v for row in rows for v in (row.low, row.high, *row.samples)]
    with _rows([row.name for row in rows], label) as (drawing, axes, result):
        for place, row in enumerate(rows):
            if row.samples:
                # spread over the height of the row, in the order in which they were measured
                heights = place - 0.3 + 0.6 * (np.arange(len(row.samples)) * 0.618 % 1)
                x = np.repeat(np.asarray(row.samples), 3)
                y = np.repeat(heights, 3) + np.tile([-0.09, 0.09, np.nan], len(row.samples))
                (ticks,) = axes.plot(x, y, color=row.colour, linewidth=0.9, alpha=0.55)
                ticks.get_path().should_simplify = False
                drawing.mark(ticks, f"{row.name}: {len(row.samples)} repeats")
            shown = _text(row.middle, ratio), _text(row.low, ratio), _text(row.high, ratio)
            said = f"{row.name}: {shown[0]} ({shown[1]} to {shown[2]})"
            (bar,) = axes.plot([row.low, row.high], [place] * 2, color=row.colour, linewidth=3)
            drawing.mark(bar, said)
            (dot,) = axes.plot([row.middle], [place], "o", color=row.colour, markersize=6)
            drawing.mark(dot, said)
        if ratio:
            axes.axvline(1, color=INK, linewidth=0.8)
        axes.grid(axis="x")
        if min(values) > 0 and max(values) > FAR * min(values):
            axes.set_xscale("log")
        _ticks(axes, "x", _number if ratio else _seconds)
    return result[0]


def curves(
    lines: Sequence[Curve],
    x: str,
    y: str,
    *,
    logarithmic_x: bool = False,
    linear_y: bool = False,
    in_seconds: str = "",
    points: bool = False,
    crossings: Sequence[tuple[float, str]] = (),
) -> str:
    """Draw lines; the vertical axis is logarithmic where all values are above 0.

    Args:
        linear_y: whether it is linear all the same.
        in_seconds: the axes, such as `xy`, whose values are seconds.
        points: whether each value is marked.
        crossings: where two lines cross, and what to say there.
    """
    size, room = (WIDE / 2 + 0.4, 2.7), (0.75, BELOW, 0.1, 0.2 if crossings else 0.08)
    with _chart(size, room, f"{y} by {x}") as (drawing, axes, result):
        for line in lines:
            (drawn,) = axes.plot(line.x, line.y, color=line.colour, linewidth=1.5)
            drawing.mark(drawn, line.name)
            if len(line.low):
                axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.18, lw=0)
            if points:
                for place, value in zip(line.x, line.y, strict=True):
                    (dot,) = axes.plot([place], [value], "o", color=line.colour, markersize=4)
                    shown = seconds(value) if "y" in in_seconds else f"{value:.6g}"
                    drawing.mark(dot, f"{line.name}: {shown} at {place:g}")
        for place, said in crossings:
            axes.axvline(place, color=INK, linewidth=0.8, linestyle=":")
            axes.annotate(
                said, (place, 1), xycoords=axes.get_xaxis_transform(), ha="center", va="bottom"
            )
        if logarithmic_x:
            axes.set_xscale("log")
        values = [value for line in lines for value in line.y]
        if values and min(values) > 0 and not linear_y:
            axes.set_yscale("log")
            axes.set_ylim(max(min(values) / 1.3, 1e-100), min(max(values) * 1.3, 1e100))
        _ticks(axes, "x", _seconds if "x" in in_seconds else _number)
        _ticks(axes, "y", _seconds if "y" in in_seconds else _number)
        axes.grid()
        axes.set(xlabel=x, ylabel=y)
    return result[0]


def parts(rows: Sequence[tuple[str, Mapping[str, float], float]]) -> str:
    """Draw where a step's time goes: for each name, the parts' share of the timed step."""
    label = "percent of the timed step"
    with _rows([name for name, _, _ in rows], label, 0.3) as (drawing, axes, result):
        seen: dict[str, Artist] = {}
        for place, (name, took, whole) in enumerate(rows):
            left = 0.0
            for part, each in took.items():
                share = 100 * each / whole
                colour = breakdown.COLOURS.get(part, breakdown.UNKNOWN)
                (bar,) = axes.barh(place, share, 0.7, left, color=colour)
                drawing.mark(bar, f"{name}: {part}, {seconds(each)} ({percent(each / whole)})")
                seen.setdefault(part, bar)
                left += share
        axes.axvline(100, color=INK, linewidth=0.8, linestyle="--")
        order = [part for part in breakdown.COLOURS if part in seen]
        names = [*order, *(part for part in seen if part not in order)]
        axes.legend(
            [seen[part] for part in names], names, frameon=False, ncols=len(seen), loc="lower left",
            bbox_to_anchor=(0, 1), borderpad=0, handlelength=1,
        )  # fmt: skip
    return result[0]


def legend(lines: Sequence[Curve]) -> str:
    """Return the key of lines as HTML, which takes the width that there is."""
    items = {line.name: line for line in lines}.values()
    return '<ul class="key">{}</ul>'.format(
        "".join(f"<li>{swatch(line.colour)}{html.escape(line.name)}</li>" for line in items)
    )


def swatch(colour: str) -> str:
    """Return a small square of a colour, as HTML."""
    return f'<i style="background:{_themed(colour)}"></i>'


@contextmanager
def _rows(
    names: Sequence[str], label: str, above: float = 0.08
) -> Iterator[tuple[_Drawing, Axes, list[str]]]:
    """Yield what `_chart` does, with a row for each name, the first at the top.

    Args:
        above: inches that are free above the first row.
    """
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    room = (0.15 + LETTER * max(map(len, shown)), BELOW, 0.15, above)
    with _chart((WIDE, len(names) * ROW + BELOW + above), room, label) as (drawing, axes, result):
        axes.set_yticks(range(len(names)), shown)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(label)
        yield drawing, axes, result


@contextmanager
def _chart(
    size: tuple[float, float], room: tuple[float, float, float, float], label: str
) -> Iterator[tuple[_Drawing, Axes, list[str]]]:
    """Yield a drawing, its axes, and a list that has the SVG at the end.

    Args:
        size: width and height, in inches.
        room: what is left free at the left, below, at the right and above, in inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawing, result = _Drawing(), list[str]()
    (width, height), (left, below, right, above) = size, room
    with rc_context(STYLE), np.errstate(all="ignore"):
        figure = Figure(figsize=size)
        place = left, below, width - left - right, height - below - above
        axes = figure.add_axes(tuple(np.divide(place, (width, height) * 2)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        yield drawing, axes, result
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    result.append(_dressed(file.getvalue(), drawing.titles, label))


def _dressed(svg: str, titles: Sequence[str], label: str) -> str:
    """Give a drawing the page's colours, and its marks their titles."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = FONT.sub("system-ui, sans-serif", svg)
    svg = VALUE.sub(lambda value: _dressed_value(value.group()), svg)
    svg = IDS.sub("", svg).replace("\n", " ")
    svg = MARK.sub(lambda m: f"<g><title>{html.escape(titles[int(m.group(1))])}</title>", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def _dressed_value(value: str) -> str:
    """Return an attribute's value with short numbers and the page's colours."""
    return COLOUR.sub(lambda found: _themed(found.group()), DECIMALS.sub(r"\1", value))


def _themed(colour: str) -> str:
    """Return a colour as the page's style has it: lighter where the page is dark."""
    if colour in (INK, FAINT):
        return "var(--ink)" if colour == INK else "var(--faint)"
    return f"color-mix(in srgb,{colour} var(--keep),white)"


def _ticks(axes: Axes, name: Literal["x", "y"], text: Callable[[float, object], str]) -> None:
    """Choose where an axis has numbers, and how they are written."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axis = getattr(axes, f"{name}axis")
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        subs = (1.0,) if high > WIDE_TICKS * low else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=7))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    else:
        axes.locator_params(axis=name, nbins=5)
    axis.set_major_formatter(text)


def _number(value: float, _: object) -> str:
    return f"{value:g}"


def _seconds(value: float, _: object) -> str:
    return seconds(value) if value > 0 else "0" if value == 0 else ""


def _text(value: float, ratio: bool) -> str:
    return f"{value:.3f}" if ratio else seconds(value)
