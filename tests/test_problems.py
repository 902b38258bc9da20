"""The problems that ship keep to the contract, and mean what they say."""

import numpy as np
import pytest

from expkit.config import compose_cell, options
from expkit.problems.linear import INTERCEPT, SLOPE
from expkit.problems.sine import Sine
from expkit.testing import ProblemContract
from expkit.testing.cells import reference, workload


class TestProblems(ProblemContract):
    @pytest.fixture(autouse=True, params=options("problem"))
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.problem = request.param


def test_sine_is_the_tutorials_least_squares() -> None:
    """The tutorial's own formulas: four numbers, y = a + b x + c x^2 + d x^3, one step."""
    problem, rng = Sine(), np.random.default_rng(0)
    x = np.linspace(-np.pi, np.pi, 2000)
    w = problem.init(rng)["w"]
    y_pred = w[0] + w[1] * x + w[2] * x**2 + w[3] * x**3
    error = y_pred - np.sin(x)
    grads = [2 * error.sum(), *(2 * (error * x**k).sum() for k in (1, 2, 3))]
    loss, by_hand = problem.loss_and_grad(np, {"w": w}, problem.data(rng))
    assert loss == pytest.approx(np.square(error).sum(), rel=1e-12)
    np.testing.assert_allclose(by_hand["w"], grads, rtol=1e-10)


def test_sine_recommends_the_tutorials_rate() -> None:
    assert Sine().recommended().lr["sgd"] == pytest.approx(1e-6, rel=1e-12)


@pytest.mark.parametrize(("n", "degree"), [(2000, 3), (20_000, 3), (500, 5), (100, 1)])
def test_sine_learns_at_any_size(n: int, degree: int) -> None:
    words = ("problem=sine", f"problem.n={n}", f"problem.degree={degree}", "steps=300")
    losses, _ = reference(compose_cell(*words).workload)
    assert np.all(np.diff(losses) <= 1e-12 * losses[0])
    assert losses[-1] < losses[0] / 2


def test_linear_finds_the_line() -> None:
    _, params = reference(workload("linear", "sgd", steps=100))
    assert params["slope"] == pytest.approx(SLOPE, abs=1e-6)
    assert params["intercept"] == pytest.approx(INTERCEPT, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "rmsprop"])
def test_the_other_optimizers_come_near_the_line(optimizer: str) -> None:
    _, found = reference(
        compose_cell("problem=linear", f"optimizer={optimizer}", "seed=0").workload
    )
    far = np.hypot(float(found["slope"]) - SLOPE, float(found["intercept"]) - INTERCEPT)
    assert far < np.hypot(2, 3) / 4


def test_large_dot_converges_where_it_is_small() -> None:
    losses, _ = reference(compose_cell("+experiment=large_dot_small").workload)
    assert np.median(losses[-100:]) < 1e-3 * np.median(losses[:100])


def test_large_dot_diverges_at_the_tutorials_rate() -> None:
    words = ("+experiment=large_dot", "problem.n=100000", "optimizer.lr=0.1")
    with np.errstate(all="ignore"):
        losses, _ = reference(compose_cell(*words).workload)  # n * lr as in the tutorial
    assert not np.isfinite(losses[-1])


PRESETS = {
    "sine": ("sine", 2000, 1e-6),
    "matmul": ("matmul", 100, None),
    "add": ("add", 10, None),
    "linear": ("linear", 10, 0.01),
    "large_dot": ("large_dot", 200, 0.001),
    "large_dot_small": ("large_dot", 1000, 0.005),
    "scaling": ("large_dot", 20, 5e-7),
}
SIZES = {"sine": 2000, "matmul": 100, "add": 10_000, "large_dot": 10_000_000}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("preset", options("experiment"))
def test_presets_keep_the_tutorials_settings(preset: str, backend: str) -> None:
    """And leave the backend and its dtype to the command line."""
    cell = compose_cell(f"+experiment={preset}", f"backend={backend}", "backend.dtype=float32")
    resolved, work = cell.resolved, cell.workload
    rate = resolved["optimizer"]["lr"] if "optimizer" in resolved else None
    assert (cell.names["problem"], work.steps, rate) == PRESETS[preset]
    assert (cell.names["backend"], resolved["backend"]["dtype"]) == (backend, "float32")
    if preset not in ("large_dot_small", "scaling") and cell.names["problem"] in SIZES:
        assert resolved["problem"]["n"] == SIZES[cell.names["problem"]]
    assert resolved["problem"].get("draw", True), "the tutorials draw inside the loop"
