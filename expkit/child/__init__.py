"""Other interpreters: started, spoken to in lines, stopped, continued, and ended with all theirs.

A child runs the function `serve` of a module of expkit's (`expkit.child.__main__`). Both sides say
`Hello` first, and then speak in messages: dataclasses, a line of JSON each. Nothing else passes
between processes, so a child may be another interpreter, or another commit, as long as both speak
one version.

A child is the leader of a process group. Should its parent die, be it by SIGKILL, the kernel kills
the child, and a watcher that the child has forked kills its group (Linux). One that is to outlive
its parent, as MLflow's is, has no watcher. Python puts the current folder first on the path of what
it starts with `-m`: a file `random.py` in it would be imported in place of the standard library's.
So a child looks there last, where this interpreter looks there.
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

VERSION = 1
"""Of the messages, all of them."""
WATCHER = "EXPKIT_WATCHER"
"""The variable that tells a child the number of the pipe which its watcher holds open."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""For the environment of a child, so that it holds for what that starts in turn."""
NOTHING: Mapping[str, str] = {}

Message = Any
"""A frozen dataclass whose fields JSON can hold."""


@dataclass(frozen=True)
class Hello:
    """What each side says first.

    Attributes:
        version: of the messages that it speaks.
        path: where the parent's interpreter looks for modules; empty from a child.
    """

    version: int
    path: Sequence[str]


class Gone(Exception):
    """A child that will not answer any more, with the reason."""


class Late(Exception):
    """A child that has not answered within the time that it had."""


def command(module: str, *words: str) -> list[str]:
    """What starts a module in another interpreter."""
    return [sys.executable, "-P", "-m", module, *words]


def own_path() -> list[str]:
    """Where this interpreter looks for modules, for `look_there_too` in a child."""
    return [str(Path(entry).absolute()) for entry in sys.path]


def look_there_too(path: Sequence[str]) -> None:
    """Look for modules in these folders as well, after all others."""
    sys.path += [entry for entry in path if entry not in sys.path]


def encode(message: Message) -> bytes:
    """A message as a line."""
    said = {field.name: getattr(message, field.name) for field in fields(message)}
    return json.dumps({"is": type(message).__name__, **said}).encode() + b"\n"


def decode(line: bytes, kinds: Sequence[type]) -> Message:
    """The message of a line.

    Raises:
        ValueError: it is none of these kinds.

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
        module: of expkit's. It has `REQUESTS`, the kinds of messages that it takes, and `serve`,
            which is called with a `Parent`.
        answers: the kinds of messages that it answers with.
        env: what its environment has beside this process's.
        outlives: it goes on when this process has died.
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
        with suppress(Gone, Late):  # told when it is asked
            self.flush(0.0)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def signs(self) -> tuple[int, int]:
        """What to wait on for its answer, or its death."""
        return self._from, self._death

    @property
    def ended_well(self) -> bool:
        """Whether it has ended, and by itself."""
        return self._process.poll() == 0

    def pin(self, cpus: Sequence[int]) -> None:
        """Leave it these processors."""
        os.sched_setaffinity(self.pid, cpus)

    def tell(self, message: Message) -> None:
        """Let it go on, and hand it a message.

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
            Late: it has not read all of them; the rest stays queued.
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
        """Hear its Hello: before that it could stay stopped for ever when its parent dies.

        Raises:
            Gone: it has ended, or speaks another version.
            Late: it has not said it yet.
        """
        if not self._greeted:
            hello = self._decoded(self._line(within_s), [Hello])
            self._greeted = True
            if hello.version != VERSION:
                self.kill()
                raise Gone(f"speaks version {hello.version} of the messages, not {VERSION}")

    def hear(self, within_s: float | None = None) -> Message:
        """Its next answer.

        Raises:
            Gone: it has ended, or speaks another version.
            Late: there is none yet.
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
            # What it has started may hold its end of the pipe open when it is dead.
            more = os.read(self._from, 1 << 16) if self._from in ready else b""
            if not more:
                raise Gone(self.reason())
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def stop(self) -> None:
        """Stop it, threads and all, until it is told something; returns when it has stopped."""
        self._signal(signal.SIGSTOP)
        with suppress(ChildProcessError):  # gone, and known to be
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def hang_up(self) -> None:
        """Tell it that there is nothing more to come."""
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
            os.read(self._watcher, 1)  # its end, when the watcher is gone
            os.close(self._watcher)
            self._watcher = None

    def reason(self) -> str:
        """How it ended, to follow what it is called."""
        status = self._process.wait()
        if status >= 0:
            return f"ended with status {status}"
        name = signal.Signals(-status).name
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"was killed by {name}{hint}"

    def _end_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


class Parent:
    """The child's side: ties it to its parent, then hears requests and answers them.

    Whatever else reads standard input or prints to standard output gets nothing and is not heard.

    Args:
        pid: of the parent.
        outlives: it goes on when its parent has died; the kernel continues it, if it was stopped.
    """

    def __init__(self, pid: int, *, outlives: bool) -> None:
        self.pid = pid
        self.requests: Sequence[type] = ()
        """The kinds of messages that it is asked with."""
        _die_with(self.pid, signal.SIGCONT if outlives else signal.SIGKILL)
        if os.getppid() != self.pid and not outlives:
            os._exit(1)  # it died before: this process would go on, beside its successor's
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
            os._exit(1)  # the parent has hung up, or says so itself
        look_there_too(hello.path)

    def tell(self, message: Message) -> None:
        """Answer. A parent that has died hears nothing."""
        with suppress(BrokenPipeError):
            self._to.write(encode(message))
            self._to.flush()

    def hear(self) -> Message | None:
        """The next request; None where the parent has hung up."""
        return self._read(self.requests)

    def _read(self, kinds: Sequence[type]) -> Message | None:
        line = self._from.readline()
        return decode(line, kinds) if line.endswith(b"\n") else None


def _die_with(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies (Linux)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, number)


def _watch(parent: int, pipe: int) -> None:
    """Fork a process that kills this one's group once the parent or this process is gone.

    It is nobody's child, so that a cell's code that waits for its children does not wait for it.
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
