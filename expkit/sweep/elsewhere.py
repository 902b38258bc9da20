"""Cells on other machines, through a launcher of Hydra's: SLURM, Ray and others.

A job there is one cell with a worker of its own, so that the cell's death is not the job's. What it
has written comes home as the job's return value where the folder is not shared.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from expkit import children
from expkit.config import Sweep
from expkit.errors import UserError
from expkit.runner import record_failure
from expkit.sweep import engine
from expkit.sweep.manifest import Manifest, Planned
from expkit.tracking import address, journal
from expkit.tracking.tracker import Tracker, one_line

CELL = "EXPKIT_CELL"
"""The variable of a job's environment that holds its cell."""

Files = dict[str, bytes]


class Silent:
    """Where nobody looks on."""

    def begins(self, planned: Planned) -> None: ...

    def measures(self, planned: Planned, rounds: int) -> None: ...

    def ends(self, planned: Planned, outcome: str, reason: str) -> None: ...

    def says(self, text: str) -> None: ...


def launch(manifest: Manifest, todo: Sequence[Planned], launcher: Launcher) -> None:
    """Run cells through a launcher, each as a job, and take in what comes home."""
    jobs = [
        [
            f"hydra.sweep.subdir=jobs/{manifest.next_attempt(planned).name}",
            f"+hydra.job.env_set.{CELL}='{_packed(manifest, planned)}'",
        ]
        for planned in todo
    ]
    os.environ.update(children.SAFE_PATH)  # a job is started from here too
    try:
        returns = launcher.launch(jobs, initial_job_idx=0)
        for planned, job in zip(todo, returns, strict=True):
            if job.status != JobStatus.COMPLETED:
                _lost(manifest, planned, "failed", f"its job failed: {one_line(job._return_value)}")
            else:
                _take_in(manifest, job.return_value)
    except UserError:
        raise
    except Exception as error:  # it gives up on all that it had not told of
        for planned in todo:
            run = manifest.result(planned)
            if run is None or run.outcome == "running":
                _lost(manifest, planned, "failed", f"the launcher ended: {one_line(error)}")
    finally:
        for planned in todo:  # what is still open has nobody left to end it
            for folder in _open(manifest, planned):
                _end(manifest, planned, folder, "interrupted", "stopped before its end")


def run_there(composed: DictConfig) -> dict[str, Files]:
    """A job: one cell, as the variable has it. Returns its files, by folder."""
    packed = json.loads(zlib.decompress(base64.b64decode(os.environ[CELL])))
    children.look_there_too(packed["path"])
    planned = Planned(**packed["planned"])
    folder, sweep = Path(packed["folder"]), Sweep(**packed["sweep"])
    manifest = Manifest(folder, [], sweep, [], [planned])
    run = manifest.result(planned)
    if run and run.outcome == "ok":  # by a job of a process that was killed meanwhile
        attempt = run.folder
    else:
        attempt = manifest.next_attempt(planned)
        kept = planned.cell.tracking.uri
        reachable = planned.cell.tracking.kind == "mlflow" and kept and not address.database(kept)
        with closing(Tracker()) if reachable else nullcontext() as tracker:
            if tracker and kept:
                tracker.allow(kept, address.whole(kept, [address.given()]))
            engine.run(manifest, [planned], tracker, Silent())
    files = {file.name: file.read_bytes() for file in attempt.iterdir() if file.is_file()}
    return {attempt.name: files}


def _packed(manifest: Manifest, planned: Planned) -> str:
    """In characters that every shell and Hydra's grammar leave alone."""
    record = {
        "planned": asdict(planned),
        "folder": str(manifest.folder),
        "sweep": asdict(manifest.sweep),
        "path": children.own_path(),
    }
    return base64.b64encode(zlib.compress(json.dumps(record).encode())).decode()


def _take_in(manifest: Manifest, came: Mapping[str, Files]) -> None:
    for name, files in came.items():
        folder = manifest.folder / name
        if not (folder / journal.FILE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            for file, content in files.items():
                (folder / file).write_bytes(content)


def _open(manifest: Manifest, planned: Planned) -> list[Path]:
    """The cell's attempts that have not ended."""
    begun = (f for f in manifest.attempts(planned) if (f / journal.FILE).exists())
    return [folder for folder in begun if not journal.is_ended(folder)]


def _lost(manifest: Manifest, planned: Planned, outcome: str, reason: str) -> None:
    folders = _open(manifest, planned) or [manifest.next_attempt(planned)]
    _end(manifest, planned, folders[-1], outcome, reason)


def _end(manifest: Manifest, planned: Planned, folder: Path, outcome: str, reason: str) -> None:
    tags = {"sweep": manifest.id, "sweep.cell": str(planned.index)}
    record_failure(planned.cell, folder, tags, outcome, reason)
