"""Predict the course of diabetes from few of ten measurements, by the lasso.

Tibshirani (1996), on the data of `ridge`, centred and scaled as there. The penalty sets weights to
exactly 0, and has a kink there: plain gradients only come near it, and a proximal map reaches it.
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
SWEEPS = 10_000
GAP = 1e-14


@dataclass(frozen=True)
class Lasso:
    """Half of the mean squared error of `x @ w`, plus `l1` times the sum of the sizes of w.

    Attributes:
        l1: weight of the penalty.
    """

    l1: float = 0.05

    def __post_init__(self) -> None:
        check(0 < self.l1 < math.inf, "l1", self.l1, "a finite number above 0")

    def check_available(self) -> None:
        _packaged.check_installed()

    def recommended(self) -> Recommended:
        # The curvature of the smooth part is at most 4.02, as in `ridge`.
        lr = {"sgd": 0.05, "momentum": 0.01, "nesterov": 0.01, "adam": 0.01, "rmsprop": 2e-3}
        lr |= {"adamw": 0.01, "lion": 2e-3, "fista": 0.2}
        return Recommended(steps=500, lr=lr, target=Target("gap", 0.001))

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"w": np.zeros(COLUMNS)}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return _packaged.diabetes()

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        return data

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        residual = batch["x"] @ params["w"] - batch["y"]
        return residual @ residual / (2 * ROWS) + self.l1 * xp.sum(abs(params["w"]))

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        w, x = params["w"], batch["x"]
        residual = x @ w - batch["y"]
        loss = residual @ residual / (2 * ROWS) + self.l1 * xp.sum(abs(w))
        return loss, {"w": residual @ x / ROWS + self.l1 * xp.sign(w)}

    def penalty_grad(self, xp: Any, params: Params) -> Params:
        return {"w": self.l1 * xp.sign(params["w"])}

    def prox(self, xp: Any, params: Params, step: Array) -> Params:
        """Move each weight towards 0 by `step` times `l1`, and no further than to it."""
        w = params["w"]
        left = abs(w) - self.l1 * step
        return {"w": xp.sign(w) * (left + abs(left)) / 2}

    def cost(self) -> Cost:
        """One pass over the rows, as in `ridge`, and the penalty with its gradient."""
        flops = (4 * COLUMNS + 3) * ROWS + 4 * COLUMNS
        return Cost(flops=flops, elements=ROWS * (COLUMNS + 1) + COLUMNS)

    def optimum(self, data: Mapping[str, HostArray]) -> Optimum:
        _, least = self._solved(data)
        return Optimum(least, "the dual, at the result of coordinate descent")

    @property
    def axes(self) -> tuple[str, str]:
        return "column", "weight"

    def curves(self, params: Mapping[str, HostArray]) -> Curves:
        columns = np.arange(COLUMNS, dtype=np.float64)
        best, _ = self._solved(_packaged.diabetes())
        return {"coordinate descent": (columns, best), "learnt": (columns, params["w"])}

    def _solved(self, data: Mapping[str, HostArray]) -> tuple[HostArray, float]:
        """The weights and a bound below every loss, by coordinate descent, until they are as close
        as float64 can tell.
        """
        x, y = data["x"], data["y"]
        w, least = np.zeros(COLUMNS), -math.inf
        size = (x * x).sum(axis=0) / ROWS
        residual = y.copy()
        for _ in range(SWEEPS):
            for j in range(COLUMNS):
                pull = float(x[:, j] @ residual) / ROWS + size[j] * w[j]
                new = math.copysign(max(abs(pull) - self.l1, 0.0), pull) / size[j]
                residual += x[:, j] * (w[j] - new)
                w[j] = new
            # Scaled into the dual's region, the residual gives a bound from below.
            slope = float(np.abs(x.T @ residual).max())
            s = min(1.0, self.l1 * ROWS / slope) if slope else 1.0
            bound = (s * float(y @ residual) - s * s * float(residual @ residual) / 2) / ROWS
            least = max(least, bound)
            if float(self.loss(np, {"w": w}, data)) - least <= GAP:
                break
        return w, least
