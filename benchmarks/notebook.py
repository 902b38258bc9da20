"""Loops in a process of their own, which expkit has not touched: once each, a timer around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks import loops


@dataclass(frozen=True)
class Side:
    """A library on a device, and the dtype that the tutorials gave it by not saying any."""

    label: str
    backend: str
    dtype: str
    device: str = "cpu"


NUMPY = Side("NumPy", "numpy", "float64")
TORCH = Side("PyTorch CPU", "torch", "float32")
CUDA = Side("PyTorch CUDA", "torch_cuda", "float32", "cuda")
SIDES = (NUMPY, TORCH, CUDA) if torch.cuda.is_available() else (NUMPY, TORCH)


@dataclass(frozen=True)
class Timing:
    """One call of a loop.

    Attributes:
        returned: seconds until it returned, which is what a timer around it shows.
        done: until the device had also done what the loop queued.
        values: what the loop returned, without its long arrays.
    """

    returned: float
    done: float
    values: Any


Timings = Mapping[Side, Timing]


class Notebook:
    """A process in which loops run one after the other, as in a notebook."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        self._pool.submit(int).result()  # started now: what expkit sets later does not reach it

    def time(self, loop: Callable[..., Any], *given: Any, device: str = "cpu") -> Timing:
        """Run it once, the timer around it."""
        return self._pool.submit(_time, loop, given, device).result()

    def each(
        self, numpy: Callable[..., Any], on_torch: Callable[..., Any], *given: Any
    ) -> dict[Side, Timing]:
        """Both libraries' loops with the same arguments, on every device there is."""
        return {NUMPY: self.time(numpy, *given)} | {
            side: self.time(on_torch, *given, side.device, device=side.device) for side in SIDES[1:]
        }

    def draws(self, steps: int, shape: Sequence[int], each: int) -> dict[Side, float]:
        """What so many steps draw and nothing else, timed once; seconds a step."""
        numpy, on_torch = loops.draws_numpy, loops.draws_torch
        found = self.each(numpy, on_torch, shape, each * steps)
        return {side: timing.done / steps for side, timing in found.items()}

    def close(self) -> None:
        self._pool.shutdown()


def _time(loop: Callable[..., Any], given: Sequence[Any], device: str) -> Timing:
    _wait(device)  # also makes the device's context, which is not the loop's to pay
    with np.errstate(all="ignore"):
        start = perf_counter()
        values = loop(*given)
        returned = perf_counter() - start
        _wait(device)
        done = perf_counter() - start
    return Timing(returned, done, _on_host(values))


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _on_host(values: Any) -> Any:
    """Numbers and short arrays, wherever they lie; None for long ones."""
    if isinstance(values, tuple | list):
        return [_on_host(value) for value in values]
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.array(values)
    return array if array.size <= 100 else None
