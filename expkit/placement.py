"""Where arrays lie in memory: somewhere else every time they are placed.

It decides which of them share cache sets, and which loads look to the processor as if they followed
a store: identical programs differ by 10 % and more for as long as they live. An allocator hands out
again what was just freed, so a program placed anew lies where it lay before.

An array is therefore begun at a random cache line of a page and, where it is long, of 64 pages:
that changes its physical pages too, which is what the outer caches go by. (Sine, 20,000 points, one
program against itself in 20 pairs: 9 off by more than 2 % without the pages, none with.) At a
line's start, because vectors that straddle two lines cost a few percent and make the spread between
placements twice as wide.
"""

from __future__ import annotations

import numpy as np

from expkit.contracts import Array, Backend, HostArray, Placing

LINE, PAGE = 64, 4096
LONG = 8 * PAGE
"""Bytes from which an array is moved by whole pages: shorter ones stay in the first-level cache."""

_rng = np.random.default_rng()


def random_start(size: int) -> tuple[int, int]:
    """Where to begin an array of `size` bytes in a stretch of memory, and how far that may be.

    Both are in bytes, and multiples of a cache line.
    """
    reach = 64 * PAGE if size >= LONG else PAGE
    return LINE * int(_rng.integers(reach // LINE)), reach


def placed(backend: Backend, host: HostArray) -> Array:
    """A copy on the device, elsewhere at every call as far as the backend can say."""
    return backend.placed(host) if isinstance(backend, Placing) else backend.asarray(host)


def scatter(backend: Backend) -> list[Array]:
    """Make and drop arrays of many sizes, so that what is allocated next lies elsewhere.

    For what a step allocates itself. Half of what is made is dropped, in random order; the other
    half is returned, to be kept until the next placement (after the shuffled heap of Curtsinger and
    Berger, Stabilizer, ASPLOS 2013).
    """
    sizes = np.exp(_rng.uniform(0, np.log(20_000), 64)).astype(int)
    made = [backend.asarray(np.zeros(size)) for size in sizes]
    _rng.shuffle(made)
    return made[::2]
