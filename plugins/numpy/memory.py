"""Arrays that get a new random place in memory every time they are placed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from expkit.authors import LINE, random_start


def placed(values: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a copy in C order at a new random place, with its pages already touched."""
    host, dtype = np.asarray(values), np.dtype(dtype)
    size = host.size * dtype.itemsize
    start, reach = random_start(size)
    raw = np.empty(size + reach + LINE, np.uint8)
    start += -raw.ctypes.data % LINE
    array = raw[start : start + size].view(dtype).reshape(host.shape)
    array[...] = host
    return array
