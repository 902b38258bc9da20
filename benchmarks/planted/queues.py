"""Programs whose steps are done by a thread or by a process of its own."""

from __future__ import annotations

import multiprocessing
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from expkit.authors import StepProgram
from expkit.contracts import Array, Backend, HostArray, Mark, Workload

from .kinds import ALL, Kind, Steps


class Queued(Steps):
    """Queues its steps to a thread; `losses` and `params` wait for it, `synchronize` does not."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self._thread = ThreadPoolExecutor(1)
        super().__init__(backend, workload)

    def wait(self) -> None:
        """Until everything that was queued is done."""
        self._thread.submit(int).result()

    def reallocate(self) -> None:
        self.wait()
        super().reallocate()

    def reset(self) -> None:
        self.wait()
        super().reset()

    def advance(self, n: int) -> None:
        self._thread.submit(super().advance, n)

    def losses(self, start: int = 0) -> HostArray:
        self.wait()
        return super().losses(start)

    def params(self) -> dict[str, HostArray]:
        self.wait()
        return super().params()

    def arrays(self) -> dict[str, Array]:
        self.wait()
        return super().arrays()


class LeftQueued(Queued):
    """Queues its steps to a thread and waits for nothing: whoever asks gets what there is."""

    def losses(self, start: int = 0) -> HostArray:
        return StepProgram.losses(self, start)

    def params(self) -> dict[str, HostArray]:
        return StepProgram.params(self)


class QueuedShare(Queued):
    """Queues its steps to a thread; `synchronize` waits for seven tenths of them."""

    def reset(self) -> None:
        self._queued: list[Future[None]] = []
        super().reset()

    def advance(self, n: int) -> None:
        step = super(Queued, self).advance
        self._queued += [self._thread.submit(step, 1) for _ in range(n)]

    def finish(self) -> None:
        enough = len(self._queued) * 7 // 10
        if enough:
            self._queued[enough - 1].result()
            del self._queued[:enough]


class QueuedInTime(Queued):
    """Queues its steps to a thread; `synchronize` waits for it."""

    def finish(self) -> None:
        self.wait()


class InChild(Steps):
    """Sends its steps to another process; `losses` and `params` fetch, `synchronize` does nothing.

    Its own arrays are as they were when they were fetched last; what is written into them is sent.
    """

    def __init__(self, backend: Backend, workload: Workload) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipe, its = fork.Pipe()
        process = fork.Process(target=_serve, args=(backend, workload, its), daemon=True)
        process.start()
        weakref.finalize(self, _kill, process)
        super().__init__(backend, workload)

    def ask(self, *words: Any) -> Any:
        """Of the other process, which answers when it has done what came before."""
        self._pipe.send(words)
        return self._pipe.recv()

    def reset(self) -> None:
        super().reset()
        self._pipe.send(("reset",))
        self._at, self._stale, self._traced = 0, False, False
        self._here = _copied(super().arrays())

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        super().load(arrays, step)
        self._at = step

    def advance(self, n: int) -> None:
        if not self._stale:
            arrays = super().arrays()
            if any(not np.array_equal(arrays[name], was) for name, was in self._here.items()):
                self._pipe.send(("load", _copied(arrays), self._at))
        self._pipe.send(("advance", n))
        self._at, self._stale = self._at + n, True

    def losses(self, start: int = 0) -> HostArray:
        if self._traced:
            return super().losses(start)
        found: HostArray = self.ask("losses", start)
        return found

    def params(self) -> dict[str, HostArray]:
        self.arrays()
        return super().params()

    def arrays(self) -> dict[str, Array]:
        arrays = super().arrays()
        if self._stale:
            self._here = self.ask("arrays")
            for name, value in self._here.items():
                arrays[name][...] = value
            self._stale = False
        return arrays

    def trace(self, n: int, mark: Mark) -> None:
        self.arrays()
        self._traced = True  # here, where the marks are
        super().trace(n, mark)


class InChildInTime(InChild):
    """Sends its steps to another process; `synchronize` waits until it has done them."""

    def finish(self) -> None:
        self.ask("done")


def _copied(arrays: Mapping[str, Array]) -> dict[str, HostArray]:
    return {name: np.array(array) for name, array in arrays.items()}


def _serve(backend: Backend, workload: Workload, pipe: Any) -> None:
    program = Steps(backend, workload)
    while True:
        word, *given = pipe.recv()
        if word == "arrays":
            pipe.send(_copied(program.arrays()))
        elif word == "done":
            pipe.send(None)
        elif word == "losses":
            pipe.send(program.losses(*given))
        else:
            getattr(program, word)(*given)


def _kill(process: Any) -> None:
    process.kill()
    process.join()


FAULTS = {
    "unsynchronized": Kind(Queued, ALL),
    "left_queued": Kind(LeftQueued),
    "queued_share": Kind(QueuedShare, ("large_dot", "sine_200k", "linear_wide")),
    "in_child": Kind(InChild),
}
TWINS = {
    "honest_queue": Kind(QueuedInTime, ALL),
    "honest_child": Kind(InChildInTime),
}
