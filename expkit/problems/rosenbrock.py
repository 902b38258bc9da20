"""Follow a bent valley: the extended Rosenbrock function.

Rosenbrock (1960), in the separable form for many variables of Moré, Garbow and Hillstrom, "Testing
unconstrained optimization software" (1981), problem 21, from its standard start (-1.2, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expkit.contracts import (
    Array,
    Batch,
    Cost,
    Curves,
    HostArray,
    Optimum,
    Params,
    Random,
    Recommended,
    Target,
)
from expkit.errors import check


@dataclass(frozen=True)
class Rosenbrock:
    """The mean over pairs of 100 (y - x^2)^2 + (1 - x)^2.

    Attributes:
        n: number of pairs.
    """

    n: int = 100

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", self.n, "an integer of at least 1")

    def recommended(self) -> Recommended:
        # At the start the curvature along x is about 1400, divided by n as the loss is a mean.
        rate = 5e-4 * self.n
        lr = {"sgd": rate, "momentum": rate / 10, "nesterov": rate / 10, "adam": 0.02}
        lr["backtracking"] = rate
        lr |= {"rmsprop": 5e-3, "adamw": 0.02, "lion": 2e-3, "lbfgs": 0.1}
        return Recommended(steps=2000, lr=lr, target=Target("gap", 0.1))

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"x": np.full(self.n, -1.2), "y": np.ones(self.n)}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {}

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        return {}

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        bend, rest = _parts(params)
        return (100 * (bend @ bend) + rest @ rest) / self.n

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        bend, rest = _parts(params)
        loss = (100 * (bend @ bend) + rest @ rest) / self.n
        along_y = (200 / self.n) * bend
        return loss, {"x": -2 * (params["x"] * along_y) - (2 / self.n) * rest, "y": along_y}

    def cost(self) -> Cost:
        """A pair takes 3 operations for its terms, 4 for their squares and 5 for the gradient."""
        return Cost(flops=12 * self.n + 3, elements=2 * self.n)

    @property
    def axes(self) -> tuple[str, str]:
        return "pair", "parameter"

    def curves(self, params: Mapping[str, HostArray]) -> Curves:
        pairs = np.arange(self.n, dtype=np.float64)
        lines = {"optimum": np.ones(self.n), "x": params["x"], "y": params["y"]}
        return {name: (pairs, line) for name, line in lines.items()}

    def optimum(self, data: Mapping[str, HostArray]) -> Optimum:
        return Optimum(0.0, "it is 0 at x = y = 1, and never negative")


def _parts(params: Params) -> tuple[Array, Array]:
    x = params["x"]
    return params["y"] - x * x, 1 - x
