"""`python -m expkit key=value ...`: compose with Hydra, run, show."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from expkit.errors import Unavailable, UserError
from expkit.tracking.tracker import Tracker

if TYPE_CHECKING:
    from omegaconf import DictConfig

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
TERMINATED = 128 + signal.SIGTERM
NO_RUN = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc")


class Terminated(KeyboardInterrupt):
    """SIGTERM: as an interrupt, with an exit status of its own."""


def run(argv: Sequence[str]) -> int:
    """Compose and run; one line on stderr for whatever goes wrong."""
    with _tracker(argv) as tracker, _terminate_raises():
        try:
            return max(_compose_and_run(argv, tracker), default=OK)
        except Terminated:
            return TERMINATED
        except KeyboardInterrupt:
            return INTERRUPTED
        except UserError as error:
            return _complain(error)
        except OSError as error:
            if error.filename is None:
                raise
            return _complain(f"outputs: cannot write {error.filename} ({error.strerror})")


def _complain(reason: object, status: int = MISUSED) -> int:
    print(f"expkit: {reason}", file=sys.stderr)
    return status


@contextmanager
def _tracker(argv: Sequence[str]) -> Iterator[Tracker | None]:
    """MLflow's process, started before anything is imported: it is what takes longest."""
    if "tracking=none" in argv or any(word.startswith(NO_RUN) for word in argv):
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
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra's errors reach us
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from expkit import config

    statuses: list[int] = []
    config.register()
    before, sys.argv = sys.argv, ["expkit", *argv]
    try:
        main = hydra.main("pkg://expkit.conf", "config", version_base="1.3")
        main(lambda composed: statuses.append(_run_composed(composed, tracker)))()
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        from expkit.cli.complaints import one_line

        raise UserError(one_line(error, argv)) from error
    finally:
        sys.argv = before
    return statuses


def _run_composed(composed: DictConfig, tracker: Tracker | None) -> int:
    """One cell, in the folder that Hydra chose for it; its exit status."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from expkit import config, runner
    from expkit.cli.progress import progress
    from expkit.report import plots
    from expkit.report.table import table

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir).absolute()
    sweep = Path(hydra_config.sweep.dir).name if hydra_config.mode == RunMode.MULTIRUN else None
    try:
        cell = config.build_cell(composed, hydra_config.runtime.choices)
        used = tracker if cell.tracking.kind == "mlflow" else None
        with progress(cell.workload.steps) as watch:
            result = runner.run(cell, folder, used, watch, plots.draw, sweep=sweep)
    except UserError as error:
        if isinstance(error, Unavailable):
            error = UserError(f"backend={cell.names['backend']}: {error}")
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # nothing half-made stays behind
        return _complain(error, FAILED if folder.is_dir() else MISUSED)
    except KeyboardInterrupt:
        _complain(f"interrupted; what was measured is in {folder}")
        raise
    except Exception as error:
        report = folder / "error.txt"
        if not report.exists():  # it went wrong before the run began
            report.write_text(traceback.format_exc())
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return _complain(f"the run failed: {reason}; see {report}", FAILED)
    print(table(cell, result, folder), flush=True)
    if result.sent and result.sent.error:
        later = f"send it later: expkit sync {folder}"
        return _complain(f"not in MLflow ({result.sent.error}); {later}", FAILED)
    return OK if result.outcome == "ok" else FAILED
