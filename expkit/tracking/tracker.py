"""MLflow in a process of its own, so that its second of start-up passes beside the run.

The process sends runs to the addresses that it was told and to no other, whatever a journal says.
While the clock runs it is stopped (SIGSTOP), so that it takes no cycle from what is measured. If
the parent dies, the kernel wakes it (Linux): it ends the run as KILLED with all that was measured.

Neither waits for ever. A process that comes to nothing for `PATIENCE_S` is ended: what it has not
sent is in the journals, and can be sent later. Its own side is `expkit.tracking.sender`.
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
"""A measurement longer than this waits until its run is in MLflow, then begins."""
BACKLOG = 50
"""Requests that may wait for an answer. Each takes room in a pipe that must not fill."""
REFRESH_S = 10.0
"""How old what MLflow shows of a long run may get."""
PATIENCE_S = 60.0
"""How long MLflow may keep us waiting, in all, without having taken anything in between."""
HURRIED_S = (10.0, 0.5, 0.0)
"""And how much longer, in all, once somebody wants to end: by the first wish, the next, ..."""
LOOK_S = 0.2
"""How often a wait looks whether somebody wants to end."""


@dataclass(frozen=True)
class Allow:
    """Let runs be sent whose journals name an address. No answer.

    Attributes:
        kept: as journals have it, without a password.
        uri: where to send them, whole.
    """

    kept: str
    uri: str


@dataclass(frozen=True)
class Send:
    """Send what is new in a run's journal; answered by `Sent`.

    Attributes:
        last: have it tried again where it was refused before.
    """

    folder: str
    last: bool


@dataclass(frozen=True)
class Progress:
    """Said beside the answers, at most once a second: MLflow has taken something."""


@dataclass(frozen=True)
class Sent:
    """What became of a run: its id in MLflow, or the reason why it is not there."""

    run_id: str | None
    error: str | None


class Tracker:
    """The parent's side. Starting costs a few milliseconds; the process gets ready meanwhile."""

    def __init__(self) -> None:
        self._child = Child("expkit.tracking.sender", [Sent, Progress], outlives=True)
        self._unanswered = 0
        self._folders: set[Path] = set()
        self.trouble = "it was not waited for"
        """What has kept MLflow from taking a run, last of all."""
        self._gone: str | None = None
        self._hurried = 0
        self._left_s = PATIENCE_S
        self._last = time.monotonic()

    def allow(self, kept: str, uri: str) -> None:
        """Let runs be sent whose journals name this address; see `Allow`."""
        self._tell(Allow(kept, uri))

    def update(self, folder: Path, *, wait: bool = False, last: bool = False) -> Sent:
        """Send what is new in this run's journal; without `wait`, some time soon.

        Args:
            last: wait, and have it tried again where it was refused before.
        """
        self._folders.add(folder)
        wait = wait or last
        if wait:  # it may have been stopped where a signal came at a bad moment
            self._child.resume()
        self._tell(Send(str(folder), last))
        self._unanswered += self._gone is None
        answer = Sent(None, self._gone)
        while self._unanswered > (0 if wait else BACKLOG):
            answer = self._answer()
        self._last = time.monotonic()
        return answer

    @contextmanager
    def quiet(self, folder: Path, expected_s: float) -> Iterator[None]:
        """Keep the process from running; first let a long run appear in MLflow."""
        if expected_s > SHOWN_LIVE_S:
            self.update(folder, wait=True)
        try:
            self._stop()
            yield
        finally:
            self._child.resume()

    def refresh(self, folder: Path) -> None:
        """Inside `quiet`, off the clock: send what is new if the last time is long ago."""
        if time.monotonic() - self._last > REFRESH_S:
            self.update(folder, wait=True)
            self._stop()

    def settle(self) -> None:
        """Wait until all that was asked for is done."""
        self._child.resume()
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
        """Wait for the process as long as there is patience left; then, or if it is gone, None."""
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
                else:  # MLflow comes on
                    self._left_s = PATIENCE_S
                return answer
            self._left_s -= time.monotonic() - begun
            if self._left_s <= 0:
                waited_s = HURRIED_S[self._hurried - 1] if self._hurried else PATIENCE_S
                self._gone = self.trouble = f"no answer within {waited_s:g} s"
                self._child.kill()
        return None

    def _stop(self) -> None:
        """Not before it has said Hello: until then it could stay stopped for ever, if we died."""
        self._patiently(self._child.greet)
        if self._gone is None:
            self._child.stop()
