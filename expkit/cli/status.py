"""Exit statuses, and the one line on stderr that goes with those that are not 0."""

from __future__ import annotations

import signal
import sys

from expkit.tracking import address

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
CANT_TELL, MAY_NOT_COMPARE = 3, 4
TERMINATED = 128 + signal.SIGTERM


def print_error(reason: object, status: int = MISUSED) -> int:
    """Print one line, without passwords, and return the status."""
    print(f"expkit: {address.scrub(str(reason))}", file=sys.stderr)
    return status
