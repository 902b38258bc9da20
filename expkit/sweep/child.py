"""A worker's own side: a fresh interpreter that runs the cells it is asked for, line by line.

python -m expkit.sweep.child PARENT        is the child, of the process of this number
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from expkit import runner, streams
from expkit.children import die_with_parent, look_there_too
from expkit.config import thaw
from expkit.errors import ParityError, UserError, is_disk_full
from expkit.measure.environment import Activity
from expkit.measurement import Measurement
from expkit.sweep.worker import SAID, Message
from expkit.tracking.address import one_line

LOGGED = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"
"""As in `conf/hydra/job_logging/expkit.yaml`."""


class _Channel:
    """The child's side of the pipes. Whatever a cell reads or prints goes elsewhere."""

    def __init__(self) -> None:
        self._requests: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._answers: BinaryIO = os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)

    def read(self) -> Message | None:
        line = self._requests.readline()
        return json.loads(line) if line else None

    def write(self, kind: str, **fields: Any) -> None:
        self._answers.write(json.dumps({"is": kind, **fields}).encode() + b"\n")
        self._answers.flush()

    def ask(self, kind: str, **fields: Any) -> Message:
        """Say so, and wait for what comes."""
        self.write(kind, **fields)
        request = self.read()
        if request is None:
            os._exit(0)  # the parent has hung up
        return request


def _run(request: Message, channel: _Channel) -> None:
    """One cell, from its import to its end; every way to fail is an answer."""
    folder = Path(request["folder"])
    full = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / SAID).open("ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        outcome, reason = _outcome(request, folder, channel)
    except BaseException as error:  # sys.exit too: it is this cell's affair alone
        outcome, reason, full = "failed", one_line(error), is_disk_full(error)
    with suppress(OSError):  # what it printed may not fit on the disk
        sys.stdout.flush()
        sys.stderr.flush()
        if not (folder / SAID).stat().st_size:
            (folder / SAID).unlink()
    if not request["timed"]:  # else this process ends
        gc.collect()
    channel.write("done", outcome=outcome, reason=reason, full=full)


def _outcome(request: Message, folder: Path, channel: _Channel) -> tuple[str, str]:
    cell, timed, tags = thaw(request["cell"]), request["timed"], request["tags"]

    ready: list[Measurement] = []  # the one there is, if it can be timed

    def drive(parts: Sequence[Measurement]) -> tuple[str | None, Activity]:
        ready.extend(parts)
        if timed:
            return _obey(parts, channel)
        for part in parts:
            part.repeat()
        return None, Activity(None, None, None)

    def prepared() -> None:
        if timed:
            channel.ask("prepared")

    def measured() -> None:
        """Say what was found after the last repeat, and take how it stands against others."""
        if not timed:
            return
        found = [{"outcome": p.result.outcome, "broken": p.result.broken} for p in ready]
        tags = channel.ask("measured", found=found)["tags"]
        for part in ready if tags else ():
            part.journal.tags(tags)

    def silent(*_: Any) -> None: ...

    try:
        runner.require(cell)
    except UserError as error:
        return "unavailable", str(error)
    _log(folder, request["cell"].get("log"))
    cell.backend.configure()
    _keep_libraries()
    if timed:
        channel.ask("here")
    try:
        (result,) = runner.run_together(
            [(cell, folder)],
            None,
            silent,
            tags=tags,
            prepared=prepared,
            measured=measured,
            drive=drive,
            timed=timed,
        )
    except UserError as error:
        return "failed", str(error)
    return result.outcome, result.reason or ""


def _log(folder: Path, how: Mapping[str, Any] | None) -> None:
    """What the cell's code logs goes to a file beside its journal, as in a run of its own."""
    root = logging.getLogger()
    for handler in list(root.handlers):  # the cell's before
        root.removeHandler(handler)
        handler.close()
    if how is None:
        return
    file = Path(how["name"]).name  # beside the journal, whatever was stored
    written = logging.FileHandler(folder / f"{file}.log", encoding="utf-8", delay=True)
    written.setFormatter(logging.Formatter(LOGGED))
    said = logging.StreamHandler()
    said.setLevel(logging.WARNING)
    root.addHandler(written)
    root.addHandler(said)
    root.setLevel(logging.INFO)
    for name in how["verbose"]:
        logging.getLogger(name).setLevel(logging.DEBUG)


@cache
def _keep_libraries() -> None:
    """Before the first cell: no collection looks again at what has been imported."""
    gc.freeze()


def _obey(parts: Sequence[Measurement], channel: _Channel) -> tuple[str | None, Activity]:
    """Repeats as the parent asks for them."""
    if not parts:
        return None, Activity(None, None, None)
    (part,) = parts
    request = channel.ask("ready", facts=part.result.facts, expected_s=part.expected_s)
    if request["do"] == "refuse":
        raise ParityError(request["unlike"])
    while request["do"] != "stop":
        if request["do"] == "place":
            part.place()
            request = channel.ask("placed")
        else:
            request = channel.ask("repeated", seconds=part.repeat())
    return request["stopped_by"], Activity(**request["activity"])


def _child(parent: int) -> None:
    die_with_parent(parent)
    streams.protect()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    channel = _Channel()
    if first := channel.read():
        look_there_too(first["path"])
    while (request := channel.read()) is not None:
        _run(request, channel)
    os._exit(0)  # the interpreter's tidying up takes longer than the work


if __name__ == "__main__":
    _child(int(sys.argv[1]))
