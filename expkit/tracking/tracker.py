"""MLflow in a process of its own, so that its second of start-up passes beside the run.

The parent sends a line of JSON a request, the child answers each with one. It sends runs to the
addresses that the parent has told it and to no other, whatever a journal says. While the clock runs
the child is stopped (SIGSTOP), so that it takes no cycle from what is measured. If the parent
dies, the kernel wakes the child (Linux), which ends the run as KILLED with all it measured.

Neither waits for ever. A child that comes to nothing for `PATIENCE_S` is ended: what it has not
sent is in the journals, and can be sent later.

    python -m expkit.tracking.tracker PARENT        is the child, of the process of this number
"""

from __future__ import annotations

import gc
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from expkit import children, streams
from expkit.errors import UserError
from expkit.tracking import address, journal, sent

if TYPE_CHECKING:
    from expkit.tracking.upload import Uploader

SHOWN_LIVE_S = 2.0
"""A measurement longer than this waits until its run is in MLflow, then begins."""
BACKLOG = 50
"""Requests that may wait for an answer. Each takes room in a pipe that must not fill."""
OPTIONAL = ("numpy", "pandas", "pyarrow", "scipy", "sklearn", "pygments")
"""What MLflow and its libraries import if it is there, for uses that are not ours."""
UPLOAD = "expkit.tracking.upload"
PROGRESS = b"+"
"""What the child writes beside its answers, at most once a second: MLflow has taken something."""
REFRESH_S = 10.0
"""How old what MLflow shows of a long run may get."""
PATIENCE_S = 60.0
"""How long MLflow may keep us waiting, in all, without having taken anything in between."""
HURRIED_S = (10.0, 0.5, 0.0)
"""And how much longer, in all, once somebody wants to end: by the first wish, the next, ..."""
LOOK_S = 0.2
"""How often a wait looks whether somebody wants to end."""


@dataclass(frozen=True)
class Sent:
    """What became of a run: its id in MLflow, or the reason why it is not there."""

    run_id: str | None
    error: str | None


class Tracker:
    """The parent's side. Starting costs a few milliseconds; the child gets ready meanwhile."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            children.command("expkit.tracking.tracker", str(os.getpid())),
            env={**os.environ, **children.SAFE_PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._requests, self._answers = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._requests, False)
        self._heard = b""
        self._ready = False
        self._unanswered = 0
        self._folders: set[Path] = set()
        self.trouble = "it was not waited for"
        """What has kept MLflow from taking a run, last of all."""
        self._gone: str | None = None
        self._hurried = 0
        self._left_s = PATIENCE_S
        self._last = time.monotonic()

    def allow(self, kept: str, uri: str) -> None:
        """Let runs be sent whose journals name this address.

        Args:
            kept: as journals have it, without a password.
            uri: where to send them, whole.
        """
        self._tell(json.dumps({"kept": kept, "uri": uri}).encode() + b"\n")

    def update(self, folder: Path, *, wait: bool = False, last: bool = False) -> Sent:
        """Send what is new in this run's journal; without `wait`, some time soon.

        Args:
            last: wait, and have it tried again where it was refused before.
        """
        self._folders.add(folder)
        wait = wait or last
        if wait:  # it may have been stopped where a signal came at a bad moment
            self._signal(signal.SIGCONT)
        self._tell(json.dumps({"folder": str(folder), "last": last}).encode() + b"\n")
        answer = Sent(None, self._gone)
        while self._unanswered > (0 if wait else BACKLOG):
            answer = self._answer()
        self._last = time.monotonic()
        return answer

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

    def settle(self) -> None:
        """Wait until all that was asked for is done."""
        self._signal(signal.SIGCONT)
        while self._unanswered:
            self._answer()

    @property
    def hurried(self) -> bool:
        """Whether somebody wants to end."""
        return self._hurried > 0

    def hurry(self) -> None:
        """Somebody wants to end: wait `HURRIED_S` longer at most. For a signal's handler."""
        self._left_s = min(self._left_s, HURRIED_S[min(self._hurried, len(HURRIED_S) - 1)])
        self._hurried += 1

    def close(self) -> None:
        """Let the child finish what it was asked and end."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._signal(signal.SIGCONT)
            self._child.stdin.close()
            while self._gone is None:
                self._line()
        finally:
            self._kill()
            self._child.stdout.close()

    def missing(self) -> list[Path]:
        """The runs that it was asked to send and that are not all in MLflow."""
        return [folder for folder in sorted(self._folders) if not sent.is_whole(folder)]

    def _answer(self) -> Sent:
        self._await_start()
        line = self._line()
        if line is None:
            self._unanswered = 0
            return Sent(None, self._gone)
        self._unanswered -= 1
        answer = Sent(**json.loads(line))
        self.trouble = answer.error or self.trouble
        return answer

    def _tell(self, request: bytes) -> None:
        while request and self._gone is None:
            try:
                request = request[os.write(self._requests, request) :]
            except BlockingIOError:  # the pipe is full
                self._wait([], [self._requests])
            except BrokenPipeError:
                self._ended()
        self._unanswered += self._gone is None

    def _line(self) -> bytes | None:
        """The child's next answer; None where it is gone. Its signs of progress are taken in."""
        while self._gone is None:
            line, found, rest = self._heard.partition(b"\n")
            if found:
                self._heard = rest
                if line != PROGRESS:
                    return line
                if not self._hurried:
                    self._left_s = PATIENCE_S
            elif self._wait([self._answers], []):
                said = os.read(self._answers, 1 << 16)
                self._heard += said
                if not said:
                    self._ended()
        return None

    def _wait(self, reading: Sequence[int], writing: Sequence[int]) -> bool:
        """Whether one of these is ready; where that takes too long, the child is ended."""
        while True:
            begun = time.monotonic()
            ready = select.select(reading, writing, [], max(0.0, min(LOOK_S, self._left_s)))
            self._left_s -= time.monotonic() - begun
            if any(ready):
                return True
            if self._left_s <= 0:
                limit_s = HURRIED_S[self._hurried - 1] if self._hurried else PATIENCE_S
                self._gone = self.trouble = f"no answer within {limit_s:g} s"
                self._kill()
                return False

    def _ended(self) -> None:
        status = self._child.wait()
        self._gone = f"the tracking process ended with status {status}"
        if status:
            self.trouble = self._gone

    def _kill(self) -> None:
        """End it, if it has not ended, and whatever it started."""
        if self._child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
            self._gone = self._gone or "the tracking process was ended"

    def _stop(self) -> None:
        self._await_start()
        self._signal(signal.SIGSTOP)

    def _await_start(self) -> None:
        """Until its first line the child could stay stopped for ever, if we died."""
        if not self._ready:
            self._ready = True
            self._line()

    def _signal(self, number: signal.Signals) -> None:
        if self._child.poll() is None:
            self._child.send_signal(number)


def _uploader(progress: Callable[[], None] = lambda: None) -> Uploader:
    """An uploader, with MLflow and what it needs imported.

    What MLflow imports for uses that are not ours takes half as long again: it is not there to be
    imported, unless this MLflow cannot do without.
    """
    web = ModuleType("fastapi")  # its servers': beside them, mlflow.gateway.utils raises this
    web.__dict__["HTTPException"] = Exception
    spared: dict[str, Any] = {"fastapi": web, **dict.fromkeys(OPTIONAL)}
    sys.modules.update(spared)
    try:
        return _imported(progress)
    except Exception:  # whatever an MLflow says that misses something
        begun = [name for name in sys.modules if name.split(".")[0] in (*spared, "mlflow")]
        for name in [*begun, UPLOAD]:
            sys.modules.pop(name, None)
        return _imported(progress)


def _imported(progress: Callable[[], None]) -> Uploader:
    upload = import_module(UPLOAD)
    upload.database.preload()
    uploader: Uploader = upload.Uploader(progress)
    return uploader


class _Progress:
    """Tells the parent that MLflow has taken something; the child's end, once there is no parent.

    Nobody waits for a child whose parent was killed, and it may wait for a server that is mute.
    """

    def __init__(self, parent: int, answers: TextIO) -> None:
        self._answers, self._last, self._told = answers, time.monotonic(), -math.inf
        threading.Thread(target=self._outlive, args=[parent], daemon=True).start()

    def __call__(self) -> None:
        self._last = time.monotonic()
        if self._last - self._told > 1:
            self._told = self._last
            with suppress(BrokenPipeError):
                print(PROGRESS.decode(), file=self._answers, flush=True)

    def _outlive(self, parent: int) -> None:
        with suppress(ProcessLookupError):
            death = os.pidfd_open(parent)
            if os.getppid() == parent:
                select.select([death], [], [])
        self._last = time.monotonic()
        while (left_s := self._last + PATIENCE_S - time.monotonic()) > 0:
            time.sleep(left_s)
        os._exit(1)


def _serve(answers: TextIO, progress: _Progress) -> None:
    """The child: answer each request; then end what the parent left open."""
    try:
        uploader, broken = _uploader(progress), None
        progress()
    except Exception as error:  # a broken MLflow must not cost the run
        uploader, broken = None, address.one_line(error)
    gc.freeze()  # the libraries stay, what a run leaves goes: a sweep has thousands
    gc.enable()
    folders: set[Path] = set()
    addresses: dict[str, str] = {}
    failed: dict[Path, Sent] = {}

    def answer(folder: Path, *, last: bool) -> Sent:
        if uploader is None:
            return Sent(None, broken)
        if folder in failed and not last:
            return failed[folder]  # a server that refuses is asked again at the end
        kept = journal.address(folder)
        uri = addresses.get(kept)
        if uri is None:
            return Sent(None, f"nobody gave the address {kept} here")
        try:
            return Sent(uploader.send(folder, uri), None)
        except Exception as error:  # whatever MLflow or its server raises, the parent reports
            failed[folder] = Sent(None, address.explain(address.one_line(error), uri))
            return failed[folder]

    for line in sys.stdin:
        request = json.loads(line)
        if "uri" in request:
            addresses[request["kept"]] = request["uri"]
            sent = Sent(None, None)
        else:
            folder = Path(request["folder"])
            folders.add(folder)
            sent = answer(folder, last=request["last"])
        reply: dict[str, Any] = vars(sent)
        with suppress(BrokenPipeError):  # the parent was killed: what it began is ended below
            print(json.dumps(reply), file=answers, flush=True)
    for folder in folders:
        with suppress(OSError, UserError):  # a full disk: the next start ends it; or damaged
            with journal.locked(folder):
                if left := not journal.is_ended(folder):
                    journal.end_orphan(folder)  # the parent has hung up in the middle of it
            if left:
                answer(folder, last=True)


def _child(parent: int) -> None:
    import ctypes

    gc.disable()  # MLflow's imports make much that stays and little that goes
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        pr_set_pdeathsig = 1
        libc.prctl(pr_set_pdeathsig, signal.SIGCONT)
    # MLflow prints to stdout as it likes; the answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    streams.protect()
    with suppress(BrokenPipeError):  # killed already; what it asked for may be waiting
        print(file=answers, flush=True)
    _serve(answers, _Progress(parent, answers))
    os._exit(0)  # the interpreter's tidying up takes longer than the work


if __name__ == "__main__":
    _child(int(sys.argv[1]))
