"""The level above placements: the same cells measured again in fresh interpreters.

What a process fixes when it starts (where its code and stack lie, the seed of its hashes, a GPU's
context) moves times as placement does, for as long as the process lives. With `measure.processes`
above 1 the process is the unit of the interval, and placements are nested in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from expkit import children
from expkit.config import Cell
from expkit.tracking.stored import Stored, load


def measured_elsewhere(cells: Sequence[Cell]) -> Iterator[list[Stored]]:
    """Measure the cells together, in one fresh process after another, `measure.processes` less one.

    Raises:
        RuntimeError: a process failed, with the last line that it wrote.
    """
    path, frozen = children.own_path(), [cell.frozen for cell in cells]
    request = json.dumps({"path": path, "cells": frozen})
    for _ in range(1, cells[0].measure.processes):
        with tempfile.TemporaryDirectory() as place:
            command = children.command("expkit.remeasure", place, str(os.getpid()))
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
