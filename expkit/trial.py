"""A trial: one attempt to measure a cell, in this process, and its record."""

from __future__ import annotations

import dataclasses
import math
import os
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from time import perf_counter, process_time
from types import TracebackType

import numpy as np

from expkit.config import Cell
from expkit.contracts import EvaluatesAgain, FallenBack, HasCost, HostArray
from expkit.errors import ParityError, PluginError
from expkit.measure import parity
from expkit.measure.audit import Finding, processor_seconds
from expkit.measure.audits import Audits
from expkit.measure.breakdown import breakdown
from expkit.measure.clock import timed
from expkit.measure.course import FILE as CHECKPOINT
from expkit.measure.course import Checkpoint, Course
from expkit.measure.environment import Activity
from expkit.measure.evaluation import Evaluation
from expkit.measure.idle import Lookout, worked_meanwhile
from expkit.measure.roofline import hold_to_limit, optimizer_elements
from expkit.measure.stability import pauses, recompiled, unstable_because
from expkit.measure.statistics import Rounds, nested, summarize
from expkit.measure.stopping import fitted
from expkit.measure.subject import Subject
from expkit.measure.target import Ending, Goal, reached
from expkit.measure.threads import AGAIN_S, Queue, overused, overused_again
from expkit.measure.verification import Verification
from expkit.optimizers._chain import COUNTED
from expkit.outcome import Outcome
from expkit.record import note, writing
from expkit.record.quantities import EVAL
from expkit.record.result import Now, Result, Watch
from expkit.tracking.address import one_line
from expkit.tracking.journal import Journal, now_ms
from expkit.tracking.tracker import Tracker

FLUSH_S = 1.0
"""Seconds after which the first repeat writes its losses to the journal: what a kill may lose."""

EVALUATIONS = "state.evaluations"
"""The array in which an optimizer counts how often it evaluates the loss."""
KEPT_MOST = 1 << 20
"""The most parameters that are kept of a run: 8 MB. If there are more, only the losses are kept."""


class Trial(AbstractContextManager["Trial"]):
    """One attempt to measure a cell, in this process.

    As a context manager it begins a run in the journal and in MLflow, and ends it in every case. An
    error is recorded, then raised.

    Args:
        tags: tags of the run.
        watch: called off the clock with what is being done.
        alone: whether no other trial shares this process.
        timed: false where other work runs meanwhile: the result then has no times.
        checkpoint: the file to go on from, see `Checkpoint`; None to begin at the start.
    """

    def __init__(
        self,
        cell: Cell,
        folder: Path,
        tags: Mapping[str, str],
        tracker: Tracker | None,
        watch: Watch,
        *,
        alone: bool = True,
        timed: bool = True,
        checkpoint: Path | None = None,
    ) -> None:
        self.cell, self.folder, self.tracker = cell, folder, tracker
        self._origin = checkpoint
        self._from = Checkpoint.load(checkpoint, cell.hash) if checkpoint else None
        self._done = 0
        """The steps of the last repeat."""
        self.result = Result(timed=timed)
        self.journal: Journal
        self._tags, self._watch, self._alone = tags, watch, alone
        backend, workload = cell.backend, cell.workload
        name = f"backend {cell.names['backend']}"
        self._subject = Subject(backend, workload, cell.log_every, name)
        rng = np.random.default_rng()
        self._audits = Audits(self._subject, rng)
        self._goal: Goal | None = None
        self._ending: Ending | None = None
        self._evaluation = Evaluation(self._subject, cell.eval_every)
        self._answers = Verification(self._subject, lambda: self.expected_s, rng)
        self._queued_s = self._waited_s = 0.0
        """Seconds that all threads, and this one alone, waited for a core in the repeats, which
        include reading losses.
        """
        self._lookout = Lookout()
        """Looks for other threads that work before a placement, where cells share this process."""

    def __enter__(self) -> Trial:
        """Begin the run.

        Raises:
            UserError: the folder holds one already.
        """
        self._watch(Now(f"starting backend {self.cell.names['backend']}"))
        self.cell.backend.configure()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = writing.begin(self.cell, self.folder, self._tags)
        self._send()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._watch(Now("closing the record"))
        status = "FINISHED" if self.result.outcome == Outcome.OK else "FAILED"
        if isinstance(error, KeyboardInterrupt):
            self.result.outcome, status = Outcome.INTERRUPTED, "KILLED"
        elif error is not None:
            self.result.outcome, status = Outcome.FAILED, "FAILED"
            self.result.reason = one_line(error)
            with suppress(OSError):  # on a full disk, the first error is the one to report
                self.journal.tags({"reason": self.result.reason})
                (self.folder / "error.txt").write_text("".join(traceback.format_exception(error)))
                self.journal.artifact("error.txt")
        tags: dict[str, str] = {"outcome": self.result.outcome}
        if error is None:
            for file in filter(None, (self.folder / CHECKPOINT, self._origin)):
                file.unlink(missing_ok=True)
        else:
            tags[note.TAG] = note.note(self.cell, self.result, None)
        self.journal.tags(tags)
        self.journal.end(status)
        if self.tracker:  # the caller shows a result before it waits for MLflow
            self.tracker.update(self.folder, last=error is not None)

    def _send(self) -> None:
        """Have the tracker send the journal to MLflow soon."""
        if self.tracker:
            self.tracker.update(self.folder)

    @property
    def lives(self) -> bool:
        """Whether this trial may still give valid times."""
        return self.result.reason is None

    @property
    def facts(self) -> parity.Facts:
        """What its program works with."""
        return self.result.facts

    @property
    def broken(self) -> Sequence[str]:
        """Where the facts contradict the configuration or the backend."""
        return self.result.broken

    @property
    def rounds(self) -> Rounds:
        """Seconds of the repeats by placement, or by process where several measured."""
        return self.result.rounds

    @property
    def until_target(self) -> Rounds:
        """Seconds of the same repeats until the target; empty where it was not reached."""
        return nested(self.result.until_target) if self.result.until_target else []

    @property
    def pid(self) -> int:
        """The id of this process."""
        return os.getpid()

    def wait(self) -> None:
        """Return at once: no other process works for this trial."""

    @property
    def _warmup_steps(self) -> int:
        return min(self.cell.measure.warmup, -(-self.cell.workload.steps // 10))

    @property
    def expected_s(self) -> float:
        """About how long the least number of repeats takes; 0 where nothing is timed."""
        if self.result.warm_up is None:
            return 0.0
        repeat_s = self.result.warm_up.step_seconds * self._subject.steps
        return repeat_s * fitted(self.cell.measure, repeat_s).repeats_min

    def configure(self) -> None:
        """Configure the backend again: another cell may have set the threads of the process."""
        if not self._alone:
            self.cell.backend.configure()

    def prepare(self) -> None:
        """Build the program, warm it up, audit it, and record what it works with."""
        cell, result, subject = self.cell, self.result, self._subject
        found: Finding | None = None
        self.configure()
        self._watch(Now("making the data and building the program"))
        if target := cell.target:
            self._goal = Goal.of(target, cell.workload)
            self._ending = Ending(self._goal) if target.stop or target.patience else None
        result.setup_seconds = subject.begin()
        if isinstance(cell.workload.optimizer, EvaluatesAgain):
            own = subject.program.arrays()
            if EVALUATIONS not in own:
                who = f"optimizer {cell.names['optimizer']}"
                takes = "takes one of shape (), in which it counts its evaluations"
                raise PluginError(f"{who}: init() gives no array named evaluations, {takes}")
        if self._from:
            subject.first = self._from.course.done
        if result.timed:
            self._watch(Now("warming up"))
            warm = subject.warm_up()
            first_seconds, found = warm.first_seconds, self._audits.early(warm)
            several = self._ending is None and self._from is None
            while found is None and several and subject.enlarge(warm):
                warm = subject.warm_up()
                found = self._audits.enlarged(warm)
            if found is None:
                subject.fit_readings(warm, cell.eval_every if self._ends_at_a_figure else 0)
                if self._from:
                    subject.every = self._from.every
                ran = subject.run_before(warm, self._warmup_steps)
                result.warm_up = dataclasses.replace(ran, first_seconds=first_seconds)
                result.chunk_ends = subject.chunk_ends
                self._watch(Now("checking that all work is done on the clock"))
                found = self._audits.before()
        self._note_path()
        self._watch(Now("noting what the program works with"))
        result.facts = parity.facts(cell.backend, cell.workload, subject.program, cell.log_every)
        if self._goal:
            aims = {"target": str(self._goal)}
            if self._evaluation.every:
                aims["evaluated"] = f"every {self._evaluation.every} steps"
            result.facts = {**result.facts, **aims}
        threads = cell.resolved["backend"].get("threads")
        result.broken = parity.broken_claims(cell.backend, threads, result.facts)
        self.journal.write("facts", facts=result.facts, broken=result.broken)
        if found:
            self._refuse(found.outcome, found.reason)

    def _note_path(self) -> None:
        """Record how steps are computed, and why not in a faster way."""
        program, result = self._subject.program, self.result
        result.mode = program.mode
        if isinstance(program, FallenBack):
            result.mode_reason = program.mode_reason
        tags = {"path": result.mode, "path_reason": result.mode_reason}
        self.journal.tags({name: said for name, said in tags.items() if said})

    def find_answer(self) -> None:
        """Compute the answer that every repeat is compared with; nothing here is timed."""
        self._watch(Now("computing the right answer in float64"))
        self.result.checked = self._answers.find()
        self.journal.tags({"answer": self.result.checked})

    def place(self) -> None:
        """Begin a round: put the program into fresh, shifted memory."""
        self.configure()
        if not self._alone:
            self._lookout.look()
        self._watch(self._next("placing the arrays elsewhere"))
        self._subject.program.reallocate()
        self.result.processes[0].append([])

    def _next(self, doing: str) -> Now:
        """What is being done on the way to the next repeat, for `watch`."""
        return Now(doing, len(self.result.chunk_seconds) + 1)

    def repeat(self) -> float | None:
        """Time all steps from the start, in readings; between them, off the clock, check losses."""
        result, subject = self.result, self._subject
        program = subject.program
        self.configure()
        program.reset()
        if self._warmup_steps and result.timed:
            program.advance(self._warmup_steps)
            program.reset()
        repeat = len(result.chunk_seconds)
        course, kept_at = self._begun(), perf_counter()
        every_s = self.cell.measure.checkpoint_s
        written, last_flush, begun = course.curve.size, perf_counter(), now_ms()
        evaluated = repeat == 0 and self._evaluates_within
        if evaluated and not course.done:
            self._evaluation.after(0)
        queue = Queue()
        try:
            while course.done < subject.room and not result.ended:
                self._go_on(course, repeat)
                if result.reason is not None:
                    break
                if evaluated:
                    self._evaluation.after(course.done)
                self._see_whether_to_end(course)
                if repeat == 0 and subject.learns and perf_counter() - last_flush > FLUSH_S:
                    unwritten = course.curve[written:]
                    self.journal.metric("train/loss", unwritten, written, begun)
                    written, last_flush = written + unwritten.size, perf_counter()
                    begun = now_ms()
                ends = course.done == subject.room or result.ended
                if self._keeps_checkpoints and not ends and perf_counter() - kept_at > every_s:
                    self._keep_checkpoint(course)
                    kept_at = perf_counter()
                if self.tracker:
                    self.tracker.refresh(self.folder)
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                self._keep(course.curve, written, begun)
            raise
        self._done = course.done // subject.passes
        self._queued_s += queue.seconds() / subject.passes
        self._waited_s += queue.own_seconds() / subject.passes
        self._keep(course.curve, written, begun)
        if result.reason is not None:
            return None
        if not result.timed:
            subject.step_seconds = sum(course.seconds) / course.done
        seconds = [s / subject.passes for s in course.seconds]
        if wrong := self._answers.wrong(course.curve):
            self._refuse(Outcome.WRONG_ANSWER, f"in repeat {repeat + 1} {wrong}")
            return None
        result.chunk_seconds.append(seconds)
        result.cpu_seconds.append([s / subject.passes for s in course.cpu_seconds])
        if result.ended or subject.first:
            result.chunk_ends = [end - 1 for end in course.ends]
        if result.timed:
            rounds = result.processes[0]
            rounds[-1].append(sum(seconds))
            self._keep_sample(0, len(rounds) - 1, seconds)
            self.journal.metric("time/wall_seconds", [sum(seconds)], repeat)
        return sum(seconds)

    def _begun(self) -> Course:
        """A repeat at its start or, the only one, where the checkpoint ends."""
        found = self._from
        if found is None:
            return Course()
        self._subject.program.load(found.arrays, found.course.done)
        self._evaluation.go_on(found.evaluated, found.figures)
        if self._ending:
            self._ending.due(*self._known(found.course.curve, 0))
        if self._subject.learns:
            self.journal.metric("train/loss", found.course.curve)
        self.result.resumed_at = found.course.done
        self.journal.tags({"resumed": f"at step {found.course.done}"})
        return found.course

    @property
    def _keeps_checkpoints(self) -> bool:
        """Whether the run keeps checkpoints: one of a single repeat does."""
        measure = self.cell.measure
        return measure.once and measure.checkpoint_s > 0 and self._subject.passes == 1

    @property
    def _evaluates_within(self) -> bool:
        """Whether to evaluate between the readings of the first repeat."""
        if self._from:
            return bool(self._from.evaluated)
        return self._ends_at_a_figure or self._evaluation.within

    @property
    def _ends_at_a_figure(self) -> bool:
        """Whether the run may end at something that is evaluated."""
        return self._ending is not None and self._goal is not None and not self._goal.of_losses

    def _go_on(self, course: Course, repeat: int) -> None:
        """Time one reading, and look at its losses."""
        result, subject, done = self.result, self._subject, course.done
        n = min(subject.every, subject.room - done)
        clocked, cpu, fresh = self._reading(done, n)
        course.ends.append(done + n)
        course.seconds.append(clocked)
        course.cpu_seconds.append(cpu)
        wanted = n if subject.learns else 0
        if fresh.size != wanted:
            came = f"losses({done}): {fresh.size} came back for {n} steps"
            came += "" if subject.learns else " of an operation, which has none"
            self._refuse(Outcome.WRONG_ANSWER, f"in repeat {repeat + 1} {came}")
            return
        losses = fresh[: max(0, self.cell.workload.steps - done)]
        course.losses.append(losses)
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            result.first_bad_step = done + int(bad[0])
            self._refuse(
                Outcome.DIVERGED, f"the loss is not finite from step {result.first_bad_step}"
            )
            return
        loss = float(losses[-1]) if losses.size else None
        steps_done = course.done // subject.passes
        self._watch(Now("", repeat + 1, steps_done, loss, n / clocked, self._evaluation.last))

    def _see_whether_to_end(self, course: Course) -> None:
        """End the run before its last step if its target says so, and note after how many."""
        if self._ending is None or course.done == self.cell.workload.steps:
            return
        losses = course.losses[-1]
        if why := self._ending.due(*self._known(losses, course.done - losses.size)):
            self.result.ended = f"after {course.done} steps: {why}"
            self._subject.steps = course.done
            if self._evaluation.steps:
                self._evaluation.after(course.done)

    def _known(self, losses: HostArray, first: int) -> tuple[Sequence[int], HostArray]:
        """What the target is about, of these losses or of all evaluations so far: after how many
        steps each value was known, and the values.
        """
        assert self._goal is not None
        if self._goal.of_losses:
            return range(first + 1, first + 1 + losses.size), losses
        figures = self._evaluation.figures.get(self._goal.target.of, [])
        return self._evaluation.steps, np.array(figures)

    def _keep_checkpoint(self, course: Course) -> None:
        """Keep the state now, so that `expkit resume` can go on from it."""
        backend, arrays = self.cell.backend, self._subject.program.arrays().items()
        state = {k: backend.to_numpy(x) for k, x in arrays if not k.startswith("data.")}
        after, figures = self._evaluation.steps, self._evaluation.figures
        every = self._subject.every
        Checkpoint(self.cell.hash, every, course, state, after, figures).save(self.folder)

    def _reading(self, done: int, n: int) -> tuple[float, float, HostArray]:
        """Time n steps: seconds, processor seconds and, read off the clock, the losses."""
        program, ran = self._subject.program, process_time()
        seconds = timed(program, self._subject.synchronize, n)
        stopped = process_time()
        fresh, read_s = processor_seconds(lambda: self._subject.losses(done))
        _, again_s = processor_seconds(lambda: program.losses(done))
        self._audits.readings.append((n, seconds, read_s - again_s))
        return seconds, stopped - ran, fresh

    def take_in(self, outcome: str, reason: str, rounds: Rounds) -> None:
        """Add what another process has measured of this cell."""
        number = len(self.result.processes)
        if outcome != Outcome.OK:
            self._refuse(Outcome(outcome), f"in process {number + 1} {reason}")
            return
        self.result.processes.append([list(repeats) for repeats in rounds])
        for placement, repeats in enumerate(rounds):
            for seconds in repeats:
                self._keep_sample(number, placement, [seconds])

    def refuse(self, unlike: Sequence[str]) -> None:
        """End the trial, because its work is not what it has to be.

        Raises:
            ParityError: always.
        """
        self.journal.tags({"parity": writing.not_alike(unlike)})
        raise ParityError(unlike)

    def _keep_sample(self, process: int, placement: int, seconds: list[float]) -> None:
        self.journal.write("sample", process=process, placement=placement, seconds=seconds)

    def _keep(self, curve: HostArray, written: int, begun: int) -> None:
        """Keep the losses of the first repeat, or of the repeat that diverged."""
        first = not self.result.chunk_seconds
        learns = self._subject.learns
        if learns and (first or self.result.outcome == Outcome.DIVERGED):
            self.result.losses = curve
        if learns and first:
            self.journal.metric("train/loss", curve[written:], written, begun)

    def _refuse(self, outcome: Outcome, reason: str) -> None:
        """Record why no time of this cell may be shown."""
        self.result.outcome, self.result.reason = outcome, reason
        self.journal.tags({"reason": reason})

    def _check_again(self) -> None:
        """Check further answers and audit again, to see whether the times may be shown."""
        self.configure()
        self._watch(Now("checking later steps, and another start"))
        if wrong := self._answers.wrong_further():
            self._refuse(Outcome.WRONG_ANSWER, wrong)
            return
        if covered := self._answers.covered:
            self.result.checked = covered
            self.journal.tags({"answer": covered})
        if self.result.timed:
            self._watch(Now("checking that all work was done on the clock"))
            if found := self._audits.after(self.result.step_seconds):
                self._refuse(found.outcome, found.reason)

    def conclude(self, stopped_by: str | None, activity: Activity) -> None:
        """Do the checks that follow the last repeat, and trace where a step's time goes."""
        result = self.result
        if self._ending and self._done:
            result.facts = {**result.facts, "ended": str(self._done)}
            self.journal.write("facts", facts=result.facts, broken=result.broken)
            if result.ended:
                self.journal.tags({"ended": result.ended})
        if result.reason is None:
            self.configure()
            self._evaluation.apart()
        self._keep_evaluation()
        if result.reason is None:
            self._keep_params()
            self._count_evaluations()
            self._check_again()
        if result.reason is not None:
            return
        result.outcome, result.stopped_by = Outcome.OK, stopped_by
        self._look_for_target()
        if not result.timed:
            return
        summary = summarize(result.rounds)
        measure = self.cell.measure
        paused = pauses(result.chunk_seconds, result.cpu_seconds)
        result.unstable = unstable_because(measure, summary, result.rounds, activity, paused)
        result.unstable += recompiled(result.processes[0], result.chunk_seconds)
        result.unstable += worked_meanwhile(self._lookout.found)
        if result.resumed_at:
            at = f"at step {result.resumed_at}"
            result.unstable.append(f"resumed: {at}, so its time is that of several processes")
        self._watch(Now("comparing the time with the machine's limit"))
        if not self._beyond_threads() and self._beyond_limit(
            summary.median / (result.chunk_ends[-1] + 1)
        ):
            return
        self._watch(Now("tracing where a step's time goes"))
        subject = self._subject
        result.breakdown = breakdown(
            subject.program, subject.synchronize, subject.room, result.step_seconds, subject.every
        )

    def finish(self, tags: Mapping[str, str], figures: Mapping[str, float]) -> None:
        """Write down the result, and with tags and figures how it compares with others."""
        self._watch(Now("writing down what was found"))
        self.configure()
        if tags:
            self.journal.tags(tags)
        for name, value in figures.items():
            self.journal.metric(name, [value])
        writing.write_result(self.journal, self.result)
        about = note.note(self.cell, self.result, tags.get("verdict"))
        self.journal.tags({note.TAG: about})
        self._send()
        writing.write_files(self.cell, self.journal, self.result)

    def _look_for_target(self) -> None:
        """See when the target was reached."""
        result, goal = self.result, self._goal
        if goal is None:
            return
        evaluated = self._evaluation
        steps = goal.steps(result.losses, evaluated.steps, evaluated.figures)
        result.steps_to_target = steps
        if steps is not None and result.timed:
            times = (result.chunk_ends, result.chunk_seconds, result.processes)
            result.until_target = reached(steps, *times)
        most = self.cell.workload.steps
        ran = self._done if result.ended else most
        when = f"not reached in {ran}" if steps is None else f"reached after {steps} of {most}"
        self.journal.tags({"target": f"{goal}: {when} steps"})

    def _keep_evaluation(self) -> None:
        """Record what was measured beside the loss."""
        evaluation = self._evaluation
        for name, values in evaluation.figures.items():
            self.journal.series(f"{EVAL}{name}", values, evaluation.steps)
        if evaluation.wrong and self.result.reason is None:
            finite = all(np.isfinite(x).all() for x in self._subject.params().values())
            self._refuse(Outcome.FAILED if finite else Outcome.DIVERGED, evaluation.wrong)

    def _keep_params(self) -> None:
        """Keep the parameters that the last repeat has learnt, if they are few enough."""
        subject = self._subject
        program, workload = subject.program, self.cell.workload
        arrays = program.arrays().items()
        size = sum(int(np.prod(x.shape)) for name, x in arrays if name.startswith("params."))
        if not subject.learns or size > KEPT_MOST:
            return
        if subject.passes > 1:  # the repeat went on beyond the workload's last step
            program.reset()
            program.advance(workload.steps)
            subject.synchronize()
        self.result.params = subject.params()

    def _count_evaluations(self) -> None:
        """Note how often an optimizer has evaluated the loss that does so more than once a step."""
        if isinstance(self.cell.workload.optimizer, EvaluatesAgain):
            array = self._subject.program.arrays()[EVALUATIONS]
            made = float(self.cell.backend.to_numpy(array))
            if made < COUNTED.get(str(self.cell.backend.describe()["dtype"]), math.inf):
                self.result.evaluations = int(made)

    def _beyond_limit(self, step_seconds: float) -> bool:
        """Compare a step's time with the machine's limit, and refuse one that is below it."""
        problem, result = self.cell.workload.problem, self.result
        if not isinstance(problem, HasCost):
            return False
        subject = self._subject
        moved = optimizer_elements(subject.program.arrays())
        backend = self.cell.backend

        def again() -> float:
            return subject.taking(subject.back)() / subject.every

        found = hold_to_limit(backend, problem.cost(), moved, step_seconds, again)
        result.limit = found.limit
        if found.doubt:
            result.unstable.append(f"limit: {found.doubt}")
        if found.beyond:
            self._refuse(Outcome.BEYOND_LIMIT, found.beyond)
        return bool(found.beyond)

    def _beyond_threads(self) -> bool:
        """Record if more processors were in use on the clock than the claimed threads explain."""
        result, subject = self.result, self._subject
        if "threads" not in result.facts:
            return False
        claimed = int(result.facts["threads"])
        wall_s, cpu_s = (sum(map(sum, s)) for s in (result.chunk_seconds, result.cpu_seconds))
        used = overused(claimed, wall_s, cpu_s, self._queued_s, self._waited_s)
        if used is not None:
            self._watch(Now("counting the processors in use once more"))
            most = int(AGAIN_S / max(result.step_seconds, 1e-9))
            n = max(subject.every, min(subject.room, most))
            used = overused_again(claimed, subject.program, subject.synchronize, n)
        if used is None:
            return False
        result.broken.append(
            f"threads: says {claimed}, had work for {used:.1f} processors on the clock"
        )
        self.journal.write("facts", facts=result.facts, broken=result.broken)
        return True
