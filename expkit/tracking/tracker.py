"""MLflow in a separate process, so that its start-up, about a second, overlaps with the run.

The process sends runs only to the addresses that it was given, whatever a journal says. While the
clock runs it is stopped (SIGSTOP), so that it takes no CPU time from the measurement. If the parent
dies, the kernel wakes it (Linux), and it ends the run as KILLED with all that was measured.

Neither side waits for ever. A process that makes no progress for `PATIENCE_S` is killed: what it
has not sent is in the journals and can be sent later. Its code is in `expkit.tracking.sender`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expkit.child import Child, Gone, Late, Message
from expkit.tracking import sync_state

SHOWN_LIVE_S = 2.0
"""A measurement that will take longer begins only when its run is in MLflow."""
BACKLOG = 50
"""Requests that may wait for an answer. Each takes room in a pipe that must not fill."""
REFRESH_S = 10.0
"""Time after which a long run is updated in MLflow."""
PATIENCE_S = 60.0
"""Total time to wait for MLflow while it makes no progress."""
HURRIED_S = (10.0, 0.5, 0.0)
"""Most time to wait after the user's first interrupt, the second, and all later ones."""
LOOK_S = 0.2
"""Interval at which a wait checks whether the user has interrupted it."""


@dataclass(frozen=True)
class Allow:
    """Allow runs to be sent whose journals name an address. There is no answer.

    Attributes:
        kept: the address as journals have it, without a password.
        uri: the address to send them to, with its password.
    """

    kept: str
    uri: str


@dataclass(frozen=True)
class Send:
    """Send what is new in a run's journal; answered by `Sent`.

    Attributes:
        last: whether to try again after an earlier failure.
    """

    folder: str
    last: bool


@dataclass(frozen=True)
class Describe:
    """Show a sweep on an experiment's page, which is there; answered by `Sent`.

    Attributes:
        kept: its address, one that was allowed, without a password.
        sweep: the sweep's id.
        text: in Markdown; `{experiment}` in it stands for the experiment's id.
    """

    kept: str
    experiment: str
    sweep: str
    text: str


@dataclass(frozen=True)
class Progress:
    """MLflow has accepted something; sent between the answers, at most once a second."""


@dataclass(frozen=True)
class Sent:
    """What became of a run: its id in MLflow, or the reason why it is not there.

    For a description there is no id.
    """

    run_id: str | None
    error: str | None


class Tracker:
    """The parent's side. It is made in a few milliseconds; its process then gets ready."""

    def __init__(self) -> None:
        self._child = Child("expkit.tracking.sender", [Sent, Progress], outlives=True)
        self._unanswered = 0
        self._folders: set[Path] = set()
        self.trouble = "it was not waited for"
        """The latest reason why MLflow did not accept a run."""
        self._gone: str | None = None
        self._hurried = 0
        self._left_s = PATIENCE_S
        self._last = time.monotonic()

    def allow(self, kept: str, uri: str) -> None:
        """Let runs be sent whose journals name this address; see `Allow`."""
        self._tell(Allow(kept, uri))

    def update(self, folder: Path, *, wait: bool = False, last: bool = False) -> Sent:
        """Send what is new in this run's journal; without `wait`, return before it is sent.

        Args:
            last: wait, and try again even after an earlier failure.
        """
        self._folders.add(folder)
        answer = self._ask(Send(str(folder), last), wait=wait or last)
        self._last = time.monotonic()
        return answer

    def describe(self, kept: str, experiment: str, sweep: str, text: str) -> Sent:
        """Show a sweep on an experiment's page, and wait for that; see `Describe`."""
        return self._ask(Describe(kept, experiment, sweep, text), wait=True)

    @contextmanager
    def quiet(self, folder: Path, expected_s: float) -> Iterator[None]:
        """Stop the process during the block; before that, let a long run appear in MLflow."""
        if expected_s > SHOWN_LIVE_S:
            self.update(folder, wait=True)
        try:
            self._stop()
            yield
        finally:
            self._child.resume()

    def refresh(self, folder: Path) -> None:
        """Send what is new if the last time is long ago. For use inside `quiet`, off the clock."""
        if time.monotonic() - self._last > REFRESH_S:
            self.update(folder, wait=True)
            self._stop()

    def settle(self) -> None:
        """Wait until all requests are answered."""
        self._child.resume()
        while self._unanswered:
            self._answer()

    @property
    def hurried(self) -> bool:
        """Whether the user has interrupted the program."""
        return self._hurried > 0

    def hurry(self) -> None:
        """Wait at most `HURRIED_S` from now on, after an interrupt. Safe in a signal handler."""
        self._left_s = min(self._left_s, HURRIED_S[min(self._hurried, len(HURRIED_S) - 1)])
        self._hurried += 1

    def close(self) -> None:
        """Let the process finish what it was asked and end."""
        try:
            self._child.resume()
            self._child.hang_up()
            while self._gone is None:
                self._patiently(self._child.hear)
        finally:
            self._child.kill()

    def missing(self) -> list[Path]:
        """The runs that it was asked to send and that are not all in MLflow."""
        return [folder for folder in sorted(self._folders) if not sync_state.is_whole(folder)]

    def _ask(self, request: Send | Describe, *, wait: bool) -> Sent:
        if wait:  # a signal at a bad moment may have left it stopped
            self._child.resume()
        self._tell(request)
        self._unanswered += self._gone is None
        answer = Sent(None, self._gone)
        while self._unanswered > (0 if wait else BACKLOG):
            answer = self._answer()
        return answer

    def _answer(self) -> Sent:
        while True:
            answer = self._patiently(self._child.hear)
            if self._gone is not None:
                self._unanswered = 0
                return Sent(None, self._gone)
            if isinstance(answer, Sent):
                self._unanswered -= 1
                self.trouble = answer.error or self.trouble
                return answer

    def _tell(self, message: Message) -> None:
        if self._gone is None:
            self._child.put(message)
            self._patiently(self._child.flush)

    def _patiently(self, what: Callable[[float], Message | None]) -> Message | None:
        """Wait for the process while there is time left; None after that, or if it is gone."""
        while self._gone is None:
            begun = time.monotonic()
            try:
                answer = what(max(0.0, min(LOOK_S, self._left_s)))
            except Late:
                answer = None
            except Gone as gone:
                self._gone = f"the tracking process {gone}"
                if not self._child.ended_well:
                    self.trouble = self._gone
                return None
            else:
                if not isinstance(answer, Progress) or self._hurried:
                    self._left_s -= time.monotonic() - begun
                else:  # MLflow makes progress
                    self._left_s = PATIENCE_S
                return answer
            self._left_s -= time.monotonic() - begun
            if self._left_s <= 0:
                waited_s = HURRIED_S[self._hurried - 1] if self._hurried else PATIENCE_S
                self._gone = self.trouble = f"no answer within {waited_s:g} s"
                self._child.kill()
        return None

    def _stop(self) -> None:
        """Stop the process after its Hello: before that it would stay stopped if we died."""
        self._patiently(self._child.greet)
        if self._gone is None:
            self._child.stop()
