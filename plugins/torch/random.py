"""Random values from torch's generators, the same whatever the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

BLOCK = 1 << 18
"""Values of a block: 1 or 2 MB, about what a core's second-level cache holds."""


class TorchRandom:
    """`stream=device` of the torch backends.

    On the CPU torch draws on one thread, so long arrays are drawn in blocks on `pool`: every block
    has a generator of its own, which goes on from draw to draw, and the bits do not depend on the
    number of threads. On a GPU one generator (Philox) draws all; graphs may be captured over it.
    """

    def __init__(
        self,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self._seed, self._dtype, self._device = seed, dtype, device
        self._map = map if pool is None else pool.map
        self.generators = [self._generator(0)]

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return self._drawn(torch.Tensor.normal_, shape)

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        return self._drawn(torch.Tensor.uniform_, shape)

    def _drawn(self, fill: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        array = torch.empty(shape, dtype=self._dtype, device=self._device)
        if array.is_cuda or array.numel() <= BLOCK:
            return fill(array, generator=self.generators[0])
        blocks = torch.split(array.view(-1), BLOCK)
        while len(self.generators) < len(blocks):
            self.generators.append(self._generator(len(self.generators)))

        def fill_block(block: torch.Tensor, generator: torch.Generator) -> None:
            fill(block, generator=generator)

        for _ in self._map(fill_block, blocks, self.generators):
            pass
        return array

    def rewind(self) -> None:
        """Back to the first value."""
        for index, generator in enumerate(self.generators):
            generator.manual_seed(self._block_seed(index))

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator(self._device).manual_seed(self._block_seed(index))

    def _block_seed(self, index: int) -> int:
        # The odd constant of SplitMix64 (Steele et al. 2014) spreads neighbours over 63 bits.
        return (self._seed + 1 + index * 0x9E3779B97F4A7C15) % (1 << 63)
