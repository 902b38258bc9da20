"""The size beyond which one of two is faster: the search, and the command on a planted pair."""

from __future__ import annotations

import random
import re
import signal
from typing import TYPE_CHECKING

import pytest

from expkit.door import Crossover
from expkit.measure.crossover import GRID, MOST, NEAR, Point, crossings, search
from expkit.measure.verdict import CANT_TELL, FASTER, SAME, SLOWER
from expkit.record.stored import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Expkit

PLANTED = """
    import time
    from dataclasses import dataclass

    from expkit.authors import StepProgram
    from expkit_plugins.numpy.backend import NumpyBackend
    from expkit_plugins.numpy.backend import manual

    class Slowed(StepProgram):
        def advance(self, n):
            end = time.perf_counter() + 1e-6 * n * self.step_us
            super().advance(n)
            while time.perf_counter() < end:
                pass

    @dataclass(frozen=True)
    class Backend(NumpyBackend):
        fixed: float = 0.0
        each: float = 0.0

        def build(self, workload):
            program = Slowed(self, workload, manual(self.xp))
            program.step_us = self.fixed + self.each * workload.problem.n
            return program
"""
"""A backend whose step takes `fixed` microseconds and `each` more for each element of a row."""
WORDS = ("problem=add", "steps=4", "over=problem.n")
KEPT = ("tracking=none", "tracking.pictures=true")


def word_of(low: float, high: float) -> str:
    """The verdict that an interval leads to."""
    if 1 / 1.02 < low <= high < 1.02:
        return SAME
    return FASTER if high < 1 / 1.02 else SLOWER if low > 1.02 else CANT_TELL


def planted(true: float, spread: float, seed: int = 0) -> Callable[[float], Point]:
    """A pair whose times cross at a value: measured with noise, in intervals of 95%."""
    noise = random.Random(seed)

    def measure(at: float) -> Point:
        ratio = (0.9 * true + 0.1 * at) / at * (1 + noise.gauss(0, spread))
        return Point(at, ratio, word_of(ratio / (1 + 2 * spread), ratio * (1 + 2 * spread)))

    return measure


@pytest.mark.parametrize("true", [130.0, 2_000.0, 77_000.0])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_planted_crossing_is_found(true: float, swapped: bool) -> None:
    """Whichever of the two is called A: it lies between the ends that are named."""
    exact = planted(true, 1e-9)

    def measure(at: float) -> Point:
        point = exact(at)
        word = {FASTER: SLOWER, SLOWER: FASTER}.get(point.word, point.word)
        return Point(at, 1 / point.ratio, word) if swapped else point

    points = search(measure, 100, 100_000, whole=True)
    [found] = crossings(points)
    assert found.below.at < true < found.above.at
    assert found.above.at <= 1.05 * NEAR**2 * found.below.at, "within 5% they are the SAME"
    assert found.at == pytest.approx(true, rel=0.01)
    assert (found.below.side, found.above.side) == ((-1, 1) if swapped else (1, -1))
    assert len(points) <= MOST
    assert [p.at for p in points] == sorted({p.at for p in points})
    assert all(p.at == int(p.at) for p in points)


def test_noise_widens_the_interval_and_does_not_move_it() -> None:
    """The named ends hold the true value as often as their intervals do."""
    missed, widths = 0, []
    for seed in range(100):
        found = crossings(search(planted(2_000, 0.05, seed), 100, 100_000, whole=True))
        missed += not any(one.below.at <= 2_000 <= one.above.at for one in found)
        widths += [one.above.at / one.below.at for one in found]
    assert missed <= 10
    assert 1.2 < sorted(widths)[len(widths) // 2] < 2


def test_without_a_crossing_only_the_range_is_measured() -> None:
    points = search(lambda at: Point(at, 2.0, SLOWER), 1.0, 1e4, whole=False)
    assert [p.at for p in points] == pytest.approx([1, 10, 100, 1000, 10_000])
    assert len(points) == GRID
    assert crossings(points) == []
    said = str(Crossover("problem.n", ("numpy", "torch"), points))
    assert said == (
        "no crossover between problem.n = 1 and 10000: numpy is faster at every value measured"
    )


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ([(0.9, 1.1)] * 3, "CAN'T TELL which is faster between n = 1 and 3"),
        (
            [(0.985, 0.995)] * 3,
            "between n = 1 and 3 both take the SAME time at every value measured",
        ),
        (
            [(0.5, 0.6), (0.9, 1.1), (0.7, 0.8)],
            "no crossover between n = 1 and 3: b is faster wherever one of them is",
        ),
        (
            [(1.5, 1.6), (0.9, 1.1), (0.7, 0.8)],
            "b is faster from about n = 1.98 on (between 1 and 3)",
        ),
    ],
)
def test_what_cannot_be_told_is_said(intervals: list[tuple[float, float]], said: str) -> None:
    points = [
        Point(n, (low * high) ** 0.5, word_of(low, high))
        for n, (low, high) in enumerate(intervals, 1)
    ]
    found = Crossover("n", ("a", "b"), points)
    assert str(found) == said
    assert found.told == ("CAN'T TELL" not in said)


@pytest.mark.alone
def test_the_command_finds_a_planted_crossing(expkit: Expkit) -> None:
    """One side takes 10 us an element, the other 900 us and 1 us an element: the same at 100."""
    option = "_target_: broken_plugin.Backend\nfixed: {}\neach: {}\n"
    files = {
        f"conf/backend/{name}.yaml": option.format(fixed, each)
        for name, fixed, each in (("linear", 0.0, 10.0), ("offset", 900.0, 1.0))
    }
    expkit.plugin({"__init__.py": PLANTED, **files})
    both = ("a=linear", "b=offset")
    done = expkit("crossover", *both, *WORDS, "from=10", "to=1000", "--no-isolate")
    assert (done.status, done.err) == (0, ""), done
    last = done.out.splitlines()[-1]
    found = re.fullmatch(
        r"offset is faster from about problem.n = (\S+) on \(between (\S+) and (\S+)\)", last
    )
    assert found, done.out
    at, below, above = map(float, found.groups())
    assert below < 100 < above, done.out
    assert 90 < at < 110, done.out
    assert above / below < 1.5, done.out
    swept = expkit("-m", "backend=linear,offset", "problem.n=10,50,200,1000", *WORDS[:2], *KEPT)
    same = r"offset and linear take the same time at about problem.n = \S+ \(between 50 and 200\)"
    assert re.search(f"Time by problem.n: {same}", swept.out), swept


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a=numpy", "over=problem.n"), "crossover: takes b=..."),
        (("a=numpy", "b=numpy", "over=problem.draw"), "over: got 'problem.draw', takes a key with"),
        (("a=numpy", "b=numpy", "over=problem.m"), "over: got 'problem.m', takes a key with"),
        (("a=numpy", "b=numpy", "over=problem.n", "from=9", "to=3"), "got the range 9 to 3, takes"),
        (("a=numpy", "b=numpy", "over=problem.n", "to=much"), "to: got 'much', takes a number"),
        (("a=numpy", "b=numpy", "over=problem.n", "to=inf"), "to inf, takes two numbers"),
        (("a=numpi", "b=numpy", "over=problem.n"), "numpi"),
    ],
)
def test_bad_input_is_one_line(expkit: Expkit, words: tuple[str, ...], said: str) -> None:
    done = expkit("crossover", "problem=add", *words)
    assert (done.status, done.out) == (2, ""), done
    assert said in done.err
    assert done.err.count("\n") == 1, done.err


def test_an_interrupt_leaves_what_was_measured(expkit: Expkit) -> None:
    words = ("a=numpy", "b=numpy", *WORDS, "problem.n=50", "measure.budget_s=3", "--no-isolate")
    process = expkit.start("crossover", *words)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("problem.n = 5: ")
    process.send_signal(signal.SIGINT)
    done = expkit.end(process)
    assert done.status == 130
    assert (
        done.err == f"expkit: interrupted; what was measured is in {expkit.outputs}/comparisons\n"
    )
    assert load(next(expkit.outputs.glob("comparisons/*/*/a"))).outcome in ("ok", "interrupted")
    assert expkit.processes() == []


@pytest.mark.alone
def test_work_that_is_unlike_has_no_crossover(expkit: Expkit) -> None:
    sides = ("a=backend=numpy", "b=backend=numpy backend.dtype=float32")
    done = expkit("crossover", *sides, *WORDS, "to=200")
    assert done.status == 4
    assert "they may not be compared" in done.err
    assert "dtype" in done.err
    assert done.err.count("\n") == 1


def test_a_preset_sweeps_sizes(expkit: Expkit) -> None:
    done = expkit("-m", "+experiment=scaling", "sweep.dry_run=true", "backend=numpy")
    assert done.status == 0, done.err
    sizes = re.findall(r"large_dot, problem.n=(\d+)", done.out)
    assert sizes == ["100", "1000", "10000", "100000", "1000000"]
