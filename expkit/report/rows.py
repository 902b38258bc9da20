"""Runs in plain values, for frames and files: a row a run, a repeat or a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from expkit.record import quantities
from expkit.record.stored import Stored, losses_of
from expkit.tracking import sync_state

Row = dict[str, object]

OPTIONS = ("problem", "backend", "optimizer")
SHOWN = ("time/median_seconds", "time/low_seconds", "time/high_seconds", "final/loss")
"""Quantities that have short names in a row of a run."""


def keys(runs: Sequence[Stored]) -> list[str]:
    """Return the keys of the configuration in which runs that have them differ, beside options."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.config.items():
            values.setdefault(key, set()).add(str(value))
    apart = ("used.", "actual.", "tracking.")  # actual: from an older expkit
    several = (key for key, found in values.items() if len(found) > 1)
    return [key for key in several if key not in OPTIONS and not key.startswith(apart)]


def of_run(run: Stored, own: Sequence[str]) -> Row:
    """Return a run's row.

    Args:
        own: the keys of the configuration to include.
    """
    summary = run.summary
    found: Row = {
        **_which(run, own),
        "outcome": str(run.outcome),
        "reason": run.reason or None,
        "seconds": summary.median if summary else None,
        "low": summary.low if summary else None,
        "high": summary.high if summary else None,
        "loss": _finite(run.loss),
        "stable": run.stable,
        "steps": run.ended_after or run.config.get("steps"),
        "device": run.tags.get("device"),
        "dtype": run.tags.get("dtype"),
    }
    for quantity in quantities.QUANTITIES:
        if quantity.name.startswith("target/") and not run.target:
            continue
        if quantity.name not in SHOWN and quantity.unit != "ms":
            found[quantity.name] = _finite(run.quantities.get(quantity.name))
    found |= {f"{quantities.EVAL}{name}": _finite(x) for name, x in run.evaluated.items()}
    found["answer"] = run.answer or None
    found["mlflow_run"] = sync_state.read(run.folder).get("run_id")
    found["folder"] = str(run.folder)
    return found


def of_repeats(run: Stored, own: Sequence[str]) -> Iterator[Row]:
    """Yield a row for each timed repeat of a run, with the seconds that it took."""
    which = _which(run, own)
    for process, rounds in enumerate(run.processes):
        for placement, repeats in enumerate(rounds):
            for repeat, seconds in enumerate(repeats):
                place: Row = {"process": process, "placement": placement, "repeat": repeat}
                yield {**which, **place, "seconds": seconds}


def of_steps(run: Stored, own: Sequence[str]) -> Iterator[Row]:
    """Yield a row for each step of a run's first repeat.

    `seconds` is when the step ended, see `losses_of`; None in a run without times. A loss that is
    not finite is None.
    """
    which = _which(run, own)
    losses, ended = losses_of(run.folder)
    for step, (loss, seconds) in enumerate(zip(losses.tolist(), ended.tolist(), strict=True)):
        yield {**which, "step": step, "loss": _finite(loss), "seconds": _finite(seconds)}


def _which(run: Stored, own: Sequence[str]) -> Row:
    """Return what tells a run from the others."""
    number = run.tags.get("sweep.cell")
    return {
        "run": run.name,
        "sweep": run.tags.get("sweep"),
        "cell": int(number) if number and number.isdecimal() else None,
        **{key: run.config.get(key) for key in (*OPTIONS, *own)},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
