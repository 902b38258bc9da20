"""`-m`: run a manifest's cells, show how it goes, then what came out; and `expkit resume`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus

from expkit.cli.run import not_in_mlflow, run
from expkit.cli.status import FAILED, INTERRUPTED, OK, complain
from expkit.errors import UserError
from expkit.measure.statistics import summarize
from expkit.report import sweep as report
from expkit.runner import KILLED_LIMIT_S
from expkit.sweep import elsewhere, engine
from expkit.sweep.manifest import FILE, Manifest, Planned, locked, named, newest
from expkit.tracking.sent import pending
from expkit.tracking.stored import Stored
from expkit.tracking.tracker import Tracker

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher


class Lines:
    """A line for every cell that has ended; on a terminal, also one that tells how it goes."""

    def __init__(self, manifest: Manifest, todo: Sequence[Planned]) -> None:
        self._manifest, self._total = manifest, len(todo)
        self._done = self._failed = 0
        self._running: dict[int, str] = {}
        self._begun = monotonic()
        self._live = sys.stderr.isatty()

    def begins(self, planned: Planned) -> None:
        self._running[planned.index] = planned.title
        self._show()

    def ends(self, planned: Planned, outcome: str, reason: str) -> None:
        self._running.pop(planned.index, None)
        self._done += 1
        self._failed += outcome != "ok"
        what = f"[{self._done}/{self._total}] {report.name(self._manifest, planned)}"
        self.says(f"{what}: {outcome}" + (f": {reason}" if reason else ""))

    def says(self, text: str) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr)
        print(text, file=sys.stderr, flush=True)
        self._show()

    def close(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _show(self) -> None:
        if not self._live:
            return
        parts = [f"{self._done} of {self._total} done", f"{self._failed} failed"]
        if self._running:
            first = next(iter(self._running.values()))
            parts.append(f"{len(self._running)} running ({first}, ...)")
        if self._done:
            left = (monotonic() - self._begun) / self._done * (self._total - self._done)
            parts.append(f"about {left:.0f} s left")
        line = ", ".join(parts)[:118]
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def conduct(
    manifest: Manifest,
    todo: Sequence[Planned],
    tracker: Tracker | None,
    launcher: Launcher | None,
) -> int:
    """Run what is to be run of a sweep that is locked; returns the exit status."""
    screen = Lines(manifest, todo)
    stopped, again = False, f"expkit resume {manifest.id}"
    try:
        if launcher is None:
            stopped = engine.run(manifest, todo, tracker, screen)
        else:
            elsewhere.launch(manifest, todo, launcher)
    except KeyboardInterrupt:
        screen.close()
        if tracker:
            _send_rest(manifest, tracker, KILLED_LIMIT_S)
        complain(f"interrupted; go on with: {again}")
        raise
    finally:
        screen.close()
    return tell(manifest, tracker, again if stopped else None)


def tell(manifest: Manifest, tracker: Tracker | None, again: str | None) -> int:
    """Show what came out of a sweep; returns the exit status.

    Args:
        again: where it was interrupted, what goes on with it.
    """
    error = _send_rest(manifest, tracker, None) if tracker else None
    (manifest.folder / "result.txt").write_text(report.result(manifest, None) + "\n")
    left = len(manifest.missing())
    print(f"\n{report.result(manifest)}\n", flush=True)
    print(f"{report.count(len(manifest.cells) - left, 'cell')} finished; {manifest.folder}")
    if error:
        not_in_mlflow(error, manifest.folder)
    if again:
        return complain(f"interrupted; go on with: {again}", INTERRUPTED)
    return FAILED if left or error else OK


def _send_rest(manifest: Manifest, tracker: Tracker, limit_s: float | None) -> str | None:
    """All that is not in MLflow yet, such as what an earlier process left; why not, if not."""
    tracker.settle()
    for folder in pending(manifest.folder):
        if error := tracker.update(folder, wait=True, limit_s=limit_s).error:
            return error
    return None


class Search:
    """The batches of a sweeper that searches: its cells come a few at a time."""

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker = tracker
        self._manifest: Manifest | None = None

    def launch(self, batch: Manifest, numbers: Sequence[int]) -> list[JobReturn]:
        """Run a batch; the objective of every number, or the reason why it has none."""
        manifest = self._manifest.joined(batch) if self._manifest else batch
        self._manifest = manifest
        with locked(manifest.folder):
            manifest.save()
            screen = Lines(manifest, batch.cells)
            try:
                stopped = engine.run(manifest, batch.cells, self._tracker, screen)
            finally:
                screen.close()
        if stopped:
            raise KeyboardInterrupt
        runs = {cell.index: manifest.result(cell) for cell in batch.cells}
        return [_objective(runs.get(number), manifest.sweep.objective) for number in numbers]

    def finish(self) -> int | None:
        """Show what came out; the exit status, or None where nothing was searched."""
        if self._manifest is None:
            return None
        return tell(self._manifest, self._tracker, None)


def _objective(run: Stored | None, objective: str) -> JobReturn:
    if run is None or run.outcome != "ok":
        why = f"{run.outcome}: {run.reason}" if run else "it cannot run"
        return JobReturn(_return_value=RuntimeError(why), status=JobStatus.FAILED)
    value = run.loss if objective == "loss" else summarize(run.rounds).median
    if value is None:
        raise UserError("sweep.objective: got 'loss', and this problem has none; takes seconds")
    return JobReturn(_return_value=value, status=JobStatus.COMPLETED)


def resume(word: str | None, outputs: Path) -> int:
    """Run what is missing of a sweep."""
    try:
        folder = named(word, outputs) if word else newest(outputs)
    except UserError as error:
        return complain(error)
    manifest = Manifest.load(folder)
    return run(["-m", *manifest.words, f"hydra.sweep.dir='{folder}'"])


def begin(manifest: Manifest, tracker: Tracker | None, launcher: Launcher | None) -> int:
    """Run a sweep, or the rest of it; returns the exit status."""
    if manifest.sweep.dry_run:
        print(report.planned(manifest, manifest.cells))
        return OK
    with locked(manifest.folder):
        if (manifest.folder / FILE).is_file():
            engine.end_what_was_left(manifest)
        else:
            manifest.save()
        todo = manifest.missing()
        print(report.planned(manifest, todo), flush=True)
        if not manifest.cells:
            return complain("nothing can run: every cell is skipped", FAILED)
        return conduct(manifest, todo, tracker, launcher)
