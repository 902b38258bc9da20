"""Multiply two square matrices.

The second tutorial that expkit starts from times 100 products of 100 x 100 matrices with the
random draw of both inside the loop: `+experiment=matmul`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from expkit.contracts import Array, Batch, Cost, Recommended
from expkit.problems._matrices import SquarePair


@dataclass(frozen=True)
class Matmul(SquarePair):
    """a @ b. Fields: see `SquarePair`."""

    def recommended(self) -> Recommended:
        return Recommended(steps=100, stream="device")

    def apply(self, xp: Any, batch: Batch) -> Array:
        return batch["a"] @ batch["b"]

    def cost(self) -> Cost:
        """A product and a sum for each of n terms of n^2 results."""
        return Cost(flops=2 * self.n**3, elements=self._elements)
