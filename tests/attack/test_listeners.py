"""Work goes on, and ends in time, where nobody reads what it prints and MLflow does not answer."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from expkit.sweeps.manifest import Manifest
from expkit.tracking import journal, tracker

if TYPE_CHECKING:
    from conftest import Expkit

FAST = (
    "steps=20",
    "measure.repeats_min=2",
    "measure.budget_s=0",
    "measure.warmup=0",
    "tracking.pictures=false",
)
ALONE = (*FAST, "problem=linear", "tracking=none")
LONG = ("problem=sine", "measure.repeats_min=100000", "measure.repeats_max=100000")


def shell(expkit: Expkit, *words: str, to: str) -> subprocess.CompletedProcess[str]:
    """Run expkit in a shell that does this with what it prints; the status is expkit's own."""
    command = shlex.join([sys.executable, "-m", "expkit", *words])
    script = f"{command} {to}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=expkit.place,
        env=expkit.env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def outcome(folder: Path) -> str:
    """Of a journal in which nothing but the journal is."""
    records = [json.loads(line) for line in (folder / journal.FILE).read_bytes().splitlines()]
    assert records[-1]["kind"] == "end"
    found = [record["tags"]["outcome"] for record in records if "outcome" in record.get("tags", {})]
    return str(found[-1])


# A screen


@pytest.mark.parametrize(
    ("to", "out", "err"),
    [
        (">/dev/full", "", r"expkit: stdout cannot be written \(No space .*\n"),
        ("2>&1 >/dev/full | true", "", ""),
        (">&-", "", r"expkit: stdout cannot be written \(it is closed\); the work goes on .*\n"),
        ("<&- >&- 2>&-", "", ""),
    ],
)
def test_a_run_without_a_screen_is_a_run(expkit: Expkit, to: str, out: str, err: str) -> None:
    done = shell(expkit, *ALONE, to=to)
    assert done.returncode == 0, done
    assert done.stdout == out
    assert re.fullmatch(err, done.stderr)
    [folder] = expkit.folders()
    assert outcome(folder) == "ok"


def test_a_character_that_the_screen_lacks_is_shown_as_its_escape(expkit: Expkit) -> None:
    expkit.env["PYTHONIOENCODING"] = "ascii"
    done = expkit(*ALONE)
    assert (done.status, done.err) == (0, "")
    assert r"linear \xb7 numpy" in done.out


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("2>&1 | head -1", ""),
        (">&- 2>/dev/full", ""),
        ("2>/dev/full", "expkit: stderr cannot be written (No space left on device)"),
    ],
)
def test_a_sweep_without_a_screen_is_a_sweep(expkit: Expkit, to: str, said: str) -> None:
    done = shell(expkit, "-m", *ALONE, "seed=1,2,3", "sweep.workers=2", to=to)
    assert done.returncode == 0, done
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("cannot be written") == (said in done.stdout and bool(said))
    assert said in done.stdout
    [file] = expkit.outputs.rglob("sweep.json")
    manifest = Manifest.load(file.parent)
    assert [outcome(manifest.folder / str(cell.index)) for cell in manifest.cells] == ["ok"] * 3
    again = shell(expkit, "resume", "--outputs", str(expkit.outputs), to=">/dev/full")
    assert again.returncode == 0, again


def test_commands_without_a_screen(expkit: Expkit) -> None:
    assert expkit(*ALONE).status == 0
    [run] = map(str, expkit.folders())
    compared = shell(expkit, "compare", run, run, to=">/dev/full")
    assert compared.returncode == expkit("compare", run, run).status
    for words, status in ((["--help"], 0), (["ui", "--help"], 0), (["ui", "--port", "x"], 2)):
        done = shell(expkit, *words, to="2>&1 | true")
        assert (done.returncode, done.stderr) == (status, ""), words


def test_a_folder_that_is_gone_is_one_line(expkit: Expkit) -> None:
    gone = expkit.place / "gone"
    for words in (ALONE, ["doctor"]):
        gone.mkdir()
        command = shlex.join([sys.executable, "-m", "expkit", *words])
        script = f"cd {gone}; rmdir {gone}; exec {command}"
        done = subprocess.run(
            ["bash", "-c", script], env=expkit.env, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"expkit: the current folder: No such file.*\n", done.stderr)


def printing(code: str, **kwargs: int) -> subprocess.CompletedProcess[str]:
    """Run this behind protected streams."""
    code = f"from expkit import streams; streams.protect(); import os, sys, signal\n{dedent(code)}"
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    return subprocess.run([sys.executable, "-c", code], text=True, timeout=30, **kwargs)  # type: ignore[call-overload,no-any-return]


def test_what_cannot_be_shown_is_said_once() -> None:
    with Path("/dev/full").open("w") as full:
        code = "for n in range(9): print(n); print(-n, file=sys.stderr)"
        done = printing(code, stdout=full.fileno())
    first, second, *rest = done.stderr.splitlines()
    assert "stdout cannot be written" in first
    assert [second, *rest] == [str(-n) for n in range(9)]


def test_a_screen_that_is_shared_may_not_wait() -> None:
    """All of it arrives where somebody has made the pipe non-blocking."""
    code = "os.set_blocking(1, False); print('x' * 1_000_000)"  # more than a pipe holds
    assert printing(code).stdout == "x" * 1_000_000 + "\n"


def test_a_signals_handler_may_print_while_the_program_does() -> None:
    code = """
        signal.signal(signal.SIGALRM, lambda *_: print("from the handler", file=sys.stderr))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        print("x" * 1_000_000, file=sys.stderr)
    """
    reads, writes = os.pipe()
    slow = "import sys, time; time.sleep(0.6); sys.stdout.write(sys.stdin.read())"
    reader = subprocess.Popen([sys.executable, "-c", slow], stdin=reads, stdout=subprocess.PIPE)
    os.close(reads)
    assert printing(code, stderr=writes).returncode == 0
    os.close(writes)
    said, _ = reader.communicate(timeout=30)
    assert said.count(b"x") == 1_000_000
    assert b"from the handler" in said


# MLflow


@contextmanager
def mute_server() -> Iterator[str]:
    """The address of a server that takes every connection and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def await_journal(expkit: Expkit) -> None:
    end = time.monotonic() + 60
    while not list(expkit.outputs.rglob(journal.FILE)):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("signals", "timeout_s"),
    [([signal.SIGINT], 10), ([signal.SIGINT, signal.SIGINT], 1.5)],
    ids=["one", "two"],
)
def test_an_interrupted_run_waits_seconds_for_an_mlflow_that_is_mute(
    expkit: Expkit, signals: list[signal.Signals], timeout_s: float
) -> None:
    with mute_server() as uri:
        process = expkit.start(*FAST, *LONG, f"tracking.uri={uri}")
        await_journal(expkit)
        for number in signals:
            time.sleep(0.5)
            begun = time.monotonic()
            os.killpg(process.pid, number)
        done = expkit.end(process)
    assert time.monotonic() - begun < timeout_s + 2, "two seconds for a machine that is busy"
    assert done.status == 130
    [folder] = expkit.folders()
    assert f"send it later: expkit sync {folder}\n" in done.err
    assert len(done.err.splitlines()) == 2, done.err
    assert expkit.processes() == []


def test_a_sweep_interrupted_twice_does_not_wait_for_an_mlflow_that_is_mute(
    expkit: Expkit,
) -> None:
    with mute_server() as uri:
        process = expkit.start("-m", *FAST, *LONG, "seed=1,2", f"tracking.uri={uri}")
        await_journal(expkit)
        for _ in range(2):
            time.sleep(0.5)
            begun = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
        done = expkit.end(process)
    assert time.monotonic() - begun < 1.5 + 2, "two seconds for a machine that is busy"
    assert done.status == 130
    assert "go on with: expkit resume" in done.err
    assert re.search(r"not in MLflow .* expkit sync \S*sweeps\S*\n", done.err), done.err
    assert expkit.processes() == []


def _begun(expkit: Expkit) -> list[Path]:
    return [file.parent for file in expkit.outputs.rglob(journal.FILE)]


@contextmanager
def waiting_for_mlflow(expkit: Expkit, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command whose cells have ended, and that waits for an MLflow that is mute."""
    with mute_server() as uri:
        process = expkit.start(*words, *FAST, "problem=linear", f"tracking.uri={uri}")
        end, runs = time.monotonic() + 60, 1 + ("-m" in words)
        while sum(map(journal.is_ended, _begun(expkit))) < runs:
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process


CELLS = ("-m", "seed=1,2")


@pytest.mark.parametrize("words", [(), CELLS], ids=["a run", "a sweep"])
def test_what_is_known_is_shown_before_mlflow_is_waited_for(
    expkit: Expkit, words: tuple[str, ...]
) -> None:
    with waiting_for_mlflow(expkit, *words) as process:
        begun = time.monotonic()
        assert process.stdout is not None
        shown = ""
        while not re.search("  saved to  |2 cells finished; ", shown):
            shown += process.stdout.readline()
        assert time.monotonic() - begun < 5
        assert process.poll() is None
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
        expkit.end(process)


@pytest.mark.parametrize("words", [(), CELLS], ids=["a run", "a sweep"])
def test_an_interrupt_where_only_mlflow_is_waited_for_is_told_as_that(
    expkit: Expkit, words: tuple[str, ...]
) -> None:
    with waiting_for_mlflow(expkit, *words) as process:
        time.sleep(2)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
        done = expkit.end(process)
    assert done.status == 130
    [kept] = [file.parent for file in expkit.outputs.rglob("sweep.json")] or expkit.folders()
    assert "resume" not in done.err
    assert "what was measured is in" not in done.err
    *_, first, second = done.err.splitlines()
    assert first == f"expkit: interrupted; by then all was measured, and it is in {kept}"
    assert re.fullmatch(rf"expkit: not in MLflow \(.*\); send it later: expkit sync {kept}", second)
    assert ("\n2 cells finished; " if words else "   outcome  ok\n") in done.out


def test_a_path_that_sqlite_cannot_open_is_told_at_once(expkit: Expkit) -> None:
    outputs = expkit.place.joinpath(*["a" * 200] * 4)
    begun = time.monotonic()
    done = expkit(*FAST, "problem=linear", f"outputs={outputs}")
    assert done.status == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert re.search(r"unable to open database file: a path of \d+ characters", done.err)
    assert time.monotonic() - begun < 25, "MLflow tries for a minute"


@pytest.fixture
def stopped() -> Iterator[tracker.Tracker]:
    """A tracker whose process does nothing any more."""
    made = tracker.Tracker()
    pid = made._child.pid
    os.kill(pid, signal.SIGSTOP)
    yield made
    made.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nothing_waits_for_ever_for_a_tracker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracker, "PATIENCE_S", 0.5)
    with mute_server() as uri:
        opening = {"kind": "run", "tracking": {"uri": uri, "experiment": "e", "artifacts": "/a"}}
        (tmp_path / journal.FILE).write_text(json.dumps(opening) + "\n")
        asked = tracker.Tracker()
        begun = time.monotonic()
        assert asked.update(tmp_path, wait=True).error == "no answer within 0.5 s"
        assert asked.update(tmp_path, last=True).error == "no answer within 0.5 s"
        asked.settle()
        with asked.quiet(tmp_path, 100):
            pass
        asked.close()
        assert time.monotonic() - begun < 5
        assert asked.missing() == [tmp_path]


def test_requests_that_fill_the_pipe_do_not_wait_for_ever(stopped: tracker.Tracker) -> None:
    stopped.hurry()
    stopped.hurry()
    begun = time.monotonic()
    for _ in range(100):
        stopped.update(Path("/" + "x" * 3000))
    assert time.monotonic() - begun < 5


# The page


def test_the_page_ends_with_its_command(expkit: Expkit) -> None:
    """Even where that is killed; test_trust.py has the signals that can be caught."""
    assert expkit("problem=linear", *FAST).status == 0
    process = expkit.start("ui", "--port", "0")
    assert process.stdout is not None
    page = next(line for line in process.stdout if line.startswith("http://127.0.0.1"))
    port = int(re.findall(r":(\d+)/", page)[0])
    process.kill()
    expkit.end(process)
    end = time.monotonic() + 20
    while expkit.processes() and time.monotonic() < end:
        time.sleep(0.1)
    assert expkit.processes() == []
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


def test_a_terminal_that_does_not_know_its_size_shows_how_it_goes(expkit: Expkit) -> None:
    if not shutil.which("script"):
        pytest.skip("there is no script(1)")
    command = shlex.join([sys.executable, "-m", "expkit", *ALONE])
    done = subprocess.run(
        ["script", "-qfc", command, "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=expkit.place,
        env=expkit.env,
        text=True,
    )
    assert "starting backend numpy" in done.stdout


@pytest.mark.parametrize("port", ["x", "70000", "-1", "1.5"])
def test_a_bad_port_is_one_line(expkit: Expkit, port: str) -> None:
    done = expkit("ui", "--port", port)
    assert done.status == 2
    assert done.err.startswith(f"expkit: --port: got '{port}', takes a number from 1 to 65535")
    assert done.err.count("\n") == 1
