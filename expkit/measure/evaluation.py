"""What a problem measures beside its loss, in the course of a repeat.

An evaluation between two readings of the clock changes what the caches hold and where later arrays
lie. So it has a repeat of its own, off the clock, unless a repeat takes long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from expkit.contracts import Backend, HasEvaluation
from expkit.errors import PluginError
from expkit.measure.subject import Subject

LONG_S = 1.0
"""A repeat that takes longer is evaluated while it is timed: one more would cost too much."""


class Evaluation:
    """The figures of a problem's `evaluate`, after every so many steps of one repeat.

    Attributes:
        steps: the numbers of steps after which it was evaluated.
        figures: the values after each, by name.
        wrong: why a figure cannot be kept; None where all can.
        every: of how many steps; 0 for none.
    """

    def __init__(self, subject: Subject, every: int) -> None:
        problem = subject.workload.problem
        self._subject, self.every = subject, every
        self._problem = problem if every and isinstance(problem, HasEvaluation) else None
        self.steps: list[int] = []
        self.figures: dict[str, list[float]] = {}
        self.wrong: str | None = None

    def go_on(self, after: Sequence[int], figures: Mapping[str, Sequence[float]]) -> None:
        """Begin with what was found before a checkpoint."""
        self.steps = list(after)
        self.figures = {name: list(values) for name, values in figures.items()}
        for name, values in self.figures.items():
            if values and not math.isfinite(values[-1]):
                self.wrong = f"evaluate: {name} is {values[-1]} after {self.steps[-1]} steps"

    @property
    def last(self) -> str:
        """The last value of the first figure, with its name; empty where there is none yet."""
        return next((f"{name} {values[-1]:.4g}" for name, values in self.figures.items()), "")

    @property
    def within(self) -> bool:
        """Whether to evaluate between the readings of a timed repeat."""
        subject = self._subject
        fits = self.every > 0 and self.every % subject.every == 0 and subject.passes == 1
        return fits and subject.step_seconds * subject.steps > LONG_S

    def after(self, done: int) -> None:
        """Evaluate after this many steps, if that is due: at the start, at the end, and at the
        first call in every stretch of `every` steps.
        """
        if self._problem is None or self.wrong or self.steps[-1:] == [done]:
            return
        last = self.steps[-1] // self.every if self.steps else -1
        if done == self._subject.steps or done // self.every > last:
            self._evaluate(self._problem, done)

    def apart(self) -> None:
        """Evaluate in a repeat of its own, if that has not been done in one that is timed."""
        if self._problem is None or self.steps:
            return
        program, steps, done = self._subject.program, self._subject.steps, 0
        program.reset()
        self.after(done)
        while done < steps:
            n = min(self.every, steps - done)
            program.advance(n)
            done += n
            self.after(done)

    def _evaluate(self, problem: HasEvaluation, done: int) -> None:
        self._subject.synchronize()
        backend, arrays = self._subject.backend, self._subject.program.arrays()
        groups = ("params.", "data.")
        params, data = (
            {name.removeprefix(g): x for name, x in arrays.items() if name.startswith(g)}
            for g in groups
        )
        given = problem.evaluate(backend.xp, params, data)
        named = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        if named != (takes := sorted(problem.figures)):
            got = f"problem {type(problem).__name__}: evaluate() gives {named}"
            raise PluginError(f"{got}, takes a dict of its figures {takes}")
        try:
            found = {name: _number(backend, value) for name, value in given.items()}
        except Exception as error:
            got = f"problem {type(problem).__name__}: evaluate() gives {named} ({error})"
            raise PluginError(f"{got}, takes arrays of shape ()") from error
        self.steps.append(done)
        for name, value in found.items():
            self.figures.setdefault(name, []).append(value)
            if not math.isfinite(value):
                self.wrong = f"evaluate: {name} is {value} after {done} steps"


def _number(backend: Backend, value: object) -> float:
    if isinstance(value, int | float):
        return float(value)
    array = backend.to_numpy(value)
    if np.shape(array) != ():
        raise ValueError(f"of shape {np.shape(array)}")
    return float(array)
