"""The short table after a run."""

from __future__ import annotations

from expkit.measure.statistics import Summary
from expkit.outcome import Outcome
from expkit.record import quantities
from expkit.record.stored import Stored
from expkit.report import breakdown
from expkit.units import percent, seconds

LEAST_COMPILE_S = 0.1
"""Seconds from which on compiling has a line of its own."""
LEAST_SHARE = 0.01
"""Least share of the machine's limit that is shown; a smaller one only means a short step."""

Rows = list[tuple[str, str]]


def table(run: Stored, *, verbose: bool = False) -> str:
    """Return the results of a run, one per line, for a terminal.

    Args:
        verbose: also show how the figures were obtained.
    """
    rows = [("", run.title)]
    if run.first_loss is not None and run.loss is not None:
        rows.append(("loss", f"{run.first_loss:.6g} -> {run.loss:.6g}"))
    if (evaluations := run.quantities.get("final/evaluations")) is not None:
        rows.append(("", f"of {evaluations:,.0f} evaluations in {run.steps:,} steps"))
    if run.evaluated:
        figures = (f"{name} {value:.6g}" for name, value in run.evaluated.items())
        when = ", after the last step" if run.outcome == Outcome.OK else ""
        rows.append(("evaluated", f"{', '.join(figures)}{when}"))
    if "target" in run.tags:
        rows.append(("target", run.tags["target"] + _until_target(run)))
    if "ended" in run.tags:
        rows.append(("ended", run.tags["ended"]))
    if run.summary:
        rows += _times(run, run.summary, verbose=verbose)
        rows += breakdown.rows(run.parts, run.tags.get("parts", ""), verbose=verbose)
        rows += _untimed(run, verbose=verbose)
    if "path_reason" in run.tags:
        rows.append(("path", f"{run.tags.get('path')}, because {run.tags['path_reason']}"))
    if run.summary:
        rows.append(("answer", run.answer))
        rows.append(("stable", "yes" if run.is_stable else f"no: {run.stable}"))
        if verbose:
            rows.append(("stopped by", f"measure.{run.tags.get('stopped_by')}"))
            rows += _recorded(run)
    rows += [("unlike", difference) for difference in run.broken]
    reason = f": {run.reason}; no time is given" if run.reason else ""
    rows.append(("outcome", run.outcome + reason))
    rows.append(("saved to", str(run.folder)))
    return _shown(rows)


def in_mlflow(run_id: str) -> str:
    """What is added to the table once MLflow has the run."""
    return _shown([("", f"MLflow run {run_id}; see it with: expkit ui")])


def _shown(rows: Rows) -> str:
    return "\n".join(f"{name:>10}  {text}" for name, text in rows)


def _untimed(run: Stored, *, verbose: bool) -> Rows:
    """Return rows on what came before the repeats."""
    names = ("setup", "first_step", "warmup", "compile")
    took = [run.quantities.get(f"time/{name}_seconds") for name in names]
    if None in took:
        return []
    build, first_step, warm, compiling = (seconds(value or 0.0) for value in took)
    unsettled = f", in which {run.tags['warm_up']}" if "warm_up" in run.tags else ""
    parts = f"{build} to build, {first_step} for the first step, {warm} of warm-up{unsettled}"
    rows = [("untimed", parts)]
    if verbose or (took[-1] or 0.0) > LEAST_COMPILE_S:
        lengths = run.tags.get("lengths", "")
        what = f"the first call of each length that is timed ({lengths})"
        rows.append(("compile", f"{compiling} in {what}, beyond the time of its steps"))
    return rows


def _times(run: Stored, summary: Summary, *, verbose: bool) -> Rows:
    rate = run.steps / summary.median
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    several = len(run.processes) > 1
    rows = [
        ("wall time", f"{seconds(summary.median)}{_spread(summary, several=several)}"),
        ("steps/s", f"{shown} ({seconds(summary.median / run.steps)} a step, {run.steps} steps)"),
    ]
    share = run.share_of_limit
    if share is not None and (verbose or share >= LEAST_SHARE):
        by = f"machine's {run.tags['limited_by']}" if "limited_by" in run.tags else "machine"
        rows.append(("speed", f"{percent(share)} of the most that this {by} allows"))
    if summary.outliers:
        count = f"{summary.outliers} of {summary.repeats} {'placements' if several else 'repeats'}"
        slowest = f"the slowest took {summary.worst:.3g} times the median"
        rows.append(("outliers", f"{count} far from the others; {slowest}"))
    return rows + _about_repeats(summary, several=several) * verbose


def _recorded(run: Stored) -> Rows:
    """Return rows of all figures as they are recorded in MLflow."""
    lines = [
        f"{quantity.name} {seconds(value) if quantity.unit else f'{value:.6g}'} ({quantity.label})"
        for quantity in quantities.QUANTITIES
        if quantity.unit != "ms" and (value := run.quantities.get(quantity.name)) is not None
    ]
    lines += [f"{name} {seconds(took)} (traced)" for name, took in run.parts.items()]
    return [("" if number else "recorded", line) for number, line in enumerate(lines)]


def _until_target(run: Stored) -> str:
    found = [run.quantities.get(f"target/{name}seconds") for name in ("", "low_", "high_")]
    if None in found:
        return ""
    middle, low, high = (seconds(value or 0.0) for value in found)
    return f", {middle} ({low} to {high})"


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
