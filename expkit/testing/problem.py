"""The contract of every problem, as tests."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from expkit.authors import (
    INTEGERS,
    RandomOfDraws,
    draws_of_a_step,
    first_data,
    first_params,
    stream,
)
from expkit.config import compose_cell, options
from expkit.contracts import (
    Array,
    Batch,
    HasCost,
    HasGradient,
    HostArray,
    Operation,
    Params,
    Problem,
    Workload,
)
from expkit.optimizers.sgd import Sgd
from expkit.testing.cells import SMALL, backend, forms, missing, reference, workload


class HostRandom(RandomOfDraws):
    """The stream of a problem, in arrays of any namespace."""

    def __init__(self, xp: Any, problem: Problem | Operation) -> None:
        self._xp = xp
        self._random = stream(backend("backend=numpy"), Workload(problem, None, 1, 0, "shared"))

    def draw(self, kind: str, *given: Any) -> Array:
        return self._xp.asarray(getattr(self._random, kind)(*given))


class ProblemContract:
    """Derive from it, and name the option in `problem`, which is tested in all its small forms."""

    problem: str

    def all(self) -> list[Problem | Operation]:
        """Its small forms. The test is skipped where its data are not installed."""
        found = list(forms(self.problem).values())
        if why := missing(found[0]):
            pytest.skip(why)
        return found

    def learning(self) -> list[Problem]:
        """Return its small forms, or skip the test of an operation."""
        found = [problem for problem in self.all() if not isinstance(problem, Operation)]
        if not found:
            pytest.skip("an operation has nothing to learn")
        return found

    def test_runs_under_the_strict_array_api(self) -> None:
        xp = pytest.importorskip("array_api_strict")
        for problem in self.all():
            data = {k: xp.asarray(v) for k, v in _data(problem).items()}
            if {*INTEGERS} & _draws(problem):  # `x[i]` is in every library, but not in the standard
                batch: Batch = {k: xp.asarray(v) for k, v in _batch(problem).items()}
            else:
                batch = problem.batch(xp, data, HostRandom(xp, problem))
            if isinstance(problem, Operation):
                result = problem.apply(xp, batch)
                plain = problem.apply(np, _batch(problem))
                np.testing.assert_allclose(np.from_dlpack(result), plain, rtol=1e-12)
                continue
            start = _start(problem)
            params = {k: xp.asarray(v) for k, v in start.items()}
            loss = float(problem.loss(xp, params, batch))
            assert loss == pytest.approx(_loss(problem, start), rel=1e-12)
            if isinstance(problem, HasGradient):
                by_hand, grads = problem.loss_and_grad(xp, params, batch)
                assert float(by_hand) == pytest.approx(loss, rel=1e-12)
                assert {k: g.shape for k, g in grads.items()} == {
                    k: p.shape for k, p in params.items()
                }

    def test_gradient_equals_central_differences(self) -> None:
        for problem in self.learning():
            if not isinstance(problem, HasGradient):
                pytest.skip("no gradient by hand")
            params, batch = _start(problem), _batch(problem)
            loss, grads = problem.loss_and_grad(np, params, batch)
            assert loss == pytest.approx(float(problem.loss(np, params, batch)), rel=1e-12)
            for name, value in params.items():
                grad = np.asarray(grads[name])
                for index in list(np.ndindex(value.shape))[:10]:
                    slope = _central_difference(problem, params, name, index)
                    scale = max(float(np.abs(grad).max()), 1e-12)
                    assert abs(float(grad[index]) - slope) < 1e-5 * scale

    def test_a_step_in_float32_is_float32(self) -> None:
        """A NumPy scalar such as `np.float64(2)` makes float64 of it, a Python number does not."""
        for problem in self.all():
            batch = {k: v.astype(np.float32) for k, v in _batch(problem).items()}
            if isinstance(problem, Operation):
                assert problem.apply(np, batch).dtype == np.float32
                continue
            params = {k: v.astype(np.float32) for k, v in _start(problem).items()}
            assert problem.loss(np, params, batch).dtype == np.float32
            if isinstance(problem, HasGradient):
                loss, grads = problem.loss_and_grad(np, params, batch)
                for name, value in {"loss": loss, **grads}.items():
                    assert np.asarray(value).dtype == np.float32, name

    def test_inputs_unharmed(self) -> None:
        for problem in self.learning():
            params, batch = _start(problem), _batch(problem)
            for call in ("loss", "loss_and_grad"):
                if hasattr(problem, call):
                    getattr(problem, call)(np, params, batch)
            for before, after in ((_start(problem), params), (_batch(problem), batch)):
                for name, value in before.items():
                    np.testing.assert_array_equal(after[name], value)

    def test_a_start_depends_on_the_seed_alone(self) -> None:
        for problem in self.all():
            one, same, other = (_data(problem, seed) for seed in (0, 0, 1))
            assert one.keys() == same.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], same[name])

    def test_learns_as_recommended(self) -> None:
        self.learning()  # skips an operation
        for form, problem in forms(self.problem).items():
            steps, rates = problem.recommended().steps, problem.recommended().lr
            for optimizer in set(rates) & set(options("optimizer")):
                losses, _ = reference(workload(self.problem, optimizer, steps, form=form))
                tenth = max(1, losses.size // 10)
                # Of fresh batches each loss is another's; else the first may fall in a few steps.
                begun = losses[:tenth] if _draws(problem) else losses[:1]
                last, first = np.median(losses[-tenth:]), np.median(begun)
                assert last < 0.9 * first, (form, optimizer)

    def test_recommends_what_the_schema_takes(self) -> None:
        cell = compose_cell(f"problem={self.problem}", "optimizer=sgd", "optimizer.lr=1")
        recommended = cell.workload.problem.recommended()
        assert cell.workload.steps == recommended.steps
        assert cell.workload.stream == recommended.stream
        assert cell.log_every == recommended.log_every

    def test_work_is_positive_and_does_not_shrink_with_the_size(self) -> None:
        for problem in self.all():
            if not isinstance(problem, HasCost):
                pytest.skip("declares no work")
            sizes = {k: 2 * getattr(problem, k) for k in SMALL if getattr(problem, k, None)}
            larger = dataclasses.replace(problem, **sizes)  # type: ignore[type-var]
            small, large = problem.cost(), larger.cost()
            for name in ("flops", "elements"):
                assert 0 < getattr(small, name) <= getattr(large, name) < math.inf


def _start(problem: Problem, seed: int = 0) -> dict[str, HostArray]:
    """Return the first parameters, as a program gets them."""
    return first_params(Workload(problem, Sgd(1), 1, seed, "shared"))


def _data(problem: Problem | Operation, seed: int = 0) -> dict[str, HostArray]:
    return first_data(Workload(problem, None, 1, seed, "shared"))


def _batch(problem: Problem | Operation) -> Any:
    return problem.batch(np, _data(problem), HostRandom(np, problem))


def _draws(problem: Problem | Operation) -> set[str]:
    """What a step draws."""
    case, host = Workload(problem, None, 1, 0, "shared"), backend("backend=numpy")
    draws = draws_of_a_step(host, case, _data(problem), stream(host, case))
    return {kind for kind, _ in draws}


def _loss(problem: Problem, params: Params) -> float:
    return float(problem.loss(np, params, _batch(problem)))


def _central_difference(
    problem: Problem, params: Params, name: str, index: tuple[int, ...]
) -> float:
    h = 1e-5
    sides = []
    for sign in (1, -1):
        moved = {k: np.array(v) for k, v in params.items()}
        moved[name][index] += sign * h
        sides.append(_loss(problem, moved))
    return (sides[0] - sides[1]) / (2 * h)
