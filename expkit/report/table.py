"""The short table after a run."""

from __future__ import annotations

from pathlib import Path

from expkit.config import Cell
from expkit.measure.statistics import Summary
from expkit.measure.warmup import WarmUp
from expkit.record import quantities
from expkit.record.result import Result
from expkit.report import breakdown
from expkit.report.units import percent, seconds

LEAST_COMPILE_S = 0.1
"""Seconds from which on compiling has a line of its own."""
LEAST_SHARE = 0.01
"""Least share of the machine's limit that is shown; a smaller one only means a short step."""

Rows = list[tuple[str, str]]


def table(cell: Cell, result: Result, folder: Path, *, verbose: bool = False) -> str:
    """Return the results of a run, one per line, for a terminal.

    Args:
        verbose: also show how the figures were obtained.
    """
    rows = [("", cell.title)]
    if result.losses.size:
        first, last = result.losses[0], result.losses[-1]
        rows.append(("loss", f"{first:.6g} -> {last:.6g}"))
    if result.summary:
        rows += _times(result.summary, result, cell.workload.steps, verbose=verbose)
    if result.breakdown:
        rows += breakdown.rows(result.breakdown, verbose=verbose)
    if result.summary and result.warm_up and result.setup_seconds is not None:
        first_step, warm = seconds(result.warm_up.first_seconds), seconds(result.warm_up.seconds)
        parts = f"{seconds(result.setup_seconds)} to build, {first_step} for the first step"
        unsettled = "" if result.warm_up.settled else ", in which a step's time did not settle"
        rows.append(("untimed", f"{parts}, {warm} of warm-up{unsettled}"))
        if verbose or result.warm_up.compile_seconds > LEAST_COMPILE_S:
            rows.append(("compile", _compiling(result.warm_up)))
    if result.mode_reason:
        rows.append(("path", f"{result.mode}, because {result.mode_reason}"))
    if result.summary:
        rows.append(("answer", result.checked))
        rows.append(("stable", "no: " + "; ".join(result.unstable) if result.unstable else "yes"))
        if verbose:
            rows.append(("stopped by", f"measure.{result.stopped_by}"))
            rows += _recorded(result)
    rows += [("unlike", difference) for difference in result.broken]
    reason = f": {result.reason}; no time is given" if result.reason else ""
    rows.append(("outcome", result.outcome + reason))
    rows.append(("saved to", str(folder)))
    return _shown(rows)


def in_mlflow(run_id: str) -> str:
    """What is added to the table once MLflow has the run."""
    return _shown([("", f"MLflow run {run_id}; see it with: expkit ui")])


def _shown(rows: Rows) -> str:
    return "\n".join(f"{name:>10}  {text}" for name, text in rows)


def _compiling(warm: WarmUp) -> str:
    """Say how much longer than their steps the first calls of the timed lengths took."""
    lengths = ", ".join(map(str, warm.first_passes))
    what = f"the first call of each length that is timed ({lengths} steps)"
    return f"{seconds(warm.compile_seconds)} in {what}, beyond the time of its steps"


def _times(summary: Summary, result: Result, steps: int, *, verbose: bool) -> Rows:
    rate = steps / summary.median
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    several = len(result.processes) > 1
    rows = [
        ("wall time", f"{seconds(summary.median)}{_spread(summary, several=several)}"),
        ("steps/s", f"{shown} ({seconds(summary.median / steps)} a step, {steps} steps)"),
    ]
    share = result.limit_share
    if result.limit is not None and share is not None and (verbose or share >= LEAST_SHARE):
        best = f"of the most that this machine's {result.limit.binds} allows"
        rows.append(("speed", f"{percent(share)} {best}"))
    if summary.outliers:
        count = f"{summary.outliers} of {summary.repeats} {'placements' if several else 'repeats'}"
        slowest = f"the slowest took {summary.worst:.3g} times the median"
        rows.append(("outliers", f"{count} far from the others; {slowest}"))
    return rows + _about_repeats(summary, several=several) * verbose


def _recorded(result: Result) -> Rows:
    """Return rows of all figures as they are recorded in MLflow."""
    lines = [
        f"{quantity.name} {seconds(value) if quantity.unit else f'{value:.6g}'} ({quantity.label})"
        for quantity, value in quantities.found(result)
    ]
    return [("" if number else "recorded", line) for number, line in enumerate(lines)]


def _spread(summary: Summary, *, several: bool) -> str:
    if summary.repeats == 1:
        return " (one repeat: its spread is not known)"
    what = "95% interval" if summary.interval else "least to greatest"
    ends = f"{seconds(summary.low)} to {seconds(summary.high)}"
    unit = f"{summary.rounds} processes" if several else f"{summary.repeats} repeats"
    return f" ({what}: {ends}, of {unit})"


def _about_repeats(summary: Summary, *, several: bool) -> Rows:
    """Return rows on how the repeats are spread over placements or processes."""
    of, unit = ("placements", "process") if several else ("repeats", "placement of the arrays")
    units = "processes" if several else "placements of the arrays in memory"
    rows = [("repeats", f"{summary.repeats} {of} in {summary.rounds} {units}")]
    if (share := summary.placement_share) is not None:
        rows.append(("", f"{percent(share)} of their variance is from one {unit} to the next"))
    return rows
