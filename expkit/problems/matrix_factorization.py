"""Approximate a matrix by a product of two thin ones.

The loss that recommender systems learn (Koren, Bell and Volinsky, "Matrix factorization techniques
for recommender systems", 2009), here with every entry known, so that the optimum is known too. It
is not convex, but has no bad local minima (Baldi and Hornik, 1989).
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

NOISE = 0.1
"""The standard deviation of what no product of this rank explains."""


@dataclass(frozen=True)
class MatrixFactorization:
    """The mean squared error of `u @ v.mT` against a matrix of shape (n, m), of which `rank`
    columns and some noise are made.

    Attributes:
        n, m: rows and columns of the matrix.
        rank: columns of u and of v.
    """

    n: int = 200
    m: int = 100
    rank: int = 5

    def __post_init__(self) -> None:
        for name in ("n", "m"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        takes = "an integer of at least 1 and at most n and m"
        check(1 <= self.rank <= min(self.n, self.m), "rank", self.rank, takes)

    def small(self) -> Mapping[str, MatrixFactorization]:
        return {"": MatrixFactorization(n=12, m=9, rank=2)}

    def recommended(self) -> Recommended:
        # The curvature along u is 2 / (n m) times the squares of v, of which each is about 1.
        rate = 0.2 * min(self.n, self.m)
        lr = {"sgd": rate, "momentum": rate / 10, "nesterov": rate / 10, "adam": 0.02}
        lr |= {"rmsprop": 5e-3, "adamw": 0.02, "lion": 5e-3}
        return Recommended(steps=1000, lr=lr, target=Target("gap", 0.001))

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {
            "u": 0.3 * rng.standard_normal((self.n, self.rank)),
            "v": 0.3 * rng.standard_normal((self.m, self.rank)),
        }

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        u, v = (rng.standard_normal((size, self.rank)) for size in (self.n, self.m))
        return {"a": u @ v.T + NOISE * rng.standard_normal((self.n, self.m))}

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        return data

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        error = params["u"] @ params["v"].mT - batch["a"]
        return xp.mean(error * error)

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        u, v = params["u"], params["v"]
        error = u @ v.mT - batch["a"]
        loss = xp.mean(error * error)
        slope = (2 / (self.n * self.m)) * error
        return loss, {"u": slope @ v, "v": slope.mT @ u}

    def cost(self) -> Cost:
        """An entry takes three products of length rank, and 4 operations for its error, its square
        and its slope; the matrix and both factors are read once.
        """
        entries = self.n * self.m
        elements = entries + self.rank * (self.n + self.m)
        return Cost(flops=entries * (6 * self.rank + 4), elements=elements)

    @property
    def axes(self) -> tuple[str, str]:
        return "singular value of the product", "size"

    def curves(self, params: Mapping[str, HostArray]) -> Curves:
        left, right = (np.linalg.qr(params[name]).R for name in ("u", "v"))
        sizes = np.linalg.svd(left @ right.T, compute_uv=False)
        places = np.arange(1, self.rank + 1, dtype=np.float64)
        return {"learnt": (places, np.asarray(sizes, np.float64))}

    def optimum(self, data: Mapping[str, HostArray]) -> Optimum:
        left = np.linalg.svd(data["a"], compute_uv=False)[self.rank :]
        value = float(left @ left) / (self.n * self.m)
        return Optimum(value, "the singular values that are left out (Eckart and Young, 1936)")
