"""The contracts: what a problem, an optimizer and a backend are. Read this first.

A **problem** and an **optimizer** are written once over an array namespace `xp` (the array API
standard's functions: NumPy, PyTorch and others have them). A **backend** turns the pair into a
**program** that advances n steps. Only the framework reads the clock: it synchronizes, reads the
clock, calls `advance`, synchronizes, and reads the clock again.

Two habits keep the first two portable: operators before functions (`w @ x`, not
`xp.matmul(w, x)`), and `xp` taken as an argument, never imported.

A step (`batch`, `loss_and_grad` or `apply`, and `update`) depends on its arguments alone, and every
step has the same form, so that a backend may record one and replay it. What changes from step to
step comes from `random` or is an array in the optimizer's state. `init` makes all of the latter.

Problems, optimizers and backends are frozen dataclasses: their fields are their configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Array: TypeAlias = Any
"""An array of whichever library the backend uses."""
HostArray: TypeAlias = npt.NDArray[np.float64]
Params: TypeAlias = dict[str, Array]
OptState: TypeAlias = dict[str, Array]
"""An optimizer's state: arrays only. A Python number would be frozen into a captured graph."""
Batch: TypeAlias = Mapping[str, Array]
Curves: TypeAlias = Mapping[str, tuple[HostArray, HostArray]]
Mark: TypeAlias = Callable[[str], None]
"""Called by a traced step when a part of it has ended: `draw`, `forward`, `backward`, `update`.

The time since the previous mark belongs to that part. Every step makes the same marks; a part may
come up several times in it. A call that computes both loss and gradient is `forward and backward`;
one that computes the whole step is `step`, or `draw` and `step` if the draw is separate. A mark may
raise an exception to end a trace that takes too long: `reallocate` is called next.
"""


class Normal(Protocol):
    """A generator of normal values, which is all that a backend needs."""

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Standard normal values of this shape, in the backend's dtype, on its device."""
        ...


@runtime_checkable
class Uniform(Protocol):
    """A generator that also draws uniform values."""

    def uniform(self, shape: tuple[int, ...]) -> Array:
        """Values from 0 to below 1, as `Normal.normal`. A narrow dtype may round one to 1."""
        ...


class Random(Normal, Uniform, Protocol):
    """Random arrays, drawn inside a step.

    Integers are drawn by the host with every stream, so that all backends see the same ones. They
    are indices, in the device's memory: with a minibatch of them, `x[i]` gathers rows there.
    """

    def integers(self, high: int, shape: tuple[int, ...]) -> Array:
        """Integers from 0 to `high` - 1, each independent of the others."""
        ...

    def permutation(self, n: int) -> Array:
        """The integers from 0 to n - 1 in random order, of shape (n,)."""
        ...

    def minibatch(self, n: int, size: int) -> Array:
        """The next `size` of the integers from 0 to n - 1, of shape (size,).

        They are taken in random order and without replacement. When fewer than `size` are left, the
        epoch ends, and the next one has an order of its own.
        """
        ...


@dataclass(frozen=True)
class Target:
    """What a run has to reach, and to hold to its end.

    Attributes:
        of: `loss`, `gap` (the loss above the problem's optimum), or a figure of its evaluation.
        value: it is reached by loss and gap at this value or below, by a figure on its better side.
        stop: whether the run ends as soon as it is reached.
        patience: the run ends once it has come no nearer to it for so many steps; 0 for never.
    """

    of: str
    value: float
    stop: bool = False
    patience: int = 0


@dataclass(frozen=True)
class Recommended:
    """What a problem recommends where the configuration says nothing.

    Attributes:
        steps: steps of one repeat.
        log_every: steps of a chunk, the stretch between two readings of the clock.
        stream: `shared` (the host draws, every backend sees the same bits) or `device`.
        eval_every: steps after which a problem is evaluated again; 0 for never.
        target: what optimizers are to reach; None for nothing.
        lr: learning rate by optimizer option. For any other optimizer the user has to give a rate.
    """

    steps: int
    log_every: int = 100
    stream: str = "shared"
    eval_every: int = 0
    target: Target | None = None
    lr: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@runtime_checkable
class Problem(Protocol):
    """Something to learn: parameters, data and a loss."""

    def recommended(self) -> Recommended:
        """What to do where the configuration says nothing, for this problem's sizes."""
        ...

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        """First parameters, on the host. Called again for every return to the start."""
        ...

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        """Fixed arrays, placed on the device once."""
        ...

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        """The data that one step uses."""
        ...

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        """The loss, of shape ()."""
        ...


@runtime_checkable
class HasGradient(Problem, Protocol):
    """A problem with its gradient by hand, for backends that cannot differentiate."""

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        """The loss and its gradient by parameter, in arrays of their own."""
        ...


@runtime_checkable
class HasEvaluation(Protocol):
    """A problem that measures more than the loss of a step, such as accuracy on held-out data."""

    @property
    def figures(self) -> Mapping[str, str]:
        """The names of what `evaluate` returns, each with what is better: `more` or `less`."""
        ...

    def evaluate(self, xp: Any, params: Params, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """Figures of these parameters, by name, each of shape (). Never on the clock.

        Args:
            data: what `Problem.data` makes, in which what is held out has names of its own.
        """
        ...


@dataclass(frozen=True)
class Optimum:
    """The lowest loss of a problem.

    Attributes:
        value: a number that no loss is below, except by rounding.
        certificate: how that is known. The lowest loss that anybody has reached is none.
    """

    value: float
    certificate: str


@runtime_checkable
class HasOptimum(Protocol):
    """A problem whose lowest loss is known."""

    def optimum(self, data: Mapping[str, HostArray]) -> Optimum | None:
        """The lowest loss with these data, in float64; None where it is not known."""
        ...


@runtime_checkable
class Operation(Protocol):
    """Something to compute with nothing to learn, such as a matrix product."""

    def recommended(self) -> Recommended:
        """As `Problem.recommended`."""
        ...

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        """As `Problem.data`."""
        ...

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        """As `Problem.batch`."""
        ...

    def apply(self, xp: Any, batch: Batch) -> Array:
        """The result of one step."""
        ...


@runtime_checkable
class HasNeeds(Protocol):
    """A problem that needs something which may not be installed, such as a data set."""

    def check_available(self) -> None:
        """Raise `expkit.errors.Unavailable(reason, remedy)` where it is missing."""
        ...


@runtime_checkable
class HasCurves(Protocol):
    """A problem that can show its result as a picture, whose axes it may name in `axes`."""

    def curves(self, params: Mapping[str, HostArray]) -> Curves:
        """Lines to draw together: name to (x, y), each of shape (points,)."""
        ...


@dataclass(frozen=True)
class Cost:
    """The least that a step must do, from the problem's sizes: drawing, loss and gradient.

    Attributes:
        flops: floating-point operations. Drawing counts as none.
        elements: array elements that must move from or to memory, however well the step is fused.
            Those of the optimizer are left out: they follow from the parameters and its state.
    """

    flops: float
    elements: float


@runtime_checkable
class HasCost(Protocol):
    """A problem that declares the work of a step, so that times can be compared with a limit."""

    def cost(self) -> Cost:
        """The cost of one step, for this problem's sizes."""
        ...


@runtime_checkable
class HasProximal(Protocol):
    """A problem whose loss is a smooth part plus a penalty, such as a sum of sizes."""

    def penalty_grad(self, xp: Any, params: Params) -> Params:
        """The penalty's share of the gradient: 0 where it has a kink, as autodiff has it.
        Parameters without a penalty may be left out, here and from `prox`.
        """
        ...

    def prox(self, xp: Any, params: Params, step: Array) -> Params:
        """The proximal map: the p that minimises penalty(p) + |p - params|^2 / (2 step)."""
        ...


class Optimizer(Protocol):
    """A rule that turns a gradient into new parameters."""

    def init(self, xp: Any, params: Params) -> OptState:
        """The state before the first step: every array that `update` will keep."""
        ...

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        """One step. May write into the memory of `params` and `state`, never of `grads`."""
        ...


Evaluate = Callable[[Params], tuple[Array, Params]]
"""Computes the loss of other parameters, and its gradient, on the batch of the step."""


@runtime_checkable
class EvaluatesAgain(Protocol):
    """An optimizer that evaluates the loss more than once in a step, such as a line search. It has
    `update_again` in place of `update`.

    It counts its evaluations in an array of shape () of its state, named `evaluations`. One that
    looks at a value to decide what comes next is computed step by step on every backend.
    """

    def init(self, xp: Any, params: Params) -> OptState:
        """As `Optimizer.init`."""
        ...

    def update_again(
        self,
        xp: Any,
        params: Params,
        loss: Array,
        grads: Params,
        state: OptState,
        evaluate: Evaluate,
    ) -> tuple[Params, OptState]:
        """One step, as `Optimizer.update`. Leaves `params` as they are while it evaluates."""
        ...


AnyOptimizer = Optimizer | EvaluatesAgain


@runtime_checkable
class Bound(Protocol):
    """An optimizer that uses more of a problem than its gradient, such as its proximal map."""

    def bound(self, problem: Problem) -> Optimizer:
        """The optimizer for this problem.

        Raises:
            UserError: the problem lacks what it uses.
        """
        ...


@runtime_checkable
class Small(Protocol):
    """A problem that says at which sizes, and in which forms, the contract tests try it."""

    def small(self) -> Mapping[str, Problem | Operation]:
        """This problem in each form that has a different step, such as whole data and minibatches,
        by title, with the plain form under "". Each is so small that a step takes almost no time.

        For a problem without this method, the tests make its fields `n` and `batch_size` small.
        """
        ...


@dataclass(frozen=True)
class Workload:
    """What a program is built from.

    Attributes:
        optimizer: None for an operation.
        steps: the most steps a program is asked for between two resets.
        stream: `shared` or `device`, see `Recommended`.
        made: the cache of `expkit.authors.first_data`; `dataclasses.replace` passes it on.
    """

    problem: Problem | Operation
    optimizer: AnyOptimizer | None
    steps: int
    seed: int
    stream: str
    made: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False, compare=False)


class Program(Protocol):
    """A workload on a backend. Owns its state.

    Everything that depends on a step, its random draws included, has to be computed in `advance`
    and `synchronize`: only these two are timed.
    """

    mode: str
    """How steps are computed, recorded with the run: `step` for step by step."""

    def reset(self) -> None:
        """Go back to the start. Never on the clock."""
        ...

    def reallocate(self) -> None:
        """Reset in fresh memory, without compiling again. The addresses of arrays change times by
        several percent, so the arrays lie elsewhere in every round (Mytkowicz et al. 2009).
        """
        ...

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        """Continue from another state, as if `step` steps were done. Never on the clock.

        Args:
            arrays: by the names that `Program.arrays` uses; those that are not named are as after a
                reset. Data that are given here stay until `reallocate`.
            step: the step at which the random stream continues. Losses of earlier steps may have
                any value.
        """
        ...

    def advance(self, n: int) -> None:
        """Run n steps. It may only enqueue them; losses stay where they are computed. At the first
        call with each n after `build` it may compile, not again after `reset` or `reallocate`.
        """
        ...

    def losses(self, start: int = 0) -> HostArray:
        """The loss of every step since the reset, from step `start` on, of shape (steps,).
        Empty for an operation. Never on the clock.
        """
        ...

    def params(self) -> dict[str, HostArray]:
        """The parameters now; for an operation `{"result": its last result}`."""
        ...

    def arrays(self) -> dict[str, Array]:
        """The arrays kept from step to step, as `data.x`, `params.w`, `state.m`; not copies."""
        ...

    def trace(self, n: int, mark: Mark) -> None:
        """Run n steps like `advance`, calling `mark` as each part of a step ends.

        It may take longer, and its results must equal those of `advance` within the dtype's
        rounding: a compiler that fuses a step need not compute its parts to the same bits. If the
        parts take over a fifth more or less than the timed step, they are not shown.
        """
        ...


@runtime_checkable
class FallenBack(Protocol):
    """A program that may stand in for a faster one of its backend."""

    mode_reason: str
    """Why the faster one was not taken, recorded and shown with the run: `the step cannot be
    captured: ...`. Empty where there is no faster one, or where `fast` is false.
    """


@runtime_checkable
class Placing(Protocol):
    """A backend that can choose where in memory an array lies. For any other, only what else is
    allocated around the arrays moves them.
    """

    def placed(self, host: npt.NDArray[Any]) -> Array:
        """Do as `asarray`, but elsewhere in memory at every call."""
        ...


@runtime_checkable
class Indexing(Protocol):
    """A backend whose `xp.asarray` does not put integers where its other arrays are."""

    def indices(self, host: npt.NDArray[np.int64]) -> Array:
        """A copy on the backend's device, of integers."""
        ...


class Backend(Protocol):
    """A way of computing.

    A backend that cannot run every workload, such as one without automatic differentiation, also
    has a method `check_workload(workload)`, which raises `Unavailable` for those it cannot run, as
    `expkit.authors.require_gradient` does. The method imports no library and uses no device.
    """

    @property
    def xp(self) -> Any:
        """The array namespace. The library is imported here or in `configure`, so that its import
        does not count as set-up of the program.
        """
        ...

    def check_available(self) -> None:
        """Raise `expkit.errors.Unavailable(reason, remedy)` where this machine cannot run it.
        No other exception of a library may escape. Ranges of fields are checked in `__post_init__`,
        by the function `expkit.errors.check`.
        """
        ...

    def configure(self) -> None:
        """Apply the settings that belong to the process, such as the number of threads."""
        ...

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        """A copy in the backend's dtype, on its device."""
        ...

    def to_numpy(self, array: Array) -> HostArray:
        """A copy on the host, in float64."""
        ...

    def random(self, seed: int) -> Normal:
        """The backend's own generator, for `stream=device`, at its start. It has to give the very
        values that a program draws, because answers are checked with them. Problems that draw
        uniform values need one that is `Uniform` too.
        """
        ...

    def synchronize(self, program: Program | None = None) -> None:
        """Return when all queued work is done.

        Args:
            program: a program that `build` returned. Its parameters, state and losses are computed
                on return: a lazy library evaluates them here. None for work of no program.
        """
        ...

    def build(self, workload: Workload) -> Program:
        """The fastest program that fits; where `fast` is false the step-by-step one, whose `mode`
        is `step`.
        """
        ...

    def describe(self) -> dict[str, str | int | float]:
        """What really runs, read back from the library: `device`, `dtype`, `threads` (which is 1
        with `backend.threads=1`), and the library's version; also `tf32` and `matmul_precision`
        where a library has them.
        """
        ...
