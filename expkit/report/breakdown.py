"""Where the time of a step went: rows for the table, and a bar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from expkit.contracts import HostArray
from expkit.measure.breakdown import BESIDE, PREFIX, SUFFIX, UNATTRIBUTED, Breakdown
from expkit.report.units import percent, seconds

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


def rows(breakdown: Breakdown, *, verbose: bool = False) -> list[tuple[str, str]]:
    """Lines for the table: name and text."""
    whole = breakdown.step_seconds
    rest = breakdown.unattributed / whole
    off = f"{percent(abs(rest))} {'less' if rest > 0 else 'more'} than the timed step"
    shares = ((name, took / whole) for name, took in breakdown.parts.items())
    if breakdown.is_far:
        off = f"over {math.floor(1 - rest):,} times as long as the timed step"
    if breakdown.adds_up:
        text = ", ".join(f"{name} {percent(share)}" for name, share in shares)
        if abs(rest) >= 0.01:  # else it says "less than 1% less"
            text += f" (traced one by one; together {off})"
    else:
        text = f"its parts are not shown: traced one by one they take {off}"
    if breakdown.unmarked:
        text = f"its parts are not shown: {breakdown.unmarked}"
    found = [("a step", text)] if breakdown.divides else []
    if verbose:
        found.append(("placing", f"the data takes {seconds(breakdown.placing_seconds)}, untimed"))
        if breakdown.fetching_seconds is not None:
            losses = f"the losses of {breakdown.steps} traced steps"
            found.append(
                ("fetching", f"{losses} takes {seconds(breakdown.fetching_seconds)}, untimed")
            )
    return found


def parts_in(metrics: Mapping[str, HostArray]) -> tuple[dict[str, float], float]:
    """Return the seconds of a step's parts, and of the timed step, from a run's metrics.

    There are no parts if they did not add up to the timed step, see `Breakdown.metrics`.
    """
    found = {
        key.removeprefix(PREFIX).removesuffix(SUFFIX).replace("_", " "): float(values[-1])
        for key, values in metrics.items()
        if key.startswith(PREFIX)
    }
    parts = {name: took for name, took in found.items() if name not in BESIDE}
    return parts, sum(parts.values()) + found.get(UNATTRIBUTED, 0.0)


def bar(axes: Axes, parts: Mapping[str, float], step_seconds: float) -> None:
    """Draw the parts of a step end to end, and a line where the timed step ends."""
    whole, left = step_seconds, 0.0
    for part, took in parts.items():
        label = f"{part}, {seconds(took)} ({took / whole:.0%})"
        axes.barh(0, took, left=left, color=COLOURS.get(part, UNKNOWN), label=label)
        left += took
    rest = whole - left
    if rest > 0:
        label = f"not attributed, {seconds(rest)} ({rest / whole:.0%})"
        axes.barh(0, rest, left=left, color="0.9", edgecolor="0.6", hatch="//", label=label)
    label = f"the timed step, {seconds(whole)}"
    if rest < 0:
        label += f": {seconds(-rest)} ({-rest / whole:.0%}) less than its parts"
    axes.axvline(whole, ymax=0.4, color="black", linestyle="--", label=label)
    axes.set(xlabel="time of a step", ylabel="", yticks=[], ylim=(-0.6, 2.4))
    axes.xaxis.set_major_formatter(lambda value, _: seconds(value) if value else "0")
    axes.spines["left"].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
