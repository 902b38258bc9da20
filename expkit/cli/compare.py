"""`expkit compare A B`: two stored runs, or two cells measured now, in turn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from expkit import door
from expkit.cli.session import (
    draw,
    interruptible,
    not_in_mlflow,
    reported,
    require_plain,
    send,
    show,
    tracker_for,
    used_by,
)
from expkit.cli.status import CANT_TELL, FAILED, MAY_NOT_COMPARE, OK, print_error
from expkit.cli.words import check_words
from expkit.errors import UserError
from expkit.measure import verdict
from expkit.outcome import Outcome

if TYPE_CHECKING:
    from expkit.config import Cell

SHIPPED = "expkit_plugins"
"""The package of the backends that ship with expkit."""

STATUSES = {
    verdict.FASTER: OK,
    verdict.SAME: OK,
    verdict.SLOWER: FAILED,
    verdict.CANT_TELL: CANT_TELL,
    verdict.UNLIKE: MAY_NOT_COMPARE,
}


def compare(
    a: str,
    b: str,
    both: Sequence[str],
    outputs: Path,
    threshold: float | None,
    *,
    isolate: bool | None = None,
    verbose: bool = False,
) -> int:
    """Compare, print, and return the exit status.

    Args:
        isolate: whether each cell is measured in a process of its own; if None, only where a
            backend is not expkit's own.
    """
    os.environ["EXPKIT_OUTPUTS"] = str(outputs)  # not as a word, which Hydra would parse
    if all("=" in side and not Path(side).exists() for side in (a, b)):
        words = ["measure=standard", *both]
        if threshold is not None:
            words.append(f"measure.threshold={threshold}")
        return interruptible(
            lambda: _now([[*words, *door.side(each)] for each in (a, b)], isolate, verbose=verbose)
        )
    if isolate is not None:
        said = "--isolate" if isolate else "--no-isolate"
        return print_error(f"compare: got {said} with two runs, takes it with two cells")
    if both:
        return print_error(f"compare: got {both[0]!r} after two runs, takes nothing there")
    try:
        found = door.compare(a, b, threshold=threshold)
    except UserError as error:
        return print_error(error)
    return _tell(found, verbose=verbose)


def _now(sides: Sequence[Sequence[str]], isolate: bool | None, *, verbose: bool) -> int:
    """Measure both, here or each in a process of its own, record both, and compare."""
    from expkit.cli import COMMANDS
    from expkit.cli.progress import progress
    from expkit.config import compose_cell, default_outputs
    from expkit.error_messages import explained

    require_plain(default_outputs())
    with tracker_for([word for side in sides for word in side]) as tracker:
        cells = []
        for words in sides:
            check_words(words)
            with explained(words, COMMANDS):
                cells.append(compose_cell(*words))
        here = not is_apart(cells, isolate)
        jobs, tags = door.in_turn(*cells, here=here)
        folders = [folder for _, folder in jobs]
        place = folders[0].parent

        def work() -> int:
            first = cells[0]
            with used_by(cells, place, tracker) as used:
                with progress(first.measure, first.workload.steps, 2) as watch:
                    runs = door.measured(jobs, used, watch, here=here, tags=tags)
                status = _tell(door.compare(*runs), verbose=verbose)
                draw(jobs)
                for run in send(folders, used):
                    if run.error:
                        return not_in_mlflow(run.error, place)
            return status

        return reported(work, place)


def is_apart(cells: Sequence[Cell], isolate: bool | None) -> bool:
    """Whether each cell has a process of its own."""
    if isolate is None:
        modules = (type(cell.backend).__module__ for cell in cells)
        return any(name.partition(".")[0] != SHIPPED for name in modules)
    return isolate


def _tell(found: door.Comparison, *, verbose: bool = False) -> int:
    show(found.table(verbose=verbose))
    if found.verdict is None:
        refused = any(run.outcome != Outcome.OK for run in (found.a, found.b))
        return FAILED if refused else MAY_NOT_COMPARE
    return STATUSES[found.verdict.word]
