"""Random values in blocks on threads, the same whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
        self.fill_normal(out)
        return out

    def uniform(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        out = np.empty(shape, self._dtype)
        self.fill_uniform(out)
        return out

    def fill_normal(self, out: npt.NDArray[Any]) -> None:
        """Overwrite a contiguous array with the next values."""
        self._fill("standard_normal", out)

    def fill_uniform(self, out: npt.NDArray[Any]) -> None:
        """As `fill_normal`, with uniform values."""
        self._fill("random", out)

    def _fill(self, method: str, out: npt.NDArray[Any]) -> None:
        flat = out.reshape(-1)
        if flat.size <= BLOCK:
            self._fill_block(method, 0, flat)
            return
        blocks = list(self._blocks(flat))
        self._generator(len(blocks) - 1)  # make them here: threads only draw
        for _ in self._map(partial(self._fill_block, method), *zip(*blocks, strict=True)):
            pass

    def rewind(self) -> None:
        """Back to the first value."""
        self._generators.clear()

    def _blocks(self, flat: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        for index, start in enumerate(range(0, flat.size, BLOCK)):
            yield index, flat[start : start + BLOCK]

    def _fill_block(self, method: str, index: int, block: npt.NDArray[Any]) -> None:
        getattr(self._generator(index), method)(out=block, dtype=self._dtype)

    def _generator(self, index: int) -> np.random.Generator:
        while len(self._generators) <= index:
            key = (3, len(self._generators))
            sequence = np.random.SeedSequence(self._seed, spawn_key=key)
            self._generators.append(np.random.Generator(np.random.SFC64(sequence)))
        return self._generators[index]
