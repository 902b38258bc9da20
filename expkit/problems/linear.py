"""Learn y = 3x - 2 from a fresh batch every step.

The small learning task of the second tutorial that expkit starts from (NumPy, PyTorch and a GPU
side by side): batches of 20, 10 steps at rate 0.01. Ten steps do not learn the line, so the
recommendation is 1000; `+experiment=linear_numpy` keeps the ten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expkit.contracts import Array, Batch, HostArray, Params, Random, Recommended, Work
from expkit.errors import require

SLOPE, INTERCEPT = 3.0, -2.0


@dataclass(frozen=True)
class Linear:
    """Mean squared error of `slope * x + intercept` with x standard normal.

    Attributes:
        batch_size: points of a step.
    """

    batch_size: int = 20

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "an integer of at least 1")

    def recommended(self) -> Recommended:
        lr = {"sgd": 1e-2, "momentum": 5e-3, "adam": 5e-2, "rmsprop": 1e-2}
        return Recommended(steps=1000, lr=lr)

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        slope, intercept = rng.standard_normal(2)
        return {"slope": np.asarray(slope), "intercept": np.asarray(intercept)}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {}

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        x = random.normal((self.batch_size,))
        return {"x": x, "y": SLOPE * x + INTERCEPT}

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        error = params["slope"] * batch["x"] + params["intercept"] - batch["y"]
        return error @ error / self.batch_size

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        error = params["slope"] * batch["x"] + params["intercept"] - batch["y"]
        scale = 2 / self.batch_size
        grads = {"slope": scale * (error @ batch["x"]), "intercept": scale * xp.sum(error)}
        return error @ error / self.batch_size, grads

    def work(self) -> Work:
        """A point takes 2 operations for y, 3 for its error, 2 for each of the two products and
        1 for the sum; 3 more scale the results. Only the parameters come from memory: one pass
        draws a point and is done with it.
        """
        return Work(flops=10 * self.batch_size + 3, elements=2)
