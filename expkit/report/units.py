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


def megabytes(count: float) -> str:
    """Bytes in the unit in which disks are sold, never less than one.

    >>> megabytes(1), megabytes(34_600_000), megabytes(2_340_000_000)
    ('1 MB', '35 MB', '2,340 MB')
    """
    return f"{max(1, round(count / 1e6)):,} MB"
