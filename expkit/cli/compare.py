"""`expkit compare A B`: two stored runs, or two cells measured now, in turn."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from expkit.cli.run import (
    interruptible,
    not_in_mlflow,
    reported,
    require_plain,
    show,
    tracker_for,
    used_by,
)
from expkit.cli.status import CANT_TELL, FAILED, MAY_NOT_COMPARE, OK, complain
from expkit.cli.words import check_words
from expkit.errors import UserError
from expkit.measure import verdict
from expkit.report.comparison import Comparison, hold, table
from expkit.tracking.stored import find, load

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
    verbose: bool = False,
) -> int:
    """Compare, print, and return the exit status."""
    if all("=" in side and not Path(side).exists() for side in (a, b)):
        os.environ["EXPKIT_OUTPUTS"] = str(outputs)  # no word: Hydra's grammar would read it
        words = ["measure=standard", *both]
        if threshold is not None:
            words.append(f"measure.threshold={threshold}")
        return interruptible(
            lambda: _now([[*words, *_split(side)] for side in (a, b)], verbose=verbose)
        )
    if both:
        return complain(f"compare: got {both[0]!r} after two runs, takes nothing there")
    try:
        first, second = (load(find(side, outputs)) for side in (a, b))
        threshold = threshold or first.threshold
        found = hold(first, second, threshold)
    except UserError as error:
        return complain(error)
    return _tell(found, threshold, verbose=verbose)


def _split(side: str) -> list[str]:
    try:
        return shlex.split(side)
    except ValueError as error:  # a quotation that does not end
        raise UserError(f"compare: {side}: {error}") from error


def _now(sides: Sequence[Sequence[str]], *, verbose: bool) -> int:
    """Measure both in this process, record both, and compare."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from expkit import runner
    from expkit.cli.complaints import explain
    from expkit.cli.progress import progress
    from expkit.config import compose_cell, default_outputs
    from expkit.report import plots

    require_plain(default_outputs())
    with tracker_for([word for side in sides for word in side]) as tracker:
        cells = []
        for words in sides:
            check_words(words)
            try:
                cells.append(compose_cell(*words))
            except (HydraException, OmegaConfBaseException, YAMLError) as error:
                raise UserError(explain(error, words)) from error
        first = cells[0]
        if first.measure != cells[1].measure:
            raise UserError("measure: got two, takes one for both: give it after the two sides")
        name = f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
        place = first.outputs / "comparisons" / name
        folders = [place / "a", place / "b"]

        def work() -> int:
            jobs = list(zip(cells, folders, strict=True))
            tags = {"interleaved": name}
            steps = first.workload.steps
            used_tracker = used_by(cells, place, tracker)
            with progress(first.measure, steps, 2) as watch, used_tracker as used:
                results = runner.run_together(jobs, used, watch, plots.draw, tags=tags)
            threshold = first.measure.threshold
            found = hold(load(folders[0]), load(folders[1]), threshold)
            status = _tell(found, threshold, verbose=verbose)
            for result in results:
                if result.sent and result.sent.error:
                    return not_in_mlflow(result.sent.error, place)
            return status

        return reported(work, place)


def _tell(found: Comparison, threshold: float, *, verbose: bool) -> int:
    show(table(found, threshold, verbose=verbose))
    if found.verdict is None:
        refused = any(run.outcome != "ok" for run in (found.a, found.b))
        return FAILED if refused else MAY_NOT_COMPARE
    return STATUSES[found.verdict.word]
