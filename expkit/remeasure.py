"""The other side of `expkit.processes`: a fresh interpreter that measures cells once more.

python -m expkit.remeasure FOLDER PARENT        takes its request on stdin, keeps runs in FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from expkit import children
from expkit.config import Cell, thaw
from expkit.runner import run_together


def _child(place: Path, parent: int) -> None:
    children.die_with_parent(parent)
    request = json.load(sys.stdin)
    children.look_there_too(request["path"])
    cells = [_alone(thaw(frozen)) for frozen in request["cells"]]
    jobs = [(cell, place / str(index)) for index, cell in enumerate(cells)]
    run_together(jobs, None, lambda *_: None, tags={})


def _alone(cell: Cell) -> Cell:
    return replace(cell, measure=replace(cell.measure, processes=1))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]))
