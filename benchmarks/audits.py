"""How long the audits and the further checks of default runs take: `python -m benchmarks.audits`.

They look for work off the clock and check later steps; see docs/measurement.md. Default runs of
`sine` are made one after the other, and the seconds of these checks in each are printed, then their
median. The exit status is 1 if that is more than the quarter of a second that is promised, or a run
is not ok.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import expkit
from expkit.measure.audits import Audits
from expkit.measure.verification import Verification
from expkit.units import seconds

CHECKS: tuple[tuple[type, str], ...] = (
    (Audits, "early"),
    (Audits, "enlarged"),
    (Audits, "before"),
    (Audits, "after"),
    (Verification, "wrong_further"),
)
MOST_S = 0.25


def timed(check: Callable[..., Any], taken: list[float]) -> Callable[..., Any]:
    """Return the check as it is, but that its seconds are noted."""

    @wraps(check)
    def same(*given: Any) -> Any:
        start = perf_counter()
        try:
            return check(*given)
        finally:
            taken.append(perf_counter() - start)

    return same


def main() -> int:
    """Make the runs; print what the checks of each took, and the median."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audits")
    parser.add_argument("--runs", type=int, default=12)
    runs = parser.parse_args().runs
    taken: list[float] = []
    for owner, name in CHECKS:
        setattr(owner, name, timed(getattr(owner, name), taken))
    totals, outcomes = [], set()
    cell = expkit.cell(problem="sine", tracking="none")
    with tempfile.TemporaryDirectory() as place:
        for number in range(runs):
            taken.clear()
            run = expkit.run(cell, here=True, folder=Path(place, str(number)))
            totals.append(sum(taken))
            outcomes.add(run.outcome)
            print(f"{number + 1:3}  {seconds(totals[-1]):>8}  {run.outcome}", flush=True)
    print(f"median {seconds(median(totals))}; at most {seconds(MOST_S)} is promised")
    return 0 if median(totals) <= MOST_S and outcomes == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
