"""Numbers as a person reads them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """Seconds in the unit that a person reads.

    >>> seconds(0.0123), seconds(4.2e-6), seconds(75)
    ('12.3 ms', '4.2 µs', '75 s')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
