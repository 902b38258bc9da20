"""Make default runs while other processes work in bursts longer than a run's budget.

    python -m benchmarks.bursts [--runs 20]

One process for each core works 0.3 to 1 s and rests as long, at random. Meanwhile
`python -m expkit problem=sine tracking=none` runs `--runs` times, one run after the other. A run
keeps expkit's promise if its median lies within a tenth of the others' or if it says `stable: no`
and why. The exit status is 0 if at least 18 of 20 do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import expkit
from benchmarks.load import load
from expkit.units import seconds

COMMAND = (sys.executable, "-m", "expkit", "problem=sine", "tracking=none")
SHORTEST_S, LONGEST_S = 0.3, 1.0
NEAR = 0.1
"""The share by which two medians may differ."""
KEPT = 18 / 20


def default_run(folder: Path) -> expkit.Run:
    """Make a run by the command line, as a user does."""
    words = (f"hydra.run.dir={folder}",)
    subprocess.run([*COMMAND, *words], stdout=subprocess.DEVNULL, check=True)
    found = expkit.load(folder)
    assert isinstance(found, expkit.Run)
    return found


def time_of(run: expkit.Run) -> float:
    """Return the time that the run reports."""
    assert run.seconds is not None
    return run.seconds


def largest_group(times: Sequence[float]) -> list[float]:
    """Return the largest group of times that lie within a tenth of each other.

    >>> largest_group([1.0, 1.5, 1.05, 1.09, 1.4])
    [1.0, 1.05, 1.09]
    """
    groups = [[t for t in sorted(times) if low <= t <= (1 + NEAR) * low] for low in times]
    return max(groups, key=len, default=[])


def main() -> int:
    """Make the runs; print a line for each, and how many keep expkit's promise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bursts")
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    found: list[tuple[expkit.Run, float]] = []
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place, load(SHORTEST_S, LONGEST_S, cores):
        for number in range(runs):
            begun = perf_counter()
            found.append((default_run(Path(place, str(number))), perf_counter() - begun))
            run, took_s = found[-1]
            print(f"{number + 1:3}  {seconds(time_of(run)):>8}, {took_s:.1f} s  {run.stable}")
            sys.stdout.flush()
    near = largest_group([time_of(run) for run, _ in found])
    said = [run for run, _ in found if run.stable != "yes"]
    kept = [run for run, _ in found if run.stable != "yes" or time_of(run) in near]
    times = sorted(time_of(run) for run, _ in found)
    print(f"medians from {seconds(times[0])} to {seconds(times[-1])}")
    print(f"{len(near)} of {runs} within {NEAR:.0%} of each other; {len(said)} say no and why")
    print(f"{len(kept)} of {runs} do one or the other; {KEPT:.0%} are promised")
    return 0 if len(kept) >= KEPT * runs else 1


if __name__ == "__main__":
    sys.exit(main())
