"""Cells that differ in the seed alone, taken together."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from expkit.measure.statistics import median_interval
from expkit.measure.verdict import CANT_TELL, UNLIKE, Verdict, word_of
from expkit.sweeps.ranking import Entry

SEED = re.compile(r", seed=\d+")


@dataclass(frozen=True)
class Family:
    """Cells that differ in the seed alone.

    Attributes:
        title: what their titles have in common.
    """

    title: str
    entries: Sequence[Entry]

    @property
    def is_baseline(self) -> bool:
        return all(entry.planned.baseline is None for entry in self.entries)

    @property
    def whole(self) -> list[float]:
        """The median seconds of a run with each seed, where there are any."""
        runs = (entry.run for entry in self.entries)
        return [run.summary.median for run in runs if run and run.summary]

    @property
    def until_target(self) -> list[float]:
        """The median seconds until the target with each seed that has times: infinite where it was
        not reached.
        """
        timed = (entry for entry in self.entries if entry.run and entry.run.summary)
        return [math.inf if (x := entry.until_target) is None else x for entry in timed]

    @property
    def losses(self) -> list[float]:
        """The final loss with each seed, where there is one."""
        runs = (entry.run for entry in self.entries if entry.is_ok)
        return [run.loss for run in runs if run and run.loss is not None]

    @cached_property
    def verdict(self) -> Verdict | None:
        """How they compare with their baselines, seed by seed; None where that is not known.

        If one side has not reached the target with some seed, only a bound on that ratio is known.
        It then supports the verdict that it proves, and speaks against any other.
        """
        found = [entry.verdict for entry in self.entries]
        known = [verdict for verdict in found if verdict and verdict.word != UNLIKE]
        runs = [entry.run for entry in self.entries if entry.run]
        if not known or not runs:
            first = next(filter(None, found), None)
            return first if first and all(v and v.word == UNLIKE for v in found) else None
        lows, highs = [], []
        for verdict in found:
            exact = math.log(verdict.ratio) if verdict and verdict.word != UNLIKE else None
            bound = verdict.bound if verdict else ""
            lows.append(-math.inf if exact is None or bound == "at most" else exact)
            highs.append(math.inf if exact is None or bound == "at least" else exact)
        ratio, target = math.exp(median(math.log(v.ratio) for v in known)), known[0].target
        # A median of ratios and lower bounds is a lower bound itself, and so with upper ones.
        bounds = {verdict.bound for verdict in known if verdict.bound}
        bound = bounds.pop() if len(bounds) == 1 else "about" if bounds else ""
        ends = median_interval(lows), median_interval(highs)
        if ends[0] is None or ends[1] is None:
            return Verdict(CANT_TELL, ratio, None, len(found), target, bound)
        low, high = ends[0][0], ends[1][1]
        word = word_of(low, high, runs[0].threshold)
        return Verdict(word, ratio, (math.exp(low), math.exp(high)), len(found), target, bound)


def families(ranked: Sequence[Entry]) -> list[Family]:
    """Group the cells of a problem that differ in the seed alone, the fastest group first. Empty if
    no two cells do.
    """
    found: dict[str, list[Entry]] = {}
    for entry in ranked:
        found.setdefault(SEED.sub("", entry.planned.title), []).append(entry)
    if all(len(entries) == 1 for entries in found.values()):
        return []
    made = [Family(title, entries) for title, entries in found.items()]
    return sorted(made, key=_rank)


def _rank(family: Family) -> tuple[float, float, float]:
    until, whole, losses = family.until_target, family.whole, family.losses
    aimed = any(entry.run and entry.run.target for entry in family.entries)
    return (
        median(until) if aimed and until else 0.0 if not aimed else math.inf,
        median(whole) if whole else math.inf,
        median(losses) if losses else math.inf,
    )
