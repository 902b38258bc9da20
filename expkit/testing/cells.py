"""Small cells to test with."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np

from expkit.authors import StepProgram, manual
from expkit.config import compose_cell, options
from expkit.contracts import Backend, HostArray, Operation, Optimizer, Problem, Workload

SMALL = {"n": 50, "batch_size": 8}
"""Fields of a problem that are made this small where they are larger."""


@cache
def composed(*words: str) -> Backend:
    """The backend that these words choose; composing takes longer than most of what is tested."""
    backend: Backend = compose_cell(*words).backend
    return backend


def learning(steps: int, *, stream: str = "shared") -> dict[str, Workload]:
    """Every installed problem with every installed optimizer, by title."""
    cases = {}
    for problem in options("problem"):
        for optimizer in options("optimizer"):
            case = workload(problem, optimizer, steps, stream=stream)
            if case.optimizer is not None:
                cases[f"{problem}-{optimizer}"] = case
    return cases


def operations(steps: int, *, stream: str = "shared") -> dict[str, Workload]:
    """Every installed operation, as it is and, where it can, drawing every step."""
    cases = {}
    for problem in options("problem"):
        case = workload(problem, "sgd", steps, stream=stream)
        if isinstance(case.problem, Operation):
            cases[problem] = case
            if hasattr(case.problem, "draw"):
                drawing = dataclasses.replace(case.problem, draw=True)  # type: ignore[type-var]
                cases[f"{problem}-draw"] = dataclasses.replace(case, problem=drawing)
    return cases


@cache
def workload(problem: str, optimizer: str, steps: int, *, stream: str = "shared") -> Workload:
    """A small workload, at the rates recommended for its size."""
    made = compose_cell(f"problem={problem}").workload.problem
    sizes = {k: v for k, v in SMALL.items() if getattr(made, k, 0) > v}
    words = [f"problem.{k}={v}" for k, v in sizes.items()]
    words += [f"problem={problem}", f"optimizer={optimizer}", f"steps={steps}"]
    return compose_cell(*words, f"stream={stream}").workload


def reference(case: Workload) -> tuple[HostArray, dict[str, HostArray]]:
    """Losses and parameters of the float64 NumPy step-by-step program: what is right."""
    backend = composed("backend=numpy", "backend.dtype=float64")
    program = StepProgram(backend, case, manual(np))
    program.advance(case.steps)
    return program.losses(), program.params()


def parts(case: Workload) -> tuple[Problem, Optimizer]:
    """The problem and the optimizer of a case that learns."""
    assert isinstance(case.problem, Problem)
    assert case.optimizer is not None
    return case.problem, case.optimizer
