"""Tell malignant from benign tumours, by logistic regression.

On the Wisconsin diagnostic data (Street, Wolberg and Mangasarian, 1993) as scikit-learn packages
them: 569 samples of 30 measurements, of which a fifth is held out. The columns are scaled to mean 0
and variance 1 over the rows that are learnt from, and a column of ones stands for the intercept.
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

ROWS, COLUMNS = 455, 31
"""The rows to learn from, and their columns with the one for the intercept."""
NEWTON_STEPS = 100


@dataclass(frozen=True)
class Logistic:
    """The mean of log(1 + exp(-y x @ w)), y being -1 or 1, plus `l2 / 2` times the squares of w.

    Attributes:
        batch_size: rows of a step, drawn without replacement; None for all.
        l2: weight of the penalty, on the intercept too, so that there is one minimum.
    """

    batch_size: int | None = None
    l2: float = 0.01

    def __post_init__(self) -> None:
        takes = f"an integer from 1 to {ROWS}, or null for all rows"
        fits = self.batch_size is None or 1 <= self.batch_size <= ROWS
        check(fits, "batch_size", self.batch_size, takes)
        check(0 < self.l2 < math.inf, "l2", self.l2, "a finite number above 0")

    def check_available(self) -> None:
        _packaged.check_installed()

    def small(self) -> Mapping[str, Logistic]:
        return {"": Logistic(), "minibatch": Logistic(batch_size=32)}

    def recommended(self) -> Recommended:
        rate = 0.2 / (1 + self.l2)
        lr = {"sgd": rate, "momentum": rate / 4, "nesterov": rate / 4}
        lr["backtracking"] = rate
        lr |= {"adam": 0.02, "adamw": 0.02, "rmsprop": 0.01, "lion": 5e-3}
        if self.batch_size is None:
            lr["lbfgs"] = 0.5
        target = Target("gap", 0.01) if self.batch_size is None else Target("accuracy", 0.95)
        return Recommended(steps=500, lr=lr, eval_every=50, target=target)

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"w": np.zeros(COLUMNS)}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        x, y, held_x, held_y = _packaged.split(*_packaged.load("breast_cancer"), rng)
        mean, scale = x.mean(axis=0), x.std(axis=0)

        def scaled(rows: HostArray) -> HostArray:
            return np.column_stack([(rows - mean) / scale, np.ones(len(rows))])

        return {
            "x": scaled(x),
            "y": 2 * y - 1,
            "held_x": scaled(held_x),
            "held_y": 2 * held_y - 1,
        }

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        x, y = data["x"], data["y"]
        if self.batch_size is None:
            return {"x": x, "y": y}
        rows = random.minibatch(ROWS, self.batch_size)
        return {"x": x[rows], "y": y[rows]}

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        w = params["w"]
        margin = batch["y"] * (batch["x"] @ w)
        return xp.mean(_softplus(xp, margin)) + (self.l2 / 2) * (w @ w)

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        w, x, y = params["w"], batch["x"], batch["y"]
        margin = y * (x @ w)
        loss = xp.mean(_softplus(xp, margin)) + (self.l2 / 2) * (w @ w)
        # 1 / (1 + exp(margin)), in a form that cannot overflow.
        pull = y * (1 - xp.tanh(margin / 2))
        grad = self.l2 * w - (0.5 / self._size) * (pull @ x)
        return loss, {"w": grad}

    @property
    def figures(self) -> Mapping[str, str]:
        return {"accuracy": "more", "held_out_loss": "less"}

    def evaluate(self, xp: Any, params: Params, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """The loss and the share of right answers on the rows that are held out."""
        margin = data["held_y"] * (data["held_x"] @ params["w"])
        right = xp.where(margin > 0, xp.ones_like(margin), xp.zeros_like(margin))
        return {"accuracy": xp.mean(right), "held_out_loss": xp.mean(_softplus(xp, margin))}

    def cost(self) -> Cost:
        """A row takes two products of length COLUMNS and some 10 operations, of which exp, log and
        tanh count as one each; then the penalty of w and its gradient.
        """
        flops = (4 * COLUMNS + 10) * self._size + 5 * COLUMNS
        return Cost(flops=flops, elements=self._size * (COLUMNS + 1) + COLUMNS)

    def optimum(self, data: Mapping[str, HostArray]) -> Optimum | None:
        """By Newton's method. With curvature of at least `l2` everywhere, a loss whose gradient has
        the norm g lies at most g^2 / (2 l2) above the lowest. A minibatch's loss has none.
        """
        if self.batch_size is not None:
            return None
        x, y = data["x"], data["y"]
        w, least = np.zeros(COLUMNS), -math.inf
        for _ in range(NEWTON_STEPS):
            loss, grads = self.loss_and_grad(np, {"w": w}, data)
            bound = float(loss - grads["w"] @ grads["w"] / (2 * self.l2))
            if bound <= least:
                break
            least = bound
            weight = 0.25 * (1 - np.tanh(y * (x @ w) / 2) ** 2)
            curvature = (x.T * weight) @ x / ROWS + self.l2 * np.eye(COLUMNS)
            w = w - np.linalg.solve(curvature, grads["w"])
        return Optimum(least, "Newton's method, and a curvature of at least l2")

    @property
    def axes(self) -> tuple[str, str]:
        return "column, the last for the constant", "weight"

    def curves(self, params: Mapping[str, HostArray]) -> Curves:
        return {"learnt": (np.arange(COLUMNS, dtype=np.float64), params["w"])}

    @property
    def _size(self) -> int:
        return self.batch_size or ROWS


def _softplus(xp: Any, margin: Array) -> Array:
    """Compute log(1 + exp(-margin)), without overflow."""
    size = abs(margin)
    return (size - margin) / 2 + xp.log1p(xp.exp(-size))
