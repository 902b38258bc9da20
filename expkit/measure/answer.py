"""The float64 reference, which tells whether a timed program computed the right answer.

NumPy computes the same steps in float64, from the same start and the same random values, with the
gradient by hand. The losses and parameters of the timed repeats are compared with these.

How far they may deviate depends on the dtype and on how much this very trajectory magnifies
rounding: near a minimum, a step of rmsprop turns a difference in the last bit into several percent.
So the reference is also run with every array perturbed at random by up to a rounding error of the
dtype (Monte Carlo arithmetic: Parker, Pierce and Eggert 2000). The change of the result is the
scale of the allowed deviation.

Where a step jumps, as one does that follows the sign of a gradient, a rounding error may change the
result by much, but seldom does. So before an answer is called wrong, the reference is run once more
with every array perturbed by MARGIN rounding errors, and gradients by those of their typical
elements, because terms of a sum may cancel. Whatever this changes counts as rounding, too. From the
first step on whose loss it changes a lot, nothing can be said.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from expkit.authors import (
    INTEGERS,
    RandomOfDraws,
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
    Evaluate,
    EvaluatesAgain,
    HasGradient,
    HostArray,
    Mark,
    Operation,
    OptState,
    Params,
    Problem,
    Program,
    Random,
    Workload,
)

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TINY = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
"""The smallest positive number, which is also the spacing of the numbers near 0."""
MARGIN = 100.0
"""The multiple of the perturbed reference's deviation that still counts as rounding. For every
problem, optimizer and step of the recommended trajectories float64 and float32 stay below 30."""
ELEMENT_STEPS = 4e7
"""How many array elements times steps the reference may compute: about a second."""
STEPS_MIN, STEPS_MAX = 12, 5000
"""It computes at most STEPS_MAX steps. Where long arrays leave it fewer than STEPS_MIN, it goes on
to STEPS_MIN if there is time."""
LONG = 10_000
"""Terms of a sum from which on the order of summation matters more than the terms' rounding."""
LIMIT_S = 1.0
"""Seconds for those further steps, where the run itself does not take much longer."""
LOOSE = 0.1
"""An allowed deviation above this share of a loss is too wide to tell right from wrong."""
CHAOTIC = 0.01
"""A change of a loss by rounding has to be above this share of the first loss to count as chaos:
near a minimum, where the loss is next to nothing, a small change is more than the loss.
"""
SHIFT = 0.1
"""The most that is added to a parameter to make another start."""
FEW_STEPS = 10
"""The most steps of a check that continues from a saved state."""
SAMPLES = 3
"""The fewest perturbed losses that show the effect of rounding: a single one may be right by
chance."""
SHORT = 1_000_000
"""Arrays with fewer elements than this fit into memory several times over."""
MEMORY_SHARE = 0.5
"""The share of the free memory that the reference may take."""

_by_hand = manual(np)


@dataclass
class Answer:
    """The result of the reference, with which repeats are compared.

    Attributes:
        steps: the number of steps it covers, from its start.
        losses, allowed: the loss of each step, and how far a right one may deviate from it.
        params, params_allowed: the same for the parameters after the last step.
        scale: the first loss of the run.
        jumps: computes how far losses and parameters change where rounding errors are MARGIN times
            as large; None once that is allowed.
    """

    steps: int
    losses: HostArray
    allowed: HostArray
    params: Mapping[str, HostArray]
    params_allowed: Mapping[str, float]
    scale: float = 0.0
    jumps: Callable[[], Disturbed] | None = None

    @property
    def tight(self) -> int:
        """The number of steps whose allowed deviation is narrow enough to find a wrong result."""
        if not self.losses.size:
            return self.steps if self._tells_params() else 0
        size = np.maximum(np.abs(self.losses), abs(self.losses[0]))
        return int(np.count_nonzero(self.allowed <= LOOSE * size))

    def _tells_params(self) -> bool:
        return all(
            self.params_allowed[name] <= LOOSE * np.max(np.abs(right), initial=0)
            for name, right in self.params.items()
        )

    def wrong_losses(self, losses: HostArray, first: int = 0, *, whole: bool = True) -> str | None:
        """Return what is wrong with the losses, or None. This answer begins at step `first`.

        Args:
            whole: false for a run that has ended early.
        """
        wrong = self._wrong_losses(losses, first, whole=whole)
        return self._wrong_losses(losses, first, whole=whole) if wrong and self._widen() else wrong

    def wrong_params(self, params: Mapping[str, HostArray], first: int = 0) -> str | None:
        """Return what is wrong with the parameters `steps` steps after step `first`, or None."""
        wrong = self._wrong_params(params, first)
        return self._wrong_params(params, first) if wrong and self._widen() else wrong

    def _widen(self) -> bool:
        """Allow what rounding may change where a step jumps; false if that is allowed already."""
        if self.jumps is None:
            return False
        found = self.jumps()
        self.jumps = None
        self.allowed = np.maximum(self.allowed, self.allowed / MARGIN + _nearby_max(found.off))
        self.params_allowed = {
            name: max(allowed, allowed / MARGIN + found.params_off[name])
            for name, allowed in self.params_allowed.items()
        }
        most = np.maximum(LOOSE * np.abs(self.losses), CHAOTIC * self.scale)
        lost = np.flatnonzero(found.off > most)
        if lost.size:
            self.allowed[lost[0] :] = np.inf
            self.params_allowed = dict.fromkeys(self.params_allowed, np.inf)
        return True

    def _wrong_losses(self, losses: HostArray, first: int, *, whole: bool) -> str | None:
        if whole and losses.size < self.steps:
            return f"{losses.size} losses came back for {self.steps} steps"
        compared = min(self.steps, losses.size)
        off = np.abs(losses[:compared] - self.losses[:compared])
        bad = np.flatnonzero(~(off <= self.allowed[:compared]))
        if not bad.size:
            return None
        step = int(bad[0])
        look = "gradient, update or kept state" if step else "start, draws, loss or dtype"
        return (
            f"the loss of step {first + step} is {losses[step]:.9g}, the float64 reference has "
            f"{self.losses[step]:.9g}; rounding explains {self.allowed[step]:.1g} "
            f"(check the {look})"
        )

    def _wrong_params(self, params: Mapping[str, HostArray], first: int) -> str | None:
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
    """Describe to the user which steps were checked.

    Args:
        answer: the answer that every repeat has to match.
        steps: the number of steps of a repeat.
        dtype: the dtype of the program that is checked.
        places: the steps from which on a few more were checked, the last of them not drawn.
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
            *drawn, last = map(str, places)
            at = f"steps {' and '.join(drawn)} (drawn at random) and {last}"
            at = at if drawn else f"step {last}"
            text = (
                f"matches float64 NumPy on the first {answer.steps} of {steps} steps, and on a "
                f"few from {at} on"
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
    """Compute the right answer to a workload on a backend, or return why that is impossible.

    Args:
        dtype: the dtype that the backend says it computes in.
        elements: the number of elements of all the program's arrays.
        limit_s: the time limit where the arrays are long; at least one step is computed.
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
    scale: float = 0.0,
) -> Answer:
    """Compute the right answer to `steps` steps that continue from a saved state.

    Args:
        state: as `Program.load` takes it, in numbers that the dtype can represent.
        step: the number of steps that came before it.
        scale: the first loss of the run.
    """
    found = _answer(backend, workload, dtype, (steps, steps), math.inf, state, step)
    found.scale = max(found.scale, scale)
    return found


def another_start(
    backend: Backend, workload: Workload, rng: np.random.Generator
) -> dict[str, HostArray]:
    """Make a start that a program has not seen, for its `load`: every parameter, or the data of an
    operation, shifted a little. Empty for an operation without data.
    """
    if isinstance(workload.problem, Operation):
        group, arrays = "data", first_data(workload)
    else:
        group, arrays = "params", first_params(workload)
    moved = {f"{group}.{k}": v + rng.uniform(SHIFT / 2, SHIFT) for k, v in arrays.items()}
    return {name: backend.to_numpy(backend.asarray(np.asarray(x))) for name, x in moved.items()}


def drawing_seconds(backend: Backend, workload: Workload) -> float:
    """Measure the seconds to draw the random values of a step."""
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
    """Compute the least of these numbers of steps, then more, up to the most, for about `limit_s`.

    Args:
        state: the state to continue from, `step` steps after the start; None for the start.
    """
    epsilon, tiny = EPSILON[dtype], TINY[dtype]
    run = partial(_disturbed, backend, workload, state, step)
    found = run(epsilon, _samples(range_of_steps[0]), range_of_steps, limit_s, cancels=False)
    losses, params = found.right.losses(), found.right.params()
    off, params_off = found.off, found.params_off
    size = {k: float(np.max(np.abs(v), initial=0)) for k, v in params.items()}
    same = (found.steps, found.steps)
    elements = sum(np.size(x) for x in found.right.arrays().values())
    samples = SAMPLES if elements < SHORT else _samples(found.steps)
    return Answer(
        found.steps,
        losses,
        MARGIN * (_nearby_max(off) + epsilon * np.abs(losses) + tiny),
        params,
        {k: MARGIN * (params_off[k] + epsilon * size[k] + tiny) for k in params},
        abs(float(losses[0])) if losses.size else 0.0,
        partial(run, MARGIN * epsilon, samples, same, math.inf, cancels=True),
    )


class Disturbed(NamedTuple):
    """The reference after some steps, and how far those with perturbed arrays have come from it."""

    right: Program
    steps: int
    off: HostArray
    params_off: Mapping[str, float]


def _disturbed(
    backend: Backend,
    workload: Workload,
    state: Mapping[str, HostArray] | None,
    step: int,
    epsilon: float,
    samples: int,
    range_of_steps: tuple[int, int],
    limit_s: float,
    *,
    cancels: bool,
) -> Disturbed:
    """Run the reference, and `samples` programs whose arrays are perturbed by up to `epsilon`.

    Args:
        cancels: whether small elements of a gradient are perturbed as its typical ones are.
    """
    least, most = range_of_steps
    draws = _Draws(backend, workload, step)
    with np.errstate(all="ignore"):
        right = _Reference(_Host(draws), workload, _by_hand)
        # Rounding errors of the terms move a sum by the root of its length. Those of the partial
        # sums grow with the length itself, divided by the lanes in which a library adds.
        longest = max((max(x.shape, default=1) for x in right.arrays().values()), default=1)
        relative = epsilon * max(1.0, (longest / LONG) ** 0.5)
        hosts = [_Disturbed(draws, relative, k, cancels=cancels) for k in range(samples)]
        moved = [host.program(workload) for host in hosts]
        if state is not None:
            for program in (right, *moved):
                program.load(state)
        steps, started = 0, perf_counter()
        while steps < least or (steps < most and perf_counter() - started < limit_s):
            for program in (right, *moved):
                program.advance(1)
            steps += 1
        losses = right.losses()
        off = np.max([np.abs(program.losses() - losses) for program in moved], axis=0)
        return Disturbed(right, steps, off, _params_off(right, moved))


def _samples(steps: int) -> int:
    """The number of perturbed programs that give SAMPLES losses, one per step each."""
    return math.ceil(SAMPLES / steps)


def _params_off(right: Program, moved: Sequence[Program]) -> dict[str, float]:
    """The largest deviation of the perturbed parameters from the right ones, by name."""
    params, disturbed = right.params(), [program.params() for program in moved]
    return {
        name: max(float(np.max(np.abs(other[name] - x), initial=0)) for other in disturbed)
        for name, x in params.items()
    }


def _nearby_max(off: HostArray) -> HostArray:
    """The largest deviation near each step, from half its number to two steps later. One step alone
    may be right by chance; with more steps ahead, a growing loss would excuse those before.
    """
    return np.array([off[t // 2 : t + 3].max() for t in range(len(off))])


class _Draws:
    """The random values of the timed backend, on the host, for programs that take steps in turn:
    the first program draws them, and the others are given the same values again.
    """

    def __init__(self, backend: Backend, workload: Workload, step: int) -> None:
        self._backend, self._workload, self._step = backend, workload, step
        self._kept: list[deque[Array]] = []

    def source(self) -> Random:
        """The random stream as it is at step `step`."""
        backend, workload = self._backend, self._workload
        source = stream(backend, workload)
        skip(backend, workload, place(backend, first_data(workload)), source, self._step)
        return source

    def drawn(self, source: Random, kind: str, *given: Any) -> Array:
        values: Array = self._backend.to_numpy(getattr(source, kind)(*given))
        if kind in INTEGERS:
            values = values.astype(np.int64)
        for kept in self._kept:
            kept.append(values)
        return values.copy()  # a problem may write into what it has drawn

    def again(self) -> deque[Array]:
        """The queue of the values drawn from now on, for one of the other programs."""
        self._kept.append(deque())
        return self._kept[-1]


class _First(RandomOfDraws):
    """The random values of the first program, drawn from the stream."""

    def __init__(self, draws: _Draws) -> None:
        self._draws = draws
        self._source: Random | None = None

    def draw(self, kind: str, *given: Any) -> Array:
        if self._source is None:  # made only when needed, as every reset makes a `_First`
            self._source = self._draws.source()
        return self._draws.drawn(self._source, kind, *given)


class _Reference(StepProgram):
    """A program whose stream, integers included, is what its backend draws."""

    _backend: _Host

    def _stream(self) -> Random:
        return self._backend.random(self._workload.seed)


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
        return _Reference(self, workload, _by_hand)

    def describe(self) -> dict[str, str | int | float]:
        return {}

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        return np.array(host, dtype=np.float64)

    def to_numpy(self, array: Array) -> HostArray:
        return np.array(array, dtype=np.float64)

    def random(self, seed: int) -> Random:
        return _First(self._draws)


class _Disturbed(_Host):
    """Float64 on NumPy, with every array perturbed at random by up to a rounding error."""

    def __init__(self, draws: _Draws, epsilon: float, seed: int, *, cancels: bool) -> None:
        super().__init__(draws)
        self._cancels = cancels
        self._again, self._rng = draws.again(), host_rng(seed, "stream")
        self._factors = 1 + epsilon * self._rng.uniform(-1, 1, 1 << 16)

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        return self.disturb(super().asarray(host))

    def random(self, seed: int) -> Random:
        return _Again(self, self._again)

    def disturb(self, array: Array) -> Array:
        return array * self._some(array)

    def _disturb_sum(self, array: Array) -> Array:
        """As `disturb`; where sums may cancel, by errors of the array's typical element, too."""
        if not self._cancels:
            return self.disturb(array)
        typical = np.sqrt(np.mean(np.square(array)))
        return array + np.where(array == 0, 0, np.abs(array) + typical) * (self._some(array) - 1)

    def _some(self, array: Array) -> Array:
        """Factors for each element, from a random place on: drawing new ones takes too long."""
        start = self._rng.integers(1 << 15)
        factors = self._factors[start : start + np.size(array)]
        if factors.size < np.size(array):
            factors = np.resize(self._factors[start:], np.size(array))
        return factors.reshape(np.shape(array))

    def loss_and_grad(
        self, problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
    ) -> tuple[Array, Params]:
        # In place: the stored parameters are rounded too, and these errors add up over the steps.
        params |= {name: self.disturb(array) for name, array in params.items()}
        loss, grads = _by_hand(problem, params, batch, mark)
        return self.disturb(loss), {name: self._disturb_sum(grad) for name, grad in grads.items()}

    def program(self, workload: Workload) -> StepProgram:
        """Perturb the optimizer's state as well: 1 - beta**t in adam magnifies small errors."""
        rounded = _RoundedAgain if isinstance(workload.optimizer, EvaluatesAgain) else _Rounded
        optimizer = workload.optimizer and rounded(workload.optimizer, self)
        return _Reference(self, replace(workload, optimizer=optimizer), self.loss_and_grad)


@dataclass(frozen=True)
class _Again(RandomOfDraws):
    """The values that the first program has drawn, perturbed."""

    host: _Disturbed
    drawn: deque[Array]

    def draw(self, kind: str, *given: Any) -> Array:
        values = self.drawn.popleft()
        return values.copy() if kind in INTEGERS else self.host.disturb(values)


class _Rounded:
    """An optimizer whose state is kept only to the dtype's precision."""

    def __init__(self, optimizer: Any, host: _Disturbed) -> None:
        self._optimizer, self._host = optimizer, host

    def init(self, xp: Any, params: Params) -> OptState:
        state: OptState = self._optimizer.init(xp, params)
        return state

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        params, state = self._optimizer.update(xp, params, grads, state)
        return params, {name: self._host.disturb(array) for name, array in state.items()}


class _RoundedAgain(_Rounded):
    """The same for one that evaluates more than once in a step."""

    def update_again(
        self,
        xp: Any,
        params: Params,
        loss: Array,
        grads: Params,
        state: OptState,
        evaluate: Evaluate,
    ) -> tuple[Params, OptState]:
        params, state = self._optimizer.update_again(xp, params, loss, grads, state, evaluate)
        return params, {name: self._host.disturb(array) for name, array in state.items()}


def available_bytes() -> int | None:
    """Memory that is available without swapping, from /proc/meminfo; None if it does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
