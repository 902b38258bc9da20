"""Honest programs that look odd, and must be accepted."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter, sleep
from typing import Any

import numpy as np

from expkit.authors import RandomOfDraws, unmarked
from expkit.contracts import Array, Backend, HostArray, Mark, Random, Workload

from .kinds import ALL, LEARNING, Kind, Steps

FIXED_S = 5e-4
COMPILING_S = 0.2


class Slow(Steps):
    """Half a millisecond of fixed work in every call but `advance`."""

    def reset(self) -> None:
        _spin(FIXED_S)
        super().reset()

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        _spin(FIXED_S)
        super().load(arrays, step)

    def losses(self, start: int = 0) -> HostArray:
        _spin(FIXED_S)
        return super().losses(start)

    def params(self) -> dict[str, HostArray]:
        _spin(FIXED_S)
        return super().params()

    def finish(self) -> None:
        _spin(FIXED_S)


def _spin(seconds: float) -> None:
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


class Compiling(Steps):
    """Compiles for a fifth of a second when a number of steps is asked for the first time."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self._compiled: set[int] = set()
        super().__init__(backend, workload)

    def advance(self, n: int) -> None:
        if n not in self._compiled:
            self._compiled.add(n)
            _spin(COMPILING_S / 2)
            sleep(COMPILING_S / 2)  # a compiler of its own process
        super().advance(n)


class Fused(Steps):
    """Traces a step as one part."""

    def trace(self, n: int, mark: Mark) -> None:
        for _ in range(n):
            super().trace(1, unmarked)
            mark("step")


class SlowParams(Steps):
    """Takes longer to hand out its parameters than a step takes."""

    def params(self) -> dict[str, HostArray]:
        return {k: np.array(v.tolist()) for k, v in super().params().items()}


class LateFloat64(Steps):
    """Keeps losses as they come and makes each a number of float64 in `losses`."""

    def losses(self, start: int = 0) -> HostArray:
        fresh = np.array([float(loss) for loss in self._kept])
        self._fetched = np.concatenate([self._fetched, fresh])
        self._kept.clear()
        return self._fetched[start:].copy()


class Preallocated(Steps):
    """Writes losses into an array that was made before the first step."""

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self._written = np.zeros(workload.steps)
        super().__init__(backend, workload)

    def reset(self) -> None:
        super().reset()
        self._at = 0

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        super().load(arrays, step)
        self._at = step

    def advance(self, n: int) -> None:
        for _ in range(n):
            super().advance(1)
            self._write()

    def trace(self, n: int, mark: Mark) -> None:
        for _ in range(n):
            super().trace(1, mark)
            self._write()

    def _write(self) -> None:
        if self._kept:
            self._written[self._at] = self._kept.pop()
            self._at += 1

    def losses(self, start: int = 0) -> HostArray:
        return self._written[start : self._at].copy()


class DrawsInBlocks(Steps):
    """Draws the batches of eight steps at once, in `advance`."""

    def reset(self) -> None:
        super().reset()
        assert self._random is not None
        self._random = _Blocks(self._random)


class _Blocks(RandomOfDraws):
    def __init__(self, source: Random) -> None:
        self._source = source
        self._block: list[Array] = []

    def draw(self, kind: str, *given: Any) -> Array:
        if not self._block:
            self._block = [getattr(self._source, kind)(*given) for _ in range(8)][::-1]
        return self._block.pop()


class KeepsAll(Steps):
    """Keeps every loss until it is asked and hands out all of them anew at every reading."""

    def losses(self, start: int = 0) -> HostArray:
        every = self._backend.to_numpy(np.stack(self._kept)) if self._kept else np.empty(0)
        return np.concatenate([self._fetched, every])[start:]


TWINS = {
    "honest": Kind(Steps, ALL),
    "slow_around": Kind(Slow, ALL),
    "compiling": Kind(Compiling, LEARNING),
    "fused": Kind(Fused),
    "slow_params": Kind(SlowParams, ("large_dot", "large_dot_1m")),
    "late_float64": Kind(LateFloat64, words=("backend.dtype=float32",)),
    "preallocated": Kind(Preallocated),
    "draws_in_blocks": Kind(DrawsInBlocks, ("linear", "large_dot")),
    "keeps_all_losses": Kind(KeepsAll),
}
