"""`-m`: run a manifest's cells, show how it goes, then what came out; and `expkit resume`."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus

from expkit.cli.run import VERBOSE, not_in_mlflow, run, show, where_told
from expkit.cli.status import FAILED, INTERRUPTED, OK, complain
from expkit.errors import ConfigError, UserError
from expkit.report import sweep as report
from expkit.report.units import count
from expkit.runner import KILLED_LIMIT_S
from expkit.sweep import elsewhere, engine
from expkit.sweep.manifest import FILE, Manifest, Planned, is_for_hydra, locked, named, newest
from expkit.sweep.pace import Pace
from expkit.sweep.worker import end_spares
from expkit.tracking.sent import pending
from expkit.tracking.stored import Stored
from expkit.tracking.tracker import Tracker, one_line

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher


REDRAW_S = 0.2


class Lines:
    """A line for every cell that has ended; on a terminal, also one that tells how it goes."""

    def __init__(self, manifest: Manifest, todo: Sequence[Planned]) -> None:
        self._manifest, self._total = manifest, len(todo)
        self._done = self._failed = 0
        self._pace = Pace(todo, timed=manifest.sweep.timing)
        self._shown = 0.0
        self._live = sys.stderr.isatty()

    def begins(self, planned: Planned) -> None:
        self._pace.begins(planned, monotonic())
        self._show()

    def measures(self, planned: Planned, rounds: int) -> None:
        self._pace.measures(planned, rounds, monotonic())
        if monotonic() - self._shown > REDRAW_S:
            self._show()

    def ends(self, planned: Planned, outcome: str, reason: str) -> None:
        self._pace.ends(planned, monotonic())
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
        failed = f"{self._failed} failed" if self._failed else ""
        self._shown = monotonic()
        parts = [f"{self._done} of {self._total} done", failed, self._pace.told(self._shown)]
        line = ", ".join(filter(None, parts))[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def conduct(
    manifest: Manifest,
    todo: Sequence[Planned],
    tracker: Tracker | None,
    launcher: Launcher | None,
    *,
    verbose: bool,
) -> int:
    """Run what is to be run of a sweep that is locked; returns the exit status."""
    screen = Lines(manifest, todo)
    stopped, again = False, f"interrupted; go on with: expkit resume {manifest.name}"
    with _told(manifest, tracker, screen, again):
        if launcher is None:
            stopped = engine.run(manifest, todo, tracker, screen)
        else:
            end_spares()
            elsewhere.launch(manifest, todo, launcher)
    return tell(manifest, tracker, interrupted=again if stopped else None, verbose=verbose)


@contextmanager
def _told(
    manifest: Manifest, tracker: Tracker | None, screen: Lines, interrupted: str
) -> Iterator[None]:
    """Leave the terminal in order; where this is interrupted, send what there is and say so."""
    try:
        yield
    except KeyboardInterrupt:
        screen.close()
        if tracker:
            _send_rest(manifest, tracker, KILLED_LIMIT_S)
        complain(interrupted)
        raise
    finally:
        screen.close()


def tell(
    manifest: Manifest,
    tracker: Tracker | None,
    *,
    interrupted: str | None = None,
    verbose: bool = False,
) -> int:
    """Show what came out of a sweep; returns the exit status.

    Args:
        interrupted: what to say where it was.
        verbose: show all rows, and where each run is kept.
    """
    error = _send_rest(manifest, tracker, None) if tracker else None
    (manifest.folder / "result.txt").write_text(report.result(manifest, None) + "\n")
    left = len(manifest.missing())
    show(f"\n{report.result(manifest, None) if verbose else report.result(manifest)}\n")
    show(f"{count(len(manifest.cells) - left, 'cell')} finished; {manifest.folder}")
    if error:
        not_in_mlflow(error, manifest.folder)
    if interrupted:
        return complain(interrupted, INTERRUPTED)
    return FAILED if left or error else OK


def _send_rest(manifest: Manifest, tracker: Tracker, limit_s: float | None) -> str | None:
    """All that is not in MLflow yet, such as what an earlier process left; why not, if not."""
    tracker.settle(limit_s)
    for folder in pending(manifest.folder):
        if error := tracker.update(folder, wait=True, limit_s=limit_s).error:
            return error
    return None


class Search:
    """The batches of a sweeper that searches: its cells come a few at a time."""

    def __init__(self, tracker: Tracker | None, *, verbose: bool = False) -> None:
        self._tracker, self._verbose = tracker, verbose
        self._manifest: Manifest | None = None

    def launch(self, batch: Manifest, numbers: Sequence[int]) -> list[JobReturn]:
        """Run a batch; the objective of every number, or the reason why it has none.

        Raises:
            UserError: there can be no objective.
        """
        if batch.sweep.objective == "seconds" and not batch.sweep.timing:
            raise ConfigError("sweep.objective", "seconds", "loss where sweep.timing=false")
        if batch.sweep.dry_run:
            raise ConfigError("sweep.dry_run", True, "false: a search chooses as it goes")
        manifest = self._manifest.joined(batch) if self._manifest else batch
        self._manifest = manifest
        with locked(manifest.folder):
            manifest.save()
            screen = Lines(manifest, batch.cells)
            rest = f"what has not finished: expkit resume {manifest.name}"
            again = f"the search is interrupted; {rest}"
            with _told(manifest, self._tracker, screen, again):
                if engine.run(manifest, batch.cells, self._tracker, screen):
                    raise KeyboardInterrupt
        runs = {cell.index: manifest.result(cell) for cell in batch.cells}
        twins = {number: batch.again.get(number, number) for number in numbers}
        return [_objective(runs.get(twins[n]), manifest.sweep.objective) for n in numbers]

    def finish(self) -> int | None:
        """Show what came out; the exit status, or None where nothing was searched."""
        if self._manifest is None:
            return None
        status = tell(self._manifest, self._tracker, verbose=self._verbose)
        show(report.best(self._manifest))
        return status


def _objective(run: Stored | None, objective: str) -> JobReturn:
    if run is not None and run.outcome == "diverged":  # an answer, and the worst there is
        return JobReturn(_return_value=math.inf, status=JobStatus.COMPLETED)
    if run is None or run.outcome != "ok":
        why = f"{run.outcome}: {run.reason}" if run else "it cannot run"
        return JobReturn(_return_value=RuntimeError(why), status=JobStatus.FAILED)
    value = report.objective(run, objective)
    if value is None:
        raise UserError("sweep.objective: got 'loss', and this problem has none; takes seconds")
    return JobReturn(_return_value=value, status=JobStatus.COMPLETED)


def resume(word: str | None, outputs: Path, *, verbose: bool = False) -> int:
    """Run what is missing of a sweep."""
    try:
        folder = named(word, outputs) if word else newest(outputs)
    except UserError as error:
        return complain(error)
    try:
        manifest = Manifest.load(folder)
    except UserError as error:
        return complain(error)
    # All else is in the manifest, and may not be in the option files any more.
    words = [word for word in manifest.words if is_for_hydra(word)]
    kinds = {cell.frozen["config"]["tracking"]["kind"] for cell in manifest.cells}
    tracking = [] if "mlflow" in kinds else ["tracking=none"]
    place = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    told = [VERBOSE] if verbose else []
    return run(["-m", *told, *words, *tracking, f"hydra.sweep.dir='{place}'"])


def begin(
    manifest: Manifest, tracker: Tracker | None, launcher: Launcher | None, *, verbose: bool = False
) -> int:
    """Run a sweep, or the rest of it; returns the exit status."""
    if manifest.sweep.dry_run:
        show(report.planned(manifest, manifest.cells, apart=launcher is not None))
        return OK
    with locked(manifest.folder):
        if not (manifest.folder / FILE).is_file():
            manifest.save()
        manifest.close_orphans()
        todo = manifest.missing()
        show(report.planned(manifest, todo, apart=launcher is not None))
        if not manifest.cells:
            return complain("nothing can run: every cell is skipped", FAILED)
        try:
            return conduct(manifest, todo, tracker, launcher, verbose=verbose)
        except UserError:
            raise
        except Exception as error:
            told = where_told(manifest.folder)
            return complain(f"the sweep failed: {one_line(error)}{told}", FAILED)
