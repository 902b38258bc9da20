"""expkit does what the second tutorial does: its own lines are run here, beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from notebooks import AUTODIFF_LINE, LARGE, LINE, PLACES, ROUNDING, built, run, words

from expkit.authors import host_rng
from expkit.config import compose_cell
from expkit.testing.cells import reference


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_the_second_tutorials_line(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: str
) -> None:
    """Both parameters before and after each of the ten steps, and the loss of each."""
    program, losses = built(words("linear", backend, dtype)), []
    found = [program.params()]
    for step in range(1, 11):
        lines = LINE.replace("range(10)", f"range({step})")
        losses.append(run(monkeypatch, lines, dtype)["loss"].item())
        program.advance(1)
        found.append(program.params())
    printed = run(monkeypatch, LINE, dtype)["printed"]
    ours = [(float(p["slope"]), float(p["intercept"])) for p in found]
    assert printed[0] == (1.0, 1.0)
    np.testing.assert_allclose(ours, printed, rtol=ROUNDING[dtype])
    np.testing.assert_allclose(program.losses(), losses, rtol=10 * ROUNDING[dtype])


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_the_second_tutorials_large_problem(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: str
) -> None:
    """1000 weights instead of 10,000,000, which do not diverge: w, b and the loss of ten steps."""
    size = ("problem.n=1000", "steps=10")
    program, scale = built(words("large_dot", backend, dtype, *size)), 0.0
    for step in range(1, 11):
        names = run(monkeypatch, LARGE, dtype, N="1000", epochs=str(step))
        program.advance(1)
        found, loss = program.params(), names["loss"].item()
        scale = max(scale, loss)
        for ours, theirs in ((found["w"], names["w"]), (found["b"], names["b"])):
            right = theirs.detach().numpy().reshape(ours.shape)
            np.testing.assert_allclose(ours, right, atol=ROUNDING[dtype])
        assert abs(program.losses()[-1] - loss) <= ROUNDING[dtype] * scale, step
    assert scale > 1000
    assert np.isfinite(scale)


@pytest.mark.parametrize("seed", range(5))
def test_ten_steps_learn_the_line(seed: int) -> None:
    """A bare `problem=linear` ends where the tutorial's does, at 2.96 and -1.96."""
    case = compose_cell("problem=linear", f"seed={seed}").workload
    assert case.steps == 10
    _, found = reference(case)
    assert float(found["slope"]) == pytest.approx(3, abs=0.15)
    assert float(found["intercept"]) == pytest.approx(-2, abs=0.15)


def test_autodiffs_example_is_the_first_step_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`looks like what we usually do in Deep Learning`: its loss and its two gradients."""
    names = run(monkeypatch, AUTODIFF_LINE)
    problem: Any = compose_cell("problem=linear").workload.problem
    x = names["x"].detach().numpy().reshape(-1)
    params = problem.init(host_rng(0, "init"))
    loss, grads = problem.loss_and_grad(np, params, {"x": x, "y": 3 * x - 2})
    assert float(loss) == pytest.approx(names["loss"].item(), rel=1e-12)
    assert float(grads["slope"]) == pytest.approx(names["w"].grad.item(), rel=1e-12)
    assert float(grads["intercept"]) == pytest.approx(names["b"].grad.item(), rel=1e-12)
