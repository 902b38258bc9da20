"""A look at the rounds so far: whether enough is known, and how wide the intervals still are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from expkit.measure.statistics import Rounds
from expkit.measure.stopping import Measure, half_width, is_narrow
from expkit.measure.verdict import CANT_TELL, Verdict, judge


@dataclass(frozen=True)
class Look:
    """A look at cells that take turns: at each by itself, or at each compared with the first.

    Attributes:
        cells: returns, for each cell that goes on, the seconds of its repeats by round.
        compared: whether verdicts are wanted, where there are two cells or more.
    """

    measure: Measure
    cells: Callable[[], Sequence[Rounds]]
    compared: bool

    def enough(self) -> str | None:
        """`verdict` if all other cells have one; if not compared, `target_ci` if all are narrow."""
        if verdicts := self._verdicts():
            return None if any(found.word == CANT_TELL for found in verdicts) else "verdict"
        narrow = all(is_narrow(self.measure, middles) for middles in self._middles())
        return "target_ci" if narrow else None

    def width(self) -> float:
        """The widest of the intervals that `enough` uses; infinite if a cell has no interval."""
        if verdicts := self._verdicts():
            ends = (found.interval for found in verdicts)
            return max(math.log(both[1] / both[0]) if both else math.inf for both in ends)
        return max(map(half_width, self._middles()), default=math.inf)

    def _verdicts(self) -> list[Verdict]:
        cells = self.cells() if self.compared else ()
        return [judge(cells[0], rounds, self.measure.threshold) for rounds in cells[1:]]

    def _middles(self) -> list[list[float]]:
        return [[median(repeats) for repeats in rounds if repeats] for rounds in self.cells()]
