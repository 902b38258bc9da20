"""NumPy with gradients by hand."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import threadpoolctl

from expkit.authors import StepProgram, manual, require_gradient
from expkit.contracts import Array, HostArray, Program, Workload
from expkit.errors import check

from .capture import CaptureError
from .program import CapturedProgram
from .random import BlockRandom


@dataclass(frozen=True)
class NumpyBackend:
    """Attributes:
    dtype: float32 or float64.
    threads: for BLAS, random draws and long elementwise calls; None for every core.
    fast: record a step once and replay it in place, where the problem allows it.
    """

    dtype: str = "float64"
    threads: int | None = None
    fast: bool = True

    def __post_init__(self) -> None:
        takes = "float32 or float64"
        check(self.dtype in ("float32", "float64"), "dtype", self.dtype, takes)
        takes = "an integer of at least 1 and at most 1024, or null for every core"
        check(self.threads is None or 1 <= self.threads <= 1024, "threads", self.threads, takes)

    @property
    def xp(self) -> Any:
        return np

    def check_available(self) -> None:
        """NumPy is always there."""

    def check_workload(self, workload: Workload) -> None:
        require_gradient(workload.problem, "numpy")

    def configure(self) -> None:
        threadpoolctl.threadpool_limits(self.thread_count, user_api="blas")

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        return np.array(host, dtype=self.dtype)

    def to_numpy(self, array: Array) -> HostArray:
        return np.array(array, dtype=np.float64)

    def random(self, seed: int) -> BlockRandom:
        return BlockRandom(seed, np.dtype(self.dtype), self.pool)

    def synchronize(self, program: Program | None = None) -> None:
        """NumPy's calls return when they are done."""

    def build(self, workload: Workload) -> Program:
        self.check_workload(workload)
        reason = ""
        if self.fast:
            try:
                return CapturedProgram(self, workload)
            except CaptureError as error:
                reason = f"the step cannot be recorded: {error}"
        return StepProgram(self, workload, manual(np), reason)

    def describe(self) -> dict[str, str | int | float]:
        blas = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
        name = ", ".join(f"{lib['internal_api']} {lib['version']}" for lib in blas)
        threads = max((lib["num_threads"] for lib in blas), default=1)
        about = {"device": "cpu", "dtype": self.dtype, "threads": threads, "blas": name}
        return about | {"numpy": np.__version__}

    @property
    def thread_count(self) -> int:
        """`threads`, or every core this process may use."""
        return self.threads or len(os.sched_getaffinity(0))

    @cached_property
    def pool(self) -> ThreadPoolExecutor | None:
        """The threads for draws and for elementwise calls on long arrays.

        None where there is one thread: the calling thread then does the work itself, as a helper
        would compete with it for a core.
        """
        if self.thread_count == 1:
            return None
        return ThreadPoolExecutor(self.thread_count, thread_name_prefix="expkit")
