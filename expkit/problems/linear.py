"""Learn y = 3x - 2 from a fresh batch every step.

The loop of the second tutorial that expkit starts from ("Pytorch Basics and Speed Comparisons with
Numpy and GPU", 2020): the sum of squared errors over batches of 20, slope and intercept from 1, 10
steps at rate 0.01. These learn the line: the tutorial prints 2.96 and -1.96 after the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expkit.contracts import Array, Batch, Cost, HostArray, Params, Random, Recommended
from expkit.errors import check

SLOPE, INTERCEPT = 3.0, -2.0


@dataclass(frozen=True)
class Linear:
    """The sum of squared errors of `slope * x + intercept` over x, standard normal.

    Attributes:
        batch_size: number of points in a step.
    """

    batch_size: int = 20

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "batch_size", self.batch_size, "an integer of at least 1")

    def recommended(self) -> Recommended:
        # A sum's curvature grows with its length; Adam and RMSprop do not depend on its scale.
        scale = 20 / self.batch_size
        lr = {"sgd": 0.01 * scale, "momentum": 8e-4 * scale, "nesterov": 8e-4 * scale}
        lr |= {"adam": 0.3, "rmsprop": 0.15, "adamw": 0.3, "lion": 0.1}
        return Recommended(steps=10, lr=lr)

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"slope": np.ones(()), "intercept": np.ones(())}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {}

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        x = random.normal((self.batch_size,))
        return {"x": x, "y": SLOPE * x + INTERCEPT}

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        error = params["slope"] * batch["x"] + params["intercept"] - batch["y"]
        return error @ error

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        error = params["slope"] * batch["x"] + params["intercept"] - batch["y"]
        grads = {"slope": 2 * (error @ batch["x"]), "intercept": 2 * xp.sum(error)}
        return error @ error, grads

    def cost(self) -> Cost:
        """A point takes 2 operations for y, 3 for its error, 2 for each of the two products and
        1 for the sum; 2 more double the gradients. Only the parameters come from memory, because
        each point is used as soon as it is drawn.
        """
        return Cost(flops=10 * self.batch_size + 2, elements=2)
