"""Run all combinations that ship, to find false alarms: `python -m benchmarks.combinations`.

They combine problems, backends, optimizers, dtypes, one or all threads, and two sizes: the one that
the problem recommends and ten times that, where its data do not fix it; `large_dot` is also run at
thirty times, where a sum in float32 is least exact. Each is run for two repeats and has to be ok;
the exit status is 1 if one is not. For each problem the least and the greatest share of its steps
that could be checked is printed. Names of problems choose some of them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.faults import Case, run_here
from expkit.config import compose_cell, options
from expkit.errors import UnsetError
from expkit.record.stored import load

SIZES = {
    "sine": ("problem.n=2000", "problem.n=20000"),
    "linear": ("problem.batch_size=20", "problem.batch_size=200"),
    "large_dot": ("problem.n=1000000 steps=30", "problem.n=10000000 steps=10"),
    "add": ("problem.n=1000", "problem.n=10000 steps=2"),
    "matmul": ("problem.n=100", "problem.n=1000 steps=10"),
    "ridge": ("",),
    "lasso": ("",),
    "logistic": ("problem.batch_size=null", "problem.batch_size=32"),
    "mlp": ("problem.hidden=64", "problem.hidden=640 steps=200"),
    "rosenbrock": ("problem.n=100", "problem.n=1000"),
    "matrix_factorization": ("problem.n=200", "problem.n=2000 steps=100"),
}
LARGEST = ("large_dot", "problem.n=30000000 steps=5")
OPERATIONS = ("add", "matmul")
BACKENDS = ("numpy", "torch")
DTYPES = ("float64", "float32")
THREADS = ("1", "null")
QUICK = (
    "measure.repeats_min=2",
    "measure.repeats_max=2",
    "measure.budget_s=0",
    "measure.settle_s=0",
    "tracking=none",
)
DEADLINE_S = 300.0


def cases(problems: Sequence[str], threads: Sequence[str]) -> Iterator[Case]:
    """Yield all combinations of these problems, those of small size first."""
    chosen = {name: SIZES[name] for name in problems or SIZES}
    sizes = [(name, own[i]) for i in range(2) for name, own in chosen.items() if i < len(own)]
    largest = [LARGEST] if LARGEST[0] in chosen else []
    for problem, size in (*sizes, *largest):
        one = problem in OPERATIONS or (problem, size) == LARGEST
        optimizers = ["sgd"] if one else options("optimizer")
        for backend, dtype, count, optimizer in product(BACKENDS, DTYPES, threads, optimizers):
            words = (
                f"problem={problem}",
                *size.split(),
                f"backend={backend}",
                f"backend.dtype={dtype}",
                f"backend.threads={count}",
                f"optimizer={optimizer}",
            )
            with suppress(UnsetError):  # the problem recommends no rate: the two do not fit
                compose_cell(*words)
                yield Case(backend, problem, (*words, *QUICK), honest=True)


def checked(folder: Path) -> float | None:
    """The share of a run's steps that were checked from its start on; None if none was."""
    run = load(folder)
    said = re.search(r"on (?:all|the first) (\d+)|on the only step", run.answer)
    return int(said[1] or 1) / run.steps if said else None


def main() -> int:
    """Run the combinations; print a line for each that is not ok."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.combinations")
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help=", ".join(SIZES))
    parser.add_argument("--threads", nargs="+", default=THREADS)
    given = parser.parse_args()
    found = Counter[str]()
    shares: dict[str, list[float]] = {}
    with TemporaryDirectory() as place:
        for number, case in enumerate(cases(given.problems, given.threads)):
            folder = Path(place, str(number))
            came = run_here(case, folder, DEADLINE_S)
            found[came.outcome] += 1
            if came.outcome != "ok":
                print(f"{' '.join(case.words[: -len(QUICK)])}: {came.outcome}: {came.reason}")
                sys.stdout.flush()
            for journal in folder.rglob("journal.jsonl"):
                if (share := checked(journal.parent)) is not None:
                    shares.setdefault(case.cell, []).append(share)
    for problem, own in shares.items():
        print(f"{problem}: {min(own):.0%} to {max(own):.0%} of the steps checked, {len(own)} runs")
    print(f"{found['ok']} of {found.total()} ok; {dict(found)}")
    return 0 if found["ok"] == found.total() else 1


if __name__ == "__main__":
    sys.exit(main())
