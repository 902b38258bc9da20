"""Before and around the clock: warming up, long enough readings, and when to stop."""

from __future__ import annotations

import math
import time
from statistics import median

import pytest

from expkit.config import compose_cell
from expkit.measure.clock import READING_RESOLUTIONS, resolution_seconds, steps_of_a_reading
from expkit.measure.stopping import Measure, is_narrow, is_time_to_look, limit_reached
from expkit.measure.warmup import READING_S, SETTLED, warm_up
from expkit.testing import cells

pytestmark = pytest.mark.alone

# When to stop

LIMITS = Measure(repeats_min=6, repeats_max=8, budget_s=1.0)


@pytest.mark.parametrize(
    ("repeats", "elapsed", "limit"),
    [
        (5, 99.0, None),
        (6, 0.0, None),
        (6, 0.999, None),
        (6, 1.0, "budget_s"),
        (7, 0.0, None),
        (8, 0.0, "repeats_max"),
        (8, 99.0, "repeats_max"),
    ],
)
def test_no_limit_counts_before_the_least_number_of_repeats(
    repeats: int, elapsed: float, limit: str | None
) -> None:
    assert limit_reached(LIMITS, repeats, elapsed) == limit


@pytest.mark.parametrize("per_placement", [1, 2, 5])
def test_the_target_is_looked_at_after_every_doubling(per_placement: int) -> None:
    measure = Measure(repeats_min=12, repeats_max=999, repeats_per_placement=per_placement)
    first = math.ceil(12 / per_placement)
    looks = [rounds for rounds in range(1, 9 * first) if is_time_to_look(measure, rounds)]
    assert looks == [first, 2 * first, 4 * first, 8 * first]


def test_narrow_is_half_of_the_intervals_width_within_the_target() -> None:
    """Of six rounds the interval is the least to the greatest."""
    middles = [0.95, 1.0, 1.0, 1.0, 1.0, 1.05]
    assert is_narrow(Measure(target_ci=0.0501), middles)
    assert not is_narrow(Measure(target_ci=0.0499), middles)
    assert not is_narrow(Measure(target_ci=0.9), middles[:5]), "no interval is not a narrow one"


# Readings of the clock


def test_the_clocks_resolution_is_what_two_readings_can_tell_apart() -> None:
    finest = min(b - a for a, b in ((time.perf_counter(), time.perf_counter()) for _ in range(99)))
    assert resolution_seconds() > 0
    assert resolution_seconds() >= finest / 2


@pytest.mark.parametrize("step_seconds", [0.0, 1e-9, 3.3e-8, 1e-6, 0.5])
def test_a_reading_is_long_enough_and_no_longer_than_it_must_be(step_seconds: float) -> None:
    steps, least = steps_of_a_reading(step_seconds), READING_RESOLUTIONS * resolution_seconds()
    assert steps >= 1
    if step_seconds:
        assert steps * step_seconds >= least * (1 - 1e-9)
        assert steps == 1 or (steps - 1) * step_seconds < least


# Warming up


class Sleeper:
    """A program whose steps take as long as they are told to, the first of them longer."""

    mode = "step"

    def __init__(self, first: float, step: float, room: int) -> None:
        self.first, self.step, self.room = first, step, room
        self.since_reset = self.all = self.resets = 0

    def reset(self) -> None:
        self.since_reset = 0
        self.resets += 1

    def advance(self, n: int) -> None:
        self.since_reset += n
        assert self.since_reset <= self.room, "more steps than there is room for"
        if not self.all:
            time.sleep(self.first)
        self.all += n
        time.sleep(n * self.step)


@pytest.mark.parametrize("room", [1, 7, 1000])
def test_warming_up_keeps_the_first_step_apart_and_ends_at_the_start(room: int) -> None:
    program = Sleeper(first=0.2, step=0.002, room=room)
    found = warm_up(program, lambda: None, room)  # type: ignore[arg-type]
    assert found.first_seconds >= 0.2
    assert found.step_seconds < 0.2 / 2, "the first step is in no other figure"
    assert found.seconds >= found.first_seconds
    assert found.steps == program.all
    assert program.since_reset == 0


def test_where_there_is_no_room_many_short_readings_warm_up() -> None:
    found = warm_up(Sleeper(first=0, step=0, room=1), lambda: None, 1)  # type: ignore[arg-type]
    assert found.seconds >= READING_S
    assert found.steps > 3


def test_warming_up_goes_on_until_a_steps_time_settles() -> None:
    class Slowing(Sleeper):
        """Each reading takes a third longer than the one before, ten times."""

        def advance(self, n: int) -> None:
            self.step = 0.002 * 1.33 ** min(self.all, 10)
            super().advance(n)

    program = Slowing(first=0, step=0, room=1)
    found = warm_up(program, lambda: None, 1)  # type: ignore[arg-type]
    assert found.settled
    assert found.steps > 10
    assert found.step_seconds > 0.002 * 1.33**10 * (1 - SETTLED)


def test_warming_up_gives_up_on_a_time_that_never_settles() -> None:
    class Restless(Sleeper):
        def advance(self, n: int) -> None:
            self.step = 0.02 if self.all % 2 else 0.06
            super().advance(n)

    found = warm_up(Restless(0, 0, 1), lambda: None, 1)  # type: ignore[arg-type]
    assert not found.settled


def test_the_steps_time_is_that_of_many_in_a_row() -> None:
    """What `warm_up` says of a step is what a long stretch of them then takes."""
    case = cells.workload("sine", "sgd", 2000)
    program = compose_cell("backend=numpy").backend.build(case)
    ratios = []
    for _ in range(9):
        found = warm_up(program, lambda: None, 2000)
        start = time.perf_counter()
        program.advance(2000)
        ratios.append((time.perf_counter() - start) / 2000 / found.step_seconds)
        program.reset()
    assert 0.5 < median(ratios) < 2
