"""The note of a run: five lines of Markdown, which MLflow's page shows with it."""

from __future__ import annotations

import shlex

from expkit.config import Cell
from expkit.outcome import Outcome
from expkit.record.result import Result
from expkit.units import seconds

TAG = "mlflow.note.content"


def note(cell: Cell, result: Result, verdict: str | None) -> str:
    """Say what ran, how long it took, how it compares, what to doubt, and how to repeat it.

    Args:
        verdict: the verdict in words; None where it is compared with no other run.
    """
    facts, summary = result.facts, result.summary
    steps = int(facts.get("ended", cell.workload.steps))
    where = f", {facts['dtype']} on {facts['device']}" if facts else ""
    lines = [f"**{cell.title}**, {steps} steps{where}"]
    if summary:
        ends = f"{seconds(summary.low)} to {seconds(summary.high)}"
        lines.append(
            f"{seconds(summary.median)} ({ends}), {seconds(summary.median / steps)} a step"
        )
    elif result.outcome == Outcome.RUNNING:
        lines.append("no time yet")
    elif result.outcome == Outcome.OK:
        lines.append("not timed")
    else:
        why = f": {result.reason}" if result.reason else ""
        lines.append(f"no time: {result.outcome}{why}")
    lines.append(f"verdict: {verdict or 'compared with none'}")
    doubts = [*result.unstable, *result.broken]
    checked = result.checked or "the answer was not checked"
    if doubts:
        lines.append(f"doubtful: {'; '.join(doubts)}")
    else:
        lines.append(f"stable; {checked}" if summary else checked)
    lines.append(f"again: `expkit {shlex.join(cell.frozen['words'])}`")
    return "\n".join(f"- {line}" for line in lines)
