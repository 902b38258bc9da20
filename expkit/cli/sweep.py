"""`-m`: run a manifest's cells, show how it goes, then what came out; and `expkit resume`."""

from __future__ import annotations

import gc
import math
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus

from expkit import door
from expkit.cli import COMMANDS
from expkit.cli.addresses import allow_stored
from expkit.cli.progress import waiting_for
from expkit.cli.session import interruptible, not_in_mlflow, show, tracker_for, where_told
from expkit.cli.status import FAILED, INTERRUPTED, OK, print_error
from expkit.cli.words import check_words
from expkit.error_messages import explained
from expkit.errors import ConfigError, UserError, is_disk_full
from expkit.outcome import ALIKE, FINISHED, Outcome
from expkit.record.stored import Stored
from expkit.report import plots
from expkit.sweeps import cluster, names, page, ranking
from expkit.sweeps import table as report
from expkit.sweeps.engine import ProgressReporter
from expkit.sweeps.manifest import Manifest, Planned, locked, named, newest, require_unused
from expkit.sweeps.pace import Pace
from expkit.sweeps.ranking import Results
from expkit.tracking.address import one_line
from expkit.tracking.tracker import Tracker
from expkit.units import count, megabytes

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from omegaconf import DictConfig


REDRAW_S = 0.2
NO_NAMES: Mapping[int, str] = {}


class Lines(ProgressReporter):
    """Prints a line for every cell that has ended and, on a terminal, one with the progress."""

    def __init__(
        self,
        manifest: Manifest,
        todo: Sequence[Planned],
        done: int = 0,
        total: int | None = None,
    ) -> None:
        """`done` of `total` cells came before those in `todo`."""
        self._manifest, self._total = manifest, total or done + len(todo)
        self._done, self._failed = done, 0
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
        self._failed += outcome not in FINISHED
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
    """Run the cells `todo` of a locked sweep; return the exit status.

    A full disk ends the sweep at once, because all further cells would fail too.
    """
    reporter = Lines(manifest, todo)
    stopped, full = False, False

    def interrupted() -> str:
        again = f"go on with: expkit resume {manifest.name}"
        return f"interrupted; {again if manifest.missing() else 'by then every cell had ended'}"

    with _told(manifest, tracker, reporter, interrupted):
        try:
            stopped = door.swept(manifest, todo, tracker, reporter, launcher)
        except Exception as error:
            if not (full := is_disk_full(error)):
                raise
    if full:
        return tell_full(manifest, tracker)
    said = interrupted() if stopped else None
    return tell(manifest, tracker, interrupted=said, verbose=verbose)


def tell_full(manifest: Manifest, tracker: Tracker | None) -> int:
    """Show the results so far and the space that the rest needs; return the exit status."""
    found = Results.read(manifest)
    outcomes = found.outcomes()
    left = len(manifest.missing())
    show(f"\n{report.result(found)}\n")
    show(f"{report.counted(outcomes, len(manifest.damaged))}; {manifest.folder}")
    need = f"the {count(left, 'cell')} left need about {megabytes(manifest.room(left))}"
    again = f"go on with: expkit resume {manifest.name}"
    if tracker:
        with waiting_for("MLflow"):
            tracker.settle()
    return print_error(
        f"the disk of {manifest.folder} is full; {need}; free that, then {again}", FAILED
    )


@contextmanager
def _told(
    manifest: Manifest, tracker: Tracker | None, reporter: Lines, interrupted: Callable[[], str]
) -> Iterator[None]:
    """Clear the progress line at the end; on an interrupt, report it and send what there is."""
    try:
        yield
    except KeyboardInterrupt:
        reporter.close()
        print_error(interrupted())
        if tracker:
            _send_rest(Results.read(manifest), tracker)
        raise
    finally:
        reporter.close()


def _show_best(found: Results) -> None:
    """Show the best trial of a search, and draw the picture of the search."""
    show(report.best(found))
    if any(c.frozen["config"]["tracking"]["pictures"] for c in found.manifest.cells):
        try:
            picture = plots.draw_search(report.course(found), found.manifest.folder)
        except Exception as error:  # the search itself has succeeded
            print_error(f"the search's picture cannot be drawn: {one_line(error)}")
        else:
            show(f"picture: {picture}")


def _show_page(found: Results) -> None:
    """Write the page of a sweep, and say where it is."""
    try:
        file, missing = page.write_wanted(found)
    except OSError as error:  # the disk is full; all runs are kept
        file, missing = None, f"no page ({one_line(error)})"
    if missing:
        print_error(missing)
    if file:
        show(f"page: {file}")


def tell(
    manifest: Manifest,
    tracker: Tracker | None,
    *,
    interrupted: str | None = None,
    verbose: bool = False,
) -> int:
    """Show the results of a sweep, then send what is not in MLflow; return the exit status.

    Args:
        interrupted: what to print if the sweep was interrupted.
        verbose: show all rows, and where each run is kept.
    """
    found = Results.read(manifest)
    with suppress(OSError):  # the table is printed anyway
        (manifest.folder / "result.txt").write_text(report.result(found, None) + "\n")
    shown = report.result(found, None if verbose else report.SHOWN)
    show(f"\n{shown}\n" if shown else "")  # empty if all cells are damaged
    outcomes = found.outcomes()
    show(f"{report.counted(outcomes, len(manifest.damaged))}; {manifest.folder}")
    if alike := [outcome for outcome in ALIKE if outcome in outcomes]:
        show(f"to run these again: expkit resume {manifest.name} --retry {','.join(alike)}")
    if interrupted:
        print_error(interrupted)
    else:
        if manifest.best:
            _show_best(found)
        _show_page(found)
    try:
        error = _send_rest(found, tracker) if tracker else None
    except KeyboardInterrupt:
        if not interrupted:
            print_error(f"interrupted; by then all was measured, and it is in {manifest.folder}")
        raise
    if error:
        not_in_mlflow(error, manifest.folder)
    if interrupted:
        return INTERRUPTED
    failed = bool(manifest.damaged) or any(outcome not in FINISHED for outcome in outcomes)
    return FAILED if failed or error else OK


def _send_rest(found: Results, tracker: Tracker) -> str | None:
    """Send the runs that MLflow lacks; return the first error, or None."""
    with waiting_for("MLflow"):
        return door.send_rest(found, tracker)


class Search:
    """Runs the batches of a searching sweeper, whose cells come a few at a time."""

    def __init__(
        self, tracker: Tracker | None, sweeper: DictConfig, *, verbose: bool = False
    ) -> None:
        self._tracker, self._verbose = tracker, verbose
        self._trials: int | None = sweeper.get("n_trials")
        self._manifest: Manifest | None = None

    def launch(
        self, batch: Manifest, numbers: Sequence[int], folders: Mapping[int, str]
    ) -> list[JobReturn]:
        """Run a batch; return for each number the objective, or the reason why it has none.

        Args:
            folders: the user's names of cells' folders, by cell number.

        Raises:
            UserError: there can be no objective.
        """
        objective = batch.sweep.objective
        if objective != "loss" and not batch.sweep.timing:
            raise ConfigError("sweep.objective", objective, "loss where sweep.timing=false")
        if objective == "target" and not all(planned.cell.target for planned in batch.cells):
            takes = "loss or seconds, unless target.of and target.value are set"
            raise ConfigError("sweep.objective", objective, takes)
        if objective == "target" and batch.best == "greatest":
            takes = "minimize where sweep.objective=target"
            raise ConfigError("hydra.sweeper.direction", "maximize", takes)
        if batch.sweep.dry_run:
            raise ConfigError("sweep.dry_run", True, "false: a search chooses as it goes")
        manifest = self._manifest.joined(batch) if self._manifest else batch
        with locked(manifest.folder):
            if self._manifest is None:
                require_unused(manifest.folder)
            self._manifest = manifest
            manifest.save()
            _name(manifest, folders)
            reporter = Lines(manifest, batch.cells, numbers[0], self._trials)
            rest = f"what has not finished: expkit resume {manifest.name}"
            again = f"the search is interrupted; {rest}"
            with _told(manifest, self._tracker, reporter, lambda: again):
                if door.swept(manifest, batch.cells, self._tracker, reporter):
                    raise KeyboardInterrupt
        runs = {cell.index: manifest.result(cell) for cell in batch.cells}
        twins = {number: batch.again.get(number, number) for number in numbers}
        return [_objective(runs.get(twins[n]), manifest) for n in numbers]

    def finish(self) -> int | None:
        """Show the results; return the exit status, or None if nothing was searched."""
        if self._manifest is None:
            return None
        names.link(self._manifest, {})
        return tell(self._manifest, self._tracker, verbose=self._verbose)


def _objective(run: Stored | None, manifest: Manifest) -> JobReturn:
    if run is not None and run.outcome == Outcome.DIVERGED:  # a valid result, and the worst
        worst = -math.inf if manifest.best == "greatest" else math.inf
        return JobReturn(_return_value=worst, status=JobStatus.COMPLETED)
    if run is None or run.outcome != Outcome.OK:
        why = f"{run.outcome}: {run.reason}" if run else "it cannot run"
        return JobReturn(_return_value=RuntimeError(why), status=JobStatus.FAILED)
    value = ranking.objective(run, manifest.sweep.objective)
    if value is None:
        raise UserError("sweep.objective: got 'loss', and this problem has none; takes seconds")
    return JobReturn(_return_value=value, status=JobStatus.COMPLETED)


def resume(
    word: str | None,
    outputs: Path,
    typed: Sequence[str] = (),
    *,
    retry: Collection[str] = (),
    uri: str | None = None,
    allow_target: bool = False,
    verbose: bool = False,
) -> int:
    """Run the missing cells of a sweep.

    Only the manifest is read, because option files may have changed since it was written.

    Args:
        word: its id or folder; None for the last one.
        typed: words for the launcher.
        retry: outcomes whose cells are run again, which they otherwise are not.
        uri: where to send its runs, in place of the address that they name.
        allow_target: load classes that no installed option names.
    """

    def work() -> int:
        gc.enable()
        found = Manifest.load(named(word, outputs) if word else newest(outputs))
        if not allow_target:
            found.require_installed()
        launcher = _launcher(found, typed)
        with tracker_for([] if found.is_tracked else ["tracking=none"]) as tracker:
            allow_stored(tracker, found, outputs, uri=uri)
            return begin(found, tracker, launcher, resumed=True, retry=retry, verbose=verbose)

    return interruptible(work)


def _launcher(manifest: Manifest, typed: Sequence[str]) -> Launcher | None:
    """Return the launcher of a sweep that is resumed; None if its cells run here."""
    words = cluster.replayed(manifest.words, typed, manifest.file)
    if not words:
        return None
    check_words(words)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors reach us
    with explained(words, COMMANDS):
        return cluster.chosen(words, manifest.folder)


def begin(
    manifest: Manifest,
    tracker: Tracker | None,
    launcher: Launcher | None,
    folders: Mapping[int, str] = NO_NAMES,
    *,
    resumed: bool,
    retry: Collection[str] = (),
    verbose: bool = False,
) -> int:
    """Run a sweep, or the rest of it; return the exit status.

    Args:
        folders: the user's names of cells' folders, by cell number.
        resumed: whether the sweep's folder already holds it.
        retry: as in `resume`.
    """
    if manifest.sweep.dry_run:
        show(report.planned(manifest, manifest.cells, apart=launcher is not None))
        return OK
    if launcher is not None:
        cluster.require_here(launcher)
    with locked(manifest.folder):
        if resumed:
            manifest = _checked(manifest, retry)
        else:
            require_unused(manifest.folder)
            manifest.save()
        if not manifest.cells and not manifest.damaged:
            return print_error("nothing can run: every cell is skipped", FAILED)
        todo = manifest.missing(retry)
        show(report.planned(manifest, todo, apart=launcher is not None))
        _name(manifest, folders)
        try:
            return conduct(manifest, todo, tracker, launcher, verbose=verbose)
        except UserError:
            raise
        except Exception as error:
            told = where_told(manifest.folder)
            return print_error(f"the sweep failed: {one_line(error)}{told}", FAILED)
        finally:
            names.link(manifest, {})


def _name(manifest: Manifest, folders: Mapping[int, str]) -> None:
    """Link the user's names to cells' folders, and report the names that cannot be used."""
    if refused := names.link(manifest, folders):
        takes = "a different name for every cell, inside the sweep's folder and not a number"
        cells = count(len(refused), "cell")
        print_error(f"hydra.sweep.subdir: got {refused[0]!r}, takes {takes}; {cells} got no name")


def _checked(manifest: Manifest, retry: Collection[str]) -> Manifest:
    """Drop the cells that cannot be thawed, and end the runs that a dead process left open.

    Prints a line for each damaged cell, and for each damaged journal of a cell that is run again.
    """
    shown = manifest.cells if manifest.sweep.timing else manifest.missing(retry)
    manifest = manifest.thawed(shown)
    manifest.close_orphans()
    for reason in manifest.damaged:
        print_error(f"sweep {manifest.file}: {reason}; it is not run")
    for planned in manifest.missing(retry):
        for reason in manifest.unreadable(planned):
            print_error(f"{reason}; cell {planned.index} is not finished")
    return manifest
