"""What the operations on two square matrices share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from expkit.contracts import Array, Batch, HostArray, Random
from expkit.errors import check

MOST = 10**6
"""Rows of a matrix of 8 TB; a few more times as many and the bytes are no index any more."""


@dataclass(frozen=True)
class SquarePair:
    """Standard normal a and b of shape (n, n).

    Attributes:
        n: rows and columns.
        draw: draw both afresh every step, as the second tutorial does. Most of its time is that.
    """

    n: int = 100
    draw: bool = False

    def __post_init__(self) -> None:
        takes = f"an integer of at least 1 and at most {MOST}"
        check(1 <= self.n <= MOST, "n", self.n, takes)

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        names = () if self.draw else ("a", "b")
        return {name: rng.standard_normal((self.n, self.n)) for name in names}

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        if not self.draw:
            return data
        return {name: random.normal((self.n, self.n)) for name in ("a", "b")}

    def small(self) -> Mapping[str, Self]:
        """With the draw as data, and in every step."""
        plain = replace(self, n=50, draw=False)
        return {"": plain, "draw": replace(plain, draw=True)}

    @property
    def _elements(self) -> int:
        """What must cross memory: a and b are read, the result is written. What is drawn need not
        cross, as it can be used while it is drawn.
        """
        return (1 if self.draw else 3) * self.n**2
