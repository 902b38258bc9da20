"""The command line: `python -m expkit ...` runs; a first word such as `ui` is a command."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

import expkit

COMMANDS = ("compare", "doctor", "resume", "sync", "ui")


def main(argv: Sequence[str]) -> int:
    """Run what the words ask for and return the exit status."""
    gc.disable()  # importing makes much that stays; the runner turns it on to measure
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
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all is written; tidying up the interpreter takes up to half a second
