"""Standard output and error that never end or fail the work that prints to them.

A reader may go away (`| head`, a terminal that is closed), a file may be on a full disk, an
encoding may lack a character (`PYTHONIOENCODING=ascii`). Whatever is printed through `sys.stdout`
and `sys.stderr`, by expkit or by a library, goes on to the next line all the same.
"""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

NAMES = {1: "stdout", 2: "stderr"}


def protect() -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams that take whatever is printed.

    A standard descriptor that is closed becomes /dev/null: else the first file that is opened would
    get its number, and what is printed.
    """
    closed = []
    for descriptor in (0, *NAMES):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.append(descriptor)
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(descriptor, True)
    sys.stdout, sys.stderr = _text(1, sys.stdout), _text(2, sys.stderr)
    for descriptor in NAMES.keys() & closed:  # where both are, nobody reads it
        _tell_other(descriptor, "it is closed")


def _text(descriptor: int, before: TextIO | None) -> io.TextIOWrapper:
    """A character that the encoding lacks is shown as its escape.

    There is no buffer below, so that a signal's handler may print while the main program does.
    """
    return io.TextIOWrapper(
        _Unfailing(descriptor, "w", closefd=False),  # as `python -u` has it
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


class _Unfailing(io.FileIO):
    """A descriptor that becomes /dev/null where it cannot be written to any more."""

    def write(self, data: ReadableBuffer, /) -> int:
        left = memoryview(data).cast("B")
        length = len(left)
        try:
            while left:
                count = super().write(left)
                if count is None:  # who shares the terminal has made it non-blocking
                    select.select([], [self], [])
                else:
                    left = left[count:]
        except OSError as error:
            self._give_up(error)
        return length

    def _give_up(self, error: OSError) -> None:
        """Say so on the other stream, but not for a reader who has closed the pipe: it is meant."""
        with suppress(OSError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
        if not isinstance(error, BrokenPipeError):
            _tell_other(self.fileno(), str(error.strerror))


def _tell_other(descriptor: int, why: str) -> None:
    said = f"{NAMES[descriptor]} cannot be written ({why})"
    other = sys.stdout if descriptor == 2 else sys.stderr
    print(f"expkit: {said}; the work goes on without it", file=other)
