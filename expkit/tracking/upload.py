"""From journals to MLflow, in batches, as often as wanted: nothing is sent twice.

Imports MLflow, which takes a second: only the tracker's process and `expkit sync` import this.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from expkit.tracking import journal

STATE = "mlflow.json"
BATCH = 1000
"""MLflow's limit on metrics in one request."""


class Uploader:
    """Sends journals; keeps one connection an address."""

    def __init__(self) -> None:
        self._clients: dict[str, MlflowClient] = {}
        self._experiments: dict[tuple[str, str], str] = {}

    def send(self, folder: Path, uri: str | None = None) -> str:
        """Send what is new in a run's journal and return MLflow's id of the run.

        Args:
            uri: another address than the one the run was made for.
        """
        state = _state(folder)
        run = next(record for record, _ in journal.read(folder) if record["kind"] == "run")
        uri = uri or run["tracking"]["uri"]
        if state.get("uri") != uri:
            state = {"uri": uri, "offset": 0}
        client, experiment = self._open(uri, run["tracking"])
        if "run_id" not in state:
            state["run_id"] = _find_or_create(client, experiment, run)
            _save(folder, state)
            self._reap(client, experiment, uri)
        self._append(client, folder, state)
        return str(state["run_id"])

    def _open(self, uri: str, tracking: dict[str, str]) -> tuple[MlflowClient, str]:
        name = tracking["experiment"]
        with _locked(uri):
            if uri not in self._clients:
                self._clients[uri] = MlflowClient(uri)
            client = self._clients[uri]
            if (uri, name) not in self._experiments:
                local = uri.startswith("sqlite:")
                place = Path(tracking["artifacts"]).as_uri() if local else None
                found = client.get_experiment_by_name(name)
                self._experiments[uri, name] = (
                    found.experiment_id
                    if found
                    else client.create_experiment(name, artifact_location=place)
                )
        return client, self._experiments[uri, name]

    def _append(self, client: MlflowClient, folder: Path, state: dict[str, Any]) -> None:
        run_id = state["run_id"]
        metrics: list[Metric] = []
        status = None
        offset = state["offset"]
        for record, offset in journal.read(folder, state["offset"]):  # noqa: B007
            kind = record["kind"]
            if kind == "metric":
                metrics += _metrics(record)
            elif kind == "tags":
                tags = [RunTag(key, str(value)) for key, value in record["tags"].items()]
                client.log_batch(run_id, tags=tags)
            elif kind == "artifact":
                client.log_artifact(run_id, str(folder / record["file"]))
            elif kind == "end":
                status = record
        for start in range(0, len(metrics), BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH])
        if status is not None:
            client.set_terminated(run_id, status["status"], status["time"])
            state["done"] = True
        state["offset"] = offset
        _save(folder, state)

    def _reap(self, client: MlflowClient, experiment: str, uri: str) -> None:
        """End the runs that a dead process of this host left RUNNING, with all they measured."""
        host = platform.node()
        query = f"attributes.status = 'RUNNING' AND tags.`expkit.host` = '{host}'"
        for run in client.search_runs([experiment], query):
            tags = run.data.tags
            owner = {key: tags[f"expkit.{key}"] for key in ("host", "pid", "started")}
            if not journal.is_dead(owner):
                continue
            folder = Path(tags["expkit.folder"])
            if (folder / journal.FILE).is_file() and journal.close_if_orphaned(folder):
                state = _state(folder)
                if state.get("run_id") == run.info.run_id:
                    self._append(client, folder, state)
                    continue
            client.set_tag(run.info.run_id, "outcome", "interrupted")
            client.set_terminated(run.info.run_id, "KILLED")


def pending(runs: Path) -> Iterator[Path]:
    """Folders below `runs` whose journal is not all in MLflow."""
    for file in sorted(runs.rglob(journal.FILE)):
        if not _state(file.parent).get("done"):
            yield file.parent


def _metrics(record: dict[str, Any]) -> list[Metric]:
    pairs = zip(record["values"], record["steps"], strict=True)
    return [Metric(record["key"], float(v), record["time"], step) for v, step in pairs]


def _find_or_create(client: MlflowClient, experiment: str, run: dict[str, Any]) -> str:
    """The run of this journal; found again where a kill came before its id was noted."""
    found = client.search_runs([experiment], f"tags.`expkit.journal` = '{run['id']}'")
    if found:
        run_id = str(found[0].info.run_id)
    else:
        tags = {**run["tags"], "expkit.journal": run["id"]}
        tags |= {f"expkit.{key}": value for key, value in run["owner"].items()}
        run_id = str(client.create_run(experiment, run["time"], tags, run["name"]).info.run_id)
    params = [Param(key, str(value)) for key, value in run["params"].items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    return run_id


@contextmanager
def _locked(uri: str) -> Iterator[None]:
    """One process at a time opens a local database: eight at once break its first migration."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return state


def _save(folder: Path, state: dict[str, Any]) -> None:
    fresh = folder / f"{STATE}.new"
    fresh.write_text(json.dumps(state))
    fresh.replace(folder / STATE)
