"""When a program is audited for work off the clock, and for what: see `expkit.measure.audit`."""

from __future__ import annotations

import math
from functools import partial
from time import perf_counter

import numpy as np

from expkit.contracts import HostArray
from expkit.measure import answer
from expkit.measure.audit import (
    AHEAD,
    CLOCKED_S,
    FETCHES,
    GROWTH,
    Audit,
    Finding,
    left_in_readings,
    longer_to_start,
    number_seconds,
    quick_switches,
    remembered,
    starting_seconds,
)
from expkit.measure.subject import Subject
from expkit.measure.warmup import WarmUp

RESET_S = 0.05
"""About the longest reset of a program that is built for more steps than are timed."""
RESETS_S = 0.5
"""The longest reset of a program that is built only to look for work done meanwhile."""
MANY = 16
"""The largest factor on the number of steps, where the timed ones are too short to tell."""


class Audits:
    """Looks for work off the clock before the first repeat and after the last.

    Args:
        rng: draws starts that the program has not seen.
    """

    def __init__(self, subject: Subject, rng: np.random.Generator) -> None:
        self._subject, self._rng = subject, rng
        self._short = False
        self._ahead_s = 0.0
        """About how many seconds are spent per step before the clock starts."""
        self._starting = (math.inf, math.inf)
        """Seconds of placing the program, and of resetting it, before the first repeat."""
        self._number_seconds = 0.0
        """Seconds to fetch one number from the device."""
        self.readings: list[tuple[int, float, float]] = []
        """For each reading: steps, seconds, and the processor seconds of reading its losses beyond
        those of reading them once more."""

    @quick_switches()
    def early(self, warm: WarmUp) -> Finding | None:
        """Look for work off the clock in steps that take almost no time, before a program for many
        more of them is built.
        """
        self._number_seconds = self._price_numbers()
        self._short = warm.step_seconds * self._subject.room < CLOCKED_S
        if not self._short:
            return None
        self._note_starting()
        audit = self._audit(number_s=self._number_seconds)
        return audit.all_left() or self._beside_steps(audit)

    @quick_switches()
    def enlarged(self, warm: WarmUp) -> Finding | None:
        """Look again at a program that was built for more steps: more of their work is left."""
        short = warm.step_seconds * self._subject.room < CLOCKED_S
        return self._audit(number_s=self._number_seconds).all_left() if short else None

    @quick_switches()
    def before(self) -> Finding | None:
        """Audit the program that will be timed, without repeating all that `early` has done."""
        self._note_starting()
        audit = self._audit(number_s=self._number_seconds)
        if found := audit.left(self._subject.lengths, self._subject.step_seconds):
            return found
        if not self._short and (found := self._beside_steps(audit)):
            return found
        self._note_starting()
        return None

    def _note_starting(self) -> None:
        """Note the least time that placing and resetting take. They are timed before the search for
        work that is done ahead, too, because a program may begin with such work right after it.
        """
        placing, resetting = self._start_again()
        self._starting = min(self._starting[0], placing), min(self._starting[1], resetting)

    def _start_again(self) -> tuple[float, float]:
        return starting_seconds(self._subject.program, self._subject.backend.synchronize)

    def _beside_steps(self, audit: Audit) -> Finding | None:
        """Look for work done while nobody asks for steps, or done ahead; then repeat the former for
        more steps, where these are too short to tell.
        """
        longer, found = audit, audit.meanwhile() or self._ahead(audit)
        # A reset that computes all steps, which `ahead` looks for, would take longer and longer.
        most = audit.room * min(MANY, RESETS_S / self._reset_seconds())
        while found is None and longer.short and GROWTH * longer.room <= most:
            longer = self._audit(GROWTH * longer.room)
            found = longer.meanwhile()
        return found

    def _ahead(self, audit: Audit) -> Finding | None:
        found = audit.ahead(self._subject.build)
        self._ahead_s = audit.ahead_s
        return found

    @quick_switches()
    def after(self, step_seconds: float) -> Finding | None:
        """Audit the program again after the last repeat, and the readings of the repeats.

        Args:
            step_seconds: seconds of a timed step.
        """
        subject = self._subject
        number_s = max(self._number_seconds, self._price_numbers())
        steps, clocked, read = zip(*self.readings, strict=True)
        beside = [more - FETCHES * n * number_s for n, more in zip(steps, read, strict=True)]
        if found := left_in_readings(clocked, beside):
            return found
        audit = self._audit(number_s=number_s)
        found = audit.left(subject.lengths, step_seconds) or audit.meanwhile()
        if not found and self._ahead_s > AHEAD * step_seconds:  # steps may have been slower then
            found = audit.ahead(subject.build, step_seconds)
        found = found or longer_to_start(
            self._start_again, self._starting, subject.room * step_seconds
        )
        if found or not self._start():
            return found
        # Steps that take almost no time are taken in larger numbers, so that their work would show.
        timed_s = max(subject.every * step_seconds, 1e-9)
        readings = min(subject.room // subject.every, math.ceil(CLOCKED_S / timed_s)) or 1

        def elsewhere() -> None:
            subject.program.load(self._start())

        starts = (partial(subject.taking, start, readings) for start in (subject.back, elsewhere))
        found = remembered(readings * timed_s, *starts)
        subject.back()
        return found

    def _start(self) -> dict[str, HostArray]:
        """Make a start that the program has not seen; empty where there is none."""
        return answer.another_start(self._subject.backend, self._subject.workload, self._rng)

    def _audit(self, room: int = 0, number_s: float | None = None) -> Audit:
        """Make the audit of this program, or of a new one with room for more steps: for `room`, or
        for as many as needed where this program's own take almost no time.
        """
        subject = self._subject
        program, room = subject.program, room or subject.room
        if subject.step_seconds and room * subject.step_seconds < CLOCKED_S:
            more = 1 + int(CLOCKED_S / (room * subject.step_seconds))
            # A slow reset may take longer for more steps, and many resets are still to come.
            room *= max(1, min(more, int(RESET_S / self._reset_seconds())))
        if room > subject.room:
            program = subject.build(room)
        synchronize = subject.backend.synchronize
        return Audit(program, synchronize, room, self._price_numbers, number_s)

    def _reset_seconds(self) -> float:
        started = perf_counter()
        self._subject.program.reset()
        self._subject.synchronize()
        return perf_counter() - started

    def _price_numbers(self) -> float:
        """Measure the seconds to fetch a loss; 0 for an operation, which has none."""
        return number_seconds(self._subject.backend) if self._subject.learns else 0.0
