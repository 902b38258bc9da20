"""What the tests share: the command line in a process of its own, and plugins made on the fly."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest
from services import mlflow_template as mlflow_template
from services import postgres as postgres
from services import ray_cluster as ray_cluster
from services import slurm as slurm
from services import tracking_server as tracking_server

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
PLANTED = Path(__file__).parents[1] / "benchmarks" / "planted"
DEADLINE_S = 60.0
"""A command that takes longer than this hangs."""


class Done(NamedTuple):
    """How a process ended and what it said."""

    status: int
    out: str
    err: str


class Expkit:
    """`python -m expkit` with an outputs folder of its own, which is not there yet."""

    def __init__(self, place: Path) -> None:
        self.place, self.outputs = place, place / "outputs"
        self.env = {**os.environ, "EXPKIT_OUTPUTS": str(self.outputs)}

    def __call__(self, *words: str) -> Done:
        return self.end(self.start(*words))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Run in the background, in a process group of its own, as a shell would."""
        return self._start("-m", "expkit", *words)

    def python(self, code: str) -> Done:
        """Run a small script in the same surroundings."""
        return self.end(self._start("-c", dedent(code)))

    def end(self, process: subprocess.Popen[str], timeout_s: float = DEADLINE_S) -> Done:
        """Wait for the process's end."""
        with process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Done(process.returncode, out, err)

    def plugin(self, files: Mapping[str, str], package: str = "broken_plugin") -> None:
        """Install the distribution `broken` with these files of its package."""
        site = self.place / "site"
        files = {f"{package}/{name}": text for name, text in files.items()} | {
            "broken-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n",
            "broken-1.0.dist-info/entry_points.txt": f"[expkit.plugins]\nbroken = {package}\n",
        }
        for name, text in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(dedent(text))
        paths = [str(site), os.environ.get("PYTHONPATH", "")]
        self.env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def folders(self) -> list[Path]:
        """The runs' folders, oldest first: those with a file in them."""
        files = (file for file in self.outputs.glob("runs/**/*") if not file.is_dir())
        return sorted({file.parent for file in files})

    def processes(self) -> list[int]:
        """Every process that has this outputs folder in its environment."""
        mark = f"EXPKIT_OUTPUTS={self.outputs}".encode()
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it ended meanwhile
                if mark in environ.read_bytes().split(b"\0"):
                    found.append(int(environ.parent.name))
        return found

    def workers(self) -> list[int]:
        """The processes that run cells, or will, but not their watchers, which lead no session."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                found += [pid] if "expkit.far_end" in words and os.getsid(pid) == pid else []
        return found

    def _start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.place,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have one of several processes run all tests of a service, which then starts only once."""
    for item in items:
        for service in {"slurm", "ray_cluster", "postgres"}.intersection(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.xdist_group(service))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache for all tests, so limits are measured, and MLflow's database is made, only once."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def expkit(tmp_path: Path) -> Iterator[Expkit]:
    """The command line, with an outputs folder of its own."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pytest in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # would hand that down
    runner = Expkit(tmp_path)
    yield runner
    for pid in runner.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """The command line in this process, in an empty folder."""
    from expkit.cli import main

    monkeypatch.setenv("EXPKIT_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def go(*words: str) -> Done:
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        return Done(status, *capsys.readouterr())

    yield go
    root.handlers[:] = handlers
    root.setLevel(level)
    gc.enable()  # the command line turns it off


@pytest.fixture
def planted(expkit: Expkit) -> Expkit:
    """The command line with the backend `planted`."""
    option = "_target_: broken_plugin.Planted\nfault: honest\ndtype: float64\n"
    option += "threads: null\nfast: false\n"
    modules = {file.name: file.read_text() for file in PLANTED.glob("*.py")}
    expkit.plugin({**modules, "conf/backend/planted.yaml": option})
    return expkit


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what all tests of a module measure from Python."""
    place = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPKIT_OUTPUTS", str(place))
        yield place
