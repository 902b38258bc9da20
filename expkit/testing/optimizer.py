"""The contract of every optimizer, as tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from expkit.config import compose_cell
from expkit.contracts import Optimizer, Params


class OptimizerContract:
    """Derive from it, and name the option in `optimizer`; `words` set fields such as the rate.

    `problem` names a problem that the optimizer fits.
    """

    optimizer: str
    problem: str = "sine"
    words: Sequence[str] = ("optimizer.lr=0.01",)

    def make(self) -> Optimizer:
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
            strict, state = optimizer.update(xp, strict, moved, state)
            plain, plain_state = optimizer.update(np, plain, grads, plain_state)
        for name, value in plain.items():
            np.testing.assert_allclose(np.from_dlpack(strict[name]), value, rtol=1e-12)

    def test_state_is_arrays_of_the_parameters_dtype(self) -> None:
        params = {k: v.astype(np.float32) for k, v in _params().items()}
        grads = {k: v.astype(np.float32) for k, v in _grads(0).items()}
        optimizer = self.make()
        params, state = optimizer.update(np, params, grads, optimizer.init(np, params))
        for array in (*params.values(), *state.values()):
            assert isinstance(array, np.ndarray | np.generic)  # sums of shape () are scalars
            assert array.dtype == np.float32

    def test_gradients_unharmed(self) -> None:
        optimizer, params, grads = self.make(), _params(), _grads(0)
        state = optimizer.init(np, params)
        for _ in range(3):
            params, state = optimizer.update(np, params, grads, state)
        for name, value in _grads(0).items():
            np.testing.assert_array_equal(grads[name], value)

    def test_goes_downhill(self) -> None:
        optimizer, params = self.make(), {"w": np.array([1.0, -2.0])}
        state = optimizer.init(np, params)
        for _ in range(50):
            params, state = optimizer.update(np, params, {"w": 2 * params["w"]}, state)
        assert np.all(np.abs(params["w"]) < [1.0, 2.0])


def _params() -> Params:
    return {"w": np.linspace(-1, 1, 5), "b": np.asarray(0.5)}


def _grads(step: int) -> Params:
    rng = np.random.default_rng(step)
    return {"w": rng.standard_normal(5), "b": np.asarray(rng.standard_normal())}
