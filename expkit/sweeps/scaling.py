"""What a sweep found for each value of a number that it sweeps, such as a size or a rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

from expkit.measure.crossover import Crossing, Point, crossings
from expkit.record.colours import colours, shade
from expkit.report import charts as drawing
from expkit.report.charts import FAR, Curve
from expkit.sweeps.labels import CHOICES
from expkit.sweeps.manifest import Planned
from expkit.sweeps.ranking import Entry, Results

UNORDERED = ("seed", "log_every")
"""Numbers over which no curve is drawn."""
FEWEST = 3
"""The fewest values of a number that make a curve."""
HELD = 4
"""The most curves that are all held against each other."""


@dataclass(frozen=True)
class Chart:
    """Curves over one key.

    Attributes:
        key: the key that is swept.
        timed: whether the curves are of seconds, or else of final losses.
        ends: the least and the greatest value of the key.
    """

    title: str
    key: str
    timed: bool
    curves: Sequence[Curve]
    ends: Collection[float]

    @cached_property
    def crossed(self) -> list[tuple[Curve, Curve, Crossing]]:
        """Where one curve of times overtakes another."""
        pairs = combinations(self.curves, 2) if self.timed and len(self.curves) <= HELD else ()
        return [(a, b, found) for a, b in pairs for found in crossings(_ratios(a, b))]

    @property
    def findings(self) -> list[str]:
        """Say where one curve overtakes another, or which value gives each the least loss."""
        if not self.timed:
            best = [(curve.name, *min(zip(curve.y, curve.x, strict=True))) for curve in self.curves]
            return [
                f"{name} has the least at {self.key} = {x:g}: {loss:.6g}"
                + (", at the end of the range" if x in self.ends else "")
                for name, loss, x in best
            ]
        return [
            f"{a.name} and {b.name} take the same time at about {self.key} = {found.at:.3g} "
            f"(between {found.below.at:g} and {found.above.at:g})"
            for a, b, found in self.crossed
        ]

    def svg(self) -> str:
        values = [x for curve in self.curves for x in curve.x]
        return drawing.curves(
            self.curves,
            self.key,
            "time of a run" if self.timed else "final loss",
            logarithmic_x=min(values) > 0 and max(values) > FAR * min(values),
            in_seconds="y" if self.timed else "",
            points=True,
            crossings=[(found.at, f"{found.at:.3g}") for _, _, found in self.crossed],
        )


def settings(planned: Planned) -> dict[str, object]:
    """Return what was chosen for a cell, by key; a value that its problem recommends is `???`."""
    found: dict[str, object] = {}
    for group, value in planned.frozen["config"].items():
        if isinstance(value, Mapping) and group in CHOICES:
            found |= {f"{group}.{key}": one for key, one in value.items() if key != "_target_"}
        elif group in ("steps", "log_every", "stream", "seed"):
            found[group] = value
    return found | {kind: planned.frozen["choices"].get(kind) for kind in CHOICES}


def charts(found: Results) -> list[Chart]:
    """Return a chart for each number of which at least `FEWEST` values were swept."""
    chosen = {entry.planned.index: settings(entry.planned) for entry in found.entries}
    every = dict.fromkeys(key for own in chosen.values() for key in own)
    varying = [key for key in every if len({str(own.get(key)) for own in chosen.values()}) > 1]
    made = []
    for key in (key for key in varying if key not in UNORDERED):
        rows: dict[str, list[tuple[float, Entry]]] = {}
        for entry in found.entries:
            own = chosen[entry.planned.index]
            number = own.get(key)
            if isinstance(number, int | float) and not isinstance(number, bool):
                rest = str([(other, own.get(other)) for other in varying if other != key])
                rows.setdefault(rest, []).append((float(number), entry))
        swept = [
            sorted(row, key=lambda each: each[0]) for row in rows.values() if len(row) >= FEWEST
        ]
        timed = found.manifest.sweep.timing and not key.startswith("optimizer.")
        curves = [curve for row in swept if (curve := _curve(key, row, timed=timed))]
        if curves:
            what = "Time" if timed else "Final loss"
            ends = {row[0][0] for row in swept} | {row[-1][0] for row in swept}
            made.append(Chart(f"{what} by {key}", key, timed, _coloured(curves), ends))
    return made


def _curve(key: str, row: Sequence[tuple[float, Entry]], *, timed: bool) -> Curve | None:
    """Return the curve of cells that differ in one number alone, and have a time or a loss."""
    points: list[tuple[float, float, float, float]] = []
    for number, entry in row:
        run = entry.run
        if not entry.is_ok or run is None:
            continue
        if timed and run.summary:
            points.append((number, run.summary.median, run.summary.low, run.summary.high))
        elif not timed and run.loss is not None:
            points.append((number, run.loss, run.loss, run.loss))
    if not points:
        return None
    x, y, low, high = zip(*points, strict=True)
    first = row[0][1].planned
    backend = first.frozen["choices"].get("backend", "")
    ends = (low, high) if timed else ((), ())
    return Curve(_name(first, key), colours([backend])[backend], x, y, *ends)


def _ratios(a: Curve, b: Curve) -> list[Point]:
    """Return how the times of B compare with those of A, where both have one."""
    times = {x: ends for x, *ends in zip(a.x, a.y, a.low, a.high, strict=True)}
    return [
        Point(x, y / times[x][0], low / times[x][2], high / times[x][1])
        for x, y, low, high in zip(b.x, b.y, b.low, b.high, strict=True)
        if x in times
    ]


def _name(planned: Planned, key: str) -> str:
    """Return a cell's name without the value of a key."""
    end = key.rpartition(".")[2]
    parts = (planned.name or planned.title).split(" · ")
    left = [part for part in parts if not part.startswith((f"{end}=", f"{key}="))]
    return " · ".join(left) or "all"


def _coloured(curves: Sequence[Curve]) -> list[Curve]:
    """Return the curves in shades of their colours, where several have the same."""
    count = Counter(curve.colour for curve in curves)
    used: Counter[str] = Counter()
    found = []
    for curve in curves:
        found.append(
            replace(curve, colour=shade(curve.colour, used[curve.colour], count[curve.colour]))
        )
        used[curve.colour] += 1
    return found
