"""What the machine can do at best, and the least time that it leaves a step: the roofline.

A step takes at least as long as its bytes take to move and as its operations take to do (Williams,
Waterman and Patterson, Roofline, 2009). Both rates are measured, not looked up: the best of several
readings, since a limit is a best case. Bandwidth depends on how much memory is gone over, so it is
measured for a ladder of sizes, from the first-level caches up.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time, time
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import threadpoolctl

from expkit import cache
from expkit.contracts import Array, Backend, Work
from expkit.measure.environment import cpu_model

METHOD = 1
"""Counted up when the measurement changes, so that older figures are measured again."""
READING_S = 2e-3
"""A reading lasts at least this long: starting threads takes some 50 microseconds."""
LADDER_S = 0.25
"""The whole ladder is walked again and again for this long: what disturbs one walk may leave the
next alone.
"""
ROW = 2048
"""Elements of an inner product: 32 kB for the two rows, within a first-level cache."""
FIRST_RUNG = 2 * ROW * 8
"""Bytes a thread."""
LAST_RUNG = 1 << 27
"""Bytes on all threads together. Where a last-level cache is larger its rate stands for the
memory's: the limit is then too high, so a share too low, never too high.
"""
DEVICE_RUNGS = 1 << 20, 1 << 28
"""Bytes of the first and the last rung on a device of its own."""
PRODUCT_SIZES = tuple(2**k for k in range(8, 14))
PRODUCT_S = 4e-3
"""A matrix product that takes this long is large enough."""
HOST_PRODUCT = 512
"""Rows and columns of the product of one thread."""
PRODUCT_READINGS_S = 0.05
"""How long readings of one size go on."""
RETRY_S = 600.0
"""How long figures of a busy machine stand before they are measured again."""
OWN_CORES = 0.75
"""Processor time over the wall's, a thread, from which every thread had a core of its own."""


Bandwidth: TypeAlias = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Limits:
    """What a device can do at best in one dtype.

    Attributes:
        bandwidth: working set in bytes, smallest first, with the bytes/s read and written over it.
        flops_per_second: of a matrix product.
        itemsize: bytes of an element.
        settled: whether every thread had a core of its own. Where not, a limit may be far too low:
            show no share of it. It is measured again after RETRY_S, and the best is kept.
    """

    bandwidth: Bandwidth
    flops_per_second: float
    itemsize: int
    settled: bool

    def bytes_per_second(self, working_set: float) -> float:
        """The bandwidth over a working set in bytes: the rate of the next smaller rung.

        A larger set is never faster. Where it measured so, the smaller one's reading was disturbed
        or, on a device, all launching.
        """
        sizes = [size for size, _ in self.bandwidth]
        first = max(bisect_right(sizes, working_set) - 1, 0)
        return max(rate for _, rate in self.bandwidth[first:])

    def joined(self, other: Limits) -> Limits:
        """The better of two measurements in each figure."""
        rates = dict(other.bandwidth)
        return Limits(
            bandwidth=tuple((size, max(rate, rates.get(size, 0))) for size, rate in self.bandwidth),
            flops_per_second=max(self.flops_per_second, other.flops_per_second),
            itemsize=self.itemsize,
            settled=self.settled or other.settled,
        )


@dataclass(frozen=True)
class StepLimit:
    """The least time that a machine leaves a step.

    Attributes:
        seconds: of one step.
        binds: `memory` or `arithmetic`, whichever takes longer.
    """

    seconds: float
    binds: str

    def share(self, step_seconds: float) -> float:
        """How much of the limit a step's time reaches: 1 at the limit.

        Above 1 the step left work out, or the limit is wrong.
        """
        return self.seconds / step_seconds


def step_limit(limits: Limits, work: Work, optimizer_elements: float = 0) -> StepLimit:
    """The larger of the times for a step's memory traffic and for its arithmetic.

    The optimizer's arithmetic is left out: next to its traffic it is never the larger.

    Args:
        optimizer_elements: what the optimizer moves on top of `work`, see `optimizer_elements`.

    >>> limits = Limits(((1000, 8e9),), flops_per_second=1e9, itemsize=8, settled=True)
    >>> step_limit(limits, Work(flops=10, elements=100))
    StepLimit(seconds=1e-07, binds='memory')
    """
    moved = (work.elements + optimizer_elements) * limits.itemsize
    # An element counts twice where it is read and written, so the set may be half of the traffic.
    memory = moved / limits.bytes_per_second(moved / 2)
    arithmetic = work.flops / limits.flops_per_second
    return max(StepLimit(memory, "memory"), StepLimit(arithmetic, "arithmetic"), key=_seconds)


def optimizer_elements(arrays: Mapping[str, Array]) -> int:
    """What an optimizer moves: parameters and state, each read and written once.

    Args:
        arrays: a program's, as `Program.arrays` names them.
    """
    own = (a for name, a in arrays.items() if name.startswith(("params.", "slots.")))
    return 2 * sum(int(math.prod(a.shape)) for a in own)


def machine_limits(backend: Backend) -> Limits:
    """The limits of a backend's device in its dtype and threads, from the user's cache.

    Measured where the cache has none, which takes about half a second, so never on the clock. The
    backend must be configured. The cache is `expkit/limits.json` under XDG_CACHE_HOME or
    `~/.cache`; one that is damaged or cannot be written only costs the measurement.
    """
    key = ", ".join(f"{name} {value}" for name, value in _conditions(backend).items())
    folder = cache.folder()
    with _held(folder):
        kept = _read(folder)
        known = _parsed(kept.get(key))
        if known is not None and (known.settled or _is_recent(kept[key])):
            return known
        found = _measured(backend)
        if known is not None:
            found = found.joined(known)
        _write(folder, kept | {key: {"at": time(), **asdict(found)}})
    return found


def _seconds(limit: StepLimit) -> float:
    return limit.seconds


def _conditions(backend: Backend) -> dict[str, Any]:
    """All that the limits depend on."""
    machine = {"method": METHOD, "cpu": cpu_model(), "cores": os.cpu_count()}
    return machine | {"numpy": np.__version__} | backend.describe()


# The cache.


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One process at a time: two that measure at once would each see half a machine."""
    descriptor = None
    with suppress(OSError):  # then nothing can be kept either
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _read(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        kept = json.loads((folder / "limits.json").read_text())
        if isinstance(kept, dict):
            return kept
    return {}


def _is_recent(entry: Mapping[str, Any]) -> bool:
    return 0 <= time() - float(entry.get("at", 0)) < RETRY_S


def _parsed(entry: Any) -> Limits | None:
    """The limits in a cache's entry; None for no entry or a damaged one."""
    with suppress(KeyError, TypeError, ValueError):
        limits = Limits(
            bandwidth=tuple((int(size), float(rate)) for size, rate in entry["bandwidth"]),
            flops_per_second=float(entry["flops_per_second"]),
            itemsize=int(entry["itemsize"]),
            settled=bool(entry["settled"]),
        )
        rates = [limits.flops_per_second, *(rate for _, rate in limits.bandwidth)]
        if limits.bandwidth and all(0 < rate < math.inf for rate in rates):
            return limits
    return None


def _write(folder: Path, kept: Mapping[str, Any]) -> None:
    """All or nothing: whoever reads meanwhile sees the file before or after."""
    fresh = folder / f"limits.{os.getpid()}"
    with suppress(OSError):
        fresh.write_text(json.dumps(kept, indent=1) + "\n")
        fresh.replace(folder / "limits.json")


# The measurement.


def _measured(backend: Backend) -> Limits:
    about = backend.describe()
    itemsize = int(backend.xp.finfo(backend.asarray(np.zeros(1)).dtype).bits) // 8
    flops = _product_rate(backend.random(0).normal, backend.synchronize)
    if about["device"] != "cpu":
        return Limits(_device_bandwidth(backend, itemsize), flops, itemsize, settled=True)
    threads = int(about["threads"])
    flops = max(flops, _host_product_rate(threads, "float64" if itemsize == 8 else "float32"))
    bandwidth, settled = _host_bandwidth(threads)
    return Limits(bandwidth, flops, itemsize, settled)


def _pass_seconds(passes: Callable[[int], object], synchronize: Callable[[], None]) -> float:
    """Seconds of one pass in a reading of at least READING_S."""
    n = 1
    while True:
        synchronize()
        start = perf_counter()
        passes(n)
        synchronize()
        seconds = perf_counter() - start
        if seconds >= READING_S:
            return seconds / n
        n *= 2


def _product_rate(
    normal: Callable[[tuple[int, ...]], Array], synchronize: Callable[[], None]
) -> float:
    """Operations/s of a matrix product, over growing sizes until one takes PRODUCT_S."""
    best = 0.0
    for n in PRODUCT_SIZES:
        seconds = _product_seconds(normal((n, n)), normal((n, n)), synchronize)
        best = max(best, 2 * n**3 / seconds)
        if seconds >= PRODUCT_S:
            break
    return best


def _product_seconds(a: Array, b: Array, synchronize: Callable[[], None]) -> float:
    def products(passes: int) -> None:
        for _ in range(passes):
            a @ b

    products(1)  # a library sets itself up in its first call
    return _best_seconds(products, synchronize)


def _best_seconds(passes: Callable[[int], object], synchronize: Callable[[], None]) -> float:
    """The best of readings of one pass, over PRODUCT_READINGS_S."""
    best, end = math.inf, perf_counter() + PRODUCT_READINGS_S
    while perf_counter() < end:
        best = min(best, _pass_seconds(passes, synchronize))
    return best


def _host_product_rate(threads: int, dtype: str) -> float:
    """Operations/s of NumPy's matrix products, one on each thread, so that no thread waits for
    another: a busy neighbour then costs a share and not nearly all.

    Next to the backend's own this also bounds halves, which a library without instructions for
    them may multiply slowly: float32 can hold them all.
    """
    a = np.ones((HOST_PRODUCT, HOST_PRODUCT), dtype)

    def repeated(passes: int) -> None:
        for _ in range(passes):
            a @ a

    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads) as pool,
    ):

        def passes(n: int) -> None:
            list(pool.map(repeated, [n] * threads))

        seconds = _best_seconds(passes, _at_once)
    return threads * 2 * HOST_PRODUCT**3 / seconds


def _at_once() -> None:
    """NumPy's calls return when they are done."""


def _host_bandwidth(threads: int) -> tuple[Bandwidth, bool]:
    """Bytes/s by size on all threads, each going over a part of its own, and whether every thread
    had a core.

    Two kinds of pass, and the faster counts: reading, which is fastest in the nearest caches, and
    updating in place, which is fastest further out, where data go both ways at once.
    """
    sizes = _ladder(FIRST_RUNG, LAST_RUNG // threads)
    with ThreadPoolExecutor(threads) as pool:
        # Ones: untouched zeros would all be the same page.
        parts = list(pool.map(np.ones, [sizes[-1] // 8] * threads))

        def rate(size: int) -> float:
            rung = [part[: size // 8] for part in parts]

            def reading(passes: int) -> None:
                list(pool.map(_read_all, rung, [passes] * threads))

            def updating(passes: int) -> None:
                list(pool.map(_update_all, rung, [passes] * threads))

            read, updated = (_pass_seconds(kind, _at_once) for kind in (reading, updating))
            return threads * size * max(1 / read, 2 / updated)

        wall, processor = perf_counter(), process_time()
        best = _walked(sizes, rate)
        cores = (process_time() - processor) / (perf_counter() - wall)
    bandwidth = tuple((threads * size, best[size]) for size in sizes)
    return bandwidth, cores > OWN_CORES * threads


def _read_all(part: npt.NDArray[np.float64], passes: int) -> None:
    """Read every element once a pass, in products of rows too short for BLAS to start threads.

    One call for all passes: to return to Python in between would hold up the other threads.
    """
    halves = part.reshape(2, 1, -1, ROW)
    a, b = np.broadcast_to(halves, (2, passes, *halves.shape[2:]))
    np.vecdot(a, b)


def _update_all(part: npt.NDArray[np.float64], passes: int) -> None:
    for _ in range(passes):
        np.negative(part, out=part)


def _device_bandwidth(backend: Backend, itemsize: int) -> Bandwidth:
    """Bytes/s by size, the better of a sum of two vectors and their inner product."""
    sizes = _ladder(*DEVICE_RUNGS)
    normal, longest = backend.random(0).normal, sizes[-1] // (2 * itemsize)
    whole_a, whole_b = normal((longest,)), normal((longest,))

    def rate(size: int) -> float:
        n = size // (2 * itemsize)
        a, b = whole_a[:n], whole_b[:n]

        def sums(passes: int) -> None:
            for _ in range(passes):
                a + b

        def products(passes: int) -> None:
            for _ in range(passes):
                a @ b

        added, multiplied = (_pass_seconds(kind, backend.synchronize) for kind in (sums, products))
        return itemsize * n * max(3 / added, 2 / multiplied)

    return tuple(_walked(sizes, rate).items())


def _ladder(first: int, last: int) -> list[int]:
    """Sizes from the first to the last, each four times the one before, the last at most."""
    sizes = [first]
    while 4 * sizes[-1] < last:
        sizes.append(4 * sizes[-1])
    return [*sizes, last // first * first] if last > first else sizes


def _walked(sizes: list[int], rate: Callable[[int], float]) -> dict[int, float]:
    """The best rate of each size, from walk after walk for LADDER_S."""
    best, end = dict.fromkeys(sizes, 0.0), perf_counter() + LADDER_S
    while True:
        for size in sizes:
            best[size] = max(best[size], rate(size))
        if perf_counter() > end:
            return best
