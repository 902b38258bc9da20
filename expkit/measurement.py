"""One cell's measurement: the program as a source of repeats, and what is learnt around them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import median
from time import perf_counter, process_time

import numpy as np

from expkit.config import Cell
from expkit.contracts import Counted, FallenBack, HostArray, Operation, Program
from expkit.errors import PluginError
from expkit.measure import answer, parity
from expkit.measure.audit import (
    AHEAD,
    CLOCKED_S,
    FETCHES,
    GROWTH,
    Audit,
    Finding,
    left_in_readings,
    number_seconds,
    remembered,
)
from expkit.measure.breakdown import Breakdown, breakdown
from expkit.measure.clock import steps_of_a_reading, timed
from expkit.measure.environment import Activity
from expkit.measure.idle import threads_at_work, worked_meanwhile
from expkit.measure.limits import StepLimit, hold_to_limit, optimizer_elements
from expkit.measure.stability import pauses, recompiled, unstable_because
from expkit.measure.statistics import Rounds, Summary, nested, summarize
from expkit.measure.stopping import fitted
from expkit.measure.threads import AGAIN_S, Queue, overused, overused_again
from expkit.measure.warmup import WarmUp, run_before, warm_up
from expkit.tracking.journal import Journal
from expkit.tracking.stored import Stored
from expkit.tracking.tracker import Tracker

FLUSH_S = 1.0
"""How much measured time a kill may cost the journal."""

KEPT_MOST = 1 << 20
"""Parameters that are kept of a run: 8 MB. Of more only the losses are."""
PLACES = 3
"""At most, where later steps are checked, if the reference ends before the last."""
LATER_SHARE, ELSEWHERE_SHARE = 0.6, 0.2
"""Of the time for checking, what the reference may take for later steps, and for another start."""
MANY = 16
"""How many times as many steps are looked at, at most, where they are too short to tell."""
CHECKED_SHARE = 0.25
"""The share of the timed part that the reference may take, where that is more than a second."""


@dataclass(frozen=True)
class Now:
    """What a measurement does at this moment, for whoever looks on.

    Attributes:
        doing: in words.
        repeat: its number, from 1; 0 where nothing is timed yet, or any more.
        done: of its steps.
        loss: the last; None where there is none.
        steps_per_second: of the last reading.
    """

    doing: str
    repeat: int = 0
    done: int = 0
    loss: float | None = None
    steps_per_second: float = 0.0


Watch = Callable[[Now], None]
"""Called off the clock."""


@dataclass
class Result:
    """What one cell's measurement found; filled as it goes.

    Attributes:
        outcome: ok, diverged, wrong_answer, not_synchronized, off_the_clock, beyond_limit,
            failed or interrupted.
        reason: what is wrong, for one that ran and is not ok.
        first_bad_step: the first step with a non-finite loss, from 0.
        path: how steps are computed, as the program says it.
        path_reason: why that is not the faster way; empty where it is, or where none was asked for.
        processes: seconds of each whole repeat, by placement, by process; this process first.
        chunk_seconds: of each repeat, its readings' seconds.
        cpu_seconds: of the same, the seconds of the processor's clock, over all threads.
        chunk_ends: the last step of each reading.
        losses: of the first repeat's steps; of a diverged run those to the end of the bad chunk.
        stopped_by: the limit that ended the repeats.
        facts: what the program worked with.
        broken: where that is not what the configuration or the backend says.
        differences: where it is not what the first cell beside it has.
        checked: how the answer was checked, or why it was not.
        unstable: every reason to distrust the times.
        limit: the least that the machine leaves a step; None where that is not known.
        timed: false where other things ran meanwhile, by intent: then there is no time to show.
    """

    outcome: str = "failed"
    reason: str | None = None
    first_bad_step: int | None = None
    path: str = ""
    path_reason: str = ""
    setup_seconds: float | None = None
    warm_up: WarmUp | None = None
    processes: list[list[list[float]]] = field(default_factory=lambda: [[]])
    chunk_seconds: list[list[float]] = field(default_factory=list)
    cpu_seconds: list[list[float]] = field(default_factory=list)
    chunk_ends: list[int] = field(default_factory=list)
    losses: HostArray = field(default_factory=lambda: np.empty(0))
    params: dict[str, HostArray] = field(default_factory=dict)
    stopped_by: str | None = None
    facts: parity.Facts = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    checked: str = ""
    unstable: list[str] = field(default_factory=list)
    breakdown: Breakdown | None = None
    limit: StepLimit | None = None
    timed: bool = True

    @property
    def unlike(self) -> list[str]:
        """Every way in which it is not like for like."""
        return self.broken + self.differences

    @property
    def summary(self) -> Summary | None:
        """Of whole repeats; None unless the outcome is ok: no other has a time to show."""
        return summarize(self.rounds) if self.outcome == "ok" and self.timed else None

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
        """Repeats by placement; by process, where several measured."""
        return nested(self.processes)

    @property
    def middles(self) -> list[float]:
        """Each round's median."""
        return [median(repeats) for repeats in self.rounds if repeats]


class Measurement:
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
        self._program: Program
        self._answer: answer.Answer | None = None
        self._passes = 1
        """Times the steps are run in one reading, where once is too short for the clock."""
        self._every = cell.log_every
        """Steps between two readings."""
        self._ahead_s = 0.0
        self._number_seconds = 0.0
        """Of fetching one number from the device."""
        self._step_seconds = 0.0
        """Of a step, as warming up left it."""
        self._reference_step_s = 0.0
        """What the reference takes for a step."""
        self._rng = np.random.default_rng()
        self._places: list[int] = []
        """Steps, drawn at random, from which on some were held against the reference too."""
        self._clocked: list[tuple[int, float, float]] = []
        """Of each reading: steps, seconds, and the processor's beyond reading its losses again."""
        self._queued_s = self._waited_s = 0.0
        """Seconds that all threads, and this one, were kept from a core in repeats, reading losses
        included.
        """
        self._at_work: list[int] = []
        """Threads that worked before each placement, where cells share this process."""

    def _synchronize(self) -> None:
        self.cell.backend.synchronize(self._program)

    @property
    def _learns(self) -> bool:
        return not isinstance(self.cell.workload.problem, Operation)

    @property
    def _warmup_steps(self) -> int:
        return min(self.cell.measure.warmup, -(-self.cell.workload.steps // 10))

    @property
    def expected_s(self) -> float:
        """About how long the least number of repeats takes; 0 where nothing is timed."""
        if self.result.warm_up is None:
            return 0.0
        repeat_s = self.result.warm_up.step_seconds * self.cell.workload.steps
        return repeat_s * fitted(self.cell.measure, repeat_s).repeats_min

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
        found: Finding | None = None
        self.configure()
        with self.quiet():
            self._watch(Now("making the data and building the program"))
            _ = backend.xp  # what a library's import takes is no set-up of the program
            started = perf_counter()
            self._program = backend.build(cell.workload)
            self._synchronize()
            result.setup_seconds = perf_counter() - started
            if result.timed:
                self._watch(Now("warming up"))
                warm = warm_up(self._program, self._synchronize, cell.workload.steps)
                self._number_seconds = self._price_numbers()
                short = warm.step_seconds * self._room < CLOCKED_S
                found = self._audited_early() if short else None
                if found is None:
                    result.warm_up = self._run_before(self._fit_readings(warm), warm.first_seconds)
                    self._step_seconds = result.warm_up.step_seconds
                    self._watch(Now("checking that all work is done on the clock"))
                    found = self._audited(ahead=not short)
        self._note_path()
        self._watch(Now("noting what the program works with"))
        result.facts = parity.facts(backend, cell.workload, self._program, cell.log_every)
        threads = cell.resolved["backend"].get("threads")
        result.broken = parity.broken_claims(backend, threads, result.facts)
        self.journal.write("facts", facts=result.facts, broken=result.broken)
        if found:
            self._refuse(found.outcome, found.reason)
        return found is None

    def _build(self, steps: int) -> Program:
        """A program with room for this many."""
        return self.cell.backend.build(dataclasses.replace(self.cell.workload, steps=steps))

    def _audit(self, room: int = 0, number_s: float | None = None) -> Audit:
        """Of this program, or of one that has room for so many more steps; by default of one that
        has where its own take next to no time.
        """
        program, room = self._program, room or self._room
        if self._step_seconds and room * self._step_seconds < CLOCKED_S:
            room *= 1 + int(CLOCKED_S / (room * self._step_seconds))
        if room > self._room:
            program = self._build(room)
        synchronize = partial(self.cell.backend.synchronize, program)
        return Audit(program, synchronize, room, self._price_numbers, number_s)

    def _price_numbers(self) -> float:
        """Seconds of fetching a loss; an operation has none."""
        return number_seconds(self.cell.backend) if self._learns else 0.0

    def _audited_early(self) -> Finding | None:
        """Work that the clock does not see, of steps that all but take no time: before they are
        made many.
        """
        audit = self._audit(number_s=self._number_seconds)
        return audit.all_left() or self._meanwhile(audit) or self._ahead(audit)

    def _meanwhile(self, audit: Audit) -> Finding | None:
        longer, found = audit, audit.meanwhile()
        while found is None and longer.short and longer.room < MANY * audit.room:
            longer = self._audit(GROWTH * longer.room)
            found = longer.meanwhile()
        return found

    def _ahead(self, audit: Audit) -> Finding | None:
        found = audit.ahead(self._build)
        self._ahead_s = audit.ahead_s
        return found

    def _audited(self, *, ahead: bool) -> Finding | None:
        """The same of the program that will be timed; of what was done `ahead` where asked."""
        audit = self._audit(number_s=self._number_seconds)
        found = audit.left(self._lengths, self._step_seconds)
        return found or ((self._meanwhile(audit) or self._ahead(audit)) if ahead else None)

    def _audited_again(self) -> Finding | None:
        """The same after the last repeat, and over the repeats themselves."""
        number_s = max(self._number_seconds, self._price_numbers())
        steps, clocked, read = zip(*self._clocked, strict=True)
        beside = [more - FETCHES * n * number_s for n, more in zip(steps, read, strict=True)]
        if found := left_in_readings(clocked, beside):
            return found
        audit = self._audit(number_s=number_s)
        found = audit.left(self._lengths, self._step_seconds) or audit.meanwhile()
        if not found and self._ahead_s > AHEAD * self.result.step_seconds:
            found = audit.ahead(self._build, self.result.step_seconds)
        backend, workload = self.cell.backend, self.cell.workload
        if found or not answer.another_start(backend, workload, self._rng):
            return found

        def elsewhere() -> None:
            self._program.load(answer.another_start(backend, workload, self._rng))

        # What takes next to no time is asked for more of it: its work would show in that.
        timed_s = max(self._every * self.result.step_seconds, 1e-9)
        readings = min(self._room // self._every, math.ceil(CLOCKED_S / timed_s)) or 1
        starts = (partial(self._from, start, readings) for start in (self._back, elsewhere))
        found = remembered(readings * timed_s, *starts)
        self._back()
        return found

    def _back(self) -> None:
        """To the start of every repeat, after another one was loaded: a reset leaves the data."""
        if self._learns:
            self._program.reset()
        else:
            self._program.reallocate()

    @property
    def _lengths(self) -> tuple[int, int]:
        """Steps of a reading, and of the last of a repeat."""
        return self._every, self._room % self._every or self._every

    def _from(self, start: Callable[[], None], readings: int = 1) -> Callable[[], float]:
        """Bring the program to a start; returns what takes the steps of so many readings."""
        start()
        self._synchronize()

        def take() -> float:
            each = (timed(self._program, self._synchronize, self._every) for _ in range(readings))
            return sum(each)

        return take

    def _note_path(self) -> None:
        """How steps are computed, and why not faster."""
        program, result = self._program, self.result
        result.path = program.path
        if isinstance(program, FallenBack):
            result.path_reason = program.path_reason
        tags = {"path": result.path, "path_reason": result.path_reason}
        self.journal.tags({name: said for name, said in tags.items() if said})

    def find_answer(self) -> None:
        """Compute what every repeat will be held against; nothing here is timed."""
        self._watch(Now("computing the right answer in float64"))
        self.result.checked = self._compute_answer()
        self.journal.tags({"answer": self.result.checked})

    @property
    def _room(self) -> int:
        return self.cell.workload.steps * self._passes

    def _fit_readings(self, warm: WarmUp) -> WarmUp:
        """Make every reading long enough for the clock; returns how the program then warmed up."""
        cell, workload = self.cell, self.cell.workload
        needed = steps_of_a_reading(warm.step_seconds)
        while needed > self._room:  # again: a step takes less among many than alone
            self._passes = -(-needed * 5 // (workload.steps * 4))
            del self._program  # both may not fit
            self._program = self._build(self._room)
            warm = warm_up(self._program, self._synchronize, self._room)
            needed = steps_of_a_reading(warm.step_seconds)
        if self._passes > 1:
            self._every = self._room
        else:
            self._every = min(self._room, cell.log_every * -(-needed // cell.log_every))
        ends = range(self._every, self._room + self._every, self._every)
        self.result.chunk_ends = [min(end, workload.steps) - 1 for end in ends]
        return warm

    def _run_before(self, warm: WarmUp, first_seconds: float) -> WarmUp:
        """Run every length that a repeat asks for; the first step is the first program's."""
        starts = range(0, self._room, self._every)
        lengths = {self._warmup_steps, *(min(self._every, self._room - start) for start in starts)}
        ran = run_before(self._program, self._synchronize, sorted(lengths - {0}), warm)
        return dataclasses.replace(ran, first_seconds=first_seconds)

    def place(self) -> None:
        """The same program in fresh, shifted memory."""
        self.configure()
        if not self._alone:
            self._at_work.append(threads_at_work())
        self._watch(self._next("placing the arrays elsewhere"))
        self._program.reallocate()
        self.result.processes[0].append([])

    def _next(self, doing: str) -> Now:
        """Something on the way to the next repeat."""
        return Now(doing, len(self.result.chunk_seconds) + 1)

    def repeat(self) -> float | None:
        """All steps from the start, in chunks; between them, off the clock, look at the losses."""
        result, program = self.result, self._program
        self.configure()
        program.reset()
        if self._warmup_steps and result.timed:
            program.advance(self._warmup_steps)
            program.reset()
        repeat = len(result.chunk_seconds)
        seconds: list[float] = []
        cpu_seconds: list[float] = []
        losses: list[HostArray] = []
        written, last_flush = 0, perf_counter()
        queue = Queue()
        try:
            for done in range(0, self._room, self._every):
                n = min(self._every, self._room - done)
                clocked, cpu, fresh = self._reading(done, n)
                seconds.append(clocked)
                cpu_seconds.append(cpu)
                wanted = n if self._learns else 0
                if fresh.size != wanted:
                    came = f"losses({done}): {fresh.size} came back for {n} steps"
                    came += "" if self._learns else " of an operation, which has none"
                    self._refuse("wrong_answer", f"in repeat {repeat + 1} {came}")
                    break
                losses.append(fresh[: max(0, self.cell.workload.steps - done)])
                bad = np.flatnonzero(~np.isfinite(losses[-1]))
                if bad.size:
                    result.first_bad_step = done + int(bad[0])
                    self._refuse(
                        "diverged", f"the loss is not finite from step {result.first_bad_step}"
                    )
                    break
                loss = float(losses[-1][-1]) if losses[-1].size else None
                steps_done = (done + n) // self._passes
                self._watch(Now("", repeat + 1, steps_done, loss, n / seconds[-1]))
                if repeat == 0 and self._learns and perf_counter() - last_flush > FLUSH_S:
                    unwritten = np.concatenate(losses)[written:]
                    self.journal.metric("train/loss", unwritten, written)
                    written, last_flush = written + unwritten.size, perf_counter()
                if self._tracker:
                    self._tracker.refresh(self.journal.folder)
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is told
                self._keep(np.concatenate(losses), written)
            raise
        self._queued_s += queue.seconds() / self._passes
        self._waited_s += queue.own_seconds() / self._passes
        curve = np.concatenate(losses) if losses else np.empty(0)
        self._keep(curve, written)
        if result.reason is not None:
            return None
        if not result.timed:
            self._step_seconds = sum(seconds) / self._room
        seconds = [s / self._passes for s in seconds]
        if wrong := self._wrong(curve):
            self._refuse("wrong_answer", f"in repeat {repeat + 1} {wrong}")
            return None
        result.chunk_seconds.append(seconds)
        result.cpu_seconds.append([s / self._passes for s in cpu_seconds])
        if result.timed:
            rounds = result.processes[0]
            rounds[-1].append(sum(seconds))
            self._keep_sample(0, len(rounds) - 1, seconds)
            self.journal.metric("time/wall_seconds", [sum(seconds)], repeat)
        return sum(seconds)

    def _reading(self, done: int, n: int) -> tuple[float, float, HostArray]:
        """Seconds of n steps, those of the processor, and, off the clock, the steps' losses."""
        program, ran = self._program, process_time()
        seconds = timed(program, self._synchronize, n)
        stopped = process_time()
        fresh = program.losses(done)
        read = process_time()
        program.losses(done)
        self._clocked.append((n, seconds, (read - stopped) - (process_time() - read)))
        return seconds, stopped - ran, self._are_losses(fresh)

    def _losses(self, start: int = 0) -> HostArray:
        return self._are_losses(self._program.losses(start))

    def _are_losses(self, given: HostArray) -> HostArray:
        """What `losses` gave, if it is what the contract takes.

        Raises:
            PluginError: it is not.
        """
        if not _is_array(given) or np.ndim(given) != 1:
            takes = "takes a NumPy array of shape (steps,) in float64"
            raise PluginError(f"{self._who}: losses() gives {_kind(given)}, {takes}")
        return given

    def _params(self) -> dict[str, HostArray]:
        """What `params` gives, if it is what the contract takes.

        Raises:
            PluginError: it is not.
        """
        given, takes = self._program.params(), "takes a dict of NumPy arrays in float64, by name"
        if not isinstance(given, dict):
            raise PluginError(f"{self._who}: params() gives {_kind(given)}, {takes}")
        for name, value in given.items():
            if not _is_array(value):
                raise PluginError(f"{self._who}: params() gives {name} as {_kind(value)}, {takes}")
        return given

    @property
    def _who(self) -> str:
        return f"backend {self.cell.names['backend']}"

    def take_in(self, run: Stored) -> None:
        """What another process measured of this cell."""
        number = len(self.result.processes)
        if run.outcome != "ok":
            self._refuse(run.outcome, f"in process {number + 1} {run.reason}")
            return
        (rounds,) = run.processes
        self.result.processes.append(rounds)
        for placement, repeats in enumerate(rounds):
            for seconds in repeats:
                self._keep_sample(number, placement, [seconds])

    def _keep_sample(self, process: int, placement: int, seconds: list[float]) -> None:
        self.journal.write("sample", process=process, placement=placement, seconds=seconds)

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
        if self._answer is None:
            return None
        wrong = self._answer.wrong_losses(losses) if self._learns else None
        if wrong is None and self._answer.steps >= self._room:
            wrong = self._answer.wrong_params(self._params())
        return wrong

    def _wrong_further(self) -> str | None:
        """What is wrong that the repeats do not show, looked at once."""
        found, program = self._answer, self._program
        if found is None:
            return None
        wrong = None
        if found.steps < self._room:
            program.reset()
            program.advance(found.steps)
            self._synchronize()
            wrong = found.wrong_params(self._params())
        return wrong or self._wrong_elsewhere() or self._wrong_later(found)

    def _wrong_elsewhere(self) -> str | None:
        """From another start: a program may remember instead of computing."""
        program = self._program
        start = answer.another_start(self.cell.backend, self.cell.workload, self._rng)
        if not start:
            return None
        steps = min(self._few_steps(ELSEWHERE_SHARE), self.cell.workload.steps)
        right = self._reference_from(start, 0, steps)
        program.load(start)
        program.advance(right.steps)
        self._synchronize()
        wrong = right.wrong_losses(self._losses()) if self._learns else None
        wrong = wrong or right.wrong_params(self._params())
        self._back()
        return wrong and f"from another start {wrong}"

    def _wrong_later(self, found: answer.Answer) -> str | None:
        """After the reference's last step: at the end, or as far as there is time to go, and at
        places drawn at random before it.
        """
        program, backend = self._program, self.cell.backend
        windows = self._windows(found.steps)
        program.reset()
        done = 0
        for place, steps in windows:
            while done < place:  # in the lengths that are timed, as far as they go
                n = min(self._every, place - done)
                program.advance(n)
                done += n
            self._synchronize()
            arrays = program.arrays().items()
            state = {k: backend.to_numpy(x) for k, x in arrays if not k.startswith("data.")}
            program.advance(steps)
            done += steps
            self._synchronize()
            right = self._reference_from(state, place, steps)
            wrong = right.wrong_losses(self._losses(place), place) if self._learns else None
            wrong = wrong or right.wrong_params(self._params(), place)
            if wrong:
                return wrong
            self._places.append(place)
        return None

    def _windows(self, known: int) -> list[tuple[int, int]]:
        """Where to look behind the steps that are `known`, in order, and at how many steps."""
        workload, backend = self.cell.workload, self.cell.backend
        if known == workload.steps:
            return []
        each = max(self._step_seconds, answer.drawing_seconds(backend, workload), 1e-9)
        left = self._few_steps(LATER_SHARE, most=PLACES * answer.FEW_STEPS)
        most = answer.FEW_STEPS if self._learns else 1
        at_end = min(most, left, workload.steps - known)
        last = min(workload.steps - at_end, int(self._check_s / each))
        if last < known:
            return []
        left -= at_end
        count = min(PLACES - 1, -(-left // most))
        each_has = min(most, left // count) if count else 0
        ends = np.linspace(known, last - each_has + 1, count + 1).astype(int)
        parts = [(a, b - each_has + 1) for a, b in pairwise(ends)]
        places = [int(self._rng.integers(a, b)) for a, b in parts if a < b]
        return [*((place, each_has) for place in places), (last, at_end)]

    def _few_steps(self, share: float, most: int = answer.FEW_STEPS) -> int:
        """Steps that the reference can take in a share of the time for checking; one at least."""
        return max(1, min(most, int(share * self._check_s / self._reference_step_s)))

    def _reference_from(self, state: dict[str, HostArray], step: int, steps: int) -> answer.Answer:
        backend, workload = self.cell.backend, self.cell.workload
        dtype = str(backend.describe()["dtype"])
        return answer.reference_from(backend, workload, dtype, state, step, steps)

    @property
    def _check_s(self) -> float:
        """How long the reference may take beyond what it takes of any problem."""
        return max(answer.LIMIT_S, CHECKED_SHARE * self.expected_s)

    def _compute_answer(self) -> str:
        """What every repeat will be held against; returns how far that goes."""
        cell, arrays = self.cell, self._program.arrays()
        elements = sum(int(np.prod(x.shape)) for x in arrays.values())
        if not self._learns:
            elements += sum(x.size for x in self._params().values())
        claimed = str(cell.backend.describe()["dtype"])  # arrays of another have to be as right
        started = perf_counter()
        found = answer.reference(cell.backend, cell.workload, claimed, elements, self._check_s)
        if isinstance(found, str):
            return f"not checked: {found}"
        self._reference_step_s = (perf_counter() - started) / found.steps
        self._answer = found
        return answer.covered(found, cell.workload.steps, claimed)

    def _check_again(self) -> None:
        """Look once more whether the times may be shown."""
        self.configure()
        self._watch(Now("checking later steps, and another start"))
        if wrong := self._wrong_further():
            self._refuse("wrong_answer", wrong)
            return
        if self._answer is not None:
            dtype, steps = str(self.cell.backend.describe()["dtype"]), self.cell.workload.steps
            self.result.checked = answer.covered(self._answer, steps, dtype, self._places)
            self.journal.tags({"answer": self.result.checked})
        if self.result.timed:
            self._watch(Now("checking that all work was done on the clock"))
            with self.quiet():
                found = self._audited_again()
            if found:
                self._refuse(found.outcome, found.reason)

    def conclude(self, stopped_by: str | None, activity: Activity) -> None:
        """After the clock: what remains to be learnt from the program that was timed."""
        result = self.result
        if result.reason is None:
            self._keep_params()
            self._check_again()
        if result.reason is not None:
            return
        self._watch(Now("tracing where a step's time goes"))
        result.outcome, result.stopped_by = "ok", stopped_by
        if not result.timed:
            return
        summary = summarize(result.rounds)
        measure = self.cell.measure
        paused = pauses(result.chunk_seconds, result.cpu_seconds)
        result.unstable = unstable_because(measure, summary, result.rounds, activity, paused)
        result.unstable += recompiled(result.processes[0], result.chunk_seconds)
        result.unstable += worked_meanwhile(self._at_work)
        with self.quiet():
            if not self._beyond_threads() and self._beyond_limit(
                summary.median / (result.chunk_ends[-1] + 1)
            ):
                return
            result.breakdown = breakdown(
                self._program, self._synchronize, self._room, result.step_seconds, self._every
            )

    def _keep_params(self) -> None:
        """What the last repeat learnt, where it is not long."""
        program, workload = self._program, self.cell.workload
        arrays = program.arrays().items()
        size = sum(int(np.prod(x.shape)) for name, x in arrays if name.startswith("params."))
        if not self._learns or size > KEPT_MOST:
            return
        if self._passes > 1:  # it went on after the last step
            program.reset()
            program.advance(workload.steps)
            self._synchronize()
        self.result.params = self._params()

    def _beyond_limit(self, step_seconds: float) -> bool:
        """Hold a step's time against the machine's limit; no program is faster than that."""
        problem, result = self.cell.workload.problem, self.result
        if not isinstance(problem, Counted):
            return False
        moved = optimizer_elements(self._program.arrays())
        backend = self.cell.backend

        def again() -> float:
            return self._from(self._back)() / self._every

        found = hold_to_limit(backend, problem.work(), moved, step_seconds, again)
        result.limit = found.limit
        if found.doubt:
            result.unstable.append(f"limit: {found.doubt}")
        if found.beyond:
            self._refuse("beyond_limit", found.beyond)
        return bool(found.beyond)

    def _beyond_threads(self) -> bool:
        """Note where more processors were in use on the clock than the threads claimed."""
        result = self.result
        if "threads" not in result.facts:
            return False
        claimed = int(result.facts["threads"])
        wall_s, cpu_s = (sum(map(sum, s)) for s in (result.chunk_seconds, result.cpu_seconds))
        used = overused(claimed, wall_s, cpu_s, self._queued_s, self._waited_s)
        if used is not None:
            self._watch(Now("counting the processors in use once more"))
            n = max(self._every, min(self._room, int(AGAIN_S / max(result.step_seconds, 1e-9))))
            used = overused_again(claimed, self._program, self._synchronize, n)
        if used is None:
            return False
        result.broken.append(
            f"threads: says {claimed}, had work for {used:.1f} processors on the clock"
        )
        self.journal.write("facts", facts=result.facts, broken=result.broken)
        return True


def _is_array(given: object) -> bool:
    """Of real numbers; a NumPy scalar is one of shape ()."""
    return isinstance(given, np.ndarray | np.generic) and given.dtype.kind == "f"


def _kind(given: object) -> str:
    """A value's type, for the author of what gave it."""
    if isinstance(given, np.ndarray):
        return f"an array of shape {given.shape} in {given.dtype}"
    return type(given).__name__
