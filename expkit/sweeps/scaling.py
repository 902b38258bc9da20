"""What a sweep found for each value of a number that it sweeps, such as a size or a rate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations

from expkit.measure.crossover import Crossing, Point, crossings
from expkit.measure.verdict import UNLIKE
from expkit.record.colours import colours, shade
from expkit.report import charts as drawing
from expkit.report.charts import FAR, Curve
from expkit.sweeps.labels import CHOICES
from expkit.sweeps.manifest import Planned
from expkit.sweeps.ranking import Entry, Results
from expkit.units import seconds

UNORDERED = ("seed", "log_every", "eval_every", "measure.", "target.")
"""How keys begin over which no curve is drawn."""
TITLES = {"time": "Time", "target": "Time to the target", "loss": "Final loss"}
LABELS = {"time": "time of a run", "target": "time to the target", "loss": "final loss"}
FEWEST = 3
"""The fewest values of a number that make a curve."""


Row = Sequence[tuple[float, Entry]]
"""Cells that differ in one number alone, by its value."""


@dataclass(frozen=True)
class Chart:
    """Curves over one key.

    Attributes:
        key: the key that is swept.
        of: what the curves are of: `time` of a run, `target` for the time until it, or `loss`.
        rows: the cells of each curve.
    """

    title: str
    key: str
    of: str
    curves: Sequence[Curve]
    rows: Sequence[Row]

    @cached_property
    def crossed(self) -> list[tuple[Curve, Curve, Crossing]]:
        """Where one curve of times overtakes another whose cells are its cells' baselines."""
        both = zip(self.curves, self.rows, strict=True)
        pairs = permutations(both, 2) if self.of == "time" else ()
        return [(a, b, at) for (a, own), (b, base) in pairs for at in crossings(_held(own, base))]

    @property
    def findings(self) -> list[str]:
        """Say where one curve overtakes another, or which value is the best for each."""
        if self.of == "time":
            return [
                f"{a.name} and {b.name} take the same time at about {self.key} = {found.at:.3g} "
                f"(between {found.below.at:g} and {found.above.at:g})"
                for a, b, found in self.crossed
            ]
        said = []
        for curve, row in zip(self.curves, self.rows, strict=True):
            best, x = min(zip(curve.y, curve.x, strict=True))
            end = ", at the end of the range" if x in (row[0][0], row[-1][0]) else ""
            if self.of == "loss":
                name = f"the loss of {curve.name}" if curve.name else "the loss"
                said.append(f"{name} is least at {self.key} = {x:g}: {best:.6g}{end}")
                continue
            missed = len(row) - len(curve.x)
            more = f"; not reached at {missed} of {len(row)} values" if missed else ""
            who = f"{curve.name} reaches its target" if curve.name else "the target is reached"
            said.append(f"{who} first at {self.key} = {x:g}: {seconds(best)}{end}{more}")
        return said

    def svg(self) -> str:
        values = [x for curve in self.curves for x in curve.x]
        return drawing.curves(
            self.curves,
            self.key,
            LABELS[self.of],
            logarithmic_x=min(values) > 0 and max(values) > FAR * min(values),
            in_seconds="" if self.of == "loss" else "y",
            points=True,
            crossings=[(found.at, f"{found.at:.3g}") for _, _, found in self.crossed],
        )


def settings(planned: Planned) -> dict[str, object]:
    """Return what was chosen for a cell, by key; a value that its problem recommends is `???`."""
    found: dict[str, object] = {}
    for group, value in planned.frozen["config"].items():
        if isinstance(value, Mapping) and group in (*CHOICES, "measure", "target", "update"):
            found |= {f"{group}.{key}": one for key, one in value.items() if key != "_target_"}
        elif group in ("steps", "log_every", "eval_every", "stream", "seed"):
            found[group] = value
    return found | {kind: planned.frozen["choices"].get(kind) for kind in CHOICES}


def charts(found: Results) -> list[Chart]:
    """Return a chart for each number of which at least `FEWEST` values were swept.

    Times are drawn over all such numbers but an optimizer's. Over an optimizer's it is the time
    until the target, or the final loss where there is no target.
    """
    runs = [entry.run for entry in found.entries if entry.run and entry.is_ok]
    aimed = found.manifest.sweep.timing and bool(runs) and all(run.target for run in runs)
    chosen = {entry.planned.index: settings(entry.planned) for entry in found.entries}
    every = dict.fromkeys(key for own in chosen.values() for key in own)
    varying = [key for key in every if len({str(own.get(key)) for own in chosen.values()}) > 1]
    made = []
    for key in varying:
        timed = not key.startswith(("optimizer.", "update."))
        if key.startswith(UNORDERED) or (timed and not found.manifest.sweep.timing):
            continue
        of = "time" if timed else "target" if aimed else "loss"
        rows: dict[str, list[tuple[float, Entry]]] = {}
        for entry in found.entries:
            own = chosen[entry.planned.index]
            number = own.get(key)
            if isinstance(number, int | float) and not isinstance(number, bool):
                rest = str([(other, own.get(other)) for other in varying if other != key])
                rows.setdefault(rest, []).append((float(number), entry))
        swept = [sorted(row, key=lambda each: each[0]) for row in rows.values()]
        drawn = [
            (curve, row)
            for row in swept
            if len({x for x, _ in row}) >= FEWEST and (curve := _curve(key, row, of))
        ]
        if drawn:
            backends = [backend(row[0][1].planned) for _, row in drawn]
            curves = coloured([curve for curve, _ in drawn], backends)
            title = f"{TITLES[of]} by {key}"
            made.append(Chart(title, key, of, curves, [row for _, row in drawn]))
    return made


def _curve(key: str, row: Row, of: str) -> Curve | None:
    """Return the curve of cells that differ in one number alone, and have what it is of."""
    points: list[tuple[float, float, float, float]] = []
    for number, entry in row:
        run = entry.run
        if not entry.is_ok or run is None:
            continue
        summary = {"time": run.summary, "target": run.target_summary}.get(of)
        if summary:
            points.append((number, summary.median, summary.low, summary.high))
        elif of == "loss" and run.loss is not None:
            points.append((number, run.loss, run.loss, run.loss))
    if not points:
        return None
    x, y, low, high = zip(*points, strict=True)
    ends = ((), ()) if of == "loss" else (low, high)
    return Curve(_name(row[0][1].planned, key), "", x, y, *ends)


def _held(row: Row, base: Row) -> list[Point]:
    """Return the verdicts on the cells of a row whose baselines are in the other."""
    bases = {entry.planned.index for _, entry in base}
    return [
        Point(x, entry.verdict.ratio, entry.verdict.word)
        for x, entry in row
        if entry.verdict
        and entry.verdict.word != UNLIKE
        and not entry.verdict.target
        and entry.planned.baseline in bases
    ]


def _name(planned: Planned, key: str) -> str:
    """Return a cell's name without the value of a key; empty where nothing else is in it."""
    end = key.rpartition(".")[2]
    parts = re.split(" · |, ", planned.name or planned.title)
    return " · ".join(part for part in parts if not part.startswith((f"{end}=", f"{key}=")))


def backend(planned: Planned) -> str:
    """Return the name of a cell's backend."""
    return str(planned.frozen["choices"].get("backend", ""))


def coloured(curves: Sequence[Curve], backends: Sequence[str]) -> list[Curve]:
    """Return the curves in the colours of their backends, in shades where several have the same."""
    base, count = colours(backends), Counter(backends)
    used: Counter[str] = Counter()
    found = []
    for curve, backend in zip(curves, backends, strict=True):
        found.append(replace(curve, colour=shade(base[backend], used[backend], count[backend])))
        used[backend] += 1
    return found
