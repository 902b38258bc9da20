"""Whether a cell takes as long in a process of its own as in this one: `python -m benchmarks.door`.

Python's `expkit.run` measures a cell in a new process, the command line in its own. Here one trial
of each kind takes turns: their verdict should be SAME, and must never be FASTER or SLOWER.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import expkit
from expkit.conduct import as_a_program, conduct
from expkit.config import Cell
from expkit.measure.verdict import FASTER, SAME, SLOWER, Verdict, held
from expkit.remote import Attempt, RemoteTrial
from expkit.trial import Trial

WORDS = ("problem=sine", "measure=standard", "measure.budget_s=10", "measure.repeats_max=100000")


def pair(cell: Cell) -> Verdict:
    """Compare a trial in a process of its own with one in this process."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        here = stack.enter_context(Trial(cell, Path(place, "a"), {}, None, lambda now: None))
        attempt = Attempt(cell.frozen, Path(place, "b"), {}, None)
        there = stack.enter_context(RemoteTrial(cell, attempt))
        there.wait()
        stack.enter_context(as_a_program())
        conduct([here, there], [None, 0], compared=True)
        return held(here, there, cell.measure.threshold)


def main() -> int:
    """Print every verdict and the count of each; return 1 if one is FASTER or SLOWER."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.door")
    parser.add_argument("--pairs", type=int, default=40)
    given = parser.parse_args()
    found = Counter[str]()
    for _ in range(given.pairs):
        verdict = pair(expkit.cell(*WORDS, tracking="none"))
        found[verdict.word] += 1
        print(f"{verdict.word} {verdict.ratio:.3f} {verdict.interval}", flush=True)
    print(f"{found[SAME]} of {given.pairs} {SAME}; {dict(found)}")
    return 1 if found[FASTER] + found[SLOWER] else 0


if __name__ == "__main__":
    raise SystemExit(main())
