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


def roughly(value: float) -> str:
    """About how many seconds, minutes or hours.

    >>> roughly(0.3), roughly(42.2), roughly(250), roughly(10_000)
    ('about 1 s', 'about 42 s', 'about 4 min', 'about 2.8 h')
    """
    if value < 120:
        return f"about {max(1, round(value))} s"
    return f"about {value / 60:.0f} min" if value < 7200 else f"about {value / 3600:.1f} h"


def percent(share: float, places: int = 0) -> str:
    """A share of 1 in percent.

    >>> percent(0.053), percent(0.0532, 1), percent(0.003), percent(0)
    ('5%', '5.3%', 'less than 1%', '0%')
    """
    least = 10.0**-places
    if 0 < share * 100 < least:
        return f"less than {least:.{places}f}%"
    return f"{share * 100:.{places}f}%"


def count(number: int, thing: str) -> str:
    """A number of things, the thing in the plural where it is not one.

    >>> count(1, "cell"), count(12_000, "cell")
    ('1 cell', '12,000 cells')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def megabytes(count: float) -> str:
    """Bytes in the unit in which disks are sold, never less than one.

    >>> megabytes(1), megabytes(34_600_000), megabytes(2_340_000_000)
    ('1 MB', '35 MB', '2,340 MB')
    """
    return f"{max(1, round(count / 1e6)):,} MB"
