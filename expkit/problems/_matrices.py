"""What the operations on two square matrices share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from expkit.contracts import Array, Batch, HostArray, Random
from expkit.errors import check

MOST = 10**6
"""Most rows. Such a matrix takes 8 TB; the bytes of far larger ones overflow an index."""


@dataclass(frozen=True)
class SquarePair:
    """Standard normal a and b of shape (n, n).

    Attributes:
        n: rows and columns.
        draw: draw both anew in every step, as the second tutorial does, for most of its time.
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
        """Return both forms: drawn once as data, and drawn in every step."""
        plain = replace(self, n=50, draw=False)
        return {"": plain, "draw": replace(plain, draw=True)}

    @property
    def _elements(self) -> int:
        """The elements that must cross memory: a and b are read, the result is written. Values that
        are drawn in the step need not cross, as they can be used as soon as they are drawn.
        """
        return (1 if self.draw else 3) * self.n**2
