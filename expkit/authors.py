"""The step-by-step program, which every backend can fall back on, and the two data streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np

from expkit.contracts import (
    Array,
    Backend,
    Batch,
    Differentiated,
    HostArray,
    Mark,
    Operation,
    Optimizer,
    Params,
    Problem,
    Random,
    Slots,
    Workload,
)
from expkit.errors import Unavailable
from expkit.placement import placed, scatter


def unmarked(part: str) -> None:
    """The `Mark` of a step that nobody traces."""


class LossAndGrad(Protocol):
    """The loss and the gradient of a batch: by hand (`manual`) or by a backend's autodiff."""

    def __call__(
        self, problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        """Marks the end of `forward` and of `backward`, or of `forward and backward`."""
        ...


def host_rng(seed: int, purpose: str) -> np.random.Generator:
    """The host's generator for one purpose: `data`, `init` or `stream`. Philox, counter-based."""
    key = ("data", "init", "stream").index(purpose)
    sequence = np.random.SeedSequence(seed, spawn_key=(key,))
    return np.random.Generator(np.random.Philox(sequence))


class SharedRandom:
    """`stream=shared`: the host draws in float64, so every backend sees the same bits."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self._rng = host_rng(seed, "stream")
        self._asarray = backend.asarray

    def normal(self, shape: tuple[int, ...]) -> Array:
        return self._asarray(self._rng.standard_normal(shape))


def stream(backend: Backend, workload: Workload) -> Random:
    """The random stream that a workload asks for, at its start."""
    if workload.stream == "shared":
        return SharedRandom(backend, workload.seed)
    return backend.random(workload.seed)


def first_data(workload: Workload) -> dict[str, HostArray]:
    """The problem's fixed arrays on the host: made once, and placed as often as wanted."""
    return workload.problem.data(host_rng(workload.seed, "data"))


def place(backend: Backend, host: Mapping[str, HostArray]) -> dict[str, Array]:
    """Copies of the host's arrays on the backend's device."""
    return {name: placed(backend, array) for name, array in host.items()}


def first_params(workload: Workload) -> dict[str, HostArray]:
    """The first parameters on the host; none for an operation."""
    if workload.optimizer is None:
        return {}
    return cast(Problem, workload.problem).init(host_rng(workload.seed, "init"))


def skip(
    backend: Backend, workload: Workload, data: Mapping[str, Array], random: Random, steps: int
) -> None:
    """Draw what this many steps would, and drop it.

    A step keeps its form, so what the first draws is what all draw.
    """
    if steps:
        noted = _Noted(random)
        workload.problem.batch(backend.xp, data, noted)
        for _ in range(steps - 1):
            for shape in noted.shapes:
                random.normal(shape)


class _Noted:
    """Draws, and notes which shapes."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.shapes: list[tuple[int, ...]] = []

    def normal(self, shape: tuple[int, ...]) -> Array:
        self.shapes.append(shape)
        return self._random.normal(shape)


def place_params(backend: Backend, workload: Workload) -> Params:
    """The first parameters on the backend's device."""
    first = first_params(workload)
    # One array at a time: the host's copy goes as soon as its own is placed.
    return {name: placed(backend, first.pop(name)) for name in list(first)}


def named_arrays(data: Mapping[str, Array], params: Params, slots: Slots) -> dict[str, Array]:
    """What a program's `arrays` returns."""
    groups = {"data": data, "params": params, "slots": slots}
    return {f"{group}.{name}": x for group, named in groups.items() for name, x in named.items()}


def manual(xp: Any) -> LossAndGrad:
    """The problem's own gradient, computed with `xp`.

    One call that shares work between loss and gradient, so it is traced as one part: to time the
    loss alone beside it would only be a guess at its share.
    """

    def loss_and_grad(
        problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        both = cast(Differentiated, problem).loss_and_grad(xp, params, batch)
        mark("forward and backward")
        return both

    return loss_and_grad


def require_gradient(problem: Problem | Operation, backend: str) -> None:
    """Raise `Unavailable` where a backend without autodiff meets a problem without a gradient."""
    if isinstance(problem, Problem) and not isinstance(problem, Differentiated):
        name = type(problem).__name__
        raise Unavailable(
            f"problem {name} gives no gradient by hand and backend {backend} needs one",
            "choose a backend that differentiates, or write loss_and_grad",
        )


class StepProgram:
    """One Python iteration a step; nothing assumed of the backend beyond its contract.

    `path_reason` says why it was taken in place of a faster program, see `FallenBack`.
    """

    path = "step"

    def __init__(
        self,
        backend: Backend,
        workload: Workload,
        loss_and_grad: LossAndGrad,
        path_reason: str = "",
    ) -> None:
        self._backend, self._workload, self._loss_and_grad = backend, workload, loss_and_grad
        self.path_reason = path_reason
        self._host_data = first_data(workload)
        self.reallocate()

    def reallocate(self) -> None:
        # Let go first: old and new memory together may not fit.
        self._data: dict[str, Array] = {}
        self._params: Params = {}
        self._slots: Slots = {}
        self._result: Array = None
        self._random: Random | None = None
        self._scattered = scatter(self._backend)
        self._data = place(self._backend, self._host_data)
        self.reset()

    def reset(self) -> None:
        self._params = place_params(self._backend, self._workload)
        if self._workload.optimizer is not None:
            self._slots = self._workload.optimizer.init(self._backend.xp, self._params)
        self._random = stream(self._backend, self._workload)
        self._kept: list[Array] = []
        self._fetched: HostArray = np.empty(0)

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        self.reset()
        random = self._random
        assert random is not None
        skip(self._backend, self._workload, self._data, random, step)
        self._fetched = np.full(step, np.nan)
        for group, own in (("data", self._data), ("params", self._params), ("slots", self._slots)):
            for name in own:
                if f"{group}.{name}" in arrays:
                    own[name] = placed(self._backend, arrays[f"{group}.{name}"])

    def advance(self, n: int) -> None:
        if isinstance(self._workload.problem, Operation):
            self._apply(self._workload.problem, n)
        else:
            assert self._workload.optimizer is not None
            self._learn(self._workload.problem, self._workload.optimizer, n)

    def _apply(self, problem: Operation, n: int) -> None:
        xp, data, random = self._backend.xp, self._data, self._random
        assert random is not None
        for _ in range(n):
            self._result = problem.apply(xp, problem.batch(xp, data, random))

    def _learn(self, problem: Problem, optimizer: Optimizer, n: int) -> None:
        xp, data, random = self._backend.xp, self._data, self._random
        assert random is not None
        params, slots, loss_and_grad = self._params, self._slots, self._loss_and_grad
        keep = self._kept.append
        for _ in range(n):
            batch = problem.batch(xp, data, random)
            loss, grads = loss_and_grad(problem, params, batch)
            keep(loss)
            del batch  # long arrays go as soon as they can
            params, slots = optimizer.update(xp, params, grads, slots)
            del grads
        self._params, self._slots = params, slots

    def trace(self, n: int, mark: Mark) -> None:
        if isinstance(self._workload.problem, Operation):
            self._trace_apply(self._workload.problem, n, mark)
        else:
            assert self._workload.optimizer is not None
            self._trace_learn(self._workload.problem, self._workload.optimizer, n, mark)

    # The loops of `advance` again: a mark that marks nothing would slow those.

    def _trace_apply(self, problem: Operation, n: int, mark: Mark) -> None:
        xp, data, random = self._backend.xp, self._data, self._random
        assert random is not None
        for _ in range(n):
            batch = problem.batch(xp, data, random)
            mark("draw")
            self._result = problem.apply(xp, batch)
            del batch
            mark("forward")

    def _trace_learn(self, problem: Problem, optimizer: Optimizer, n: int, mark: Mark) -> None:
        xp, data, random = self._backend.xp, self._data, self._random
        assert random is not None
        params, slots, loss_and_grad = self._params, self._slots, self._loss_and_grad
        for _ in range(n):
            batch = problem.batch(xp, data, random)
            mark("draw")
            loss, grads = loss_and_grad(problem, params, batch, mark)
            self._kept.append(loss)
            del batch
            params, slots = optimizer.update(xp, params, grads, slots)
            del grads
            mark("update")
        self._params, self._slots = params, slots

    def losses(self, start: int = 0) -> HostArray:
        if self._kept:
            fresh = self._backend.to_numpy(self._backend.xp.stack(self._kept))
            self._fetched = np.concatenate([self._fetched, fresh])
            self._kept.clear()
        return self._fetched[start:].copy()

    def params(self) -> dict[str, HostArray]:
        arrays = self._params
        if isinstance(self._workload.problem, Operation):
            arrays = {} if self._result is None else {"result": self._result}
        return {name: self._backend.to_numpy(array) for name, array in arrays.items()}

    def arrays(self) -> dict[str, Array]:
        return named_arrays(self._data, self._params, self._slots)
