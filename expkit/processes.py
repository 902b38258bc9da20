"""The level above placements: the same cells measured again in fresh interpreters.

What a process fixes when it starts (where its code and stack lie, the seed of its hashes, a GPU's
context) moves times as placement does, for as long as the process lives. With `measure.processes`
above 1 the process is the unit of the interval, and placements are nested in it.

    python -m expkit.processes FOLDER PARENT    is the child: its request on stdin, runs in FOLDER
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from expkit import children
from expkit.config import Cell, thaw
from expkit.tracking.stored import Stored, load

PR_SET_PDEATHSIG = 1


def measured_elsewhere(cells: Sequence[Cell]) -> Iterator[list[Stored]]:
    """Measure the cells together, in one fresh process after another, `measure.processes` less one.

    Raises:
        RuntimeError: a process failed, with the last line that it wrote.
    """
    path, frozen = children.own_path(), [cell.frozen for cell in cells]
    request = json.dumps({"path": path, "cells": frozen})
    for _ in range(1, cells[0].measure.processes):
        with tempfile.TemporaryDirectory() as place:
            command = children.command("expkit.processes", place, str(os.getpid()))
            done = subprocess.run(
                command,
                input=request,
                env={**os.environ, **children.SAFE_PATH},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
                raise RuntimeError(f"a measuring process failed: {said[-1]}")
            yield [load(Path(place, str(index))) for index in range(len(cells))]


def _child(place: Path, parent: int) -> None:
    from expkit.runner import run_together

    die_with_parent(parent)
    request = json.load(sys.stdin)
    children.look_there_too(request["path"])
    cells = [_alone(thaw(frozen)) for frozen in request["cells"]]
    jobs = [(cell, place / str(index)) for index, cell in enumerate(cells)]
    run_together(jobs, None, lambda *_: None, tags={})


def _alone(cell: Cell) -> Cell:
    return replace(cell, measure=replace(cell.measure, processes=1))


def die_with_parent(parent: int) -> None:
    """Should the parent die, nobody is there to read what this process measures (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before: this process would go on, beside its successor's
        os._exit(1)


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]))
