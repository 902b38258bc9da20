"""What a look at the rounds so far finds: whether enough is known, and how far it is from that."""

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
    """At cells that take turns: at each for itself, or against the first of them.

    Attributes:
        cells: gives the seconds of each repeat, by round, of each cell that goes on.
        compared: whether a verdict is asked for, where there are two cells or more.
    """

    measure: Measure
    cells: Callable[[], Sequence[Rounds]]
    compared: bool

    def enough(self) -> str | None:
        """`target_ci` for a narrow interval of each; `verdict` for one on each of the others."""
        if verdicts := self._verdicts():
            return None if any(found.word == CANT_TELL for found in verdicts) else "verdict"
        narrow = all(is_narrow(self.measure, middles) for middles in self._middles())
        return "target_ci" if narrow else None

    def width(self) -> float:
        """Of the intervals that `enough` goes by, the widest; infinite where one has none."""
        if verdicts := self._verdicts():
            ends = (found.interval for found in verdicts)
            return max(math.log(both[1] / both[0]) if both else math.inf for both in ends)
        return max(map(half_width, self._middles()), default=math.inf)

    def _verdicts(self) -> list[Verdict]:
        cells = self.cells() if self.compared else ()
        return [judge(cells[0], rounds, self.measure.threshold) for rounds in cells[1:]]

    def _middles(self) -> list[list[float]]:
        return [[median(repeats) for repeats in rounds if repeats] for rounds in self.cells()]
