"""What every command that runs something does around it: signals, MLflow's process, last lines."""

from __future__ import annotations

import os
import re
import shlex
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from expkit.cli.status import FAILED, INTERRUPTED, MISUSED, TERMINATED, print_error
from expkit.errors import UserError, is_disk_full
from expkit.tracking import journal
from expkit.tracking.address import one_line
from expkit.tracking.tracker import Sent, Tracker

if TYPE_CHECKING:
    from expkit.config import Cell

DAY = re.compile(r"\d{4}-\d\d-\d\d")
NO_RUN = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc")


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. It is handled as an interrupt, with an exit status of its own."""


def interruptible(work: Callable[[], int]) -> int:
    """Return the work's exit status, or that of the signal or error that ended it."""
    with _terminate_raises():
        try:
            return work()
        except BaseException as error:
            return _status(error)


def _status(error: BaseException) -> int:
    """Print the line for the error that ended the command, if any; return the exit status."""
    interrupt = _interrupt(error)
    if interrupt is not None:
        return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
    if isinstance(error, UserError):
        return print_error(error)
    if is_disk_full(error):
        return print_error("the disk is full; free some of it, then try again", FAILED)
    if isinstance(error, OSError) and error.filename is not None:
        return print_error(f"outputs: cannot write {error.filename} ({error.strerror})")
    raise error


def _interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt behind an error, which a library may raise while it cleans up."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def runs_nothing(argv: Sequence[str]) -> bool:
    """Whether the words ask only for help or information."""
    return any(word in NO_RUN or word.startswith(("--cfg=", "--info=")) for word in argv)


@contextmanager
def tracker_for(argv: Sequence[str]) -> Iterator[Tracker | None]:
    """Start MLflow's process before anything is imported, as it takes longest to be ready."""
    if "tracking=none" in argv or runs_nothing(argv):
        yield None
        return
    with _tracked() as tracker:
        yield tracker


@contextmanager
def _tracked() -> Iterator[Tracker]:
    """Yield a tracker and close it; after an interrupt, report the runs that MLflow lacks."""
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
    """Let each Ctrl-C, and the first SIGTERM, reduce the time that MLflow is given."""

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


def require_plain(outputs: Path) -> None:
    """Check that the name of the outputs folder can be passed to Hydra.

    Raises:
        UserError: the name contains `${`, which Hydra reads as a reference.
    """
    if "${" in str(outputs):
        raise UserError(f"outputs: got {str(outputs)!r}, takes a folder without ${{ in its name")


def draw(jobs: Sequence[tuple[Cell, Path]]) -> None:
    """Draw the pictures of these runs. Errors are reported, but do not make a run fail.

    Raises:
        OSError: the disk is full.
    """
    from expkit.report import plots

    for cell, folder in jobs:
        if missing := plots.draw_wanted(cell, folder):
            print_error(missing, FAILED)


def send(folders: Sequence[Path], tracker: Tracker | None) -> list[Sent]:
    """Wait until MLflow has these ended runs; return what became of each."""
    from expkit.cli.progress import waiting_for

    if tracker is None:
        return []
    with waiting_for("MLflow"):
        return [tracker.update(folder, last=True) for folder in folders]


def reported(work: Callable[[], int], folder: Path) -> int:
    """Do work that is recorded in this folder; print its errors and return the exit status."""
    from omegaconf.errors import OmegaConfBaseException

    from expkit.config import plain_reason

    try:
        return work()
    except (UserError, OmegaConfBaseException) as error:
        if isinstance(error, OmegaConfBaseException):
            error = UserError(plain_reason(error))
        tidy(folder)
        return print_error(error, FAILED if folder.is_dir() else MISUSED)
    except KeyboardInterrupt:
        tidy(folder)
        if not folder.is_dir():
            print_error("interrupted before the run began")
        elif _has_ended(folder):
            print_error(f"interrupted; by then all was measured, and it is in {folder}")
        else:
            print_error(f"interrupted; what was measured is in {folder}")
        raise
    except Exception as error:
        if is_disk_full(error):
            kept = f"what could be kept is in {folder}"
            return print_error(f"the disk is full; {kept}; free some of it, then try again", FAILED)
        return print_error(f"the run failed: {one_line(error)}{where_told(folder)}", FAILED)


def _has_ended(folder: Path) -> bool:
    """Whether all runs of a folder ended by themselves, so that only MLflow was waited for."""
    with suppress(UserError, OSError):  # damaged meanwhile
        files = folder.rglob(journal.FILE)
        ends = [
            [r["status"] for r, _ in journal.read(f.parent) if r["kind"] == "end"] for f in files
        ]
        return all(end and end != ["KILLED"] for end in ends)
    return False


def tidy(folder: Path) -> None:
    """Remove a run's folder if it is empty, and then the folders of its day and `runs`."""
    with suppress(OSError):  # there is something in it, or it is not there
        folder.rmdir()
        for parent in folder.parents[:2]:
            if parent.name != "runs" and not DAY.fullmatch(parent.name):
                break
            parent.rmdir()


def show(text: str) -> None:
    """Print and flush, so that the text appears at once even in a file."""
    print(text, flush=True)


def not_in_mlflow(error: str, folder: Path) -> int:
    """Report that it is not in MLflow and how to send it later."""
    later = f"send it later: expkit sync {shlex.quote(str(folder))}"
    return print_error(f"not in MLflow ({error}); {later}", FAILED)


def where_told(folder: Path) -> str:
    """Say where to read the whole error or, if the disk is full, where the run's files are."""
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
    """Yield the tracker if the first cell wants one; start it now if that was not done before.

    The tracker is told where to send the cells' runs, which are in this folder.
    """
    from expkit.door import allow

    if cells[0].tracking.kind == "none":
        yield None
    elif tracker is not None:
        allow(tracker, cells, folder)
        yield tracker
    else:
        with _tracked() as late:
            allow(late, cells, folder)
            yield late
