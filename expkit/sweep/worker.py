"""The parent's side of a process that runs cells for a sweep: a fresh interpreter.

The parent sends one line of JSON that says where to look for modules, then one for each request;
the child answers a request with one or more. While it is not asked anything a child that is to be
measured is stopped (SIGSTOP): it sleeps, and so do its threads, which after a parallel loop would
go on spinning for a while. Should the parent die, the kernel ends the child (Linux). Its own side
is `expkit.sweep.child`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from expkit import children

SAID = "output.txt"
"""What a cell's process printed."""

Message = dict[str, Any]


_spares: list[subprocess.Popen[bytes]] = []


@contextmanager
def spares(count: int) -> Iterator[None]:
    """Start interpreters that get ready beside what is done here, for the first workers."""
    try:
        with suppress(OSError):  # a worker that finds none starts its own, and tells
            _spares.extend(_start({}) for _ in range(count))
        yield
    finally:
        end_spares()


def end_spares() -> None:
    """End those that no worker has taken."""
    while _spares:
        with _spares.pop() as process:
            process.kill()


def _start(env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        children.command("expkit.sweep.child", str(os.getpid())),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **children.SAFE_PATH, **env},
        start_new_session=True,  # Ctrl-C is the parent's to handle
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it is gone already, which is told when it is asked
        process.stdin.write(json.dumps({"path": children.own_path()}).encode() + b"\n")
        process.stdin.flush()
    return process


class Ended(Exception):
    """A worker that will not answer any more, with the reason."""


class Worker:
    """A child, and what it is asked. A spare one where it needs nothing of its own."""

    def __init__(self, env: Mapping[str, str], cpus: Sequence[int] | None = None) -> None:
        taken = _spares.pop() if _spares and not env and not cpus else None
        self._process = taken or _start(env)
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
