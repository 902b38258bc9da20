"""The roofline: the highest rates of the machine, and the least time that a step can take on it.

A step takes at least as long as moving its bytes and as doing its operations (Williams, Waterman
and Patterson, Roofline, 2009). Both rates are measured, not looked up: the best of several
readings, since a limit is a best case. Bandwidth depends on the size of the working set, so it is
measured for a ladder of sizes, from the first-level caches up.
"""

from __future__ import annotations

import fcntl
import json
import math
import operator
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time, time
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import threadpoolctl

from expkit import cache
from expkit.contracts import Array, Backend, Cost
from expkit.measure.devices import is_host
from expkit.measure.environment import cpu_model

METHOD = 3
"""Incremented when the measurement changes, so that older figures are measured again."""
READING_S = 2e-3
"""A reading lasts at least this long: starting a thread takes some 50 microseconds."""
THREAD_S = 2.5e-4
"""And at least this long for every thread."""
LADDER_S = 0.25
"""The whole ladder is measured again and again for this long: load that disturbs one walk over it
may spare the next.
"""
LADDER_LIMIT_S = 0.6
"""The same, where threads have not yet had cores of their own in any reading of some size."""
ROW = 1024
"""Elements of an inner product: 16 kB for the two rows, within a first-level cache."""
FIRST_RUNG = 2 * ROW * 8
"""Bytes per thread of the smallest size."""
STORES = 1.5
"""The rate of a first-level cache as a multiple of its reading rate: a core can store a vector for
every two that it loads. No NumPy call works in this cache for long enough to show it.
"""
LAST_RUNG = 1 << 27
"""Bytes of the largest size, all threads together. If a last-level cache is larger, its rate passes
for that of the memory, which is too high: a share of the limit is then too low, never too high.
"""
DEVICE_RUNGS = 1 << 20, 1 << 28
"""Bytes of the smallest and the largest size on a device other than the host's processor."""
PRODUCT_SIZES = tuple(2**k for k in range(8, 14))
PRODUCT_S = 4e-3
"""A matrix product that takes this long is large enough."""
HOST_PRODUCT = 512
"""Rows and columns of the product of one thread."""
PRODUCT_READINGS_S = 0.05
"""How long the product of one size is measured."""
PRODUCT_LIMIT_S = 0.3
"""The same on the host, where threads have not yet had cores of their own in any reading."""
RETRY_S = 600.0
"""How long figures from a busy machine are used before they are measured again."""
OWN_CORES = 0.75
"""Threads had cores of their own if they used their processors for this share of the time."""
BEYOND = 1.05
"""The share of a limit above which a time is not believed: a limit is the best of readings, and a
reading is off by a few percent.
"""
MEASURED = 4
"""How often a limit is measured before a time is refused because of it."""


Bandwidth: TypeAlias = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Limits:
    """What a device can do at best in one dtype.

    Attributes:
        bandwidth: pairs of a working set in bytes, smallest first, and the bytes/s read and written
            in it.
        flops_per_second: operations per second of a matrix product.
        itemsize: bytes of an element.
        cores: the share of their processors that the threads had, at most 1: in the best reading of
            each size, and of these the least. With others on the processors the rates are too low,
            by about this factor.
    """

    bandwidth: Bandwidth
    flops_per_second: float
    itemsize: int
    cores: float

    @property
    def settled(self) -> bool:
        """Whether threads had cores of their own. If not, no share of a limit should be shown; the
        rates are measured again after RETRY_S, and the best are kept.
        """
        return self.cores > OWN_CORES

    def bytes_per_second(self, working_set: float) -> float:
        """The bandwidth over a working set in bytes: the rate of the next smaller rung.

        A larger set is never faster. Where it was measured so, the reading of the smaller one was
        disturbed or, on a device, spent on launching; the larger set's rate then counts.
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
            cores=max(self.cores, other.cores),
        )


@dataclass(frozen=True)
class StepLimit:
    """The least time that a step can take on a machine.

    Attributes:
        seconds: the time of one step.
        binds: `memory` or `arithmetic`, whichever takes longer.
    """

    seconds: float
    binds: str

    def share(self, step_seconds: float) -> float:
        """The limit's seconds as a share of a step's: 1 for a step at the limit.

        Above 1, the step left work out or the limit is wrong.
        """
        return self.seconds / step_seconds


@dataclass(frozen=True)
class Found:
    """The comparison of a step's time with the limit.

    Attributes:
        limit: None where none is known.
        beyond: why no program can have taken so little time; empty where it can.
        doubt: why the time is below a limit that cannot be trusted; empty where there is no doubt.
    """

    limit: StepLimit | None
    beyond: str = ""
    doubt: str = ""


def hold_to_limit(
    backend: Backend, work: Cost, moved: float, step_seconds: float, again: Callable[[], float]
) -> Found:
    """Compare a step's time with the least that it can take on the machine.

    A time may seem too short because the limit was measured while other processes used the memory,
    or at a slower clock. So the limit is measured again, more than once, and the best counts. The
    step is timed again each time: if it now respects the limit in half of the tries, the machine
    has become slower, and the limit is in doubt. It is also in doubt where other processes had the
    processors meanwhile, and the share that they took explains the time.

    Args:
        moved: elements that the optimizer moves, see `optimizer_elements`.
        again: returns the seconds of a step, timed now.
    """
    settled, cores, slower = True, 0.0, 0
    for measured in range(1, MEASURED + 1):
        limits = machine_limits(backend, anew=measured > 1)
        if limits is None:
            return Found(None)
        limit = step_limit(limits, work, moved)
        settled, cores = settled and limits.settled, max(cores, limits.cores)
        share = limit.share(step_seconds)
        if share <= BEYOND:
            return Found(limit if limits.settled else None)
        slower += limit.share(again()) <= BEYOND
    most = f"{100 * share:,.0f}% of the most that this machine's {limit.binds} allows"
    said = f"a step seems to take {step_seconds:.2g} s, {most}"
    others = not settled and share * cores <= BEYOND
    if others or 2 * slower >= MEASURED:
        why = "while others had its cores" if others else "after it had become slower"
        return Found(None, doubt=f"{said}, as measured {why}")
    device = backend.describe()["device"]
    alias = "" if is_host(device) else f", or {device!r} is another name for the processor"
    why = f"work was left out or done off the clock{alias}"
    return Found(limit, beyond=f"{said}, measured {MEASURED} times: {why}")


def step_limit(limits: Limits, work: Cost, optimizer_elements: float = 0) -> StepLimit:
    """The larger of the times for a step's memory traffic and for its arithmetic.

    The optimizer's arithmetic is left out: it never takes longer than its memory traffic.

    Args:
        optimizer_elements: elements that the optimizer moves beside `work`, see the function.

    >>> limits = Limits(((1000, 8e9),), flops_per_second=1e9, itemsize=8, cores=1.0)
    >>> step_limit(limits, Cost(flops=10, elements=100))
    StepLimit(seconds=1e-07, binds='memory')
    """
    moved = (work.elements + optimizer_elements) * limits.itemsize
    # An element counts twice where it is read and written, so the set may be half of the traffic.
    memory = moved / limits.bytes_per_second(moved / 2)
    arithmetic = work.flops / limits.flops_per_second
    return max(StepLimit(memory, "memory"), StepLimit(arithmetic, "arithmetic"), key=_seconds)


def optimizer_elements(arrays: Mapping[str, Array]) -> int:
    """The elements that an optimizer moves: parameters and state, each read and written once.

    Args:
        arrays: a program's arrays, as `Program.arrays` names them.
    """
    own = (a for name, a in arrays.items() if name.startswith(("params.", "state.")))
    return 2 * sum(int(math.prod(a.shape)) for a in own)


def machine_limits(backend: Backend, *, anew: bool = False) -> Limits | None:
    """The limits of a backend's device in its dtype and threads, from the user's cache.

    Measured where the cache has none, which takes about half a second, so never on the clock. The
    backend must be configured. The cache is `expkit/limits.json` under XDG_CACHE_HOME or
    `~/.cache`; if it is damaged or cannot be written, the limits are just measured again. None for
    a device whose arrays cannot be multiplied and added, or a dtype whose name has no size in it.

    Args:
        anew: measure even if the cache has the limits. The better of both is returned, with the
            `cores` of the new measurement.
    """
    key = ", ".join(f"{name} {value}" for name, value in _conditions(backend).items())
    folder = cache.folder()
    with _held(folder):
        kept = _read(folder)
        known = _parsed(kept.get(key))
        if known is not None and not anew and (known.settled or _is_recent(kept[key])):
            return known
        found = _measured(backend)
        if found is None:
            return None
        best = found if known is None else found.joined(known)
        _write(folder, kept | {key: {"at": time(), **asdict(best)}})
    return replace(best, cores=found.cores) if anew else best


def _seconds(limit: StepLimit) -> float:
    return limit.seconds


def _conditions(backend: Backend) -> dict[str, Any]:
    """All that the limits depend on."""
    machine = {"method": METHOD, "cpu": cpu_model(), "cores": os.cpu_count()}
    return machine | {"numpy": np.__version__} | backend.describe()


# The cache.


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Let one process measure at a time: of two at once, each would see half a machine."""
    descriptor = None
    with suppress(OSError):  # without the folder nothing can be kept either
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
            cores=float(entry["cores"]),
        )
        rates = [limits.flops_per_second, limits.cores, *(rate for _, rate in limits.bandwidth)]
        if limits.bandwidth and all(0 < rate < math.inf for rate in rates):
            return limits
    return None


def _write(folder: Path, kept: Mapping[str, Any]) -> None:
    """Replace the file at once: a process that reads meanwhile sees the old one or the new one."""
    fresh = folder / f"limits.{os.getpid()}"
    with suppress(OSError):
        fresh.write_text(json.dumps(kept, indent=1) + "\n")
        fresh.replace(folder / "limits.json")


# The measurement.


def _measured(backend: Backend) -> Limits | None:
    about = backend.describe()
    bits = re.search(r"\d+$", str(about["dtype"]))
    if bits is None:
        return None
    itemsize = int(bits[0]) // 8
    try:
        flops = _product_rate(backend)
        if not is_host(about["device"]):
            return Limits(_device_bandwidth(backend, itemsize), flops, itemsize, cores=1.0)
    except Exception:  # arrays that cannot be multiplied, or that do not fit
        if not is_host(about["device"]):
            return None
        flops = 0.0
    threads = int(about.get("threads", len(os.sched_getaffinity(0))))
    own, products = _host_product_rate(threads, "float64" if itemsize == 8 else "float32")
    bandwidth, passes = _host_bandwidth(threads)
    return Limits(bandwidth, max(flops, own), itemsize, min(products, passes))


def _pass_seconds(
    passes: Callable[[int], object], wait: Callable[[], None], least_s: float = READING_S
) -> float:
    """Seconds of one pass, from a reading that takes at least `least_s`."""
    n = 1
    while True:
        wait()
        start = perf_counter()
        passes(n)
        wait()
        seconds = perf_counter() - start
        if seconds >= least_s:
            return seconds / n
        n *= 2


class _Chain:
    """Operations on a backend's arrays, each of which takes the result of the one before.

    So a library that runs calls in parallel or lazily has done all of them when `wait` returns: it
    reads an element of the last result, whatever the backend's `synchronize` may forget.
    """

    def __init__(self, backend: Backend, first: Array, step: Callable[[Array], Array]) -> None:
        self._backend, self._last, self._step = backend, first, step
        self(1)  # a library sets itself up in its first call, or compiles
        self.wait()

    def __call__(self, passes: int) -> None:
        for _ in range(passes):
            self._last = self._step(self._last)

    def wait(self) -> None:
        last = self._last
        self._backend.to_numpy(last[(slice(1),) * last.ndim])
        self._backend.synchronize()


def _product_rate(backend: Backend) -> float:
    """Operations/s of a matrix product, over growing sizes until one takes PRODUCT_S."""
    best = 0.0
    for n in PRODUCT_SIZES:
        mean = backend.asarray(np.full((n, n), 1 / n))  # takes the mean of a column: ones stay ones
        chain = _Chain(backend, backend.asarray(np.ones((n, n))), partial(operator.matmul, mean))
        seconds = _best_seconds(chain, chain.wait)
        best = max(best, 2 * n**3 / seconds)
        if seconds >= PRODUCT_S:
            break
    return best


def _best_seconds(passes: Callable[[int], object], wait: Callable[[], None]) -> float:
    """The fewest seconds of a pass in any reading, over PRODUCT_READINGS_S."""
    best, end = math.inf, perf_counter() + PRODUCT_READINGS_S
    while perf_counter() < end:
        best = min(best, _pass_seconds(passes, wait))
    return best


class _Cores:
    """Tells how much of their processors threads have had since this object was made."""

    def __init__(self, threads: int) -> None:
        self._threads, self._wall, self._processor = threads, perf_counter(), process_time()

    def share(self) -> float:
        """The share of a processor for each thread, at most 1."""
        wall, processor = perf_counter() - self._wall, process_time() - self._processor
        return min(1.0, processor / (self._threads * wall))


def _host_product_rate(threads: int, dtype: str) -> tuple[float, float]:
    """Operations/s of NumPy's matrix products, and the threads' share in the best reading.

    Each thread computes a product of its own and waits for no other, so that other processes cost a
    share of the rate and not nearly all of it. With float32, which can hold all halves, this also
    bounds half precision, which a library without instructions for it may multiply slowly.
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

        best, share, start = math.inf, 0.0, perf_counter()
        while (took := perf_counter() - start) < PRODUCT_READINGS_S or (
            took < PRODUCT_LIMIT_S and share <= OWN_CORES
        ):
            cores = _Cores(threads)
            best = min(best, _pass_seconds(passes, _at_once))
            share = max(share, cores.share())
    return threads * 2 * HOST_PRODUCT**3 / best, share


def _at_once() -> None:
    """NumPy's calls return when they are done."""


def _host_bandwidth(threads: int) -> tuple[Bandwidth, float]:
    """Bytes/s by size on all threads, each with a part of its own, and the threads' share in the
    best reading of each size, for the size where it was least.

    There are two kinds of pass, and the faster counts: reading, which is fastest in the nearest
    caches, and updating in place, which is fastest further out, where data go both ways at once.
    """
    sizes = _ladder(FIRST_RUNG, LAST_RUNG // threads)
    shares = dict.fromkeys(sizes, 0.0)
    with ThreadPoolExecutor(threads) as pool:
        # Ones, because zeros that nobody has written to would all share one page.
        parts = list(pool.map(np.ones, [sizes[-1] // 8] * threads))

        def rate(size: int) -> float:
            rung = [part[: size // 8] for part in parts]

            def reading(passes: int) -> None:
                list(pool.map(_read_all, rung, [passes] * threads))

            def updating(passes: int) -> None:
                list(pool.map(_update_all, rung, [passes] * threads))

            cores = _Cores(threads)
            least_s = max(READING_S, THREAD_S * threads)
            read, updated = (_pass_seconds(kind, _at_once, least_s) for kind in (reading, updating))
            shares[size] = max(shares[size], cores.share())
            stored = STORES if size == FIRST_RUNG else 1
            return threads * size * max(stored / read, 2 / updated)

        best = _walked(sizes, rate, lambda: min(shares.values()) > OWN_CORES)
    bandwidth = tuple((threads * size, best[size]) for size in sizes)
    return bandwidth, min(shares.values())


def _read_all(part: npt.NDArray[np.float64], passes: int) -> None:
    """Read every element once a pass, in products of rows too short for BLAS to start threads.

    All passes are one call: returning to Python in between would hold up the other threads.
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
    ones = backend.asarray(np.ones(sizes[-1] // (2 * itemsize)))
    chains = {}
    for size in sizes:
        part = ones[: size // (2 * itemsize)]
        total = _Chain(backend, part - part, partial(operator.add, part))
        product = _Chain(backend, part @ part, partial(_added_product, part, part - part))
        chains[size] = total, product

    def rate(size: int) -> float:
        added, multiplied = (_pass_seconds(chain, chain.wait) for chain in chains[size])
        return size / 2 * max(3 / added, 2 / multiplied)

    return tuple(_walked(sizes, rate, lambda: True).items())


def _added_product(a: Array, b: Array, total: Array) -> Array:
    return total + a @ b


def _ladder(first: int, last: int) -> list[int]:
    """Sizes from the first to the last, each four times the one before; the last may be less."""
    sizes = [first]
    while 4 * sizes[-1] < last:
        sizes.append(4 * sizes[-1])
    return [*sizes, last // first * first] if last > first else sizes


def _walked(
    sizes: list[int], rate: Callable[[int], float], enough: Callable[[], bool]
) -> dict[int, float]:
    """The best rate of each size over repeated walks: for LADDER_S, then until `enough`, but no
    longer than LADDER_LIMIT_S.
    """
    best, start = dict.fromkeys(sizes, 0.0), perf_counter()
    while True:
        for size in sizes:
            best[size] = max(best[size], rate(size))
        took = perf_counter() - start
        if took > LADDER_LIMIT_S or (took > LADDER_S and enough()):
            return best
