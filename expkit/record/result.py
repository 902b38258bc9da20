"""The progress of a trial, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from expkit.contracts import HostArray
from expkit.measure import parity
from expkit.measure.breakdown import Breakdown
from expkit.measure.roofline import StepLimit
from expkit.measure.statistics import Rounds, Summary, nested, summarize
from expkit.measure.warmup import WarmUp
from expkit.outcome import Outcome


@dataclass(frozen=True)
class Now:
    """The progress of a measurement at this moment.

    Attributes:
        doing: what it does, in words; empty while it measures.
        repeat: the number of the repeat, from 1; 0 before and after the timed repeats.
        done: how many steps of the repeat are done.
        loss: the last loss; None if there is none.
        steps_per_second: the speed in the last reading.
        figure: the last value that the problem evaluated, with its name; empty if there is none.
    """

    doing: str
    repeat: int = 0
    done: int = 0
    loss: float | None = None
    steps_per_second: float = 0.0
    figure: str = ""


Watch = Callable[[Now], None]
"""Called with the progress, off the clock."""


@dataclass
class Result:
    """What one cell's measurement found; filled as it goes.

    Attributes:
        outcome: ok, diverged, wrong_answer, not_synchronized, off_the_clock, beyond_limit,
            failed or interrupted.
        reason: what is wrong, if the cell ran and is not ok.
        first_bad_step: the first step with a non-finite loss, from 0.
        mode: how steps are computed, as the program reports it.
        mode_reason: why that is not the faster way; empty if it is, or if none was asked for.
        processes: seconds of each whole repeat, by placement, by process; this process first.
        chunk_seconds: the seconds of the readings of each repeat.
        cpu_seconds: the same in CPU seconds, over all threads.
        chunk_ends: the last step of each reading.
        losses: losses of the first repeat; if the run diverged, up to the end of the bad chunk.
        stopped_by: the limit that ended the repeats.
        ended: after how many steps a run ended before its last one, and why; empty if it did not.
        resumed_at: the step at which a run went on from a checkpoint; 0 if it did not.
        facts: what the program worked with.
        broken: where the facts differ from what the configuration or the backend says.
        checked: how the answer was checked, or why it was not.
        unstable: every reason to distrust the times.
        evaluations: how often the loss was evaluated, by an optimizer that does so more than once
            in a step; None for others.
        steps_to_target: the steps until the target is reached and held; None if it is not.
        until_target: seconds until then, as `processes`; empty where there are none.
        limit: the least time that a step can take on this machine; None if that is not known.
        timed: false if other cells were meant to run at the same time: no time is shown then.
    """

    outcome: Outcome = Outcome.FAILED
    reason: str | None = None
    first_bad_step: int | None = None
    mode: str = ""
    mode_reason: str = ""
    setup_seconds: float | None = None
    warm_up: WarmUp | None = None
    processes: list[list[list[float]]] = field(default_factory=lambda: [[]])
    chunk_seconds: list[list[float]] = field(default_factory=list)
    cpu_seconds: list[list[float]] = field(default_factory=list)
    chunk_ends: list[int] = field(default_factory=list)
    losses: HostArray = field(default_factory=lambda: np.empty(0))
    params: dict[str, HostArray] = field(default_factory=dict)
    stopped_by: str | None = None
    ended: str = ""
    resumed_at: int = 0
    facts: parity.Facts = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    checked: str = ""
    unstable: list[str] = field(default_factory=list)
    breakdown: Breakdown | None = None
    evaluations: int | None = None
    steps_to_target: int | None = None
    until_target: list[list[list[float]]] = field(default_factory=list)
    limit: StepLimit | None = None
    timed: bool = True

    @property
    def summary(self) -> Summary | None:
        """Summarize whole repeats; None unless the run was timed and its outcome is ok."""
        return summarize(self.rounds) if self.outcome == Outcome.OK and self.timed else None

    @property
    def target_summary(self) -> Summary | None:
        """Summarize the seconds to the target; None where there are none."""
        return summarize(nested(self.until_target)) if self.summary and self.until_target else None

    @property
    def step_seconds(self) -> float:
        """The median over readings of a step's seconds."""
        lengths = np.diff([-1, *self.chunk_ends])
        return float(np.median(np.asarray(self.chunk_seconds) / lengths))

    @property
    def limit_share(self) -> float | None:
        """How much of the machine's limit the whole wall time reaches: 1 at the limit."""
        if self.limit is None or self.summary is None:
            return None
        return self.limit.share(self.summary.median / (self.chunk_ends[-1] + 1))

    @property
    def rounds(self) -> Rounds:
        """The repeats by placement or, if several processes measured, by process."""
        return nested(self.processes)
