"""What scripts and notebooks need: cells, and runs, comparisons and sweeps of them.

Everything that is measured is recorded as on the command line, and what comes back is a view of the
record. A measurement has a process of its own unless `here` is asked for: a notebook's heap and
threads move times.
"""

from __future__ import annotations

import html
import math
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from expkit import config
from expkit.conduct import Watch, check_runnable, run_apart, run_together, silent
from expkit.config import Cell
from expkit.error_messages import explained
from expkit.errors import Incomparable, UserError
from expkit.measure import crossover as crossover_search
from expkit.measure.crossover import Crossing, Point
from expkit.measure.verdict import SAME, Verdict
from expkit.outcome import Outcome
from expkit.record.stored import Stored, find, metrics_of, params_of
from expkit.record.stored import load as load_stored
from expkit.remote import end_prestarted
from expkit.report import comparison as comparisons
from expkit.report import formats, plots
from expkit.report import rows as plain
from expkit.report import table as tables
from expkit.report.rows import Row
from expkit.sweeps import labels
from expkit.tracking import address, journal, known, sync_state
from expkit.tracking.tracker import Tracker
from expkit.units import seconds

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher
    from pandas import DataFrame  # type: ignore[import-untyped]

    from expkit.contracts import HostArray
    from expkit.sweeps.engine import ProgressReporter
    from expkit.sweeps.manifest import Manifest, Planned
    from expkit.sweeps.ranking import Entry, Results

Job = tuple[Cell, Path]
"""A cell, and the folder of its run."""
DESCRIPTION = 10_000
"""The most characters of an experiment's description; MLflow takes twice as many."""
IN_NOTEBOOKS = ("outcome", "seconds", "low", "high", "loss", "verdict", "stable", "folder")
"""What a notebook shows of a run, beside what tells it from others."""


@dataclass(frozen=True)
class Run:
    """A run, as its record has it."""

    stored: Stored

    @property
    def folder(self) -> Path:
        """Where the record is kept."""
        return self.stored.folder

    @property
    def title(self) -> str:
        """Problem, backend and optimizer."""
        return self.stored.title

    @property
    def outcome(self) -> Outcome:
        """How it ended; only one that is ok has times."""
        return self.stored.outcome

    @property
    def reason(self) -> str:
        """What is wrong with one that is not ok."""
        return self.stored.reason

    @property
    def config(self) -> Mapping[str, object]:
        """The flat configuration, and as `used.*` what the backend said of itself."""
        return self.stored.config

    @property
    def answer(self) -> str:
        """How the answer was checked, or why it was not."""
        return self.stored.answer

    @property
    def unlike(self) -> Sequence[str]:
        """Where its program does not work with what its configuration says."""
        return self.stored.broken

    @property
    def seconds(self) -> float | None:
        """The median repeat's, of all steps; None where no time may be shown."""
        summary = self.stored.summary
        return summary.median if summary else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of `seconds`; of few rounds, the least and the greatest."""
        summary = self.stored.summary
        return (summary.low, summary.high) if summary else None

    @property
    def stable(self) -> str:
        """`yes`, or every reason to distrust the times."""
        return self.stored.stable

    @property
    def evaluated(self) -> Mapping[str, float]:
        """The last value of each figure that its problem evaluates, by name."""
        return self.stored.evaluated

    @property
    def seconds_to_target(self) -> float | None:
        """The median repeat's, until the target; None where it was not reached, or is none."""
        summary = self.stored.target_summary
        return summary.median if summary else None

    @property
    def losses(self) -> HostArray:
        """Of each step of the first repeat, shape (steps,); empty for an operation."""
        return self.metrics.get("train/loss", np.empty(0))

    @cached_property
    def metrics(self) -> dict[str, HostArray]:
        """All values of each metric, by the name that MLflow has for it."""
        return metrics_of(self.folder)

    @cached_property
    def params(self) -> dict[str, HostArray]:
        """The parameters that it came to, by name; empty where they were too many to keep."""
        return params_of(self.folder)

    def table(self, *, verbose: bool = False) -> str:
        """The table that a run prints; `verbose` adds how the figures were obtained."""
        return tables.table(self.stored, verbose=verbose)

    def row(self) -> Row:
        """The run in plain values; see `Runs.rows`."""
        return Runs([self]).rows()[0]

    def __str__(self) -> str:
        if self.seconds is None or self.interval is None:
            return f"{self.title}: {self.outcome}" + (f": {self.reason}" if self.reason else "")
        low, high = self.interval
        return f"{self.title}: {seconds(self.seconds)} ({seconds(low)} to {seconds(high)})"

    def _repr_html_(self) -> str:
        return Runs([self])._repr_html_()


class Runs(Sequence[Run]):
    """Several runs, as a sweep or an experiment has them."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = list(runs)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> Run | Runs:
        return self._runs[index] if isinstance(index, int) else Runs(self._runs[index])

    def __len__(self) -> int:
        return len(self._runs)

    def rows(self) -> list[Row]:
        """A row a run: its options, the keys that tell it from the others, and its figures."""
        return [plain.of_run(run.stored, self._keys) for run in self]

    def repeats(self) -> list[Row]:
        """A row a timed repeat: which process and placement it had, and its seconds."""
        return [row for run in self for row in plain.of_repeats(run.stored, self._keys)]

    def steps(self) -> list[Row]:
        """A row a step of the first repeat: its loss, and at how many seconds it ended."""
        return [row for run in self for row in plain.of_steps(run.stored, self._keys)]

    def tables(self) -> list[tuple[str, formats.Table]]:
        """Tables to be read, with their titles; the first row of each is its head."""
        head = ["", "median", "95% interval", "final loss", "outcome"]
        return [("", [head, *(_line(run, self._keys) for run in self)])]

    def markdown(self) -> str:
        """The tables in GitHub's Markdown."""
        parts = ((title, formats.markdown(table)) for title, table in self.tables())
        return "\n\n".join(f"**{title}**\n\n{table}" if title else table for title, table in parts)

    @cached_property
    def _keys(self) -> Sequence[str]:
        return plain.keys([run.stored for run in self])

    def frame(self) -> DataFrame:
        """The rows as a frame of pandas.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame(self.rows())

    def __str__(self) -> str:
        return "\n".join(map(str, self._runs))

    def _repr_html_(self) -> str:
        shown = ("run", *self._keys, *IN_NOTEBOOKS)
        return _html([{key: row.get(key) for key in shown} for row in self.rows()])


class Sweep(Runs):
    """The newest run of each cell of a sweep that has begun.

    Attributes:
        folder: where the sweep is kept.
        manifest: its cells, as they were planned.
        results: each cell beside its baseline.
    """

    def __init__(self, found: Results) -> None:
        self.folder, self.manifest = found.manifest.folder, found.manifest
        self.results = found
        super().__init__([Run(entry.run) for entry in found.entries if entry.run])

    def rows(self) -> list[Row]:
        """A row a run, also with how it compares with its baseline."""
        entries = [entry for entry in self.results.entries if entry.run]
        return [
            {**row, **_compared(entry)} for row, entry in zip(super().rows(), entries, strict=True)
        ]

    def tables(self) -> list[tuple[str, formats.Table]]:
        """A table a problem, or one of a search's trials, as the sweep prints them."""
        from expkit.sweeps import table

        if self.manifest.best:
            return [table.tried(self.results)]
        ranked = self.results.by_problem()
        return [(title, table.summary(self.manifest, cells)) for title, cells in ranked]

    def __str__(self) -> str:
        from expkit.sweeps import table

        return table.result(self.results)


@dataclass(frozen=True)
class Comparison:
    """B held against A."""

    held: comparisons.Comparison

    @property
    def a(self) -> Run:
        """The run that B is compared with."""
        return Run(self.held.a)

    @property
    def b(self) -> Run:
        """The run that is compared."""
        return Run(self.held.b)

    @property
    def unlike(self) -> Sequence[str]:
        """Where they do not do the same work."""
        return self.held.unlike

    @property
    def barriers(self) -> Sequence[str]:
        """Why their times may not be compared; empty where they may."""
        return self.held.barriers

    @property
    def verdict(self) -> Verdict | None:
        """The verdict; None where there are barriers."""
        return self.held.verdict

    @property
    def word(self) -> str:
        """FASTER, SLOWER, SAME, CAN'T TELL, UNLIKE, or that they may not be compared."""
        return self.verdict.word if self.verdict else comparisons.MAY_NOT

    def table(self, *, verbose: bool = False) -> str:
        """The table that `expkit compare` prints; `verbose` adds how the figures were obtained."""
        return comparisons.table(self.held, verbose=verbose)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


Side = Cell | Run | Path | str


def cell(*words: str, **values: object) -> Cell:
    """The cell of these words, as on the command line, and of these values.

    A key with a dot in it is a word, or stands in a mapping: `cell(**{"optimizer.lr": 0.1})`.

    >>> cell("optimizer.lr=0.1", problem="linear", backend="numpy", steps=50).title
    'linear · numpy · sgd'

    Raises:
        UserError: an unknown option or key, a wrong type or a bad range.
    """
    given = [*words, *config.words_of(values)]
    with explained(given):
        return config.compose_cell(*given)


def run(
    cell: Cell,
    *,
    here: bool = False,
    folder: Path | None = None,
) -> Run:
    """Measure a cell, record it, and send it to MLflow as the cell says.

    Args:
        here: in this process, and not in one of its own.
        folder: where to keep the record; by default a new folder under the cell's outputs.

    Raises:
        UserError: this machine cannot run it.
    """
    check(cell)
    folder = folder or cell.outputs / "runs" / _now()
    [found] = _measured_and_sent([(cell, folder)], here=here, tags={})
    return found


def compare(a: Side, b: Side, *, here: bool = False, threshold: float | None = None) -> Comparison:
    """Hold B against A: two cells, measured in turn now, or two runs that were.

    Args:
        here: as `run` has it.
        threshold: the smallest difference that matters, as a share; by default the one in A's
            configuration.

    Raises:
        UserError: this machine cannot run one of them, they are to be measured in two ways, or
            there is no such run.
    """
    if isinstance(a, Cell) and isinstance(b, Cell):
        check(a)
        check(b)
        jobs, tags = in_turn(a, b, here=here)
        a, b = _measured_and_sent(jobs, here=here, tags=tags)
    first, second = _stored(a), _stored(b)
    return Comparison(comparisons.hold(first, second, threshold or first.threshold))


@dataclass(frozen=True)
class Crossover:
    """Over which values of a key one of two cells is faster, and over which the other.

    Attributes:
        key: what is varied.
        names: what the two are called.
        points: what was measured, by rising value.
    """

    key: str
    names: tuple[str, str]
    points: Sequence[Point]

    @property
    def crossings(self) -> Sequence[Crossing]:
        """Every crossing between values at which it can be told which is faster."""
        return crossover_search.crossings(self.points)

    @property
    def told(self) -> bool:
        """Whether there is an answer: one is faster somewhere, or both are the same everywhere."""
        return any(p.side for p in self.points) or all(p.word == SAME for p in self.points)

    def __str__(self) -> str:
        """Say where one overtakes the other, or that it does not in this range."""
        faster = {1: self.names[0], -1: self.names[1]}
        if self.crossings:
            return "\n".join(
                f"{faster[found.above.side]} is faster from about {self.key} = {found.at:.3g} on "
                f"(between {found.below.at:g} and {found.above.at:g})"
                for found in self.crossings
            )
        ends = f"between {self.key} = {self.points[0].at:g} and {self.points[-1].at:g}"
        sides = {point.side for point in self.points}
        if sides == {0}:
            same = "both take the SAME time at every value measured"
            return f"{ends} {same}" if self.told else f"CAN'T TELL which is faster {ends}"
        where = "wherever one of them is" if 0 in sides else "at every value measured"
        return f"no crossover {ends}: {faster[max(sides, key=abs)]} is faster {where}"


def side(text: str) -> list[str]:
    """Return the words of one side of a comparison: those in a text, or a backend by its name.

    >>> side("numpy"), side("backend=torch backend.threads=1")
    (['backend=numpy'], ['backend=torch', 'backend.threads=1'])
    """
    try:
        return shlex.split(text) if "=" in text else [f"backend={text}"]
    except ValueError as error:  # a quotation that does not end
        raise UserError(f"{text}: {error}") from error


def crossover(
    a: str,
    b: str,
    *words: str,
    over: str,
    low: float | None = None,
    high: float | None = None,
    here: bool = False,
    watch: Callable[[float, Comparison], None] = lambda at, found: None,
) -> Crossover:
    """Search for the value of a key at which one of two cells overtakes the other.

    At each value both are measured in turn, as `compare` does. Runs are kept under the outputs,
    and sent to MLflow only where the words say so.

    Args:
        a, b: the words of each, or the name of a backend.
        words: for both.
        over: a key with a number above 0, such as `problem.n`.
        low, high: the ends of the range; by default a tenth of the key's value, and ten times it.
        here: as `run` has it.
        watch: called with each value and what came out there.

    Raises:
        UserError: a word is wrong, or the key has no number above 0.
        Incomparable: one of the two failed, or they do not do the same work.

    >>> words = ["problem=add", "steps=2", "measure.budget_s=0", "measure.settle_s=0"]
    >>> found = crossover("numpy", "numpy", *words, over="problem.n", low=10, high=60, here=True)
    >>> [point.at for point in found.points][:2]
    [10, 16]
    """
    kept = [] if any(word.startswith("tracking=") for word in words) else ["tracking=none"]
    both = [[*kept, *words, *side(each)] for each in (a, b)]
    middle = cell(*both[0]).params.get(over)
    if isinstance(middle, bool) or not isinstance(middle, int | float) or middle <= 0:
        raise UserError(f"crossover: over: got {over!r}, takes a key with a number above 0")
    whole = isinstance(middle, int)
    ends = [middle / 10 if low is None else low, middle * 10 if high is None else high]
    if not all(map(math.isfinite, ends)):
        raise UserError(f"crossover: got the range {ends[0]:g} to {ends[1]:g}, takes two numbers")
    if whole:
        ends = [max(1, round(end)) for end in ends]
    if not 0 < ends[0] < ends[1]:
        takes = "a range from above 0 to something greater"
        raise UserError(f"crossover: got the range {ends[0]:g} to {ends[1]:g}, takes {takes}")

    def measure(at: float) -> Point:
        found = compare(*(cell(*each, f"{over}={at}") for each in both), here=here)
        watch(at, found)
        verdict = found.verdict
        if verdict is None or found.unlike:
            why = "; ".join([*found.barriers, *found.unlike])
            raise Incomparable(f"crossover: at {over}={at:g} they may not be compared: {why}")
        return Point(at, verdict.ratio, verdict.word)

    return Crossover(over, (a, b), crossover_search.search(measure, *ends, whole=whole))


def sweep(*words: str, **values: object) -> Sweep:
    """Run every combination of words with several values, such as `backend=numpy,torch`.

    A list of values is one such word: `sweep(problem="sine", backend=["numpy", "torch"])`. Cells
    have processes of their own and take turns, as with `-m` on the command line.

    If MLflow does not get all runs, there is a warning, and `expkit sync` sends them later.

    Raises:
        UserError: as `cell`, of any of them, or nothing can run.
    """
    from expkit.sweeps import page
    from expkit.sweeps.manifest import locked, require_unused
    from expkit.sweeps.plan import plan_words
    from expkit.sweeps.ranking import Results

    given = [*words, *config.words_of(values)]
    with explained(given):
        manifest = plan_words(given)
    if not manifest.cells:
        raise UserError(f"nothing can run: {'; '.join(map(': '.join, manifest.skipped))}")
    with locked(manifest.folder):
        require_unused(manifest.folder)
        manifest.save()
        cells = [planned.cell for planned in manifest.cells]
        with _tracker(cells, manifest.folder) as tracker:
            swept(manifest, manifest.cells, tracker)
            found = Results.read(manifest)
            _, missing = page.write_wanted(found)
            error = send_rest(found, tracker) if tracker else None
    for said in (missing, error and f"not in MLflow: {error}"):
        if said:
            warnings.warn(said, stacklevel=2)
    return Sweep(found)


def load(what: Path | str) -> Run | Sweep | Runs:
    """A run by its folder or MLflow id, a sweep by its folder or id, or an experiment by its name.

    Raises:
        UserError: there is nothing of that name, or its record is damaged.
    """
    from expkit.sweeps.manifest import FILE, Manifest, named
    from expkit.sweeps.ranking import Results

    outputs = config.default_outputs()
    folder = Path(what).absolute()
    if (folder / FILE).is_file():
        return Sweep(Results.read(Manifest.load(folder)))
    if (outputs / "sweeps" / what / FILE).is_file():
        return Sweep(Results.read(Manifest.load(named(str(what), outputs))))
    if not (folder / journal.FILE).is_file() and (found := _of_experiment(str(what), outputs)):
        return Runs(found)
    try:
        folder = find(str(what), outputs)
    except UserError:
        takes = "a run, a sweep or an experiment: a folder, an id or a name"
        raise UserError(f"got {str(what)!r}, takes {takes} (looked in {outputs})") from None
    return Run(load_stored(folder))


def report(*what: Path | str | Run | Runs) -> str:
    """The page of sweeps, or of the sweeps and other runs of an experiment, as HTML.

    Args:
        what: sweeps and experiments, or their folders, ids and names.

    Raises:
        UserError: there is nothing of that name, or it is a single run.
    """
    from expkit.sweeps.manifest import FILE, Manifest
    from expkit.sweeps.page import page
    from expkit.sweeps.ranking import Results

    sweeps: dict[Path, Results] = {}
    runs: dict[Path, Stored] = {}
    for one in what:
        found = load(one) if isinstance(one, Path | str) else one
        if isinstance(found, Run):
            raise UserError(f"report: got the run {found.folder}, takes a sweep or an experiment")
        if isinstance(found, Sweep):
            sweeps[found.folder] = found.results
            continue
        for run in found:
            folder = run.folder.parent
            if not (folder / FILE).is_file():
                runs[run.folder] = run.stored
            elif folder not in sweeps:
                sweeps[folder] = Results.read(Manifest.load(folder))
    if not sweeps and not runs:
        raise UserError("report: there are no runs, takes a sweep or an experiment")
    return page(list(sweeps.values()), list(runs.values()))


def check(cell: Cell) -> None:
    """See that this machine can run a cell.

    Raises:
        UserError: it cannot, with the reason and a remedy.
    """
    check_runnable(cell)


def _of_experiment(name: str, outputs: Path) -> list[Run]:
    """The runs that were recorded for an experiment, the oldest first."""
    found = []
    for file in sorted(outputs.rglob(journal.FILE)):
        with suppress(UserError):  # damaged
            opening = journal.opening(file.parent)
            if opening and opening["tracking"]["experiment"] == name:
                found.append(Run(load_stored(file.parent)))
    return found


def _now() -> str:
    return f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"


def in_turn(a: Cell, b: Cell, *, here: bool) -> tuple[list[Job], Mapping[str, str]]:
    """Choose the folders of two cells that will be measured in turn, and the tags of their runs.

    Raises:
        UserError: they are to be measured in two ways.
    """
    if a.measure != b.measure:
        raise UserError("measure: got two, takes the same for both cells")
    name = _now()
    place = a.outputs / "comparisons" / name
    tags = {"interleaved": name} if here else {"interleaved": name, "isolated": "yes"}
    return [(a, place / "a"), (b, place / "b")], tags


def measured(
    jobs: Sequence[Job],
    tracker: Tracker | None,
    watch: Watch = silent,
    *,
    here: bool,
    tags: Mapping[str, str],
    checkpoint: Path | None = None,
) -> list[Run]:
    """Measure cells in turn, each into its folder, here or each in a process of its own.

    Pictures are not drawn yet, and MLflow need not have the runs yet.

    Args:
        checkpoint: the file that a single cell goes on from, here.
    """
    own = [{"mlflow.runName": title} for title in labels.titles([cell for cell, _ in jobs])]
    if here:
        run_together(jobs, tracker, watch, tags=tags, own=own, checkpoint=checkpoint)
    else:
        run_apart(jobs, tracker, watch, tags=tags, own=own)
    return [Run(load_stored(folder)) for _, folder in jobs]


def swept(
    manifest: Manifest,
    todo: Sequence[Planned],
    tracker: Tracker | None,
    reporter: ProgressReporter | None = None,
    launcher: Launcher | None = None,
) -> bool:
    """Run cells of a locked sweep; return whether Ctrl-C asked to stop it.

    MLflow need not have the runs yet.

    Args:
        launcher: runs them elsewhere; the reporter is not told of these.

    Raises:
        KeyboardInterrupt: a second Ctrl-C, or any while a launcher runs them.
        UserError: the launcher cannot run them.
        OSError: the disk is full.
    """
    from expkit.sweeps import cluster, engine

    if launcher is None:
        return engine.run(manifest, todo, tracker, reporter or engine.SILENT)
    end_prestarted()
    cluster.launch(manifest, todo, launcher)
    return False


def send_rest(found: Results, tracker: Tracker) -> str | None:
    """Send the runs of a sweep that MLflow lacks, also those of earlier processes; then have its
    tables shown above them.

    Returns the first error, after which no more is sent; None if there is none.
    """
    tracker.settle()
    for lacking in sync_state.pending(found.manifest.folder):
        if error := tracker.update(lacking, last=True).error:
            return error
    return _describe(Sweep(found), tracker)


def _describe(sweep: Sweep, tracker: Tracker) -> str | None:
    """Show a sweep's tables above the runs of its experiments; return the first error, if any."""
    text = described(sweep)
    for kept, experiment in sweep.manifest.experiments():
        if error := tracker.describe(kept, experiment, sweep.manifest.id, text).error:
            return error
    return None


def described(sweep: Sweep) -> str:
    """What stands above a sweep's runs in MLflow, in Markdown: see `Uploader.describe`."""
    from expkit.sweeps.page import FILE, findings

    manifest = sweep.manifest
    again = f"[The runs in charts]({{charts}})\n\nAgain: `expkit -m {shlex.join(manifest.words)}`"
    lines = "".join(f"- **{what}**: {said}\n" for what, said in findings(sweep.results))
    first = next(iter(sweep), None)
    run = sync_state.read(first.folder).get("run_id") if first else None
    if first and run and (first.folder / FILE).is_file():
        where = f"#/experiments/{{experiment}}/runs/{run}/artifacts/{FILE}"
        again = f"[The page of this sweep]({where}?workflowType=machine_learning) · {again}"
    text = f"{lines}\nThe latest sweep, {manifest.id}:\n\n{sweep.markdown()}\n\n"
    if len(text) + len(again) > DESCRIPTION:
        whole = f"The rest: `expkit export {manifest.id} --format md`\n\n"
        text = text[: DESCRIPTION - len(again) - len(whole)].rpartition("\n")[0] + f"\n\n{whole}"
    return text + again


def _measured_and_sent(jobs: Sequence[Job], *, here: bool, tags: Mapping[str, str]) -> list[Run]:
    """Measure cells in turn; what keeps their pictures or MLflow from being there is a warning."""
    cells, folders = zip(*jobs, strict=True)
    with _tracker(cells, folders[0]) as tracker:
        runs = measured(jobs, tracker, here=here, tags=tags)
        missing = [plots.draw_wanted(cell, folder) for cell, folder in jobs]
        sent = [tracker.update(folder, last=True) for folder in folders] if tracker else []
    missing += [f"not in MLflow: {one.error}" for one in sent if one.error]
    for what in filter(None, missing):
        warnings.warn(what, stacklevel=3)
    return runs


@contextmanager
def _tracker(cells: Sequence[Cell], folder: Path) -> Iterator[Tracker | None]:
    """MLflow's process, which may send to where the cells say; None where they say nowhere."""
    if cells[0].tracking.kind == "none":
        yield None
        return
    with closing(Tracker()) as tracker:
        allow(tracker, cells, folder)
        yield tracker


def allow(tracker: Tracker, cells: Sequence[Cell], folder: Path) -> None:
    """Let runs of these cells, which are kept in this folder, be sent to where the cells say."""
    for cell in cells:
        known.remember(cell.address, folder, config.default_outputs())
        tracker.allow(address.without_password(cell.address), cell.address)


def _stored(side: Side) -> Stored:
    if isinstance(side, Run):
        return side.stored
    if isinstance(side, Cell):
        raise UserError("compare: got a cell and a run, takes two of a kind")
    return load_stored(find(str(side), config.default_outputs()))


def _line(run: Run, keys: Sequence[str]) -> list[str]:
    """A run in a table to be read, with the values of these keys."""
    stored = run.stored
    said = [f"{key}={run.config[key]}" for key in keys if run.config.get(key) is not None]
    name = ", ".join([run.title, *said])
    loss = "" if stored.loss is None else f"{stored.loss:.6g}"
    if run.seconds is None or run.interval is None:
        return [name, "", "", loss, str(run.outcome)]
    low, high = run.interval
    outcome = str(run.outcome) if stored.is_stable else f"{run.outcome}, unstable"
    return [name, seconds(run.seconds), f"{seconds(low)} to {seconds(high)}", loss, outcome]


def _compared(entry: Entry) -> Row:
    """How a cell compares with its baseline, in plain values."""
    if entry.verdict is None:
        return {"verdict": entry.standing}
    low, high = entry.verdict.interval or (None, None)
    return {
        "verdict": entry.standing,
        "ratio": entry.verdict.ratio,
        "ratio_low": low,
        "ratio_high": high,
        "ratio_to": entry.verdict.target or None,
        "ratio_bound": entry.verdict.bound or None,
        "baseline": entry.planned.baseline,
    }


def _html(rows: Sequence[Row]) -> str:
    """Rows as a table for a notebook."""
    if not rows:
        return "<table></table>"
    head = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
    shown = [[_brief(v) for v in r.values()] for r in rows]
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in shown
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _brief(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
