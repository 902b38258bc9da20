"""The journal: a run's own record, complete without MLflow.

A file of JSON lines in the run's folder, written as the run goes. A folder holds one run. The kinds
of lines:

    run       version, id, name, params, tags, owner (host, pid, start), where it is to be sent,
              cell (what `expkit.config.thaw` makes the same cell of; from version 2 on)
    metric    key, values, steps, time, perhaps begun: when the first of them began to be computed
    tags      tags to add
    facts     what the program works with, see `expkit.measure.parity`
    sample    a repeat: its process, its placement, the seconds of each of its readings
    artifact  a file in the run's folder
    end       status (FINISHED, FAILED, KILLED) and time; artifacts, such as pictures, may follow

Every line has its time, in milliseconds since 1970. Numbers that JSON lacks are written as `"nan"`,
`"inf"` and `"-inf"`. A line that a kill left incomplete is skipped: it is the last line, or is
followed by the lines that ended the run for the dead process. Lines are checked when they are read.
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

from expkit.checks import (
    MAPPING,
    NUMBERS,
    SECONDS,
    TEXT,
    TEXTS,
    TEXTS_BY_NAME,
    WHOLE,
    WHOLES,
    Check,
    is_text,
    is_whole,
    misfit,
    short,
)
from expkit.errors import UserError
from expkit.outcome import Outcome

FILE = "journal.jsonl"
VERSION = 2
"""Version of the format. A journal without a version is read as version 0."""
STATUSES = ("FINISHED", "FAILED", "KILLED")
BEGINNING = b'{"kind": "'
"""How every line begins."""


def _is_owner(value: object) -> bool:
    names = ("host", "namespace", "pid", "started")
    if not isinstance(value, Mapping) or not all(is_text(value.get(name)) for name in names):
        return False
    return str(value["pid"]).isdecimal()


OWNER = Check("a process: host, namespace, pid, started", _is_owner)
STATUS = Check(f"one of {', '.join(STATUSES)}", lambda value: value in STATUSES)
KINDS: Mapping[str, Mapping[str, Check]] = {
    "run": {
        "version": WHOLE,
        "id": TEXT,
        "name": TEXT,
        "time": WHOLE,
        "owner": OWNER,
        "tracking": MAPPING,
        "params": MAPPING,
        "tags": TEXTS_BY_NAME,
    },
    "metric": {"key": TEXT, "values": NUMBERS, "steps": WHOLES, "time": WHOLE, "begun": WHOLE},
    "tags": {"tags": TEXTS_BY_NAME},
    "facts": {"facts": TEXTS_BY_NAME, "broken": TEXTS},
    "sample": {"seconds": SECONDS},  # newer: also `process` and `placement`
    "artifact": {"file": TEXT},
    "end": {"status": STATUS, "time": WHOLE},
}
KIND = Check(f"one of {', '.join(KINDS)}", lambda value: value in list(KINDS))


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Journal:
    """Appends to a run's journal. A line has been handed to the kernel when a method returns.

    Args:
        new: create the journal.

    Raises:
        UserError: the journal is new, and the folder holds a run already.
    """

    def __init__(self, folder: Path, *, new: bool = False) -> None:
        self.folder = folder
        try:
            self._file = (folder / FILE).open("xb" if new else "ab")
        except FileExistsError:
            raise UserError(f"{folder} holds a run already; takes an empty or new folder") from None
        if self._file.tell() and not (folder / FILE).read_bytes().endswith(b"\n"):
            self._file.write(b"\n")

    def write(self, kind: str, **fields: Any) -> None:
        """Append a line."""
        line = json.dumps({"kind": kind, "time": now_ms(), **fields}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def metric(
        self, key: str, values: Iterable[float], first_step: int = 0, begun: int | None = None
    ) -> None:
        """Append values of consecutive steps.

        Args:
            begun: when the first of them began to be computed, in milliseconds since 1970, if they
                were computed evenly from then until now; None if all are of now.
        """
        values = list(values)
        self.series(key, values, range(first_step, first_step + len(values)), begun)

    def series(
        self, key: str, values: Iterable[float], steps: Iterable[int], begun: int | None = None
    ) -> None:
        """Append values with the step of each; see `metric`."""
        encoded = [v if math.isfinite(v) else str(v) for v in map(float, values)]
        more = {} if begun is None else {"begun": begun}
        self.write("metric", key=key, values=encoded, steps=list(steps), **more)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Add tags, or replace their values."""
        self.write("tags", tags=dict(tags))

    def artifact(self, name: str) -> None:
        """Note a file in the run's folder."""
        self.write("artifact", file=name)

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self.write("end", status=status)
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(folder: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each complete line from this byte on, with the offset of the byte after it.

    Raises:
        UserError: a line is damaged (the message names the file and the line), or a newer expkit
            wrote it.
    """
    begun, torn = offset > 0, False
    place = "line" if offset == 0 else f"byte {offset}, line"
    with (folder / FILE).open("rb") as file:
        file.seek(offset)
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            record = _parsed(line)
            if record is None:
                torn = True
                continue
            wrong = _wrong(record)
            if wrong is None and record["kind"] == "run" and begun:
                wrong = "a second run begins, and a folder holds one"
            if wrong is None and torn and record.get("status") == "FINISHED":
                wrong = "the run has finished, and a line before this one is torn"
            if wrong:
                raise UserError(f"{folder / FILE}: {place} {number}: {wrong}")
            begun = begun or record["kind"] == "run"
            yield record, offset


def _parsed(line: bytes) -> Any:
    """Parse a line; return None for one that was cut off, and other damaged lines as they are."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        beginning = line.rstrip(b"\n\0")[: len(BEGINNING)]
        return None if BEGINNING.startswith(beginning) else line


def _wrong(record: Any) -> str | None:
    """Return what is wrong with a line; None if it is valid."""
    if isinstance(record, bytes):
        return f"got {short(record)}, takes JSON"
    if reason := misfit(record, {"kind": KIND}):
        return reason
    version = record.get("version", 0) if record["kind"] == "run" else 0
    if is_whole(version) and version > VERSION:
        return f"a newer expkit wrote it: version {version}, this one reads up to {VERSION}"
    wrong = misfit({"version": version, "begun": 0, **record}, KINDS[record["kind"]])
    if wrong is None and record["kind"] == "metric":
        values, steps = len(record["values"]), len(record["steps"])
        return None if values == steps else f"steps: got {steps}, takes {values}, one a value"
    return wrong


def owner() -> dict[str, str]:
    """Identify the writer: host, process number and the process's start, as numbers are reused.

    The namespace distinguishes containers with one host name, as each has its own process numbers.
    """
    pid = os.getpid()
    names = {"host": platform.node(), "namespace": _namespace()}
    return names | {"pid": str(pid), "started": _process_start(pid)}


def is_dead(owner: Mapping[str, str]) -> bool:
    """Whether an owner is known to be gone; False for owners on other hosts."""
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
    """Whether the journal has its `end` line.

    Raises:
        UserError: it is damaged, or a newer expkit wrote it.
    """
    return any(record["kind"] == "end" for record, _ in read(folder))


def opening(folder: Path) -> dict[str, Any] | None:
    """The journal's `run` line; None where a kill came before it.

    Raises:
        UserError: it is damaged before that, or a newer expkit wrote it.
    """
    return next((record for record, _ in read(folder) if record["kind"] == "run"), None)


def address(folder: Path) -> str:
    """Return the address in a journal, without a password; empty if the run has not begun."""
    run = opening(folder)
    return str(run["tracking"]["uri"]) if run else ""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time send a run's journal, or end it for its dead owner."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def end_orphan(folder: Path) -> None:
    """End, as KILLED, a journal to which nobody writes any more."""
    journal = Journal(folder)
    journal.tags({"outcome": Outcome.INTERRUPTED})
    journal.end("KILLED")


def close_if_orphaned(folder: Path) -> bool:
    """Whether the journal has ended; if its owner is dead, it is ended now.

    Raises:
        UserError: it is damaged, or a newer expkit wrote it.
    """
    if is_ended(folder):
        return True
    run = opening(folder)
    if run is None or not is_dead(run["owner"]):
        return False
    end_orphan(folder)
    return True
