"""Child processes: other Python interpreters, which answer requests in messages of one line each.

A child runs the function `serve` of an expkit module (`expkit.child.__main__`). Both sides first
send `Hello`, and then exchange messages: dataclasses, each as a line of JSON. Nothing else passes
between the processes, so a child may be another interpreter, or another commit, as long as both use
the same version of the messages.

A child is the leader of a process group. If its parent dies, even by SIGKILL, the kernel kills the
child, and a watcher that the child has forked kills its group (Linux). A child that has to outlive
its parent, as MLflow's does, has no watcher.

Python puts the current folder first on the module path of what it starts with `-m`: a file
`random.py` there would be imported in place of the standard library's. So a child searches this
folder last, and only if this interpreter searches it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from expkit import streams

VERSION = 5
"""The version of the messages as a whole."""
WATCHER = "EXPKIT_WATCHER"
"""The environment variable with the descriptor of the pipe that a child's watcher holds open."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Keeps the current folder off the module path of what a child starts in turn."""
NOTHING: Mapping[str, str] = {}

Message = Any
"""A frozen dataclass whose fields JSON can hold."""


@dataclass(frozen=True)
class Hello:
    """The first message of each side.

    Attributes:
        version: the version of the messages that it uses.
        path: the module path of the parent's interpreter; empty from a child.
    """

    version: int
    path: Sequence[str]


class Gone(Exception):
    """A child will not answer any more; the message says why."""


class Late(Exception):
    """A child has not answered within the time that it had."""


def command(module: str, *words: str) -> list[str]:
    """The command that runs a module in another interpreter."""
    return [sys.executable, "-P", "-m", module, *words]


def own_path() -> list[str]:
    """The module path of this interpreter, for `look_there_too` in a child."""
    return [str(Path(entry).absolute()) for entry in sys.path]


def look_there_too(path: Sequence[str]) -> None:
    """Append these folders to the module path."""
    sys.path += [entry for entry in path if entry not in sys.path]


def encode(message: Message) -> bytes:
    """Write a message as a line."""
    said = {field.name: getattr(message, field.name) for field in fields(message)}
    return json.dumps({"is": type(message).__name__, **said}).encode() + b"\n"


def decode(line: bytes, kinds: Sequence[type]) -> Message:
    """Read a message from a line.

    Raises:
        ValueError: the message is none of these kinds.

    >>> decode(encode(Hello(1, ["a"])), [Hello])
    Hello(version=1, path=['a'])
    """
    said = json.loads(line)
    name = said.pop("is", None) if isinstance(said, dict) else None
    found = next((kind for kind in kinds if kind.__name__ == name), None)
    if found is None or said.keys() != {field.name for field in fields(found)}:
        raise ValueError(f"got {line[:80]!r}, takes one of {[kind.__name__ for kind in kinds]}")
    return found(**said)


class Child:
    """The parent's side of a child.

    Args:
        module: an expkit module with `REQUESTS`, the kinds of messages that it takes, and `serve`,
            which is called with a `Parent`.
        answers: the kinds of messages that it answers with.
        env: what its environment has besides this process's.
        outlives: whether it goes on after this process has died.
    """

    def __init__(
        self,
        module: str,
        answers: Sequence[type],
        env: Mapping[str, str] = NOTHING,
        *,
        outlives: bool = False,
    ) -> None:
        self._answers = answers
        self._watcher: int | None = None
        its: int | None = None
        if not outlives:
            self._watcher, its = os.pipe()
        more = {} if its is None else {WATCHER: str(its)}
        self._process = subprocess.Popen(
            command("expkit.child", module, str(os.getpid()), *["outlives"] * outlives),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **SAFE_PATH, **env, **more},
            pass_fds=[] if its is None else [its],
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        if its is not None:
            os.close(its)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        self._death = os.pidfd_open(self.pid)
        self._unsent, self._heard, self._greeted = b"", b"", False
        self.put(Hello(VERSION, own_path()))
        with suppress(Gone, Late):  # the next request raises it again
            self.flush(0.0)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def signs(self) -> tuple[int, int]:
        """The descriptors to wait on for its answer, or for its death."""
        return self._from, self._death

    @property
    def ended_well(self) -> bool:
        """Whether it has ended, with status 0."""
        return self._process.poll() == 0

    def pin(self, cpus: Sequence[int]) -> None:
        """Restrict it to these processors."""
        os.sched_setaffinity(self.pid, cpus)

    def tell(self, message: Message) -> None:
        """Let it go on, and send it a message.

        Raises:
            Gone: it has ended.
        """
        self.resume()
        self.put(message)
        self.flush()

    def put(self, message: Message) -> None:
        """Queue a message; `flush` sends it."""
        self._unsent += encode(message)

    def flush(self, within_s: float | None = None) -> None:
        """Send the messages that were queued.

        Raises:
            Gone: it has ended.
            Late: it has not read all of them in time; the rest stays queued.
        """
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._to, self._unsent) :]
            except BlockingIOError:  # the pipe is full
                if not any(select.select([self._death], [self._to], [], within_s)):
                    raise Late from None
            except BrokenPipeError:
                self._unsent = b""
                raise Gone(self.reason()) from None

    def greet(self, within_s: float | None = None) -> None:
        """Wait for its Hello. If stopped before that, it could stay so even when its parent dies.

        Raises:
            Gone: it has ended, or uses another version of the messages.
            Late: it has not sent it in time.
        """
        if not self._greeted:
            hello = self._decoded(self._line(within_s), [Hello])
            self._greeted = True
            if hello.version != VERSION:
                self.kill()
                raise Gone(f"speaks version {hello.version} of the messages, not {VERSION}")

    def hear(self, within_s: float | None = None) -> Message:
        """Wait for its next answer.

        Raises:
            Gone: it has ended, or uses another version of the messages.
            Late: there is none in time.
        """
        self.greet(within_s)
        return self._decoded(self._line(within_s), self._answers)

    def _decoded(self, line: bytes, kinds: Sequence[type]) -> Message:
        try:
            return decode(line, kinds)
        except ValueError as error:
            self.kill()
            raise Gone(f"said what is no message: {error}") from None

    def _line(self, within_s: float | None) -> bytes:
        end = None if within_s is None else time.monotonic() + max(0.0, within_s)
        while b"\n" not in self._heard:
            left_s = None if end is None else max(0.0, end - time.monotonic())
            ready = select.select(self.signs, [], [], left_s)[0]
            if not ready:
                raise Late
            # Processes that it has started may hold its end of the pipe open when it is dead.
            more = os.read(self._from, 1 << 16) if self._from in ready else b""
            if not more:
                raise Gone(self.reason())
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def stop(self) -> None:
        """Stop all its threads until the next `tell`; return when it has stopped."""
        self._signal(signal.SIGSTOP)
        with suppress(ChildProcessError):  # it has ended, and has been waited for
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def hang_up(self) -> None:
        """Close its input, which tells it that no more requests will come."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def kill(self) -> None:
        """End it and whatever it started."""
        self._end_group()
        self.close()

    def close(self) -> None:
        """Let it end, wait for that, and end whatever it started."""
        self.hang_up()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.resume()
        self._process.wait()
        self._end_group()
        if self._death >= 0:
            os.close(self._death)
            self._death = -1
        if self._watcher is not None:
            os.read(self._watcher, 1)  # returns when the watcher is gone
            os.close(self._watcher)
            self._watcher = None

    def reason(self) -> str:
        """How it ended, worded to follow its name in a message."""
        status = self._process.wait()
        if status >= 0:
            return f"ended with status {status}"
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-status, f"signal {-status}")
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"was killed by {name}{hint}"

    def _end_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


class Parent:
    """The child's side: ties its life to its parent's, then takes requests and answers them.

    For all other code in the child, standard input and output are /dev/null.

    Args:
        pid: the id of the parent.
        outlives: whether it goes on after its parent has died; if stopped, the kernel continues it.
    """

    def __init__(self, pid: int, *, outlives: bool) -> None:
        self.pid = pid
        self.requests: Sequence[type] = ()
        """The kinds of messages that the parent may send."""
        _die_with_parent(signal.SIGCONT if outlives else signal.SIGKILL)
        if os.getppid() != self.pid and not outlives:
            os._exit(1)  # it died before `_die_with_parent`: no signal would ever end this process
        if WATCHER in os.environ:
            _watch(self.pid, int(os.environ.pop(WATCHER)))
        self._from: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._to: BinaryIO = os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.close(nothing)
        streams.protect()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.disable()
        self.tell(Hello(VERSION, []))
        hello = self._read([Hello])
        if hello is None or hello.version != VERSION:
            os._exit(1)  # the parent has hung up, or reports the other version itself
        look_there_too(hello.path)

    def tell(self, message: Message) -> None:
        """Send an answer; if the parent has died, it is dropped."""
        with suppress(BrokenPipeError):
            self._to.write(encode(message))
            self._to.flush()

    def hear(self) -> Message | None:
        """Wait for the next request; None if the parent has hung up."""
        return self._read(self.requests)

    def _read(self, kinds: Sequence[type]) -> Message | None:
        line = self._from.readline()
        return decode(line, kinds) if line.endswith(b"\n") else None


def _die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies (Linux)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, number)


def _watch(parent: int, pipe: int) -> None:
    """Fork a process that kills this one's group once the parent or this process is gone.

    It is not a child of this process: code that waits for all children does not wait for it.
    """
    own = os.getpid()
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        os.close(pipe)
        return
    if os.fork():
        os._exit(0)
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"expkit-watcher")
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        with suppress(ProcessLookupError):
            select.select([os.pidfd_open(parent), os.pidfd_open(own)], [], [])
        os.killpg(own, signal.SIGKILL)
    finally:
        os._exit(0)
