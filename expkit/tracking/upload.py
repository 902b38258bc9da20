"""Send journals to MLflow in batches. A journal may be sent repeatedly: only news is sent.

It imports MLflow, which takes a second, so only the tracker's process and `expkit sync` import it.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("PGCONNECT_TIMEOUT", "20")

import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from expkit.outcome import Outcome
from expkit.tracking import address, database, journal, sync_state, views
from expkit.tracking.address import one_line

OWNER = ("host", "namespace", "pid", "started")
BATCH = 1000
"""MLflow's limit on the entries of one request."""
OURS = "<!-- expkit writes what follows -->"
DIGEST = 36
"""MLflow's limit on the length of a data set's digest."""
FEW = 100
"""MLflow's limit on the params, and on the tags, among them."""


APART = ("measure.", "tracking.")
"""Parameters that begin so are not sent: nobody compares runs by how they were measured. They are
in the run's `config.yaml`.
"""


class _Telling:
    """A client that calls `progress` after each request that MLflow has answered."""

    def __init__(self, client: MlflowClient, progress: Callable[[], None]) -> None:
        self._client, self._progress = client, progress

    def __getattr__(self, name: str) -> Callable[..., Any]:
        request = getattr(self._client, name)

        def ask(*args: Any, **kwargs: Any) -> Any:
            answer = request(*args, **kwargs)
            self._progress()
            return answer

        return ask


def is_unanswered(error: BaseException | None) -> bool:
    """Whether an upload failed because its server does not answer, so that others would too."""
    while error is not None:
        if isinstance(error, requests.ConnectionError | requests.Timeout):
            return True
        error = error.__cause__ or error.__context__
    return False


class Uploader:
    """Sends journals; keeps one connection per address.

    Args:
        progress: called whenever MLflow has accepted something.
    """

    def __init__(self, progress: Callable[[], None] = lambda: None) -> None:
        self._progress = progress
        self._clients: dict[str, MlflowClient] = {}
        self._experiments: dict[tuple[str, str], str] = {}
        self._reaped: set[tuple[str, str]] = set()
        self._own: set[tuple[str, str]] = set()
        self._views: dict[tuple[str, str], str | None] = {}

    def send(self, folder: Path, uri: str | None = None) -> str:
        """Send what is new in a run's journal and return MLflow's id of the run.

        Args:
            uri: the address, with its password; by default the journal's, which must be trusted.
        """
        run = journal.opening(folder)
        if run is None:
            raise ValueError(f"{folder / journal.FILE} has no beginning")
        uri = address.readable(uri or run["tracking"]["uri"])
        kept = address.without_password(uri)
        client, experiment = self._open(uri, run["tracking"]["experiment"])
        if (uri, experiment) not in self._reaped:
            self._reap(client, experiment, uri)
            self._reaped.add((uri, experiment))
        with journal.locked(folder):
            state = sync_state.read(folder)
            known = state.get("uri") == kept and self._is_its_own(client, state, run)
            news = _read(folder, state["offset"] if known else 0)
            if not known:
                state = _begin(client, experiment, folder, run, kept, state, news)
                self._own.add((state["run_id"], run["id"]))
            _append(client, folder, run, state, news)
        if news.end is not None and "sweep" not in run["tags"]:
            self._view(client, uri, experiment, None)
        return str(state["run_id"])

    def describe(self, uri: str, name: str, sweep: str, text: str) -> None:
        """Show a sweep on an experiment's page: its runs, and a text above them.

        What somebody else has written there stays, above ours.

        Args:
            text: in Markdown; `{experiment}` in it stands for the experiment's id, and `{charts}`
                for the address of its charts.
        """
        uri = address.readable(uri)
        client, experiment = self._open(uri, name)
        text = text.replace("{experiment}", experiment).replace(
            "{charts}", views.opened(experiment)
        )
        before = client.get_experiment(experiment).tags.get("mlflow.note.content", "")
        theirs = before.partition(OURS)[0].rstrip()
        parts = [theirs, f"{OURS}\n{text}"] if theirs else [f"{OURS}\n{text}"]
        client.set_experiment_tag(experiment, "mlflow.note.content", "\n\n".join(parts))
        self._view(client, uri, experiment, sweep)

    def _view(self, client: MlflowClient, uri: str, experiment: str, sweep: str | None) -> None:
        """Have the page open on the runs of this sweep; on all runs, if there is none."""
        if not views.shows(self._views.get((uri, experiment)), sweep):
            self._views[uri, experiment] = tag = views.view(sweep)
            client.set_experiment_tag(experiment, views.TAG, tag)

    def _is_its_own(self, client: MlflowClient, state: dict[str, Any], run: dict[str, Any]) -> bool:
        """Whether the noted MLflow run was made for this journal, as the note may be forged."""
        both = state["run_id"], run["id"]
        if both not in self._own and _journal_id(client.get_run(both[0])) == run["id"]:
            self._own.add(both)
        return both in self._own

    def _open(self, uri: str, name: str) -> tuple[MlflowClient, str]:
        with database.one_at_a_time(uri), database.each_statement(self._progress):
            if uri not in self._clients:
                opened = database.client(uri)
                self._clients[uri] = cast(MlflowClient, _Telling(opened, self._progress))
            client = self._clients[uri]
            if (uri, name) not in self._experiments:
                found = _experiment(client, name, _artifacts(uri, name))
                self._experiments[uri, name] = found.experiment_id
                self._views[uri, found.experiment_id] = found.tags.get(views.TAG)
        return client, self._experiments[uri, name]

    def _reap(self, client: MlflowClient, experiment: str, uri: str) -> None:
        """End the runs that a dead process of this host left RUNNING, with all they measured.

        Anybody may have made the runs of an experiment: one that does not look like ours is left
        alone, and an error with one run is printed and does not stop the others.
        """
        host = platform.node()
        query = f"attributes.status = 'RUNNING' AND tags.`expkit.host` = '{host}'"
        for run in client.search_runs([experiment], query):
            try:
                if _is_abandoned(run):
                    _end(client, run, address.without_password(uri))
            except Exception as error:  # whatever MLflow or a file raises
                said = address.scrub(one_line(error), [uri])
                _tell(f"MLflow's run {run.info.run_id} is still marked as RUNNING: {said}")


def _is_abandoned(run: Run) -> bool:
    """Whether a run names the process that writes it, and that process of this host is gone."""
    tags = run.data.tags
    owner = {key: tags.get(f"expkit.{key}", "") for key in OWNER}
    whole = all(owner.values()) and owner["pid"].isdecimal()
    return whole and journal.is_dead(owner)


def _end(client: MlflowClient, run: Run, kept: str) -> None:
    """End a run, by its journal if that is on this machine and belongs to the run."""
    run_id, folder = run.info.run_id, Path(run.data.tags.get("expkit.folder", ""))
    if folder.is_absolute() and (folder / journal.FILE).is_file():
        with journal.locked(folder):
            opening, state = journal.opening(folder), sync_state.read(folder)
            if "uri" in state:
                noted = (state["uri"], state["run_id"]) == (kept, run_id)
            else:  # a kill came before its id was noted
                noted = state.get("begun") == kept
            if noted and opening and opening["id"] == _journal_id(run):
                journal.close_if_orphaned(folder)
                state = {"uri": kept, "run_id": run_id, "offset": 0} | state
                _append(client, folder, opening, state, _read(folder, state["offset"]))
                return
    client.set_tag(run_id, "outcome", Outcome.INTERRUPTED)
    client.set_terminated(run_id, "KILLED")


def _journal_id(run: Run) -> str | None:
    """Return the id of the journal that a run was made for."""
    found: str | None = run.data.tags.get("expkit.journal")
    return found


def _tell(text: str) -> None:
    """Print a line on stderr, if that can be written to."""
    with suppress(OSError):
        print(f"expkit: {text}", file=sys.stderr, flush=True)


@dataclass
class _News:
    """The content of a journal from a byte on."""

    offset: int
    """The offset of the byte after it."""
    params: list[Param] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    data: str | None = None
    """The hash of the data that the run works with."""
    end: dict[str, Any] | None = None


def _read(folder: Path, offset: int) -> _News:
    news = _News(offset)
    for record, after in journal.read(folder, offset):
        news.offset = after
        kind = record["kind"]
        if kind == "run":
            compared = (item for item in record["params"].items() if not item[0].startswith(APART))
            news.params += [Param(key, str(value)) for key, value in compared]
        elif kind == "metric":
            news.metrics += _metrics(record)
        elif kind == "tags":
            news.tags |= {key: str(value) for key, value in record["tags"].items()}
        elif kind == "facts":
            news.data = record["facts"].get("data")
        elif kind == "artifact":
            news.files.append(record["file"])
        elif kind == "end":
            news.end = record
    return news


def _begin(
    client: MlflowClient,
    experiment: str,
    folder: Path,
    run: dict[str, Any],
    uri: str,
    state: dict[str, Any],
    news: _News,
) -> dict[str, Any]:
    """Create the run in MLflow, or find it if a killed process created it and did not note its id.

    A note written before the creation tells whether to search, which takes longer than creating.
    """
    run_id = _find(client, experiment, run["id"]) if state.get("begun") == uri else None
    if run_id is None:
        sync_state.write(folder, state | {"begun": uri})
        run_id = _create(client, experiment, run, news.tags)
    state = {"uri": uri, "run_id": run_id, "offset": 0}
    sync_state.write(folder, state)
    return state


def _find(client: MlflowClient, experiment: str, journal_id: str) -> str | None:
    found = client.search_runs([experiment], f"tags.`expkit.journal` = '{journal_id}'")
    return str(found[0].info.run_id) if found else None


def _append(
    client: MlflowClient, folder: Path, run: dict[str, Any], state: dict[str, Any], news: _News
) -> None:
    """Send the news in as few requests as MLflow allows; each takes several milliseconds."""
    run_id = state["run_id"]
    params, metrics = news.params, news.metrics
    tags = [RunTag(key, value) for key, value in news.tags.items()]
    while params or tags or metrics:
        room = BATCH - len(params[:FEW]) - len(tags[:FEW])
        client.log_batch(run_id, metrics[:room], params[:FEW], tags[:FEW])
        params, tags, metrics = params[FEW:], tags[FEW:], metrics[room:]
    if news.data:
        about = str(run["params"].get("problem", "")), news.data[:DIGEST], "expkit", run["name"]
        client.log_inputs(run_id, [DatasetInput(Dataset(*about))])
    for name in news.files:
        if file := _inside(folder, name):
            client.log_artifact(run_id, str(file))
        else:
            _tell(f"{folder}: {name!r} is no file inside this folder, so it is not sent")
    if news.end is not None:
        client.set_terminated(run_id, news.end["status"], news.end["time"])
        state["done"] = True
    state["offset"] = news.offset
    sync_state.write(folder, state)


def _inside(folder: Path, name: str) -> Path | None:
    """Return the file of this name; None if it is no file or not inside the run's folder."""
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) and file.is_file() else None


def _artifacts(uri: str, experiment: str) -> str | None:
    """Return the folder for an experiment's files, beside a local database; None for a server."""
    file = address.database(uri)
    if file is None:
        return None
    place = file.parent / "artifacts"
    own = Path(os.path.normpath(place / experiment))
    if not own.is_relative_to(place):
        raise ValueError(f"experiment {experiment!r}: takes a name that leads to no other folder")
    return own.as_uri()


def _metrics(record: dict[str, Any]) -> list[Metric]:
    """Return the values of a line with the times at which they were computed.

    Only finite ones: MLflow would show an infinite loss as the greatest number that it can keep.
    """
    end, values = record["time"], record["values"]
    each = (end - record.get("begun", end)) / max(1, len(values))
    found = []
    for number, (value, step) in enumerate(zip(map(float, values), record["steps"], strict=True)):
        if math.isfinite(value):
            when = round(end - each * (len(values) - 1 - number))
            found.append(Metric(record["key"], value, when, step))
    return found


def _experiment(client: MlflowClient, name: str, place: str | None) -> Experiment:
    """Return an experiment, which is created unless it exists, and opens on its runs."""
    found = client.get_experiment_by_name(name)
    if found is not None and not views.KIND.keys() <= found.tags.keys():
        for key, value in views.KIND.items():
            client.set_experiment_tag(found.experiment_id, key, value)
    if found is None:
        try:
            created = client.create_experiment(name, artifact_location=place, tags=views.KIND)
            found = client.get_experiment(created)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found


def _create(
    client: MlflowClient, experiment: str, run: dict[str, Any], later: Mapping[str, str]
) -> str:
    tags = {**run["tags"], **later, "expkit.journal": run["id"]}
    tags |= {f"expkit.{key}": value for key, value in run["owner"].items()}
    name = tags.get("mlflow.runName", run["name"])
    return str(client.create_run(experiment, run["time"], tags, name).info.run_id)
