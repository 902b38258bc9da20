"""Run cells: build, warm up, check, measure, record."""

from __future__ import annotations

import gc
import json
import traceback
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf

from expkit.config import Cell
from expkit.contracts import Selective
from expkit.errors import ParityError, Unavailable, UserError
from expkit.measure import parity
from expkit.measure.environment import Activity, Snapshot, environment
from expkit.measure.looking import Look
from expkit.measure.rounds import run_rounds
from expkit.measure.statistics import Rounds
from expkit.measure.verdict import held
from expkit.measurement import Measurement, Now, Result
from expkit.processes import measured_elsewhere
from expkit.tracking import address
from expkit.tracking import journal as journals
from expkit.tracking.address import one_line
from expkit.tracking.journal import Journal
from expkit.tracking.stored import PARAMS
from expkit.tracking.tracker import Tracker

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")

Watch = Callable[[int, Now], None]
"""Called off the clock, with the number of the cell among those that are run together."""
Drive = Callable[[Sequence[Measurement]], tuple[str | None, Activity]]
"""Takes repeats from what is ready; returns what ended it, and what went on meanwhile."""


def run(cell: Cell, folder: Path, tracker: Tracker | None, watch: Watch) -> Result:
    """Run a cell in its folder, journal first. What went wrong is recorded, then raised.

    Raises:
        UserError: before anything is written, where this machine cannot run the backend or the
            folder holds a run.
    """
    return run_together([(cell, folder)], tracker, watch, tags={})[0]


def require(cell: Cell) -> None:
    """See that this machine can run a cell.

    Raises:
        UserError: it cannot, with the reason and a remedy.
    """
    try:
        require_workload(cell)
        cell.backend.require()
    except Unavailable as error:
        raise UserError(f"backend={cell.names['backend']}: {error}") from error


def require_workload(cell: Cell) -> None:
    """See that the backend can run the problem at all; takes no library and no device.

    Raises:
        Unavailable: it cannot.
    """
    if isinstance(cell.backend, Selective):
        cell.backend.require_workload(cell.workload)


def in_turn(parts: Sequence[Measurement]) -> tuple[str | None, Activity]:
    """Repeats until enough is known or a limit is reached, by rounds, every round placed anew."""
    start = Snapshot.take()
    stopped_by = None
    if parts:
        measure = parts[0].cell.measure
        look = Look(measure, lambda: _good_rounds(parts), compared=True)
        stopped_by = run_rounds(parts, measure, look.enough, look.width)
    return stopped_by, Activity.between(start, Snapshot.take())


def run_together(
    jobs: Sequence[tuple[Cell, Path]],
    tracker: Tracker | None,
    watch: Watch,
    *,
    tags: Mapping[str, str],
    prepared: Callable[[], None] = lambda: None,
    measured: Callable[[], None] = lambda: None,
    drive: Drive = in_turn,
    timed: bool = True,
) -> list[Result]:
    """Run cells in this process, each in its folder, their repeats interleaved.

    How long is the first cell's to say. That they are in MLflow is the caller's to see to.

    Args:
        tags: of every run.
        prepared: called when other things may run beside this until the repeats begin.
        measured: called when they may again, until the end.
        drive: where the repeats are asked for: here, or by a sweep's other process.
        timed: false where other things run meanwhile: the results without times.

    Raises:
        UserError: before anything is written, where this machine cannot run a backend or a folder
            holds a run.
        ParityError: the cells do unlike work and `measure.parity=require`.
    """
    for cell, _ in jobs:
        require(cell)
    with ExitStack() as stack:
        parts = []
        for number, (cell, folder) in enumerate(jobs):
            watch(number, Now(f"starting backend {cell.names['backend']}"))
            cell.backend.configure()
            folder.mkdir(parents=True, exist_ok=True)
            result = Result(timed=timed)
            journal = stack.enter_context(_recorded(cell, folder, tracker, result, tags))
            told, alone = partial(watch, number), len(jobs) == 1
            parts.append(Measurement(cell, journal, tracker, told, result, alone=alone))
        # A loss that is not finite is found and named below.
        with np.errstate(all="ignore"), _collecting_garbage():
            ready = [part for part in parts if part.prepare()]
            prepared()
            for part in ready:
                part.find_answer()
            _hold_side_by_side(parts)
            with ExitStack() as quiet:
                for part in ready:
                    quiet.enter_context(part.quiet(part.expected_s))
                stopped_by, activity = drive(ready)
                _measure_elsewhere(ready, watch)
            for part in ready:
                known = len(part.result.unlike)
                part.conclude(stopped_by, activity)
                if len(part.result.unlike) > known:  # what only the clock could show
                    _tell_unlike(part)
            _judge(parts)
        about = environment() if timed else _environment_of_process()
        measured()
        for number, part in enumerate(parts):
            watch(number, Now("writing down what was found"))
            part.configure()
            _finish(part.cell, part.journal, tracker, part.result, about)
        watch(0, Now("closing the record"))
    return [part.result for part in parts]


def _measure_elsewhere(parts: Sequence[Measurement], watch: Watch) -> None:
    """Add what other processes measure, one after the other."""
    good = [part for part in parts if part.result.reason is None]
    if good:
        count = good[0].cell.measure.processes
        if count > 1:
            watch(0, Now(f"measuring in process 2 of {count}"))
        for number, runs in enumerate(measured_elsewhere([part.cell for part in good]), 3):
            watch(0, Now(f"measuring in process {min(number, count)} of {count}"))
            for part, run in zip(good, runs, strict=True):
                part.take_in(run)
            if any(part.result.reason for part in good):
                break


def _hold_side_by_side(parts: Sequence[Measurement]) -> None:
    """The parity gate: note in each cell what is unlike the first, and stop if that is asked."""
    for part in parts[1:]:
        part.result.differences = parity.differences(parts[0].result.facts, part.result.facts)
    for part in parts:
        _tell_unlike(part)


def _tell_unlike(part: Measurement) -> None:
    if unlike := part.result.unlike:
        part.journal.tags({"parity": "not like for like: " + "; ".join(unlike)})
        if part.cell.measure.parity == "require":
            raise ParityError(unlike)


def _judge(parts: Sequence[Measurement]) -> None:
    """Note each cell's verdict against the first."""
    first, threshold = parts[0], parts[0].cell.measure.threshold
    for part in parts[1:]:
        if first.result.outcome == part.result.outcome == "ok":
            found = held(first.result, part.result, threshold)
            part.journal.tags({"verdict": f"{found.word} ({found.ratio:.3f} times the first's)"})


def _good_rounds(parts: Sequence[Measurement]) -> list[Rounds]:
    return [part.result.rounds for part in parts if part.result.reason is None]


@contextmanager
def _recorded(
    cell: Cell,
    folder: Path,
    tracker: Tracker | None,
    result: Result,
    tags: Mapping[str, str],
) -> Iterator[Journal]:
    """A run in the journal and in MLflow from here to the end, however it ends."""
    opening = _opening(cell, folder, tags, cell.backend.describe())
    journal = Journal(folder, new=True)
    journal.write("run", **opening)
    status, raised = "FAILED", True
    try:
        if tracker:
            tracker.update(folder)
        yield journal
        raised = False
        status = "FINISHED" if result.outcome == "ok" else "FAILED"
    except KeyboardInterrupt:
        result.outcome, status = "interrupted", "KILLED"
        raise
    except BaseException as error:
        result.outcome = "failed"
        with suppress(OSError):  # on a full disk what went wrong first is what is told
            journal.tags({"reason": one_line(error)})
            (folder / "error.txt").write_text(traceback.format_exc())
            journal.artifact("error.txt")
        raise
    finally:
        journal.tags({"outcome": result.outcome})
        journal.end(status)
        if tracker:  # who has a result shows it before MLflow is waited for
            tracker.update(folder, last=raised)


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


def record_failure(
    cell: Cell, folder: Path, tags: Mapping[str, str], outcome: str, reason: str
) -> None:
    """End a run that did not end itself: its process is gone, or could not begin."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = (folder / journals.FILE).exists() and journals.opening(folder) is not None
    journal = Journal(folder)
    if not begun:
        journal.write("run", **_opening(cell, folder, tags, {}))
    journal.tags({"outcome": outcome, "reason": reason})
    journal.end("KILLED" if outcome == "interrupted" else "FAILED")


def _opening(
    cell: Cell, folder: Path, tags: Mapping[str, str], about: Mapping[str, Any]
) -> dict[str, Any]:
    colour = COLOURS[zlib.crc32(cell.names["backend"].encode()) % len(COLOURS)]
    own = {
        **cell.names,
        **{key: str(about[key]) for key in ("device", "dtype") if key in about},
        "cell": cell.hash,
        "outcome": "running",
        "expkit.folder": str(folder),
        "mlflow.runColor": colour,
    }
    return {
        "version": journals.VERSION,
        "id": uuid.uuid4().hex,
        "name": cell.title,
        "owner": journals.owner(),
        "tracking": {
            "uri": address.without_password(cell.address),
            "experiment": cell.tracking.experiment,
        },
        "params": cell.params | {f"actual.{k}": v for k, v in about.items()},
        "tags": own | dict(tags),
        "cell": dict(cell.frozen),
    }


def _finish(
    cell: Cell,
    journal: Journal,
    tracker: Tracker | None,
    result: Result,
    about: Mapping[str, Any],
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
        journal.metric("time/compile_seconds", [warm.compile_seconds])
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
    words = yaml.safe_dump(list(cell.frozen["words"]), allow_unicode=True, width=1e9)
    (journal.folder / "overrides.yaml").write_text(words, encoding="utf-8")
    about = {**about, "backend": cell.backend.describe()}
    (journal.folder / "environment.json").write_text(json.dumps(about, indent=2) + "\n")
    names = ["config.yaml", "overrides.yaml", "environment.json"]
    if result.params:
        kept: dict[str, Any] = result.params
        np.savez(journal.folder / PARAMS, **kept)
        names.append(PARAMS)
    for name in names:
        journal.artifact(name)


@cache
def _environment_of_process() -> dict[str, Any]:
    """As it was at its first cell: what changes since is of interest beside times alone."""
    return environment()


def _write_step_seconds(journal: Journal, result: Result) -> None:
    """Median over repeats of a step's mean seconds in each reading, at its last step."""
    lengths = np.diff([-1, *result.chunk_ends])
    medians = np.median(np.asarray(result.chunk_seconds), axis=0) / lengths
    journal.series("time/step_seconds", medians.tolist(), result.chunk_ends)
