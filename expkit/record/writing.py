"""Writes what a run records: its beginning, its results, and the end of a run that failed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf

from expkit.config import Cell
from expkit.measure.environment import environment
from expkit.outcome import Outcome
from expkit.record import note, quantities
from expkit.record.colours import colours
from expkit.record.curves import Integers, elapsed, shown_steps
from expkit.record.result import Result
from expkit.record.stored import PARAMS
from expkit.tracking import address
from expkit.tracking import journal as journals
from expkit.tracking.journal import Journal


def begin(cell: Cell, folder: Path, tags: Mapping[str, str]) -> Journal:
    """Create a journal and write its first line.

    Raises:
        UserError: the folder holds a run already.
    """
    journal = Journal(folder, new=True)
    journal.write("run", **opening(cell, folder, tags, cell.backend.describe()))
    return journal


def not_alike(unlike: Sequence[str]) -> str:
    """Return the tag `parity` of a run that is not like for like, with the differences."""
    return "not like for like: " + "; ".join(unlike)


def record_failure(
    cell: Cell, folder: Path, tags: Mapping[str, str], outcome: str, reason: str
) -> None:
    """End a run that did not end itself: its process is gone, or could not begin."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = (folder / journals.FILE).exists() and journals.opening(folder) is not None
    journal = Journal(folder)
    if not begun:
        journal.write("run", **opening(cell, folder, tags, {}))
    about = note.note(cell, Result(outcome=Outcome(outcome), reason=reason), None)
    journal.tags({"outcome": outcome, "reason": reason, note.TAG: about})
    journal.end("KILLED" if outcome == Outcome.INTERRUPTED else "FAILED")


def opening(
    cell: Cell, folder: Path, tags: Mapping[str, str], about: Mapping[str, Any]
) -> dict[str, Any]:
    backend = cell.names["backend"]
    own = {
        **cell.names,
        **{key: str(about[key]) for key in ("device", "dtype") if key in about},
        "cell": cell.hash,
        "outcome": Outcome.RUNNING,
        note.TAG: note.note(cell, Result(outcome=Outcome.RUNNING), None),
        "expkit.folder": str(folder),
        "mlflow.runColor": colours([backend])[backend],
    }
    return {
        "version": journals.VERSION,
        "id": uuid.uuid4().hex,
        "name": cell.title,
        "owner": journals.owner(),
        "tracking": {
            "uri": address.without_password(cell.address),
            "experiment": cell.tracking.experiment,
        },
        "params": cell.params | {f"used.{k}": v for k, v in about.items()},
        "tags": own | dict(tags),
        "cell": dict(cell.frozen),
    }


def write_result(journal: Journal, result: Result) -> None:
    """Write the metrics of a run that was measured or refused."""
    for name, value in quantities.found(result):
        journal.metric(name, [value])
    if result.first_bad_step is not None:
        journal.tags({"first_bad_step": str(result.first_bad_step)})
    shown = shown_steps(result.losses)
    if shown.size:
        journal.series("curve/loss", result.losses[shown].tolist(), shown.tolist())
    if result.summary:
        journal.tags({"stopped_by": str(result.stopped_by)})
        journal.tags({"stable": "; ".join(result.unstable) or "yes"})
        journal.tags(_remarks(result))
        _write_times(journal, result, shown)


def _remarks(result: Result) -> dict[str, str]:
    """Return the tags that explain the figures of a run."""
    found = {}
    if warm := result.warm_up:
        found["lengths"] = f"{', '.join(map(str, warm.first_passes))} steps"
        if not warm.settled:
            found["warm_up"] = "a step's time did not settle"
    if result.limit:
        found["limited_by"] = result.limit.binds
    if result.breakdown and result.breakdown.hidden:
        found["parts"] = result.breakdown.hidden
    return found


def write_files(cell: Cell, journal: Journal, result: Result) -> None:
    """Write the artifacts of a run, and note them in its journal."""
    (journal.folder / "config.yaml").write_text(OmegaConf.to_yaml(cell.resolved))
    words = yaml.safe_dump(list(cell.frozen["words"]), allow_unicode=True, width=1e9)
    (journal.folder / "overrides.yaml").write_text(words, encoding="utf-8")
    about = environment() if result.timed else _environment_of_process()
    about = {**about, "backend": cell.backend.describe()}
    (journal.folder / "environment.json").write_text(json.dumps(about, indent=2) + "\n")
    names = ["config.yaml", "overrides.yaml", "environment.json"]
    if result.params:
        kept: dict[str, Any] = result.params
        np.savez(journal.folder / PARAMS, **kept)
        names.append(PARAMS)
    for name in names:
        journal.artifact(name)


@cache
def _environment_of_process() -> dict[str, Any]:
    """Read the environment once per process: later changes matter only for timed cells."""
    return environment()


def _write_times(journal: Journal, result: Result, shown: Integers) -> None:
    """Write each reading's mean seconds per step (median over repeats), and when the steps that the
    loss is shown of had ended.
    """
    ends = np.asarray(result.chunk_ends)
    lengths = np.diff(ends, prepend=-1)
    medians = np.median(np.asarray(result.chunk_seconds), axis=0) / lengths
    journal.series("time/step_seconds", medians.tolist(), result.chunk_ends)
    if shown.size:
        seconds = elapsed(ends, medians, result.losses.size)
        journal.series("curve/seconds", seconds[shown].tolist(), shown.tolist())
