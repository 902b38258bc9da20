"""The far end of trials: the process that runs cells at its parent's request."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from expkit import remote
from expkit.child import Message, Parent
from expkit.conduct import as_a_program, check_runnable, run_together
from expkit.config import thaw
from expkit.errors import UserError, is_disk_full
from expkit.measure.environment import Activity
from expkit.outcome import Outcome
from expkit.remote import REQUESTS as REQUESTS
from expkit.remote import Begin, Done
from expkit.tracking.address import one_line
from expkit.trial import Trial

LOGGED = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"
"""The format of log lines, as in `conf/hydra/job_logging/expkit.yaml`."""


def serve(parent: Parent) -> None:
    """Run the cells that the parent asks for, until it hangs up."""
    while (begin := parent.hear()) is not None:
        parent.tell(_run(begin, parent))


def _run(begin: Begin, parent: Parent) -> Done:
    """Run one cell from its import to its end; every failure becomes an answer."""
    folder, full = Path(begin.folder), False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / remote.SAID).open("ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        outcome, reason = _outcome(begin, folder, parent)
    except BaseException as error:  # sys.exit too: it ends this cell alone
        outcome, reason, full = Outcome.FAILED, one_line(error), is_disk_full(error)
    with suppress(OSError):  # what it printed may not fit on the disk
        sys.stdout.flush()
        sys.stderr.flush()
        if not (folder / remote.SAID).stat().st_size:
            (folder / remote.SAID).unlink()
    if not begin.timed:  # else this process ends
        gc.collect()
    return Done(outcome, reason, full)


def _outcome(begin: Begin, folder: Path, parent: Parent) -> tuple[str, str]:
    cell = thaw(begin.cell)
    try:
        check_runnable(cell)
    except UserError as error:
        return Outcome.UNAVAILABLE, str(error)
    _log(folder, begin.cell.get("log"))
    cell.backend.configure()
    _keep_libraries()
    checkpoint = Path(begin.checkpoint) if begin.checkpoint else None
    try:
        if not begin.timed:
            job, tags = [(cell, folder)], begin.tags
            [result] = run_together(job, None, tags=tags, timed=False, checkpoint=checkpoint)
        else:
            trial = Trial(cell, folder, begin.tags, None, lambda now: None, checkpoint=checkpoint)
            with trial, as_a_program():
                result = trial.result
                _obey(trial, parent)
    except UserError as error:
        return Outcome.FAILED, str(error)
    return result.outcome, result.reason or ""


def _obey(trial: Trial, parent: Parent) -> None:
    """Answer the parent's requests to a trial until it ends."""
    answer: Message = _state(trial)
    while True:
        parent.tell(answer)
        match parent.hear():
            case None:
                os._exit(0)  # the parent has hung up
            case remote.Prepare():
                trial.prepare()
            case remote.FindAnswer():
                trial.find_answer()
            case remote.Place():
                trial.place()
            case remote.Repeat():
                answer = remote.Repeated(trial.repeat())
                continue
            case remote.TakeIn(outcome, reason, rounds):
                trial.take_in(outcome, reason, rounds)
            case remote.Conclude(stopped_by, activity):
                trial.conclude(stopped_by, Activity(**activity))
            case remote.Refuse(unlike):
                trial.refuse(unlike)
            case remote.Finish(tags, figures):
                trial.finish(tags, figures)
                return
        answer = _state(trial)


def _state(trial: Trial) -> remote.State:
    return remote.State(
        trial.lives, trial.facts, trial.broken, trial.expected_s, trial.until_target
    )


def _log(folder: Path, how: Mapping[str, Any] | None) -> None:
    """Send what the cell's code logs to a file beside its journal, as in a run on its own."""
    root = logging.getLogger()
    for handler in list(root.handlers):  # those of the cell before
        root.removeHandler(handler)
        handler.close()
    if how is None:
        return
    file = Path(how["name"]).name  # beside the journal, whatever was stored
    written = logging.FileHandler(folder / f"{file}.log", encoding="utf-8", delay=True)
    written.setFormatter(logging.Formatter(LOGGED))
    said = logging.StreamHandler()
    said.setLevel(logging.WARNING)
    root.addHandler(written)
    root.addHandler(said)
    root.setLevel(logging.INFO)
    for name in how["verbose"]:
        logging.getLogger(name).setLevel(logging.DEBUG)


@cache
def _keep_libraries() -> None:
    """Exempt from garbage collection what has been imported before the first cell."""
    gc.freeze()
