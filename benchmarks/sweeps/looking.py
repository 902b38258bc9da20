"""What looking at results takes: `python -m benchmarks.sweeps.looking`.

The page of a sweep of 8 cells, and of 60 cells of one size and of thirty sizes, written five times
each in a process of its own that imports all it needs; and the start of `expkit ui`, until it says
its address, on an experiment of four runs and on one of a thousand, in turn.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.sweeps.page import table, write_section
from benchmarks.sweeps.place import Place

CELL = ("problem=linear", "steps=100", "tracking=none", "tracking.pictures=true")
FAST = "backend.fast=true,false"
PAGES = {
    "8 cells": ("optimizer=sgd,momentum,adam,rmsprop", "seed=0", 1.0),
    "60 cells": ("optimizer=sgd,momentum", "seed=range(15)", 2.0),
    "60 cells of 30 sizes": ("problem.batch_size=range(10,310,10)", "seed=0", 2.0),
}
"""By what there is on it: what is swept, and the most seconds."""
MOST_BYTES = 2_000_000
"""The most that a page may have."""
TIMES = 5
RUNS = (4, 1000)
PAIRS = 3
MORE_S = 3.0
"""The most seconds by which a thousand runs may delay the page."""
HEAD = ["", "s (least to greatest)", "at most"]
WRITE = """
import sys, time
begun = time.perf_counter()
from pathlib import Path
from expkit.sweeps import page
from expkit.sweeps.manifest import Manifest
from expkit.sweeps.ranking import Results
found = Results.read(Manifest.load(Path(sys.argv[1])))
assert page.write_wanted(found)[0]
print(time.perf_counter() - begun)
"""


def page_seconds(*words: str) -> tuple[list[float], int]:
    """Measure a sweep, and write its page; return the seconds of each time, and the page's size."""
    with TemporaryDirectory() as folder:
        place = Place(Path(folder))
        place.run("-m", *CELL, FAST, *words)
        [file] = place.outputs.glob("sweeps/*/*/report.html")
        command = [sys.executable, "-c", WRITE, str(file.parent)]
        env = {**os.environ, "EXPKIT_OUTPUTS": str(place.outputs)}
        found = [
            float(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
            for _ in range(TIMES)
        ]
        return found, file.stat().st_size


def ui_seconds(place: Place) -> float:
    """Start `expkit ui`, and return the seconds until it has said its address."""
    command = [sys.executable, "-m", "expkit", "ui", "--port", "0"]
    env = {**os.environ, "EXPKIT_OUTPUTS": str(place.outputs)}
    begun = time.monotonic()
    with subprocess.Popen(
        command, cwd=place.folder, env=env, stdout=subprocess.PIPE, text=True, process_group=0
    ) as server:
        assert server.stdout is not None
        next(line for line in server.stdout if "http://" in line)
        took = time.monotonic() - begun
        os.killpg(server.pid, signal.SIGINT)
    return took


def opened() -> list[list[float]]:
    """Return the seconds until `expkit ui` is there, for each number of runs."""
    with TemporaryDirectory() as folder:
        places = [Place(Path(folder, str(runs))) for runs in RUNS]
        for place, runs in zip(places, RUNS, strict=True):
            place.folder.mkdir()
            place.run("-m", *CELL[:2], f"seed=range({runs})", "sweep.timing=false")
        turns = [[ui_seconds(place) for place in places] for _ in range(PAIRS)]
    return [list(column) for column in zip(*turns, strict=True)]


def said(what: str, found: Sequence[float], most: float | None) -> list[object]:
    """Return a line of the table."""
    spread = f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
    return [what, spread, "" if most is None else f"{most:.2f}"]


def main() -> int:
    """Print the table and, if asked, write it into the page; return 1 if anything takes longer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.looking")
    parser.add_argument("--output", type=Path, help="a Markdown page, its section is replaced")
    given = parser.parse_args()
    rows, kept = [], True
    for cells, (optimizers, seeds, most) in PAGES.items():
        found, size = page_seconds(optimizers, seeds)
        kilobytes = f"{size / 1000:.0f} kB of at most {MOST_BYTES / 1000:.0f}"
        rows.append(said(f"page of {cells}, {kilobytes}", found, most))
        kept &= median(found) <= most and size <= MOST_BYTES
    few, many = opened()
    rows.append(said(f"`expkit ui`, {RUNS[0]} runs", few, None))
    rows.append(said(f"`expkit ui`, {RUNS[1]:,} runs", many, median(few) + MORE_S))
    kept &= median(many) <= median(few) + MORE_S
    print(*table(HEAD, rows), sep="\n")
    if given.output:
        about = (
            "a sweep's page, written in a process of its\nown, imports included, and MLflow's page "
            "from the command to its address; medians."
        )
        command = "python -m benchmarks.sweeps.looking"
        write_section(given.output, "Looked at", command, about, table(HEAD, rows))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
