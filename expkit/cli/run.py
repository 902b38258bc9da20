"""`python -m expkit key=value ...`: compose with Hydra, run, show."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expkit.cli.session import (
    draw,
    interruptible,
    not_in_mlflow,
    reported,
    require_plain,
    runs_nothing,
    send,
    show,
    tidy,
    tracker_for,
    used_by,
)
from expkit.cli.status import FAILED, MISUSED, OK
from expkit.cli.words import check_words, option_folder, parse
from expkit.errors import ConfigError, UserError
from expkit.measure.course import FILE as CHECKPOINT
from expkit.outcome import Outcome
from expkit.remote import prestarted
from expkit.tracking import address, journal
from expkit.tracking.tracker import Tracker

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
"""Words that may change when an existing sweep is continued."""
PRESTARTED = 2
"""Workers that are started early: few sweeps have fewer cells."""
VERBOSE = "--verbose"
"""The only option that expkit adds to Hydra's: show the full table."""


def run(argv: Sequence[str]) -> int:
    """Compose and run; print one line on stderr if anything goes wrong."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors reach us

    verbose, argv = VERBOSE in argv, [word for word in argv if word != VERBOSE]

    def work() -> int:
        with tracker_for(argv) as tracker, _workers_for(argv):
            return max(_compose_and_run(argv, tracker, verbose=verbose), default=OK)

    return interruptible(work)


def _workers_for(argv: Sequence[str]) -> AbstractContextManager[None]:
    """Start a sweep's first workers, which import what cells need while Hydra composes them."""
    here = not any(word.startswith(NOT_TIMED_HERE) for word in argv)
    if _is_sweep(argv) and here and not runs_nothing(argv):
        return prestarted(PRESTARTED)
    return nullcontext()


def _is_sweep(argv: Sequence[str]) -> bool:
    return "-m" in argv or "--multirun" in argv


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread while NumPy is imported: more would spin beside the workers."""
    if BLAS_THREADS in os.environ:
        yield
        return
    os.environ[BLAS_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[BLAS_THREADS]  # workers have their own value


def _compose_and_run(argv: Sequence[str], tracker: Tracker | None, *, verbose: bool) -> list[int]:
    """Return the exit status of each cell. If a cell raises, Hydra prints lines of its own."""
    import hydra
    from hydra.errors import HydraException

    with _one_blas_thread() if _is_sweep(argv) else nullcontext():
        from expkit import config

    words, flags = parse(argv)
    command = Command(tracker, words, verbose=verbose)
    config.register()
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
    except Exception as error:  # from Hydra, OmegaConf or YAML, never from a cell
        if isinstance(error, UserError | OSError) and not isinstance(error, HydraException):
            raise
        from expkit.cli import COMMANDS
        from expkit.error_messages import explain

        raise UserError(explain(error, words, COMMANDS)) from error
    except SystemExit as end:  # raised by Hydra, after its help or an error line
        if end.code not in (None, OK):
            raise SystemExit(MISUSED) from end
        raise
    finally:
        sys.argv = before
    return command.statuses


def _quiet_optuna() -> None:
    """Silence the coloured line that Optuna prints first, even to a pipe; keep its warnings."""
    with suppress(ImportError):  # Hydra says that it is not there
        optuna: Any = import_module("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)


@contextmanager
def _folder_first() -> Iterator[None]:
    """Check that a run's folder is free before Hydra writes its own files into it.

    Hydra has no hook there that may refuse, so its `run_job` is wrapped. If Hydra fails before the
    run begins, for example because it cannot make a logger, the folder that it made is removed.
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
    """Check that the folder of a new run is empty or does not exist.

    Raises:
        UserError: something is in it.
    """
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if names:
        held = "a run" if journal.FILE in names else "other files"
        takes = "takes an empty or new folder"
        raise UserError(f"hydra.run.dir: {folder} holds {held} already; {takes}")


class Command:
    """The function that Hydra calls with a cell, or expkit's sweeper with the cells of a sweep."""

    def __init__(self, tracker: Tracker | None, words: Sequence[str], *, verbose: bool) -> None:
        """`words` are those that were typed, without options such as `-m`."""
        self._tracker, self._words, self._verbose = tracker, words, verbose
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
        from expkit.sweeps import manifest, plan

        gc.freeze()  # libraries are kept, what thousands of cells leave is collected
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
        """Run a batch of cells for a searching sweeper; each job returns the objective."""
        from expkit.cli.addresses import allow_given
        from expkit.cli.sweep import Search
        from expkit.sweeps import manifest, plan

        if self._search is None:
            manifest.require_unused(Path(master.hydra.sweep.dir).absolute())
        words = [address.scrub(w) for w in self._words if not w.startswith(manifest.ONCE)]
        batch = plan.plan(master, loader, jobs, words, first)
        allow_given(self._tracker, batch, master.tracking.uri)
        used = self._tracker if batch.is_tracked or not batch.cells else None
        sweeper = master.hydra.sweeper
        self._search = self._search or Search(used, sweeper, verbose=self._verbose)
        folders = plan.subdirs(master, loader, jobs, first)
        return self._search.launch(batch, range(first, first + len(jobs)), folders)

    def finish(self) -> None:
        """Show the results of a search."""
        if self._search and (status := self._search.finish()) is not None:
            self.statuses.append(status)


def _run_composed(composed: DictConfig, tracker: Tracker | None, *, verbose: bool) -> int:
    """Run one cell in the folder that Hydra chose for it; return the exit status."""
    from hydra.core.hydra_config import HydraConfig

    from expkit import config

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir).absolute()

    def work() -> int:
        words = config.as_typed(hydra_config.overrides.task)
        cell = config.build_cell(composed, dict(hydra_config.runtime.choices), words)
        return _run_cell(cell, folder, tracker, verbose=verbose)

    return reported(work, folder)


def _run_cell(
    cell: Cell,
    folder: Path,
    tracker: Tracker | None,
    *,
    verbose: bool,
    before: Path | None = None,
) -> int:
    """Run one cell here, and show what came out; return the exit status.

    Args:
        before: the folder of the run whose checkpoint it goes on from; None to begin at the start.
    """
    from expkit import door
    from expkit.cli.progress import progress
    from expkit.report.table import in_mlflow

    tags = {"resumed_from": str(before)} if before else {}
    checkpoint = before / CHECKPOINT if before else None
    with used_by([cell], folder, tracker) as used:
        jobs = [(cell, folder)]
        with progress(cell.measure, cell.workload.steps) as watch:
            [found] = door.measured(jobs, used, watch, here=True, tags=tags, checkpoint=checkpoint)
        show(found.table(verbose=verbose))
        draw(jobs)
        for sent in send([folder], used):
            if sent.error:
                return not_in_mlflow(sent.error, folder)
            show(in_mlflow(str(sent.run_id)))
    return OK if found.outcome == Outcome.OK else FAILED


def resume(
    stopped: Path, outputs: Path, *, uri: str | None, allow_target: bool, verbose: bool
) -> int:
    """Go on with a run that was stopped, from its checkpoint, in a new folder beside its own.

    Args:
        uri: the address that it names, with its password.
        allow_target: build classes that no installed option names.
    """
    from expkit import config
    from expkit.cli.addresses import confirmed
    from expkit.sweeps.manifest import FILE as SWEEP

    def work() -> int:
        if (stopped.parent / SWEEP).is_file():
            whole = f"expkit resume {shlex.quote(str(stopped.parent))}"
            raise UserError(f"resume: {stopped} is a cell of a sweep; resume the sweep: {whole}")
        if not journal.close_if_orphaned(stopped):
            raise UserError(f"resume: {stopped} may still be running; takes one that was stopped")
        run = journal.opening(stopped)
        if run is None or not (stopped / CHECKPOINT).is_file():
            takes = "a run that was stopped after its first checkpoint (measure.checkpoint_s)"
            raise UserError(f"resume: {stopped} has no checkpoint; takes {takes}")
        if not allow_target:
            config.require_installed(run["cell"]["config"], "expkit resume --allow-target")
        cell = config.thaw(run["cell"])
        numbered = (stopped.with_name(f"{stopped.name}-{number}") for number in count(2))
        folder = next(place for place in numbered if not place.exists())
        if cell.tracking.kind == "mlflow":
            kept = address.without_password(cell.address)
            whole = uri or confirmed(kept, stopped, outputs)
            cell = replace(cell, tracking=replace(cell.tracking, uri=whole))
        told = partial(_run_cell, cell, folder, None, verbose=verbose, before=stopped)
        return reported(told, folder)

    return interruptible(work)
