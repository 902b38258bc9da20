"""Programs that compute before the clock: draws, whole repeats, or what they did before."""

from __future__ import annotations

import multiprocessing
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from expkit.authors import Draw, RandomOfDraws, StepProgram, draws_of_a_step, stream
from expkit.contracts import Array, Backend, HostArray, Mark, Random, Workload

from .kinds import FIRST, Kind, Steps

# Draws


class Drawn(RandomOfDraws):
    """The values of so many steps' draws, drawn at once."""

    def __init__(self, source: Random, draws: list[Draw], steps: int) -> None:
        every = (draw for _ in range(steps) for draw in draws)
        self._values = [getattr(source, kind)(*given) for kind, given in every]
        self.rewind()

    def rewind(self) -> None:
        self._left = iter(self._values)

    def draw(self, kind: str, *given: Any) -> Array:
        return next(self._left)


class DrawsInReset(Steps):
    """Draws the stream of a whole repeat in `reset`."""

    def reset(self) -> None:
        super().reset()
        self._random = self._drawn()

    def _drawn(self) -> Drawn:
        backend, workload, random = self._backend, self._workload, self._random
        assert random is not None
        draws = draws_of_a_step(backend, workload, self._data, stream(backend, workload))
        return Drawn(random, draws, workload.steps)


class DrawsInReallocate(DrawsInReset):
    """Draws the stream of a whole repeat in `reallocate`."""

    _ahead: Drawn | None = None

    def reallocate(self) -> None:
        self._ahead = None
        super().reallocate()

    def reset(self) -> None:
        Steps.reset(self)
        if self._ahead is None:
            self._ahead = self._drawn()
        self._ahead.rewind()
        self._random = self._ahead


LATE = FIRST + 1
"""The placement from which on some are at fault: the first repeats are honest."""


class DrawsInResetLate(DrawsInReset):
    """Draws the stream of a whole repeat in `reset`, from its fifth placement on."""

    _placed = 0

    def reallocate(self) -> None:
        self._placed += 1
        super().reallocate()

    def reset(self) -> None:
        if self._placed < LATE:
            Steps.reset(self)
        else:
            super().reset()


class DrawsInLosses(Steps):
    """Draws in `losses` what the next chunk needs, and what is missing in `advance`."""

    def reset(self) -> None:
        super().reset()
        assert self._random is not None
        self._random = _Stock(self._random)

    def losses(self, start: int = 0) -> HostArray:
        found = super().losses(start)
        assert isinstance(self._random, _Stock)
        self._random.fill()
        return found


class _Stock(RandomOfDraws):
    """A stream that is drawn ahead as far as was drawn since the last time."""

    def __init__(self, source: Random) -> None:
        self._source = source
        self._stock: list[Array] = []
        self._asked: list[Draw] = []

    def draw(self, kind: str, *given: Any) -> Array:
        self._asked.append((kind, given))
        return self._stock.pop(0) if self._stock else getattr(self._source, kind)(*given)

    def fill(self) -> None:
        missing = self._asked[len(self._stock) :]
        self._stock += [getattr(self._source, kind)(*given) for kind, given in missing]
        self._asked.clear()


# Whole repeats

MOST_BYTES = 2e9
State = dict[str, HostArray]


class Trail:
    """Every step from a state on: its loss, and what it leaves behind."""

    def __init__(self, backend: Backend, workload: Workload, start: State, step: int) -> None:
        self._first, self._left = step, workload.steps - step
        self._scout = Steps(backend, workload)
        self._scout.load(start, step)
        self._losses: list[float] = []
        self._states: list[State] = []

    def walk(self) -> None:
        """One step."""
        self._scout.advance(1)
        self._losses.append(float(self._scout._kept.pop()))
        self._states.append(_copied(self._scout.arrays()))

    def walk_all(self) -> None:
        for _ in range(self._left):
            self.walk()

    @property
    def walked(self) -> int:
        """Steps from the start on."""
        return self._first + len(self._states)

    def between(self, start: int, end: int) -> tuple[HostArray, State]:
        """The losses of these steps, and the state after the last."""
        first, last = start - self._first, end - self._first
        return np.array(self._losses[first:last]), self._states[last - 1]


def _copied(arrays: Mapping[str, Array]) -> State:
    return {k: np.array(v) for k, v in arrays.items() if not k.startswith("data.")}


class Knowing(Steps):
    """Counts its steps; losses and parameters come from a trail that was walked elsewhere.

    From a state that is not on the trail it computes, and where a trail would take much memory.
    """

    _trail: Any = None

    def reset(self) -> None:
        super().reset()
        self._begin(0)

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        super().load(arrays, step)
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._drawn = self._at = self._asked = step
        self._here = _copied(StepProgram.arrays(self))
        size = sum(array.nbytes for array in self._here.values())
        self._trail = self._walk(step) if size * self._workload.steps < MOST_BYTES else None

    def _walk(self, step: int) -> Any:
        """A trail from the state as it is now."""
        trail = Trail(self._backend, self._workload, self._here, step)
        trail.walk_all()
        return trail

    def advance(self, n: int) -> None:
        if self._trail is not None and self._is_on_trail():
            self._asked += n
        else:
            self._leave()
            super().advance(n)

    def _is_on_trail(self) -> bool:
        arrays = StepProgram.arrays(self)
        return all(np.array_equal(arrays[name], was) for name, was in self._here.items())

    def _leave(self) -> None:
        if self._trail is not None:
            assert self._random is not None
            for _ in range(self._at - self._drawn):
                self._workload.problem.batch(np, self._data, self._random)
            self._trail = None

    def _catch_up(self) -> None:
        if self._trail is None or self._asked == self._at:
            return
        losses, self._here = self._trail.between(self._at, self._asked)
        self._fetched = np.concatenate([self._fetched, losses])
        arrays = StepProgram.arrays(self)
        for name, value in self._here.items():
            arrays[name][...] = value
        self._at = self._asked

    def losses(self, start: int = 0) -> HostArray:
        self._catch_up()
        return super().losses(start)

    def params(self) -> dict[str, HostArray]:
        self._catch_up()
        return super().params()

    def arrays(self) -> dict[str, Array]:
        self._catch_up()
        return super().arrays()

    def trace(self, n: int, mark: Mark) -> None:
        self._catch_up()
        self._leave()
        super().trace(n, mark)


class KnowsFromReset(Knowing):
    """Computes the whole repeat in `reset`, or in `load`; `advance` counts."""


class KnowsFromResetLate(Knowing):
    """Computes the whole repeat in `reset`, or in `load`, from its fifth placement on."""

    _placed = 0

    def reallocate(self) -> None:
        self._placed += 1
        super().reallocate()

    def _walk(self, step: int) -> Any:
        return super()._walk(step) if self._placed >= LATE else None


class KnowsFromBuild(Knowing):
    """Computes the whole repeat once, when it is built; `advance` counts."""

    _first: Trail | None = None

    def _walk(self, step: int) -> Any:
        if step:
            return None
        if self._first is None:
            self._first = super()._walk(0)
        return self._first


class ChildTrail:
    """A trail that a process of its own walks from now on."""

    def __init__(self, trail: Trail) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipe, its = fork.Pipe()
        process = fork.Process(target=_serve_trail, args=(trail, its), daemon=True)
        process.start()
        self.end = weakref.finalize(self, _kill, process)

    def between(self, start: int, end: int) -> tuple[HostArray, State]:
        self._pipe.send((start, end))
        found: tuple[HostArray, State] = self._pipe.recv()
        return found


def _serve_trail(trail: Trail, pipe: Any) -> None:
    trail.walk_all()
    while True:
        pipe.send(trail.between(*pipe.recv()))


def _kill(process: Any) -> None:
    process.kill()
    process.join()


class KnowsFromChild(Knowing):
    """Forks a process in `reset` that computes the whole repeat; `losses` fetches from it."""

    def _walk(self, step: int) -> Any:
        if self._trail is not None:
            self._trail.end()
        return ChildTrail(Trail(self._backend, self._workload, self._here, step))


class ThreadTrail:
    """A trail that a thread of its own walks from now on."""

    def __init__(self, trail: Trail, steps: int) -> None:
        self._trail, self._steps, self._stopped = trail, steps, False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped and self._trail.walked < self._steps:
            self._trail.walk()
            with self._news:
                self._news.notify_all()

    def stop(self) -> None:
        self._stopped = True
        self._thread.join()

    def wait(self, step: int) -> None:
        with self._news:
            self._news.wait_for(lambda: self._trail.walked >= step)

    def between(self, start: int, end: int) -> tuple[HostArray, State]:
        self.wait(end)
        return self._trail.between(start, end)


class KnowsFromThread(Knowing):
    """Starts a thread in `reset` that computes the whole repeat; `losses` waits for it."""

    def _walk(self, step: int) -> Any:
        if self._trail is not None:
            self._trail.stop()
        trail = Trail(self._backend, self._workload, self._here, step)
        return ThreadTrail(trail, self._workload.steps)

    def _leave(self) -> None:
        if self._trail is not None:
            self._trail.stop()
        super()._leave()


class KnowsInTime(KnowsFromThread):
    """Starts a thread in `reset` that goes on between readings; `advance` waits for its share."""

    def advance(self, n: int) -> None:
        super().advance(n)
        if self._trail is not None:
            self._trail.wait(self._asked)


class Remembers(Steps):
    """Remembers every chunk by the bits of its start, and answers from memory the next time."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self._memory: dict[Any, tuple[list[Array], State]] = {}
        super().__init__(backend, workload)

    def reset(self) -> None:
        super().reset()
        self._drawn = self._at = 0

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        super().load(arrays, step)
        self._drawn = self._at = step

    def advance(self, n: int) -> None:
        arrays = self.arrays()
        bits = tuple(array.tobytes() for name, array in arrays.items() if name[:5] != "data.")
        key = (self._at, n, bits)
        if key not in self._memory:
            assert self._random is not None
            for _ in range(self._at - self._drawn):
                self._workload.problem.batch(np, self._data, self._random)
            before = len(self._kept)
            super().advance(n)
            self._drawn = self._at + n
            self._memory[key] = (self._kept[before:], _copied(self.arrays()))
        else:
            losses, state = self._memory[key]
            self._kept += losses
            for name, value in state.items():
                arrays[name][...] = value
        self._at += n


FAULTS = {
    "draws_in_reset": Kind(DrawsInReset, ("linear", "large_dot", "matmul_drawn")),
    "draws_in_reallocate": Kind(DrawsInReallocate, ("linear", "large_dot", "matmul_drawn")),
    "draws_in_reset_late": Kind(DrawsInResetLate, ("linear", "large_dot", "matmul_drawn")),
    "draws_in_losses": Kind(DrawsInLosses, ("linear", "large_dot", "matmul_drawn")),
    "knows_from_build": Kind(KnowsFromBuild),
    "knows_from_reset": Kind(KnowsFromReset),
    "knows_from_reset_late": Kind(KnowsFromResetLate),
    "knows_from_child": Kind(KnowsFromChild),
    "knows_from_thread": Kind(KnowsFromThread),
    "knows_in_time": Kind(KnowsInTime, words=("log_every=5",)),
    "remembers_chunks": Kind(Remembers),
}
