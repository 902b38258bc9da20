"""The contract of every optimizer, as tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from expkit.config import compose_cell
from expkit.contracts import AnyOptimizer, Array, EvaluatesAgain, OptState, Params


class OptimizerContract:
    """Derive from it, and name the option in `optimizer`; `words` set fields such as the rate.

    `problem` names a problem that the optimizer fits.
    """

    optimizer: str
    problem: str = "sine"
    words: Sequence[str] = ("optimizer.lr=0.01",)

    def make(self) -> AnyOptimizer:
        words = (f"optimizer={self.optimizer}", *self.words)
        made = compose_cell(f"problem={self.problem}", *words).workload.optimizer
        assert made is not None
        return made

    def test_runs_under_the_strict_array_api(self) -> None:
        xp = pytest.importorskip("array_api_strict")
        optimizer = self.make()
        strict = {k: xp.asarray(v) for k, v in _params().items()}
        plain = _params()
        state, plain_state = optimizer.init(xp, strict), optimizer.init(np, plain)
        for step in range(5):
            grads = _grads(step)
            moved = {k: xp.asarray(g) for k, g in grads.items()}
            strict, state = _step(optimizer, xp, strict, moved, state)
            plain, plain_state = _step(optimizer, np, plain, grads, plain_state)
        for name, value in plain.items():
            np.testing.assert_allclose(np.from_dlpack(strict[name]), value, rtol=1e-12)

    def test_state_is_arrays_of_the_parameters_dtype(self) -> None:
        params = {k: v.astype(np.float32) for k, v in _params().items()}
        grads = {k: v.astype(np.float32) for k, v in _grads(0).items()}
        optimizer = self.make()
        params, state = _step(optimizer, np, params, grads, optimizer.init(np, params))
        for array in (*params.values(), *state.values()):
            assert isinstance(array, np.ndarray | np.generic)  # sums of shape () are scalars
            assert array.dtype == np.float32

    def test_gradients_unharmed(self) -> None:
        optimizer, params, grads = self.make(), _params(), _grads(0)
        state = optimizer.init(np, params)
        for _ in range(3):
            params, state = _step(optimizer, np, params, grads, state)
        for name, value in _grads(0).items():
            np.testing.assert_array_equal(grads[name], value)

    def test_goes_downhill(self) -> None:
        optimizer, params = self.make(), {"w": np.array([1.0, -2.0])}
        state = optimizer.init(np, params)
        for _ in range(50):
            grads = {"w": 2 * params["w"]}
            params, state = _step(optimizer, np, params, grads, state, loss=_square)
        assert np.all(np.abs(params["w"]) < [1.0, 2.0])


def _step(
    optimizer: AnyOptimizer,
    xp: Any,
    params: Params,
    grads: Params,
    state: OptState,
    loss: Callable[[Params], Array] | None = None,
) -> tuple[Params, OptState]:
    """One step; by default of a loss whose gradient is the same everywhere."""
    if not isinstance(optimizer, EvaluatesAgain):
        return optimizer.update(xp, params, grads, state)

    def evaluate(there: Params) -> tuple[Array, Params]:
        if loss is None:
            return sum(xp.sum(there[k] * g) for k, g in grads.items()), grads
        return loss(there), {k: 2 * p for k, p in there.items()}

    here, _ = evaluate(params)
    return optimizer.update_again(xp, params, here, grads, state, evaluate)


def _square(params: Params) -> Array:
    return sum((p * p).sum() for p in params.values())


def _params() -> Params:
    return {"w": np.linspace(-1, 1, 5), "b": np.asarray(0.5)}


def _grads(step: int) -> Params:
    rng = np.random.default_rng(step)
    return {"w": rng.standard_normal(5), "b": np.asarray(rng.standard_normal())}
