"""What a review found: each was wrong once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from expkit.config import compose_cell
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
