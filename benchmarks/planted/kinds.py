"""What a planted kind is, and where it is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from expkit.authors import StepProgram, manual
from expkit.contracts import Backend, Program, Workload

CELLS = {
    "sine": "problem=sine steps=1000",
    "sine_200k": "problem=sine problem.n=200000 steps=100 log_every=20",
    "sine_1m": "problem=sine problem.n=1000000 steps=40 log_every=10",
    "linear": "problem=linear steps=1000 optimizer.lr=1e-4",
    "large_dot": "problem=large_dot problem.n=50000 steps=100",
    "large_dot_101": "problem=large_dot problem.n=50000 steps=130",
    "large_dot_1m": "problem=large_dot steps=30 log_every=5",
    "matmul": "problem=matmul",
    "add": "problem=add",
    "matmul_drawn": "problem=matmul problem.draw=true",
    # Sums so long that in float32 their rounding is large.
    "large_dot_10m": "problem=large_dot problem.n=10000000 steps=6 log_every=3 "
    "backend.dtype=float32",
    # Longer than the reference goes: 3998 steps, 5000 and 39.
    "sine_long": "problem=sine steps=5000",
    "linear_long": "problem=linear steps=8000 optimizer.lr=1e-5",
    "large_dot_long": "problem=large_dot steps=60",
    # For libraries that take a millisecond to note a step.
    "sine_few": "problem=sine steps=20 log_every=10",
    "linear_few": "problem=linear steps=20 log_every=10",
    "large_dot_few": "problem=large_dot problem.n=50000 steps=20",
    "sine_200k_few": "problem=sine problem.n=200000 steps=20 log_every=10",
    "sine_1m_few": "problem=sine problem.n=1000000 steps=20 log_every=10",
    # Long batches, of which two threads can take a half each.
    "linear_wide": "problem=linear problem.batch_size=1000000 stream=device steps=20",
    "matmul_600": "problem=matmul problem.n=600 steps=20",
}
"""The words of a cell, by the name that the table shows. At its recommended rate `linear` has
learned the line after 100 steps: what is done after them changes nothing."""
FIRST = 4
"""The placement of the first repeats: one is made before, and the audit makes two."""
LEARNING = ("sine", "linear", "large_dot")
ALL = (*LEARNING, "matmul")
LONG = ("sine_long", "linear_long", "large_dot_long")
FEW = ("sine_few", "linear_few", "large_dot_few")
WIDEST = "large_dot_10m"
WIDE = ("sine_1m", "linear_wide", "large_dot_1m", "matmul_600")


@dataclass(frozen=True)
class Kind:
    """A fault, or an honest twin.

    Attributes:
        make: builds its program; its docstring says what that does.
        cells: where it is tried, by the names of CELLS.
        words: of its own, on the command line.
        needs: a package that it cannot do without.
    """

    make: Callable[[Backend, Workload], Program]
    cells: tuple[str, ...] = LEARNING
    words: tuple[str, ...] = ()
    needs: str | None = None

    @property
    def says(self) -> str:
        """What it does, in one line."""
        return (self.make.__doc__ or "").partition("\n")[0]


class Steps(StepProgram):
    """NumPy, step by step, with the gradient by hand."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        super().__init__(backend, workload, manual(backend.xp))
