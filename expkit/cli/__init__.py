"""The command line: `python -m expkit ...` runs; a first word such as `ui` is a command."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import expkit
from expkit import streams
from expkit.cli.status import FAILED, INTERRUPTED, OK, print_error

COMMANDS = ("compare", "crossover", "doctor", "draw", "export", "report", "resume", "sync", "ui")


def main(argv: Sequence[str]) -> int:
    """Run what the words ask for and return the exit status."""
    gc.disable()  # imported objects stay; the runner enables it to measure
    try:
        Path.cwd()
    except OSError as error:  # it was deleted, or moved to where nobody may look
        return print_error(f"the current folder: {error.strerror}; change to one that exists: cd ~")
    if "--version" in argv:
        print(f"expkit {expkit.__version__}")
        return 0
    if argv and argv[0] in COMMANDS:
        from expkit.cli.commands import command

        return command(argv)
    from expkit.cli.run import run

    return run(argv)


def console() -> None:
    """The `expkit` script, and `python -m expkit`."""
    streams.protect()
    status = _status(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all is written; tidying up the interpreter takes up to half a second


def _status(argv: Sequence[str]) -> int:
    try:
        return main(argv)
    except KeyboardInterrupt:  # before anything began that has to be ended
        return print_error("interrupted", INTERRUPTED)
    except SystemExit as end:  # raised by argparse
        if end.code is None or isinstance(end.code, int):
            return end.code or OK
        return print_error(end.code, FAILED)
