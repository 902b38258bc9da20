"""expkit's command line in an outputs folder of its own, and the processes that come of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """A folder that holds an outputs folder, and what processes print."""

    folder: Path

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    @property
    def database(self) -> Path:
        """The file of MLflow's database."""
        return self.outputs / "mlflow.db"

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """`python -m expkit` in the background; what it prints goes to `said.txt`."""
        env = {**os.environ, "EXPKIT_OUTPUTS": str(self.outputs)}
        with (self.folder / "said.txt").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "expkit", *words],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def run(self, *words: str) -> None:
        """Run to the end.

        Raises:
            RuntimeError: it failed; the message has the last lines that it printed.
        """
        if status := self.start(*words).wait():
            raise RuntimeError(f"expkit {words}: status {status}\n{self.said()}")

    def said(self) -> str:
        """The last lines that were printed."""
        return "\n".join((self.folder / "said.txt").read_text().splitlines()[-20:])

    def processes(self) -> dict[int, str]:
        """Return the roles of live processes (`parent`, `worker`, `tracker`) by process number."""
        mark = f"EXPKIT_OUTPUTS={self.outputs}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = _role((folder / "cmdline").read_text())
        return found

    def left(self, timeout_s: float = 20) -> dict[int, str]:
        """Return what still lives after this time; return at once when nothing does."""
        end = time.monotonic() + timeout_s
        while (found := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def end(self) -> None:
        """Kill what is left."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _role(command: str) -> str:
    for module, role in (("far_end", "worker"), ("tracking.sender", "tracker")):
        if f"expkit.{module}" in command:
            return role
    return "parent"
