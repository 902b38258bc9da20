"""Run all combinations that ship, to find false alarms: `python -m benchmarks.combinations`.

They combine problems, backends, optimizers, dtypes, one or all threads, and two sizes: the one that
the problem recommends and ten times that; `large_dot` is also run at thirty times, where a sum in
float32 is least exact. Each is run for two repeats and has to be ok; the exit status is 1 if one is
not.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.faults import Case, run_here

SIZES = {
    "sine": ("problem.n=2000", "problem.n=20000"),
    "linear": ("problem.batch_size=20", "problem.batch_size=200"),
    "large_dot": ("problem.n=1000000 steps=30", "problem.n=10000000 steps=10"),
    "add": ("problem.n=1000", "problem.n=10000 steps=2"),
    "matmul": ("problem.n=100", "problem.n=1000 steps=10"),
}
LARGEST = ("large_dot", "problem.n=30000000 steps=5")
OPERATIONS = ("add", "matmul")
OPTIMIZERS = ("sgd", "momentum", "adam", "rmsprop")
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


def cases() -> Iterator[Case]:
    """Yield all combinations, those of small size first."""
    sizes = [(problem, sizes[index]) for index in range(2) for problem, sizes in SIZES.items()]
    for problem, size in (*sizes, LARGEST):
        one = problem in OPERATIONS or (problem, size) == LARGEST
        optimizers = OPTIMIZERS[:1] if one else OPTIMIZERS
        for backend, dtype, threads, optimizer in product(BACKENDS, DTYPES, THREADS, optimizers):
            words = (
                f"problem={problem}",
                *size.split(),
                f"backend={backend}",
                f"backend.dtype={dtype}",
                f"backend.threads={threads}",
                f"optimizer={optimizer}",
            )
            yield Case(backend, problem, (*words, *QUICK), honest=True)


def main() -> int:
    """Run all combinations; print a line for each that is not ok."""
    found = Counter[str]()
    with TemporaryDirectory() as place:
        for number, case in enumerate(cases()):
            came = run_here(case, Path(place, str(number)), DEADLINE_S)
            found[came.outcome] += 1
            if came.outcome != "ok":
                print(f"{' '.join(case.words[: -len(QUICK)])}: {came.outcome}: {came.reason}")
                sys.stdout.flush()
    print(f"{found['ok']} of {found.total()} ok; {dict(found)}")
    return 0 if found["ok"] == found.total() else 1


if __name__ == "__main__":
    sys.exit(main())
