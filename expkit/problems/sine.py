"""Fit y = sin(x) with a polynomial, by gradient descent over all points.

The first example of PyTorch's tutorial "Learning PyTorch with Examples" (Justin Johnson):
degree 3, 2000 points in [-pi, pi], the sum of squared errors, 2000 steps at rate 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expkit.contracts import Array, Batch, Curves, HostArray, Params, Random, Recommended
from expkit.errors import require


@dataclass(frozen=True)
class Sine:
    """Least squares on the powers of x.

    Attributes:
        n: points.
        degree: of the polynomial.

    The powers are stored once as `basis` of shape (degree + 1, n), a row each: a step is then
    two matrix-vector products over contiguous rows.
    """

    n: int = 2000
    degree: int = 3

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "an integer of at least 1")
        require(0 <= self.degree <= 20, "degree", self.degree, "an integer from 0 to 20")

    def recommended(self) -> Recommended:
        # The largest curvature of the sum of squares grows like n * pi^2d / (2d + 1); the
        # tutorial's 1e-6 is half of what is stable at n = 2000 and d = 3. Scale it alike.
        scale = math.pi**6 / 7 * (2 * self.degree + 1) / math.pi ** (2 * self.degree)
        rate = 1e-6 * (2000 / self.n) * scale
        lr = {"sgd": rate, "momentum": rate, "adam": 1e-2, "rmsprop": 2e-3}
        return Recommended(steps=2000, lr=lr)

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"w": rng.standard_normal(self.degree + 1)}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        x = self._points()
        return {"basis": self._basis(x), "y": np.sin(x)}

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        return data

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        residual = params["w"] @ batch["basis"] - batch["y"]
        return residual @ residual

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        residual = params["w"] @ batch["basis"] - batch["y"]
        return residual @ residual, {"w": 2 * (batch["basis"] @ residual)}

    def curves(self, params: Mapping[str, HostArray]) -> Curves:
        x = self._points()
        return {"sin(x)": (x, np.sin(x)), "fit": (x, params["w"] @ self._basis(x))}

    def _points(self) -> HostArray:
        return np.linspace(-math.pi, math.pi, self.n)

    def _basis(self, x: HostArray) -> HostArray:
        return np.stack([x**k for k in range(self.degree + 1)])
