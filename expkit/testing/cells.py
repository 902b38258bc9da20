"""Small cells to test with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache, partial

import numpy as np

from expkit.authors import StepProgram, manual
from expkit.config import Cell, compose_cell, option, options, thaw
from expkit.contracts import (
    AnyOptimizer,
    Backend,
    EvaluatesAgain,
    HasNeeds,
    HostArray,
    Operation,
    Problem,
    Small,
    Workload,
)
from expkit.errors import Unavailable, UnsetError

SMALL = {"n": 50, "batch_size": 8}
"""Most that these fields may be in a test, for a problem that is not `Small`."""


def learning(steps: int, *, stream: str = "shared") -> dict[str, Workload]:
    """Every form of every installed problem with every installed optimizer, by title.

    Left out are those for which the problem recommends no rate, see `left_out`.
    """
    return {
        title: Workload(problem, optimizer, steps, 0, stream)
        for title, problem, optimizer in _pairs()
        if not isinstance(optimizer, str)
    }


def few(cases: Mapping[str, Workload]) -> dict[str, Workload]:
    """About a quarter of the cases of `learning`: each problem in each form with some optimizers,
    and each optimizer with some problems.
    """
    split = {title: title.rpartition("-")[::2] for title in cases}
    forms, rules = (list(dict.fromkeys(pair[i] for pair in split.values())) for i in range(2))
    kept = {
        title: case
        for title, case in cases.items()
        if (forms.index(split[title][0]) + rules.index(split[title][1])) % 4 == 0
    }
    there = {form for form, _ in map(split.__getitem__, kept)}
    missing = {form: title for title, (form, _) in reversed(split.items()) if form not in there}
    return kept | {title: cases[title] for title in missing.values()}


def recordable(cases: Mapping[str, Workload]) -> dict[str, Workload]:
    """The cases whose steps look at no value, as line searches do."""
    return {
        title: case
        for title, case in cases.items()
        if not isinstance(case.optimizer, EvaluatesAgain)
    }


def left_out() -> dict[str, str]:
    """The title of every case that `learning` lacks, and the reason."""
    return {title: reason for title, _, reason in _pairs() if isinstance(reason, str)}


def operations(steps: int, *, stream: str = "shared") -> dict[str, Workload]:
    """Every form of every installed operation, by title."""
    return {
        _title(problem, form): Workload(made, None, steps, 0, stream)
        for problem in options("problem")
        for form, made in forms(problem).items()
        if isinstance(made, Operation)
    }


def workload(
    problem: str, optimizer: str, steps: int, *, stream: str = "shared", form: str = ""
) -> Workload:
    """A small workload, at the rate recommended for its size.

    Raises:
        UnsetError: none is recommended.
    """
    made = forms(problem)[form]
    rule = None if isinstance(made, Operation) else _optimizer(problem, form, optimizer)
    return Workload(made, rule, steps, 0, stream)


@cache
def forms(problem: str) -> dict[str, Problem | Operation]:
    """The small forms of an installed problem, by title: see `Small`."""
    made = _composed(problem).workload.problem
    if isinstance(made, Small):
        return dict(made.small())
    now = {key: getattr(made, key, None) for key in SMALL}
    sizes = {k: SMALL[k] for k, v in now.items() if isinstance(v, int) and v > SMALL[k]}
    return {"": dataclasses.replace(made, **sizes)}  # type: ignore[type-var]


@cache
def _composed(problem: str) -> Cell:
    return compose_cell(f"problem={problem}", "optimizer=sgd", "optimizer.lr=1")


_rule = cache(partial(option, "optimizer"))


@cache
def _optimizer(problem: str, form: str, optimizer: str) -> AnyOptimizer:
    rate = forms(problem)[form].recommended().lr.get(optimizer)
    frozen, rule = _composed(problem).frozen, dict(_rule(optimizer))
    if rate is not None:
        rule["lr"] = rate
    config = {**frozen["config"], "optimizer": rule}
    choices = {**frozen["choices"], "optimizer": optimizer}
    made = thaw({"config": config, "choices": choices}).workload.optimizer
    assert made is not None
    return made


def _pairs() -> Iterator[tuple[str, Problem, AnyOptimizer | str]]:
    """Title, problem and optimizer, or the reason why there is none."""
    for problem in options("problem"):
        for form, made in forms(problem).items():
            if isinstance(made, Operation):
                continue
            for optimizer in options("optimizer"):
                if why := missing(made):
                    yield _title(problem, form, optimizer), made, why
                    continue
                try:
                    found: AnyOptimizer | str = _optimizer(problem, form, optimizer)
                except UnsetError as error:
                    found = str(error)
                yield _title(problem, form, optimizer), made, found


def missing(problem: Problem | Operation) -> str | None:
    """Why a problem cannot be tried here, such as that its data are not installed."""
    try:
        if isinstance(problem, HasNeeds):
            problem.check_available()
    except Unavailable as error:
        return str(error)
    return None


def _title(*words: str) -> str:
    return "-".join(filter(None, words))


@cache
def backend(*words: str) -> Backend:
    """Return the backend of these overrides, cached as composing takes longer than most tests."""
    return compose_cell(*words).backend


def reference(case: Workload) -> tuple[HostArray, dict[str, HostArray]]:
    """Return the right losses and parameters, from NumPy's float64 step-by-step program."""
    program = StepProgram(backend("backend=numpy", "backend.dtype=float64"), case, manual(np))
    program.advance(case.steps)
    return program.losses(), program.params()


def parts(case: Workload) -> tuple[Problem, AnyOptimizer]:
    """The problem and the optimizer of a case that learns."""
    assert isinstance(case.problem, Problem)
    assert case.optimizer is not None
    return case.problem, case.optimizer
