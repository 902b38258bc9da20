"""After the clock: is what was timed also right?

The losses and parameters of the timed repeats are held against the same steps computed in float64
by NumPy, from the same start and the same random values, with the gradient by hand.

How far apart they may lie depends on the dtype and on how much this very trajectory magnifies
rounding: a step of rmsprop near its minimum turns a difference in the last bit into percents. So
the reference is run a second time with every array disturbed at random by the dtype's own rounding
error (Monte Carlo arithmetic: Parker, Pierce and Eggert 2000), and what that changes is the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from expkit.authors import StepProgram, host_rng, manual, unmarked
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
    Program,
    Random,
    Slots,
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
SHIFT = 0.0625
"""Added to every parameter for another start: a number that every dtype holds."""
SHIFTED_STEPS = 3
FIRST_RUN = 0.4
"""The share of the time for the run that is not disturbed: disturbing takes as long again."""
MEMORY_SHARE = 0.5


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

    def wrong_losses(self, losses: HostArray) -> str | None:
        """What is wrong with the losses from step 0 on, or None."""
        if losses.size < self.steps:
            return f"{losses.size} losses came back for {self.steps} steps"
        off = np.abs(losses[: self.steps] - self.losses)
        bad = np.flatnonzero(~(off <= self.allowed))
        if not bad.size:
            return None
        step = int(bad[0])
        return (
            f"the loss of step {step} is {losses[step]:.9g}, the float64 reference has "
            f"{self.losses[step]:.9g}; rounding explains {self.allowed[step]:.1g}"
        )

    def wrong_params(self, params: Mapping[str, HostArray]) -> str | None:
        """What is wrong with the parameters after `steps` steps, or None."""
        what = "result" if "result" in self.params else "parameters"
        if params.keys() != self.params.keys():
            return f"the {what} are {sorted(params)}, the reference has {sorted(self.params)}"
        for name, right in self.params.items():
            if params[name].shape != right.shape:
                return f"{name} has shape {params[name].shape}, the reference has {right.shape}"
            off = float(np.max(np.abs(params[name] - right), initial=0))
            if not off <= self.params_allowed[name]:
                return (
                    f"after {self.steps} steps {name} is off by {off:.3g} from the float64 "
                    f"reference; rounding explains {self.params_allowed[name]:.1g}"
                )
        return None


def covered(answer: Answer, steps: int, dtype: str) -> str:
    """How far an answer goes that every repeat has to match, for the person who reads it.

    Args:
        steps: of a repeat.
        dtype: of what is checked.
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
    if isinstance(problem, Problem) and not isinstance(problem, Differentiated):
        return "the problem gives no gradient by hand"
    if dtype not in EPSILON:
        return f"the rounding of {dtype} is not known"
    needed, there = 8 * 6 * elements, _available_bytes()
    if there is not None and needed > MEMORY_SHARE * there:
        return f"the reference needs {needed / 2**30:.1f} GiB, {there / 2**30:.1f} are free"
    sure = int(min(max(ELEMENT_STEPS // max(elements, 1), 1), STEPS_MAX, workload.steps))
    steps = sure if isinstance(problem, Operation) else max(sure, min(STEPS_MIN, workload.steps))
    return _answer(backend, workload, dtype, (sure, steps), limit_s, shifted=False)


def shifted_reference(
    backend: Backend, workload: Workload, dtype: str, limit_s: float = LIMIT_S
) -> Answer:
    """The right answer after `shift`, for a few steps: one at least, as many as the time allows."""
    steps = min(SHIFTED_STEPS, workload.steps)
    return _answer(backend, workload, dtype, (1, steps), limit_s, shifted=True)


def shift(backend: Backend, program: Program) -> dict[str, HostArray]:
    """Move a program's parameters (an operation's data) in place, to a start it has not seen.

    One that computes goes on from there; one that gives back what it gave before does not.

    Returns:
        The arrays as they were, for `restore`; empty if nothing could be moved: arrays that cannot
        be written, or an operation on drawn values.
    """
    arrays = program.arrays()
    group = "params." if any(name.startswith("params.") for name in arrays) else "data."
    moved = {name: array for name, array in arrays.items() if name.startswith(group)}
    before = {name: backend.to_numpy(array) for name, array in moved.items()}
    for array in moved.values():
        array += SHIFT  # in place, or without effect
    now = program.arrays()
    all_moved = all(np.any(backend.to_numpy(now[name]) != was) for name, was in before.items())
    return before if all_moved else {}


def restore(backend: Backend, program: Program, before: Mapping[str, HostArray]) -> None:
    """Put back what `shift` moved, to the last bit: a reset leaves data as they are."""
    arrays = program.arrays()
    for name, was in before.items():
        array = arrays[name]
        array *= 0
        array += backend.asarray(was)


def _answer(
    backend: Backend,
    workload: Workload,
    dtype: str,
    range_of_steps: tuple[int, int],
    limit_s: float,
    *,
    shifted: bool,
) -> Answer:
    """Of the least of these steps, and of more, up to the most, for about `limit_s`."""
    epsilon, tiny = EPSILON[dtype], TINY[dtype]
    steps, most = range_of_steps
    with np.errstate(all="ignore"):
        started = perf_counter()
        right = _run(_Host(backend), workload, steps, shifted=shifted)
        while steps < most and perf_counter() - started < FIRST_RUN * limit_s:
            right.advance(1)
            steps += 1
        # A term off by rounding moves a sum by the root of its length; what the partial sums lose
        # grows with the length itself, over the lanes that a library adds in side by side.
        longest = max((max(x.shape, default=1) for x in right.arrays().values()), default=1)
        disturbed = _Disturbed(backend, epsilon * max(1.0, (longest / LONG) ** 0.5))
        rounded = replace(workload, optimizer=disturbed.optimizer(workload.optimizer))
        moved = _run(disturbed, rounded, steps, shifted=shifted)
        losses, params = right.losses(), right.params()
        off = _nearby_max(np.abs(moved.losses() - losses))
        params_off = {
            k: float(np.max(np.abs(v - params[k]), initial=0)) for k, v in moved.params().items()
        }
        size = {k: float(np.max(np.abs(v), initial=0)) for k, v in params.items()}
    return Answer(
        steps,
        losses,
        MARGIN * (off + epsilon * np.abs(losses) + tiny),
        params,
        {k: MARGIN * (params_off[k] + epsilon * size[k] + tiny) for k in params},
    )


def _run(host: _Host, workload: Workload, steps: int, *, shifted: bool) -> StepProgram:
    program = StepProgram(host, workload, host.loss_and_grad)
    if shifted:
        shift(host, program)
    program.advance(steps)
    return program


def _nearby_max(off: HostArray) -> HostArray:
    """The largest of the later half of what went before: one step may be right by chance. Not far
    ahead, or a loss that grows would excuse the steps before.
    """
    return np.array([off[t // 2 : t + 3].max() for t in range(len(off))])


class _Host:
    """Float64 on NumPy: what `StepProgram` needs of a backend."""

    def __init__(self, timed: Backend) -> None:
        self._timed = timed

    @property
    def xp(self) -> ModuleType:
        return np

    def require(self) -> None: ...

    def configure(self) -> None: ...

    def synchronize(self, program: Program | None = None) -> None: ...

    def build(self, workload: Workload) -> StepProgram:
        return StepProgram(self, workload, self.loss_and_grad)

    def describe(self) -> dict[str, str | int | float]:
        return {}

    def disturb(self, array: Array) -> Array:
        return array

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        return self.disturb(np.array(host, dtype=np.float64))

    def to_numpy(self, array: Array) -> HostArray:
        return np.array(array, dtype=np.float64)

    def random(self, seed: int) -> Random:
        return _Redrawn(self, self._timed.random(seed), self._timed)

    def loss_and_grad(
        self, problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        return manual(np)(problem, params, batch, mark)


class _Disturbed(_Host):
    """The same, with every array off by up to a rounding error, at random."""

    def __init__(self, timed: Backend, epsilon: float) -> None:
        super().__init__(timed)
        self._rng = host_rng(0, "stream")
        self._factors = 1 + epsilon * self._rng.uniform(-1, 1, 1 << 16)

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
        loss, grads = super().loss_and_grad(problem, params, batch, mark)
        return self.disturb(loss), {name: self.disturb(grad) for name, grad in grads.items()}

    def optimizer(self, optimizer: Optimizer | None) -> Optimizer | None:
        """The same with its state off as well: 1 - beta**t in adam makes much of little."""
        return None if optimizer is None else _Rounded(optimizer, self)


class _Rounded:
    """An optimizer whose state is kept no better than the dtype can."""

    def __init__(self, optimizer: Optimizer, host: _Disturbed) -> None:
        self._optimizer, self._host = optimizer, host

    def init(self, xp: Any, params: Params) -> Slots:
        return self._optimizer.init(xp, params)

    def update(self, xp: Any, params: Params, grads: Params, slots: Slots) -> tuple[Params, Slots]:
        params, slots = self._optimizer.update(xp, params, grads, slots)
        return params, {name: self._host.disturb(slot) for name, slot in slots.items()}


class _Redrawn:
    """The values that the timed backend's own generator gives, on the host."""

    def __init__(self, host: _Host, source: Random, timed: Backend) -> None:
        self._host, self._source, self._timed = host, source, timed

    def normal(self, shape: tuple[int, ...]) -> Array:
        return self._host.asarray(self._timed.to_numpy(self._source.normal(shape)))


def _available_bytes() -> int | None:
    """Memory that can be had without swapping, after /proc/meminfo."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
