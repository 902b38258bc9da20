"""What expkit offers to the author of a backend, besides the contracts.

For every backend:

- `StepProgram`: the step-by-step program, which needs nothing but a `LossAndGrad`: a function that
  computes the loss and the gradient;
- `manual`: the `LossAndGrad` of a problem that has its gradient by hand, and `require_gradient`,
  which refuses a problem that has none.

For a faster program of a backend's own:

- the start: `first_data` and `first_params` make it on the host; `place`, `place_params` and
  `first_state` put it on the device;
- the random values: `stream` returns the random stream that a workload asks for. It is a
  `StreamRandom`: its values are those of the backend's generator or, where the host draws, of a
  `SharedRandom` with the generator of `host_rng`, and its integers are those of `HostIndices`.
  `draws_of_a_step` says what a step draws, and `skip` draws and drops the values of some steps, for
  `Program.load`. A stream of your own may be a `RandomOfDraws`;
- `evaluation`: what an optimizer is given that evaluates the loss more than once in a step;
- `named_arrays`: what `Program.arrays` returns;
- `unmarked`: the mark of a step that nobody traces.

For arrays that lie elsewhere at every placement: `placed` and `scatter`, which `place` and
`StepProgram` use, and `random_start`, for a backend that has a `placed` of its own.

The addresses of arrays decide which of them share cache sets, and which loads seem to the processor
to follow a store: identical programs differ by 10 % and more for as long as they live. An allocator
reuses memory that was just freed, so a program placed again would lie where it lay before. An array
therefore starts at a random cache line of a page or, if it is long, of 64 pages, which also changes
its physical pages: the outer caches go by these. (Sine, 20,000 points, one program compared with
itself in 20 pairs: 9 differed by more than 2 % without the pages, none with them.) It starts where
a line does, because vectors that straddle two lines cost a few percent and double the spread
between placements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from expkit.contracts import (
    AnyOptimizer,
    Array,
    Backend,
    Batch,
    Evaluate,
    HasGradient,
    HostArray,
    Indexing,
    Mark,
    Normal,
    Operation,
    OptState,
    Params,
    Placing,
    Problem,
    Random,
    Uniform,
    Workload,
)
from expkit.errors import PluginError, Unavailable

LINE, PAGE = 64, 4096
"""Bytes of a cache line and of a page of memory."""
LONG = 8 * PAGE
"""Bytes from which an array is moved by whole pages: shorter ones stay in the first-level cache."""

_rng = np.random.default_rng()


def unmarked(part: str) -> None:
    """The `Mark` of a step that nobody traces."""


class LossAndGrad(Protocol):
    """The loss, of shape (), and its gradient by parameter, in the parameters' shapes: by hand
    (`manual`) or by a backend's autodiff.
    """

    def __call__(
        self, problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        """Marks the end of `forward` and of `backward`, or of `forward and backward`."""
        ...


Draw: TypeAlias = tuple[str, tuple[Any, ...]]
"""A draw: the method of `Random`, and its arguments."""
INTEGERS = ("integers", "permutation", "minibatch")
"""The draws of integers, which the host makes."""


def host_rng(seed: int, purpose: str) -> np.random.Generator:
    """The host's generator for one purpose: `data`, `init`, `stream` or `integers`. Philox,
    counter-based.

    A program of your own that draws for `stream=shared` takes float64 `standard_normal` values, or
    `random` for uniform ones, from the generator for `stream`, in the order in which the problem's
    `batch` asks for them.
    """
    key = ("data", "init", "stream", "integers").index(purpose)
    sequence = np.random.SeedSequence(seed, spawn_key=(key,))
    return np.random.Generator(np.random.Philox(sequence))


class SharedRandom:
    """`stream=shared`: the host draws in float64, so every backend sees the same bits."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self._rng = host_rng(seed, "stream")
        self._asarray = backend.asarray

    def normal(self, shape: tuple[int, ...]) -> Array:
        return self._asarray(self._rng.standard_normal(shape))

    def uniform(self, shape: tuple[int, ...]) -> Array:
        return self._asarray(self._rng.random(shape))


class HostIndices:
    """The integers of a `Random`, on the host."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.rewind()

    def rewind(self) -> None:
        """Go back to the first draw."""
        self._rng = host_rng(self._seed, "integers")
        self._epochs: dict[tuple[int, int], tuple[npt.NDArray[np.int64], int]] = {}

    def integers(self, high: int, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        return self._rng.integers(high, size=shape)

    def permutation(self, n: int) -> npt.NDArray[np.int64]:
        return self._rng.permutation(n)

    def minibatch(self, n: int, size: int) -> npt.NDArray[np.int64]:
        if not 1 <= size <= n:
            raise PluginError(f"random.minibatch: size: got {size}, takes an integer from 1 to {n}")
        order, taken = self._epochs.get((n, size), (None, 0))
        if order is None or taken + size > n:
            order, taken = self.permutation(n), 0
        self._epochs[n, size] = order, taken + size
        return order[taken : taken + size]


class StreamRandom:
    """A stream: values from a generator, integers from the host."""

    def __init__(self, backend: Backend, values: Normal, seed: int) -> None:
        self._backend, self._values, self._indices = backend, values, HostIndices(seed)
        self.normal = values.normal

    def uniform(self, shape: tuple[int, ...]) -> Array:
        if not isinstance(self._values, Uniform):
            raise Unavailable(
                "the backend's own generator draws no uniform values", "use stream=shared"
            )
        return self._values.uniform(shape)

    def _place(self, host: npt.NDArray[np.int64]) -> Array:
        backend = self._backend
        return backend.indices(host) if isinstance(backend, Indexing) else backend.xp.asarray(host)

    def integers(self, high: int, shape: tuple[int, ...]) -> Array:
        return self._place(self._indices.integers(high, shape))

    def permutation(self, n: int) -> Array:
        return self._place(self._indices.permutation(n))

    def minibatch(self, n: int, size: int) -> Array:
        return self._place(self._indices.minibatch(n, size))


class RandomOfDraws(ABC):
    """A `Random` whose draws are all made by one method."""

    @abstractmethod
    def draw(self, kind: str, *given: Any) -> Array:
        """Make the draw that the method `kind` of a `Random` makes with these arguments."""

    def normal(self, shape: tuple[int, ...]) -> Array:
        return self.draw("normal", shape)

    def uniform(self, shape: tuple[int, ...]) -> Array:
        return self.draw("uniform", shape)

    def integers(self, high: int, shape: tuple[int, ...]) -> Array:
        return self.draw("integers", high, shape)

    def permutation(self, n: int) -> Array:
        return self.draw("permutation", n)

    def minibatch(self, n: int, size: int) -> Array:
        return self.draw("minibatch", n, size)


def stream(backend: Backend, workload: Workload) -> Random:
    """The random stream that a workload asks for, at its start.

    With `stream=shared` every value is a copy from the host, else the backend's own generator
    draws it, that of `backend.random`.
    """
    shared, seed = workload.stream == "shared", workload.seed
    values = SharedRandom(backend, seed) if shared else backend.random(seed)
    return StreamRandom(backend, values, seed)


def random_start(size: int) -> tuple[int, int]:
    """Draw the offset at which an array of `size` bytes starts; return it and its upper bound.

    Both are in bytes, and multiples of a cache line.
    """
    reach = 64 * PAGE if size >= LONG else PAGE
    return LINE * int(_rng.integers(reach // LINE)), reach


def placed(backend: Backend, host: HostArray) -> Array:
    """A copy on the device, elsewhere in memory at every call if the backend can choose."""
    return backend.placed(host) if isinstance(backend, Placing) else backend.asarray(host)


def scatter(backend: Backend) -> list[Array]:
    """Make and drop arrays of many sizes, so that what is allocated next lies elsewhere.

    This moves what a step allocates itself. A random half of the arrays is dropped; the other half
    is returned, to be kept until the next placement (after the shuffled heap of Curtsinger and
    Berger, Stabilizer, ASPLOS 2013).
    """
    sizes = np.exp(_rng.uniform(0, np.log(20_000), 64)).astype(int)
    made = [backend.asarray(np.zeros(size)) for size in sizes]
    _rng.shuffle(made)
    return made[::2]


def first_data(workload: Workload) -> dict[str, HostArray]:
    """The problem's fixed arrays on the host. They are made once for a workload, and shared by all
    callers, who must not write to them.

    Raises:
        PluginError: a value is not an array of numbers; the message has its name.
    """
    problem = workload.problem
    key = (id(problem), workload.seed)
    if key not in workload.made:
        found = _arrays(problem, "data", problem.data(host_rng(workload.seed, "data")))
        workload.made[key] = problem, found  # keeps the problem alive, so that its id is not reused
    return dict(workload.made[key][1])


def first_params(workload: Workload) -> dict[str, HostArray]:
    """The first parameters on the host, the same at every call; none for an operation.

    Raises:
        PluginError: a value is not an array of numbers; the message has its name.
    """
    if workload.optimizer is None:
        return {}
    problem = cast(Problem, workload.problem)
    return _arrays(problem, "init", problem.init(host_rng(workload.seed, "init")))


def _arrays(problem: Problem | Operation, call: str, made: object) -> dict[str, HostArray]:
    """Convert what a problem makes to arrays: a number becomes one of shape ()."""
    who = f"problem {type(problem).__name__}: {call}()"
    if not isinstance(made, Mapping):
        raise PluginError(f"{who} gives {_kind(made)}, takes a dict of arrays by name")
    arrays = {}
    for name, value in made.items():
        try:
            arrays[name] = np.asarray(value)
        except Exception as error:
            takes = "takes an array of numbers on the host"
            raise PluginError(f"{who}: {name} is {_kind(value)} ({error}), {takes}") from error
        if arrays[name].dtype.kind not in "fiub":
            takes = "takes an array of real numbers"
            raise PluginError(f"{who}: {name} is {_kind(value)} of {arrays[name].dtype}, {takes}")
    return arrays


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def place(backend: Backend, host: Mapping[str, HostArray]) -> dict[str, Array]:
    """Copies of the host's arrays on the device, in the backend's dtype, elsewhere every time."""
    return {name: placed(backend, array) for name, array in host.items()}


def draws_of_a_step(
    backend: Backend, workload: Workload, data: Mapping[str, Array], random: Random
) -> list[Draw]:
    """Draw the random values of a step, and say which draws they were.

    All steps have the same form, so each makes the draws that the first one makes.
    """
    noted = _Noted(random)
    workload.problem.batch(backend.xp, data, noted)
    return noted.draws


def skip(
    backend: Backend, workload: Workload, data: Mapping[str, Array], random: Random, steps: int
) -> None:
    """Draw the random values of this many steps, and drop them."""
    if steps:
        draws = draws_of_a_step(backend, workload, data, random)
        for _ in range(steps - 1):
            for kind, given in draws:
                getattr(random, kind)(*given)


class _Noted(RandomOfDraws):
    """A random stream that notes what is drawn."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.draws: list[Draw] = []

    def draw(self, kind: str, *given: Any) -> Array:
        self.draws.append((kind, given))
        return getattr(self._random, kind)(*given)


def place_params(backend: Backend, workload: Workload) -> Params:
    """The first parameters on the backend's device; none for an operation."""
    first = first_params(workload)
    # One array at a time, so that each host copy is freed as soon as it is placed.
    return {name: placed(backend, first.pop(name)) for name in list(first)}


def first_state(backend: Backend, workload: Workload, params: Params) -> OptState:
    """The optimizer's state before the first step, as arrays of the backend; none for an operation.

    Raises:
        PluginError: a value is neither an array nor a number; the message has its name.
    """
    optimizer = workload.optimizer
    if optimizer is None:
        return {}
    state = optimizer.init(backend.xp, params)
    return {name: _state_array(backend, optimizer, name, state[name]) for name in state}


def _state_array(backend: Backend, optimizer: AnyOptimizer, name: str, value: object) -> Array:
    """Convert a number to an array: a recorded step would always replay its first value."""
    if isinstance(value, np.generic | bool | int | float):
        return backend.asarray(np.asarray(value))
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        who = f"optimizer {type(optimizer).__name__}: init()"
        raise PluginError(f"{who}: {name} is {_kind(value)}, takes an array of xp")
    return value


def named_arrays(data: Mapping[str, Array], params: Params, state: OptState) -> dict[str, Array]:
    """What a program's `arrays` returns: `data.x`, `params.w`, `state.m`, uncopied."""
    groups = {"data": data, "params": params, "state": state}
    return {f"{group}.{name}": x for group, named in groups.items() for name, x in named.items()}


def manual(xp: Any) -> LossAndGrad:
    """The problem's own gradient, computed with `xp`.

    Loss and gradient come from one call and share work, so they are traced as one part: timing the
    loss alone would only give a guess at its share.
    """

    def loss_and_grad(
        problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        both = cast(HasGradient, problem).loss_and_grad(xp, params, batch)
        mark("forward and backward")
        return both

    return loss_and_grad


def evaluation(loss_and_grad: LossAndGrad, problem: Problem, batch: Batch) -> Evaluate:
    """What an optimizer is given that evaluates the loss more than once, see `EvaluatesAgain`."""
    return lambda params: loss_and_grad(problem, params, batch)


def require_gradient(problem: Problem | Operation, backend: str) -> None:
    """Raise `Unavailable` where a backend without autodiff meets a problem without a gradient."""
    if isinstance(problem, Problem) and not isinstance(problem, HasGradient):
        name = type(problem).__name__
        raise Unavailable(
            f"problem {name} gives no gradient by hand and backend {backend} needs one",
            "choose a backend that differentiates, or write loss_and_grad",
        )


def _updates(optimizer: AnyOptimizer) -> tuple[Any, Any]:
    """Return its `update_again` and its `update`, one of which is None. They are looked up once,
    before the loop, because testing for a protocol takes as long as some steps.
    """
    return getattr(optimizer, "update_again", None), getattr(optimizer, "update", None)


class StepProgram:
    """A program of one Python iteration per step, which needs only what the contract demands.

    `mode_reason` says why it was taken in place of a faster program, see `FallenBack`.
    """

    mode = "step"

    def __init__(
        self,
        backend: Backend,
        workload: Workload,
        loss_and_grad: LossAndGrad,
        mode_reason: str = "",
    ) -> None:
        self._backend, self._workload, self._loss_and_grad = backend, workload, loss_and_grad
        self.mode_reason = mode_reason
        self._host_data = first_data(workload)
        self.reallocate()

    def reallocate(self) -> None:
        # Free the old arrays first: old and new ones together may not fit into memory.
        self._data: dict[str, Array] = {}
        self._params: Params = {}
        self._state: OptState = {}
        self._result: Array = None
        self._random: Random | None = None
        self._scattered = scatter(self._backend)
        self._data = place(self._backend, self._host_data)
        self.reset()

    def reset(self) -> None:
        self._params = place_params(self._backend, self._workload)
        self._state = first_state(self._backend, self._workload, self._params)
        self._random = self._stream()
        self._kept: list[Array] = []
        self._fetched: HostArray = np.empty(0)

    def _stream(self) -> Random:
        return stream(self._backend, self._workload)

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        self.reset()
        random = self._random
        assert random is not None
        skip(self._backend, self._workload, self._data, random, step)
        self._fetched = np.full(step, np.nan)
        for group, own in (("data", self._data), ("params", self._params), ("state", self._state)):
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

    def _learn(self, problem: Problem, optimizer: AnyOptimizer, n: int) -> None:
        xp, data, random = self._backend.xp, self._data, self._random
        assert random is not None
        params, state, loss_and_grad = self._params, self._state, self._loss_and_grad
        keep, (again, update) = self._kept.append, _updates(optimizer)
        for _ in range(n):
            batch = problem.batch(xp, data, random)
            loss, grads = loss_and_grad(problem, params, batch)
            keep(loss)
            if again:
                evaluate = evaluation(loss_and_grad, problem, batch)
                params, state = again(xp, params, loss, grads, state, evaluate)
                continue
            del batch  # frees long arrays as soon as possible
            params, state = update(xp, params, grads, state)
            del grads
        self._params, self._state = params, state

    def trace(self, n: int, mark: Mark) -> None:
        if isinstance(self._workload.problem, Operation):
            self._trace_apply(self._workload.problem, n, mark)
        else:
            assert self._workload.optimizer is not None
            self._trace_learn(self._workload.problem, self._workload.optimizer, n, mark)

    # These repeat the loops of `advance`, which even a mark that does nothing would slow down.

    def _trace_apply(self, problem: Operation, n: int, mark: Mark) -> None:
        xp, data, random = self._backend.xp, self._data, self._random
        assert random is not None
        for _ in range(n):
            batch = problem.batch(xp, data, random)
            mark("draw")
            self._result = problem.apply(xp, batch)
            del batch
            mark("forward")

    def _trace_learn(self, problem: Problem, optimizer: AnyOptimizer, n: int, mark: Mark) -> None:
        xp, data, random = self._backend.xp, self._data, self._random
        assert random is not None
        params, state, loss_and_grad = self._params, self._state, self._loss_and_grad
        again, update = _updates(optimizer)
        for _ in range(n):
            batch = problem.batch(xp, data, random)
            mark("draw")
            loss, grads = loss_and_grad(problem, params, batch, mark)
            self._kept.append(loss)
            if again:
                evaluate = evaluation(loss_and_grad, problem, batch)
                params, state = again(xp, params, loss, grads, state, evaluate)
            else:
                del batch
                params, state = update(xp, params, grads, state)
            del grads
            mark("update")
        self._params, self._state = params, state

    def pending(self) -> list[Array]:
        """What a lazy library has to compute in `synchronize(program)`: parameters, state, and the
        losses that have not been fetched, or an operation's last result.
        """
        result = [] if self._result is None else [self._result]
        return [*self._params.values(), *self._state.values(), *self._kept, *result]

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
        return named_arrays(self._data, self._params, self._state)
