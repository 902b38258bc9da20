"""Add two square matrices.

The second tutorial that expkit starts from times 10 sums of 10,000 x 10,000 matrices with the
random draw of both inside the loop, and on the GPU without waiting for the result:
`+experiment=add`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from expkit.contracts import Array, Batch, Cost, Recommended
from expkit.problems._matrices import SquarePair


@dataclass(frozen=True)
class Add(SquarePair):
    """a + b. Fields: see `SquarePair`."""

    n: int = 1000

    def recommended(self) -> Recommended:
        return Recommended(steps=10, log_every=10, stream="device")

    def apply(self, xp: Any, batch: Batch) -> Array:
        return batch["a"] + batch["b"]

    def cost(self) -> Cost:
        """A sum for each of n^2 results."""
        return Cost(flops=self.n**2, elements=self._elements)
