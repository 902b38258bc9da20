"""What every backend keeps to."""

from __future__ import annotations

import numpy as np
import pytest

from expkit.authors import first_data
from expkit.contracts import Backend, HostArray, Program, Workload
from expkit.errors import Unavailable
from expkit.testing.cells import backend, learning, left_out, operations, reference

STEPS = 40
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
"""What rounding may change in a trajectory of 40 steps, relative to its largest value."""

LEARNING, OPERATIONS = learning(STEPS), operations(STEPS)
SHARED = LEARNING | OPERATIONS
DEVICE = learning(STEPS, stream="device") | operations(STEPS, stream="device")
STREAMS = SHARED | {f"{title}-device": case for title, case in DEVICE.items()}
ALL = [
    *(pytest.param(case, id=title) for title, case in SHARED.items()),
    *(pytest.param(None, id=t, marks=pytest.mark.skip(why)) for t, why in left_out().items()),
]
"""With those that are left out, each a skip with its reason."""


class BackendContract:
    """Derive, and name the option in `backend`.

    Where the machine cannot run it, every test is skipped with the backend's own reason.
    """

    backend: str
    exact: bool = False
    """Whether the same steps give the same bits however they are asked for: in one call or in
    several, traced or not. Else they are equal to within `TOLERANCE`, as a compiler can have it.
    """

    def make(self, *words: str) -> Backend:
        """The backend with these overrides, ready to run."""
        made = backend(f"backend={self.backend}", *words)
        try:
            made.require()
        except Unavailable as error:
            pytest.skip(str(error))
        made.configure()
        return made

    def rounding(self, backend: Backend) -> float:
        """How far apart the same steps may be, relative to the largest value."""
        return 0.0 if self.exact else TOLERANCE[str(backend.describe()["dtype"])]

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("case", ALL)
    def test_equals_the_reference(self, case: Workload, dtype: str) -> None:
        program = self.make(f"backend.dtype={dtype}").build(case)
        program.advance(STEPS)
        losses, params = reference(case)
        assert_close(program.losses(), losses, TOLERANCE[dtype])
        assert program.params().keys() == params.keys()
        for name, value in program.params().items():
            assert_close(value, params[name], TOLERANCE[dtype])

    @pytest.mark.parametrize("case", SHARED.values(), ids=SHARED)
    def test_fast_equals_step_by_step(self, case: Workload) -> None:
        backend = self.make("backend.fast=true")
        fast, slow = backend.build(case), self.make("backend.fast=false").build(case)
        assert slow.path == "step"
        for program in (fast, slow):
            program.advance(STEPS)
        assert_same_state(fast, slow, max(1e-12, self.rounding(backend)))

    @pytest.mark.parametrize("case", STREAMS.values(), ids=STREAMS)
    def test_four_steps_then_six_equal_ten(self, case: Workload) -> None:
        backend = self.make()
        split, whole = backend.build(case), backend.build(case)
        split.advance(4)
        split.advance(6)
        whole.advance(10)
        assert_same_state(split, whole, self.rounding(backend))
        np.testing.assert_array_equal(split.losses(4), split.losses()[4:])

    @pytest.mark.parametrize("fast", ["true", "false"])
    @pytest.mark.parametrize("case", STREAMS.values(), ids=STREAMS)
    def test_goes_on_from_a_state_that_is_loaded(self, case: Workload, fast: str) -> None:
        backend = self.make(f"backend.fast={fast}")
        loaded, whole = backend.build(case), backend.build(case)
        whole.advance(3)
        state = {name: backend.to_numpy(array) for name, array in whole.arrays().items()}
        loaded.advance(5)
        loaded.load(state, 3)
        for program in (loaded, whole):
            program.advance(4)
        assert_same_state(loaded, whole, self.rounding(backend), start=3)

    @pytest.mark.parametrize("fast", ["true", "false"])
    @pytest.mark.parametrize("case", STREAMS.values(), ids=STREAMS)
    def test_traced_steps_are_the_same_steps(self, case: Workload, fast: str) -> None:
        backend = self.make(f"backend.fast={fast}")
        traced, plain = backend.build(case), backend.build(case)
        learns = case.optimizer is not None
        assert_traces(traced, plain, learns=learns, tolerance=self.rounding(backend))

    @pytest.mark.parametrize("case", SHARED.values(), ids=SHARED)
    def test_a_trace_that_is_ended_does_no_harm(self, case: Workload) -> None:
        backend = self.make()
        used, fresh = backend.build(case), backend.build(case)

        def end(part: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            used.trace(2, end)
        used.reallocate()
        for program in (used, fresh):
            program.advance(5)
        assert_same_state(used, fresh, self.rounding(backend))

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("case", SHARED.values(), ids=SHARED)
    def test_arrays_are_the_live_ones(self, case: Workload, dtype: str) -> None:
        backend = self.make(f"backend.dtype={dtype}")
        program = backend.build(case)
        program.advance(3)
        arrays = program.arrays()
        for name, array in program.arrays().items():
            assert array is arrays[name]
            assert dtype in str(array.dtype)
        data = first_data(case)
        assert {n for n in arrays if n.startswith("data.")} == {f"data.{n}" for n in data}
        learned = {} if case.optimizer is None else program.params()
        assert {n for n in arrays if n.startswith("params.")} == {f"params.{n}" for n in learned}
        for name, value in learned.items():
            np.testing.assert_array_equal(backend.to_numpy(arrays[f"params.{name}"]), value)

    @pytest.mark.parametrize("how", ["reset", "reallocate"])
    @pytest.mark.parametrize("case", DEVICE.values(), ids=DEVICE)
    def test_reset_returns_to_the_start(self, case: Workload, how: str) -> None:
        backend = self.make()
        used, fresh = backend.build(case), backend.build(case)
        used.advance(7)
        getattr(used, how)()
        assert used.losses().size == 0
        for program in (used, fresh):
            program.advance(5)
        assert_same_state(used, fresh, self.rounding(backend))

    def test_inputs_unharmed(self) -> None:
        backend = self.make()
        host = np.arange(6.0).reshape(2, 3)
        placed = backend.asarray(host)
        host[...] = -1
        read = backend.to_numpy(placed)
        np.testing.assert_array_equal(read, np.arange(6.0).reshape(2, 3))
        read[...] = -1
        np.testing.assert_array_equal(backend.to_numpy(placed), np.arange(6.0).reshape(2, 3))

    @pytest.mark.parametrize("case", LEARNING.values(), ids=LEARNING)
    def test_what_is_read_is_a_copy(self, case: Workload) -> None:
        program = self.make().build(case)
        program.advance(3)
        before = program.params()
        for value in (*program.params().values(), program.losses()):
            value[...] = np.nan
        for name, value in program.params().items():
            np.testing.assert_array_equal(value, before[name])
        assert np.isfinite(program.losses()).all()

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_settings_are_read_back(self, dtype: str) -> None:
        backend = self.make(f"backend.dtype={dtype}", "backend.threads=1")
        about = backend.describe()
        assert (about["dtype"], about["threads"]) == (dtype, 1)
        assert dtype in str(backend.asarray(np.zeros(1)).dtype)

    def test_the_draw_is_standard_normal_and_repeats(self) -> None:
        backend = self.make()
        # Long enough for more than one block, with a rest.
        first = backend.to_numpy(backend.random(7).normal((700_001,)))
        again = backend.to_numpy(backend.random(7).normal((700_001,)))
        other = backend.to_numpy(backend.random(8).normal((700_001,)))
        np.testing.assert_array_equal(first, again)
        # Mean, variance and fourth moment within six standard errors; no two draws alike.
        n = first.size
        assert abs(first.mean()) < 6 / n**0.5
        assert abs(first.var() - 1) < 6 * (2 / n) ** 0.5
        assert abs((first**4).mean() - 3) < 6 * (96 / n) ** 0.5
        assert abs(np.corrcoef(first, other)[0, 1]) < 6 / n**0.5
        assert np.unique(first).size > 0.99 * n

    def test_the_draw_does_not_depend_on_threads(self) -> None:
        draws = []
        for threads in (1, 2):
            random = self.make(f"backend.threads={threads}").random(3)
            random.normal((600_000,))
            draws.append(self.make().to_numpy(random.normal((600_000,))))
        np.testing.assert_array_equal(draws[0], draws[1])

    def test_a_longer_array_does_not_repeat_itself(self) -> None:
        backend = self.make()
        half = 1 << 18
        values = backend.to_numpy(backend.random(1).normal((2 * half,)))
        assert np.unique(values).size > 0.99 * 2 * half

    def test_two_draws_of_a_step_differ(self) -> None:
        backend = self.make()
        random = backend.random(5)
        a, b = (backend.to_numpy(x) for x in (random.normal((100,)), random.normal((100,))))
        assert not np.intersect1d(a, b).size


def assert_close(actual: HostArray, expected: HostArray, tolerance: float) -> None:
    """Equal to within a share of the largest expected value; to the last bit where that is 0."""
    if tolerance == 0:
        np.testing.assert_array_equal(actual, expected, strict=True)
        return
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def assert_same_state(
    one: Program, other: Program, tolerance: float = 0.0, *, start: int = 0
) -> None:
    """The same losses from a step on, and the same parameters: to the last bit, or to within a
    share of the largest value.
    """
    assert_close(one.losses(start), other.losses(start), tolerance)
    assert one.params().keys() == other.params().keys()
    for name, value in other.params().items():
        assert_close(one.params()[name], value, tolerance)


def assert_traces(traced: Program, plain: Program, *, learns: bool, tolerance: float = 0.0) -> None:
    """Ten steps of which four are traced equal ten, and every step marks the parts that it has."""
    marks: list[str] = []
    traced.advance(3)
    traced.trace(4, marks.append)
    traced.advance(3)
    plain.advance(10)
    assert_same_state(traced, plain, tolerance)
    step = marks[: len(marks) // 4]
    assert marks == 4 * step
    if step[-1] == "step":
        assert step in (["step"], ["draw", "step"])
        return
    assert step[-1] == ("update" if learns else "forward")
    learning = {"backward", "forward and backward", "update"} if learns else set()
    assert set(step) <= {"draw", "forward"} | learning
