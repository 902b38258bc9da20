"""Programs that note their steps and compute them when somebody asks: in time, or too late.

`Later` is an array of a small lazy library; dask is a real one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from expkit.authors import StepProgram, manual
from expkit.contracts import Array, Backend, HostArray, Mark, Normal, Workload

from .kinds import ALL, FEW, Kind, Steps

# Steps that are owed


class Owing(Steps):
    """Counts its steps and computes them for whoever asks for losses or parameters."""

    _lazy = True
    """False while steps are computed at once."""

    def reset(self) -> None:
        self._owed = 0
        super().reset()

    def advance(self, n: int) -> None:
        if self._lazy:
            self._owed += n
        else:
            super().advance(n)

    def pay(self, n: int | None = None) -> None:
        """Compute so many of the steps that are owed, or all of them."""
        n = self._owed if n is None else n
        self._owed -= n
        super().advance(n)

    def losses(self, start: int = 0) -> HostArray:
        self.pay()
        return super().losses(start)

    def params(self) -> dict[str, HostArray]:
        self.pay()
        return super().params()

    def arrays(self) -> dict[str, Array]:
        self.pay()
        return super().arrays()

    def trace(self, n: int, mark: Mark) -> None:
        self.pay()
        super().trace(n, mark)


class OwingToParams(Owing):
    """Counts its steps and computes them in `params`, which `losses` calls."""

    def losses(self, start: int = 0) -> HostArray:
        self.params()
        return StepProgram.losses(self, start)


class OwingHalf(Owing):
    """Computes half of its steps in `synchronize` and leaves the rest for the next call of it."""

    def reset(self) -> None:
        self._left = 0
        super().reset()

    def finish(self) -> None:
        self.pay(min(self._left, self._owed))
        self._left = self._owed // 2
        self.pay(self._owed - self._left)


class OwingAfterPlacements(Owing):
    """Computes at once until it is placed anew for the second time, then in `losses`."""

    _placed = -1  # the first time when it is made

    def reallocate(self) -> None:
        self._placed += 1
        self._lazy = self._placed >= 2
        super().reallocate()


class OwingAfterCalls(Owing):
    """Computes at once in the first ten calls of `advance`, then in `losses`."""

    _lazy = False
    _honest_calls = 10

    def advance(self, n: int) -> None:
        super().advance(n)
        self._honest_calls -= 1
        self._lazy = self._honest_calls <= 0


class OwingAfterManyCalls(OwingAfterCalls):
    """Computes at once in the first sixty calls of `advance`, then in `losses`."""

    _honest_calls = 60


class Paying(Owing):
    """Computes all steps in `synchronize`, none in `advance`."""

    def finish(self) -> None:
        self.pay()


# A lazy library


class Tape:
    """The calls that were noted and are not computed yet, oldest first."""

    def __init__(self) -> None:
        self.waiting: list[Later] = []

    def note(self, call: Callable[..., Any], *args: Any, **named: Any) -> Later:
        later = Later(self, call, args, named)
        self.waiting.append(later)
        return later

    def compute(self, *wanted: Later) -> None:
        """Compute what these need; without any, everything."""
        needed = {id(later) for later in wanted}
        rest: list[Later] = []
        if wanted:
            for later in reversed(self.waiting):
                if id(later) in needed:
                    needed |= {id(arg) for arg in later.args}
                else:
                    rest.append(later)
        left = {id(later) for later in rest}
        for later in self.waiting:
            if id(later) not in left:
                later.run()
        self.waiting = rest[::-1]

    def __getattr__(self, name: str) -> Callable[..., Later]:
        """As an array namespace: NumPy's functions, noted."""

        def noted(*args: Any, **named: Any) -> Later:
            return self.note(getattr(np, name), *args, **named)

        return noted


def _operator(call: Callable[[Any, Any], Any]) -> Callable[[Later, Any], Later]:
    def noted(self: Later, other: Any) -> Later:
        return self.tape.note(call, self, other)

    return noted


class Later:
    """An array that is computed when somebody looks at it."""

    __array_ufunc__ = None  # NumPy leaves operators to it

    def __init__(
        self, tape: Tape, call: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]
    ) -> None:
        self.tape, self.call, self.args, self.named = tape, call, args, named
        self.ready: Any = None

    __add__ = _operator(operator.add)
    __radd__ = _operator(lambda a, b: b + a)
    __sub__ = _operator(operator.sub)
    __rsub__ = _operator(lambda a, b: b - a)
    __mul__ = _operator(operator.mul)
    __rmul__ = _operator(lambda a, b: b * a)
    __matmul__ = _operator(operator.matmul)

    def run(self) -> None:
        self.ready = self.call(*map(_ready, self.args), **self.named)
        self.args = ()  # what it was made of may go

    @property
    def value(self) -> Any:
        if self.ready is None:
            self.tape.compute()
        return self.ready

    @property
    def dtype(self) -> Any:
        return self.value.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.value)

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        return np.array(self.value, dtype)


def _ready(arg: Any) -> Any:
    if isinstance(arg, list):
        return [_ready(one) for one in arg]
    return arg.ready if isinstance(arg, Later) else arg


class Library:
    """The backend, with arrays of a lazy library in place of NumPy's."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.xp = backend, Tape()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def asarray(self, host: npt.NDArray[Any]) -> Later:
        later = Later(self.xp, np.array, (), {})
        later.ready = self._backend.asarray(host)
        return later

    def random(self, seed: int) -> Normal:
        return LaterRandom(self.xp, self._backend.random(seed))


class LaterRandom:
    """Draws that are noted too."""

    def __init__(self, tape: Tape, source: Normal) -> None:
        self._tape, self._source = tape, source

    def normal(self, shape: tuple[int, ...]) -> Later:
        return self._tape.note(self._source.normal, shape)


class Graph(Steps):
    """Notes its steps as a graph of a lazy library, whose `synchronize` does nothing."""

    _every: int | None = None
    """Steps after which the graph is computed in `advance`."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self._library: Any = Library(backend)
        self._tape: Tape = self._library.xp
        super().__init__(self._library, workload)

    def reset(self) -> None:
        self._noted = 0
        super().reset()

    def advance(self, n: int) -> None:
        if self._every is None:
            super().advance(n)
            return
        for _ in range(n):
            super().advance(1)
            self._noted += 1
            if self._noted % self._every == 0:
                self._tape.compute()


class Graph7(Graph):
    """Computes its graph every 7 steps, and the rest of a chunk in `losses`."""

    _every = 7


class Graph64(Graph):
    """Computes its graph every 64 steps, and the rest of a chunk in `losses`."""

    _every = 64


class Graph100(Graph):
    """Computes its graph every 100 steps, and what is left at a reading in `losses`."""

    _every = 100


class GraphOfParams(Graph):
    """Computes what the parameters need in `synchronize`, and the losses in `losses`."""

    def finish(self) -> None:
        self._tape.compute(*self._params.values(), *self._state.values())


class GraphInTime(Graph):
    """Notes its steps as a graph, which `synchronize` computes."""

    def finish(self) -> None:
        self._tape.compute()


class GraphInChunks(GraphInTime):
    """Computes its graph every 16 steps in `advance`, and the rest in `synchronize`."""

    _every = 16


# Losses afterwards


class LossesAfterwards(Steps):
    """Computes gradients at once; the losses of parameters it has kept only in `losses`."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        right = manual(np)

        def loss_and_grad(problem: Any, params: Any, batch: Any, mark: Any = None) -> Any:
            before = {name: array.copy() for name, array in params.items()}
            _, grads = right(problem, params, batch)
            return (lambda: problem.loss(np, before, batch)), grads

        StepProgram.__init__(self, backend, workload, loss_and_grad)

    def losses(self, start: int = 0) -> HostArray:
        self._kept = [loss() if callable(loss) else loss for loss in self._kept]
        return super().losses(start)

    def trace(self, n: int, mark: Mark) -> None:
        self._loss_and_grad, later = manual(np), self._loss_and_grad
        super().trace(n, mark)
        self._loss_and_grad = later


# Dask


class DaskLibrary:
    """The backend, with arrays of dask in place of NumPy's."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.xp: Any = import_module("dask.array")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        return self.xp.from_array(self._backend.asarray(host), name=False)

    def random(self, seed: int) -> Normal:
        return DaskRandom(self, self._backend.random(seed))


class DaskRandom:
    """NumPy's draws, as arrays of dask."""

    def __init__(self, library: DaskLibrary, source: Normal) -> None:
        self._library, self._source = library, source

    def normal(self, shape: tuple[int, ...]) -> Array:
        return self._library.asarray(self._source.normal(shape))


class Dask(Steps):
    """Notes its steps as a graph of dask, whose `synchronize` does nothing."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self._library: Any = DaskLibrary(backend)
        super().__init__(self._library, workload)

    def compute(self) -> None:
        """Compute losses and parameters together; they are leaves of the graph from here on."""
        names = list(self._params)
        asked = [*self._params.values(), *self._kept]
        found = import_module("dask").compute(*asked, scheduler="synchronous")
        leaves = [self._library.asarray(np.asarray(value)) for value in found[: len(names)]]
        self._params = dict(zip(names, leaves, strict=True))
        self._fetched = np.concatenate([self._fetched, found[len(names) :]])
        self._kept.clear()

    def losses(self, start: int = 0) -> HostArray:
        self.compute()
        return super().losses(start)

    def params(self) -> dict[str, HostArray]:
        self.compute()
        return super().params()


class DaskInTime(Dask):
    """Notes its steps as a graph of dask, which `synchronize` computes."""

    def finish(self) -> None:
        self.compute()


SINES = ("sine", "sine_200k", "sine_1m")
FAULTS = {
    "owed_to_losses": Kind(Owing, (*ALL, *SINES[1:])),
    "owed_to_params": Kind(OwingToParams, ALL),
    "owed_by_half": Kind(OwingHalf, ALL),
    "owed_from_second_placement": Kind(OwingAfterPlacements),
    "owed_from_tenth_call": Kind(OwingAfterCalls),
    "owed_from_sixtieth_call": Kind(OwingAfterManyCalls),
    "lazy_graph": Kind(Graph, (*ALL, *SINES[1:])),
    "lazy_graph_7": Kind(Graph7, words=("log_every=13",)),  # it leaves 6, of 100 steps 2
    "lazy_graph_64": Kind(Graph64),
    "lazy_graph_100": Kind(Graph100, words=("log_every=50",)),
    "lazy_losses_of_graph": Kind(GraphOfParams, SINES),
    "lazy_losses": Kind(LossesAfterwards, ("linear", *SINES)),
    "lazy_dask": Kind(
        Dask, (*FEW, "sine_200k_few", "sine_1m_few"), ("backend.threads=2",), needs="dask"
    ),
}
TWINS = {
    "computes_in_synchronize": Kind(Paying, ALL),
    "graph_in_synchronize": Kind(GraphInTime, (*ALL, "sine_200k")),
    "graph_in_chunks": Kind(GraphInChunks),
    "dask_in_synchronize": Kind(DaskInTime, FEW, needs="dask"),
}
