"""The short table after a run."""

from __future__ import annotations

from pathlib import Path

from expkit.config import Cell
from expkit.measure.statistics import Summary
from expkit.runner import Result


def table(cell: Cell, result: Result, folder: Path) -> str:
    """What was found, a line each, for a terminal."""
    rows = [("", cell.title)]
    if result.losses.size:
        rows.append(("loss", f"{result.losses[0]:.6g} -> {result.losses[-1]:.6g}"))
    summary, steps = result.summary, cell.workload.steps
    if summary:
        rows.append(("wall time", f"{seconds(summary.median)}, {_spread(summary, result)}"))
        rate = steps / summary.median
        shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
        rows.append(
            ("steps/s", f"{shown} ({seconds(summary.median / steps)} a step, {steps} steps)")
        )
    if result.setup_seconds is not None and result.warmup_seconds is not None:
        rows.append(("set-up", seconds(result.setup_seconds)))
        rows.append(("warm-up", seconds(result.warmup_seconds)))
    outcome = result.outcome
    if result.first_bad_step is not None:
        outcome += f": the loss is not finite from step {result.first_bad_step}; no time is given"
    rows.append(("outcome", outcome))
    rows.append(("where", str(folder)))
    if result.sent and result.sent.run_id:
        rows.append(("", f"MLflow run {result.sent.run_id}; see it with: expkit ui"))
    return "\n".join(f"{name:>10}  {text}" for name, text in rows)


def _spread(summary: Summary, result: Result) -> str:
    count = len(result.wall_seconds)
    if count == 1:
        return "one repeat: its spread is not known"
    what = "95 % interval of the median" if summary.interval else "least to greatest"
    half = (summary.high - summary.low) / 2 / summary.median
    ends = f"{seconds(summary.low)} to {seconds(summary.high)}"
    spread = f"± {half:.1%}" if half < 0.2 and summary.interval else ends
    return f"{spread} ({what}, {count} repeats)"


def seconds(value: float) -> str:
    """Seconds in the unit that a person reads.

    >>> seconds(0.0123), seconds(4.2e-6), seconds(75)
    ('12.3 ms', '4.2 µs', '75 s')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
