"""The commands beside the run: `expkit ui` and `expkit sync`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from expkit.config import default_outputs

OK, FAILED, MISUSED = 0, 1, 2


def command(argv: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="expkit")
    commands = parser.add_subparsers(dest="command", required=True)
    ui = commands.add_parser("ui", help="open MLflow's page on the runs kept here")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--outputs", type=Path, default=default_outputs())
    sync = commands.add_parser("sync", help="send to MLflow what is not there yet")
    sync.add_argument("folder", type=Path, nargs="?", help="one run's folder, or any above it")
    sync.add_argument("--uri", help="another tracking address than the runs were made for")
    sync.add_argument("--outputs", type=Path, default=default_outputs())
    given = parser.parse_args(argv)
    if given.command == "ui":
        from expkit.cli.ui import ui as open_page

        return open_page(given.outputs.absolute(), given.port)
    return _sync((given.folder or given.outputs).absolute(), given.uri)


def _sync(place: Path, uri: str | None) -> int:
    from expkit.tracking import journal
    from expkit.tracking.upload import Uploader, pending

    if not place.is_dir():
        print(f"expkit: {place} is no folder", file=sys.stderr)
        return MISUSED
    uploader, status, count = Uploader(), OK, 0
    for folder in pending(place):
        if not journal.close_if_orphaned(folder):
            print(f"{folder}: still running")
            continue
        try:
            run_id = uploader.send(folder, uri)
        except Exception as error:  # whatever MLflow or its server raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"expkit: {folder}: {reason}", file=sys.stderr)
            status = FAILED
        else:
            count += 1
            print(f"{folder}: sent as run {run_id}")
    print(f"{count} sent")
    return status
