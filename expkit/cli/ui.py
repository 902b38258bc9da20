"""`expkit ui`: MLflow's own page, on the right database, showing the columns that matter."""

from __future__ import annotations

import fcntl
import signal
import socket
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.error import URLError
from urllib.request import urlopen

from expkit import cache, child
from expkit.cli.status import FAILED, OK, print_error
from expkit.tracking import address

HOST = "127.0.0.1"
EVERY_S = 0.2
"""How often the server is asked whether it answers."""


def ui(outputs: Path, port: int) -> int:
    """Serve MLflow's page until Ctrl-C or another signal; returns the exit status.

    Args:
        port: 0 for one that is free.
    """
    database = outputs / "mlflow.db"
    if not database.is_file():
        where = "run something first, or say --outputs FOLDER"
        return print_error(f"no runs yet: {database} does not exist; {where}")
    port, asked = port or _free_port(), port
    with _reserved(port) as ours:
        if asked and (not ours or _in_use(port)):
            return print_error(f"--port: got {port}, takes a port that is free, or 0 to find one")
        return _serve(outputs, port)


def _serve(outputs: Path, port: int) -> int:
    """Serve the page until a signal comes; a server that ends by itself is a failure."""
    from expkit.tracking import server, views

    _end_by_signals()
    uri = address.local(outputs)
    try:
        page = f"http://{HOST}:{port}/{views.newest(uri)}"
        with closing(server.start(uri, HOST, port)) as started:
            while (ended := _ended(started, EVERY_S)) is None and not _answers(port):
                pass
            if ended is None:
                print(f"\n{page}\nCtrl-C ends it.", flush=True)
                if sys.stdout.isatty():
                    webbrowser.open(page)
                ended = _ended(started, None)
            return print_error(f"the page's server {ended}", FAILED)
    except KeyboardInterrupt:
        return OK


def _ended(started: child.Child, within_s: float | None) -> str | None:
    """How the server has ended; None where it has not, by then."""
    try:
        return f"ended by itself, with status {started.hear(within_s).status}"
    except child.Late:
        return None
    except child.Gone as error:
        return str(error)


def _end_by_signals() -> None:
    """The signals that would end this process without ending the server do so properly."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end)


@contextmanager
def _reserved(port: int) -> Iterator[bool]:
    """Whether no other `expkit ui` of this person has this port, or is about to: a server takes
    seconds to start, and who asks it meanwhile may hear another one's answer.
    """
    with ExitStack() as stack:
        ours = True
        with suppress(OSError):  # a folder that cannot be written reserves nothing
            cache.folder().mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((cache.folder() / f"ui-{port}.lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                ours = False
        yield ours


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with urlopen(f"http://{HOST}:{port}/health", timeout=1):
            return True
    except (URLError, OSError):
        return False
