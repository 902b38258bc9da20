"""What a review found: each was wrong once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import cast

from expkit.config import compose_cell
from expkit.contracts import HostArray, Program
from expkit.measure.canary import listen
from expkit.runner import _opening
from expkit.tracking import journal
from expkit.tracking.journal import Journal


def test_a_tracker_whose_answer_nobody_reads_ends_the_run(tmp_path: Path) -> None:
    """The parent was killed between its request and the answer."""
    cell = compose_cell(f"outputs={tmp_path}")
    folder = tmp_path / "run"
    folder.mkdir()
    opened = Journal(folder)
    opened.write("run", **_opening(cell, folder, {}))
    opened._file.close()
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.run(
        [sys.executable, "-m", "expkit.tracking.tracker"],
        env={**os.environ, "EXPKIT_OUTPUTS": str(tmp_path)},
        input=json.dumps({"folder": str(folder), "last": False}) + "\n",
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (child.returncode, child.stderr) == (0, "")
    assert journal.is_ended(folder)


class Preempted:
    """A program whose work is done at once; reading its parameters is disturbed now and then."""

    path = "test"

    def __init__(self, disturbed: int) -> None:
        self.reads, self.disturbed = 0, disturbed

    def reset(self) -> None: ...

    def advance(self, n: int) -> None:
        sleep(1e-3)

    def params(self) -> dict[str, HostArray]:
        self.reads += 1
        if self.reads < self.disturbed:
            sleep(1e-3 * (self.reads % 4 == 0))  # once in each trial, right after the clock
        return {}


def test_a_disturbed_reading_of_the_parameters_is_heard_again() -> None:
    program = cast(Program, Preempted(2 + 4 * 3))
    assert listen(program, lambda: None, 1e-3, 100).sings


def test_a_synchronize_that_never_waits_is_heard_every_time() -> None:
    assert not listen(cast(Program, Preempted(10**6)), lambda: None, 1e-3, 100).sings
