"""The short table after a run."""

from __future__ import annotations

from pathlib import Path

from expkit.config import Cell
from expkit.measure.statistics import Summary
from expkit.measurement import Result
from expkit.report import breakdown
from expkit.report.units import seconds


def table(cell: Cell, result: Result, folder: Path) -> str:
    """What was found, a line each, for a terminal."""
    rows = [("", cell.title)]
    if result.losses.size:
        rows.append(("loss", f"{result.losses[0]:.6g} -> {result.losses[-1]:.6g}"))
    if result.summary:
        rows += _times(result.summary, result, cell.workload.steps)
    if result.breakdown:
        rows += breakdown.rows(result.breakdown)
    if result.summary and result.warm_up and result.setup_seconds is not None:
        first, warm = seconds(result.warm_up.first_seconds), seconds(result.warm_up.seconds)
        unsettled = "" if result.warm_up.settled else ", in which a step's time did not settle"
        rows.append(("set-up", f"{seconds(result.setup_seconds)}, then a first step of {first}"))
        rows.append(("warm-up", f"{warm}{unsettled}"))
    if result.path_reason:
        rows.append(("path", f"{result.path}, because {result.path_reason}"))
    if result.summary:
        rows.append(("answer", result.checked))
        rows.append(("stable", "no: " + "; ".join(result.unstable) if result.unstable else "yes"))
    rows += [("unlike", difference) for difference in result.unlike]
    reason = f": {result.reason}; no time is given" if result.reason else ""
    rows.append(("outcome", result.outcome + reason))
    rows.append(("where", str(folder)))
    if result.sent and result.sent.run_id:
        rows.append(("", f"MLflow run {result.sent.run_id}; see it with: expkit ui"))
    return "\n".join(f"{name:>10}  {text}" for name, text in rows)


def _times(summary: Summary, result: Result, steps: int) -> list[tuple[str, str]]:
    rate = steps / summary.median
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    rows = [
        ("wall time", f"{seconds(summary.median)}, {_spread(summary, len(result.processes))}"),
        ("steps/s", f"{shown} ({seconds(summary.median / steps)} a step, {steps} steps)"),
    ]
    if result.limit is not None and result.limit_share is not None:
        share, binds = result.limit_share, result.limit.binds
        rows.append(("limit", f"{share:.0%} of what this machine's {binds} allows"))
    parts = []
    if summary.placement_share is not None:
        unit = "process" if len(result.processes) > 1 else "placement"
        parts.append(f"{summary.placement_share:.0%} of the variance is {unit}")
    if summary.outliers:
        of = "placements" if len(result.processes) > 1 else "repeats"
        count = f"{summary.outliers} of {summary.repeats} {of}"
        parts.append(f"{count} outlying, the slowest {summary.worst:.2f} times the median")
    return rows + [("spread", "; ".join(parts))] * bool(parts)


def _spread(summary: Summary, processes: int) -> str:
    if summary.repeats == 1:
        return "one repeat: its spread is not known"
    of, units = ("placements", "processes") if processes > 1 else ("repeats", "placements")
    what = "95 % interval of the median" if summary.interval else "least to greatest"
    half = summary.half_width
    ends = f"{seconds(summary.low)} to {seconds(summary.high)}"
    spread = f"± {half:.1%}" if half < 0.2 and summary.interval else ends
    count = f"{summary.repeats} {of} in {summary.rounds} {units}"
    return f"{spread} ({what}, {count})"
