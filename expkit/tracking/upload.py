"""From journals to MLflow, in batches, as often as wanted: nothing is sent twice.

Imports MLflow, which takes a second: only the tracker's process and `expkit sync` import this.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from expkit.tracking import address, journal, sent

OWNER = ("host", "namespace", "pid", "started")
BATCH = 1000
"""MLflow's limit on metrics in one request."""
FILLING_S = (1, 2, 4, 8, 16)
"""Pauses while another process fills an empty database."""


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
        run = journal.opening(folder)
        if run is None:
            raise ValueError(f"{folder / journal.FILE} has no beginning")
        uri = uri or run["tracking"]["uri"]
        client, experiment = self._open(uri, run["tracking"])
        with journal.locked(folder):
            state = sent.read(folder)
            if state.get("uri") == uri:
                self._append(client, folder, state)
                return str(state["run_id"])
        known = self._reap(client, experiment, uri)
        with journal.locked(folder):
            state = sent.read(folder)
            if state.get("uri") != uri:
                run_id = known.get(run["id"]) or _create(client, experiment, run)
                state = {"uri": uri, "run_id": run_id, "offset": 0}
                sent.write(folder, state)
            self._append(client, folder, state)
        return str(state["run_id"])

    def _open(self, uri: str, tracking: dict[str, str]) -> tuple[MlflowClient, str]:
        name = tracking["experiment"]
        with _one_at_a_time(uri):
            if uri not in self._clients:
                self._clients[uri] = _client(uri)
            client = self._clients[uri]
            if (uri, name) not in self._experiments:
                local = address.database(uri) is not None
                place = Path(tracking["artifacts"]).as_uri() if local else None
                self._experiments[uri, name] = _experiment(client, name, place)
        return client, self._experiments[uri, name]

    def _append(self, client: MlflowClient, folder: Path, state: dict[str, Any]) -> None:
        run_id = state["run_id"]
        metrics: list[Metric] = []
        tags: dict[str, str] = {}
        status = None
        offset = state["offset"]
        for record, offset in journal.read(folder, state["offset"]):  # noqa: B007
            kind = record["kind"]
            if kind == "run":
                params = [Param(key, str(value)) for key, value in record["params"].items()]
                for start in range(0, len(params), 100):
                    client.log_batch(run_id, params=params[start : start + 100])
            elif kind == "metric":
                metrics += _metrics(record)
            elif kind == "tags":
                tags |= record["tags"]
            elif kind == "artifact":
                client.log_artifact(run_id, str(folder / record["file"]))
            elif kind == "end":
                status = record
        if tags:
            client.log_batch(run_id, tags=[RunTag(key, str(tags[key])) for key in tags])
        for start in range(0, len(metrics), BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH])
        if status is not None:
            client.set_terminated(run_id, status["status"], status["time"])
            state["done"] = True
        state["offset"] = offset
        sent.write(folder, state)

    def _reap(self, client: MlflowClient, experiment: str, uri: str) -> dict[str, str]:
        """End the runs that a dead process of this host left RUNNING, with all they measured.

        Returns the RUNNING runs of this host, journal's id to run's id: a kill may have come
        between the making of a run and the noting of its id.
        """
        host = platform.node()
        query = f"attributes.status = 'RUNNING' AND tags.`expkit.host` = '{host}'"
        known = {}
        for run in client.search_runs([experiment], query):
            tags, run_id = run.data.tags, run.info.run_id
            known[tags["expkit.journal"]] = run_id
            if not journal.is_dead({key: tags[f"expkit.{key}"] for key in OWNER}):
                continue
            folder = Path(tags["expkit.folder"])
            if (folder / journal.FILE).is_file():
                with journal.locked(folder):
                    journal.close_if_orphaned(folder)
                    state = {"uri": uri, "run_id": run_id, "offset": 0} | sent.read(folder)
                    if state["run_id"] == run_id:
                        self._append(client, folder, state)
                        continue
            client.set_tag(run_id, "outcome", "interrupted")
            client.set_terminated(run_id, "KILLED")
        return known


def _metrics(record: dict[str, Any]) -> list[Metric]:
    pairs = zip(record["values"], record["steps"], strict=True)
    return [Metric(record["key"], float(v), record["time"], step) for v, step in pairs]


def _client(uri: str) -> MlflowClient:
    """Of several that open an empty database at once one fills it; the others fail, and wait."""
    if uri.startswith("http"):
        return MlflowClient(uri)
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for pause_s in FILLING_S:
        try:
            return MlflowClient(uri)
        except (IntegrityError, ProgrammingError, MlflowException):
            time.sleep(pause_s)
    return MlflowClient(uri)


def _experiment(client: MlflowClient, name: str, place: str | None) -> str:
    """Its id; it is made here unless it is there, or somebody else was faster."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _create(client: MlflowClient, experiment: str, run: dict[str, Any]) -> str:
    tags = {**run["tags"], "expkit.journal": run["id"]}
    tags |= {f"expkit.{key}": value for key, value in run["owner"].items()}
    return str(client.create_run(experiment, run["time"], tags, run["name"]).info.run_id)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """One process opens a local database at a time: eight at once break its first migration."""
    database = address.database(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
