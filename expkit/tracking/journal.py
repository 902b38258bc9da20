"""The journal: a run's own record, complete without MLflow.

A file of JSON lines in the run's folder, written as the run goes. Its kinds of lines:

    run       id, name, time, params, tags, owner (host, pid, start), where it is to be sent
    metric    key, values, steps, time
    tags      tags to add
    facts     what the program works with, see `expkit.measure.parity`
    sample    a repeat: its process, its placement, the seconds of each of its readings
    artifact  a file in the run's folder
    end       status (FINISHED, FAILED, KILLED) and time

Times are milliseconds since 1970. Numbers that JSON lacks are written as `"nan"`, `"inf"` and
`"-inf"`. A line that a kill tore apart is the last one, and is not a line.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = "journal.jsonl"


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Journal:
    """Appends to a run's journal. Every line is in the kernel's hands when a method returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = (folder / FILE).open("ab")
        if self._file.tell() and not (folder / FILE).read_bytes().endswith(b"\n"):
            self._file.write(b"\n")

    def write(self, kind: str, **fields: Any) -> None:
        """Append a line."""
        line = json.dumps({"kind": kind, "time": now_ms(), **fields}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def metric(self, key: str, values: Iterable[float], first_step: int = 0) -> None:
        """Values of consecutive steps."""
        values = list(values)
        self.series(key, values, range(first_step, first_step + len(values)))

    def series(self, key: str, values: Iterable[float], steps: Iterable[int]) -> None:
        """Values with the step of each."""
        encoded = [v if math.isfinite(v) else str(v) for v in map(float, values)]
        self.write("metric", key=key, values=encoded, steps=list(steps))

    def tags(self, tags: Mapping[str, str]) -> None:
        """Add tags, or replace their values."""
        self.write("tags", tags=dict(tags))

    def artifact(self, name: str) -> None:
        """Note a file in the run's folder."""
        self.write("artifact", file=name)

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self.write("end", status=status)
        self._file.close()


def read(folder: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Each whole line from this byte on, with the byte after it."""
    with (folder / FILE).open("rb") as file:
        file.seek(offset)
        for line in file:
            offset += len(line)
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by a kill, be it inside a character, then appended to
            yield record, offset


def owner() -> dict[str, str]:
    """Who writes: host, process and the process's start, which tells a reused number apart.

    The namespace tells containers of one host name apart: each counts processes on its own.
    """
    pid = os.getpid()
    names = {"host": platform.node(), "namespace": _namespace()}
    return names | {"pid": str(pid), "started": _process_start(pid)}


def is_dead(owner: Mapping[str, str]) -> bool:
    """Whether an owner on this host is gone. Of another host nothing is known: False."""
    if (owner["host"], owner["namespace"]) != (platform.node(), _namespace()):
        return False
    return _process_start(int(owner["pid"])) != owner["started"]


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _process_start(pid: int) -> str:
    """The process's start in clock ticks since boot, after proc(5); empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def is_ended(folder: Path) -> bool:
    """Whether the journal has its last line."""
    return any(record["kind"] == "end" for record, _ in read(folder))


def opening(folder: Path) -> dict[str, Any] | None:
    """The journal's `run` line; None where a kill came before it."""
    return next((record for record, _ in read(folder) if record["kind"] == "run"), None)


def address(folder: Path) -> str:
    """Where a journal says that its run is to be sent, without a password; empty for nowhere."""
    run = opening(folder)
    return str(run["tracking"]["uri"]) if run else ""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time sends a run's journal, or ends it for its dead owner."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def end_orphan(folder: Path) -> None:
    """End, as KILLED, a journal that nobody writes any more."""
    journal = Journal(folder)
    journal.tags({"outcome": "interrupted"})
    journal.end("KILLED")


def close_if_orphaned(folder: Path) -> bool:
    """Whether the journal has its end; a dead owner's is ended here."""
    if is_ended(folder):
        return True
    run = opening(folder)
    if run is None or not is_dead(run["owner"]):
        return False
    end_orphan(folder)
    return True
