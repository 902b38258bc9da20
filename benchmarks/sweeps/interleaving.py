"""What a load that comes half-way does to a ratio: `python -m benchmarks.sweeps.interleaving`.

Two cells that differ by their rate alone, so that the true ratio is 1, are measured twice: as a
sweep that interleaves their repeats, and one after the other. Half-way through each, processes
begin to work on every CPU. For cells that took turns the ratio is expkit's own, the median over
their rounds; for cells in sequence it is the ratio of their medians. The move is |log ratio|, and
the result is its median over the sweeps. The exit status is 1 if the move with interleaving is not
below a third of the move without.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.sweeps.page import table, write_section
from benchmarks.sweeps.place import Place
from expkit.measure.statistics import summarize
from expkit.measure.verdict import judge
from expkit.sweeps.manifest import Manifest

RATES = ("1e-6", "1.01e-6")
SECONDS = 3.0
"""The time for which each cell is measured."""
WORDS = (
    "-m",
    "problem=sine",
    "steps=2000",
    "optimizer.lr=" + ",".join(RATES),
    "tracking=none",
    "measure.target_ci=0",
    f"measure.budget_s={SECONDS}",
    "measure.repeats_max=1000000",
)
WAYS = {"in turn": "sweep.workers=2", "one after the other": "sweep.workers=1"}
HEAD = ["", "median move", "least to greatest", "rounds"]
BURN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100000))"


@contextmanager
def burden() -> Iterator[None]:
    """Keep every CPU busy with a process, which ends with this one at the latest."""
    cpus = sorted(os.sched_getaffinity(0))
    burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in cpus]
    for burner, cpu in zip(burners, cpus, strict=True):
        os.sched_setaffinity(burner.pid, [cpu])
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def move(way: str) -> float:
    """How far the ratio is from 1 in one sweep, as |log ratio|."""
    with TemporaryDirectory() as folder:
        place = Place(Path(folder))
        ended = threading.Event()

        def load_half_way() -> None:
            while len(_journals(place)) < 1 + (way != "in turn") and not ended.wait(0.01):
                pass
            if way == "in turn":
                _await_samples(place, ended)
                ended.wait(SECONDS)  # half of the time of both cells
            with burden():
                ended.wait()

        thread = threading.Thread(target=load_half_way)
        thread.start()
        try:
            place.run(*WORDS, WAYS[way])
        finally:
            ended.set()
            thread.join()
        (file,) = place.outputs.glob("sweeps/*/*/sweep.json")
        manifest = Manifest.load(file.parent)
        runs = [manifest.result(cell) for cell in manifest.cells]
        one, other = (run.rounds for run in runs if run)
    if way == "in turn":
        common = min(len(one), len(other))
        ratio = judge(one[:common], other[:common], threshold=0.02).ratio
    else:
        ratio = summarize(other).median / summarize(one).median
    return abs(math.log(ratio))


def _journals(place: Place) -> list[Path]:
    return list(place.outputs.glob("sweeps/*/*/*/journal.jsonl"))


def _await_samples(place: Place, ended: threading.Event) -> None:
    """Wait until the first repeat has been timed."""
    while not any('"sample"' in file.read_text() for file in _journals(place)):
        if ended.wait(0.01):
            return


def main() -> int:
    """Print the table and, if asked, write it into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.interleaving")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, help="a Markdown page, its section is replaced")
    given = parser.parse_args()
    moves: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(given.rounds):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            moves[way].append(move(way))
            print(f"{way}: {moves[way][-1]:.4f}", flush=True)
    middles = {way: median(found) for way, found in moves.items()}
    rows = [
        [way, f"{middles[way]:.4f}", f"{min(found):.4f} to {max(found):.4f}", given.rounds]
        for way, found in moves.items()
    ]
    share = middles["in turn"] / middles["one after the other"]
    said = f"In turn it moves by {share:.2f} of what it moves by one after the other."
    print(*table(HEAD, rows), "", said, sep="\n")
    if given.output:
        about = (
            "two cells of the same work, true ratio 1;\nhalf-way through their measuring a process "
            "begins to work on every CPU. The move is |log ratio|:\n0.01 is one per cent."
        )
        lines = [*table(HEAD, rows), "", said]
        command = "python -m benchmarks.sweeps.interleaving"
        write_section(given.output, "A load half-way", command, about, lines)
    return 0 if share < 1 / 3 else 1


if __name__ == "__main__":
    sys.exit(main())
