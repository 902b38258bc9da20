"""A sweep's results, each cell beside its baseline: what tables, exports and pages show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from expkit.measure import parity
from expkit.measure.verdict import Verdict
from expkit.outcome import Outcome
from expkit.record.stored import Stored
from expkit.report.comparison import Comparison, hold
from expkit.sweeps.manifest import Manifest, Planned

TITLES = 3
"""The most problems that a title names."""


@dataclass(frozen=True)
class Entry:
    """A cell, and what came of it.

    Attributes:
        run: the cell's newest finished run, or else its newest; None if there is none.
        base: the same of its baseline; None also where it has no baseline.
    """

    planned: Planned
    run: Stored | None
    base: Stored | None

    @property
    def outcome(self) -> str:
        """How it ended; `not run` without a run that can be read."""
        return self.run.outcome if self.run else "not run"

    @property
    def is_ok(self) -> bool:
        return self.run is not None and self.run.outcome == Outcome.OK

    @property
    def until_target(self) -> float | None:
        """The median seconds until its target; None where it was not reached, or there is none."""
        found = self.run.target_summary if self.run and self.is_ok else None
        return found.median if found else None

    @cached_property
    def held(self) -> Comparison | None:
        """Its comparison with its baseline; None where one of them has no time."""
        if not self.is_ok or self.run is None or self.base is None:
            return None
        return hold(self.base, self.run, self.run.threshold) if self.base.summary else None

    @property
    def verdict(self) -> Verdict | None:
        return self.held.verdict if self.held else None

    @property
    def standing(self) -> str:
        """The word of its verdict, or why it has none."""
        if self.planned.baseline is None:
            return "baseline"
        if self.held is None or self.run is None:
            return "the baseline has no time"
        if self.held.verdict is None:
            together = self.held.a.interleaved == self.held.b.interleaved
            return "not comparable" if together else "not measured in turn"
        return self.held.verdict.word

    @property
    def unlike(self) -> Sequence[str]:
        """Where its work differs from its baseline's, or from what the cell states."""
        if not self.is_ok or self.run is None:
            return []
        if self.base is None or self.base.outcome != Outcome.OK:
            return self.run.broken
        return parity.unlike(self.base, self.run, ("the baseline", "this cell"))


@dataclass(frozen=True)
class Results:
    """What has come of a sweep by now.

    Attributes:
        entries: its cells, in their order.
    """

    manifest: Manifest
    entries: Sequence[Entry]

    @classmethod
    def read(cls, manifest: Manifest) -> Results:
        """Read the runs of a sweep's cells."""
        runs: dict[int | None, Stored | None] = {
            cell.index: manifest.result(cell) for cell in manifest.cells
        }
        cells = manifest.cells
        return cls(manifest, [Entry(c, runs[c.index], runs.get(c.baseline)) for c in cells])

    def by_problem(self) -> list[tuple[str, list[Entry]]]:
        """Rank the cells of each problem: the first to reach the target, or else the fastest first;
        if none is timed, by their loss. Those of a search are ranked together, by its objective.

        Returns:
            The problems' titles with their cells, those without a result last. Problems all of
            whose cells are damaged are left out.
        """
        if self.manifest.best:
            titles = list(dict.fromkeys(self.manifest.groups))
            title = ", ".join(titles) if len(titles) <= TITLES else "several problems"
            return [(title, sorted(self.entries, key=self._rank))] if self.entries else []
        groups = [
            (title, sorted((e for e in self.entries if e.planned.group == number), key=self._rank))
            for number, title in enumerate(self.manifest.groups)
        ]
        return [(title, ranked) for title, ranked in groups if ranked]

    def outcomes(self) -> Counter[str]:
        """Count the cells by outcome; a cell without a readable run counts as `not run`."""
        return Counter(entry.outcome for entry in self.entries)

    def objective(self, entry: Entry) -> float | None:
        """Return what a search looks for: the median seconds or the final loss of a cell."""
        if entry.run is None or not entry.is_ok:
            return None
        return objective(entry.run, self.manifest.sweep.objective)

    def _rank(self, entry: Entry) -> tuple[float, float]:
        loss = entry.run.loss if entry.is_ok and entry.run else None
        by_loss = math.inf if loss is None else loss
        if self.manifest.best:
            value = self.objective(entry)
            if value is None or math.isnan(value):
                return math.inf, by_loss
            return -value if self.manifest.best == "greatest" else value, by_loss
        if not self.manifest.sweep.timing:
            return by_loss, by_loss
        if entry.run and entry.run.target:
            return entry.until_target or math.inf, by_loss
        return entry.run.summary.median if entry.run and entry.run.summary else math.inf, by_loss


def objective(run: Stored, kind: str) -> float | None:
    """Return the objective of a run that ended well: its final loss, its median seconds, or those
    until its target, which are infinite where it was not reached.
    """
    if kind == "loss":
        return run.loss
    if kind == "target":
        return run.target_summary.median if run.target_summary else math.inf
    return run.summary.median if run.summary else None
