"""After the clock: is what was timed also right?

The losses and parameters of the timed repeats are held against the same steps computed in float64
by NumPy, from the same start and the same random values, with the gradient by hand.

How far apart they may lie depends on the dtype and on how much this very trajectory magnifies
rounding: a step of rmsprop near its minimum turns a difference in the last bit into percents. So
the reference is run a second time with every array disturbed at random by the dtype's own rounding
error (Monte Carlo arithmetic: Parker, Pierce and Eggert 2000), and what that changes is the scale.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from expkit.authors import (
    StepProgram,
    first_data,
    first_params,
    host_rng,
    manual,
    place,
    skip,
    stream,
    unmarked,
)
from expkit.contracts import (
    Array,
    Backend,
    Batch,
    HasGradient,
    HostArray,
    Mark,
    Operation,
    Optimizer,
    OptState,
    Params,
    Problem,
    Program,
    Random,
    Workload,
)

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TINY = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
"""The smallest number above 0, and the distance of all that are near it."""
MARGIN = 100.0
"""How many times the disturbed reference's deviation is still rounding. Over every problem,
optimizer and step of the recommended trajectories float64 and float32 stay below 30."""
ELEMENT_STEPS = 4e7
"""Array elements times steps that the reference may compute: about a second."""
STEPS_MIN, STEPS_MAX = 12, 5000
"""Of long arrays it computes more than those, up to STEPS_MIN, as far as its time goes."""
LONG = 10_000
"""Elements from which on the order in which a sum is taken matters more than its terms."""
LIMIT_S = 1.0
"""That time, where the run does not take much longer itself."""
LOOSE = 0.1
"""The share of a loss from which an allowance says nothing."""
SHIFT = 0.1
"""The most that is added to every parameter for another start."""
FEW_STEPS = 10
"""Of a check that goes on from a state."""
SAMPLES = 3
"""Disturbed losses that tell what rounding does: a single one is right by chance, now and then."""
MEMORY_SHARE = 0.5

_by_hand = manual(np)


@dataclass(frozen=True)
class Answer:
    """What the reference says, ready to be held against repeats.

    Attributes:
        steps: how many steps it covers, from the start.
        losses, allowed: of each of them, and how far a right one may lie from it.
        params, params_allowed: after the last of them.
    """

    steps: int
    losses: HostArray
    allowed: HostArray
    params: Mapping[str, HostArray]
    params_allowed: Mapping[str, float]

    @property
    def tight(self) -> int:
        """How many steps it tells right from wrong, be it by a tenth of the loss."""
        if not self.losses.size:
            return self.steps if self._tells_params() else 0
        size = np.maximum(np.abs(self.losses), abs(self.losses[0]))
        return int(np.count_nonzero(self.allowed <= LOOSE * size))

    def _tells_params(self) -> bool:
        return all(
            self.params_allowed[name] <= LOOSE * np.max(np.abs(right), initial=0)
            for name, right in self.params.items()
        )

    def wrong_losses(self, losses: HostArray, first: int = 0) -> str | None:
        """What is wrong with the losses from step `first` on, where this answer begins, or None."""
        if losses.size < self.steps:
            return f"{losses.size} losses came back for {self.steps} steps"
        off = np.abs(losses[: self.steps] - self.losses)
        bad = np.flatnonzero(~(off <= self.allowed))
        if not bad.size:
            return None
        step = int(bad[0])
        look = "gradient, update or kept state" if step else "start, draws, loss or dtype"
        return (
            f"the loss of step {first + step} is {losses[step]:.9g}, the float64 reference has "
            f"{self.losses[step]:.9g}; rounding explains {self.allowed[step]:.1g} "
            f"(check the {look})"
        )

    def wrong_params(self, params: Mapping[str, HostArray], first: int = 0) -> str | None:
        """What is wrong with the parameters `steps` steps after step `first`, or None."""
        what = "result" if "result" in self.params else "parameters"
        if params.keys() != self.params.keys():
            return f"the {what} are {sorted(params)}, the reference has {sorted(self.params)}"
        for name, right in self.params.items():
            if params[name].shape != right.shape:
                return f"{name} has shape {params[name].shape}, the reference has {right.shape}"
            off = float(np.max(np.abs(params[name] - right), initial=0))
            if not off <= self.params_allowed[name]:
                return (
                    f"after {first + self.steps} steps {name} is off by {off:.3g} from the float64 "
                    f"reference; rounding explains {self.params_allowed[name]:.1g}"
                )
        return None


def covered(answer: Answer, steps: int, dtype: str, places: Sequence[int] = ()) -> str:
    """How far an answer goes that every repeat has to match, for the person who reads it.

    Args:
        steps: of a repeat.
        dtype: of what is checked.
        places: steps from which on some more were checked.
    """
    if not answer.tight:
        return f"not checked: rounding in {dtype} explains any answer"
    if answer.steps >= steps:
        text = (
            "matches float64 NumPy on the only step"
            if steps == 1
            else (f"matches float64 NumPy on all {steps} steps")
        )
    else:
        text = (
            f"matches float64 NumPy on the first {answer.steps} of {steps} steps (the check is "
            "kept short: the rest is not checked)"
        )
        if places:
            at = " and ".join(str(place) for place in places)
            steps_at = "step" if len(places) == 1 else "steps"
            text = (
                f"matches float64 NumPy on the first {answer.steps} of {steps} steps, and on a "
                f"few from {steps_at} {at} on, drawn at random"
            )
    if answer.tight < answer.steps:
        unclear = answer.steps - answer.tight
        text += f"; on {unclear} of them rounding in {dtype} would explain any loss"
    return text


def reference(
    backend: Backend,
    workload: Workload,
    dtype: str,
    elements: int,
    limit_s: float = LIMIT_S,
) -> Answer | str:
    """The right answer to a workload on a backend, or why it cannot be had.

    Args:
        dtype: what the backend says that it computes in.
        elements: of the program's arrays together.
        limit_s: how long it may take where the arrays are long; one step at least.
    """
    problem = workload.problem
    if isinstance(problem, Problem) and not isinstance(problem, HasGradient):
        return "the problem gives no gradient by hand"
    if dtype not in EPSILON:
        return f"the rounding of {dtype} is not known"
    sure = int(min(max(ELEMENT_STEPS // max(elements, 1), 1), STEPS_MAX, workload.steps))
    needed, there = 8 * 3 * (1 + _samples(sure)) * elements, available_bytes()
    if there is not None and needed > MEMORY_SHARE * there:
        return f"the reference needs {needed / 2**30:.1f} GiB, {there / 2**30:.1f} are free"
    steps = sure if isinstance(problem, Operation) else max(sure, min(STEPS_MIN, workload.steps))
    return _answer(backend, workload, dtype, (sure, steps), limit_s)


def reference_from(
    backend: Backend,
    workload: Workload,
    dtype: str,
    state: Mapping[str, HostArray],
    step: int,
    steps: int,
) -> Answer:
    """The right answer to so many steps that go on from a state.

    Args:
        state: as `Program.load` takes it, in numbers that the dtype holds.
        step: how many steps went before it.
    """
    return _answer(backend, workload, dtype, (steps, steps), math.inf, state, step)


def another_start(
    backend: Backend, workload: Workload, rng: np.random.Generator
) -> dict[str, HostArray]:
    """A start that a program has not seen, for its `load`: every parameter (an operation: its data)
    moved a little. Empty for an operation that draws all it needs.
    """
    if isinstance(workload.problem, Operation):
        group, arrays = "data", first_data(workload)
    else:
        group, arrays = "params", first_params(workload)
    moved = {f"{group}.{k}": v + rng.uniform(SHIFT / 2, SHIFT) for k, v in arrays.items()}
    return {name: backend.to_numpy(backend.asarray(np.asarray(x))) for name, x in moved.items()}


def drawing_seconds(backend: Backend, workload: Workload) -> float:
    """What drawing a step's random values takes."""
    source, data = stream(backend, workload), place(backend, first_data(workload))

    def seconds(steps: int) -> float:
        backend.synchronize()
        start = perf_counter()
        skip(backend, workload, data, source, steps)
        backend.synchronize()
        return perf_counter() - start

    seconds(1)  # a library sets itself up in its first call
    return min(seconds(3), seconds(3)) / 3  # one may be interrupted


def _answer(
    backend: Backend,
    workload: Workload,
    dtype: str,
    range_of_steps: tuple[int, int],
    limit_s: float,
    state: Mapping[str, HostArray] | None = None,
    step: int = 0,
) -> Answer:
    """Of the least of these steps, and of more, up to the most, for about `limit_s`.

    Args:
        state: to go on from, `step` steps after the start; None for the start.
    """
    epsilon, tiny = EPSILON[dtype], TINY[dtype]
    least, most = range_of_steps
    draws = _Draws(backend, workload, step)
    # All take their values from `draws`, whichever stream that is of.
    workload = replace(workload, stream="device")
    with np.errstate(all="ignore"):
        right = StepProgram(_Host(draws), workload, _by_hand)
        # A term off by rounding moves a sum by the root of its length; what the partial sums lose
        # grows with the length itself, over the lanes that a library adds in side by side.
        longest = max((max(x.shape, default=1) for x in right.arrays().values()), default=1)
        relative = epsilon * max(1.0, (longest / LONG) ** 0.5)
        hosts = [_Disturbed(draws, relative, number) for number in range(_samples(least))]
        moved = [host.program(workload) for host in hosts]
        if state is not None:
            for program in (right, *moved):
                program.load(state)
        steps, started = 0, perf_counter()
        while steps < least or (steps < most and perf_counter() - started < limit_s):
            for program in (right, *moved):
                program.advance(1)
            steps += 1
        losses, params = right.losses(), right.params()
        off = np.max([np.abs(program.losses() - losses) for program in moved], axis=0)
        params_off = _params_off(right, moved)
        size = {k: float(np.max(np.abs(v), initial=0)) for k, v in params.items()}
    return Answer(
        steps,
        losses,
        MARGIN * (_nearby_max(off) + epsilon * np.abs(losses) + tiny),
        params,
        {k: MARGIN * (params_off[k] + epsilon * size[k] + tiny) for k in params},
    )


def _samples(steps: int) -> int:
    """How many disturbed programs it takes, where each gives a loss a step."""
    return math.ceil(SAMPLES / steps)


def _params_off(right: Program, moved: Sequence[Program]) -> dict[str, float]:
    """How far the disturbed parameters are from the right ones, at most."""
    params, disturbed = right.params(), [program.params() for program in moved]
    return {
        name: max(float(np.max(np.abs(other[name] - x), initial=0)) for other in disturbed)
        for name, x in params.items()
    }


def _nearby_max(off: HostArray) -> HostArray:
    """The largest of the later half of what went before: one step may be right by chance. Not far
    ahead, or a loss that grows would excuse the steps before.
    """
    return np.array([off[t // 2 : t + 3].max() for t in range(len(off))])


class _Draws:
    """The values that the timed backend's own generator gives, on the host, for programs that take
    steps in turn: what the first draws the others are given again.
    """

    def __init__(self, backend: Backend, workload: Workload, step: int) -> None:
        self._backend, self._workload, self._step = backend, workload, step
        self._kept: list[deque[HostArray]] = []

    def source(self) -> Random:
        """The stream, where step `step` finds it."""
        backend, workload = self._backend, self._workload
        source = stream(backend, workload)
        skip(backend, workload, place(backend, first_data(workload)), source, self._step)
        return source

    def drawn(self, source: Random, shape: tuple[int, ...]) -> HostArray:
        values = self._backend.to_numpy(source.normal(shape))
        for kept in self._kept:
            kept.append(values)
        return values.copy()  # a problem may write into what it has drawn

    def again(self) -> deque[HostArray]:
        """What is drawn from now on, for one of the others."""
        self._kept.append(deque())
        return self._kept[-1]


class _First:
    """Random values from the stream."""

    def __init__(self, draws: _Draws) -> None:
        self._draws = draws
        self._source: Random | None = None

    def normal(self, shape: tuple[int, ...]) -> HostArray:
        if self._source is None:  # not before it is needed: every reset makes one of these
            self._source = self._draws.source()
        return self._draws.drawn(self._source, shape)


class _Host:
    """Float64 on NumPy: what `StepProgram` needs of a backend."""

    def __init__(self, draws: _Draws) -> None:
        self._draws = draws

    @property
    def xp(self) -> ModuleType:
        return np

    def check_available(self) -> None: ...

    def configure(self) -> None: ...

    def synchronize(self, program: Program | None = None) -> None: ...

    def build(self, workload: Workload) -> StepProgram:
        return StepProgram(self, workload, _by_hand)

    def describe(self) -> dict[str, str | int | float]:
        return {}

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        return np.array(host, dtype=np.float64)

    def to_numpy(self, array: Array) -> HostArray:
        return np.array(array, dtype=np.float64)

    def random(self, seed: int) -> Random:
        return _First(self._draws)


class _Disturbed(_Host):
    """The same, with every array off by up to a rounding error, at random."""

    def __init__(self, draws: _Draws, epsilon: float, seed: int) -> None:
        super().__init__(draws)
        self._again, self._rng = draws.again(), host_rng(seed, "stream")
        self._factors = 1 + epsilon * self._rng.uniform(-1, 1, 1 << 16)

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        return self.disturb(super().asarray(host))

    def random(self, seed: int) -> Random:
        return _Again(self, self._again)

    def disturb(self, array: Array) -> Array:
        # A stretch of ready factors from a random place on: fresh ones take longer than the step.
        start = self._rng.integers(1 << 15)
        factors = self._factors[start : start + np.size(array)]
        if factors.size < np.size(array):
            factors = np.resize(self._factors[start:], np.size(array))
        return array * factors.reshape(np.shape(array))

    def loss_and_grad(
        self, problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        # In place: what an update stores is rounded too, and those errors add up over the steps.
        params |= {name: self.disturb(array) for name, array in params.items()}
        loss, grads = _by_hand(problem, params, batch, mark)
        return self.disturb(loss), {name: self.disturb(grad) for name, grad in grads.items()}

    def program(self, workload: Workload) -> StepProgram:
        """Its optimizer's state is off as well: 1 - beta**t in adam makes much of little."""
        optimizer = workload.optimizer and _Rounded(workload.optimizer, self)
        return StepProgram(self, replace(workload, optimizer=optimizer), self.loss_and_grad)


@dataclass(frozen=True)
class _Again:
    """The values that the other program has drawn, disturbed."""

    host: _Disturbed
    drawn: deque[HostArray]

    def normal(self, shape: tuple[int, ...]) -> Array:
        return self.host.disturb(self.drawn.popleft())


class _Rounded:
    """An optimizer whose state is kept no better than the dtype can."""

    def __init__(self, optimizer: Optimizer, host: _Disturbed) -> None:
        self._optimizer, self._host = optimizer, host

    def init(self, xp: Any, params: Params) -> OptState:
        return self._optimizer.init(xp, params)

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        params, state = self._optimizer.update(xp, params, grads, state)
        return params, {name: self._host.disturb(array) for name, array in state.items()}


def available_bytes() -> int | None:
    """Memory that can be had without swapping, after /proc/meminfo."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
