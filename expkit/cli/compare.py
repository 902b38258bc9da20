"""`expkit compare A B`: two stored runs, or two cells measured now, in turn."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from expkit.cli.run import interruptible, tracker_for
from expkit.cli.status import CANT_TELL, FAILED, MAY_NOT_COMPARE, OK, complain
from expkit.errors import Unavailable, UserError
from expkit.measure import verdict
from expkit.report.comparison import Comparison, hold, table
from expkit.tracking.stored import find, load
from expkit.tracking.tracker import one_line


def compare(a: str, b: str, both: Sequence[str], outputs: Path, threshold: float | None) -> int:
    """Compare, print, and return the exit status."""
    if "=" in a and "=" in b and not Path(a).exists():
        words = ["measure=standard", *both]
        if threshold is not None:
            words.append(f"measure.threshold={threshold}")
        return interruptible(lambda: _now([[*words, *_split(side)] for side in (a, b)]))
    if both:
        return complain(f"compare: {both[0]}: stored runs take no words")
    try:
        found = hold(load(find(a, outputs)), load(find(b, outputs)), threshold or 0.02)
    except UserError as error:
        return complain(error)
    return _tell(found, threshold or 0.02)


def _split(side: str) -> list[str]:
    try:
        return shlex.split(side)
    except ValueError as error:  # a quotation that does not end
        raise UserError(f"compare: {side}: {error}") from error


def _now(sides: Sequence[Sequence[str]]) -> int:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from expkit import runner
    from expkit.cli.complaints import explain
    from expkit.cli.progress import progress
    from expkit.config import compose_cell
    from expkit.report import plots

    with tracker_for([word for side in sides for word in side]) as tracker:
        cells = []
        for words in sides:
            try:
                cells.append(compose_cell(*words))
            except (HydraException, OmegaConfBaseException) as error:
                raise UserError(explain(error, words)) from error
        started = datetime.now()
        name = f"{started:%Y-%m-%d/%H-%M-%S-%f}"
        place = cells[0].outputs / "comparisons" / name
        folders = [place / "a", place / "b"]
        with progress(cells[0].workload.steps) as watch:
            try:
                runner.run_together(
                    list(zip(cells, folders, strict=True)),
                    tracker,
                    watch,
                    plots.draw,
                    tags={"interleaved": name},
                )
            except Unavailable as error:
                raise UserError(f"compare: {error}") from error
            except UserError as error:
                return complain(error, FAILED)
            except KeyboardInterrupt:
                complain(f"interrupted; what was measured is in {place}")
                raise
            except Exception as error:
                where = f"see {folders[0] / 'error.txt'}"
                return complain(f"the comparison failed: {one_line(error)}; {where}", FAILED)
    threshold = cells[0].measure.threshold
    return _tell(hold(load(folders[0]), load(folders[1]), threshold), threshold)


def _tell(found: Comparison, threshold: float) -> int:
    print(table(found, threshold))
    sys.stdout.flush()
    if found.verdict is None:
        refused = any(run.outcome != "ok" for run in (found.a, found.b))
        return FAILED if refused else MAY_NOT_COMPARE
    words = {verdict.SLOWER: FAILED, verdict.CANT_TELL: CANT_TELL}
    return words.get(found.verdict.word, OK)
