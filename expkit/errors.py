"""The errors a person sees, each one line: the thing, what it got, what it takes."""

from __future__ import annotations

import errno
from collections.abc import Sequence


class UserError(Exception):
    """Something the person can mend. Printed as one line; exit status 2 before a run, 1 in it."""


class ConfigError(UserError):
    """A configuration key with a value it does not take."""

    def __init__(self, key: str, got: object, takes: str) -> None:
        super().__init__(f"{key}: got {got!r}, takes {takes}")
        self.key, self.got, self.takes = key, got, takes


class UnsetError(UserError):
    """A key that needs a value, where none is given and none is recommended."""

    def __init__(self, key: str, why: str = "nothing is recommended") -> None:
        super().__init__(f"{key}: it has no value, because {why}; say {key}=...")
        self.key = key


class Unavailable(UserError):
    """This machine cannot run what was asked for."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")


class ParityError(UserError):
    """Cells that were to do the same work do not."""

    def __init__(self, unlike: Sequence[str]) -> None:
        super().__init__(f"not like for like: {'; '.join(unlike)}")


class Incomparable(UserError):
    """Two runs that were to be compared may not be."""


class PluginError(UserError):
    """An installed plugin is broken, or two plugins claim one name."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error comes of a disk, or a share of one, that takes no more."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def check(holds: bool, key: str, got: object, takes: str) -> None:
    """Raise `ConfigError` unless `holds`; for the range checks of `__post_init__`."""
    if not holds:
        raise ConfigError(key, got, takes)
