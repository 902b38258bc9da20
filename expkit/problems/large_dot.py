"""Learn a long weight vector and an intercept from one fresh random vector a step.

The large problem of the second tutorial that expkit starts from ("Pytorch Basics and Speed
Comparisons with Numpy and GPU", 2020): n = 10,000,000 weights, uniform in [0, 1) at first, the
targets 3 for each of them and -2 for the intercept, 200 steps at rate 0.001. There it diverges: a
step multiplies the error along x by 1 - 2 lr (|x|^2 + 1), about -2e4, of which a part is along the
next x: the loss grows about fortyfold per step and overflows float32 after some 25 steps.

At lr = 0.5 / n a step removes the error along x (the Kaczmarz step, 1937), so the expected squared
distance shrinks by 1 - 1/n a step: visible at n = 100 (`+experiment=large_dot_small`), not at ten
million.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expkit.contracts import Array, Batch, Cost, HostArray, Params, Random, Recommended
from expkit.errors import check


@dataclass(frozen=True)
class LargeDot:
    """Squared error of `w @ x + b` against `3 * ones @ x - 2`, x standard normal of shape (n,).

    The ones are made anew in every step, as in the tutorial, unless a backend keeps constants.

    Attributes:
        n: length of the weight vector.
    """

    n: int = 1_000_000

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", self.n, "an integer of at least 1")

    def recommended(self) -> Recommended:
        sign = 0.5 / self.n**0.5  # for methods that normalize the gradient's size
        lr = {"sgd": 0.5 / self.n, "momentum": 0.05 / self.n, "nesterov": 0.05 / self.n}
        lr |= {"adam": sign, "rmsprop": sign / 2, "adamw": sign, "lion": sign / 10}
        return Recommended(steps=200, log_every=10, stream="device", lr=lr)

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"w": rng.random(self.n), "b": np.ones(())}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {}

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        x = random.normal((self.n,))
        return {"x": x, "y": (3 * xp.ones_like(x)) @ x - 2}

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        error = params["w"] @ batch["x"] + params["b"] - batch["y"]
        return error * error

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        error = params["w"] @ batch["x"] + params["b"] - batch["y"]
        slope = 2 * error
        return error * error, {"w": slope * batch["x"], "b": slope}

    def cost(self) -> Cost:
        """Two passes, as no gradient is known before both products are done. The first reads w, and
        writes x as it draws it; the second reads x again. The product with the threes is three
        times a sum, so it reads nothing. One sum, one product and one scaling of length n, and 6
        operations on single numbers.
        """
        return Cost(flops=4 * self.n + 6, elements=3 * self.n + 1)
