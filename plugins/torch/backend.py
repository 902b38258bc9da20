"""PyTorch with autograd, on the CPU or on a CUDA device."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from expkit.authors import random_start
from expkit.contracts import Array, HostArray, Program, Workload
from expkit.errors import Unavailable, check

if TYPE_CHECKING:
    import torch

    from .random import TorchRandom

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""PyTorch's own switch: ask the kernel for 2 MB pages under arrays of 2 MB and more (Linux)."""
DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TorchBackend:
    """Attributes:
    device: `cpu`, `cuda`, or `cuda:1` and so on.
    dtype: float64, float32, float16 or bfloat16.
    threads: for the CPU's operators and the random draw; None for every core.
    fast: on CUDA, replay a CUDA graph; without effect on the CPU.
    """

    device: str = "cpu"
    dtype: str = "float64"
    threads: int | None = None
    fast: bool = True

    def __post_init__(self) -> None:
        known = re.fullmatch(r"cpu|cuda(:\d+)?", self.device) is not None
        check(known, "device", self.device, "cpu, cuda, or cuda:1 and so on")
        check(self.dtype in DTYPES, "dtype", self.dtype, ", ".join(DTYPES))
        takes = "an integer of at least 1 and at most 1024, or null for every core"
        check(self.threads is None or 1 <= self.threads <= 1024, "threads", self.threads, takes)

    @property
    def xp(self) -> Any:
        if "torch" not in sys.modules:
            # PyTorch reads it once per process. A step allocates its long temporaries anew, and
            # touching them in small pages often takes longer than the step's arithmetic.
            os.environ.setdefault(HUGE_PAGES, "1")
        import torch

        return torch

    def check_available(self) -> None:
        if find_spec("torch") is None:
            raise Unavailable("PyTorch is not installed", "pip install 'expkit[torch]'")
        if self.device == "cpu":
            return
        torch = self.xp
        if not torch.cuda.is_available():
            raise Unavailable(
                f"device {self.device}: PyTorch {version('torch')} finds no CUDA device here",
                "use backend=torch, or a CUDA build of PyTorch on a machine with an NVIDIA GPU",
            )
        if (torch.device(self.device).index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise Unavailable(
                f"device {self.device}: this machine has {count}", "choose a lower number"
            )

    def configure(self) -> None:
        self.xp.set_num_threads(self._threads)

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        # Never a view: the host's array may be written later.
        return self._from_numpy(host).to(self._device, self._dtype, copy=True)

    def placed(self, host: npt.NDArray[Any]) -> Array:
        """Return a copy at a random place in a longer array, which begins at a cache line."""
        size = self._dtype.itemsize
        start, reach = (place // size for place in random_start(host.size * size))
        whole = self.xp.empty(host.size + reach, dtype=self._dtype, device=self._device)
        array = whole[start : start + host.size].view(host.shape)
        return array.copy_(self._from_numpy(host))

    def indices(self, host: npt.NDArray[np.int64]) -> Array:
        return self._from_numpy(host).to(self._device, copy=True)

    def to_numpy(self, array: Array) -> HostArray:
        host: HostArray = array.detach().to("cpu", self.xp.float64).numpy().copy()
        return host

    def random(self, seed: int) -> TorchRandom:
        from .random import TorchRandom

        return TorchRandom(seed, self._dtype, self._device, self._pool)

    def synchronize(self, program: Program | None = None) -> None:
        if self.device != "cpu":
            self.xp.cuda.synchronize(self._device)

    def build(self, workload: Workload) -> Program:
        from .program import build

        return build(self, workload)

    def describe(self) -> dict[str, str | int | float]:
        torch = self.xp
        about: dict[str, str | int | float] = {
            "device": self.device,
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "matmul_precision": self._matmul_precision(),
            "torch": torch.__version__,
            "huge_pages": os.environ.get(HUGE_PAGES, "0"),
        }
        if self.device != "cpu":
            gpu = torch.cuda.get_device_properties(self._device)
            about |= {
                "device": gpu.name,
                "capability": f"{gpu.major}.{gpu.minor}",
                "gpu_uuid": f"GPU-{gpu.uuid}",  # as nvidia-smi writes it
                "cuda": str(torch.version.cuda),
                "tf32": self._tf32(),
                "gpu_bytes": gpu.total_memory,
            }
        return about

    def _matmul_precision(self) -> str:
        """Return PyTorch's setting; if its old and new interfaces were mixed, use the new one."""
        try:
            return str(self.xp.get_float32_matmul_precision())
        except RuntimeError:
            backends = self.xp.backends
            where = backends.mkldnn if self.device == "cpu" else backends.cuda
            return f"fp32_precision={where.matmul.fp32_precision}"

    def _tf32(self) -> int:
        """Whether products in float32 may be rounded to TF32."""
        matmul = self.xp.backends.cuda.matmul
        try:
            return int(matmul.allow_tf32)
        except RuntimeError:  # both interfaces were used, and the new one counts
            return int(matmul.fp32_precision == "tf32")

    @cached_property
    def _from_numpy(self) -> Callable[[npt.NDArray[Any]], torch.Tensor]:
        return self.xp.from_numpy  # type: ignore[no-any-return]

    @cached_property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(self.xp, self.dtype)
        return dtype

    @cached_property
    def _device(self) -> torch.device:
        device: torch.device = self.xp.device(self.device)
        return device

    @property
    def _threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor | None:
        """The threads that draw; None where there is one: the calling thread then draws."""
        if self._threads == 1:
            return None
        return ThreadPoolExecutor(self._threads, thread_name_prefix="expkit-draw")
