"""The optimizers that ship keep to the contract and equal torch.optim."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from expkit.config import options
from expkit.contracts import Optimizer
from expkit.optimizers.adam import Adam
from expkit.optimizers.rmsprop import RmsProp
from expkit.optimizers.sgd import Sgd
from expkit.testing import OptimizerContract

torch = pytest.importorskip("torch")


class TestOptimizers(OptimizerContract):
    @pytest.fixture(autouse=True, params=options("optimizer"))
    def _each(self, request: pytest.FixtureRequest) -> None:
        self.optimizer = request.param


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
