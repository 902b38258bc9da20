"""Where the time of a step goes: the parts, the rest, and what the instrument itself takes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import sleep
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from expkit.authors import StepProgram, manual
from expkit.config import compose_cell
from expkit.contracts import Batch, HostArray, Mark, OptState, Params, Program, Workload
from expkit.measure import clock
from expkit.measure.breakdown import Breakdown, breakdown
from expkit.optimizers.sgd import Sgd
from expkit.problems.sine import Sine
from expkit.report.breakdown import bar, parts_in, rows
from expkit.testing.backend import assert_traces

pytestmark = pytest.mark.alone

MOMENT_S = 2e-3


@dataclass(frozen=True)
class SlowDraw(Sine):
    """Takes two moments to make a batch."""

    def batch(self, xp: Any, data: Any, random: Any) -> Batch:
        sleep(2 * MOMENT_S)
        return super().batch(xp, data, random)


@dataclass(frozen=True)
class SlowSgd(Sgd):
    """Takes a moment to update."""

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        sleep(MOMENT_S)
        return super().update(xp, params, grads, state)


def test_time_goes_to_the_part_that_took_it() -> None:
    backend = compose_cell("backend=numpy").backend
    case = Workload(SlowDraw(n=50), SlowSgd(1e-6), 20, 0, "shared")
    program = StepProgram(backend, case, manual(np))
    parts = breakdown(program, backend.synchronize, case.steps, 1.0).parts
    assert list(parts) == ["draw", "forward and backward", "update"]
    assert 1.4 < parts["draw"] / parts["update"] < 2.8
    assert parts["forward and backward"] < parts["update"] / 2


@dataclass(frozen=True)
class Fresh(Sgd):
    """Returns new arrays."""

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        return {k: p - self.lr * grads[k] for k, p in params.items()}, state


def test_traced_steps_keep_what_the_update_returned() -> None:
    backend = compose_cell("backend=numpy").backend
    case = Workload(Sine(n=50), Fresh(1e-6), 10, 0, "shared")
    assert_traces(*(StepProgram(backend, case, manual(np)) for _ in range(2)), learns=True)


@pytest.mark.parametrize("backend_name", ["numpy", "torch"])
@pytest.mark.parametrize("problem", ["sine", "matmul"])
def test_parts_and_rest_make_the_step(problem: str, backend_name: str) -> None:
    if backend_name == "torch":
        pytest.importorskip("torch")
    cell = compose_cell(f"problem={problem}", f"backend={backend_name}", "steps=20")
    program = cell.backend.build(cell.workload)
    found = breakdown(program, cell.backend.synchronize, 20, 1e-3)
    assert sum(found.parts.values()) + found.unattributed == pytest.approx(1e-3)
    learns = problem == "sine"
    assert ({"backward", "update"} <= found.parts.keys()) == learns
    assert (found.fetching_seconds is not None) == learns
    assert program.losses().size == 0


@dataclass
class Planted:
    """A program and the clock on the wall: every part takes a known time.

    Attributes:
        step: parts with their seconds.
        room: steps between two resets.
        reading_seconds: what it takes to look at the clock.
    """

    step: list[tuple[str, float]]
    room: int = 1000
    reading_seconds: float = 0.25
    now: float = 0.0
    traced: list[int] = field(default_factory=list)
    done: int = -1

    def perf_counter(self) -> float:
        self.now += self.reading_seconds
        return self.now - self.reading_seconds

    def reset(self) -> None:
        self.done = 0

    def reallocate(self) -> None:
        self.now += 32
        self.reset()

    def trace(self, n: int, mark: Mark) -> None:
        assert self.done == 0, "not reset before"
        self.done += n
        assert self.done <= self.room
        self.traced.append(n)
        for index in range(n):
            self.now += 100 * (index == 0)  # the first is slow, as it often is
            for part, seconds in self.step:
                self.now += seconds
                mark(part)

    def losses(self, start: int = 0) -> HostArray:
        self.now += 64
        return np.zeros(self.done)


STEP = [("draw", 1.0), ("forward", 2.0), ("backward", 4.0), ("forward", 8.0), ("update", 16.0)]
Measured = Callable[[Planted], Breakdown]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The breakdown of a planted program, by its own clock."""

    def measure(planted: Planted) -> Breakdown:
        monkeypatch.setattr(clock, "perf_counter", planted.perf_counter)
        return breakdown(cast(Program, planted), lambda: None, planted.room, 35.0)

    return measure


def test_the_instrument_is_taken_off(measured: Measured) -> None:
    found = measured(planted := Planted(STEP))
    assert found.parts == {"draw": 1.0, "forward": 10.0, "backward": 4.0, "update": 16.0}
    assert (found.mark_seconds, found.marks, found.unattributed) == (0.25, 5, 4.0)
    assert (found.placing_seconds, found.fetching_seconds) == (32.25, 64.25)
    assert planted.done == 0


def test_a_stall_in_the_first_traced_step_costs_no_part(measured: Measured) -> None:
    class Stalled(Planted):
        def trace(self, n: int, mark: Mark) -> None:
            self.now += 0 if self.traced else 1e4
            super().trace(n, mark)

    assert measured(Stalled(STEP)).parts == measured(Planted(STEP)).parts


def test_a_part_that_takes_nothing_is_not_below_zero(measured: Measured) -> None:
    class Coarse(Planted):
        def perf_counter(self) -> float:
            """Costs nothing between the parts, so that too much is taken off."""
            self.reading_seconds = 0.25 if self.done < 0 else 0.0
            return super().perf_counter()

    found = measured(Coarse([("draw", 0.0), ("update", 1.0)]))
    assert found.parts == {"draw": 0.0, "update": 0.75}


@pytest.mark.parametrize("room", [1, 2, 3, 1000])
def test_slow_steps_are_traced_three_times_where_there_is_room(
    measured: Measured, room: int
) -> None:
    found = measured(planted := Planted(STEP, room))
    assert planted.traced[:2] == [1, min(room, 3)]
    assert found.steps == min(room, 3)


@pytest.mark.parametrize(("room", "steps"), [(20, 20), (1000, 100)])
def test_fast_steps_are_traced_for_a_tenth_of_a_second(
    measured: Measured, room: int, steps: int
) -> None:
    found = measured(Planted([("forward", 1e-3)], room, reading_seconds=0.0))
    assert found.steps == steps


@pytest.mark.parametrize(
    ("step", "made"), [([], "0 marks in 1 step"), (STEP, "14 marks in 3 steps")]
)
def test_marks_that_tell_no_parts_are_named(
    measured: Measured, step: list[tuple[str, float]], made: str
) -> None:
    class Forgetful(Planted):
        """The last mark of a stretch of several steps is left out."""

        def trace(self, n: int, mark: Mark) -> None:
            marks = iter(range(n * len(self.step) - (n > 1)))
            super().trace(n, lambda part: mark(part) if next(marks, None) is not None else None)

    found = measured(planted := Forgetful(step))
    assert (found.parts, parts_in(found.metrics())[0], planted.done) == ({}, {}, 0)
    takes = "takes the same ones in every step"
    assert shown(found) == [("a step", f"its parts are not shown: trace() made {made}, {takes}")]


def shown(found: Breakdown, *, verbose: bool = False) -> list[tuple[str, str]]:
    """Its rows, from what a run records of it."""
    return rows(found.metrics(), found.hidden, verbose=verbose)


FOUND = Breakdown(
    parts={"draw": 0.0, "forward": 2e-6, "backward": 1e-6, "update": 5e-7},
    step_seconds=4e-6,
    steps=2000,
    marks=4,
    mark_seconds=1e-7,
    placing_seconds=3e-4,
    fetching_seconds=2e-5,
)


def test_rows_tell_every_share_and_the_rest() -> None:
    parts = "draw 0%, forward 50%, backward 25%, update 12%"
    said = f"{parts} (traced one by one; together 12% less than the timed step)"
    assert shown(FOUND) == [("a step", said)]
    over = shown(replace(FOUND, step_seconds=3e-6))[0][1]
    assert over.endswith("together 17% more than the timed step)")
    assert "together" not in shown(replace(FOUND, step_seconds=3.499e-6))[0][1]
    told = dict(shown(FOUND, verbose=True))
    assert told["placing"] == "the data takes 300 µs, untimed"
    assert told["fetching"] == "the losses of the traced steps takes 20 µs, untimed"
    assert "fetching" not in dict(shown(replace(FOUND, fetching_seconds=None), verbose=True))


@pytest.mark.parametrize(("step_seconds", "end"), [(4e-6, 4e-6), (2.5e-6, 3.5e-6)])
def test_the_bar_is_as_long_as_the_step_or_its_parts(step_seconds: float, end: float) -> None:
    axes = Figure().add_subplot()
    bar(axes, FOUND.parts, step_seconds)
    boxes = [box for box in axes.patches if isinstance(box, Rectangle)]
    edges = [(box.get_x(), box.get_x() + box.get_width()) for box in boxes]
    assert edges[0][0] == 0
    assert [right for _, right in edges[:-1]] == pytest.approx([left for left, _ in edges[1:]])
    assert edges[-1][1] == pytest.approx(end)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [step_seconds] * 2)


@pytest.mark.parametrize("part", ["step", "a part of its own"])
def test_every_mark_of_a_program_is_drawn(part: str) -> None:
    axes = Figure().add_subplot()
    bar(axes, {"draw": 1e-6, part: 3e-6}, 4e-6)
    _, names = axes.get_legend_handles_labels()
    assert any(name.startswith(f"{part}, ") for name in names)


def test_metrics_have_names_that_mlflow_takes() -> None:
    metrics = replace(FOUND, parts={"forward and backward": 3.5e-6}).metrics()
    assert metrics == {
        "parts/forward_and_backward_seconds": 3.5e-6,
        "parts/unattributed_seconds": pytest.approx(5e-7),
        "parts/placing_seconds": 3e-4,
        "parts/fetching_seconds": 2e-5,
    }
