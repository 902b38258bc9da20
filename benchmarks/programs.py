"""expkit's side of a row: a cell's program, here or in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from time import perf_counter

from expkit_plugins.torch.backend import HUGE_PAGES

from benchmarks import loops
from expkit.config import compose_cell
from expkit.contracts import Program


def program(steps: int, *words: str) -> Program:
    """A cell's program with room for this many steps, set up as the runner does."""
    cell = compose_cell("tracking=none", f"steps={steps}", *words)
    cell.backend.configure()
    return cell.backend.build(cell.workload)


_kept = cache(program)


def advance(steps: int, room: int, *words: str) -> None:
    """Advance a program that this process keeps between calls."""
    _kept(room, *words).advance(steps)


def tutorial_large_dot(n: int, steps: int, lr: float) -> None:
    """Run the tutorial's loop without a result, which would have to be sent back."""
    loops.large_dot_tutorial_torch(n, steps, lr, "cpu")


def draw_seconds(n: int, *words: str) -> float:
    """Return the seconds that drawing n normal values takes."""
    random = compose_cell(*words).backend.random(0)
    random.normal((n,))  # its threads start
    start = perf_counter()
    random.normal((n,))
    return perf_counter() - start


@contextmanager
def process(*, huge_pages: bool) -> Iterator[ProcessPoolExecutor]:
    """Start a new process, as PyTorch reads the setting only when it is imported."""
    before = os.environ.get(HUGE_PAGES)
    os.environ[HUGE_PAGES] = "1" if huge_pages else "0"
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            pool.submit(int).result()
        finally:
            if before is None:
                del os.environ[HUGE_PAGES]
            else:
                os.environ[HUGE_PAGES] = before
        yield pool
