"""How often a verdict is wrong, and how often a slowdown is found: `python -m benchmarks.verdicts`.

Pairs of cells are compared as `expkit compare` does it, each side built anew, while another process
uses a core in irregular bursts. A against itself should never be FASTER or SLOWER; A against A that
takes longer should be SLOWER. It takes longer by a share of what its steps have just taken: as more
work would, and unlike a delay of fixed length, of which less is left while others have the core.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import Any

import expkit
from benchmarks.load import load
from benchmarks.machine import machine
from expkit.contracts import Program, Workload
from expkit.measure.verdict import CANT_TELL, FASTER, SAME, SLOWER

BUDGET_S = 10
CASES = {
    "sine, 2,000 points": ("problem=sine", "steps=2000"),
    "sine, 20,000 points": ("problem=sine", "problem.n=20000", "steps=300"),
    "linear": ("problem=linear", "steps=2000"),
    "large_dot, n = 10^5": ("problem=large_dot", "problem.n=100000", "steps=10"),
}
"""Steps are such that a repeat takes some 10 ms."""
PLANTED = {0.0: (FASTER, SLOWER), 0.05: (SLOWER,), 0.2: (SLOWER,)}
"""By what share it takes longer, and the verdicts that are counted."""


class Slowed:
    """A program that takes longer by a share of its time."""

    def __init__(self, program: Program, share: float) -> None:
        self._program, self._share = program, share

    def advance(self, n: int) -> None:
        start = perf_counter()
        self._program.advance(n)
        now = perf_counter()
        end = now + self._share * (now - start)
        while perf_counter() < end:
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)


class SlowedBackend:
    """A backend whose programs are slowed."""

    def __init__(self, backend: Any, share: float) -> None:
        self._backend, self._share = backend, share

    def build(self, workload: Workload) -> Any:
        return Slowed(self._backend.build(workload), self._share)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


@dataclass(frozen=True)
class Pair:
    """One comparison: its verdict, ratio and seconds."""

    word: str
    ratio: float
    seconds: float


def pair(words: tuple[str, ...], share: float) -> Pair:
    """Compare a cell with itself, slowed by a share of its time."""
    measure = ("measure=standard", f"measure.budget_s={BUDGET_S}", "measure.repeats_max=100000")
    with tempfile.TemporaryDirectory() as place:
        given = {"tracking": "none", "tracking.pictures": False, "outputs": place}
        a, b = (expkit.cell(*measure, *words, **given) for _ in range(2))
        a.backend.configure()
        if share:
            b = replace(b, backend=SlowedBackend(b.backend, share))
        start = monotonic()
        found = expkit.compare(a, b, here=True)
        seconds = monotonic() - start
    if found.verdict is None:
        raise SystemExit(f"no verdict: {found}")
    return Pair(found.verdict.word, found.verdict.ratio, seconds)


def rows(pairs: int, tell: Callable[[str], None]) -> list[str]:
    """The table's lines."""
    lines = []
    for share, counted in PLANTED.items():
        for what, words in CASES.items():
            found = [pair(words, share) for _ in range(pairs)]
            words_found = Counter(p.word for p in found)
            hits = sum(words_found[word] for word in counted)
            ratios = [p.ratio for p in found]
            cells = [
                what,
                f"slower by {share:.0%}" if share else "itself",
                f"{hits} of {pairs} {' or '.join(counted)}",
                ", ".join(f"{words_found[w]} {w}" for w in (FASTER, SLOWER, SAME, CANT_TELL)),
                f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                f"{median(p.seconds for p in found):.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
            tell(lines[-1])
    return lines


def report(lines: list[str], pairs: int) -> str:
    """The page."""
    head = [
        "# Verdicts",
        "",
        f"`python -m benchmarks.verdicts`: {pairs} pairs a row, each side built anew, at most",
        f"{BUDGET_S} s of measuring a pair, threshold 2 %, on NumPy in float64, while another",
        "process takes a core about half of the time.",
        "",
        *machine(),
        "",
        "| cell | against | found | all verdicts | ratio: median (least to greatest) | s a pair |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *lines]) + "\n"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--output", type=Path, help="a Markdown file to write")
    given = parser.parse_args()
    with load(0.01, 0.5):
        lines = rows(given.pairs, lambda line: print(line, flush=True))
    if given.output:
        given.output.write_text(report(lines, given.pairs))


if __name__ == "__main__":
    main()
