"""Arrays that lie somewhere else every time they are placed.

Where arrays lie decides which of them share cache sets, and which loads look to the processor as if
they followed a store: identical programs differ by 10 % and more for as long as they live. malloc
hands out again what was just freed, so a program placed anew lies where it lay before.

An array here begins at a random cache line of a page and, where it is long, at a random one of 64
pages: that changes its physical pages too, which is what the outer caches go by. (Sine, 20,000
points, one program against itself in 20 pairs: 9 off by more than 2 % without the pages, none
with.) It begins at a line's start, because vectors that straddle two lines cost a few percent and
make the spread between placements twice as wide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LINE, PAGE = 64, 4096
LONG = 8 * PAGE
"""Bytes from which an array is moved by whole pages: shorter ones stay in the first-level cache."""

_rng = np.random.default_rng()


def placed(values: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A copy in C order, somewhere else at every call. Its pages are touched here."""
    host, dtype = np.asarray(values), np.dtype(dtype)
    size = host.size * dtype.itemsize
    reach = 64 * PAGE if size >= LONG else PAGE
    raw = np.empty(size + reach + LINE, np.uint8)
    start = -raw.ctypes.data % LINE + LINE * int(_rng.integers(reach // LINE))
    array = raw[start : start + size].view(dtype).reshape(host.shape)
    array[...] = host
    return array
