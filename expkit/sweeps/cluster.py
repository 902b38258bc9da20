"""Run cells on other machines through one of Hydra's launchers: SLURM, Ray and others.

Each job runs one cell in a worker process, so that a cell which kills its process does not kill the
job. A job returns the run's files, which are written here if the sweep's folder is not shared.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import shlex
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, flag_override

from expkit import child
from expkit.config import Sweep, as_typed, register
from expkit.errors import UserError
from expkit.outcome import Outcome
from expkit.record.writing import record_failure
from expkit.sweeps import engine
from expkit.sweeps.manifest import Manifest, Planned
from expkit.tracking import address, journal
from expkit.tracking.address import one_line
from expkit.tracking.tracker import Tracker

CELL = "EXPKIT_CELL"
"""The environment variable that holds the cell of a job."""

Files = dict[str, bytes]

WORD = re.compile(
    r"(?:\+{0,2}|~)hydra(?P<key>/launcher|\.launcher\.[^=]*)(?:=(?P<value>.*))?", re.DOTALL
)
"""Matches a word that chooses or configures a launcher."""
PLAIN = re.compile(r"[\w.:@+/-]*")
"""Matches a value without special meaning to a shell, to Hydra or to a launcher."""
RESOURCES = re.compile(
    r"partition|account|qos|constraint|gres|exclude|comment|timeout_min|nodes|tasks_per_node"
    r"|cpus_per_task|cpus_per_gpu|gpus_per_node|gpus_per_task|mem_gb|mem_per_gpu|mem_per_cpu"
    r"|array_parallelism|signal_delay_s|max_num_timeout|n_jobs"
    r"|additional_parameters\.(exclusive|no-requeue|reservation|nodelist)"
    r"|ray\.remote\.(num_cpus|num_gpus|memory|max_retries|resources\.\w+)"
    r"|ray\.init\.(object_store_memory|log_to_driver|logging_level)"
)
"""Launcher keys that request resources for a job. No other key is taken from a file, because some
are commands (`setup`), folders or addresses."""


def launch(manifest: Manifest, todo: Sequence[Planned], launcher: Launcher) -> None:
    """Run cells through a launcher, one job each, and write the files that the jobs return."""
    jobs = [
        [
            f"hydra.sweep.subdir=jobs/{manifest.next_attempt(planned).name}",
            f"+hydra.job.env_set.{CELL}='{_packed(manifest, planned)}'",
        ]
        for planned in todo
    ]
    os.environ.update(child.SAFE_PATH)  # jobs are started from this environment
    try:
        returns = launcher.launch(jobs, initial_job_idx=0)
        for planned, job in zip(todo, returns, strict=True):
            if job.status != JobStatus.COMPLETED:
                _lost(
                    manifest,
                    planned,
                    Outcome.FAILED,
                    f"its job failed: {one_line(job._return_value)}",
                )
            else:
                _take_in(manifest, job.return_value)
    except UserError:
        raise
    except Exception as error:  # no result came back: unfinished cells failed
        for planned in todo:
            run = manifest.result(planned)
            if run is None or run.outcome == Outcome.RUNNING:
                _lost(manifest, planned, Outcome.FAILED, f"the launcher ended: {one_line(error)}")
    finally:
        for planned in todo:  # nobody else is left to end what is still open
            for folder in _open(manifest, planned):
                _end(manifest, planned, folder, Outcome.INTERRUPTED, "stopped before its end")


def replayed(words: Sequence[str], typed: Sequence[str], file: Path) -> list[str]:
    """Return the words for the launcher: those stored with a sweep, then those typed now.

    Args:
        words: the words stored with the sweep. Those that are not for the launcher are ignored.
        typed: the words typed now. If they choose a launcher, the stored words are not used.
        file: the file that holds the stored words.

    Raises:
        UserError: a stored word is more than a plain request for resources.
    """
    if any(word.startswith("hydra/launcher=") for word in typed):
        return list(typed)
    kept = []
    for word in words:
        if not (found := WORD.fullmatch(word)):
            continue
        key, value = found["key"], found["value"] or ""
        known = key == "/launcher" or RESOURCES.fullmatch(key.removeprefix(".launcher."))
        if known and PLAIN.fullmatch(value):
            kept.append(word)
        elif not any(_key(word) == _key(other) for other in typed):
            remedy = f"type it again if you want it: expkit resume ... {shlex.quote(word)}"
            raise UserError(f"sweep {file}: {word} is not taken from a file; {remedy}")
    return [*kept, *typed]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def chosen(words: Sequence[str], folder: Path) -> Launcher | None:
    """Return the launcher that these words choose for a sweep in this folder; None for our own.

    Raises:
        HydraException, OmegaConfBaseException, YAMLError: Hydra cannot compose the words.
    """
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    register()
    # Passed as a value, because many characters in a word have a meaning in Hydra's grammar.
    OmegaConf.register_new_resolver("expkit.sweep", lambda: str(folder), replace=True)
    with initialize_config_module("expkit.conf", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        place = "hydra.sweep.dir=${expkit.sweep:}"
        config = hydra.config_loader.load_configuration("config", [place, *words], RunMode.MULTIRUN)
        return launcher_of(HydraContext(hydra.config_loader, Callbacks(config)), config)


def launcher_of(context: HydraContext, config: DictConfig) -> Launcher | None:
    """Return the launcher of a composed sweep; None for our own, which runs the cells here."""
    if config.hydra.launcher.get("_target_") == "hydra_plugins.expkit.LocalLauncher":
        return None
    return Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=run_there, config=_kept(config)
    )


def require_here(launcher: Launcher) -> None:
    """Let one of our launchers check this machine before anything is written.

    Raises:
        UserError: the machine lacks something that the launcher needs.
    """
    if check := getattr(launcher, "require_here", None):
        check()


def _kept(config: DictConfig) -> DictConfig:
    """Return the configuration without passwords, because launchers write it to disk."""
    kept = copy.deepcopy(config)
    with flag_override(kept, ["struct", "readonly"], [False, False]):
        kept.hydra.sweep.dir = config.hydra.sweep.dir  # else the copy would get another time
        if uri := OmegaConf.select(kept, "tracking.uri"):
            kept.tracking.uri = address.kept(str(uri))
        kept.hydra.overrides.task = [
            address.scrub(word) for word in as_typed(kept.hydra.overrides.task)
        ]
        kept.hydra.job.override_dirname = address.scrub(kept.hydra.job.override_dirname)
    return kept


def run_there(composed: DictConfig) -> dict[str, Files]:
    """Run the cell of this job, which the variable `CELL` holds; return its files by folder."""
    packed = json.loads(zlib.decompress(base64.b64decode(os.environ[CELL])))
    child.look_there_too(packed["path"])
    planned = Planned(**packed["planned"])
    folder, sweep = Path(packed["folder"]), Sweep(**packed["sweep"])
    manifest = Manifest(folder, [], sweep, [], [planned])
    run = manifest.result(planned)
    if run and run.is_finished:  # by an earlier job whose sweep was killed
        attempt = run.folder
    else:
        attempt = manifest.next_attempt(planned)
        kept = planned.cell.tracking.uri
        reachable = planned.cell.tracking.kind == "mlflow" and kept and not address.database(kept)
        with closing(Tracker()) if reachable else nullcontext() as tracker:
            if tracker and kept:
                tracker.allow(kept, address.whole(kept, [address.given()]))
            engine.run(manifest, [planned], tracker)
    files = {file.name: file.read_bytes() for file in attempt.iterdir() if file.is_file()}
    return {attempt.name: files}


def _packed(manifest: Manifest, planned: Planned) -> str:
    """Encode a cell in characters that are special neither to shells nor to Hydra."""
    record = {
        "planned": asdict(planned),
        "folder": str(manifest.folder),
        "sweep": asdict(manifest.sweep),
        "path": child.own_path(),
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
    found = []
    for folder in manifest.attempts(planned):
        with suppress(FileNotFoundError, UserError):  # not begun, or damaged
            if not journal.is_ended(folder):
                found.append(folder)
    return found


def _lost(manifest: Manifest, planned: Planned, outcome: str, reason: str) -> None:
    folders = _open(manifest, planned) or [manifest.next_attempt(planned)]
    _end(manifest, planned, folders[-1], outcome, reason)


def _end(manifest: Manifest, planned: Planned, folder: Path, outcome: str, reason: str) -> None:
    tags = {"sweep": manifest.id, "sweep.cell": str(planned.index)}
    record_failure(planned.cell, folder, tags, outcome, reason)
