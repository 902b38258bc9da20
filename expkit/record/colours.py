"""The colours of runs, in MLflow and in pictures: one for each backend, with shades.

They are those of Okabe and Ito ("Color Universal Design", 2008), which people with any common kind
of colour blindness can tell apart. Yellow is left out, as it is too pale for a thin line.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

SHIPPED = {"numpy": "#0072B2", "torch": "#D55E00", "torch_cuda": "#009E73"}
"""The colours of the backends that ship with expkit."""
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#666666")
"""The colours of all other backends."""
DARKEST, LIGHTEST = -0.4, 0.5
"""How far shades go towards black and towards white."""


def colours(backends: Iterable[str]) -> dict[str, str]:
    """Return a colour for each backend: always the same, unless two would get the same one.

    >>> colours(["torch", "numpy"])
    {'torch': '#D55E00', 'numpy': '#0072B2'}
    """
    found: dict[str, str] = {}
    for name in backends:
        first = zlib.crc32(name.encode()) % len(OTHERS)
        others = (*OTHERS[first:], *OTHERS[:first])
        free = (colour for colour in others if colour not in found.values())
        found.setdefault(name, SHIPPED.get(name) or next(free, others[0]))
    return found


def shade(colour: str, number: int, count: int) -> str:
    """Return one of several shades of a colour, from dark to light; the colour itself if alone.

    >>> [shade("#0072B2", number, 3) for number in range(3)]
    ['#00446b', '#0d79b6', '#80b8d8']
    """
    if count == 1:
        return colour
    towards = DARKEST + (LIGHTEST - DARKEST) * number / (count - 1)
    end = 255 if towards > 0 else 0
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part + (end - part) * abs(towards)):02x}" for part in parts)
