"""MLflow in a process of its own, so that its second of start-up passes beside the run.

The parent sends a line of JSON a request, the child answers each with one. While the clock runs
the child is stopped (SIGSTOP), so that it takes no cycle from what is measured. If the parent
dies, the kernel wakes the child (Linux), which ends the run as KILLED with all it measured.

    python -m expkit.tracking.tracker        is the child
"""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from expkit.tracking.upload import Uploader

SHOWN_LIVE_S = 2.0
"""A measurement longer than this waits until its run is in MLflow, then begins."""
BACKLOG = 50
"""Requests that may wait for an answer. Each takes room in a pipe that must not fill."""
OPTIONAL = ("numpy", "pandas", "pyarrow", "scipy", "sklearn", "pygments")
"""What MLflow and its libraries import if it is there, for uses that are not ours."""
UPLOAD = "expkit.tracking.upload"
REFRESH_S = 10.0
"""How old what MLflow shows of a long run may get."""


@dataclass(frozen=True)
class Sent:
    """What became of a run: its id in MLflow, or the reason why it is not there."""

    run_id: str | None
    error: str | None


class Tracker:
    """The parent's side. Starting costs a few milliseconds; the child gets ready meanwhile."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "expkit.tracking.tracker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        self._ready = False
        self._unanswered = 0
        self._last = time.monotonic()

    def update(self, folder: Path, *, wait: bool = False, limit_s: float | None = None) -> Sent:
        """Send what is new in this run's journal; without `wait`, some time soon.

        Args:
            limit_s: the longest to wait; past it the child is ended.
        """
        timer = threading.Timer(limit_s, self._child.kill) if limit_s else None
        if timer:
            timer.daemon = True
            timer.start()
        sent = Sent(None, None)
        if wait:  # it may have been stopped where a signal came at a bad moment
            self._signal(signal.SIGCONT)
        try:
            assert self._child.stdin is not None
            self._child.stdin.write(json.dumps({"folder": str(folder), "last": wait}) + "\n")
            self._child.stdin.flush()
            self._unanswered += 1
            while self._unanswered > (0 if wait else BACKLOG):
                sent = self._answer()
        except BrokenPipeError:
            sent = Sent(None, f"the tracking process ended ({self._child.poll()})")
        if timer:
            timer.cancel()
        self._last = time.monotonic()
        return sent

    def _answer(self) -> Sent:
        assert self._child.stdout is not None
        self._await_start()
        line = self._child.stdout.readline()
        if not line:
            self._unanswered = 0
            return Sent(None, f"the tracking process ended with status {self._child.wait()}")
        self._unanswered -= 1
        return Sent(**json.loads(line))

    @contextmanager
    def quiet(self, folder: Path, expected_s: float) -> Iterator[None]:
        """Keep the child from running; first let a long run appear in MLflow."""
        if expected_s > SHOWN_LIVE_S:
            self.update(folder, wait=True)
        try:
            self._stop()
            yield
        finally:
            self._signal(signal.SIGCONT)

    def refresh(self, folder: Path) -> None:
        """Inside `quiet`, off the clock: send what is new if the last time is long ago."""
        if time.monotonic() - self._last > REFRESH_S:
            self.update(folder, wait=True)
            self._stop()

    def settle(self, limit_s: float | None = None) -> None:
        """Wait until all that was asked for is done.

        Args:
            limit_s: the longest to wait; past it the child is ended.
        """
        self._signal(signal.SIGCONT)
        timer = threading.Timer(limit_s, self._child.kill) if limit_s else None
        if timer:
            timer.daemon = True
            timer.start()
        while self._unanswered:
            self._answer()
        if timer:
            timer.cancel()

    def close(self) -> None:
        """Let the child finish what it was asked and end."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.stdout.read()
        self._child.stdout.close()
        self._child.wait()

    def _stop(self) -> None:
        self._await_start()
        self._signal(signal.SIGSTOP)

    def _await_start(self) -> None:
        """Until its first line the child could stay stopped for ever, if we died."""
        assert self._child.stdout is not None
        if not self._ready:
            self._ready = True
            self._child.stdout.readline()

    def _signal(self, number: signal.Signals) -> None:
        if self._child.poll() is None:
            self._child.send_signal(number)


def _uploader() -> Uploader:
    """An uploader, with MLflow and what it needs imported.

    What MLflow imports for uses that are not ours takes half as long again: it is not there to be
    imported, unless this MLflow cannot do without.
    """
    web = ModuleType("fastapi")  # its servers': beside them, mlflow.gateway.utils raises this
    web.__dict__["HTTPException"] = Exception
    spared: dict[str, Any] = {"fastapi": web, **dict.fromkeys(OPTIONAL)}
    sys.modules.update(spared)
    try:
        return _imported()
    except Exception:  # whatever an MLflow says that misses something
        begun = [name for name in sys.modules if name.split(".")[0] in (*spared, "mlflow")]
        for name in [*begun, UPLOAD]:
            sys.modules.pop(name, None)
        return _imported()


def _imported() -> Uploader:
    upload = import_module(UPLOAD)
    upload.preload()
    uploader: Uploader = upload.Uploader()
    return uploader


def _serve(answers: TextIO) -> None:
    """The child: answer each request; then end what the parent left open."""
    from expkit.errors import UserError
    from expkit.tracking import journal

    try:
        uploader, broken = _uploader(), None
    except Exception as error:  # a broken MLflow must not cost the run
        uploader, broken = None, one_line(error)
    gc.freeze()  # the libraries stay, what a run leaves goes: a sweep has thousands
    gc.enable()
    folders: set[Path] = set()

    failed: dict[Path, Sent] = {}

    def answer(folder: Path, *, last: bool) -> Sent:
        if uploader is None:
            return Sent(None, broken)
        if folder in failed and not last:
            return failed[folder]  # a server that refuses is asked again at the end
        try:
            return Sent(uploader.send(folder), None)
        except Exception as error:  # whatever MLflow or its server raises, the parent reports
            failed[folder] = Sent(None, one_line(error))
            return failed[folder]

    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(request["folder"])
        folders.add(folder)
        reply: dict[str, Any] = vars(answer(folder, last=request["last"]))
        with suppress(BrokenPipeError):  # the parent was killed: what it began is ended below
            print(json.dumps(reply), file=answers, flush=True)
    for folder in folders:
        with suppress(OSError, UserError):  # a full disk: the next start ends it; or damaged
            with journal.locked(folder):
                if left := not journal.is_ended(folder):
                    journal.end_orphan(folder)  # the parent has hung up in the middle of it
            if left:
                answer(folder, last=True)


def one_line(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said if len(said) <= 300 else said[:297] + '...'}"


def _child() -> None:
    import ctypes
    import os

    gc.disable()  # MLflow's imports make much that stays and little that goes
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGCONT)
    # MLflow prints to stdout as it likes; the answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with suppress(BrokenPipeError):  # killed already; what it asked for may be waiting
        print(file=answers, flush=True)
    _serve(answers)
    os._exit(0)  # the interpreter's tidying up takes longer than the work


if __name__ == "__main__":
    _child()
