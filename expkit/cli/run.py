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
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from expkit.cli.status import FAILED, INTERRUPTED, MISUSED, OK, TERMINATED, complain
from expkit.cli.words import check_words, option_folder, parse
from expkit.errors import ConfigError, UserError
from expkit.sweep.worker import spares
from expkit.tracking.tracker import Tracker, one_line

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher
    from omegaconf import DictConfig

    from expkit.cli.sweep import Search
    from expkit.config import Cell
    from expkit.sweep.manifest import Manifest

BLAS_THREADS = "OPENBLAS_NUM_THREADS"
NOT_TIMED_HERE = ("sweep.timing=false", "sweep.dry_run=true", "hydra/launcher=")
SPARES = 2
"""Workers that are started early: few sweeps have fewer cells."""
DAY = re.compile(r"\d{4}-\d\d-\d\d")
NO_RUN = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc")


class Terminated(KeyboardInterrupt):
    """SIGTERM: as an interrupt, with an exit status of its own."""


def run(argv: Sequence[str]) -> int:
    """Compose and run; one line on stderr for whatever goes wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors reach us

    def work() -> int:
        with tracker_for(argv) as tracker, _workers_for(argv):
            return max(_compose_and_run(argv, tracker), default=OK)

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
    tracker = Tracker()
    try:
        yield tracker
    finally:
        tracker.close()


@contextmanager
def _terminate_raises() -> Iterator[None]:
    def raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _compose_and_run(argv: Sequence[str], tracker: Tracker | None) -> list[int]:
    """The exit status of each cell; Hydra prints lines of its own if a cell raises."""
    import hydra
    from hydra.errors import HydraException

    with _one_blas_thread() if _is_sweep(argv) else nullcontext():
        from expkit import config

    command = Command(tracker)
    config.register()
    words, flags = parse(argv)
    check_words(words, option_folder(flags))
    before, sys.argv = sys.argv, ["expkit", *words, *flags]
    try:
        main = hydra.main("pkg://expkit.conf", "config", version_base="1.3")
        try:
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


class Command:
    """What Hydra is given to call: with a cell, or with a sweep's words."""

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker = tracker
        self._search: Search | None = None
        self.statuses: list[int] = []

    def __call__(self, composed: DictConfig) -> None:
        """Run one cell here."""
        self.statuses.append(_run_composed(composed, self._tracker))

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
        from expkit.sweep import manifest, plan

        gc.freeze()  # the libraries stay, what composing a cell leaves goes: there may be thousands
        gc.enable()
        folder = Path(master.hydra.sweep.dir).absolute()
        folders: dict[int, str] = {}
        if (folder / manifest.FILE).is_file():
            found = manifest.Manifest.load(folder)
            given, kept = (
                [w for w in some if w != "tracking=none" and not manifest.is_for_hydra(w)]
                for some in (words, found.words)
            )
            if given and given != kept:
                takes = f"another folder, or nothing beside it: this one holds {shlex.join(kept)}"
                raise ConfigError("hydra.sweep.dir", str(folder), takes)
        else:
            found = plan.plan(master, loader, jobs, words)
            folders = plan.subdirs(master, loader, jobs)
        self.statuses.append(sweep.begin(found, self._used(found), launcher, folders))

    def launch(
        self,
        master: DictConfig,
        loader: ConfigLoader,
        jobs: Sequence[Sequence[str]],
        first: int,
    ) -> list[JobReturn]:
        """Run a batch of a sweeper that searches; each job returns the objective."""
        from expkit.cli.sweep import Search
        from expkit.sweep import plan

        batch = plan.plan(master, loader, jobs, [], first)
        self._search = self._search or Search(self._used(batch), master.hydra.sweeper)
        folders = plan.subdirs(master, loader, jobs, first)
        return self._search.launch(batch, range(first, first + len(jobs)), folders)

    def finish(self) -> None:
        """Show what a search came to."""
        if self._search and (status := self._search.finish()) is not None:
            self.statuses.append(status)

    def _used(self, manifest: Manifest) -> Tracker | None:
        """The tracker, if any cell wants one."""
        kinds = {cell.frozen["config"]["tracking"]["kind"] for cell in manifest.cells}
        return self._tracker if "mlflow" in kinds else None


def _run_composed(composed: DictConfig, tracker: Tracker | None) -> int:
    """One cell, in the folder that Hydra chose for it; its exit status."""
    from hydra.core.hydra_config import HydraConfig

    from expkit import config, runner
    from expkit.cli.progress import progress
    from expkit.report import plots
    from expkit.report.table import table

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir).absolute()

    def work() -> int:
        words = config.as_typed(hydra_config.overrides.task)
        cell = config.build_cell(composed, dict(hydra_config.runtime.choices), words)
        with progress(cell.workload.steps) as watch, used_by(cell, tracker) as used:
            result = runner.run(cell, folder, used, watch, plots.draw)
        show(table(cell, result, folder))
        if result.sent and result.sent.error:
            return not_in_mlflow(result.sent.error, folder)
        return OK if result.outcome == "ok" else FAILED

    return reported(work, folder)


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
        else:
            complain(f"interrupted; what was measured is in {folder}")
        raise
    except Exception as error:
        return complain(f"the run failed: {one_line(error)}{where_told(folder)}", FAILED)


def tidy(folder: Path) -> None:
    """Remove a run's folder if nothing is in it, and those of its day and kind alike."""
    with suppress(OSError):  # there is something in it, or it is not there
        folder.rmdir()
        for parent in folder.parents[:2]:
            if parent.name != "runs" and not DAY.fullmatch(parent.name):
                break
            parent.rmdir()


def show(text: str) -> None:
    """Print, unless whoever reads our output has seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
def used_by(cell: Cell, tracker: Tracker | None) -> Iterator[Tracker | None]:
    """The tracker, if this cell wants one: made now if the words did not show it before."""
    if cell.tracking.kind == "none":
        yield None
    elif tracker is not None:
        yield tracker
    else:
        with closing(Tracker()) as late:
            yield late
