"""Programs that leave work out, do it in less precision, or on more threads than they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from expkit.authors import RandomOfDraws, StepProgram, first_data, first_params, manual, unmarked
from expkit.contracts import (
    Array,
    Backend,
    Batch,
    EvaluatesAgain,
    HostArray,
    Mark,
    Operation,
    Optimizer,
    OptState,
    Params,
    Problem,
    Program,
    Random,
    Recommended,
    Workload,
)

from .kinds import FIRST, LEARNING, LONG, WIDE, WIDEST, Kind, Steps

# Work that is left out


@dataclass(frozen=True)
class _Skipping:
    """An optimizer that leaves out every tenth update from a step on."""

    inner: Optimizer
    start: int = 0
    calls: list[int] = dataclasses.field(default_factory=lambda: [0])

    def init(self, xp: Any, params: Params) -> OptState:
        self.calls[0] = 0
        return self.inner.init(xp, params)

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        self.calls[0] += 1
        if self.calls[0] % 10 == 0 and self.calls[0] > self.start:
            return params, state
        return self.inner.update(xp, params, grads, state)


class SkipsUpdates(Steps):
    """Leaves out every tenth update."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        assert workload.optimizer is not None
        assert not isinstance(workload.optimizer, EvaluatesAgain)
        self._skipping = _Skipping(workload.optimizer, self._start(workload))
        super().__init__(backend, dataclasses.replace(workload, optimizer=self._skipping))

    def _start(self, workload: Workload) -> int:
        return 0

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        super().load(arrays, step)
        self._skipping.calls[0] = step


class SkipsUpdatesLater(SkipsUpdates):
    """Leaves out every tenth update from step 100 on."""

    def _start(self, workload: Workload) -> int:
        return 100


class SkipsUpdatesLate(SkipsUpdates):
    """Leaves out every tenth update after the reference's last step."""

    def _start(self, workload: Workload) -> int:
        return _reference_end(workload)


class RateOff(Steps):
    """Learns at a rate that is a hundredth too high."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        rule: Any = workload.optimizer
        off = dataclasses.replace(rule, lr=1.01 * rule.lr)
        super().__init__(backend, dataclasses.replace(workload, optimizer=off))


class Early(Steps):
    """Returns when nine tenths of the steps are done."""

    def advance(self, n: int) -> None:
        super().advance(n - n // 10)


class EarlyPadded(Early):
    """Returns when nine tenths of the steps are done, with the last loss as often as is missing."""

    def reset(self) -> None:
        super().reset()
        self._asked = 0

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        super().load(arrays, step)
        self._asked = step

    def advance(self, n: int) -> None:
        super().advance(n)
        self._asked += n

    def losses(self, start: int = 0) -> HostArray:
        found = super().losses()
        missing = max(0, self._asked - len(found))
        return np.pad(found, (0, missing), "edge" if len(found) else "constant")[start:]


class StaleLosses(Steps):
    """Computes every other loss and repeats it for the step after."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        right = manual(np)
        kept: list[Array] = []

        def loss_and_grad(
            problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
        ) -> tuple[Array, Params]:
            loss, grads = right(problem, params, batch, mark)
            if kept:
                return kept.pop(), grads
            kept.append(loss)
            return loss, grads

        StepProgram.__init__(self, backend, workload, loss_and_grad)


class WrongLater(Steps):
    """Right in its first round of repeats, and in the others off in the sixth digit."""

    placed = 0

    def reallocate(self) -> None:
        self.placed += 1
        super().reallocate()

    def losses(self, start: int = 0) -> HostArray:
        return super().losses(start) * (1 + 1e-6 * (self.placed > FIRST))


class Replays(Steps):
    """Does its steps until it has done all of them once, and gives that answer ever after."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self._steps, self._done = workload.steps, 0
        self._answer: tuple[HostArray, dict[str, HostArray]] | None = None
        super().__init__(backend, workload)

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

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        answer, self._answer = self._answer, None
        super().load(arrays, step)
        self._answer, self._done = answer, step

    def trace(self, n: int, mark: Mark) -> None:
        StepProgram.reset(self)
        super().trace(n, mark)


class OnlyLast(Steps):
    """Computes the last of the results it is asked for, which is all that anybody sees."""

    def advance(self, n: int) -> None:
        assert self._random is not None
        for _ in range(n - 1):
            self._workload.problem.batch(np, self._data, self._random)
        super().advance(min(n, 1))


class Gram(Steps):
    """Sums over the points once, when they are placed; a step has a few numbers to look at."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        sums: dict[int, tuple[Array, Array, Array]] = {}

        def loss_and_grad(
            problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
        ) -> tuple[Array, Params]:
            basis, y, w = batch["basis"], batch["y"], params["w"]
            if id(basis) not in sums:
                sums.clear()
                sums[id(basis)] = basis @ basis.T, basis @ y, y @ y
            squares, products, size = sums[id(basis)]
            half = squares @ w
            loss = w @ (half - 2 * products) + size
            mark("forward and backward")
            return loss, {"w": 2 * (half - products)}

        StepProgram.__init__(self, backend, workload, loss_and_grad)


# Later than the reference goes


def _reference_end(workload: Workload) -> int:
    """The step after which nobody compares every loss, as who knows expkit can tell."""
    arrays = {**first_data(workload), **first_params(workload)}
    return min(int(4e7 / sum(np.size(array) for array in arrays.values())), 5000)


class Late(Steps):
    """Something else after the reference's last step."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self._late_from = self._start(workload)
        super().__init__(backend, workload)

    def _start(self, workload: Workload) -> int:
        return _reference_end(workload)

    def reset(self) -> None:
        super().reset()
        self._at = 0

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        super().load(arrays, step)
        self._at = step

    def advance(self, n: int) -> None:
        right = min(n, max(0, self._late_from - self._at))
        super().advance(right)
        self._at += n
        if n > right:
            self.advance_late(n - right)

    def advance_late(self, n: int) -> None:
        """So many steps, done otherwise."""


class RepeatsLoss(Late):
    """Stops after the reference's last step and repeats the last loss."""

    def losses(self, start: int = 0) -> HostArray:
        found = super().losses()
        return np.pad(found, (0, max(0, self._at - len(found))), "edge" if len(found) else "empty")[
            start:
        ]


class RepeatsLossAtEnd(RepeatsLoss):
    """Stops after nine tenths of the steps and repeats the last loss."""

    def _start(self, workload: Workload) -> int:
        return workload.steps * 9 // 10


class Float32Late(Late):
    """Computes in float32 after the reference's last step."""

    def advance_late(self, n: int) -> None:
        self._loss_and_grad, right = _in_float32, self._loss_and_grad
        StepProgram.advance(self, n)
        self._loss_and_grad = right


class SameDrawsLate(Late):
    """Draws one batch again and again after the reference's last step."""

    def advance_late(self, n: int) -> None:
        right = self._random
        self._random = _Again(self._workload, self._backend.asarray)
        StepProgram.advance(self, n)
        self._random = right


class _Again(RandomOfDraws):
    """One batch, over and over."""

    def __init__(self, workload: Workload, asarray: Any) -> None:
        self._rng, self._asarray = np.random.default_rng(workload.seed), asarray
        self._value: Array = None

    def draw(self, kind: str, *given: Any) -> Array:
        if self._value is None:
            self._value = self._asarray(self._rng.standard_normal(*given))
        return self._value


# Work of less precision


def _in_float32(
    problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
) -> tuple[Array, Params]:
    small_params = {name: array.astype("float32") for name, array in params.items()}
    small_batch = {name: array.astype("float32") for name, array in batch.items()}
    loss, grads = manual(np)(problem, small_params, small_batch, mark)
    return np.float64(loss), {name: array.astype("float64") for name, array in grads.items()}


class Float32Inside(Steps):
    """Arrays of float64 around steps of float32."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        StepProgram.__init__(self, backend, workload, _in_float32)


class _Float32Backend:
    """The backend, with arrays of float32 whatever its dtype."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        return np.array(host, dtype="float32")


class Float32Arrays(Steps):
    """Keeps all its arrays in float32 and says float64."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        inner: Any = _Float32Backend(backend)
        super().__init__(inner, workload)


# More threads than it says


class TwoThreads(Steps):
    """Draws and computes on the two threads that it says, where they are the library's own."""


def two_threads(backend: Backend, workload: Workload) -> Program:
    """Draws and computes on two threads, whatever number it says."""
    two: Any = dataclasses.replace(backend, threads=2)  # type: ignore[type-var]
    right = manual(np)

    def loss_and_grad(
        problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        if any(array.ndim == 0 for array in batch.values()):
            return right(problem, params, batch, mark)
        half = max(array.shape[-1] for array in batch.values()) // 2
        parts = [{k: v[..., :half] for k, v in batch.items()}]
        parts += [{k: v[..., half:] for k, v in batch.items()}]
        (a, grads), (b, others) = two.pool.map(lambda part: right(problem, params, part), parts)
        mark("forward and backward")
        return a + b, {name: grad + others[name] for name, grad in grads.items()}

    if isinstance(workload.problem, Operation):
        shared = _HalfRows(workload.problem, two.pool)
        return StepProgram(two, dataclasses.replace(workload, problem=shared), loss_and_grad)
    return StepProgram(two, workload, loss_and_grad)


@dataclass(frozen=True)
class _HalfRows:
    """A matrix product on two threads, half of the rows on each."""

    problem: Operation
    pool: Any

    def recommended(self) -> Recommended:
        return self.problem.recommended()

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return self.problem.data(rng)

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        return self.problem.batch(xp, data, random)

    def apply(self, xp: Any, batch: Batch) -> Array:
        a, b = batch["a"], batch["b"]
        halves = a[: len(a) // 2], a[len(a) // 2 :]
        return np.concatenate(list(self.pool.map(lambda rows: rows @ b, halves)))


DRAWN = tuple(name for name in LONG if "sine" not in name)
FAULTS = {
    "rate_off": Kind(RateOff),
    "skips_updates": Kind(SkipsUpdates),
    "skips_updates_later": Kind(SkipsUpdatesLater, ("sine", "linear", "large_dot_101")),
    "skips_updates_late": Kind(SkipsUpdatesLate, LONG),
    "returns_early": Kind(Early),
    "returns_early_padded": Kind(EarlyPadded),
    "stale_losses": Kind(StaleLosses, (*LEARNING, WIDEST)),
    "wrong_later": Kind(WrongLater),
    "replays_first": Kind(Replays),
    "repeats_loss_late": Kind(RepeatsLoss, LONG),
    "repeats_loss_at_end": Kind(RepeatsLossAtEnd, LONG),
    "float32_late": Kind(Float32Late, LONG),
    "same_draws_late": Kind(SameDrawsLate, DRAWN),
    "float32_inside": Kind(Float32Inside),
    "float32_arrays": Kind(Float32Arrays),
    "two_threads": Kind(two_threads, WIDE, ("backend.threads=1",)),
    "only_last": Kind(OnlyLast, ("matmul", "matmul_600", "add")),
    "gram": Kind(Gram, ("sine_200k", "sine_1m")),
}
TWINS = {
    "two_threads_said": Kind(TwoThreads, WIDE, ("backend.threads=2",)),
}
