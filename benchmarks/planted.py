"""A backend with planted faults, which the framework has to find, and its honest twins.

A plugin of one module: its text is installed as a package by `benchmarks.faults` and by the tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from expkit_plugins.numpy.backend import NumpyBackend

from expkit.authors import LossAndGrad, StepProgram, manual, unmarked
from expkit.contracts import (
    Array,
    Backend,
    HostArray,
    Mark,
    Optimizer,
    Params,
    Problem,
    Program,
    Slots,
    Workload,
)

OPTION = "_target_: {package}.Planted\nfault: honest\ndtype: float64\nthreads: null\nfast: false\n"
"""The plugin's file `conf/backend/planted.yaml`."""


@dataclass(frozen=True)
class Planted(NumpyBackend):  # type: ignore[misc]
    """Attributes:
    fault: one of FAULTS, or `honest` or `honest_queue`.
    """

    fault: str = "honest"

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        return np.array(host, dtype="float32" if self.fault == "float32_arrays" else self.dtype)

    def synchronize(self, program: Program | None = None) -> None:
        if self.fault == "honest_queue":
            QUEUE.submit(int).result()

    def build(self, workload: Workload) -> Program:
        make = (FAULTS | HONEST)[self.fault]
        return make(self, workload)


# Work that is left out


@dataclass(frozen=True)
class _Skipping:
    """An optimizer that leaves out every tenth update."""

    inner: Optimizer
    calls: list[int] = dataclasses.field(default_factory=lambda: [0])

    def init(self, xp: Any, params: Params) -> Slots:
        self.calls[0] = 0
        return self.inner.init(xp, params)

    def update(self, xp: Any, params: Params, grads: Params, slots: Slots) -> tuple[Params, Slots]:
        self.calls[0] += 1
        if self.calls[0] % 10 == 0:
            return params, slots
        return self.inner.update(xp, params, grads, slots)


def _skips_updates(backend: Backend, workload: Workload) -> Program:
    assert workload.optimizer is not None
    skipping = dataclasses.replace(workload, optimizer=_Skipping(workload.optimizer))
    return StepProgram(backend, skipping, manual(np))


class _Early(StepProgram):
    """Returns when nine tenths of the steps are done."""

    def advance(self, n: int) -> None:
        super().advance(n - n // 10)


class _EarlyPadded(_Early):
    """The same, with as many losses as were asked for: the last one again and again."""

    def reset(self) -> None:
        super().reset()
        self._asked = 0

    def advance(self, n: int) -> None:
        super().advance(n)
        self._asked += n

    def losses(self, start: int = 0) -> HostArray:
        found = super().losses()
        missing = max(0, self._asked - len(found))
        return np.pad(found, (0, missing), "edge" if len(found) else "constant")[start:]


def _stale_losses(backend: Backend, workload: Workload) -> Program:
    """Computes every other loss and repeats it for the step after."""
    right = manual(np)
    kept: list[Array] = []

    def loss_and_grad(
        problem: Problem, params: Params, batch: Any, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        loss, grads = right(problem, params, batch, mark)
        if kept:
            return kept.pop(), grads
        kept.append(loss)
        return loss, grads

    return StepProgram(backend, workload, loss_and_grad)


class _WrongLater(StepProgram):
    """Right in its first round of repeats, and in the others off in the sixth digit."""

    placed = 0

    def reallocate(self) -> None:
        self.placed += 1  # the first time when it is made
        super().reallocate()

    def losses(self, start: int = 0) -> HostArray:
        return super().losses(start) * (1 + 1e-6 * (self.placed > 2))


class _Replaying(StepProgram):
    """Does its steps until it has done all of them once, and gives that answer ever after."""

    def __init__(self, backend: Backend, workload: Workload, loss_and_grad: LossAndGrad) -> None:
        self._steps, self._done = workload.steps, 0
        self._answer: tuple[HostArray, dict[str, HostArray]] | None = None
        super().__init__(backend, workload, loss_and_grad)

    def reset(self) -> None:
        if self._answer is None:
            super().reset()
        self._done = 0

    def advance(self, n: int) -> None:
        self._done += n
        if self._answer is None:
            super().advance(n)
            if self._done == self._steps:
                self._answer = super().losses(), super().params()

    def losses(self, start: int = 0) -> HostArray:
        if self._answer is None:
            return super().losses(start)
        return self._answer[0][start : self._done]

    def params(self) -> dict[str, HostArray]:
        return self._answer[1] if self._answer else super().params()

    def trace(self, n: int, mark: Mark) -> None:
        StepProgram.reset(self)
        super().trace(n, mark)


# Work of less precision


def _float32_inside(backend: Backend, workload: Workload) -> Program:
    """Arrays of float64 around steps of float32."""
    right = manual(np)

    def loss_and_grad(
        problem: Problem, params: Params, batch: Any, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        small_params = {name: array.astype("float32") for name, array in params.items()}
        small_batch = {name: array.astype("float32") for name, array in batch.items()}
        loss, grads = right(problem, small_params, small_batch, mark)
        return np.float64(loss), {name: array.astype("float64") for name, array in grads.items()}

    return StepProgram(backend, workload, loss_and_grad)


# Work that is still queued when the clock stops

QUEUE = ThreadPoolExecutor(1)


class _Queued(StepProgram):
    """Queues its steps to a thread; whoever asks for losses or parameters waits for them."""

    def reallocate(self) -> None:
        self._wait()
        super().reallocate()

    def reset(self) -> None:
        self._wait()
        super().reset()

    def advance(self, n: int) -> None:
        QUEUE.submit(super().advance, n)

    def losses(self, start: int = 0) -> HostArray:
        self._wait()
        return super().losses(start)

    def params(self) -> dict[str, HostArray]:
        self._wait()
        return super().params()

    def _wait(self) -> None:
        QUEUE.submit(int).result()


class _LeftQueued(_Queued):
    """Whoever asks gets what there is."""

    def losses(self, start: int = 0) -> HostArray:
        return StepProgram.losses(self, start)

    def params(self) -> dict[str, HostArray]:
        return StepProgram.params(self)


Make = Callable[[Backend, Workload], Program]


def _of(program: type[StepProgram]) -> Make:
    return lambda backend, workload: program(backend, workload, manual(np))


HONEST: dict[str, Make] = {"honest": _of(StepProgram), "honest_queue": _of(_Queued)}
FAULTS: dict[str, Make] = {
    "skips_updates": _skips_updates,
    "float32_inside": _float32_inside,
    "float32_arrays": _of(StepProgram),
    "returns_early": _of(_Early),
    "returns_early_padded": _of(_EarlyPadded),
    "unsynchronized": _of(_Queued),
    "left_queued": _of(_LeftQueued),
    "stale_losses": _stale_losses,
    "wrong_later": _of(_WrongLater),
    "replays_first": _of(_Replaying),
}
