"""Checks of records that are read back from a file, which anybody may have changed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Check(NamedTuple):
    """What a value has to be, in words and as a test."""

    takes: str
    holds: Callable[[Any], bool]


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_whole(value: object) -> bool:
    """Whether this is an integer of at least 0. A bool is not, though it is an int in Python."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: object) -> bool:
    """Whether this is a finite number, or the word for a number that JSON lacks."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max  # false for a NaN
    return value in ("nan", "inf", "-inf")


def is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and is_number(value) and value >= 0


def _all(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _texts_by_name(value: object) -> bool:
    return isinstance(value, Mapping) and all(map(is_text, value.values()))


TEXT = Check("a text", is_text)
WHOLE = Check("an integer of at least 0", is_whole)
MAPPING = Check("keys with values", lambda value: isinstance(value, Mapping))
TEXTS = Check("a list of texts", lambda value: _all(value, is_text))
TEXTS_BY_NAME = Check("names with a text each", _texts_by_name)
WHOLES = Check("a list of integers of at least 0", lambda value: _all(value, is_whole))
SECONDS = Check(
    "a list of seconds", lambda value: bool(value) and _all(value, is_seconds) and sum(value) > 0
)
NUMBERS = Check('a list of numbers, "nan", "inf" or "-inf"', lambda value: _all(value, is_number))


def misfit(record: object, required: Mapping[str, Check]) -> str | None:
    """What is wrong with a record, in one line: the key, what it got, what it takes.

    >>> misfit({"name": "a", "index": -1}, {"name": TEXT, "index": WHOLE})
    'index: got -1, takes an integer of at least 0'
    >>> misfit({"name": "a"}, {"name": TEXT, "index": WHOLE})
    'index: it is missing, takes an integer of at least 0'
    >>> misfit([], {"name": TEXT}) is None
    False
    """
    if not isinstance(record, Mapping):
        return f"got {short(record)}, takes keys with values"
    for key, check in required.items():
        if key not in record:
            return f"{key}: it is missing, takes {check.takes}"
        if not check.holds(record[key]):
            return f"{key}: got {short(record[key])}, takes {check.takes}"
    return None


def unknown(record: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """Say which key is the first that has no meaning here; None if all are known."""
    for key in record:
        if key not in known:
            return f"{key[:40]!r}: no such key; takes {', '.join(known)}"
    return None


def short(value: object) -> str:
    """A value as it is shown in one line."""
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
