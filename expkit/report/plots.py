"""Pictures of one run, drawn without a window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expkit.contracts import HostArray, Plotted
from expkit.report import breakdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from expkit.config import Cell
    from expkit.measurement import Result


def draw(cell: Cell, result: Result, folder: Path) -> list[str]:
    """Draw what there is to draw into the folder, and return the files' names."""
    if not cell.tracking.pictures:
        return []
    drawn = []
    if result.losses.size:
        with _picture(folder / "loss.png", cell.title, "step", "loss") as axes:
            _loss(axes, result.losses)
        drawn.append("loss.png")
    if result.breakdown:
        with _picture(folder / "step.png", cell.title, "", "") as axes:
            breakdown.bar(axes, result.breakdown)
        drawn.append("step.png")
    problem, finite = (
        cell.workload.problem,
        all(np.isfinite(p).all() for p in result.params.values()),
    )
    if isinstance(problem, Plotted) and result.params and finite:
        with _picture(folder / "fit.png", cell.title, "x", "y") as axes:
            curves = problem.curves(result.params)
            for (name, (x, y)), style in zip(curves.items(), cycle(("-", "--", ":")), strict=False):
                axes.plot(x, y, style, label=name)
            axes.legend(frameon=False)
        drawn.append("fit.png")
    return drawn


def _loss(axes: Axes, losses: HostArray) -> None:
    """The loss of every step, on a logarithmic scale where it can be."""
    shown = np.isfinite(losses)
    axes.plot(np.flatnonzero(shown), losses[shown], linewidth=1.2)
    if shown.any() and np.all(losses[shown] > 0):
        axes.set_yscale("log")
        # A loss that diverged leaves the top: beyond, the ticks overflow.
        axes.set_ylim(max(losses[shown].min() / 2, 1e-100), min(losses[shown].max() * 2, 1e100))
    if not shown.all():
        bad = int(np.flatnonzero(~shown)[0])
        axes.axvline(bad, color="C3", linestyle="--", label=f"not finite from step {bad}")
        axes.legend(frameon=False)


@contextmanager
def _picture(file: Path, title: str, x: str, y: str) -> Iterator[Axes]:
    """Axes to draw on, saved as this file at the end."""
    from matplotlib.figure import Figure  # half a second, while the run is being sent

    figure = Figure(figsize=(6.4, 4), dpi=100)
    axes = figure.add_axes((0.12, 0.13, 0.85, 0.77))
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    with np.errstate(all="ignore"):  # the scale of a loss that diverged
        yield axes
        figure.savefig(file)
