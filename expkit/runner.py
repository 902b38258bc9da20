"""Run cells: build, warm up, check, measure, record."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import traceback
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from expkit.config import Cell
from expkit.contracts import Counted, HostArray, Operation, Plotted, Program
from expkit.errors import ParityError, Unavailable, UserError
from expkit.measure import answer, parity
from expkit.measure.breakdown import Breakdown, breakdown
from expkit.measure.canary import Canary, listen
from expkit.measure.clock import steps_of_a_reading, timed
from expkit.measure.environment import Activity, Snapshot, environment
from expkit.measure.limits import StepLimit, machine_limits, optimizer_elements, step_limit
from expkit.measure.rounds import run_rounds
from expkit.measure.stability import unstable_because
from expkit.measure.statistics import Summary, summarize
from expkit.measure.stopping import is_narrow
from expkit.measure.verdict import CANT_TELL, judge
from expkit.measure.warmup import WarmUp, warm_up
from expkit.tracking import address
from expkit.tracking import journal as journals
from expkit.tracking.journal import Journal
from expkit.tracking.tracker import Sent, Tracker

FLUSH_S = 1.0
"""How much measured time a kill may cost the journal."""
KILLED_LIMIT_S = 20.0
"""How long an interrupted run waits for MLflow; what it measured is in the journal."""
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")

Watch = Callable[[int, int, float | None, float], None]
"""Called off the clock: repeat, steps done, loss, steps per second."""
Draw = Callable[[Cell, "Result", Path], list[str]]
"""Draws pictures into the folder and returns their files' names."""


@dataclass
class Result:
    """What one cell's measurement found; filled as it goes.

    Attributes:
        outcome: ok, diverged, wrong_answer, not_synchronized, failed or interrupted.
        reason: what is wrong, for a diverged, wrong or unsynchronized one.
        first_bad_step: the first step with a non-finite loss, from 0.
        rounds: seconds of each whole repeat, by placement.
        chunk_seconds: of each repeat, its readings' seconds.
        chunk_ends: the last step of each reading.
        losses: of the first repeat's steps; of a diverged run those to the end of the bad chunk.
        stopped_by: the limit that ended the repeats.
        facts: what the program worked with.
        unlike: where that is not what the configuration says, or not what the other cells have.
        checked: how the answer was checked, or why it was not.
        unstable: every reason to distrust the times.
        limit: the least that the machine leaves a step; None where that is not known.
    """

    outcome: str = "failed"
    reason: str | None = None
    first_bad_step: int | None = None
    setup_seconds: float | None = None
    warm_up: WarmUp | None = None
    canary: Canary | None = None
    rounds: list[list[float]] = field(default_factory=list)
    chunk_seconds: list[list[float]] = field(default_factory=list)
    chunk_ends: list[int] = field(default_factory=list)
    losses: HostArray = field(default_factory=lambda: np.empty(0))
    params: dict[str, HostArray] = field(default_factory=dict)
    stopped_by: str | None = None
    facts: parity.Facts = field(default_factory=dict)
    unlike: list[str] = field(default_factory=list)
    checked: str = ""
    unstable: list[str] = field(default_factory=list)
    breakdown: Breakdown | None = None
    limit: StepLimit | None = None
    sent: Sent | None = None

    @property
    def summary(self) -> Summary | None:
        """Of whole repeats; None unless the outcome is ok: no other has a time to show."""
        return summarize(self.rounds) if self.outcome == "ok" else None

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
    def middles(self) -> list[float]:
        """Each round's median."""
        return [median(repeats) for repeats in self.rounds if repeats]


def run(
    cell: Cell,
    folder: Path,
    tracker: Tracker | None,
    watch: Watch,
    draw: Draw,
    *,
    sweep: str | None = None,
) -> Result:
    """Run a cell in its folder, journal first. What went wrong is recorded, then raised.

    Raises:
        UserError: before anything is written, where this machine cannot run the backend.
    """
    tags = {} if sweep is None else {"sweep": sweep}
    return run_together([(cell, folder)], tracker, watch, draw, tags=tags)[0]


def run_together(
    jobs: Sequence[tuple[Cell, Path]],
    tracker: Tracker | None,
    watch: Watch,
    draw: Draw,
    *,
    tags: Mapping[str, str],
) -> list[Result]:
    """Run cells in this process, each in its folder, their repeats interleaved.

    How long is the first cell's to say.

    Raises:
        UserError: before anything is written, where this machine cannot run a backend.
        ParityError: the cells do unlike work and `measure.parity=require`.
    """
    for cell, _ in jobs:
        try:
            cell.backend.require()
        except Unavailable as error:
            raise UserError(f"backend={cell.names['backend']}: {error}") from error
    measure = jobs[0][0].measure
    with ExitStack() as stack:
        parts = []
        for cell, folder in jobs:
            cell.backend.configure()
            folder.mkdir(parents=True, exist_ok=True)
            result = Result()
            journal = stack.enter_context(_recorded(cell, folder, tracker, result, tags))
            parts.append(_Measurement(cell, journal, tracker, watch, result, alone=len(jobs) == 1))
        # A loss that is not finite is found and named below.
        with np.errstate(all="ignore"), _collecting_garbage():
            ready = [part for part in parts if part.prepare()]
            _hold_side_by_side(parts)
            with ExitStack() as quiet:
                for part in ready:
                    quiet.enter_context(part.quiet(part.expected_s))
                start = Snapshot.take()
                stopped_by = run_rounds(ready, measure, lambda: _is_enough(ready))
                activity = Activity.between(start, Snapshot.take())
            for part in ready:
                part.conclude(stopped_by, activity)
            _judge(parts)
        for part in parts:
            part.configure()
            _finish(part.cell, part.journal, tracker, draw, part.result)
    return [part.result for part in parts]


def _hold_side_by_side(parts: Sequence[_Measurement]) -> None:
    """The parity gate: note in each cell what is unlike the first, and stop if that is asked."""
    for part in parts[1:]:
        unlike = parity.differences(parts[0].result.facts, part.result.facts)
        part.result.unlike += unlike
    for part in parts:
        if unlike := part.result.unlike:
            part.journal.tags({"parity": "not like for like: " + "; ".join(unlike)})
            if part.cell.measure.parity == "require":
                raise ParityError(unlike)


def _judge(parts: Sequence[_Measurement]) -> None:
    """Note each cell's verdict against the first."""
    first, threshold = parts[0], parts[0].cell.measure.threshold
    for part in parts[1:]:
        if first.result.outcome == part.result.outcome == "ok":
            found = judge(first.result.rounds, part.result.rounds, threshold)
            part.journal.tags({"verdict": f"{found.word} ({found.ratio:.3f} times the first's)"})


def _is_enough(parts: Sequence[_Measurement]) -> bool:
    """Of one cell, a narrow interval; of several, a verdict on each against the first."""
    results = [part.result for part in parts if part.result.reason is None]
    measure = parts[0].cell.measure
    if len(results) < 2:
        return all(is_narrow(measure, result.middles) for result in results)
    first, *others = (result.rounds for result in results)
    words = [judge(first, rounds, measure.threshold).word for rounds in others]
    return CANT_TELL not in words


@contextmanager
def _recorded(
    cell: Cell,
    folder: Path,
    tracker: Tracker | None,
    result: Result,
    tags: Mapping[str, str],
) -> Iterator[Journal]:
    """A run in the journal and in MLflow from here to the end, however it ends."""
    journal = Journal(folder)
    journal.write("run", **_opening(cell, folder, tags))
    status = "FAILED"
    try:
        if tracker:
            tracker.update(folder)
        yield journal
        status = "FINISHED" if result.outcome == "ok" else "FAILED"
    except KeyboardInterrupt:
        result.outcome, status = "interrupted", "KILLED"
        raise
    except BaseException:
        result.outcome = "failed"
        with suppress(OSError):  # on a full disk what went wrong first is what is told
            (folder / "error.txt").write_text(traceback.format_exc())
            journal.artifact("error.txt")
        raise
    finally:
        journal.tags({"outcome": result.outcome})
        journal.end(status)
        if tracker:
            limit_s = KILLED_LIMIT_S if status == "KILLED" else None
            result.sent = tracker.update(folder, wait=True, limit_s=limit_s)


@contextmanager
def _collecting_garbage() -> Iterator[None]:
    """Collect as a user's program would: the command line starts with the collector off."""
    before = gc.isenabled()
    gc.collect()
    gc.enable()
    try:
        yield
    finally:
        if not before:
            gc.disable()


def _opening(cell: Cell, folder: Path, tags: Mapping[str, str]) -> dict[str, Any]:
    params = _flat(cell.resolved)
    about = cell.backend.describe()
    hashed = {k: v for k, v in params.items() if not k.startswith(("measure.", "tracking."))}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]
    colour = COLOURS[zlib.crc32(cell.names["backend"].encode()) % len(COLOURS)]
    own = {
        **cell.names,
        "device": str(about["device"]),
        "dtype": str(about["dtype"]),
        "cell": digest,
        "outcome": "running",
        "expkit.folder": str(folder),
        "mlflow.runColor": colour,
    }
    return {
        "id": uuid.uuid4().hex,
        "name": cell.title,
        "owner": journals.owner(),
        "tracking": {
            "uri": cell.tracking.uri or address.local(cell.outputs),
            "experiment": cell.tracking.experiment,
            "artifacts": str(cell.outputs / "artifacts" / cell.tracking.experiment),
        },
        "params": params | {f"actual.{k}": v for k, v in about.items()},
        "tags": own | dict(tags),
    }


def _flat(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """`problem` is the option's name, `problem.n` one of its fields."""
    flat: dict[str, Any] = {}
    for key, value in resolved.items():
        if isinstance(value, Mapping):
            for inner, field_value in value.items():
                flat[key if inner == "name" else f"{key}.{inner}"] = field_value
        else:
            flat[key] = value
    return flat


class _Measurement:
    """One cell's program as a source of repeats: what is clocked, and what is done around it."""

    def __init__(
        self,
        cell: Cell,
        journal: Journal,
        tracker: Tracker | None,
        watch: Watch,
        result: Result,
        *,
        alone: bool,
    ) -> None:
        self.cell, self.journal, self.result = cell, journal, result
        self._tracker, self._watch, self._alone = tracker, watch, alone
        self._synchronize = cell.backend.synchronize
        self._program: Program
        self._answer: answer.Answer | None = None
        self._passes = 1
        """Times the steps are run in one reading, where once is too short for the clock."""
        self._every = cell.log_every
        """Steps between two readings."""

    @property
    def _learns(self) -> bool:
        return not isinstance(self.cell.workload.problem, Operation)

    @property
    def _warmup_steps(self) -> int:
        return min(self.cell.measure.warmup, -(-self.cell.workload.steps // 10))

    @property
    def expected_s(self) -> float:
        """About how long the least number of repeats takes."""
        assert self.result.warm_up is not None
        repeats = self.cell.measure.repeats_min
        return self.result.warm_up.step_seconds * self.cell.workload.steps * repeats

    def quiet(self, expected_s: float = 0) -> AbstractContextManager[None]:
        """Nothing of ours beside the clock."""
        if self._tracker is None:
            return nullcontext()
        return self._tracker.quiet(self.journal.folder, expected_s)

    def configure(self) -> None:
        """Threads are the process's, and another cell may have set its own meanwhile."""
        if not self._alone:
            self.cell.backend.configure()

    def prepare(self) -> bool:
        """Build, warm up, note what the program works with; False if it cannot be timed."""
        cell, result, backend = self.cell, self.result, self.cell.backend
        self.configure()
        with self.quiet():
            started = perf_counter()
            self._program = backend.build(cell.workload)
            self._synchronize()
            result.setup_seconds = perf_counter() - started
            result.warm_up = warm_up(self._program, self._synchronize, cell.workload.steps)
            step_seconds = self._fit_readings(result.warm_up.step_seconds)
            result.canary = listen(self._program, self._synchronize, step_seconds, self._room)
        self.journal.tags({"path": self._program.path})
        result.facts = parity.facts(backend, cell.workload, self._program)
        self.journal.write("facts", facts=result.facts)
        threads = cell.resolved["backend"].get("threads")
        result.unlike += parity.broken_claims(backend, threads, result.facts)
        if not result.canary.sings:
            self._refuse("not_synchronized", _still_queued(result.canary))
        return result.canary.sings

    @property
    def _room(self) -> int:
        return self.cell.workload.steps * self._passes

    def _fit_readings(self, step_seconds: float) -> float:
        """Make every reading long enough for the clock; returns what a step then takes."""
        cell, workload = self.cell, self.cell.workload
        needed = steps_of_a_reading(step_seconds)
        while needed > self._room:  # again: a step takes less among many than alone
            self._passes = -(-needed * 5 // (workload.steps * 4))
            roomy = dataclasses.replace(workload, steps=self._room)
            self._program = cell.backend.build(roomy)
            step_seconds = warm_up(self._program, self._synchronize, self._room).step_seconds
            needed = steps_of_a_reading(step_seconds)
        if self._passes > 1:
            self._every = self._room
        else:
            self._every = cell.log_every * -(-needed // cell.log_every)
        ends = range(self._every, self._room + self._every, self._every)
        self.result.chunk_ends = [min(end, workload.steps) - 1 for end in ends]
        return step_seconds

    def place(self) -> None:
        """The same program in fresh, shifted memory."""
        self.configure()
        self._program.reallocate()
        self.result.rounds.append([])

    def repeat(self) -> bool:
        """All steps from the start, in chunks; between them, off the clock, look at the losses."""
        cell, result, program = self.cell, self.result, self._program
        self.configure()
        program.reset()
        if self._warmup_steps:
            program.advance(self._warmup_steps)
            program.reset()
        repeat = len(result.chunk_seconds)
        seconds: list[float] = []
        losses: list[HostArray] = []
        written, last_flush = 0, perf_counter()
        try:
            for done in range(0, self._room, self._every):
                n = min(self._every, self._room - done)
                seconds.append(timed(program, self._synchronize, n))
                losses.append(program.losses(done)[: max(0, cell.workload.steps - done)])
                bad = np.flatnonzero(~np.isfinite(losses[-1]))
                if bad.size:
                    result.first_bad_step = done + int(bad[0])
                    self._refuse(
                        "diverged", f"the loss is not finite from step {result.first_bad_step}"
                    )
                    break
                loss = float(losses[-1][-1]) if losses[-1].size else None
                self._watch(repeat, done + n, loss, n / seconds[-1])
                if repeat == 0 and self._learns and perf_counter() - last_flush > FLUSH_S:
                    fresh = np.concatenate(losses)[written:]
                    self.journal.metric("train/loss", fresh, written)
                    written, last_flush = written + fresh.size, perf_counter()
                if self._tracker:
                    self._tracker.refresh(self.journal.folder)
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is told
                self._keep(np.concatenate(losses), written)
            raise
        curve = np.concatenate(losses)
        self._keep(curve, written)
        if result.outcome == "diverged":
            return False
        seconds = [s / self._passes for s in seconds]
        if wrong := self._wrong(curve):
            self._refuse("wrong_answer", f"in repeat {repeat + 1} {wrong}")
            return False
        result.rounds[-1].append(sum(seconds))
        result.chunk_seconds.append(seconds)
        placement = len(result.rounds) - 1
        self.journal.write("sample", repeat=repeat, placement=placement, seconds=seconds)
        self.journal.metric("time/wall_seconds", [sum(seconds)], repeat)
        return True

    def _keep(self, curve: HostArray, written: int) -> None:
        """The first repeat's losses, or those of the repeat that diverged."""
        first = not self.result.chunk_seconds
        if self._learns and (first or self.result.outcome == "diverged"):
            self.result.losses = curve
        if self._learns and first:
            self.journal.metric("train/loss", curve[written:], written)

    def _refuse(self, outcome: str, reason: str) -> None:
        """No time of this cell may be shown."""
        self.result.outcome, self.result.reason = outcome, reason
        self.journal.tags({"reason": reason})

    def _wrong(self, losses: HostArray) -> str | None:
        """What is wrong with the repeat whose clock has just stopped; None if nothing is."""
        if self._learns and losses.size != self.cell.workload.steps:
            return f"{losses.size} losses came back for {self.cell.workload.steps} steps"
        if not self.result.chunk_seconds:
            return self._first_answer(losses)
        if self._answer is None:
            return None
        return self._answer.wrong_losses(losses) or self._wrong_params()

    def _wrong_params(self) -> str | None:
        """Of the state that the clock left, where the reference goes as far as that."""
        assert self._answer is not None
        if self._answer.steps < self._room:
            return None
        return self._answer.wrong_params(self._program.params())

    def _first_answer(self, losses: HostArray) -> str | None:
        """Hold the first repeat against the reference, which is kept for the others."""
        cell, program = self.cell, self._program
        elements = sum(int(np.prod(x.shape)) for x in program.arrays().values())
        if not self._learns:
            elements += sum(x.size for x in program.params().values())
        claimed = str(cell.backend.describe()["dtype"])  # arrays of another have to be as right
        found = answer.reference(cell.backend, cell.workload, claimed, elements)
        if isinstance(found, str):
            self.result.checked = f"not checked: {found}"
            self.journal.tags({"answer": self.result.checked})
            return None
        self._answer = found
        self.result.checked = (
            f"{found.steps} of {cell.workload.steps} steps as the float64 reference"
        )
        self.journal.tags({"answer": self.result.checked})
        wrong = found.wrong_losses(losses) if self._learns else None
        if wrong is None and found.steps == self._room:
            return self._wrong_params()
        if wrong is None:
            program.reset()
            program.advance(found.steps)
            self._synchronize()
            wrong = found.wrong_params(program.params())
        return wrong

    def conclude(self, stopped_by: str | None, activity: Activity) -> None:
        """After the clock: what remains to be learnt from the program that was timed."""
        result, workload = self.result, self.cell.workload
        if result.reason is not None:
            return
        self.configure()
        result.outcome, result.stopped_by = "ok", stopped_by
        if isinstance(workload.problem, Plotted):
            result.params = self._program.params()
        summary = summarize(result.rounds)
        measure = self.cell.measure
        result.unstable = unstable_because(measure, summary, result.rounds, activity)
        with self.quiet():
            if isinstance(workload.problem, Counted):
                moved = optimizer_elements(self._program.arrays())
                limits = machine_limits(self.cell.backend)
                if limits.settled:
                    result.limit = step_limit(limits, workload.problem.work(), moved)
            result.breakdown = breakdown(
                self._program, self._synchronize, self._room, result.step_seconds
            )


def _still_queued(canary: Canary) -> str:
    return (
        f"synchronize returned after {canary.waited:.2g} s with {canary.left:.2g} s of work still "
        "queued: a time would be of queueing it"
    )


def _finish(
    cell: Cell, journal: Journal, tracker: Tracker | None, draw: Draw, result: Result
) -> None:
    """Metrics and artifacts of a run that was measured or refused."""
    if result.losses.size:
        journal.metric("final/loss", result.losses[-1:])
    if result.first_bad_step is not None:
        journal.tags({"first_bad_step": str(result.first_bad_step)})
    if result.summary:
        summary, steps, warm = result.summary, cell.workload.steps, result.warm_up
        assert warm is not None
        journal.metric("time/setup_seconds", [result.setup_seconds or 0.0])
        journal.metric("time/first_step_seconds", [warm.first_seconds])
        journal.metric("time/warmup_seconds", [warm.seconds])
        journal.metric("time/median_seconds", [summary.median])
        journal.metric("time/low_seconds", [summary.low])
        journal.metric("time/high_seconds", [summary.high])
        journal.metric("time/steps_per_second", [steps / summary.median])
        journal.metric("time/outliers", [summary.outliers])
        if summary.placement_share is not None:
            journal.metric("time/placement_share", [summary.placement_share])
        if result.limit_share is not None:
            journal.metric("time/share_of_limit", [result.limit_share])
        if result.breakdown:
            for key, seconds in result.breakdown.metrics().items():
                journal.metric(key, [seconds])
        journal.tags({"stopped_by": str(result.stopped_by)})
        journal.tags({"stable": "; ".join(result.unstable) or "yes"})
        _write_step_seconds(journal, result)
    if tracker:
        tracker.update(journal.folder)
    (journal.folder / "config.yaml").write_text(OmegaConf.to_yaml(cell.resolved))
    about = environment() | {"backend": cell.backend.describe()}
    (journal.folder / "environment.json").write_text(json.dumps(about, indent=2) + "\n")
    for name in ("config.yaml", "environment.json", *draw(cell, result, journal.folder)):
        journal.artifact(name)


def _write_step_seconds(journal: Journal, result: Result) -> None:
    """Median over repeats of a step's mean seconds in each reading, at its last step."""
    lengths = np.diff([-1, *result.chunk_ends])
    medians = np.median(np.asarray(result.chunk_seconds), axis=0) / lengths
    journal.series("time/step_seconds", medians.tolist(), result.chunk_ends)
