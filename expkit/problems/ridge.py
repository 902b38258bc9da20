"""Predict the course of diabetes from ten measurements, by ridge regression.

Hoerl and Kennard (1970), on the data of Efron, Hastie, Johnstone and Tibshirani, "Least angle
regression" (2004), as scikit-learn packages them: 442 patients, 10 columns, of which the measure
of disease progression a year later is a linear function with noise. The columns and the target are
centred, so there is no intercept, and scaled to unit variance.
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
    Optimum,
    Params,
    Random,
    Recommended,
    Target,
)
from expkit.errors import check
from expkit.problems import _packaged

ROWS, COLUMNS = 442, 10


@dataclass(frozen=True)
class Ridge:
    """The mean squared error of `x @ w` plus `l2` times the sum of squares of w.

    Attributes:
        l2: weight of the penalty.
    """

    l2: float = 0.01

    def __post_init__(self) -> None:
        check(0 <= self.l2 < math.inf, "l2", self.l2, "a finite number of at least 0")

    def check_available(self) -> None:
        _packaged.check_installed()

    def recommended(self) -> Recommended:
        # The largest curvature is 2 (4.02 + l2), from the correlation matrix of the columns.
        rate = 0.1 / (1 + self.l2)
        lr = {"sgd": rate, "momentum": rate / 5, "nesterov": rate / 5, "lbfgs": 0.5}
        lr["backtracking"] = rate
        lr |= {"adam": 0.02, "adamw": 0.02, "rmsprop": 5e-3, "lion": 2e-3}
        return Recommended(steps=1000, lr=lr, target=Target("gap", 0.01))

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"w": rng.standard_normal(COLUMNS)}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return _packaged.diabetes()

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        return data

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        w = params["w"]
        residual = batch["x"] @ w - batch["y"]
        return residual @ residual / ROWS + self.l2 * (w @ w)

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        w, x = params["w"], batch["x"]
        residual = x @ w - batch["y"]
        grad = (2 / ROWS) * (residual @ x) + (2 * self.l2) * w
        return residual @ residual / ROWS + self.l2 * (w @ w), {"w": grad}

    def cost(self) -> Cost:
        """One pass over the rows: two products of length COLUMNS for each, with w and for its
        gradient, and its share of the error; then the penalty of w and its gradient.
        """
        flops = (4 * COLUMNS + 3) * ROWS + 5 * COLUMNS
        return Cost(flops=flops, elements=ROWS * (COLUMNS + 1) + COLUMNS)

    def optimum(self, data: Mapping[str, HostArray]) -> Optimum:
        loss = self.loss(np, {"w": self._solved(data)}, data)
        return Optimum(float(loss), "the normal equations, solved")

    @property
    def axes(self) -> tuple[str, str]:
        return "column", "weight"

    def curves(self, params: Mapping[str, HostArray]) -> Curves:
        columns = np.arange(COLUMNS, dtype=np.float64)
        best = self._solved(_packaged.diabetes())
        return {"normal equations": (columns, best), "learnt": (columns, params["w"])}

    def _solved(self, data: Mapping[str, HostArray]) -> HostArray:
        x, y = data["x"], data["y"]
        curvature = x.T @ x / ROWS + self.l2 * np.eye(COLUMNS)
        return np.asarray(np.linalg.solve(curvature, x.T @ y / ROWS), np.float64)
