"""`expkit ui` serves the right database from any folder, and stops with Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from conftest import Expkit


def test_the_page_has_the_runs(expkit: Expkit, tmp_path: Path) -> None:
    assert expkit("problem=linear", "steps=20", "tracking.pictures=false").status == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    expkit.place = elsewhere
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = expkit.start("ui", "--port", str(port))
    assert server.stdout is not None
    page = next(line.strip() for line in server.stdout if line.startswith("http://127.0.0.1"))
    words = [Path(f"/proc/{pid}/cmdline").read_text() for pid in expkit.processes()]
    assert not [said for said in words if "mlflow.server.jobs" in said], "nobody waits for jobs"
    experiment = urlsplit(page).fragment.split("/")[2]
    search = Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
        json.dumps({"experiment_ids": [experiment]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(search, timeout=30) as answer:
        runs = json.load(answer)["runs"]
    assert [run["info"]["run_name"] for run in runs] == ["linear · numpy · sgd"]
    taken = expkit("ui", "--port", str(port))
    assert taken.status == 2
    assert str(port) in taken.err
    os.killpg(server.pid, signal.SIGINT)
    assert expkit.end(server).status == 0
    assert expkit.processes() == []


def test_of_two_that_begin_on_one_port_one_serves(expkit: Expkit) -> None:
    """Before either listens: neither takes the other's page for its own."""
    assert expkit("problem=linear", "steps=20", "tracking.pictures=false").status == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [expkit.start("ui", "--port", str(port)) for _ in range(2)]
    end = time.monotonic() + 60
    while all(process.poll() is None for process in both) and time.monotonic() < end:
        time.sleep(0.1)
    serving, other = sorted(both, key=lambda process: process.poll() is not None)
    done = expkit.end(other)
    said = f"expkit: --port: got {port}, takes a port that is free, or 0 to find one\n"
    assert done == (2, "", said)
    assert serving.stdout is not None
    assert any(line.startswith(f"http://127.0.0.1:{port}/") for line in serving.stdout)
    os.killpg(serving.pid, signal.SIGINT)
    assert expkit.end(serving).status == 0


def test_no_runs_yet_is_one_line(expkit: Expkit) -> None:
    done = expkit("ui")
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert str(expkit.outputs) in done.err
