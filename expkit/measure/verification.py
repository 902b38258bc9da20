"""Whether a program's answers are right: in every repeat, and at steps drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from time import perf_counter

import numpy as np

from expkit.contracts import HostArray
from expkit.measure import answer
from expkit.measure.subject import Subject

PLACES = 3
"""The most places at which later steps are checked, if the reference ends before the last step."""
LATER_SHARE, ELSEWHERE_SHARE = 0.6, 0.2
"""The reference's shares of the time for checking: for later steps, and for another start."""
CHECKED_SHARE = 0.25
"""The share of the timed part that the reference may take, where that is more than a second."""


class Verification:
    """Compares a program's answers with a float64 reference in NumPy.

    Args:
        expected_s: returns about how many seconds the timed part takes.
        rng: draws the starts and the steps that are checked.
    """

    def __init__(
        self, subject: Subject, expected_s: Callable[[], float], rng: np.random.Generator
    ) -> None:
        self._subject, self._expected_s, self._rng = subject, expected_s, rng
        self._answer: answer.Answer | None = None
        self._step_s = 0.0
        """Seconds that the reference takes for a step."""
        self._places: list[int] = []
        """Later steps from which on a few more were compared with the reference."""

    def find(self) -> str:
        """Compute the answer that every repeat is compared with; return which steps it covers."""
        subject = self._subject
        elements = sum(int(np.prod(x.shape)) for x in subject.program.arrays().values())
        if not subject.learns:
            elements += sum(x.size for x in subject.params().values())
        started, dtype = perf_counter(), self._dtype  # arrays of another dtype must be as exact
        found = answer.reference(subject.backend, subject.workload, dtype, elements, self._limit_s)
        if isinstance(found, str):
            return f"not checked: {found}"
        self._step_s = (perf_counter() - started) / found.steps
        self._answer = found
        return self.covered or ""

    @property
    def covered(self) -> str | None:
        """Which steps were checked; None where none can be."""
        if self._answer is None:
            return None
        steps = self._subject.steps
        return answer.covered(self._answer, steps, self._dtype, self._places)

    def wrong(self, losses: HostArray) -> str | None:
        """What is wrong with the repeat whose clock has just stopped; None if nothing is."""
        if self._answer is None:
            return None
        subject, steps = self._subject, self._answer.steps
        whole = steps <= subject.steps
        wrong = self._answer.wrong_losses(losses, whole=whole) if subject.learns else None
        if wrong is None and steps == subject.room:
            wrong = self._answer.wrong_params(self._subject.params())
        return wrong

    def wrong_further(self) -> str | None:
        """Check once what the repeats do not show; return what is wrong, or None."""
        found, subject = self._answer, self._subject
        if found is None:
            return None
        wrong = None
        if found.steps != subject.room:
            subject.program.reset()
            subject.program.advance(found.steps)
            subject.synchronize()
            wrong = found.wrong_params(subject.params())
        return wrong or self._wrong_elsewhere() or self._wrong_later(found.steps)

    def _wrong_elsewhere(self) -> str | None:
        """Check steps from another start: a program may remember instead of computing."""
        subject = self._subject
        start = answer.another_start(subject.backend, subject.workload, self._rng)
        if not start:
            return None
        steps = min(self._few_steps(ELSEWHERE_SHARE), subject.steps)
        right = self._reference_from(start, 0, steps)
        subject.program.load(start)
        subject.program.advance(right.steps)
        subject.synchronize()
        wrong = self._held_against(right, 0)
        subject.back()
        return wrong and f"from another start {wrong}"

    def _wrong_later(self, known: int) -> str | None:
        """Check steps after the reference's last one: at the end, or as far on as time allows, and
        at places drawn at random before that.
        """
        subject = self._subject
        program, backend = subject.program, subject.backend
        windows = self._windows(known)
        program.reset()
        done = 0
        for place, steps in windows:
            while done < place:  # in readings as long as the timed ones, as far as possible
                n = min(subject.every, place - done)
                program.advance(n)
                done += n
            subject.synchronize()
            arrays = program.arrays().items()
            state = {k: backend.to_numpy(x) for k, x in arrays if not k.startswith("data.")}
            program.advance(steps)
            done += steps
            subject.synchronize()
            right = self._reference_from(state, place, steps)
            if wrong := self._held_against(right, place):
                return wrong
            if right.tight:
                self._places.append(place)
        return None

    def _held_against(self, right: answer.Answer, first: int) -> str | None:
        """What is wrong with the losses from step `first` on, or with the parameters, or None."""
        subject = self._subject
        wrong = right.wrong_losses(subject.losses(first), first) if subject.learns else None
        return wrong or right.wrong_params(subject.params(), first)

    def _windows(self, known: int) -> list[tuple[int, int]]:
        """Where to check steps after the `known` ones, in order: first steps and their numbers."""
        subject = self._subject
        total = subject.steps
        if known >= total:
            return []
        drawing_s = answer.drawing_seconds(subject.backend, subject.workload)
        each = max(subject.step_seconds, drawing_s, 1e-9)
        left = self._few_steps(LATER_SHARE, most=PLACES * answer.FEW_STEPS)
        most = answer.FEW_STEPS if subject.learns else 1
        at_end = min(most, left, total - known)
        last = min(total - at_end, int(self._limit_s / each))
        if last < known:
            return []
        left -= at_end
        count = min(PLACES - 1, -(-left // most))
        each_has = min(most, left // count) if count else 0
        ends = np.linspace(known, last - each_has + 1, count + 1).astype(int)
        parts = [(a, b - each_has + 1) for a, b in pairwise(ends)]
        places = [int(self._rng.integers(a, b)) for a, b in parts if a < b]
        return [*((place, each_has) for place in places), (last, at_end)]

    def _few_steps(self, share: float, most: int = answer.FEW_STEPS) -> int:
        """Steps that the reference can take in this share of the checking time; at least one."""
        return max(1, min(most, int(share * self._limit_s / self._step_s)))

    def _reference_from(self, state: dict[str, HostArray], step: int, steps: int) -> answer.Answer:
        subject = self._subject
        first = 0.0 if self._answer is None else self._answer.scale
        return answer.reference_from(
            subject.backend, subject.workload, self._dtype, state, step, steps, first
        )

    @property
    def _dtype(self) -> str:
        return str(self._subject.backend.describe()["dtype"])

    @property
    def _limit_s(self) -> float:
        """Seconds that the reference may take beyond the steps that it computes of any problem."""
        return max(answer.LIMIT_S, CHECKED_SHARE * self._expected_s())
