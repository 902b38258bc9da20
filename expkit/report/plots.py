"""Pictures of a run, drawn from its record without a window: at once, or again at any time."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expkit.config import Cell
from expkit.contracts import Curves, HasCurves, HostArray
from expkit.errors import is_disk_full
from expkit.record.stored import look_of, metrics_of, params_of
from expkit.report import breakdown
from expkit.tracking.address import one_line
from expkit.tracking.journal import FILE, Journal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = 1e3
"""From this ratio of the axis limits on, only powers of ten have ticks."""
FAR = 30
"""From this ratio of the values on, a search is drawn on a logarithmic scale."""


@dataclass(frozen=True)
class Shown:
    """The data for the pictures of a run.

    Attributes:
        colour: of its curve; None for the first of the usual ones.
        losses: of each step; empty where there are none.
        parts: seconds of a traced step by part; empty if they do not add up to the timed one.
        step_seconds: of the timed step.
        curves: of the fit, by name: x and y.
        axes: the labels of the fit's axes.
    """

    title: str
    colour: str | None
    losses: HostArray
    parts: Mapping[str, float]
    step_seconds: float
    curves: Curves
    axes: tuple[str, str]


def draw(folder: Path, problem: object) -> list[str]:
    """Draw a run's pictures into its folder, and note them in its journal.

    Args:
        problem: the problem of the run, which may have curves to draw; None if it is not known.

    Returns:
        The names of the files. Those that were drawn before something went wrong are noted too.

    Raises:
        UserError: there is no record, or a damaged one.
    """
    what, drawn = shown(folder, problem), []
    with closing(Journal(folder)) as journal:
        for name in _drawn(what, folder):
            journal.artifact(name)
            drawn.append(name)
    return drawn


def draw_wanted(cell: Cell, folder: Path) -> str | None:
    """Draw the pictures of a cell's run, if it is to have any. Errors do not make the run fail.

    Returns:
        What kept them from being drawn, and how to draw them later; else None.

    Raises:
        OSError: the disk is full.
    """
    if not cell.tracking.pictures or not (folder / FILE).exists():
        return None
    try:
        draw(folder, cell.workload.problem)
    except Exception as error:
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        again = f"draw them later: expkit draw {shlex.quote(str(folder))}"
        return f"no pictures ({one_line(error)}); {again}"
    return None


def shown(folder: Path, problem: object) -> Shown:
    """Return the data for the pictures of a run."""
    (title, colour), metrics, params = look_of(folder), metrics_of(folder), params_of(folder)
    figures = {name: float(values[-1]) for name, values in metrics.items() if values.size}
    parts, step_seconds = breakdown.parts_in(figures)
    finite = all(np.isfinite(array).all() for array in params.values())
    curves = problem.curves(params) if isinstance(problem, HasCurves) and params and finite else {}
    losses = metrics.get("train/loss", np.empty(0))
    axes = getattr(problem, "axes", ("x", "y"))
    return Shown(title, colour, losses, parts, step_seconds, curves, axes)


def _drawn(what: Shown, folder: Path) -> Iterator[str]:
    """Draw each picture, and yield its file's name once it is written."""
    if what.losses.size:
        with _picture(folder / "loss.png", what.title, "step", "loss") as axes:
            _loss(axes, what.losses, what.colour)
        yield "loss.png"
    if what.parts:
        with _picture(folder / "step.png", what.title, "", "") as axes:
            breakdown.bar(axes, what.parts, what.step_seconds)
        yield "step.png"
    if what.curves:
        with _picture(folder / "fit.png", what.title, *what.axes) as axes:
            styles = cycle(("-", "--", ":"))
            for (name, (x, y)), style in zip(what.curves.items(), styles, strict=False):
                axes.plot(x, y, style, label=name)
            axes.legend(frameon=False)
        yield "fit.png"


@dataclass(frozen=True)
class Course:
    """How a search went.

    Attributes:
        objective: the label of the objective.
        trials: the numbers of the trials.
        values: the objective of each trial; None if it has none.
        greatest: whether the best value is the greatest, and not the least.
        key: the key that was searched, if it is the only one and a number.
        choices: the value of this key in each trial.
    """

    title: str
    objective: str
    trials: Sequence[int]
    values: Sequence[float | None]
    greatest: bool
    key: str | None
    choices: Sequence[float]


def draw_search(course: Course, folder: Path) -> Path:
    """Draw the objective by trial and, if one number was searched, by that; returns the file."""
    from matplotlib.figure import Figure

    values = np.asarray([np.nan if v is None else v for v in course.values], dtype=float)
    good = np.isfinite(values)
    trials = np.asarray(course.trials)
    panels = 2 if course.key else 1
    figure = Figure(figsize=(6.4 * panels, 4), dpi=100)
    width = 1 / panels
    axes = figure.add_axes((0.12 * width, 0.13, 0.85 * width, 0.77))
    _dress(axes, course.title, "trial", course.objective)
    axes.plot(trials[good], values[good], "o", markersize=4, label="trial")
    best = (np.maximum if course.greatest else np.minimum).accumulate(values[good])
    axes.step(trials[good], best, where="post", linewidth=1.2, label="best so far")
    bad = trials[~good]
    if bad.size:  # on the lower edge, as they have no value
        edge = axes.get_xaxis_transform()
        axes.plot(bad, np.zeros(bad.size), "C3x", transform=edge, clip_on=False, label="no value")
    axes.legend(frameon=False)
    every = [axes]
    if course.key:
        choices = np.asarray(course.choices)
        right = figure.add_axes((width + 0.12 * width, 0.13, 0.85 * width, 0.77))
        _dress(right, "", course.key, course.objective)
        right.plot(choices[good], values[good], "o", markersize=4)
        if choices.min() > 0 and choices.max() > FAR * choices.min():
            right.set_xscale("log")
        every.append(right)
    if good.any() and values[good].min() > 0 and values[good].max() > FAR * values[good].min():
        for drawn in every:
            drawn.set_yscale("log")
    file = folder / "search.png"
    with np.errstate(all="ignore"):
        figure.savefig(file, pil_kwargs={"compress_level": 1})
    return file


def preload() -> None:
    """Import what draws while there is time: it takes half a second."""
    for module in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        import_module(module)


def _loss(axes: Axes, losses: HostArray, colour: str | None) -> None:
    """Draw the loss of every step, on a logarithmic scale if possible."""
    shown = np.isfinite(losses)
    axes.plot(np.flatnonzero(shown), losses[shown], linewidth=1.2, color=colour)
    if shown.any() and np.all(losses[shown] > 0):
        axes.set_yscale("log")
        # A diverged loss is cut off at the top, because ticks overflow beyond these limits.
        low, high = max(losses[shown].min() / 2, 1e-100), min(losses[shown].max() * 2, 1e100)
        axes.set_ylim(low, high)
        if high / low > WIDE:
            axes.yaxis.minorticks_off()
    if not shown.all():
        bad = int(np.flatnonzero(~shown)[0])
        axes.axvline(bad, color="C3", linestyle="--", label=f"not finite from step {bad}")
        axes.legend(frameon=False)


@contextmanager
def _picture(file: Path, title: str, x: str, y: str) -> Iterator[Axes]:
    """Yield axes to draw on, and save the picture as this file at the end."""
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(6.4, 4), dpi=100)
    axes = figure.add_axes((0.12, 0.13, 0.85, 0.77))
    _dress(axes, title, x, y)
    with np.errstate(all="ignore"):  # the scale of a loss that diverged
        yield axes
        figure.savefig(file, pil_kwargs={"compress_level": 1})


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Set title and labels at fixed places, as finding a place takes longer than drawing."""
    axes.set(xlabel=x, ylabel=y)
    axes.locator_params(nbins=5)
    axes.set_title(title, y=1)
    axes.xaxis.set_label_coords(0.5, -0.1)
    axes.yaxis.set_label_coords(-0.09, 0.5)
    axes.spines[["top", "right"]].set_visible(False)
