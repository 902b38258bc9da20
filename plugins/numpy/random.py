"""Normal values in blocks on threads, the same whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 18
"""Values of a block: 1 or 2 MB, about what a core's second-level cache holds."""


class BlockRandom:
    """`stream=device` of the NumPy backend.

    Every block of an array has a generator of its own, which goes on from draw to draw, so the
    bits depend on seed, shapes and order alone. SFC64 is NumPy's fastest bit generator; the
    normals are its ziggurat (Marsaglia and Tsang, 2000).
    """

    def __init__(self, seed: int, dtype: np.dtype[Any], pool: ThreadPoolExecutor | None) -> None:
        self._seed, self._dtype = seed, dtype
        self._map = map if pool is None else pool.map
        self._generators: list[np.random.Generator] = []

    def normal(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        out = np.empty(shape, self._dtype)
        self.fill(out)
        return out

    def fill(self, out: npt.NDArray[Any]) -> None:
        """Overwrite a contiguous array with the next values."""
        flat = out.reshape(-1)
        if flat.size <= BLOCK:
            self._fill_block(0, flat)
            return
        blocks = list(self._blocks(flat))
        self._generator(len(blocks) - 1)  # make them here: threads only draw
        for _ in self._map(self._fill_block, *zip(*blocks, strict=True)):
            pass

    def rewind(self) -> None:
        """Back to the first value."""
        self._generators.clear()

    def _blocks(self, flat: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        for index, start in enumerate(range(0, flat.size, BLOCK)):
            yield index, flat[start : start + BLOCK]

    def _fill_block(self, index: int, block: npt.NDArray[Any]) -> None:
        self._generator(index).standard_normal(out=block, dtype=self._dtype)

    def _generator(self, index: int) -> np.random.Generator:
        while len(self._generators) <= index:
            key = (3, len(self._generators))
            sequence = np.random.SeedSequence(self._seed, spawn_key=key)
            self._generators.append(np.random.Generator(np.random.SFC64(sequence)))
        return self._generators[index]
