"""The one loop that drives trials, whether they live in this process or in others.

A run has one trial, `expkit compare` has two, and a sweep has teams of trials in processes of their
own. Where several processes measure each cell, the loop runs new trials in fresh ones. Parity,
verdicts and stopping are decided here and nowhere else.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from expkit.config import Cell
from expkit.contracts import HasNeeds, Workload
from expkit.errors import Unavailable, UserError
from expkit.measure import parity
from expkit.measure.environment import Activity, Snapshot
from expkit.measure.looking import Look
from expkit.measure.rounds import run_rounds
from expkit.measure.verdict import held
from expkit.record import quantities, writing
from expkit.record.result import Now, Result
from expkit.record.stored import load
from expkit.remote import Attempt, RemoteTrial
from expkit.tracking.tracker import Tracker
from expkit.trial import Trial

Watch = Callable[[int, Now], None]
"""Called off the clock with a cell's number among those run together, and what is being done."""


def silent(number: int, now: Now) -> None:
    """Show nothing."""


AnyTrial = Trial | RemoteTrial
"""One attempt to measure a cell. Once it has ended, requests have no effect."""


def conduct(
    trials: Sequence[AnyTrial],
    bases: Sequence[int | None],
    *,
    compared: bool,
    timed: bool = True,
    processes: int = 1,
    watch: Watch = silent,
) -> None:
    """Measure cells in turn, from their preparation to their end.

    Args:
        bases: for each trial, the number of the one that it is compared with, if any.
        compared: whether to stop when there are verdicts; if not, narrow intervals are enough, and
            each trial may take the whole budget.
        timed: false for a single repeat of each trial.
        processes: how many processes measure each cell, including the first.
    """
    with _quiet(trials, expected=False):
        for trial in trials:
            trial.prepare()
    for trial in _alive(trials):
        trial.find_answer()
    for trial in _alive(trials):
        trial.wait()
    _refuse_unlike(trials, bases)
    ready = _alive(trials)
    with _quiet(ready, expected=True):
        start = Snapshot.take(pids=_others(ready))
        stopped_by = _rounds(ready, compared=compared, timed=timed)
        activity = Activity.between(start, Snapshot.take(pids=_others(ready)))
        _measure_again(ready, processes, watch, compared=compared)
        for trial in ready:
            trial.conclude(stopped_by, activity)
    _refuse_unlike(trials, bases)  # again, for what only the timed repeats could show
    for number, trial in enumerate(trials):
        trial.finish(*_standing(trial, _base(trials, bases, number)))
    for trial in trials:
        trial.wait()


def run_together(
    jobs: Sequence[tuple[Cell, Path]],
    tracker: Tracker | None,
    watch: Watch = silent,
    *,
    tags: Mapping[str, str],
    own: Sequence[Mapping[str, str]] = (),
    timed: bool = True,
    checkpoint: Path | None = None,
) -> list[Result]:
    """Run cells in this process, each in its folder, their repeats interleaved.

    Journals are written first, and an error is recorded before it is raised. The first cell's
    configuration says how long to measure. The caller has to see that the runs reach MLflow.

    Args:
        tags: tags of every run.
        own: more tags, of each run.
        timed: false where other work runs meanwhile: each cell has one repeat and no times.
        checkpoint: the file that a single cell goes on from, see `Checkpoint`.

    Raises:
        UserError: before anything is written, where this machine cannot run a backend, a folder
            holds a run, or the checkpoint is not the cell's.
        ParityError: the cells do unlike work and `measure.parity=require`.
    """
    for cell, _ in jobs:
        check_runnable(cell)
    alone = len(jobs) == 1
    with ExitStack() as stack:
        trials = []
        for number, (cell, folder) in enumerate(jobs):
            told = partial(watch, number)
            all_tags = {**tags, **(own[number] if own else {})}
            trial = Trial(
                cell,
                folder,
                all_tags,
                tracker,
                told,
                alone=alone,
                timed=timed,
                checkpoint=checkpoint,
            )
            trials.append(stack.enter_context(trial))
        stack.enter_context(as_a_program())
        _in_turn(trials, watch, timed=timed)
    return [trial.result for trial in trials]


def run_apart(
    jobs: Sequence[tuple[Cell, Path]],
    tracker: Tracker | None,
    watch: Watch = silent,
    *,
    tags: Mapping[str, str],
    own: Sequence[Mapping[str, str]] = (),
) -> None:
    """Do as `run_together`, each cell in a process of its own: an error ends its run alone."""
    with ExitStack() as stack:
        trials = []
        for number, (cell, folder) in enumerate(jobs):
            watch(number, Now(f"starting a process for {cell.title}"))
            all_tags = {**tags, **(own[number] if own else {})}
            attempt = Attempt(cell.frozen, folder, all_tags, tracker)

            def placed(rounds: int, number: int = number) -> None:
                watch(number, Now(f"measuring in turn, round {rounds}"))

            trials.append(stack.enter_context(RemoteTrial(cell, attempt, placed=placed)))
        for trial in trials:
            trial.wait()
        _in_turn(trials, watch)


def _in_turn(trials: Sequence[AnyTrial], watch: Watch, *, timed: bool = True) -> None:
    """Measure trials in turn, and compare each with the first."""
    bases = [None if number == 0 else 0 for number in range(len(trials))]
    processes = trials[0].cell.measure.processes
    conduct(trials, bases, compared=True, timed=timed, processes=processes, watch=watch)


def check_runnable(cell: Cell) -> None:
    """See that this machine can run a cell.

    Raises:
        UserError: it cannot, with the reason and a remedy.
    """
    problem = cell.workload.problem
    try:
        if isinstance(problem, HasNeeds):
            problem.check_available()
    except Unavailable as error:
        raise UserError(f"problem={cell.names['problem']}: {error}") from error
    try:
        check_workload(cell)
        cell.backend.check_available()
    except Unavailable as error:
        raise UserError(f"backend={cell.names['backend']}: {error}") from error


def check_workload(cell: Cell) -> None:
    """See that the backend can run the problem at all; needs no library and no device.

    Raises:
        Unavailable: it cannot.
    """
    check: Callable[[Workload], None] | None = getattr(cell.backend, "check_workload", None)
    if check:
        check(cell.workload)


@contextmanager
def as_a_program() -> Iterator[None]:
    """Collect garbage as a user's program would: the command line starts with it disabled.

    NumPy's floating-point warnings are off, since a loss that is not finite is reported anyway.
    """
    before = gc.isenabled()
    gc.collect()
    gc.enable()
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        if not before:
            gc.disable()


@contextmanager
def _quiet(trials: Sequence[AnyTrial], *, expected: bool) -> Iterator[None]:
    """Keep the trackers from running meanwhile; first let long runs appear in MLflow."""
    with ExitStack() as quiet:
        for trial in trials:
            if trial.tracker:
                expected_s = trial.expected_s * len(trials) if expected else 0.0
                quiet.enter_context(trial.tracker.quiet(trial.folder, expected_s))
        yield


def _alive(trials: Sequence[AnyTrial]) -> list[AnyTrial]:
    return [trial for trial in trials if trial.lives]


def _others(trials: Sequence[AnyTrial]) -> list[int]:
    """The ids of the processes that measure on this one's behalf."""
    return [trial.pid for trial in trials if trial.pid != os.getpid()]


def _base(trials: Sequence[AnyTrial], bases: Sequence[int | None], number: int) -> AnyTrial | None:
    """The trial that this one is compared with, if it has facts to compare."""
    index = bases[number]
    return trials[index] if index is not None and trials[index].facts else None


def _refuse_unlike(trials: Sequence[AnyTrial], bases: Sequence[int | None]) -> None:
    """With `measure.parity=require`, end trials whose work differs from their claim or base."""
    for number, trial in enumerate(trials):
        if trial.cell.measure.parity == "require" and trial.lives:
            base = _base(trials, bases, number)
            found = list(trial.broken)
            found += parity.differences(base.facts, trial.facts) if base else []
            if found:
                trial.refuse(found)


def _rounds(ready: Sequence[AnyTrial], *, compared: bool, timed: bool) -> str | None:
    """Run repeats until enough is known or a limit is reached; return what ended them."""
    if not ready:
        return None
    if not timed:
        for trial in ready:
            trial.repeat()
        return None
    measure = ready[0].cell.measure
    if not compared:  # each cell may take what a single one may
        measure = replace(measure, budget_s=measure.budget_s * len(ready))
    compared = compared and not _aimed(ready)
    look = Look(measure, lambda: [t.rounds for t in ready if t.lives], compared=compared)
    return run_rounds(ready, measure, look.enough, look.width)


def _aimed(ready: Sequence[AnyTrial]) -> bool:
    """Whether optimizers are compared by the time to a target, which is known only afterwards."""
    optimizers = {repr(trial.cell.workload.optimizer) for trial in ready}
    return len(optimizers) > 1 and all(trial.cell.target for trial in ready)


def _measure_again(
    ready: Sequence[AnyTrial], processes: int, watch: Watch, *, compared: bool
) -> None:
    """Add what fresh processes measure, one per cell at a time, until one of them gets no time.

    What a process fixes when it starts (the addresses of its code and stack, the seed of its
    hashes, a GPU's context) changes times as placement does, for as long as the process lives. So
    with several, the process is the unit of the interval, and placements are nested in it.
    """
    trials = _alive(ready)
    for number in range(2, processes + 1):
        if not trials or not all(trial.lives for trial in trials):
            return
        watch(0, Now(f"measuring in process {number} of {processes}"))
        with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
            again = []
            for index, trial in enumerate(trials):
                attempt = Attempt(trial.cell.frozen, Path(place, str(index)), {}, None)
                again.append(stack.enter_context(RemoteTrial(trial.cell, attempt)))
            for remote in again:
                remote.wait()
            conduct(again, [None] * len(again), compared=compared)
            for trial, remote in zip(trials, again, strict=True):
                run = load(remote.folder)
                trial.take_in(run.outcome, run.reason, run.rounds)


def _standing(trial: AnyTrial, base: AnyTrial | None) -> tuple[dict[str, str], dict[str, float]]:
    """The tags and figures that compare a trial with its base, and where their work differs."""
    if base is None:
        return {"parity": writing.not_alike(trial.broken)} if trial.broken else {}, {}
    unlike = parity.unlike(base, trial, (base.cell.title, "this cell"))
    tags = {"parity": writing.not_alike(unlike)} if unlike else {}
    if not base.lives or not trial.lives:
        return tags, {}
    verdict = held(base, trial, trial.cell.measure.threshold)
    to = f" to {verdict.target}" if verdict.target else ""
    tags["verdict"] = f"{verdict.word} ({verdict.times} {base.cell.title}{to})"
    return tags, quantities.of_verdict(verdict)
