"""One cell: build, warm up, measure, record."""

from __future__ import annotations

import gc
import hashlib
import json
import traceback
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from expkit.config import Cell
from expkit.contracts import HostArray, Operation, Plotted, Program
from expkit.measure.clock import timed
from expkit.measure.environment import environment
from expkit.measure.statistics import Summary, summarize
from expkit.measure.stopping import reason_to_stop
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
        outcome: ok, diverged, failed or interrupted.
        first_bad_step: the first step with a non-finite loss, from 0.
        wall_seconds: of each whole repeat.
        chunk_seconds: of each repeat, its chunks' seconds.
        losses: of the first repeat's steps; of a diverged run those to the end of the bad chunk.
        stopped_by: the limit that ended the repeats.
    """

    outcome: str = "failed"
    first_bad_step: int | None = None
    setup_seconds: float | None = None
    warmup_seconds: float | None = None
    wall_seconds: list[float] = field(default_factory=list)
    chunk_seconds: list[list[float]] = field(default_factory=list)
    losses: HostArray = field(default_factory=lambda: np.empty(0))
    params: dict[str, HostArray] = field(default_factory=dict)
    stopped_by: str | None = None
    sent: Sent | None = None

    @property
    def summary(self) -> Summary | None:
        """Of whole repeats; None unless the outcome is ok: no other has a time to show."""
        return summarize(self.wall_seconds) if self.outcome == "ok" else None


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
        Unavailable: before anything is written, where this machine cannot run the backend.
    """
    cell.backend.require()
    cell.backend.configure()
    folder.mkdir(parents=True, exist_ok=True)
    result = Result()
    with _recorded(cell, folder, tracker, result, sweep) as journal:
        # A loss that is not finite is found and named below.
        with np.errstate(all="ignore"), _collecting_garbage():
            _Measurement(cell, journal, tracker, watch, result).run()
        _finish(cell, journal, tracker, draw, result)
    return result


@contextmanager
def _recorded(
    cell: Cell, folder: Path, tracker: Tracker | None, result: Result, sweep: str | None
) -> Iterator[Journal]:
    """A run in the journal and in MLflow from here to the end, however it ends."""
    journal = Journal(folder)
    journal.write("run", **_opening(cell, folder, sweep))
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
    """As a person's own program runs: collector on, but past what start-up left behind."""
    before = gc.isenabled()
    gc.freeze()
    gc.enable()
    try:
        yield
    finally:
        gc.unfreeze()
        if not before:
            gc.disable()


def _opening(cell: Cell, folder: Path, sweep: str | None) -> dict[str, Any]:
    params = _flat(cell.resolved)
    about = cell.backend.describe()
    hashed = {k: v for k, v in params.items() if not k.startswith(("measure.", "tracking."))}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]
    colour = COLOURS[zlib.crc32(cell.names["backend"].encode()) % len(COLOURS)]
    tags = {
        **cell.names,
        "device": str(about["device"]),
        "dtype": str(about["dtype"]),
        "cell": digest,
        "outcome": "running",
        "expkit.folder": str(folder),
        "mlflow.runColor": colour,
    }
    if sweep is not None:
        tags["sweep"] = sweep
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
        "tags": tags,
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


@dataclass
class _Measurement:
    """The clocked part of a run: what it works on and where its findings go."""

    cell: Cell
    journal: Journal
    tracker: Tracker | None
    watch: Watch
    result: Result

    @property
    def _learns(self) -> bool:
        return not isinstance(self.cell.workload.problem, Operation)

    def run(self) -> None:
        """Build, warm up, repeat."""
        cell, result, backend = self.cell, self.result, self.cell.backend
        steps = cell.workload.steps
        warmup = min(cell.measure.warmup, -(-steps // 10))
        with self._quiet(expected_s=0):
            started = perf_counter()
            program = backend.build(cell.workload)
            backend.synchronize()
            result.setup_seconds = perf_counter() - started
            result.warmup_seconds = timed(program, backend.synchronize, warmup) if warmup else 0.0
        self.journal.tags({"path": program.path})
        expected_s = result.warmup_seconds / max(warmup, 1) * steps * cell.measure.repeats_min
        with self._quiet(expected_s):
            self._repeats(program, warmup)
        if isinstance(cell.workload.problem, Plotted):
            result.params = program.params()

    def _quiet(self, expected_s: float) -> AbstractContextManager[None]:
        return (
            self.tracker.quiet(self.journal.folder, expected_s) if self.tracker else nullcontext()
        )

    def _repeats(self, program: Program, warmup: int) -> None:
        """Repeats from the same start, each in fresh memory, until a limit is reached."""
        result, started = self.result, perf_counter()
        while result.stopped_by is None:
            program.reallocate()
            if warmup:
                program.advance(warmup)
                program.reset()
            self._repeat(program)
            if result.outcome == "diverged":
                return
            walls = result.wall_seconds
            self.journal.metric("time/wall_seconds", walls[-1:], len(walls) - 1)
            elapsed_s = perf_counter() - started
            result.stopped_by = reason_to_stop(self.cell.measure, walls, elapsed_s)
        result.outcome = "ok"

    def _repeat(self, program: Program) -> None:
        """All steps, in chunks; between the chunks, off the clock, look at the losses."""
        cell, result, synchronize = self.cell, self.result, self.cell.backend.synchronize
        steps, repeat = cell.workload.steps, len(result.wall_seconds)
        seconds: list[float] = []
        written, last_flush = 0, perf_counter()
        try:
            for done in range(0, steps, cell.log_every):
                n = min(cell.log_every, steps - done)
                seconds.append(timed(program, synchronize, n))
                fresh = program.losses(done)
                bad = np.flatnonzero(~np.isfinite(fresh))
                if bad.size:
                    result.outcome, result.first_bad_step = "diverged", done + int(bad[0])
                    break
                loss = float(fresh[-1]) if fresh.size else None
                self.watch(repeat, done + n, loss, n / seconds[-1])
                if repeat == 0 and self._learns and perf_counter() - last_flush > FLUSH_S:
                    self.journal.metric("train/loss", program.losses(written), written)
                    written, last_flush = done + n, perf_counter()
                if self.tracker:
                    self.tracker.refresh(self.journal.folder)
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is told
                self._keep_losses(program, written)
            raise
        self._keep_losses(program, written)
        if result.outcome != "diverged":
            result.wall_seconds.append(sum(seconds))
            result.chunk_seconds.append(seconds)

    def _keep_losses(self, program: Program, written: int) -> None:
        """The first repeat's losses, or those of the repeat that diverged."""
        first = not self.result.wall_seconds
        if self._learns and (first or self.result.outcome == "diverged"):
            self.result.losses = program.losses()
        if self._learns and first:
            self.journal.metric("train/loss", self.result.losses[written:], written)


def _finish(
    cell: Cell, journal: Journal, tracker: Tracker | None, draw: Draw, result: Result
) -> None:
    """Metrics and artifacts of a run that was measured or diverged."""
    if result.losses.size:
        journal.metric("final/loss", result.losses[-1:])
    if result.first_bad_step is not None:
        journal.tags({"first_bad_step": str(result.first_bad_step)})
    if result.summary:
        summary, steps = result.summary, cell.workload.steps
        journal.metric("time/setup_seconds", [result.setup_seconds or 0.0])
        journal.metric("time/warmup_seconds", [result.warmup_seconds or 0.0])
        journal.metric("time/median_seconds", [summary.median])
        journal.metric("time/low_seconds", [summary.low])
        journal.metric("time/high_seconds", [summary.high])
        journal.metric("time/steps_per_second", [steps / summary.median])
        journal.tags({"stopped_by": str(result.stopped_by)})
        _write_step_seconds(cell, journal, result)
    if tracker:
        tracker.update(journal.folder)
    (journal.folder / "config.yaml").write_text(OmegaConf.to_yaml(cell.resolved))
    about = environment() | {"backend": cell.backend.describe()}
    (journal.folder / "environment.json").write_text(json.dumps(about, indent=2) + "\n")
    for name in ("config.yaml", "environment.json", *draw(cell, result, journal.folder)):
        journal.artifact(name)


def _write_step_seconds(cell: Cell, journal: Journal, result: Result) -> None:
    """Median over repeats of a step's mean seconds in each chunk, at the chunk's last step."""
    steps = cell.workload.steps
    ends = [min(done + cell.log_every, steps) for done in range(0, steps, cell.log_every)]
    lengths = np.diff([0, *ends])
    medians = np.median(np.asarray(result.chunk_seconds), axis=0) / lengths
    journal.series("time/step_seconds", medians.tolist(), [end - 1 for end in ends])
