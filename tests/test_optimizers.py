"""The optimizers that ship keep to the contract and equal torch.optim."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expkit.authors import first_data, first_params, stream
from expkit.conduct import run_together
from expkit.config import compose_cell, options
from expkit.contracts import Array, Evaluate, HasGradient, Optimizer, OptState, Params
from expkit.errors import UserError
from expkit.optimizers._chain import Chain, Update
from expkit.optimizers.adam import Adam
from expkit.optimizers.adamw import AdamW
from expkit.optimizers.lbfgs import Lbfgs
from expkit.optimizers.lion import Lion
from expkit.optimizers.rmsprop import RmsProp
from expkit.optimizers.sgd import Sgd
from expkit.record.stored import load
from expkit.report.table import table
from expkit.testing import OptimizerContract

torch = pytest.importorskip("torch")


FITTING = {"fista": "lasso"}
"""The problem of an optimizer that does not fit every problem."""


class TestOptimizers(OptimizerContract):
    @pytest.fixture(autouse=True, params=options("optimizer"))
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.optimizer = request.param
        self.problem = FITTING.get(request.param, "sine")


PAIRS: list[tuple[Optimizer, Callable[..., Any]]] = [
    (Sgd(0.01), lambda p: torch.optim.SGD(p, 0.01)),
    (Sgd(0.01, momentum=0.9), lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
    (
        Sgd(0.01, momentum=0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.8, nesterov=True),
    ),
    (Adam(0.01), lambda p: torch.optim.Adam(p, 0.01)),
    (
        Adam(0.03, beta1=0.7, beta2=0.95, eps=1e-4),
        lambda p: torch.optim.Adam(p, 0.03, betas=(0.7, 0.95), eps=1e-4),
    ),
    (RmsProp(0.01), lambda p: torch.optim.RMSprop(p, 0.01)),
    (
        RmsProp(0.02, alpha=0.9, eps=1e-5),
        lambda p: torch.optim.RMSprop(p, 0.02, alpha=0.9, eps=1e-5),
    ),
    (AdamW(0.01), lambda p: torch.optim.AdamW(p, 0.01)),
    (
        AdamW(0.03, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, 0.03, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3),
    ),
    (
        Chain(Adam(0.01), Update(weight_decay=0.2), 200),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.2),
    ),
]


@pytest.mark.parametrize("pair", PAIRS, ids=[repr(ours) for ours, _ in PAIRS])
@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_equals_torch_optim(pair: tuple[Optimizer, Callable[..., Any]], xp: Any) -> None:
    """200 steps in float64 on a badly scaled quadratic with noise, to 1e-12."""
    ours, make_theirs = pair
    rng = np.random.default_rng(0)
    start, scale = rng.standard_normal(6), np.geomspace(0.01, 10, 6)
    leaf = torch.tensor(start, requires_grad=True)
    theirs = make_theirs([leaf])
    params = {"w": xp.asarray(start.copy())}
    state = ours.init(xp, params)
    for _ in range(200):
        noise = 0.1 * rng.standard_normal(6)
        leaf.grad = torch.tensor(scale * leaf.detach().numpy() + noise)
        grads = {"w": xp.asarray(scale * np.asarray(params["w"]) + noise)}
        theirs.step()
        params, state = ours.update(xp, params, grads, state)
    np.testing.assert_allclose(params["w"], leaf.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_lbfgs_equals_torch_optim(xp: Any) -> None:
    """With one evaluation a step and the same history, on a convex function; to rounding as far as
    a method that divides by differences of gradients keeps it.
    """
    ours, scale = Lbfgs(0.5, history=4), np.geomspace(0.1, 10, 6)
    start = np.random.default_rng(0).standard_normal(6)
    leaf = torch.tensor(start, requires_grad=True)
    theirs = torch.optim.LBFGS(
        [leaf], 0.5, max_iter=1, history_size=4, tolerance_grad=0, tolerance_change=0
    )

    def grad(w: Any) -> Any:
        return scale * w + w**3

    def closure() -> float:
        leaf.grad = torch.tensor(grad(leaf.detach().numpy()))
        return 0.0

    params: Params = {"w": xp.asarray(start.copy())}
    state = ours.init(xp, params)
    for step in range(25):
        grads = {"w": xp.asarray(grad(np.asarray(params["w"])))}
        theirs.step(closure)
        params, state = ours.update(xp, params, grads, state)
        tolerance = 1e-12 * 10 ** (step / 5)
        np.testing.assert_allclose(params["w"], leaf.detach(), rtol=0, atol=tolerance)


def test_lion_is_the_papers_algorithm() -> None:
    ours, rng = Lion(0.01, beta1=0.8, beta2=0.95, weight_decay=0.1), np.random.default_rng(0)
    w, m = rng.standard_normal(6), np.zeros(6)
    params: Params = {"w": w.copy()}
    state = ours.init(np, params)
    for _ in range(200):
        g = w + 0.1 * rng.standard_normal(6)
        way = np.sign(0.8 * m + 0.2 * g)
        w = w - 0.01 * (way + 0.1 * w)
        m = 0.95 * m + 0.05 * g
        params, state = ours.update(np, params, {"w": g}, state)
    np.testing.assert_allclose(params["w"], w, rtol=1e-12)


# What comes before an optimizer's own step

STEPS = 60
SCHEDULES: dict[str, tuple[Update, Callable[[Any], Any]]] = {
    "linear": (
        Update(schedule="linear", last=0.25),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.25, STEPS),
    ),
    "cosine": (
        Update(schedule="cosine", last=0.1),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.001),
    ),
    "exponential": (
        Update(schedule="exponential", factor=0.97, every=1),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.97),
    ),
    "step": (
        Update(schedule="step", factor=0.5, every=7),
        lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.5),
    ),
    "warm-up": (
        Update(warmup=10),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 9),
    ),
    "warm-up, then cosine": (
        Update(schedule="cosine", warmup=10),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 9),
                torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS - 10),
            ],
            [10],
        ),
    ),
}
OWN: dict[str, tuple[Optimizer, Callable[..., Any]]] = {
    "sgd": (Sgd(0.01, momentum=0.9), lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
    "adamw": (AdamW(0.01), lambda p: torch.optim.AdamW(p, 0.01)),
}


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_schedules_equal_those_of_torch(schedule: str, own: str, xp: Any) -> None:
    before, make_schedule = SCHEDULES[schedule]
    inner, make_theirs = OWN[own]
    ours, rng = Chain(inner, before, STEPS), np.random.default_rng(0)
    start = rng.standard_normal(6)
    leaf = torch.tensor(start, requires_grad=True)
    theirs = make_theirs([leaf])
    scheduled = make_schedule(theirs)
    params: Params = {"w": xp.asarray(start.copy())}
    state = ours.init(xp, params)
    for _ in range(STEPS):
        noise = 0.1 * rng.standard_normal(6)
        leaf.grad = torch.tensor(leaf.detach().numpy() + noise)
        grads = {"w": xp.asarray(np.asarray(params["w"]) + noise)}
        theirs.step()
        scheduled.step()
        params, state = ours.update(xp, params, grads, state)
    np.testing.assert_allclose(params["w"], leaf.detach().numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_clipping_equals_that_of_torch(xp: Any) -> None:
    """Over all parameters together; `optax.clip_by_global_norm` does not add 1e-6 to the norm."""
    ours, rng = Chain(Sgd(0.1), Update(clip_norm=0.7), 50), np.random.default_rng(0)
    leaves = [torch.tensor(rng.standard_normal(3), requires_grad=True) for _ in range(2)]
    theirs = torch.optim.SGD(leaves, 0.1)
    params: Params = {
        f"{i}": xp.asarray(leaf.detach().numpy().copy()) for i, leaf in enumerate(leaves)
    }
    state = ours.init(xp, params)
    for _ in range(50):
        drawn = [rng.standard_normal(3) * rng.choice([0.1, 3.0]) for _ in leaves]
        for leaf, g in zip(leaves, drawn, strict=True):
            leaf.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_norm_(leaves, 0.7)
        theirs.step()
        grads = {f"{i}": xp.asarray(g) for i, g in enumerate(drawn)}
        params, state = ours.update(xp, params, grads, state)
    for i, leaf in enumerate(leaves):
        np.testing.assert_allclose(params[f"{i}"], leaf.detach().numpy(), rtol=1e-12)


def test_nothing_is_put_before_an_optimizer_that_asks_for_nothing() -> None:
    assert Update().around(Sgd(0.1), 10) == Sgd(0.1)
    assert (
        compose_cell("problem=sine").workload.optimizer
        == compose_cell("problem=sine", "update.warmup=0").workload.optimizer
    )


BAD = {
    "update.warmup=500 steps=100": "update.warmup: got 500, takes an integer of at most steps (",
    "update.schedule=step update.every=500 steps=100": "update.every: got 500, takes an integer of",
    "update.schedule=step": "update.every: got None, takes an integer of at least 1 with",
    "update.schedule=wavy": "update.schedule: got 'wavy', takes constant or linear or",
    "update.clip_norm=0": "update.clip_norm: got 0.0, takes a finite number above 0, or null",
    "update.schedule=cosine steps=500 backend=torch backend.dtype=bfloat16": (
        "update.schedule: got 'cosine', takes constant without warm-up: bfloat16 counts no further"
    ),
    "update.last=2": "update.last: got 2.0, takes a number from 0 to 1",
    "problem=matmul update.warmup=1": "update: problem matmul learns nothing",
    "optimizer=fista optimizer.lr=0.1": "optimizer: fista takes a problem with a proximal map",
}


@pytest.mark.parametrize("words", BAD)
def test_what_does_not_fit_is_one_line(words: str) -> None:
    with pytest.raises(UserError) as error:
        compose_cell(*words.split())
    assert str(error.value).startswith(BAD[words])


def test_fista_comes_to_the_lassos_optimum_sooner_than_gradient_descent() -> None:
    """And sets weights to exactly 0."""
    gaps = {}
    for optimizer in ("fista", "sgd"):
        cell = compose_cell("problem=lasso", f"optimizer={optimizer}", "steps=400")
        program = cell.backend.build(cell.workload)
        program.advance(400)
        problem: Any = cell.workload.problem
        gaps[optimizer] = program.losses()[-1] - problem.optimum(first_data(cell.workload)).value
        if optimizer == "fista":
            assert (program.params()["w"] == 0).sum() >= 2
    assert -1e-12 < gaps["fista"] < 1e-10
    assert gaps["sgd"] > 100 * gaps["fista"]


# More than one evaluation in a step


@dataclass(frozen=True)
class Extragradient:
    """Goes along the gradient at the point that a first step leads to (Korpelevich, 1976)."""

    lr: float

    def init(self, xp: Any, params: Params) -> OptState:
        p = next(iter(params.values()))
        return {"evaluations": xp.zeros((), dtype=p.dtype, device=p.device)}

    def update_again(
        self,
        xp: Any,
        params: Params,
        loss: Array,
        grads: Params,
        state: OptState,
        evaluate: Evaluate,
    ) -> tuple[Params, OptState]:
        _, there = evaluate({k: p - self.lr * grads[k] for k, p in params.items()})
        moved = {k: p - self.lr * there[k] for k, p in params.items()}
        return moved, {"evaluations": state["evaluations"] + 2}


MODES = {"backend=numpy": "in place", "backend=numpy backend.fast=false": "step"}
MODES |= {"backend=torch": "step"}


@pytest.mark.parametrize("words", MODES)
def test_a_second_evaluation_is_on_the_same_batch(words: str) -> None:
    """Against a loop by hand, on minibatches; where a step can be recorded, both are."""
    cell = compose_cell("problem=logistic", "problem.batch_size=8", "steps=20", *words.split())
    workload = dataclasses.replace(cell.workload, optimizer=Extragradient(0.1))
    program = cell.backend.build(workload)
    assert program.mode == MODES[words]
    program.advance(20)
    problem, data = workload.problem, first_data(workload)
    assert isinstance(problem, HasGradient)
    params, random = first_params(workload), stream(compose_cell("backend=numpy").backend, workload)
    losses = []
    for _ in range(20):
        batch = problem.batch(np, data, random)
        loss, grads = problem.loss_and_grad(np, params, batch)
        _, there = problem.loss_and_grad(
            np, {k: p - 0.1 * grads[k] for k, p in params.items()}, batch
        )
        params = {k: p - 0.1 * there[k] for k, p in params.items()}
        losses.append(loss)
    np.testing.assert_allclose(program.losses(), losses, rtol=1e-12)
    assert cell.backend.to_numpy(program.arrays()["state.evaluations"]) == 40


def test_a_line_search_never_goes_uphill_and_counts() -> None:
    cell = compose_cell("problem=rosenbrock", "optimizer=backtracking", "steps=300")
    program = cell.backend.build(cell.workload)
    assert program.mode == "step"
    assert "value in Python" in program.mode_reason  # type: ignore[attr-defined]
    program.advance(300)
    losses = program.losses()
    assert np.all(np.diff(losses) <= 0)
    made = float(program.arrays()["state.evaluations"])
    assert 600 <= made <= 300 * 31
    fixed = cell.but(optimizer="sgd")
    plain = fixed.backend.build(fixed.workload)
    plain.advance(300)
    assert losses[-1] < plain.losses()[-1], "the same direction at a rate found in every step"


def test_evaluations_are_counted_in_the_record(tmp_path: Path) -> None:
    cell = compose_cell("problem=ridge", "optimizer=backtracking", "steps=30", "tracking=none")
    jobs = [(cell, tmp_path / "run")]
    [found] = run_together(jobs, None, tags={"timed": "no"}, timed=False)
    assert (found.outcome, found.reason) == ("ok", None)
    assert found.evaluations is not None
    assert 60 <= found.evaluations <= 30 * 31
    run = load(tmp_path / "run")
    assert run.quantities["final/evaluations"] == found.evaluations
    assert f"of {found.evaluations:,} evaluations in 30 steps" in table(run)


def test_nothing_comes_before_a_line_search() -> None:
    with pytest.raises(UserError, match=r"^update: optimizer Backtracking takes none"):
        compose_cell("problem=ridge", "optimizer=backtracking", "update.clip_norm=1")
