"""`python -m expkit key=value ...`: compose with Hydra, run, show."""

from __future__ import annotations

import gc
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from expkit.cli.status import FAILED, INTERRUPTED, MISUSED, OK, TERMINATED, complain
from expkit.cli.words import check_words, option_folder, parse
from expkit.errors import ConfigError, UserError, is_disk_full
from expkit.sweep.worker import spares
from expkit.tracking import address, journal, known
from expkit.tracking.address import one_line
from expkit.tracking.tracker import Sent, Tracker

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher
    from omegaconf import DictConfig

    from expkit.cli.sweep import Search
    from expkit.config import Cell

BLAS_THREADS = "OPENBLAS_NUM_THREADS"
NOT_TIMED_HERE = ("sweep.timing=false", "sweep.dry_run=true", "hydra/launcher=")
AGAIN = ("tracking=none", "allow_target=")
"""What may be said anew of a sweep that goes on."""
SPARES = 2
"""Workers that are started early: few sweeps have fewer cells."""
DAY = re.compile(r"\d{4}-\d\d-\d\d")
VERBOSE = "--verbose"
"""The one option of ours among Hydra's: the table has everything in it."""
NO_RUN = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc")


class Terminated(KeyboardInterrupt):
    """SIGTERM: as an interrupt, with an exit status of its own."""


def run(argv: Sequence[str]) -> int:
    """Compose and run; one line on stderr for whatever goes wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors reach us

    verbose, argv = VERBOSE in argv, [word for word in argv if word != VERBOSE]

    def work() -> int:
        with tracker_for(argv) as tracker, _workers_for(argv):
            return max(_compose_and_run(argv, tracker, verbose=verbose), default=OK)

    return interruptible(work)


def interruptible(work: Callable[[], int]) -> int:
    """The work's exit status, or that of the signal or mistake that ended it."""
    with _terminate_raises():
        try:
            return work()
        except BaseException as error:
            return _status(error)


def _status(error: BaseException) -> int:
    """The exit status for what ended the command, after its one line on stderr."""
    interrupt = _interrupt(error)
    if interrupt is not None:
        return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
    if isinstance(error, UserError):
        return complain(error)
    if is_disk_full(error):
        return complain("the disk is full; free some of it, then try again", FAILED)
    if isinstance(error, OSError) and error.filename is not None:
        return complain(f"outputs: cannot write {error.filename} ({error.strerror})")
    raise error


def _interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """The signal behind an error: a library may trip over it while it tidies up."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _runs_nothing(argv: Sequence[str]) -> bool:
    return any(word in NO_RUN or word.startswith(("--cfg=", "--info=")) for word in argv)


def _workers_for(argv: Sequence[str]) -> AbstractContextManager[None]:
    """A sweep's first workers, which import what every cell needs while Hydra composes them."""
    here = not any(word.startswith(NOT_TIMED_HERE) for word in argv)
    if _is_sweep(argv) and here and not _runs_nothing(argv):
        return spares(SPARES)
    return nullcontext()


def _is_sweep(argv: Sequence[str]) -> bool:
    return "-m" in argv or "--multirun" in argv


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """While NumPy is imported for no arithmetic: the threads it starts spin beside the workers."""
    if BLAS_THREADS in os.environ:
        yield
        return
    os.environ[BLAS_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[BLAS_THREADS]  # the workers' is their own


@contextmanager
def tracker_for(argv: Sequence[str]) -> Iterator[Tracker | None]:
    """MLflow's process, started before anything is imported: it is what takes longest."""
    if "tracking=none" in argv or _runs_nothing(argv):
        yield None
        return
    with _tracked() as tracker:
        yield tracker


@contextmanager
def _tracked() -> Iterator[Tracker]:
    """A tracker, closed at the end; where a signal ends it, say what MLflow has not got."""
    tracker = Tracker()
    try:
        with _hurried_by_signals(tracker), closing(tracker):
            yield tracker
    except BaseException as error:
        if _interrupt(error) and (missing := tracker.missing()):
            not_in_mlflow(tracker.trouble, Path(os.path.commonpath(missing)))
        raise


@contextmanager
def _hurried_by_signals(tracker: Tracker) -> Iterator[None]:
    """Let MLflow know that the person waits: each Ctrl-C leaves it less time."""

    def hurry(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT or not tracker.hurried:
            tracker.hurry()
        before[number](number, frame)

    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in before:
        signal.signal(number, hurry)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _terminate_raises() -> Iterator[None]:
    def raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _compose_and_run(argv: Sequence[str], tracker: Tracker | None, *, verbose: bool) -> list[int]:
    """The exit status of each cell; Hydra prints lines of its own if a cell raises."""
    import hydra
    from hydra.errors import HydraException

    with _one_blas_thread() if _is_sweep(argv) else nullcontext():
        from expkit import config

    command = Command(tracker, verbose=verbose)
    config.register()
    words, flags = parse(argv)
    check_words(words, option_folder(flags))
    require_plain(config.default_outputs())
    if any(word.startswith("hydra/sweeper=optuna") for word in words):
        _quiet_optuna()
    before, sys.argv = sys.argv, ["expkit", *words, *flags]
    try:
        main = hydra.main("pkg://expkit.conf", "config", version_base="1.3")
        try:
            with _folder_first():
                main(command)()
        finally:
            command.finish()
    except Exception as error:  # Hydra's, OmegaConf's and YAML's; a cell's do not get here
        if isinstance(error, UserError | OSError) and not isinstance(error, HydraException):
            raise
        from expkit.cli.complaints import explain

        raise UserError(explain(error, words)) from error
    except SystemExit as end:  # Hydra's, after its help or a line of its own
        if end.code not in (None, OK):
            raise SystemExit(MISUSED) from end
        raise
    finally:
        sys.argv = before
    return command.statuses


def _quiet_optuna() -> None:
    """It writes a line in colours, also into a pipe, before we are called; its warnings stay."""
    with suppress(ImportError):  # Hydra says that it is not there
        optuna: Any = import_module("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)


@contextmanager
def _folder_first() -> Iterator[None]:
    """See that a run's folder is free before Hydra writes its own files into it.

    Hydra has no hook there that may refuse. Where it fails before the run begins, as over a logger
    that cannot be made, the folder that it has made is removed.
    """
    hydra: Any = import_module("hydra._internal.hydra")
    run_job: Callable[..., JobReturn] = hydra.run_job

    def checked(*, config: DictConfig, **others: Any) -> JobReturn:
        folder = Path(config.hydra.run.dir).absolute()
        require_free(folder)
        is_new = not folder.exists()
        try:
            return run_job(config=config, **others)
        except Exception:
            if is_new:
                tidy(folder)
            raise

    hydra.run_job = checked
    try:
        yield
    finally:
        hydra.run_job = run_job


def require_free(folder: Path) -> None:
    """See that a folder is a run's own.

    Raises:
        UserError: something is in it.
    """
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if names:
        held = "a run" if journal.FILE in names else "other files"
        takes = "takes an empty or new folder"
        raise UserError(f"hydra.run.dir: {folder} holds {held} already; {takes}")


def require_plain(outputs: Path) -> None:
    """See that Hydra can be told of an outputs folder.

    Raises:
        UserError: its name has what Hydra reads as a reference.
    """
    if "${" in str(outputs):
        raise UserError(f"outputs: got {str(outputs)!r}, takes a folder without ${{ in its name")


class Command:
    """What Hydra is given to call: with a cell, or with a sweep's words."""

    def __init__(self, tracker: Tracker | None, *, verbose: bool) -> None:
        self._tracker, self._verbose = tracker, verbose
        self._search: Search | None = None
        self.statuses: list[int] = []

    def __call__(self, composed: DictConfig) -> None:
        """Run one cell here."""
        self.statuses.append(_run_composed(composed, self._tracker, verbose=self._verbose))

    def sweep(
        self,
        master: DictConfig,
        loader: ConfigLoader,
        jobs: Sequence[Sequence[str]],
        words: Sequence[str],
        launcher: Launcher | None,
    ) -> None:
        """Run the cells of these jobs, or the rest of the sweep that the folder holds."""
        from expkit.cli import sweep
        from expkit.cli.addresses import allow_given, allow_stored
        from expkit.sweep import manifest, plan

        gc.freeze()  # the libraries stay, what composing a cell leaves goes: there may be thousands
        gc.enable()
        folder = Path(master.hydra.sweep.dir).absolute()
        words = [address.scrub(word) for word in words]
        folders: dict[int, str] = {}
        resumed = (folder / manifest.FILE).is_file()
        if resumed:
            found = manifest.Manifest.load(folder)
            given, kept = (
                [w for w in some if not w.startswith(AGAIN) and not manifest.is_for_hydra(w)]
                for some in (words, found.words)
            )
            if given and given != kept:
                takes = f"another folder, or nothing beside it: this one holds {shlex.join(kept)}"
                raise ConfigError("hydra.sweep.dir", str(folder), takes)
            if not master.allow_target:
                found.require_installed()
            outputs = Path(master.outputs).absolute()
            allow_stored(self._tracker, found, outputs, typed=master.tracking.uri)
        else:
            manifest.require_unused(folder)
            found = plan.plan(master, loader, jobs, words)
            allow_given(self._tracker, found, master.tracking.uri)
            folders = plan.subdirs(master, loader, jobs)
        tracker = self._tracker if found.is_tracked else None
        status = sweep.begin(
            found, tracker, launcher, folders, resumed=resumed, verbose=self._verbose
        )
        self.statuses.append(status)

    def launch(
        self,
        master: DictConfig,
        loader: ConfigLoader,
        jobs: Sequence[Sequence[str]],
        first: int,
    ) -> list[JobReturn]:
        """Run a batch of a sweeper that searches; each job returns the objective."""
        from expkit.cli.addresses import allow_given
        from expkit.cli.sweep import Search
        from expkit.sweep import manifest, plan

        if self._search is None:
            manifest.require_unused(Path(master.hydra.sweep.dir).absolute())
        batch = plan.plan(master, loader, jobs, [], first)
        allow_given(self._tracker, batch, master.tracking.uri)
        used = self._tracker if batch.is_tracked else None
        sweeper = master.hydra.sweeper
        self._search = self._search or Search(used, sweeper, verbose=self._verbose)
        folders = plan.subdirs(master, loader, jobs, first)
        return self._search.launch(batch, range(first, first + len(jobs)), folders)

    def finish(self) -> None:
        """Show what a search came to."""
        if self._search and (status := self._search.finish()) is not None:
            self.statuses.append(status)


def _run_composed(composed: DictConfig, tracker: Tracker | None, *, verbose: bool) -> int:
    """One cell, in the folder that Hydra chose for it; its exit status."""
    from hydra.core.hydra_config import HydraConfig

    from expkit import config, runner
    from expkit.cli.progress import progress
    from expkit.report.table import in_mlflow, table

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir).absolute()

    def work() -> int:
        words = config.as_typed(hydra_config.overrides.task)
        cell = config.build_cell(composed, dict(hydra_config.runtime.choices), words)
        with used_by([cell], folder, tracker) as used:
            with progress(cell.measure, cell.workload.steps) as watch:
                result = runner.run(cell, folder, used, watch)
            show(table(cell, result, folder, verbose=verbose))
            draw([(cell, folder)])
            for sent in send([folder], used):
                if sent.error:
                    return not_in_mlflow(sent.error, folder)
                show(in_mlflow(str(sent.run_id)))
        return OK if result.outcome == "ok" else FAILED

    return reported(work, folder)


def draw(jobs: Sequence[tuple[Cell, Path]]) -> None:
    """Draw what the runs' records show; what cannot be drawn is said, and the run is as good.

    Raises:
        OSError: the disk is full.
    """
    from expkit.report import plots

    for cell, folder in jobs:
        try:
            if cell.tracking.pictures:
                plots.draw(folder, cell.workload.problem)
        except Exception as error:
            if is_disk_full(error):
                raise
            again = f"draw them later: expkit draw {shlex.quote(str(folder))}"
            complain(f"no pictures ({one_line(error)}); {again}", FAILED)


def send(folders: Sequence[Path], tracker: Tracker | None) -> list[Sent]:
    """Wait until MLflow has these runs, which have ended; what became of each."""
    from expkit.cli.progress import waiting_for

    if tracker is None:
        return []
    with waiting_for("MLflow"):
        return [tracker.update(folder, last=True) for folder in folders]


def reported(work: Callable[[], int], folder: Path) -> int:
    """The exit status of work that is kept in this folder; one line for what goes wrong in it."""
    from omegaconf.errors import OmegaConfBaseException

    from expkit.config import plain_reason

    try:
        return work()
    except (UserError, OmegaConfBaseException) as error:
        if isinstance(error, OmegaConfBaseException):
            error = UserError(plain_reason(error))
        tidy(folder)
        return complain(error, FAILED if folder.is_dir() else MISUSED)
    except KeyboardInterrupt:
        tidy(folder)
        if not folder.is_dir():
            complain("interrupted before the run began")
        elif _has_ended(folder):
            complain(f"interrupted; by then all was measured, and it is in {folder}")
        else:
            complain(f"interrupted; what was measured is in {folder}")
        raise
    except Exception as error:
        if is_disk_full(error):
            kept = f"what could be kept is in {folder}"
            return complain(f"the disk is full; {kept}; free some of it, then try again", FAILED)
        return complain(f"the run failed: {one_line(error)}{where_told(folder)}", FAILED)


def _has_ended(folder: Path) -> bool:
    """Whether the runs of a folder came to their own end, and nothing but MLflow was waited for."""
    with suppress(UserError, OSError):  # damaged meanwhile
        files = folder.rglob(journal.FILE)
        ends = [
            [r["status"] for r, _ in journal.read(f.parent) if r["kind"] == "end"] for f in files
        ]
        return all(end and end != ["KILLED"] for end in ends)
    return False


def tidy(folder: Path) -> None:
    """Remove a run's folder if nothing is in it, and those of its day and kind alike."""
    with suppress(OSError):  # there is something in it, or it is not there
        folder.rmdir()
        for parent in folder.parents[:2]:
            if parent.name != "runs" and not DAY.fullmatch(parent.name):
                break
            parent.rmdir()


def show(text: str) -> None:
    """Print at once, also where what is printed goes to a file."""
    print(text, flush=True)


def not_in_mlflow(error: str, folder: Path) -> int:
    """Say how to send it later."""
    later = f"send it later: expkit sync {shlex.quote(str(folder))}"
    return complain(f"not in MLflow ({error}); {later}", FAILED)


def where_told(folder: Path) -> str:
    """Where to read the whole error; nothing where it could not be written, as on a full disk."""
    report = folder / "error.txt"
    with suppress(OSError):
        if not report.exists():  # it went wrong before the run began
            report.write_text(traceback.format_exc())
        if report.stat().st_size:
            return f"; see {report}"
    return f"; what could be kept is in {folder}"


@contextmanager
def used_by(
    cells: Sequence[Cell], folder: Path, tracker: Tracker | None
) -> Iterator[Tracker | None]:
    """The tracker, if the first cell wants one: made now if the words did not show it before.

    It is told where to send the cells' runs, which are kept in this folder.
    """
    if cells[0].tracking.kind == "none":
        yield None
    elif tracker is not None:
        _allow(tracker, cells, folder)
        yield tracker
    else:
        with _tracked() as late:
            _allow(late, cells, folder)
            yield late


def _allow(tracker: Tracker, cells: Sequence[Cell], folder: Path) -> None:
    from expkit.config import default_outputs

    for cell in cells:
        known.remember(cell.address, folder, default_outputs())
        tracker.allow(address.without_password(cell.address), cell.address)
