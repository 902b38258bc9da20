"""Where the time of a step went: rows for the table, and a bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from expkit.measure.breakdown import BESIDE, FETCHING, PLACING, PREFIX, SUFFIX, UNATTRIBUTED
from expkit.units import percent, seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "draw": "C0",
    "forward": "C1",
    "backward": "C2",
    "forward and backward": "C4",
    "update": "C3",
    "step": "C5",
}
"""Colours of the parts, the same in every picture."""
UNKNOWN = "C7"
"""Colour of a part that `Mark` does not name, which a run may have nevertheless."""
HEIGHT = 1.4
"""The height of the bar in a picture 3 high; above it is the legend."""


def rows(
    figures: Mapping[str, float], hidden: str = "", *, verbose: bool = False
) -> list[tuple[str, str]]:
    """Return lines for the table, name and text.

    Args:
        figures: those of a breakdown, by metric name.
        hidden: why the parts are not shown, if they are not.
    """
    found = [("a step", f"its parts are {hidden}")] if hidden else []
    parts, whole = parts_in(figures)
    if parts:
        text = ", ".join(f"{name} {percent(took / whole)}" for name, took in parts.items())
        rest = 1 - sum(parts.values()) / whole
        if abs(rest) >= 0.01:  # else it says "less than 1% less"
            off = f"{percent(abs(rest))} {'less' if rest > 0 else 'more'} than the timed step"
            text += f" (traced one by one; together {off})"
        found = [("a step", text)]
    for name, what in ((PLACING, "the data"), (FETCHING, "the losses of the traced steps")):
        took = figures.get(f"{PREFIX}{name}{SUFFIX}")
        if verbose and took is not None:
            found.append((name, f"{what} takes {seconds(took)}, untimed"))
    return found


def parts_in(figures: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Return the seconds of a step's parts, and of the timed step, from a breakdown's figures.

    There are no parts if they did not add up to the timed step, see `Breakdown.metrics`.
    """
    found = {
        key.removeprefix(PREFIX).removesuffix(SUFFIX).replace("_", " "): took
        for key, took in figures.items()
        if key.startswith(PREFIX)
    }
    parts = {name: took for name, took in found.items() if name not in BESIDE}
    return parts, sum(parts.values()) + found.get(UNATTRIBUTED, 0.0)


def bar(axes: Axes, parts: Mapping[str, float], step_seconds: float) -> None:
    """Draw the parts of a step end to end, and a line where the timed step ends."""
    whole, left = step_seconds, 0.0
    for part, took in parts.items():
        label = f"{part}, {seconds(took)} ({took / whole:.0%})"
        axes.barh(0, took, HEIGHT, left, color=COLOURS.get(part, UNKNOWN), label=label)
        left += took
    rest = whole - left
    if rest > 0:
        label = f"not attributed, {seconds(rest)} ({rest / whole:.0%})"
        axes.barh(0, rest, HEIGHT, left, color="0.9", edgecolor="0.6", hatch="//", label=label)
    label = f"the timed step, {seconds(whole)}"
    if rest < 0:
        label += f": {seconds(-rest)} ({-rest / whole:.0%}) less than its parts"
    axes.axvline(whole, ymax=0.56, color="black", linestyle="--", label=label)
    axes.set(xlabel="time of a step", ylabel="", yticks=[], ylim=(-0.85, 2.15))
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value) if value else "0")
    axes.spines["left"].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
