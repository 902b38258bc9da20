"""A trial in a process of its own: the parent's end, and the messages between both ends.

The process is stopped (SIGSTOP) while it has no request to answer, and so are its threads, which
would otherwise go on spinning for a while after a parallel loop. The far end is `expkit.far_end`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from expkit.child import NOTHING, Child, Gone, Late, Message
from expkit.config import Cell, thaw
from expkit.errors import is_disk_full
from expkit.measure.environment import Activity
from expkit.measure.parity import Facts
from expkit.measure.statistics import Rounds, nested
from expkit.outcome import Outcome
from expkit.record.writing import record_failure
from expkit.tracking import journal
from expkit.tracking.tracker import Tracker

SAID = "output.txt"
"""The file in the run's folder that has what the cell's process printed."""
FOR_EVER_S = 1e9
"""The seconds that a cell may take where there is no limit."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Begin:
    """Make a trial of a cell.

    Attributes:
        cell: the frozen cell, for `expkit.config.thaw`.
        timed: false to have it run to its end without further requests, and without times.
        checkpoint: the file to go on from; empty to begin at the start.
    """

    cell: Mapping[str, Any]
    folder: str
    tags: Mapping[str, str]
    timed: bool
    checkpoint: str


@dataclass(frozen=True)
class Prepare:
    """Call `Trial.prepare`. Like all requests below, it calls the method of its name; the answer is
    `State` unless they say otherwise.
    """


@dataclass(frozen=True)
class FindAnswer: ...


@dataclass(frozen=True)
class Place: ...


@dataclass(frozen=True)
class Repeat:
    """Answered by `Repeated`."""


@dataclass(frozen=True)
class TakeIn:
    outcome: str
    reason: str
    rounds: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Conclude:
    stopped_by: str | None
    activity: Mapping[str, float | None]


@dataclass(frozen=True)
class Refuse:
    unlike: Sequence[str]


@dataclass(frozen=True)
class Finish:
    """The last request; answered by `Done`."""

    tags: Mapping[str, str]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class State:
    """The state of a trial after a request.

    Attributes:
        lives: whether it may still give valid times.
        facts: what its program works with.
        broken: where that differs from what it claims.
        expected_s: about how long the least number of its repeats takes.
        until_target: once it is concluded, as `Trial.until_target`.
    """

    lives: bool
    facts: Facts
    broken: Sequence[str]
    expected_s: float
    until_target: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Repeated:
    """Seconds of a repeat; None if the trial can have no more repeats."""

    seconds: float | None


@dataclass(frozen=True)
class Done:
    """The trial has ended.

    Attributes:
        full: whether it failed because the disk is full.
    """

    outcome: str
    reason: str
    full: bool = False


REQUESTS = (Begin, Prepare, FindAnswer, Place, Repeat, TakeIn, Conclude, Refuse, Finish)
ANSWERS = (State, Repeated, Done)


_prestarted: list[Child] = []


def worker(env: Mapping[str, str] = NOTHING) -> Child:
    """Return a process for trials: one started in advance, unless it needs variables of its own."""
    return _prestarted.pop() if _prestarted and not env else Child("expkit.far_end", ANSWERS, env)


@contextmanager
def prestarted(count: int) -> Iterator[None]:
    """Start processes in advance for the first trials; they get ready while this one goes on."""
    try:
        with suppress(OSError):  # a trial that finds none starts its own, and reports the error
            _prestarted.extend(Child("expkit.far_end", ANSWERS) for _ in range(count))
        yield
    finally:
        end_prestarted()


def end_prestarted() -> None:
    """End the processes that no trial has taken."""
    while _prestarted:
        _prestarted.pop().kill()


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables that the libraries of a cell's process read on import."""
    threads = config["backend"].get("threads")
    return dict.fromkeys(THREADS, str(threads)) if threads else {}


Ended = Callable[[str, str], None]
"""Called with a trial's outcome and, if that is not ok, the reason."""


@dataclass
class Attempt:
    """A run of a cell that another process makes.

    Attributes:
        frozen: the frozen cell, for `expkit.config.thaw`.
        outcome: the outcome, once there is one.
        checkpoint: the file to go on from; None to begin at the start.
    """

    frozen: Mapping[str, Any]
    folder: Path
    tags: Mapping[str, str]
    tracker: Tracker | None
    ended: Ended = lambda outcome, reason: None
    outcome: str | None = None
    checkpoint: Path | None = None

    def begin(self, *, timed: bool) -> Begin:
        """The first request to its process."""
        checkpoint = str(self.checkpoint or "")
        return Begin(self.frozen, str(self.folder), self.tags, timed, checkpoint)

    def end(self, done: Done) -> None:
        """Note the outcome, and end the journal if the process has not.

        Raises:
            OSError: the disk is full, so that the cells that are left would fail too.
        """
        self.outcome = done.outcome
        if done.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not (self.folder / journal.FILE).exists() or not journal.is_ended(self.folder):
            cell = thaw(self.frozen)
            record_failure(cell, self.folder, self.tags, done.outcome, done.reason)
        self.ended(done.outcome, done.reason)

    def interrupt(self) -> None:
        """Record an attempt that has not ended as interrupted, if the disk has room for that."""
        if self.outcome is None:
            full = is_disk_full(sys.exception())
            with suppress(OSError):
                why = "the disk is full" if full else "stopped before its end"
                self.end(Done(Outcome.INTERRUPTED, why))

    def send(self) -> None:
        """Have the tracker send the journal to MLflow soon. Not while the tracker is stopped."""
        if self.tracker and (self.folder / journal.FILE).exists():
            self.tracker.update(self.folder)


class RemoteTrial(AbstractContextManager["RemoteTrial"]):
    """A trial in a process of its own. Whatever goes wrong in it is recorded as its outcome.

    `find_answer` and `finish` only begin, so that trials do this work side by side; `wait` waits
    until it is done.

    Args:
        env: variables that its process has besides this process's own.
        placed: called with the number of each round when it begins.
        timeout_s: how many seconds it may take altogether.
    """

    def __init__(
        self,
        cell: Cell,
        attempt: Attempt,
        *,
        env: Mapping[str, str] = NOTHING,
        placed: Callable[[int], None] = lambda number: None,
        timeout_s: float = FOR_EVER_S,
    ) -> None:
        self.cell, self.folder, self.tracker = cell, attempt.folder, attempt.tracker
        self.attempt = attempt
        self._processes: list[list[list[float]]] = [[]]
        self.facts: Facts = {}
        self.broken: Sequence[str] = ()
        self.expected_s = 0.0
        self.until_target: Rounds = []
        self._lives = True
        self._placed, self._left_s = placed, timeout_s
        self._child = worker({**environment(cell.frozen["config"]), **env})
        self._ask(attempt.begin(timed=True))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self.attempt.outcome is None:
            self._child.kill()
            self.attempt.interrupt()
        self._child.kill()
        self.attempt.send()

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._child.pid

    @property
    def rounds(self) -> Rounds:
        """The repeats by placement or, if several processes measured, by process."""
        return nested(self._processes)

    @property
    def lives(self) -> bool:
        """Whether it has not ended and may still give valid times."""
        return self._lives and self.attempt.outcome is None

    def prepare(self) -> None:
        self._answered(Prepare())

    def find_answer(self) -> None:
        """Ask for the answer to be computed; `wait` waits for that."""
        self._ask(FindAnswer())
        self.attempt.send()

    def place(self) -> None:
        if self.attempt.outcome is None:
            self._processes[0].append([])
            self._placed(len(self._processes[0]))
            self._answered(Place())

    def repeat(self) -> float | None:
        answer = self._answered(Repeat())
        seconds = answer.seconds if isinstance(answer, Repeated) else None
        if seconds is None:
            self._lives = False
            return None
        self._processes[0][-1].append(seconds)
        if self.tracker:
            self.tracker.refresh(self.folder)
        return seconds

    def take_in(self, outcome: str, reason: str, rounds: Rounds) -> None:
        self._answered(TakeIn(outcome, reason, rounds))
        if outcome == Outcome.OK:
            self._processes.append([list(repeats) for repeats in rounds])

    def conclude(self, stopped_by: str | None, activity: Activity) -> None:
        self._answered(Conclude(stopped_by, asdict(activity)))

    def refuse(self, unlike: Sequence[str]) -> None:
        self._answered(Refuse(unlike))

    def finish(self, tags: Mapping[str, str], figures: Mapping[str, float]) -> None:
        """Ask the trial to finish; `wait` waits for that."""
        self._ask(Finish(tags, figures))
        self.attempt.send()

    def _ask(self, request: Message) -> None:
        if self.attempt.outcome is None:
            with suppress(Gone):  # `Child.hear` will raise it again
                self._child.tell(request)

    def _answered(self, request: Message) -> Message | None:
        self._ask(request)
        return self.wait()

    def wait(self) -> Message | None:
        """Wait for the answer to the last request, then stop the process until the next one."""
        if self.attempt.outcome is not None:
            return None
        begun = monotonic()
        try:
            answer = self._child.hear(max(0.0, self._left_s))
        except Gone as error:
            answer = Done(Outcome.FAILED, f"its process {error}")
        except Late:
            self._child.kill()
            answer = Done(Outcome.FAILED, "it took longer than sweep.limit_s allows")
        self._child.stop()
        if isinstance(answer, Done):
            self.attempt.end(answer)
        elif isinstance(answer, State):
            self._lives, self.facts, self.broken = answer.lives, answer.facts, answer.broken
            self.expected_s, self.until_target = answer.expected_s, answer.until_target
        self._left_s -= monotonic() - begun
        return answer
