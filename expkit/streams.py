"""Standard output and error that never end or fail the work that prints to them.

A reader may go away (`| head`, a terminal that is closed), a file may be on a full disk, an
encoding may lack a character (`PYTHONIOENCODING=ascii`). Code that prints through `sys.stdout` or
`sys.stderr`, be it expkit's or a library's, continues all the same.
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
LOST: set[int] = set()
"""The descriptors that could not be written, so that output is missing that somebody reads."""


def protect() -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams that take whatever is printed.

    A standard descriptor that is closed becomes /dev/null: otherwise the next file to be opened
    would get its number, and with it what is printed.
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
    for descriptor in NAMES.keys() & closed:  # if both are closed, nobody reads the message
        _tell_other(descriptor, "it is closed")


def _text(descriptor: int, before: TextIO | None) -> io.TextIOWrapper:
    """Make a text stream that prints a character which the encoding lacks as its escape.

    It has no buffer below it, so that a signal handler may print while the main program does.
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
                if count is None:  # a process that shares the terminal has made it non-blocking
                    select.select([], [self], [])
                else:
                    left = left[count:]
        except OSError as error:
            self._give_up(error)
        return length

    def _give_up(self, error: OSError) -> None:
        """Drop further output, and say so on the other stream unless a reader closed the pipe."""
        with suppress(OSError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
        if not isinstance(error, BrokenPipeError):
            LOST.add(self.fileno())
            _tell_other(self.fileno(), str(error.strerror))


def _tell_other(descriptor: int, why: str) -> None:
    said = f"{NAMES[descriptor]} cannot be written ({why})"
    other = sys.stdout if descriptor == 2 else sys.stderr
    print(f"expkit: {said}; the work goes on without it", file=other)
