"""Fit y = sin(x) with a polynomial, by gradient descent over all points.

The first tutorial that expkit starts from, NumPy's part of "PyTorch vs NumPy" (Kaggle): degree 3,
2000 points in [-pi, pi], the sum of squared errors, 2000 steps at rate 1e-6.
"""

from __future__ import annotations

import math
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
    Params,
    Random,
    Recommended,
)
from expkit.errors import check


@dataclass(frozen=True)
class Sine:
    """Least squares on the powers of x.

    Attributes:
        n: number of points.
        degree: degree of the polynomial.

    The powers are stored once as `basis` of shape (degree + 1, n), a row each: a step is then
    two matrix-vector products over contiguous rows.
    """

    n: int = 2000
    degree: int = 3

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", self.n, "an integer of at least 1")
        check(0 <= self.degree <= 20, "degree", self.degree, "an integer from 0 to 20")

    def recommended(self) -> Recommended:
        # The curvature is at most twice the sum of the basis' squares; the tutorial's 1e-6 is well
        # below its inverse at n = 2000 and degree 3. Other sizes scale it accordingly.
        rate = 1e-6 * _sum_of_squares(2000, 3) / _sum_of_squares(self.n, self.degree)
        lr = {"sgd": rate, "momentum": rate, "nesterov": rate, "adam": 1e-2, "rmsprop": 2e-3}
        lr |= {"adamw": 1e-2, "lion": 2e-3, "lbfgs": 0.1}
        return Recommended(steps=2000, lr=lr)

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"w": rng.standard_normal(self.degree + 1)}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        x = _points(self.n)
        return {"basis": _basis(x, self.degree), "y": np.sin(x)}

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        return data

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        residual = params["w"] @ batch["basis"] - batch["y"]
        return residual @ residual

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        residual = params["w"] @ batch["basis"] - batch["y"]
        return residual @ residual, {"w": 2 * (batch["basis"] @ residual)}

    def cost(self) -> Cost:
        """One pass over the points: the powers, y and w are read once, nothing long is written.

        A point takes two products of length degree + 1, for the fit and for the gradient, one
        subtraction and its share of the loss; the gradient is doubled at the end.
        """
        rows = self.degree + 1
        return Cost(flops=(4 * rows + 3) * self.n + rows, elements=(rows + 1) * self.n + rows)

    def curves(self, params: Mapping[str, HostArray]) -> Curves:
        x = _points(self.n)
        return {"sin(x)": (x, np.sin(x)), "fit": (x, params["w"] @ _basis(x, self.degree))}


def _points(n: int) -> HostArray:
    return np.linspace(-math.pi, math.pi, n)


def _basis(x: HostArray, degree: int) -> HostArray:
    return np.stack([x**k for k in range(degree + 1)])


def _sum_of_squares(n: int, degree: int) -> float:
    return float((_basis(_points(n), degree) ** 2).sum())
