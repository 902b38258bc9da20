"""A cell's program, and how it is run to be measured: from its start, in readings of some steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from time import perf_counter

import numpy as np

from expkit.authors import first_data
from expkit.contracts import Backend, HostArray, Operation, Program, Workload
from expkit.errors import PluginError
from expkit.measure.clock import steps_of_a_reading, timed
from expkit.measure.warmup import WarmUp, run_before, warm_up

DESCRIBED = ("device", "dtype", "threads")
"""The keys that `describe` of every backend must return."""
MORE = 16
"""A program is built for at most this many times as many steps at once."""


class Subject:
    """The program of a workload on a backend, and how it is run.

    Attributes:
        steps: of a repeat: the workload's, or those after which the only repeat has ended.
        first: the step at which the readings begin: 0, or that of a checkpoint.
        every: steps of a reading.
        passes: how many times the steps are run in one reading, where once is too short to time.
        step_seconds: seconds of a step, from warming up, or from the last repeat where that is not
            timed; 0 before.
    """

    def __init__(self, backend: Backend, workload: Workload, every: int, name: str) -> None:
        self.backend, self.workload, self._name = backend, workload, name
        self.steps, self.first = workload.steps, 0
        self.every, self.passes, self.step_seconds = every, 1, 0.0
        self._log_every = every
        self.program: Program

    def begin(self) -> float:
        """Build the program; return the seconds that took, without the import of its library.

        Raises:
            PluginError: the backend does not describe itself.
        """
        _ = self.backend.xp
        if missing := [key for key in DESCRIBED if key not in self.backend.describe()]:
            got, takes = " and no ".join(missing), ", ".join(DESCRIBED)
            raise PluginError(f"{self._name}: describe() has no {got}, takes {takes}")
        first_data(self.workload)  # loading a data set is no work of the backend's
        self.backend.configure()  # what was imported for it may have threads of its own
        started = perf_counter()
        self.program = self.backend.build(self.workload)
        self.synchronize()
        return perf_counter() - started

    def build(self, steps: int) -> Program:
        """Build another program, with room for this many steps."""
        return self.backend.build(dataclasses.replace(self.workload, steps=steps))

    def synchronize(self) -> None:
        self.backend.synchronize(self.program)

    @property
    def learns(self) -> bool:
        """Whether the program has losses; an operation has none."""
        return not isinstance(self.workload.problem, Operation)

    @property
    def room(self) -> int:
        """The number of steps from a start to the end."""
        return self.steps * self.passes

    @property
    def lengths(self) -> tuple[int, int]:
        """The number of steps of a reading, and of the last reading of a repeat."""
        return self.every, (self.room - self.first) % self.every or self.every

    @property
    def chunk_ends(self) -> list[int]:
        """The last step of each reading."""
        ends = range(self.first + self.every, self.room + self.every, self.every)
        return [min(end, self.steps) - 1 for end in ends]

    def warm_up(self) -> WarmUp:
        return warm_up(self.program, self.synchronize, self.room)

    def enlarge(self, warm: WarmUp) -> bool:
        """Build the program for more passes if all its steps are too short for the clock.

        A step takes less time among many than alone, and one that seems to take none may do its
        work elsewhere. So the program gets room for at most `MORE` times as many steps at once, and
        has to be warmed up again.

        Returns:
            Whether it was built anew.
        """
        needed = steps_of_a_reading(warm.step_seconds)
        if needed <= self.room:
            return False
        self.passes = min(MORE * self.passes, -(-needed * 5 // (self.workload.steps * 4)))
        del self.program  # two programs may not fit into memory
        self.program = self.build(self.room)
        return True

    def fit_readings(self, warm: WarmUp, within: int = 0) -> None:
        """Make every reading long enough for the clock.

        Args:
            within: an evaluation follows after every so many steps, at the end of a reading; 0 for
                none.
        """
        needed = steps_of_a_reading(warm.step_seconds)
        more = self._log_every * -(-needed // self._log_every)
        if within and within % more:
            more = within
        self.every = self.room if self.passes > 1 else min(self.room, more)

    def run_before(self, warm: WarmUp, untimed: int) -> WarmUp:
        """Run every length that a repeat asks for, among them its `untimed` steps."""
        lengths = sorted({untimed, *self.lengths} - {0})
        ran = run_before(self.program, self.synchronize, lengths, warm)
        self.step_seconds = ran.step_seconds
        return ran

    def back(self) -> None:
        """Return to the usual start after another was loaded: a reset keeps an operation's data."""
        if self.learns:
            self.program.reset()
        else:
            self.program.reallocate()

    def taking(self, start: Callable[[], None], readings: int = 1) -> Callable[[], float]:
        """Bring the program to a start; return the function that times so many readings from it."""
        start()
        self.synchronize()

        def take() -> float:
            each = (timed(self.program, self.synchronize, self.every) for _ in range(readings))
            return sum(each)

        return take

    def losses(self, start: int = 0) -> HostArray:
        """The losses from step `start` on.

        Raises:
            PluginError: they are not what the contract requires.
        """
        given = self.program.losses(start)
        if not _is_array(given) or np.ndim(given) != 1:
            takes = "takes a NumPy array of shape (steps,) in float64"
            raise PluginError(f"{self._name}: losses() gives {_kind(given)}, {takes}")
        return given

    def params(self) -> dict[str, HostArray]:
        """The parameters now.

        Raises:
            PluginError: they are not what the contract requires.
        """
        given, takes = self.program.params(), "takes a dict of NumPy arrays in float64, by name"
        if not isinstance(given, dict):
            raise PluginError(f"{self._name}: params() gives {_kind(given)}, {takes}")
        for name, value in given.items():
            if not _is_array(value):
                raise PluginError(f"{self._name}: params() gives {name} as {_kind(value)}, {takes}")
        return given


def _is_array(given: object) -> bool:
    """Whether this is an array of real numbers; a NumPy scalar is one of shape ()."""
    return isinstance(given, np.ndarray | np.generic) and given.dtype.kind == "f"


def _kind(given: object) -> str:
    """Describe a value to the author of the plugin that returned it."""
    if isinstance(given, np.ndarray):
        return f"an array of shape {given.shape} in {given.dtype}"
    return type(given).__name__
