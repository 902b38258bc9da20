"""A run's life: whatever ends it, its journal and MLflow say how it ended and what it measured."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from services import free_port, run_tracking_server

from expkit.child import VERSION, Hello, encode
from expkit.config import compose_cell
from expkit.record.writing import opening
from expkit.tracking import address, journal
from expkit.tracking.journal import Journal
from expkit.tracking.tracker import Allow, Send

if TYPE_CHECKING:
    from conftest import Done, Expkit

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # MLflow leaves connections open
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

DEADLINE_S = 60.0
TIMES = {
    "time/median_seconds",
    "time/low_seconds",
    "time/high_seconds",
    "time/setup_seconds",
    "time/first_step_seconds",
    "time/warmup_seconds",
    "time/steps_per_second",
    "time/wall_seconds",
    "time/step_seconds",
}
SHORT = ("steps=50", "log_every=10", "measure.settle_s=0")
LONG = ("problem.n=20000", "measure.repeats_min=100000", "measure.repeats_max=100000")
LONG_FIRST_REPEAT = ("problem.n=200000", "steps=1000000", "log_every=10")
"""What is measured before the end is losses only."""

Points = dict[str, list[tuple[int, float]]]
"""(step, value) of every metric."""


class Kept(NamedTuple):
    """A run as MLflow has it."""

    id: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: Points
    artifacts: set[str]


# How a run ends by itself


def test_a_good_run_is_whole_in_mlflow(expkit: Expkit) -> None:
    repeats = ("measure.repeats_min=7", "measure.repeats_max=7")
    done = expkit("problem=sine", "steps=250", "log_every=100", "seed=3", *repeats)
    assert (done.status, done.err) == (0, "")
    [run] = in_mlflow(expkit)
    assert run.status == "FINISHED"
    expected = {"problem.n": "2000", "steps": "250", "seed": "3", "backend.dtype": "float64"}
    assert expected.items() <= run.params.items()
    assert float(run.params["optimizer.lr"]) > 0
    tags = {"problem": "sine", "backend": "numpy", "optimizer": "sgd", "outcome": "ok"}
    assert (tags | {"device": "cpu", "dtype": "float64"}).items() <= run.tags.items()
    assert run.tags["cell"]
    metrics = run.metrics
    assert TIMES | {"train/loss", "final/loss"} <= metrics.keys()
    assert steps(metrics["train/loss"]) == list(range(250))
    assert values(metrics["final/loss"]) == values(metrics["train/loss"])[-1:]
    assert steps(metrics["time/wall_seconds"]) == list(range(7))
    assert steps(metrics["time/step_seconds"]) == [99, 199, 249]
    walls = values(metrics["time/wall_seconds"])
    [middle] = values(metrics["time/median_seconds"])
    [low], [high] = values(metrics["time/low_seconds"]), values(metrics["time/high_seconds"])
    rounds = [walls[at : at + 2] for at in range(0, 7, 2)]
    assert middle == pytest.approx(median(median(repeats) for repeats in rounds))
    assert min(walls) <= low <= middle <= high <= max(walls)
    assert values(metrics["time/steps_per_second"]) == pytest.approx([250 / middle])
    assert all(value > 0 for key in TIMES for value in values(metrics[key]))
    assert {"config.yaml", "environment.json", "loss.png", "fit.png"} <= run.artifacts
    assert metrics == in_journal(only(expkit.folders()))
    assert expkit.processes() == []


def test_a_cell_is_what_is_computed_not_how_long_it_is_measured(expkit: Expkit) -> None:
    for words in ((), ("measure.repeats_min=3",), ("seed=1",), ("optimizer=adam",)):
        assert expkit("tracking=none", *SHORT, *words).status == 0
    opening = [next(iter(lines(folder))) for folder in expkit.folders()]
    first, measured_shorter, *others = [record["tags"]["cell"] for record in opening]
    assert measured_shorter == first
    assert len({first, *others}) == 3


def test_a_diverging_run_gives_no_time(expkit: Expkit) -> None:
    done = expkit("problem=sine", "optimizer.lr=1")
    assert done.status == 1
    assert done.err == ""
    [run] = in_mlflow(expkit)
    assert run.tags["outcome"] == "diverged"
    losses = in_journal(only(expkit.folders()))["train/loss"]  # MLflow's sqlite has no infinity
    first_bad = next(step for step, loss in losses if not math.isfinite(loss))
    assert first_bad > 0
    assert steps(losses)[:first_bad] == list(range(first_bad))
    assert run.metrics["train/loss"][:first_bad] == losses[:first_bad]
    assert re.search(rf"\b{first_bad}\b", done.out + done.err)
    assert run.tags["first_bad_step"] == str(first_bad)
    assert [key for key in run.metrics if key.startswith("time/")] == []


RAISES = """
    from dataclasses import dataclass
    from typing import Any

    from expkit.authors import StepProgram, manual
    from expkit_plugins.numpy.backend import NumpyBackend

    class Raising(StepProgram):
        placed = 0

        def reallocate(self) -> None:
            self.placed += 1  # a fourth time for the first repeat
            super().reallocate()

        def advance(self, n: int) -> None:
            super().advance(n)
            if self.is_lost():
                raise RuntimeError("the device is gone\\nand does not come back")

        def is_lost(self) -> bool:
            return self.placed > 3 and len(super().losses()) > 20

    class Broken(Raising):
        def losses(self, start: int = 0) -> Any:
            if self.is_lost():
                raise ValueError("nothing can be read from it")
            return super().losses(start)

    @dataclass(frozen=True)
    class Backend(NumpyBackend):
        kind: str = "raising"

        def build(self, workload: Any) -> Any:
            if self.kind == "unbuildable":
                raise RuntimeError("the device is gone")
            program = {"raising": Raising, "broken": Broken}[self.kind]
            return program(self, workload, manual(self.xp))
"""


@pytest.mark.parametrize("kind", ["raising", "broken", "unbuildable"])
def test_an_exception_inside_a_run_is_kept(expkit: Expkit, kind: str) -> None:
    option = "_target_: broken_plugin.Backend\nkind: raising\n"
    expkit.plugin({"__init__.py": RAISES, "conf/backend/raising.yaml": option})
    done = expkit("backend=raising", f"backend.kind={kind}", *SHORT)
    assert done.status == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert "the device is gone" in done.err
    folder = only(expkit.folders())
    assert str(folder) in done.err
    report = (folder / "error.txt").read_text()
    assert report.startswith("Traceback")
    assert "RuntimeError: the device is gone" in report
    [run] = in_mlflow(expkit)
    assert (run.status, run.tags["outcome"]) == ("FAILED", "failed")
    assert "error.txt" in run.artifacts
    assert "time/median_seconds" not in run.metrics
    if kind == "raising":
        assert steps(run.metrics["train/loss"])[:20] == list(range(20))
    assert run.metrics == in_journal(folder)
    assert expkit.processes() == []


# How it is ended by others


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("words", "key"),
    [(LONG, "time/wall_seconds"), (LONG_FIRST_REPEAT, "train/loss")],
    ids=["in its repeats", "in its first repeat"],
)
def test_an_interrupted_run_keeps_what_it_measured(
    expkit: Expkit, number: signal.Signals, words: tuple[str, ...], key: str
) -> None:
    process = expkit.start(*words)
    before = await_metric(expkit, key)
    os.killpg(process.pid, number)
    done = expkit.end(process)
    assert done.status == 128 + number
    assert len(done.err.splitlines()) == 1, done.err
    assert "Traceback" not in done.out + done.err
    [run] = in_mlflow(expkit)
    assert (run.status, run.tags["outcome"]) == ("KILLED", "interrupted")
    assert steps(run.metrics["train/loss"]) == list(range(len(run.metrics["train/loss"])))
    assert set(before[key]) <= set(run.metrics[key])
    assert run.metrics == in_journal(only(expkit.folders()))
    assert expkit.processes() == []


def test_two_signals_at_once_end_a_run_too(expkit: Expkit) -> None:
    process = expkit.start(*LONG)
    await_metric(expkit, "time/wall_seconds")
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        os.killpg(process.pid, number)  # it wakes to both
    assert process.wait(DEADLINE_S) in (130, 143)
    done = expkit.end(process)
    assert len(done.err.splitlines()) == 1, done.err
    [run] = in_mlflow(expkit)
    was_killed(run, only(expkit.folders()))
    assert expkit.processes() == []


def test_a_killed_run_is_ended_by_its_tracker(expkit: Expkit) -> None:
    process = expkit.start(*LONG)
    await_metric(expkit, "time/wall_seconds")
    assert expkit(*SHORT).status == 0
    statuses = {run.params["problem.n"]: run.status for run in in_mlflow(expkit)}
    assert statuses == {"20000": "RUNNING", "2000": "FINISHED"}, "who lives is left alone"
    process.kill()
    process.wait()
    until(lambda: not expkit.processes(), "the tracker ends")
    [run] = (run for run in in_mlflow(expkit) if run.params["problem.n"] == "20000")
    was_killed(run, expkit.folders()[0])
    expkit.end(process)


def test_a_run_killed_with_its_tracker_is_ended_by_the_next(expkit: Expkit) -> None:
    process = expkit.start(*LONG)
    await_metric(expkit, "time/wall_seconds")
    [before] = in_mlflow(expkit)
    for pid in sorted(expkit.processes(), reverse=True):  # the tracker first: it is stopped
        os.kill(pid, signal.SIGKILL)
    expkit.end(process)
    until(lambda: not expkit.processes(), "both are gone")
    assert expkit(*SHORT).status == 0
    first, second = sorted(in_mlflow(expkit), key=lambda run: run.id != before.id)
    was_killed(first, expkit.folders()[0])
    assert (second.status, second.tags["outcome"]) == ("FINISHED", "ok")
    assert expkit.processes() == []


def was_killed(run: Kept, folder: Path) -> None:
    """The law of a run that could not end itself."""
    assert (run.status, run.tags["outcome"]) == ("KILLED", "interrupted")
    assert len(run.metrics["time/wall_seconds"]) >= 1
    assert steps(run.metrics["train/loss"]) == list(range(2000))
    assert run.metrics == in_journal(folder)


# Where it is kept


def test_a_server_gets_a_run_at_once_or_later(expkit: Expkit) -> None:
    from expkit.tracking.database import client

    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    words = refused(expkit, uri)
    folder = only(expkit.folders())
    database = address.local(expkit.place)
    client(database)  # made in less time than the server takes
    with run_tracking_server(database, port):
        first = expkit(*words)
        assert (first.status, first.err) == (0, ""), first
        [run] = in_mlflow(expkit, uri)
        assert (run.status, run.tags["outcome"]) == ("FINISHED", "ok")
        assert TIMES | {"train/loss", "final/loss"} <= run.metrics.keys()
        assert run.metrics == in_journal(folder)
        assert {"config.yaml", "environment.json", "loss.png", "fit.png"} <= run.artifacts
        for again in (words, ["sync"]):
            second = expkit(*again)
            assert (second.status, second.err) == (0, ""), second
            assert run.id not in second.out, "it is not sent again"
        assert in_mlflow(expkit, uri) == [run]
        live = expkit(f"tracking.uri={uri}", *SHORT)
        assert (live.status, live.err) == (0, ""), live
        assert [each.status for each in in_mlflow(expkit, uri)] == ["FINISHED"] * 2


def test_the_command_that_sends_later_can_be_pasted(expkit: Expkit) -> None:
    expkit.outputs = expkit.place / "a folder's name"
    expkit.env["EXPKIT_OUTPUTS"] = str(expkit.outputs)
    words = refused(expkit, f"http://127.0.0.1:{free_port()}")
    assert words == ["sync", str(only(expkit.folders()))]


def test_a_server_that_does_not_answer_is_waited_for_once(expkit: Expkit) -> None:
    expkit.env |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}
    run = ("problem=linear", "seed=1,2,3", "sweep.timing=false", "tracking=none")
    assert expkit("-m", *run, "steps=20").status == 0
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        done = expkit("sync", "--uri", uri)
    first, last = done.err.splitlines()
    assert (done.status, f"no server answers at {uri}: timed out" in first) == (1, True), done
    assert last == f"expkit: not sent: 2 more runs; {uri} does not answer"


def refused(expkit: Expkit, uri: str) -> list[str]:
    """Measure a run that its server refuses; returns the command that sends it later."""
    expkit.env["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    done = expkit(f"tracking.uri={uri}", *SHORT)
    assert done.status == 1
    assert "wall time" in done.out
    assert len(done.err.splitlines()) == 1, done.err
    assert f"not in MLflow (no server answers at {uri}: Connection refused)" in done.err
    later = re.search(r"expkit (sync\b.*)$", done.err.strip())
    assert later, done.err
    return shlex.split(later[1])


def test_four_runs_at_once_in_a_new_folder(expkit: Expkit) -> None:
    runs = [expkit.start(*SHORT, f"seed={seed}") for seed in range(4)]
    for done in [expkit.end(run) for run in runs]:
        assert (done.status, done.err) == (0, "")
    kept = in_mlflow(expkit)
    assert [run.status for run in kept] == ["FINISHED"] * 4
    assert {run.params["seed"] for run in kept} == set(map(str, range(4)))
    assert len(expkit.folders()) == 4
    assert expkit.processes() == []


def test_without_mlflow_the_journal_is_complete(expkit: Expkit) -> None:
    done = loaded_by(expkit, "from expkit.cli import main; main(['tracking=none', 'steps=250'])")
    assert not {"mlflow", "torch", "jax"} & set(done.out.split()), done
    assert not (expkit.outputs / "mlflow.db").exists()
    folder = only(expkit.folders())
    records = list(lines(folder))
    assert [record["kind"] for record in records[:1]] == ["run"]
    assert (records[-1]["kind"], records[-1]["status"]) == ("end", "FINISHED")
    assert records[0]["params"]["problem.n"] == 2000
    tags: dict[str, str] = {}
    for record in records:
        tags |= record.get("tags", {})
    assert {"problem": "sine", "backend": "numpy", "outcome": "ok"}.items() <= tags.items()
    metrics = in_journal(folder)
    assert TIMES | {"train/loss", "final/loss"} <= metrics.keys()
    assert steps(metrics["train/loss"]) == list(range(250))
    for record in records:
        if record["kind"] == "artifact":
            assert (folder / record["file"]).is_file()


def test_starting_up_imports_no_heavy_library(expkit: Expkit) -> None:
    start = "import expkit.cli, expkit.conduct, expkit.config; expkit.config.register()"
    done = loaded_by(expkit, start)
    assert not {"mlflow", "torch", "jax", "matplotlib"} & set(done.out.split()), done


@pytest.mark.parametrize("room", [10, 20_000], ids=["at once", "in the middle"])
def test_a_disk_that_is_full_is_one_line(expkit: Expkit, room: int) -> None:
    """A limit on a file's size fails a write as a full disk does, and needs no root."""
    code = f"""
        import resource, sys
        resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
        from expkit.cli import main
        sys.exit(main(["tracking=none", "steps=3000"]))
    """
    done = expkit.python(code)
    assert done.status == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert "File too large" in done.err
    assert expkit("sync").status == 0, "what was kept can be sent"


# A journal torn by a kill


def test_a_torn_journal_is_sent_up_to_the_tear(expkit: Expkit) -> None:
    tears = ['"run"', '"time/wall_seconds"', '"outcome": "ok"', '"end"', "no tear"]
    for _ in tears:
        assert expkit("tracking=none", *SHORT).status == 0
    held = []
    for folder, torn in zip(expkit.folders(), tears, strict=True):
        tear(folder / "journal.jsonl", torn)
        held.append(in_journal(folder))
    everything = ("sync", "--uri", address.local(expkit.outputs))
    done = expkit(*everything)
    assert "Traceback" not in done.err
    assert not any(str(folder) in done.err for folder in expkit.folders()[1:]), done
    sent = {run.tags["expkit.folder"]: run for run in in_mlflow(expkit)}
    runs = [sent.get(str(folder)) for folder in expkit.folders()]
    assert runs[0] is None, "nothing is known of it"
    for run, metrics in zip(runs[1:], held[1:], strict=True):
        assert run
        assert run.metrics == metrics
    ends = [(run.status, run.tags["outcome"]) for run in runs if run]
    assert ends == [("KILLED", "interrupted")] * 3 + [("FINISHED", "ok")]
    assert [in_journal(folder) for folder in expkit.folders()] == held
    again = expkit(*everything).out
    assert not any(run.id in again for run in runs if run)


def tear(file: Path, within: str) -> None:
    """Cut the file in the middle of the last line with this text."""
    whole = file.read_bytes().splitlines(keepends=True)
    for n in reversed(range(len(whole))):
        if within.encode() in whole[n]:
            file.write_bytes(b"".join(whole[:n]) + whole[n][: len(whole[n]) // 2])
            return


def test_a_journal_can_be_read_wherever_it_is_torn(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    writer = journal.Journal(tmp_path / "whole")
    about = {"owner": journal.owner(), "tracking": {}, "params": {}, "tags": {}}
    writer.write("run", id="a", name="größe · √2", **about)
    writer.metric("train/loss", [1.5, math.nan, -math.inf])
    writer.tags({"gerät": "größe · √2"})
    writer.end("FINISHED")
    whole = (tmp_path / "whole" / journal.FILE).read_bytes()
    for cut in range(len(whole) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / journal.FILE).write_bytes(whole[:cut])
        kinds = ["run", "metric", "tags", "end"][: whole[:cut].count(b"\n")]
        assert [record["kind"] for record, _ in journal.read(folder)] == kinds
        journal.Journal(folder).end("KILLED")
        found = [record["kind"] for record, _ in journal.read(folder)]
        at_the_end = whole[cut : cut + 1] == b"\n"  # only the line's end was torn off
        next_kind = ["run", "metric", "tags", "end"][len(kinds) : len(kinds) + at_the_end]
        assert found == [*kinds, *next_kind, "end"]


# What the tests above share


def only(folders: list[Path]) -> Path:
    [folder] = folders
    return folder


def steps(points: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in points]


def values(points: list[tuple[int, float]]) -> list[float]:
    return [value for _, value in points]


def until(holds: Callable[[], object], what: str) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a run's journal."""
    for line in (folder / "journal.jsonl").read_bytes().splitlines(keepends=True):
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # torn
        if line.endswith(b"\n"):
            yield record


def in_journal(folder: Path) -> Points:
    """The metrics of a run's journal."""
    metrics: Points = {}
    for record in lines(folder):
        if record["kind"] == "metric":
            points = zip(record["steps"], map(float, record["values"]), strict=True)
            metrics.setdefault(record["key"], []).extend(points)
    return metrics


def await_metric(expkit: Expkit, key: str) -> Points:
    """Wait until the one run has measured this; returns all that it has measured."""
    until(lambda: any(key in in_journal(folder) for folder in expkit.folders()), key)
    return in_journal(only(expkit.folders()))


def in_mlflow(expkit: Expkit, uri: str | None = None) -> list[Kept]:
    """All runs in MLflow. Not to be called while the first of them makes the database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        client = MlflowClient(uri or f"sqlite:///{expkit.outputs / 'mlflow.db'}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return [_kept(client, run) for run in client.search_runs(experiments)]


def _kept(client: Any, run: Any) -> Kept:
    metrics: Points = {}
    for key in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, key)
        metrics[key] = sorted((point.step, point.value) for point in history)
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    id, status = run.info.run_id, run.info.status
    return Kept(id, status, run.data.params, run.data.tags, metrics, artifacts)


def loaded_by(expkit: Expkit, code: str) -> Done:
    """Run code in a fresh interpreter; the last line of its output names what it imported."""
    last = "print(*{name.partition('.')[0] for name in sys.modules})"
    done = expkit.python(f"import sys; {code}; {last}")
    assert (done.status, done.err) == (0, "")
    assert "expkit" in done.out.splitlines()[-1].split()
    return done._replace(out=done.out.splitlines()[-1])


def test_a_tracker_whose_answer_nobody_reads_ends_the_run(tmp_path: Path) -> None:
    """The parent was killed between its request and the answer."""
    cell = compose_cell(f"outputs={tmp_path}")
    folder = tmp_path / "run"
    folder.mkdir()
    opened = Journal(folder)
    opened.write("run", **opening(cell, folder, {}, {}))
    opened._file.close()
    database = address.local(tmp_path)
    asked = (Hello(VERSION, []), Allow(database, database), Send(str(folder), last=False))
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.run(
        [
            sys.executable,
            "-m",
            "expkit.child",
            "expkit.tracking.sender",
            str(os.getpid()),
            "outlives",
        ],
        env={**os.environ, "EXPKIT_OUTPUTS": str(tmp_path)},
        input="".join(encode(message).decode() for message in asked),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (child.returncode, child.stderr) == (0, "")
    assert journal.is_ended(folder)
