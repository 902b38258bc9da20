"""What others wrote is not executed, obeyed or believed, and a password is kept nowhere."""

from __future__ import annotations

import base64
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from expkit.config import Sweep, compose_cell
from expkit.errors import ConfigError, PluginError
from expkit.record import writing
from expkit.sweeps.manifest import Manifest, Planned
from expkit.tracking import address, journal, known, sync_state
from expkit.tracking.journal import Journal

if TYPE_CHECKING:
    from conftest import Done, Expkit
    from mlflow import MlflowClient

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow, in this process
FAST = (
    "problem=linear",
    "steps=20",
    "measure.repeats_min=2",
    "measure.budget_s=0",
    "measure.warmup=0",
    "tracking.pictures=false",
)
DEAD = {"host": journal.owner()["host"], "namespace": journal.owner()["namespace"]}
DEAD |= {"pid": str(2**22 + 1), "started": "1"}
"""A process of this host that is gone."""

# Files in the current folder

NAMES = ("random", "json", "mlflow", "torch", "numpy", "tempfile", "socket", "uvicorn", "flask")


def hostile(expkit: Expkit) -> Path:
    """Fill the current folder with modules that leave a mark; returns where."""
    marks = expkit.place / "marks"
    for name in NAMES:
        text = f"import sys\nopen({str(marks)!r}, 'a').write(f'{name}: {{sys.argv}}\\n')\n"
        (expkit.place / f"{name}.py").write_text(text + "raise ImportError\n")
    return marks


def with_database(expkit: Expkit, empty: Path) -> None:
    expkit.outputs.mkdir()
    shutil.copy(empty, expkit.outputs / "mlflow.db")


def marked(marks: Path) -> str:
    return marks.read_text() if marks.exists() else ""


CHILDREN = {
    "MLflow": FAST,
    "processes": (*FAST, "tracking=none", "measure.processes=6"),
    "a timed sweep": ("-m", *FAST, "tracking=none", "backend=numpy,torch"),
    "an untimed sweep": ("-m", *FAST, "tracking=none", "sweep.timing=false", "seed=1,2"),
}


@pytest.mark.parametrize("words", CHILDREN.values(), ids=CHILDREN)
def test_no_child_runs_a_file_of_the_current_folder(
    expkit: Expkit, empty: Path, words: tuple[str, ...]
) -> None:
    with_database(expkit, empty)
    marks = hostile(expkit)
    done = expkit.end(expkit._start("-P", "-m", "expkit", *words))
    assert (done.status, marked(marks)) == (0, ""), done


def test_nor_does_the_parent(expkit: Expkit) -> None:
    marks = hostile(expkit)
    sides = ("backend=numpy", "backend=numpy backend.threads=1", "measure=quick")
    done = expkit("compare", *sides, *FAST, "tracking=none")
    assert (done.status in (0, 1, 3, 4), marked(marks)) == (True, ""), done


def test_nor_does_mlflows_server_which_ends_with_its_command(expkit: Expkit, empty: Path) -> None:
    with_database(expkit, empty)
    marks = hostile(expkit)
    port = str(free_port())
    server = expkit._start("-P", "-m", "expkit", "ui", "--port", port)
    assert server.stdout is not None
    assert any(line.startswith("http://127.0.0.1") for line in server.stdout), server.stderr
    with urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        assert answer.status == 200
    server.send_signal(signal.SIGTERM)
    assert (server.wait(20), expkit.processes()) == (143, [])
    expkit.end(server)
    assert marked(marks) == ""


MINE = """
    from dataclasses import dataclass
    from expkit.problems.linear import Linear

    @dataclass(frozen=True)
    class Mine(Linear): ...
"""


@pytest.mark.parametrize(
    "words", [("measure.processes=6",), ("seed=1,2", "-m")], ids=["processes", "sweep"]
)
def test_a_persons_own_module_is_found_by_every_child(
    expkit: Expkit, words: tuple[str, ...]
) -> None:
    (expkit.place / "mine.py").write_text(dedent(MINE))
    mine = ("problem._target_=mine.Mine", "allow_target=true")
    done = expkit(*words[1:], *FAST, "tracking=none", *mine, *words[:1])
    assert done.status == 0, done


# Classes that a word or a file names


def write_evil(folder: Path) -> Path:
    """A module that leaves a mark where it is imported; returns where."""
    mark = folder / "mark"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    return mark


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return write_evil(tmp_path)


@pytest.mark.parametrize("group", ["problem", "optimizer", "backend"])
@pytest.mark.parametrize("target", ["os.system", "evil.Evil", "expkit.problems.sine.np.load"])
def test_a_class_that_no_installed_option_names_is_not_loaded(
    evil: Path, group: str, target: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{group}._target_: got .* allow_target=true"):
        compose_cell(f"{group}._target_={target}")
    assert not evil.exists()


def test_a_person_may_have_any_class_loaded(evil: Path) -> None:
    with pytest.raises(PluginError):  # there is none in the module
        compose_cell("problem._target_=evil.Evil", "allow_target=true")
    assert evil.exists()


def test_an_option_of_another_group_is_not_loaded() -> None:
    target = "expkit_plugins.torch.backend.TorchBackend"
    assert compose_cell("backend=torch").frozen["config"]["backend"]["_target_"] == target
    with pytest.raises(ConfigError, match=r"problem._target_"):
        compose_cell(f"problem._target_={target}")


def planned(expkit: Expkit, change: dict[str, dict[str, Any]]) -> Path:
    """A sweep of one cell that somebody planned, with these values in its file."""
    cell = compose_cell(*FAST, f"outputs={expkit.outputs}", "tracking=none")
    config = {group: cell.frozen["config"][group] | values for group, values in change.items()}
    frozen = {**cell.frozen, "config": {**cell.frozen["config"], **config}}
    folder = expkit.outputs / "sweeps/2026-01-31/12-00-00-000000"
    whole = Planned(0, cell.hash, "numpy", 0, None, frozen)
    Manifest(folder, list(FAST), Sweep(), ["linear"], [whole]).save()
    return folder


def test_resume_loads_no_class_that_a_sweeps_file_names(expkit: Expkit) -> None:
    mark = write_evil(expkit.place)
    folder = planned(expkit, {"problem": {"_target_": "evil.Evil"}})
    done = expkit("resume", str(folder))
    assert (done.status, mark.exists()) == (2, False), done
    assert "got 'evil.Evil'" in done.err
    assert "--allow-target" in done.err
    expkit("resume", str(folder), "--allow-target")
    assert mark.exists()


# What an experiment and a journal say


@dataclass
class Store:
    """An outputs folder with a database."""

    outputs: Path
    client: MlflowClient

    def run(self, name: str, **tags: str) -> tuple[Path, dict[str, Any]]:
        """A journal in a folder of its own, that has begun and not ended."""
        folder = self.outputs / "runs" / name
        folder.mkdir(parents=True)
        opened = Journal(folder)
        opened.write(
            "run", **writing.opening(compose_cell(f"outputs={self.outputs}"), folder, tags, {})
        )
        opened._file.close()
        opening = journal.opening(folder)
        assert opening is not None
        return folder, opening

    def marked(self, **tags: str) -> str:
        """A run that is said to be of a dead process of this host."""
        owner = {f"expkit.{key}": value for key, value in DEAD.items()}
        given = {k: v for k, v in (owner | tags).items() if v}
        return str(self.client.create_run("1", tags=given).info.run_id)

    def artifacts(self, run_id: str) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run_id)}

    def status(self, run_id: str) -> str:
        return str(self.client.get_run(run_id).info.status)


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the experiment, made once."""
    from expkit.tracking.upload import Uploader

    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    Uploader()._open(address.of(database), *EXPERIMENT)
    return database


EXPERIMENT: tuple[Any, ...] = ("expkit",)


@pytest.fixture
def store(tmp_path: Path, empty: Path) -> Store:
    from mlflow import MlflowClient

    outputs = tmp_path / "outputs"
    outputs.mkdir()
    shutil.copy(empty, outputs / "mlflow.db")
    return Store(outputs, MlflowClient(address.local(outputs)))


def send(store: Store, folder: Path) -> str:
    from expkit.tracking.upload import Uploader

    return Uploader().send(folder, address.local(store.outputs))


ODD = {
    "nothing but the host": {"expkit.namespace": "", "expkit.pid": "", "expkit.started": ""},
    "no namespace": {"expkit.namespace": ""},
    "no number": {"expkit.pid": "me"},
    "no start": {"expkit.started": ""},
}


@pytest.mark.parametrize("tags", ODD.values(), ids=ODD)
def test_an_odd_run_stops_no_upload_and_is_left_alone(store: Store, tags: dict[str, str]) -> None:
    odd = store.marked(**tags)
    folder, _ = store.run("mine")
    assert store.status(send(store, folder)) == "RUNNING"
    assert store.status(odd) == "RUNNING"


def test_a_run_that_cannot_be_ended_stops_no_upload(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    other, opening = store.run("other")
    (other / journal.FILE).write_text(json.dumps(opening | {"id": "x"}) + "\n")
    (other / sync_state.FILE).mkdir()
    tags = {"expkit.folder": str(other), "expkit.journal": "x"}
    odd = store.marked(**tags)
    folder, _ = store.run("mine")
    assert store.status(send(store, folder)) == "RUNNING"
    assert capfd.readouterr().err.count(odd) == 1


def test_a_run_is_ended_by_its_own_journal_alone(store: Store) -> None:
    """A run that names another's folder, and even that journal's id, gets nothing of it."""
    folder, opening = store.run("mine")
    run_id = send(store, folder)
    private, said = store.run("private")
    (private / "notes.txt").write_text("private")
    whole = Journal(private)
    whole.artifact("notes.txt")
    whole._file.close()
    forged = [
        store.marked(**{"expkit.folder": str(private)}),
        store.marked(**{"expkit.folder": str(private), "expkit.journal": said["id"]}),
        store.marked(**{"expkit.folder": str(folder), "expkit.journal": opening["id"]}),
        store.marked(**{"expkit.folder": "."}),
    ]
    before = (private / journal.FILE).read_bytes()
    again, _ = store.run("again")
    send(store, again)
    assert [store.status(run) for run in forged] == ["KILLED"] * 4
    assert [store.artifacts(run) for run in forged] == [set()] * 4
    assert store.client.get_run(forged[2]).data.params == {}
    assert (private / journal.FILE).read_bytes() == before
    assert store.status(run_id) == "RUNNING"


def test_no_file_outside_of_a_runs_folder_is_sent(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = store.run("mine")
    secret = folder.parent / "secret_key"
    secret.write_text("secret")
    (folder / "linked").symlink_to(secret)
    (folder / "folder").symlink_to(folder.parent)
    (folder / "good.txt").write_text("good")
    (folder / "inner").symlink_to(folder / "good.txt")
    names = ["../secret_key", str(secret), "linked", "folder/secret_key", "gone", "inner"]
    whole = Journal(folder)
    for name in [*names, "good.txt"]:
        whole.artifact(name)
    whole.end("FINISHED")
    run_id = send(store, folder)
    assert store.artifacts(run_id) == {"good.txt"}
    assert store.status(run_id) == "FINISHED"
    told = capfd.readouterr().err
    assert all(repr(name) in told for name in names[:5])


def test_a_journal_is_not_sent_into_the_run_of_another(store: Store) -> None:
    """`mlflow.json` beside it says whose run it is, and anybody may have written that."""
    folder, _ = store.run("mine")
    run_id = send(store, folder)
    foreign, _ = store.run("foreign")
    (foreign / sync_state.FILE).write_text((folder / sync_state.FILE).read_text())
    Journal(foreign).end("FAILED")
    assert send(store, foreign) != run_id
    assert store.status(run_id) == "RUNNING"


def test_an_experiments_files_stay_beside_its_database(store: Store) -> None:
    folder, opening = store.run("mine")
    bad = opening["tracking"] | {"experiment": "../../elsewhere", "artifacts": "/nowhere"}
    (folder / journal.FILE).write_text(json.dumps(opening | {"tracking": bad}) + "\n")
    with pytest.raises(ValueError, match="elsewhere"):
        send(store, folder)
    good = bad | {"experiment": "new"}
    (folder / journal.FILE).write_text(json.dumps(opening | {"tracking": good}) + "\n")
    send(store, folder)
    made = store.client.get_experiment_by_name("new")
    assert made is not None
    assert made.artifact_location == (store.outputs / "artifacts" / "new").as_uri()


# Addresses


def test_an_address_is_known_if_it_is_the_outputs_folders_own_or_was_given_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(address.VARIABLE, raising=False)
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    run = theirs / "runs/2026-01-31/12-00-00"

    def is_known(uri: str, folder: Path = run) -> bool:
        return known.is_known(uri, folder, mine)

    assert is_known(address.local(mine))
    assert is_known(address.local(theirs))
    assert not is_known(address.local(tmp_path))
    assert not is_known(address.of(theirs / "other.db"))
    assert not is_known(address.local(theirs), theirs / "elsewhere")
    server = "https://me@host:5000/runs"
    assert not is_known(server)
    known.remember("https://me:secret@host:5000/runs?token=secret", run, mine)
    assert is_known(server)
    assert "secret" not in (tmp_path / "cache/expkit/addresses").read_text()
    assert not is_known("https://host:5000/runs")
    monkeypatch.setenv(address.VARIABLE, "https://you:secret@host")
    assert is_known("https://you@host")


def foreign(expkit: Expkit, uri: str, name: str = "theirs") -> Path:
    """A run's folder that somebody else made, whose journal names this address."""
    folder = expkit.outputs / "runs" / name
    folder.mkdir(parents=True)
    opening = writing.opening(compose_cell(f"outputs={expkit.outputs}"), folder, {}, {})
    opening["tracking"]["uri"] = uri
    written = Journal(folder)
    written.write("run", **opening)
    written.end("FINISHED")
    return folder


def test_sync_sends_to_no_address_that_was_not_met_before(expkit: Expkit, empty: Path) -> None:
    with_database(expkit, empty)
    database = expkit.place / "theirs" / "mlflow.db"
    theirs = foreign(expkit, address.of(database))
    foreign(expkit, address.local(expkit.outputs), "mine")
    done = expkit("sync")
    assert done.status == 2, done
    assert done.err.splitlines() == [
        f"expkit: {theirs}: it names {address.of(database)}, which nobody gave on this machine "
        f"before; needs --uri {address.of(database)} to confirm"
    ]
    assert done.out.endswith("sent 1 run\n"), "the others are sent"
    assert not database.parent.exists()


@pytest.mark.parametrize("answer", ["n", "y"])
def test_sync_asks_on_a_terminal(expkit: Expkit, answer: str) -> None:
    theirs = foreign(expkit, f"http://127.0.0.1:{free_port()}")
    mine, screen = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "expkit", "sync", str(theirs)],
        env=expkit.env,
        cwd=expkit.place,
        stdin=screen,
        stdout=screen,
        stderr=screen,
    )
    os.close(screen)
    os.write(mine, f"{answer}\n".encode())
    said = ""
    with suppress(OSError):  # nobody writes there any more
        while more := os.read(mine, 4096).decode():
            said += more
    os.close(mine)
    status = process.wait(60)
    assert "send to http://127.0.0.1:" in said
    assert (status, "needs --uri" in said) == ((1, False) if answer == "y" else (2, True)), said


# Passwords


WRITTEN = {
    "percent-encoded": ("http://me:S3cr%40t%2Fw@host:5000/a", "http://me@host:5000/a"),
    "an @": ("postgresql://me:S3@cr@host/d", "postgresql://me@host/d"),
    "a slash": (
        "postgresql+psycopg2://me:S3/cr@host:5432/d",
        "postgresql+psycopg2://me@host:5432/d",
    ),
    "a colon": ("http://me:S3:cr@host", "http://me@host"),
    "an @, a slash and a colon": ("http://me:S3@c/r:t@host:1", "http://me@host:1"),
    "a question mark": ("http://me:S3?cr@host/a", "http://me@host/a"),
    "a hash": ("http://me:S3#cr@host/a", "http://me@host/a"),
    "no user": ("http://:S3cr@host", "http://@host"),
    "a query": ("postgresql://host/d?user=me&password=S3cr", "postgresql://host/d?user=me"),
    "two queries": (
        "postgresql://me:S3@host/d?sslpassword=S3&sslmode=on",
        "postgresql://me@host/d?sslmode=on",
    ),
    "a token": ("https://host/a?access_token=S3cr", "https://host/a"),
    "an @ in a query": ("postgresql://host:5432/d?password=S3@c/r", "postgresql://host:5432/d"),
    "ODBC": ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3DS3cr", "mssql+pyodbc:///"),
    "a fragment": ("https://host/a#S3cr", "https://host/a"),
    "IPv6": ("http://me:S3cr@[::1]:5000", "http://me@[::1]:5000"),
    "a path": ("sqlite:////a b@c:d/m.db", "sqlite:////a b@c:d/m.db"),
}


@pytest.mark.parametrize(("uri", "shown"), WRITTEN.values(), ids=WRITTEN)
def test_a_password_is_in_nothing_that_a_cell_keeps(uri: str, shown: str) -> None:
    cell = compose_cell(f"tracking.uri='{uri}'")
    assert cell.params["tracking.uri"] == shown
    assert cell.frozen["config"]["tracking"]["uri"] == shown
    kept = json.dumps([cell.resolved, cell.frozen, writing.opening(cell, Path("/x"), {}, {})])
    assert "S3" not in kept
    error = f"OperationalError: cannot reach '{uri}', or {address.readable(uri)}"
    assert "S3" not in address.scrub(error, [uri])
    if "?" not in uri.partition("@")[0] and " " not in uri:
        assert "S3" not in address.scrub(error)


def test_a_library_reads_the_password_that_was_meant() -> None:
    from sqlalchemy.engine import make_url

    read = make_url(address.readable("postgresql://me:p@s/s:w%25d@host:5432/d"))
    assert (read.password, read.host, read.database) == ("p@s/s:w%d", "host", "d")


@pytest.mark.parametrize("uri", ["http://me:2024/S3@host", "http://[me:S3@host", "ftp://me:S3@h"])
def test_an_address_of_which_the_password_cannot_be_told_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking.uri: got") as error:
        compose_cell(f"tracking.uri='{uri}'")
    assert "S3" not in str(error.value)


@dataclass
class Server:
    """A server that refuses everybody, and notes what they said."""

    port: int
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.headers["Authorization"])
            self.send_error(401)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        found = Server(http.server_address[1])
        Thread(target=http.serve_forever, daemon=True).start()
        yield found
        http.shutdown()


PASSWORD = "S3c@q/w:x"
PIECES = ("S3c", "q/w", "w:x", "q%2Fw", "w%3Ax")
BASIC = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()


def leaks(expkit: Expkit, done: Done) -> list[str]:
    """Where a piece of the password stands."""
    files = [f for place in (expkit.outputs, cache_of(expkit)) for f in place.rglob("*")]
    texts = {str(f): f.read_bytes().decode("latin-1") for f in files if f.is_file()}
    texts |= {"stdout": done.out, "stderr": done.err}
    return [name for name, text in texts.items() if any(piece in text for piece in PIECES)]


def cache_of(expkit: Expkit) -> Path:
    return Path(expkit.env["XDG_CACHE_HOME"])


@pytest.mark.parametrize("words", [(), ("seed=1,2", "-m")], ids=["run", "sweep"])
def test_a_password_reaches_the_server_and_nothing_else(
    expkit: Expkit, server: Server, words: tuple[str, ...]
) -> None:
    given = f"http://me:S3c%40q/w:x@127.0.0.1:{server.port}"
    process = expkit.start(*words[1:], *FAST, f"tracking.uri={given}", *words[:1])
    seen: list[str] = []
    while process.poll() is None:
        seen += [command(pid) for pid in expkit.processes() if pid != process.pid]
    done = expkit.end(process)
    assert done.status == 1, done
    assert "not in MLflow (MlflowException" in done.err
    assert set(server.asked) == {BASIC}
    assert leaks(expkit, done) == []
    children = [line for line in seen if "\0-m\0expkit\0" not in line]  # it, as it forks
    assert children
    assert [line for line in children if any(piece in line for piece in PIECES)] == []


def command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def test_sync_takes_the_password_from_the_environment(expkit: Expkit, server: Server) -> None:
    kept, given = (f"http://{who}@127.0.0.1:{server.port}" for who in ("me", "me:S3c%40q%2Fw%3Ax"))
    folder = foreign(expkit, kept)
    expkit.env[address.VARIABLE] = given
    done = expkit("sync", str(folder))
    assert (done.status, set(server.asked)) == (1, {BASIC}), done
    assert leaks(expkit, done) == []


def test_where_a_password_may_be_missing_the_error_says_how_to_give_it() -> None:
    said = address.explain(RuntimeError("401"), "http://me@host")
    assert address.VARIABLE in said
    assert "--uri" in said
    for uri in ("http://me:S3c@host", "sqlite:////mlflow.db"):
        assert address.explain(RuntimeError("401"), uri) == "RuntimeError: 401"


def test_resume_sends_to_no_address_that_was_not_met_before(expkit: Expkit, server: Server) -> None:
    kept, given = (f"http://{who}@127.0.0.1:{server.port}" for who in ("me", "me:S3c%40q%2Fw%3Ax"))
    folder = planned(expkit, {"tracking": {"kind": "mlflow", "uri": kept}})
    done = expkit("resume", str(folder))
    assert (done.status, server.asked) == (2, []), done
    assert f"needs --uri {kept}" in done.err
    done = expkit("resume", str(folder), "--uri", given)
    assert (done.status, set(server.asked)) == (1, {BASIC}), done
    assert leaks(expkit, done) == []


def test_the_environments_address_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(address.VARIABLE, "http://me:S3c@host")
    cell = compose_cell("problem=linear")
    assert cell.address == "http://me:S3c@host"
    assert cell.frozen["config"]["tracking"]["uri"] == "http://me@host"
    assert compose_cell("tracking.uri=null").tracking.uri is None


def test_no_launcher_writes_a_password_down(expkit: Expkit) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ("-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=2")
    uri = f"tracking.uri=http://me:S3c%40q/w:x@127.0.0.1:{free_port()}"
    done = expkit(*words, *FAST, uri)
    assert "1 cell finished" in done.out, done
    assert list(expkit.outputs.rglob("*.pkl"))
    assert leaks(expkit, done) == []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
