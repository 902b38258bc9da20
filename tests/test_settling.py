"""What is run before the clock counts, and a measurement that goes on until it settles."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from expkit_plugins.numpy.backend import NumpyBackend

from expkit import conduct
from expkit.authors import StepProgram, manual
from expkit.cli.progress import Pace
from expkit.config import compose_cell
from expkit.contracts import Program, Workload
from expkit.errors import ConfigError
from expkit.measure import clock, rounds, warmup
from expkit.measure.rounds import run_rounds
from expkit.measure.stability import recompiled
from expkit.measure.stopping import (
    Measure,
    half_width,
    is_narrow,
    is_time_to_look,
    rest_seconds,
    seconds_left,
)
from expkit.measure.warmup import run_before, warm_up
from expkit.record.result import Now, Result
from expkit.record.stored import load
from expkit.report.table import table
from expkit.tracking import journal

pytestmark = pytest.mark.alone

# Lengths that are timed were run before

COMPILING_S = 0.15


class Compiled(StepProgram):
    """Takes a while before it advances by a number of steps for the first time."""

    def __init__(self, backend: NumpyBackend, workload: Workload, seen: list[int]) -> None:
        self.seen, self.ready = seen, set[int]()
        super().__init__(backend, workload, manual(backend.xp))

    def advance(self, n: int) -> None:
        self.seen.append(n)
        if n not in self.ready:
            time.sleep(COMPILING_S)
            self.ready.add(n)
        super().advance(n)


class Forgetful(Compiled):
    """Compiles again wherever it is placed."""

    def reallocate(self) -> None:
        super().reallocate()
        self.ready.clear()


@dataclass(frozen=True)
class Compiling(NumpyBackend):  # type: ignore[misc]
    """NumPy with a compiler."""

    made: type[Compiled] = Compiled
    seen: list[list[int]] = field(default_factory=list)
    """Of each program that was built."""

    def build(self, workload: Workload) -> Program:
        self.seen.append([])
        return self.made(self, workload, self.seen[-1])


def measured(place: Path, made: type[Compiled], *words: str) -> tuple[Result, str, list[int]]:
    """What comes of sine on such a backend, its table, and the lengths that it was asked for."""
    cell = compose_cell("problem=sine", "tracking=none", *words)
    backend = Compiling(made=made)
    cell = replace(cell, backend=backend)
    found = conduct.run_together([(cell, place / "run")], None, tags={})[0]
    return found, table(load(place / "run")), max(backend.seen, key=len)


SIX = ("measure.repeats_min=6", "measure.repeats_max=6", "measure.repeats_per_placement=1")


def test_a_compiler_is_never_on_the_clock(tmp_path: Path) -> None:
    """Each of the lengths 20 (untimed), 100 and 50 is compiled before, and told apart."""
    words = ("steps=250", "log_every=100", "measure.warmup=20", *SIX)
    found, said, _ = measured(tmp_path, Compiled, *words)
    assert found.outcome == "ok"
    readings = [seconds for repeat in found.chunk_seconds for seconds in repeat]
    assert max(readings) < COMPILING_S, "no reading holds a compilation"
    assert found.warm_up is not None
    assert set(found.warm_up.first_passes) == {20, 50, 100}
    steps_s = 170 * found.warm_up.step_seconds  # as it was then, perhaps in a slow moment
    assert 3 * COMPILING_S - steps_s < found.warm_up.compile_seconds < found.warm_up.seconds
    assert found.warm_up.step_seconds < COMPILING_S / 100, "what compiles is no step's time"
    [line] = [line for line in said.splitlines() if line.split()[0] == "compile"]
    assert "20, 50, 100 steps" in line
    values = [
        record["values"]
        for record, _ in journal.read(tmp_path / "run")
        if record.get("key") == "time/compile_seconds"
    ]
    assert values == [[found.warm_up.compile_seconds]]


class Scan:
    """A program that compiles for each length, on a clock of its own."""

    mode = "scan"

    def __init__(self, compile_s: float, step_s: float) -> None:
        self.now, self.ready = 0.0, set[int]()
        self.compile_s, self.step_s = compile_s, step_s

    def reset(self) -> None: ...

    def advance(self, n: int) -> None:
        self.now += n * self.step_s + self.compile_s * (n not in self.ready)
        self.ready.add(n)


@pytest.mark.parametrize("compile_s", [0.0, 0.4, 30.0])
def test_however_long_compiling_takes_a_steps_time_is_found(
    monkeypatch: pytest.MonkeyPatch, compile_s: float
) -> None:
    program = Scan(compile_s, step_s=1e-5)
    for module in (clock, warmup):
        monkeypatch.setattr(module, "perf_counter", lambda: program.now)
    found = warm_up(program, lambda: None, 2000)  # type: ignore[arg-type]
    assert found.settled
    assert found.step_seconds == pytest.approx(1e-5)
    assert len(program.ready) <= 5, "lengths that a compiler has to take"
    found = run_before(program, lambda: None, (20, 100, 64), found)  # type: ignore[arg-type]
    assert found.compile_seconds == pytest.approx(3 * compile_s)


def test_one_pass_of_each_length_is_all_that_it_costs(tmp_path: Path) -> None:
    """Up to the first placement: one chunk, the shorter one and the untimed steps."""
    words = ("steps=2500", "log_every=1000", "measure.warmup=20", *SIX)
    _, _, seen = measured(tmp_path, Compiled, *words)
    passes = Counter(seen[: seen.index(1000) + 1])
    assert [passes[n] for n in (20, 500, 1000)] == [1, 1, 1]


def test_a_short_program_is_warmed_up_at_the_length_that_fills_a_reading(tmp_path: Path) -> None:
    """Where the steps run several times inside one reading."""
    filling = 1
    for number in range(5):  # in a slow moment one step alone fills a reading
        found, _, _ = measured(tmp_path / str(number), Compiled, "problem.n=4", "steps=1", *SIX)
        assert found.outcome == "ok"
        assert found.warm_up is not None
        filling = max(found.warm_up.first_passes)
        if filling > 1:
            break
    assert filling > 1
    assert max(s for repeat in found.chunk_seconds for s in repeat) < COMPILING_S / filling


def test_where_nothing_is_compiled_nothing_is_said_of_it(tmp_path: Path) -> None:
    cell = compose_cell("problem=sine", "tracking=none", *SIX)
    found = conduct.run_together([(cell, tmp_path / "run")], None, tags={})[0]
    assert found.warm_up is not None
    assert found.warm_up.compile_seconds < 0.1
    run = load(tmp_path / "run")
    rows = [line.split()[0] for line in table(run).splitlines()]
    assert "compile" not in rows
    verbose = table(run, verbose=True).splitlines()
    assert "compile" in [line.split()[0] for line in verbose]


def test_a_program_that_compiles_again_where_it_is_placed_is_named(tmp_path: Path) -> None:
    words = ("steps=400", "log_every=100", *SIX)
    found, _, _ = measured(tmp_path, Forgetful, *words)
    assert any(reason.startswith("compile: the first reading") for reason in found.unstable)
    found, _, _ = measured(tmp_path / "other", Compiled, *words)
    assert not any(reason.startswith("compile") for reason in found.unstable)


def test_one_slow_reading_is_no_compiler() -> None:
    even = [[1.0, 1.0, 0.5]] * 6
    assert recompiled([[2.5]] * 6, [[9.0, 1.0, 0.5], *even[1:]]) == []
    assert recompiled([[2.5]] * 6, even) == []
    assert recompiled([[10.5]] * 6, [[9.0, 1.0, 0.5]] * 6) != []
    assert recompiled([[9.0, 1.0]] * 6, [[9.0], [1.0]] * 6) != []
    assert recompiled([[9.0]] * 6, [[9.0]] * 6) == [], "with nothing to hold it against"


# A run that settles

QUICK = Measure(
    repeats_min=12, repeats_max=40, repeats_per_placement=2, budget_s=0.25, settle_s=2.0
)


class Scripted:
    """A source whose repeats take what a script says, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, repeat_s: Callable[[float], float]) -> None:
        self.now, self.rested, self.repeat_s = 0.0, list[float](), repeat_s
        self.rounds: list[list[float]] = []
        self.began: list[float] = []
        monkeypatch.setattr(rounds, "perf_counter", lambda: self.now)
        monkeypatch.setattr(rounds, "sleep", self.sleep)
        random.seed(3)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.rested.append(seconds)
        self.now += seconds

    def place(self) -> None:
        self.began.append(self.now)
        self.rounds.append([])
        self.now += 0.005

    def repeat(self) -> float | None:
        took = self.repeat_s(self.now)
        self.rounds[-1].append(took)
        self.now += took
        return took

    @property
    def middles(self) -> list[float]:
        return [median(repeats) for repeats in self.rounds if repeats]

    def run(self, measure: Measure) -> str | None:
        return run_rounds(
            [self],
            measure,
            lambda: "target_ci" if is_narrow(measure, self.middles) else None,
            lambda: half_width(self.middles),
        )


def steady(now: float) -> float:
    return 0.01 * (1 + 0.01 * random.random())


def a_burst_at_first(now: float) -> float:
    return steady(now) * (1 + (now < 0.12))


def coming_and_going(now: float) -> float:
    return steady(now) * (1 + (now % 1.0 < 0.5))


def hopeless(now: float) -> float:
    return 0.01 * random.choice((1, 2))


def test_on_a_quiet_machine_it_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Scripted(monkeypatch, steady)
    assert source.run(QUICK) == "target_ci"
    assert (len(source.rounds), sum(source.rested)) == (6, 0)


def test_a_burst_longer_than_the_budget_is_outlasted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the interval spans both of the times between which nothing lies."""
    without = Scripted(monkeypatch, a_burst_at_first)
    assert without.run(replace(QUICK, settle_s=0.0)) == "budget_s"
    assert not is_narrow(QUICK, without.middles)
    source = Scripted(monkeypatch, a_burst_at_first)
    assert source.run(QUICK) in ("target_ci", "repeats_max")
    assert is_narrow(QUICK, source.middles)
    assert median(source.middles) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("script", [a_burst_at_first, coming_and_going, hopeless])
def test_it_takes_two_seconds_more_at_most_and_no_more_repeats(
    monkeypatch: pytest.MonkeyPatch, script: Callable[[float], float]
) -> None:
    for seed in range(20):
        source = Scripted(monkeypatch, script)
        random.seed(seed)
        source.run(QUICK)
        assert source.now <= 0.25 + 2.0 + 0.1, "the last round begins before"
        assert sum(map(len, source.rounds)) <= QUICK.repeats_max


def test_it_is_looked_at_after_six_rounds_and_every_doubling_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    source = Scripted(monkeypatch, coming_and_going)

    def look() -> None:
        looks.append(len(source.rounds))

    widths = iter([0.4, 0.3, 0.2, 0.1, 0.09])
    measure = replace(QUICK, repeats_max=10**6)
    assert run_rounds([source], measure, look, lambda: next(widths)) == "settle_s"
    assert looks == [n for n in range(1, len(source.rounds) + 1) if is_time_to_look(QUICK, n)]
    assert len(looks) >= 3
    assert 2.25 <= source.now < 2.4


def test_the_rounds_are_spread_over_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second of the two is without one, whoever comes and goes how."""
    source = Scripted(monkeypatch, coming_and_going)
    widths = iter([0.4, 0.3, 0.2])
    run_rounds([source], QUICK, lambda: None, lambda: next(widths))
    assert source.now > 1.5
    assert max(b - a for a, b in pairwise(source.began)) < 0.5
    late = [began for began in source.began if began > 0.25]
    assert len(late) >= len(source.began) / 2


def test_what_does_not_narrow_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Scripted(monkeypatch, hopeless)
    widths = iter([0.4, 0.4])
    assert run_rounds([source], QUICK, lambda: None, lambda: next(widths)) == "budget_s"
    assert len(source.rounds) == 12


@pytest.mark.parametrize(
    "measure",
    [
        replace(QUICK, settle_s=0.0),
        replace(QUICK, target_ci=0.0),
        replace(QUICK, repeats_min=4),
        replace(QUICK, repeats_per_placement=6),
    ],
    ids=["not asked for", "never narrow enough", "few repeats", "few placements"],
)
def test_where_nothing_could_settle_the_budget_ends_it(
    monkeypatch: pytest.MonkeyPatch, measure: Measure
) -> None:
    source = Scripted(monkeypatch, hopeless)
    assert source.run(measure) in ("budget_s", "repeats_max")
    assert source.rested == []


def test_a_round_too_long_for_the_time_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six more of half a second do not fit, and fewer would tell nothing."""
    source = Scripted(monkeypatch, lambda now: 25 * hopeless(now))
    source.run(replace(QUICK, repeats_min=12))
    assert len(source.rounds) == 6
    assert source.rested == []


@pytest.mark.parametrize("rounds_done", [6, 7, 11, 12, 13, 19])
@pytest.mark.parametrize("left_s", [0.0, 0.02, 0.5, 2.0])
def test_rests_fit_in_what_is_left(rounds_done: int, left_s: float) -> None:
    rest_s = rest_seconds(QUICK, rounds_done, left_s, 0.025)
    look = next(n for n in range(rounds_done + 1, 99) if is_time_to_look(QUICK, n) or n == 20)
    assert rest_s >= 0
    assert rest_s == 0 or (rest_s + 0.025) * (look - rounds_done) <= left_s + 1e-9


def test_the_line_on_a_terminal_knows_of_it() -> None:
    """At most the budget and what may come after it, never less than what is left."""
    for repeats in (2.0, 6.0, 12.0):
        left_s = seconds_left(QUICK, repeats, repeats * 0.02)
        assert left_s == pytest.approx(min(40, 2.25 / 0.02) * 0.02 - repeats * 0.02, rel=0.05)
    slow = seconds_left(QUICK, 2, 2.0)
    assert slow == pytest.approx(10), "what takes long ends with the least number of repeats"
    pace = Pace(QUICK, 200, 1)
    pace.reached(0, Now("", 1, 200, None, 200 / 0.01))
    assert pace.most(0.06) == 40
    pace = Pace(replace(QUICK, settle_s=0.0), 200, 1)
    pace.reached(0, Now("", 1, 200, None, 200 / 0.01))
    assert pace.most(0.06) == 12


def test_a_negative_time_to_settle_is_refused() -> None:
    with pytest.raises(ConfigError, match="settle_s"):
        Measure(settle_s=-1.0)


def test_a_default_run_may_settle_and_a_long_one_has_its_budget() -> None:
    names: Sequence[str] = ("quick", "standard", "thorough")
    found = [compose_cell(f"measure={name}").measure.settle_s for name in names]
    assert found == [2.0, 0.0, 0.0]
