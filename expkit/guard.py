"""A command and all it starts, for as long as whoever started the guard lives.

    python -m expkit.guard COMMAND...

The command is ended when the guard's standard input is at its end: it was closed, or the process at
its other end is gone, be it by SIGKILL. The exit status is the command's.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from expkit import child

TERM_S = 3.0
"""Between SIGTERM and SIGKILL."""


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command below a guard, in a session of its own: Ctrl-C is the caller's to handle."""
    return subprocess.Popen(
        child.command("expkit.guard", *command),
        env={**os.environ, **child.SAFE_PATH},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def end(guard: subprocess.Popen[bytes]) -> None:
    """End a guard's command, with all that it has started."""
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait()


def _guard(command: Sequence[str]) -> int:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for the others of the group
    death = os.pidfd_open(process.pid)
    if death in select.select([0, death], [], [])[0]:
        os.killpg(0, signal.SIGTERM)
        return process.wait()
    os.killpg(0, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(TERM_S)
    os.killpg(0, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
