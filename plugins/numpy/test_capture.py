"""A recorded step does what the step does, in place, or says that it cannot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from expkit_plugins.numpy.backend import NumpyBackend
from expkit_plugins.numpy.capture import CaptureError, Recording, Traced
from expkit_plugins.numpy.program import CapturedProgram
from expkit_plugins.numpy.replay import Replay

from expkit.contracts import Array, Batch, HostArray, Params, Random, Recommended, Workload
from expkit.optimizers.sgd import Sgd
from expkit.testing.cells import learning, operations, recordable

X = np.linspace(0.5, 2, 12).reshape(3, 4)
STEPS: dict[str, Callable[[Any], Any]] = {
    "arithmetic": lambda x: (x * 2 + 1) / (3 - x) - x**2,
    "power": lambda x: x**3 + 2**x,
    "functions": lambda x: np.sqrt(x) + np.exp(-x) * np.sin(x),
    "product": lambda x: (x @ x.T) @ x,
    "sums": lambda x: x - np.sum(x, axis=0) + np.mean(x, axis=1, keepdims=True) + np.sum(x),
    "views": lambda x: x[1:, ::2] * x[:-1, 1::2],
    "reversed": lambda x: (x + 1)[::-1] - (x + 1),
    "reshape": lambda x: np.reshape(x * 1.0, (4, 3)) @ x,
    "reuse": lambda x: ((x + 1) * (x + 2)) * ((x + 3) * (x + 4)) - (x + 1),
    "in place": lambda x: _in_place(x * 1.0, x),
    "maximum": lambda x: np.maximum(x, 1.0) + np.where(True, 1.0, 0.0),
    "scalars": lambda x: np.sqrt(1 - 1 / (np.sum(x) + 2)) * np.mean(x) / np.maximum(x, np.sum(x)),
    "a scalar result": lambda x: (np.sum(x) + 1) * np.exp(-np.mean(x)),
    "comparison": lambda x: (x > 1.0) * x,
    "constants": lambda x: (3 * np.ones_like(x)) @ x.T + np.sum(np.ones_like(x) * 2),
    "a constant twice": lambda x: (lambda c: x * (c + 1) + (c + 1) * np.zeros_like(x) - c)(
        np.ones_like(x)
    ),
    "a constant over a value": lambda x: _constant_over(x + 1, x),
    "a constant of a scalar": lambda x: np.sum(x) * (np.ones_like(np.sum(x)) + 1),
}


def _in_place(y: Any, x: Any) -> Any:
    z = y + 1
    y *= 3
    y -= x
    return y + z


def _constant_over(y: Any, x: Any) -> Any:
    z = y + x
    np.multiply(np.ones_like(x), 3, out=y)
    return z - y


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_replay_equals_the_step(step: Callable[[Any], Any], dtype: str) -> None:
    """On values that the recording never saw."""
    recording = Recording()
    pinned = recording.pin(X.astype(dtype))
    result = recording.keep(step(pinned))
    recording.plan()
    other = (X[::-1] * 0.7 + 0.1).astype(dtype)
    before = other.copy()
    storage = [np.full(shape, np.nan, form) for shape, form in recording.slots]
    replay = Replay(recording, result, learns=False)
    advance, replayed = replay.bind(storage, {pinned.ref.buffer: other}, np.empty(0))
    advance(0, 2)
    expected = step(before)
    assert replayed.dtype == expected.dtype
    np.testing.assert_allclose(replayed, expected, rtol=1e-6 if dtype == "float32" else 1e-14)
    np.testing.assert_array_equal(other, before)


def test_temporaries_share_memory() -> None:
    """A chain of elementwise steps needs one array, whatever its length."""
    recording = Recording()
    y = recording.pin(X) + 1
    for _ in range(20):
        y = np.sqrt(y) * 2
    recording.keep(y)
    recording.plan()
    assert len(recording.slots) == 1


def test_a_value_that_lives_on_is_not_overwritten() -> None:
    recording = Recording()
    x = recording.pin(X)
    kept = x + 1
    for _ in range(3):
        kept = kept * (x + 2)
    recording.keep(kept)
    recording.plan()
    assert len(recording.slots) == 2


def test_a_result_stays_until_the_step_ends() -> None:
    """Made early, read by nobody else, and not overwritten by what comes after."""
    recording = Recording()
    pinned = recording.pin(X)
    result = recording.keep(pinned + 1)
    after = pinned * 2
    for _ in range(3):
        after = np.sqrt(after) + pinned
    recording.store([(pinned, after)])
    recording.plan()
    storage = [np.zeros(shape, form) for shape, form in recording.slots]
    place = {pinned.ref.buffer: X.copy()}
    advance, replayed = Replay(recording, result, learns=False).bind(storage, place, np.empty(0))
    advance(0, 1)
    np.testing.assert_array_equal(replayed, X + 1)


def test_a_constant_is_made_once_for_a_placement() -> None:
    """Every ufunc on a constant alone stands before the loop, in one array where one will do."""
    recording = Recording()
    pinned = recording.pin(X)
    result = recording.keep((3 * np.ones_like(pinned) + 1) @ pinned.T)
    recording.plan()
    assert [call.function for call in recording.calls] == [np.matmul]
    assert recording.slots == [(X.shape, X.dtype), ((3, 3), X.dtype)]
    before, _, loop = Replay(recording, result, learns=False).source.partition("def advance")
    assert (before.count("(") - 1, loop.count("(") - 1) == (3, 2)  # besides `def` and its range


CASES = recordable(learning(5)) | operations(5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_traced_step_makes_the_same_calls(case: Workload) -> None:
    replay = CapturedProgram(NumpyBackend(), case)._replay
    assert "mark" not in replay.source
    lines = [line for line in replay.traced.splitlines() if not line.strip().startswith("mark(")]
    lines[0] = lines[0].replace(", mark):", "):")
    assert lines == replay.source.splitlines()


def _traced(case: Workload) -> list[str]:
    marks: list[str] = []
    CapturedProgram(NumpyBackend(), case).trace(1, marks.append)
    return marks


def test_what_the_loss_needs_is_the_forward_part() -> None:
    """Linear computes its gradient between two pieces of its loss; adding matrices has none."""
    marks = ["draw", "forward", "backward", "forward", "update"]
    assert _traced(CASES["linear-sgd"]) == marks
    assert _traced(CASES["sine-sgd"]) == ["forward", "backward", "update"]
    assert _traced(CASES["add"]) == ["forward"]
    assert _traced(CASES["add-draw"]) == ["draw", "forward"]


REFUSED: dict[str, Callable[[Traced], Any]] = {
    "branch": lambda x: x if np.sum(x) > 0 else -x,
    "number": lambda x: float(np.sum(x)) * x,
    "fancy index": lambda x: x[[0, 1]],
    "sort": lambda x: np.sort(x),
    "into another type": lambda x: np.add.reduce(x, dtype="float16"),
    "conversion": lambda x: np.asarray(x),
    "another dtype's ones": lambda x: np.ones_like(x, dtype="float16"),
    "a constant as the result": lambda x: x.recording.keep(2 * np.ones_like(x)),
    "into a constant": lambda x: _add_into(np.ones_like(x), x),
}


@pytest.mark.parametrize("step", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_recorded_is_refused(step: Callable[[Traced], Any]) -> None:
    with pytest.raises(CaptureError):
        step(Recording().pin(X))


@dataclass(frozen=True)
class Quadratic:
    """w @ w, with a loss that a case may write in its own way."""

    shape: tuple[int, ...]
    error: Callable[[Any], Any]

    def recommended(self) -> Recommended:
        return Recommended(steps=10)

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"w": rng.standard_normal(self.shape)}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {}

    def batch(self, xp: Any, data: Any, random: Random) -> Batch:
        return {}

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        return self.loss_and_grad(xp, params, batch)[0]

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        error = self.error(params["w"])
        return xp.sum(error * error), {"w": 2 * params["w"]}


def test_a_step_that_cannot_be_recorded_runs_step_by_step() -> None:
    branching = Quadratic((3,), lambda w: w * 1.0 if np.sum(w * w) > 1 else w * 0.5)
    program = NumpyBackend().build(Workload(branching, Sgd(0.1), 10, 0, "shared"))
    assert program.mode == "step"


@dataclass(frozen=True)
class Mutating(Quadratic):
    """Writes into its data, which the next step then sees."""

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"x": np.ones(self.shape)}

    def batch(self, xp: Any, data: Any, random: Random) -> Batch:
        x = data["x"]
        x += 1
        return {"x": x}


def test_a_step_that_writes_into_its_data_is_not_replayed() -> None:
    mutating = Mutating((3,), lambda w: w * 1.0)
    assert NumpyBackend().build(Workload(mutating, Sgd(0.1), 4, 0, "shared")).mode == "step"


def _scalar_in_place(w: Any) -> Any:
    total = np.sum(w)
    half = total
    half *= 0.5
    return w + total - half


ERRORS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "a matrix and its transpose, on threads": ((1000, 1000), lambda w: w * 1.5 + (w * 1.5).T),
    "a temporary and its own transpose": ((1000, 1000), lambda w: (lambda g: g + g.T)(w * 1.5)),
    "an array and its reverse": ((1 << 20,), lambda w: (lambda g: g - g[::-1])(w * 1.5)),
    "a reshaped transpose": ((3, 4), lambda w: np.reshape((w.T * 2).T, (12,))),
    "a scalar by two names": ((3, 4), _scalar_in_place),
    "the array API's names": ((3, 3), lambda w: w.mT * w.size),
    "an integer that stays one": ((3, 4), lambda w: np.ldexp(w, 2)),
    "a method of arrays": ((3, 4), lambda w: w.reshape((12,)) - w.sum()),
    "an array made inside": ((3, 4), lambda w: _add_into(np.zeros((3, 4)), w)),
    "a constant that is written": ((3, 4), lambda w: _add_into(np.ones_like(w), w) * w),
    "a constant on threads": ((1 << 20,), lambda w: w * (3 * np.ones_like(w)) - np.zeros_like(w)),
    "a view of a constant": ((3, 4), lambda w: w - (2 * np.ones_like(w)).T.T[::-1]),
}


def _add_into(array: Any, x: Any) -> Any:
    array += x
    return array


@pytest.mark.parametrize("case", ERRORS.values(), ids=ERRORS)
def test_a_replay_is_never_silently_another_step(
    case: tuple[tuple[int, ...], Callable[[Any], Any]],
) -> None:
    """Found in review, each: it is replayed right, or runs step by step."""
    _same_fast_and_slow(Workload(Quadratic(*case), Sgd(0.1), 4, 0, "shared"))


@dataclass(frozen=True)
class HeavyBall:
    """Keeps the iterate before the last, which the update overwrites."""

    def init(self, xp: Any, params: Params) -> Params:
        return {k: xp.zeros_like(p) + p for k, p in params.items()}

    def update(self, xp: Any, params: Params, grads: Params, state: Params) -> Any:
        new = {k: p - 0.1 * grads[k] + 0.5 * (p - state[k]) for k, p in params.items()}
        return new, dict(params)


@dataclass(frozen=True)
class Lazy:
    """Makes its state in the first step."""

    def init(self, xp: Any, params: Params) -> Params:
        return {}

    def update(self, xp: Any, params: Params, grads: Params, state: Params) -> Any:
        state = {k: state[k] * 0.9 + grads[k] if k in state else grads[k] for k in params}
        return {k: p - 0.1 * state[k] for k, p in params.items()}, state


@dataclass(frozen=True)
class Reversing:
    """Returns a view of what it was given."""

    def init(self, xp: Any, params: Params) -> Params:
        return {}

    def update(self, xp: Any, params: Params, grads: Params, state: Params) -> Any:
        for k, p in params.items():
            p -= 0.1 * grads[k]
        return {k: p[::-1] for k, p in params.items()}, state


@pytest.mark.parametrize("optimizer", [HeavyBall(), Lazy(), Reversing()], ids=repr)
def test_an_optimizer_is_never_silently_another(optimizer: Any) -> None:
    ramp = Quadratic((4,), lambda w: w * np.arange(4.0))
    _same_fast_and_slow(Workload(ramp, optimizer, 6, 0, "shared"))


@dataclass(frozen=True)
class Reusing(Quadratic):
    """Makes the gradient where an array of the loss lay."""

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        error = self.error(params["w"])
        loss = xp.sum(error)
        error *= 2
        return loss, {"w": error}


def test_what_is_written_over_the_loss_is_the_backward_part() -> None:
    case = Workload(Reusing((3,), lambda w: w * w), Sgd(0.1), 4, 0, "shared")
    assert _traced(case) == ["forward", "backward", "update"]


def test_a_step_that_counts_is_not_replayed() -> None:
    """What a recording cannot see, two of them show."""
    counter = iter(range(100))
    counting = Quadratic((3,), lambda w: w * next(counter))
    program = NumpyBackend().build(Workload(counting, Sgd(0.1), 4, 0, "shared"))
    assert program.mode == "step"


def _same_fast_and_slow(workload: Workload) -> None:
    fast, slow = (NumpyBackend(threads=2, fast=f).build(workload) for f in (True, False))
    for program in (fast, slow):
        program.advance(workload.steps)
    np.testing.assert_allclose(fast.losses(), slow.losses(), rtol=1e-12)
    np.testing.assert_allclose(fast.params()["w"], slow.params()["w"], rtol=1e-12)
