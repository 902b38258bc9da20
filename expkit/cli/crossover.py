"""`expkit crossover`: the size beyond which one of two cells is faster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from expkit import door
from expkit.cli.compare import is_apart
from expkit.cli.session import interruptible, show
from expkit.cli.status import CANT_TELL, MAY_NOT_COMPARE, OK, print_error
from expkit.errors import Incomparable, UserError
from expkit.units import seconds

OWN = ("a", "b", "over", "from", "to")
"""The words that are not for the cells."""


def crossover(words: Sequence[str], outputs: Path, isolate: bool | None) -> int:
    """Search, print what was measured at each value, and return the exit status.

    Args:
        isolate: as `expkit compare` has it.
    """
    os.environ["EXPKIT_OUTPUTS"] = str(outputs)
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in OWN}
    rest = [word for word in words if word.partition("=")[0] not in OWN]
    try:
        low, high = (_number(own, end) for end in ("from", "to"))
        for key in ("a", "b", "over"):
            if not own.get(key):
                raise UserError(
                    f"crossover: takes {key}=..., such as a=numpy b=torch over=problem.n"
                )
        a, b, over = own["a"], own["b"], own["over"]
        cells = [door.cell(*rest, *door.side(each)) for each in (a, b)]
    except UserError as error:
        return print_error(error)
    here = not is_apart(cells, isolate)

    def watch(at: float, found: door.Comparison) -> None:
        times = " and ".join(seconds(run.seconds) for run in (found.a, found.b) if run.seconds)
        verdict = found.verdict
        said = ""
        if verdict:
            ends = "no interval"
            if verdict.interval:
                ends = "{:.3f} to {:.3f}".format(*verdict.interval)
            said = f"; b takes {verdict.ratio:.3f} times as long ({ends})"
        show(f"{over} = {at:g}: {times or 'no time'}{said}")

    def work() -> int:
        try:
            found = door.crossover(
                a, b, *rest, over=over, low=low, high=high, here=here, watch=watch
            )
        except Incomparable as error:
            return print_error(error, MAY_NOT_COMPARE)
        except KeyboardInterrupt:
            print_error(f"interrupted; what was measured is in {outputs / 'comparisons'}")
            raise
        show(f"\n{found}")
        return OK if found.told else CANT_TELL

    return interruptible(work)


def _number(own: dict[str, str], key: str) -> float | None:
    if key not in own:
        return None
    try:
        return float(own[key])
    except ValueError:
        raise UserError(f"crossover: {key}: got {own[key]!r}, takes a number") from None
