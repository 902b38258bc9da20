"""Seeds are summarised and not listed, and profiles are over problems and seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expkit.measure.verdict import CANT_TELL, FASTER, SAME, SLOWER, UNLIKE, Verdict
from expkit.sweeps import profiles, table
from expkit.sweeps.seeds import Family, families

if TYPE_CHECKING:
    from conftest import Expkit


@dataclass
class Ran:
    """What a family asks of a run."""

    threshold: float = 0.02
    target: str = ""
    summary: Any = None
    loss: float | None = None


@dataclass
class Planned:
    title: str
    baseline: int | None = 0


@dataclass
class Cell:
    """What a family asks of an entry."""

    verdict: Verdict | None
    planned: Planned
    run: Ran
    is_ok: bool = True
    until_target: float | None = None


def family(*ratios: float | tuple[str, float] | None) -> Family:
    """With a seed for each: a ratio, a bound on one, or none because neither side got there."""
    cells = []
    for seed, ratio in enumerate(ratios):
        if ratio is None:
            verdict = Verdict(UNLIKE, 1.0, None, 6)
        elif isinstance(ratio, tuple):
            verdict = Verdict(CANT_TELL, ratio[1], None, 6, "loss of at most 1", ratio[0])
        else:
            verdict = Verdict(CANT_TELL, ratio, (ratio, ratio), 6)
        cells.append(Cell(verdict, Planned(f"numpy · adam, seed={seed}"), Ran()))
    return Family("numpy · adam", cells)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ([0.5] * 10, FASTER),
        ([1.5] * 10, SLOWER),
        ([1.001, 0.999] * 5, SAME),
        ([0.5, 1.5] * 5, CANT_TELL),
        ([0.5] * 5, CANT_TELL),
        ([("at most", 0.5)] * 10, FASTER),
        ([("at least", 0.5)] * 10, CANT_TELL),
        ([("at least", 2.0)] * 10, SLOWER),
        ([("at most", 2.0)] * 10, CANT_TELL),
        ([0.5] * 9 + [None], FASTER),
        ([0.5] * 5 + [None] * 5, CANT_TELL),
        ([0.5] * 9 + [("at least", 3.0)], FASTER),
        ([None] * 10, UNLIKE),
    ],
)
def test_a_verdict_over_seeds_counts_what_each_proves(ratios: Any, word: str) -> None:
    found = family(*ratios).verdict
    assert found is not None
    assert found.word == word


def test_one_that_is_not_there_is_never_averaged_away() -> None:
    seconds = [1.0, 2.0, 3.0, 4.0, 5.0, math.inf]
    assert table._over_seeds(seconds) == ("3.5 s", "1 s to not reached")
    assert table._over_seeds([1.0, math.inf, math.inf])[0] == "not reached"


def test_a_ratio_of_ratios_and_bounds_is_a_bound() -> None:
    found = family(*[0.5] * 9, ("at least", 3.0)).verdict
    assert found is not None
    assert found.times == "at least 0.500 times"


def test_cells_are_of_one_family_where_only_the_seed_differs() -> None:
    titles = [f"numpy · {o}, seed={seed}" for o in ("sgd", "adam") for seed in range(3)]
    cells: Any = [Cell(None, Planned(title), Ran()) for title in titles]
    found = families(cells)
    assert [(f.title, len(f.entries)) for f in found] == [("numpy · sgd", 3), ("numpy · adam", 3)]
    assert families(cells[::3]) == []


def test_a_sweep_over_seeds_has_a_row_an_optimizer(expkit: Expkit) -> None:
    words = ("-m", "problem=linear", "optimizer=sgd,adam", "seed=range(3)", "tracking=none")
    quick = ("measure.repeats_min=2", "measure.budget_s=0")
    done = expkit(*words, *quick)
    assert done.status == 0, done.err
    table = done.out[done.out.index("linear\n") :]
    assert "seeds" in table
    rows = [line.split() for line in table.splitlines() if line.startswith("  numpy")]
    assert {(row[2], row[3]) for row in rows} == {("sgd", "3"), ("adam", "3")}
    assert "seed=" not in table
    result = next(expkit.outputs.glob("sweeps/*/*/result.txt")).read_text()
    assert result.count("numpy · sgd, seed=") >= 3, "the file has every cell"


# Profiles

TIMES: dict[str, dict[tuple[int, str], float]] = {
    "a": {(0, ""): 1.0, (1, ""): 2.0, (2, ""): math.inf, (3, ""): math.inf},
    "b": {(0, ""): 2.0, (1, ""): 1.0, (2, ""): 5.0, (3, ""): math.inf},
}


def share(curves: Any, name: str, x: float) -> float:
    (curve,) = (curve for curve in curves if curve.name == name)
    return float(np.interp(x, curve.x, curve.y))


def test_a_profile_is_the_share_within_a_factor_of_the_first() -> None:
    """Dolan and Moré's definition, by hand: a is first once of four and within 2 twice."""
    found = profiles.performance(TIMES)
    assert share(found, "a", 1.0) == 0.25
    assert share(found, "a", 2.2) == 0.5
    assert share(found, "b", 1.0) == 0.5
    assert share(found, "b", 2.2) == 0.75, "a case that nobody solves counts against all"
    for curve in found:
        assert all(np.diff(curve.y) >= 0)
        assert (np.array(curve.low) <= curve.y).all()
        assert (np.array(curve.high) >= curve.y).all()


def test_targets_are_reached_one_after_the_other() -> None:
    found = profiles.reached(TIMES)
    assert share(found, "b", 5.5) == 0.75
    assert share(found, "a", 5.5) == 0.5
    assert profiles.reached({"a": {(0, ""): math.inf}}) == []


def test_one_problem_is_worth_no_profile() -> None:
    assert profiles.worth(TIMES)
    assert not profiles.worth({"a": {(0, "1"): 1.0}, "b": {(0, "1"): 1.0}})
    assert not profiles.worth({})
