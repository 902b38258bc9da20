"""`-m`: run a manifest's cells, show how it goes, then what came out; and `expkit resume`."""

from __future__ import annotations

import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus

from expkit.cli.run import not_in_mlflow, run, show, where_told
from expkit.cli.status import FAILED, INTERRUPTED, OK, complain
from expkit.errors import ConfigError, UserError
from expkit.measure.stopping import Measure, fitted, most_repeats, seconds_left
from expkit.report import sweep as report
from expkit.report.units import roughly
from expkit.runner import KILLED_LIMIT_S
from expkit.sweep import elsewhere, engine
from expkit.sweep.manifest import FILE, Manifest, Planned, is_for_hydra, locked, named, newest
from expkit.sweep.worker import end_spares
from expkit.tracking.sent import pending
from expkit.tracking.stored import Stored
from expkit.tracking.tracker import Tracker, one_line

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher


REDRAW_S = 0.2


def left(team_s: float | None, waiting: Mapping[str, int], took: Mapping[str, float]) -> str:
    """How long a sweep still takes, as far as that is known.

    Only cells like those that have finished can be foretold: ten times the points may take ten
    times as long, or the same. The others are counted.

    Args:
        team_s: seconds that what is running still takes; None where that is not known.
        waiting: how many cells of each kind have not begun.
        took: seconds of a cell, of the kinds of which one has finished.

    >>> left(3.0, {}, {}), left(3.0, {"a": 6}, {}), left(3.0, {"a": 6}, {"a": 2.0})
    ('about 3 s left', 'about 3 s left of these, then 6 cells', 'about 15 s left')
    >>> left(3.0, {"a": 6, "b": 1}, {"a": 2.0}), left(None, {"a": 6}, {})
    ('about 15 s left, and then 1 cell', 'then 6 cells')
    """
    known_s = sum(took[kind] * number for kind, number in waiting.items() if kind in took)
    unlike = sum(number for kind, number in waiting.items() if kind not in took)
    rest = report.count(unlike, "cell")
    if team_s is None:
        return f"then {rest}" if unlike else ""
    if not unlike:
        return f"{roughly(team_s + known_s)} left"
    if known_s:
        return f"{roughly(team_s + known_s)} left, and then {rest}"
    return f"{roughly(team_s)} left of these, then {rest}"


class Lines:
    """A line for every cell that has ended; on a terminal, also one that tells how it goes."""

    def __init__(self, manifest: Manifest, todo: Sequence[Planned]) -> None:
        self._manifest, self._total = manifest, len(todo)
        self._done = self._failed = 0
        self._waiting = Counter(map(_kind, todo))
        self._took: dict[str, list[float]] = {}
        self._running: dict[int, Planned] = {}
        self._team = 0
        self._now = ""
        self._rounds, self._rounds_begun = 0, 0.0
        self._shown = 0.0
        self._begun = monotonic()
        self._live = sys.stderr.isatty()

    def begins(self, planned: Planned) -> None:
        if not self._running:
            self._team, self._rounds, self._begun = 0, 0, monotonic()
        self._team += 1
        self._running[planned.index] = planned
        self._waiting[_kind(planned)] -= 1
        self._now = ", getting ready" if self._manifest.sweep.timing else ""
        self._show()

    def measures(self, planned: Planned, rounds: int) -> None:
        if not self._rounds:
            self._rounds_begun = monotonic()
        self._rounds = rounds
        self._now = f", round {rounds} of at most {self._rounds_most()}: {planned.title}"
        if monotonic() - self._shown > REDRAW_S:
            self._show()

    def ends(self, planned: Planned, outcome: str, reason: str) -> None:
        self._running.pop(planned.index, None)
        # What takes turns, or runs side by side, shares the time.
        each_s = (monotonic() - self._begun) / self._team if self._team else 0.0
        self._took.setdefault(_kind(planned), []).append(each_s)
        self._done += 1
        self._now = ""
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
        parts = [f"{self._done} of {self._total} done"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._running:
            parts.append(f"{len(self._running)} running{self._now}")
        took = {kind: fmean(seconds) for kind, seconds in self._took.items()}
        parts.append(left(self._team_s(took), +self._waiting, took))
        self._shown = monotonic()
        line = ", ".join(filter(None, parts))[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def _team_s(self, took: Mapping[str, float]) -> float | None:
        """Seconds that what is running still takes; None where there is nothing to go by."""
        now = monotonic()
        if self._rounds > 1:
            limits, repeats = self._limits()
            return seconds_left(limits, repeats, now - self._rounds_begun)
        kinds = [_kind(planned) for planned in self._running.values()]
        if any(kind not in took for kind in kinds):
            return None
        return max(0.0, sum(took[kind] for kind in kinds) - (now - self._begun))

    def _limits(self) -> tuple[Measure, float]:
        """Of what takes turns, as `expkit.sweep.engine` has them; and the repeats so far."""
        measure = next(iter(self._running.values())).cell.measure
        whole = replace(measure, budget_s=measure.budget_s * self._team)
        rounds = self._rounds - 1  # the last one is on its way
        pass_s = (monotonic() - self._rounds_begun) / rounds / measure.repeats_per_placement
        limits = fitted(whole, pass_s, self._team)
        return limits, rounds * limits.repeats_per_placement

    def _rounds_most(self) -> int:
        if self._rounds < 2:
            measure = next(iter(self._running.values())).cell.measure
            most = measure.repeats_max / measure.repeats_per_placement
        else:
            limits, repeats = self._limits()
            most = most_repeats(limits, repeats, monotonic() - self._rounds_begun)
            most /= limits.repeats_per_placement
        return max(self._rounds, math.ceil(most))


def _kind(planned: Planned) -> str:
    """What cells share that take about as long: all but the seed, rates and other numbers that
    change no size.
    """
    config = planned.frozen["config"]
    shared = [config[key] for key in ("problem", "backend")] + [config.get("steps")]
    return repr((shared, planned.cell.names, config["measure"]))


def conduct(
    manifest: Manifest,
    todo: Sequence[Planned],
    tracker: Tracker | None,
    launcher: Launcher | None,
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
    return tell(manifest, tracker, interrupted=again if stopped else None)


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


def tell(manifest: Manifest, tracker: Tracker | None, *, interrupted: str | None = None) -> int:
    """Show what came out of a sweep; returns the exit status.

    Args:
        interrupted: what to say where it was.
    """
    error = _send_rest(manifest, tracker, None) if tracker else None
    (manifest.folder / "result.txt").write_text(report.result(manifest, None) + "\n")
    left = len(manifest.missing())
    show(f"\n{report.result(manifest)}\n")
    show(f"{report.count(len(manifest.cells) - left, 'cell')} finished; {manifest.folder}")
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

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker = tracker
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
        status = tell(self._manifest, self._tracker)
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


def resume(word: str | None, outputs: Path) -> int:
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
    return run(["-m", *words, *tracking, f"hydra.sweep.dir='{place}'"])


def begin(manifest: Manifest, tracker: Tracker | None, launcher: Launcher | None) -> int:
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
            return conduct(manifest, todo, tracker, launcher)
        except UserError:
            raise
        except Exception as error:
            told = where_told(manifest.folder)
            return complain(f"the sweep failed: {one_line(error)}{told}", FAILED)
