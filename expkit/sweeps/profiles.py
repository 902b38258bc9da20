"""Which optimizer reaches its targets first, over several problems and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from expkit.report.charts import Curve
from expkit.sweeps.manifest import Planned
from expkit.sweeps.ranking import Results
from expkit.sweeps.seeds import SEED

Times = Mapping[str, Mapping[tuple[int, str], float]]
"""Seconds until the target for each solver, by problem and seed; infinite where it is missed."""
FEWEST = 2
"""The fewest problems, and the fewest solvers, that are worth a profile."""
POINTS = 60
RESAMPLES = 400
BAND = (0.025, 0.975)


def times(found: Results) -> Times:
    """Return the seconds until the target of all cells that have one.

    Only problems and seeds count with which every solver has ended: one that failed, or whose data
    are missing, is neither fast nor slow.
    """
    every: dict[str, dict[tuple[int, str], float]] = {}
    for entry in found.entries:
        if entry.run is None or not entry.run.target or entry.run.summary is None:
            continue
        title = entry.planned.title
        seed = "".join(SEED.findall(title))
        until = entry.until_target
        own = every.setdefault(solver(entry.planned), {})
        own[entry.planned.group, seed] = math.inf if until is None else until
    common = set.intersection(*(set(own) for own in every.values())) if every else set()
    return {name: {case: own[case] for case in sorted(common)} for name, own in every.items()}


def solver(planned: Planned) -> str:
    """Return the name of what solves a cell's problem: its title without the seed."""
    return SEED.sub("", planned.title)


def worth(found: Times) -> bool:
    """Whether there are several problems and several solvers."""
    problems = {problem for own in found.values() for problem, _ in own}
    return len(found) >= FEWEST and len(problems) >= FEWEST


def performance(found: Times) -> list[Curve]:
    """The performance profile of each solver (Dolan and Moré, 2002): with which share of the cases
    it takes at most so many times as long as the one that is first there.

    A case that no solver solves counts against all. The bands are from resampling problems, and
    seeds within them.
    """
    cases, table = _table(found)
    best = table.min(axis=0)
    with np.errstate(invalid="ignore"):
        ratios = np.where(np.isfinite(table), table / best, math.inf)
    finite = ratios[np.isfinite(ratios)]
    at = np.geomspace(1, max(2.0, 1.1 * float(finite.max(initial=1))), POINTS)
    return _curves(list(found), cases, ratios, at)


def reached(found: Times) -> list[Curve]:
    """With which share of the cases each solver has reached its target after so many seconds."""
    cases, table = _table(found)
    finite = table[np.isfinite(table)]
    if not finite.size:
        return []
    at = np.geomspace(float(finite.min()) / 1.1, 1.1 * float(finite.max()), POINTS)
    return _curves(list(found), cases, table, at)


def _table(found: Times) -> tuple[Sequence[tuple[int, str]], npt.NDArray[np.float64]]:
    """The cases, and the seconds of shape (solvers, cases)."""
    cases = list(next(iter(found.values())))
    return cases, np.array([[own[case] for case in cases] for own in found.values()])


def _curves(
    names: Sequence[str],
    cases: Sequence[tuple[int, str]],
    values: npt.NDArray[np.float64],
    at: npt.NDArray[np.float64],
) -> list[Curve]:
    """The share of the cases of which each solver's value is at most each of these."""
    below = values[:, :, None] <= at  # solvers, cases, places
    bands = _bands(cases, below)
    return [
        Curve(name, "", at.tolist(), share.tolist(), low.tolist(), high.tolist())
        for name, share, low, high in zip(names, below.mean(axis=1), *bands, strict=True)
    ]


def _bands(
    cases: Sequence[tuple[int, str]], below: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Resample problems, then the seeds of each; return both ends of the band, of shape (solvers,
    places).
    """
    rng = np.random.default_rng(0)  # the same page from the same record
    groups: dict[int, list[int]] = {}
    for number, (problem, _) in enumerate(cases):
        groups.setdefault(problem, []).append(number)
    own = [np.array(numbers) for numbers in groups.values()]
    drawn = []
    for _ in range(RESAMPLES):
        picked = [own[i] for i in rng.integers(len(own), size=len(own))]
        chosen = np.concatenate([rng.choice(numbers, numbers.size) for numbers in picked])
        drawn.append(below[:, chosen].mean(axis=1))
    low, high = np.quantile(drawn, BAND, axis=0)
    return low, high
