"""`make bench`: every number that expkit promises about its own speed, as ratios.

    python -m benchmarks [--output FILE.md] [--rounds N]

The two sides of a row run in turn in one process (whole commands: in processes in turn); the
ratio is the median over the pairs, with the least and the greatest beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import cast

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks import loops
from benchmarks.machine import machine
from benchmarks.pairs import Paired, paired
from benchmarks.programs import advance, draw_seconds, process, program, tutorial_large_dot
from expkit.config import compose_cell
from expkit.contracts import Program
from expkit.measure.clock import timed
from expkit.measure.evaluation import Evaluation
from expkit.measure.subject import Subject
from expkit.units import seconds

LARGE = 10_000_000


@dataclass(frozen=True)
class Row:
    """A promise or, without a bound, a fact: subject, bound, measurement, and whether it holds."""

    what: str
    bound: str
    measured: str
    holds: bool


def times(pair: Paired, steps: int, *, inverse: bool) -> str:
    """Return the ratio (least to greatest) with both times per step."""
    low, ratio, high = pair.low, pair.ratio, pair.high
    if inverse:
        low, ratio, high = 1 / high, 1 / ratio, 1 / low
    both = f"{seconds(pair.ours / steps)} against {seconds(pair.other / steps)}"
    return f"{ratio:.2f} ({low:.2f} to {high:.2f}): {both} a step"


def faster(what: str, bound: float, pair: Paired, steps: int) -> Row:
    """Promise to be at least `bound` times faster than the other."""
    measured = times(pair, steps, inverse=False)
    return Row(what, f"at least {bound:g} times faster", measured, pair.ratio >= bound)


def no_slower(what: str, bound: float, pair: Paired, steps: int) -> Row:
    """Promise to take at most `bound` times the other's time."""
    measured = times(pair, steps, inverse=True)
    return Row(what, f"at most {bound:g} times the time", measured, 1 / pair.ratio <= bound)


def sine_numpy(rounds: int) -> list[Row]:
    """Compare sine on NumPy with the tutorial's loop and with a careful one."""
    steps, lr = 2000, 1e-6
    ours = program(steps * (2 * rounds + 3), "problem=sine", "backend=numpy")
    start = ours.params()["w"]
    x = np.linspace(-np.pi, np.pi, 2000)
    y, basis = np.sin(x), np.stack([x**k for k in range(4)])
    ours.advance(steps)
    theirs, _ = loops.sine_tutorial_numpy(x, y, start, steps, lr)
    difference = float(np.abs(ours.params()["w"] - theirs).max())
    tutorial = paired(
        lambda: ours.advance(steps),
        lambda: loops.sine_tutorial_numpy(x, y, start, steps, lr),
        rounds,
    )
    careful = paired(
        lambda: ours.advance(steps),
        lambda: loops.sine_careful_numpy(basis, y, start, steps, lr),
        rounds,
    )
    return [
        faster("sine, numpy, float64, against the tutorial's loop", 35, tutorial, steps),
        Row(
            "… and the final parameters differ by", "1e-9", f"{difference:.1e}", difference <= 1e-9
        ),
        no_slower("sine, numpy, against a careful in-place loop", 1.2, careful, steps),
    ]


def sine_torch(rounds: int) -> list[Row]:
    """Compare sine on PyTorch with an autograd loop on the same basis."""
    steps, lr = 2000, 1e-6
    ours = program(steps * (rounds + 1), "problem=sine", "backend=torch")
    start = torch.tensor(ours.params()["w"])
    x = torch.linspace(-np.pi, np.pi, 2000, dtype=torch.float64)
    y, basis = torch.sin(x), torch.stack([x**k for k in range(4)])
    pair = paired(
        lambda: ours.advance(steps),
        lambda: loops.sine_careful_torch(basis, y, start, steps, lr),
        rounds,
    )
    return [no_slower("sine, torch CPU, against an autograd loop", 1.15, pair, steps)]


def linear(rounds: int) -> list[Row]:
    """Compare linear with loops that do the same work, both drawing on the host."""
    steps, lr, batch = 2000, 0.01, 20
    both = {"numpy": loops.linear_careful_numpy, "torch": loops.linear_careful_torch}
    rows = []
    for backend, loop in both.items():
        ours = program(steps * (rounds + 1), "problem=linear", f"backend={backend}")
        pair = paired(partial(ours.advance, steps), partial(loop, batch, steps, lr, 0), rounds)
        what = f"linear, {backend}, against a loop that does the same work"
        rows.append(no_slower(what, 1.3, pair, steps))
    return rows


def mlp(rounds: int) -> list[Row]:
    """Compare the network on digits with the same by hand, and see what evaluating it adds."""
    steps, lr, batch = 2000, 0.5, 64
    ours = program(steps * (rounds + 1), "problem=mlp", "backend=numpy", "backend.threads=1")
    start, arrays = ours.params(), ours.arrays()
    x, y = arrays["data.x"].copy(), arrays["data.y"].copy()
    with threadpool_limits(1, "blas"):
        pair = paired(
            partial(ours.advance, steps),
            partial(loops.mlp_careful_numpy, x, y, start, batch, steps, lr, 0),
            rounds,
        )
        share = evaluation_share(rounds)
    what = "mlp on digits, numpy, one thread: evaluating every 100 steps takes, of their time"
    return [
        no_slower("mlp on digits, numpy, against a careful in-place loop", 1.2, pair, steps),
        Row(what, "2%", f"{share:.1%}", share < 0.02),
    ]


def evaluation_share(rounds: int) -> float:
    """The time of an evaluation over that of the 100 steps before it, the median of some."""
    cell = compose_cell("tracking=none", "problem=mlp", "backend.threads=1")
    subject = Subject(cell.backend, cell.workload, 100, "numpy")
    subject.begin()
    evaluation, shares = Evaluation(subject, 100), []
    for number in range(rounds):
        took = timed(subject.program, subject.synchronize, 100)
        started = perf_counter()
        evaluation.after(100 * (number + 1))
        shares.append((perf_counter() - started) / took)
    return median(shares)


def large_dot(rounds: int) -> list[Row]:
    """Compare large_dot, in float32, with the tutorial's loop and with the same loop in NumPy."""
    steps, lr = 30, 0.5 / LARGE
    words = ("problem=large_dot", f"problem.n={LARGE}", "backend.dtype=float32")
    room = steps * (rounds + 1)
    ours = program(room, *words, "backend=numpy")
    pair = paired(
        partial(ours.advance, steps),
        partial(loops.large_dot_numpy, LARGE, steps, lr, "float32"),
        rounds,
    )
    what = "large_dot at 10^7, numpy, against a NumPy loop written as the tutorial's"
    rows = [faster(what, 2, pair, steps)]
    # The backend asks for huge pages before it imports PyTorch, and a process cannot take that
    # back, so each side runs in a process of its own.
    torch_words = (*words, "backend=torch")
    with process(huge_pages=True) as ours_process, process(huge_pages=False) as theirs_process:
        ours_steps = partial(advance, steps, room, *torch_words)
        theirs = partial(tutorial_large_dot, LARGE, steps, lr)
        pair = paired(
            lambda: ours_process.submit(ours_steps).result(),
            lambda: theirs_process.submit(theirs).result(),
            rounds,
        )
        draws = [
            ours_process.submit(draw_seconds, LARGE, *torch_words).result() for _ in range(rounds)
        ]
    what = "large_dot at 10^7, torch CPU, against the tutorial's loop"
    rows.append(faster(what, 5, pair, steps))
    share = median(draws) / (pair.other / steps)
    drawn = f"{seconds(median(draws))}, {share:.0%} of the tutorial's whole step"
    return [*rows, Row("… of which drawing 10^7 normals on all cores takes", "", drawn, True)]


class _Nothing:
    """A program without steps: what is timed around it is the framework's own."""

    def advance(self, n: int) -> None: ...


def framework(rounds: int) -> list[Row]:
    """Time what one reading adds to its steps: two synchronizes and two readings of the clock."""
    rows = []
    for backend in ("numpy", "torch"):
        synchronize = compose_cell(f"backend={backend}").backend.synchronize
        program = cast(Program, _Nothing())
        costs = []
        for _ in range(10_000):
            start = perf_counter()
            timed(program, synchronize, 1)
            costs.append(perf_counter() - start)
        cost = median(costs)
        what = f"a reading of nothing, {backend}: the framework's own share of a timed chunk"
        rows.append(Row(what, "2 µs", seconds(cost), cost < 2e-6))
    return rows


def whole_command(rounds: int) -> list[Row]:
    """Compare a run with MLflow, whose database exists, with a bare import of MLflow."""
    with _outputs():
        run = [sys.executable, "-m", "expkit", "problem=sine", "backend=numpy"]
        bare = [sys.executable, "-c", "import mlflow"]
        pair = paired(partial(_quietly, run), partial(_quietly, bare), rounds)
    bound = 1.6 / 1.4
    measured = (
        f"{1 / pair.ratio:.2f} ({1 / pair.high:.2f} to {1 / pair.low:.2f}): "
        f"{pair.ours:.2f} s against {pair.other:.2f} s"
    )
    what = "python -m expkit problem=sine backend=numpy, against `import mlflow`"
    return [Row(what, "1.6 s where that takes 1.4 s", measured, 1 / pair.ratio < bound)]


def losses_to_mlflow(rounds: int) -> list[Row]:
    """Time the upload of 2000 losses from a journal to MLflow on sqlite."""
    from expkit.tracking.journal import Journal
    from expkit.tracking.upload import Uploader

    with _outputs() as outputs:
        _quietly([sys.executable, "-m", "expkit", "problem=sine", "measure.repeats_min=1"])
        folder = next(outputs.rglob("journal.jsonl")).parent
        uploader, costs = Uploader(), []
        uploader.send(folder)
        for index in range(rounds):
            Journal(folder).metric(f"train/loss{index}", np.linspace(1, 0, 2000).tolist())
            start = perf_counter()
            uploader.send(folder)
            costs.append(perf_counter() - start)
    cost = median(costs)
    measured = f"{cost:.2f} s ({min(costs):.2f} to {max(costs):.2f})"
    return [Row("2000 losses into MLflow on sqlite", "0.5 s", measured, cost < 0.5)]


PEAK = """
import sys
from pathlib import Path

from expkit.config import compose_cell

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

cell = compose_cell(*sys.argv[1:])
cell.backend.configure()
warm = compose_cell(*sys.argv[1:], "problem.n=600000")
program = warm.backend.build(warm.workload)
program.advance(2)
del program
before = status("VmRSS")
program = cell.backend.build(cell.workload)
program.advance(3)
program.reallocate()
program.advance(3)
program.losses()
print(status("VmHWM") - before)
"""


def peak_memory(rounds: int) -> list[Row]:
    """Measure peak memory above the imports, in arrays of 10^7 float32 values, in a new process."""
    rows = []
    for backend in ("numpy", "torch"):
        words = ["problem=large_dot", f"problem.n={LARGE}", "backend.dtype=float32", "steps=10"]
        command = [sys.executable, "-c", PEAK, *words, f"backend={backend}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        arrays = int(done.stdout) / (4 * LARGE)
        what = f"large_dot at 10^7, {backend}, float32: peak memory above the imports"
        rows.append(Row(what, "5 arrays of that length", f"{arrays:.2f} arrays", arrays <= 5))
    return rows


@contextmanager
def _outputs() -> Iterator[Path]:
    """Use a new outputs folder, in which MLflow's database exists."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EXPKIT_OUTPUTS"] = folder
        _quietly([sys.executable, "-m", "expkit", "problem=linear"])
        yield Path(folder)
        del os.environ["EXPKIT_OUTPUTS"]


def _quietly(command: list[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


BENCHMARKS: list[Callable[[int], list[Row]]] = [
    framework,
    whole_command,
    losses_to_mlflow,
    peak_memory,
    sine_numpy,
    sine_torch,
    linear,
    mlp,
    large_dot,
]


def main() -> int:
    """Run, print and, if asked, write the table; exit status 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "names", nargs="*", help="some of: " + ", ".join(b.__name__ for b in BENCHMARKS)
    )
    parser.add_argument("--output", type=Path, help="a Markdown file to write")
    parser.add_argument("--rounds", type=int, default=11, help="pairs a row (11)")
    given = parser.parse_args()
    rows: list[Row] = []
    for benchmark in BENCHMARKS:
        if not given.names or benchmark.__name__ in given.names:
            found = benchmark(given.rounds)
            rows += found
            for row in found:
                mark = "kept" if row.holds else "NOT KEPT"
                promise = f"  [{row.bound}: {mark}]" if row.bound else ""
                print(f"{row.what}\n    {row.measured}{promise}", flush=True)
    if given.output:
        given.output.write_text(report(rows, given.rounds))
    return 0 if all(row.holds for row in rows) else 1


def report(rows: list[Row], rounds: int) -> str:
    """The table with the machine it came from."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks --output FILE`; what each row does is in",
        "`benchmarks/__main__.py`, and the other side's loops are in `benchmarks/loops.py`.",
        "",
        *machine(),
        f"- {rounds} pairs a row: median (least to greatest).",
        "- GPU: not measured on a GPU.",
        "",
        "| what | promised | measured | kept |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        kept = "" if not row.bound else "yes" if row.holds else "**no**"
        lines.append(f"| {row.what} | {row.bound} | {row.measured} | {kept} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
