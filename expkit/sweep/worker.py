"""A process that runs cells for a sweep: a fresh interpreter that is asked, line by line.

The parent sends a line of JSON a request, the child answers with one or more. While it is not asked
anything a child that is to be measured is stopped (SIGSTOP): it sleeps, and so do its threads,
which after a parallel loop would go on spinning for a while. Should the parent die, the kernel ends
the child (Linux).

    python -m expkit.sweep.worker PARENT        is the child, of the process of this number
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from expkit.config import thaw
from expkit.errors import ParityError, UserError
from expkit.measure.environment import Activity
from expkit.measurement import Measurement
from expkit.processes import die_with_parent
from expkit.tracking.tracker import one_line

SAID = "output.txt"
"""What a cell's process printed."""

Message = dict[str, Any]


class Ended(Exception):
    """A worker that will not answer any more, with the reason."""


class Worker:
    """The parent's side."""

    def __init__(self, env: Mapping[str, str], cpus: Sequence[int] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "expkit.sweep.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        self._death = os.pidfd_open(self.pid)
        if cpus:
            os.sched_setaffinity(self.pid, cpus)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Of its answers, to wait for several."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    @property
    def signs(self) -> tuple[Worker, int]:
        """What to wait on for its answer, or its death."""
        return self, self._death

    def tell(self, **request: Any) -> None:
        """Wake it and hand it a request.

        Raises:
            Ended: it is gone.
        """
        assert self._process.stdin is not None
        self.wake()
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Ended(self._reason()) from None

    def hear(self, limit_s: float | None = None) -> Message:
        """Its next answer.

        Raises:
            Ended: it is gone, or was ended here because it took longer than `limit_s`.
        """
        limit_s = None if limit_s is None else max(0.0, limit_s)
        heard = select.select(self.signs, [], [], limit_s)[0]
        if not heard:
            self.kill()
            raise Ended("it took longer than sweep.limit_s allows")
        if self not in heard:  # what it has started may hold its end of the pipe open
            raise Ended(self._reason())
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Ended(self._reason())
        answer: Message = json.loads(line)
        return answer

    def sleep(self) -> None:
        """Stop it, threads and all, until it is told something; returns when it has stopped."""
        self._signal(signal.SIGSTOP)
        with suppress(ChildProcessError):  # gone, and known to be
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def wake(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it and whatever it started."""
        self._end_group()
        self.close()

    def close(self) -> None:
        """Let it end, wait for that, and end whatever it started."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self.wake()
        self._process.wait()
        self._end_group()
        if self._death >= 0:
            os.close(self._death)
            self._death = -1

    def _end_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _reason(self) -> str:
        status = self._process.wait()
        if status >= 0:
            return f"its process ended with status {status}"
        name = signal.Signals(-status).name
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"its process was killed by {name}{hint}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


class _Channel:
    """The child's side of the pipes. Whatever a cell reads or prints goes elsewhere."""

    def __init__(self) -> None:
        self._requests: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._answers: BinaryIO = os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)

    def read(self) -> Message | None:
        line = self._requests.readline()
        return json.loads(line) if line else None

    def write(self, kind: str, **fields: Any) -> None:
        self._answers.write(json.dumps({"is": kind, **fields}).encode() + b"\n")
        self._answers.flush()

    def ask(self, kind: str, **fields: Any) -> Message:
        """Say so, and wait for what comes."""
        self.write(kind, **fields)
        request = self.read()
        if request is None:
            os._exit(0)  # the parent has hung up
        return request


def _run(request: Message, channel: _Channel) -> None:
    """One cell, from its import to its end; every way to fail is an answer."""
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SAID).open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        outcome, reason = _outcome(request, folder, channel)
    except BaseException as error:  # sys.exit too: it is this cell's affair alone
        outcome, reason = "failed", one_line(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if not (folder / SAID).stat().st_size:
        (folder / SAID).unlink()
    if not request["timed"]:  # else this process ends
        gc.collect()
    channel.write("done", outcome=outcome, reason=reason)


def _outcome(request: Message, folder: Path, channel: _Channel) -> tuple[str, str]:
    from expkit import runner
    from expkit.config import Cell
    from expkit.measurement import Result
    from expkit.report import plots

    def drive(parts: Sequence[Measurement]) -> tuple[str | None, Activity]:
        if not timed:
            for part in parts:
                part.repeat()
            return None, Activity(None, None, None)
        return _obey(parts, channel)

    def prepared() -> None:
        if timed:
            channel.ask("prepared")

    def silent(*_: Any) -> None: ...

    def draw(cell: Cell, result: Result, folder: Path) -> list[str]:
        if not timed:
            return []
        channel.ask("measured")  # drawing takes a while, and may be done beside others' drawing
        return plots.draw(cell, result, folder)

    cell, timed, tags = thaw(request["cell"]), request["timed"], request["tags"]
    try:
        runner.require(cell)
    except UserError as error:
        return "unavailable", str(error)
    cell.backend.configure()
    _spare_libraries()
    if timed:
        channel.ask("here")
    jobs = [(cell, folder)]
    try:
        (result,) = runner.run_together(
            jobs, None, silent, draw, tags=tags, prepared=prepared, drive=drive, timed=timed
        )
    except UserError as error:
        return "failed", str(error)
    return result.outcome, result.reason or ""


@cache
def _spare_libraries() -> None:
    """Before the first cell: no collection looks again at what has been imported."""
    gc.freeze()


def _obey(parts: Sequence[Measurement], channel: _Channel) -> tuple[str | None, Activity]:
    """Repeats as the parent asks for them."""
    if not parts:
        return None, Activity(None, None, None)
    (part,) = parts
    request = channel.ask("ready", facts=part.result.facts, expected_s=part.expected_s)
    if request["do"] == "refuse":
        raise ParityError(request["unlike"])
    while request["do"] != "stop":
        if request["do"] == "place":
            part.place()
            request = channel.ask("placed")
        else:
            more = part.repeat()
            last = part.result.processes[0][-1][-1] if more else None
            request = channel.ask("repeated", seconds=last)
    part.result.unlike += request["unlike"]
    part.journal.tags(request["tags"])
    return request["stopped_by"], Activity(**request["activity"])


def _child(parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    channel = _Channel()
    while (request := channel.read()) is not None:
        _run(request, channel)
    os._exit(0)  # the interpreter's tidying up takes longer than the work


if __name__ == "__main__":
    _child(int(sys.argv[1]))
