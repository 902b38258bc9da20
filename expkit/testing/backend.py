"""The contract of every backend, as tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pytest

from expkit.authors import first_data
from expkit.contracts import Backend, HostArray, Mark, Program, Workload
from expkit.errors import Unavailable
from expkit.testing.cells import backend, few, learning, left_out, operations, reference

STEPS = 40
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
"""The error that rounding may cause in 40 steps, relative to the largest value."""

LEARNING, OPERATIONS = learning(STEPS), operations(STEPS)
SHARED = LEARNING | OPERATIONS
DEVICE = learning(STEPS, stream="device") | operations(STEPS, stream="device")
FEW = few(LEARNING) | OPERATIONS
FEW_DEVICE = few(learning(STEPS, stream="device")) | operations(STEPS, stream="device")
"""What most laws are tried on; that all cases give the right answer is tried on all."""
STREAMS = FEW | {f"{title}-device": case for title, case in FEW_DEVICE.items()}
ALL = [
    *(pytest.param(case, id=title) for title, case in SHARED.items()),
    *(pytest.param(None, id=t, marks=pytest.mark.skip(why)) for t, why in left_out().items()),
]
"""All shared cases, and those that are left out, which are skipped with the reason."""


class BackendContract:
    """The contract of a backend: derive from it, and name the option in `backend`.

    If the machine cannot run the backend, every test is skipped with the backend's own reason.
    """

    backend: str
    exact: bool = False
    """Whether the same steps give the same bits in one call or in several, traced or not. If not,
    they must agree to within `TOLERANCE`, since a compiler may change the order of operations.
    """

    def make(self, *words: str) -> Backend:
        """The backend with these overrides, ready to run."""
        made = backend(f"backend={self.backend}", *words)
        try:
            made.check_available()
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
        program = built(self.make(f"backend.dtype={dtype}"), case)
        program.advance(STEPS)
        losses, params = reference(case)
        assert_losses(program.losses(), losses, TOLERANCE[dtype])
        assert_params(program.params(), params, TOLERANCE[dtype])

    @pytest.mark.parametrize("case", FEW.values(), ids=FEW)
    def test_fast_equals_step_by_step(self, case: Workload) -> None:
        backend = self.make("backend.fast=true")
        fast, slow = built(backend, case), built(self.make("backend.fast=false"), case)
        got = f"mode: {slow.mode!r} with backend.fast=false"
        assert slow.mode == "step", f"{got}, takes 'step': build gives the step-by-step program"
        for program in (fast, slow):
            program.advance(STEPS)
        assert_same_state(fast, slow, max(1e-12, self.rounding(backend)))

    @pytest.mark.parametrize("case", STREAMS.values(), ids=STREAMS)
    def test_four_steps_then_six_equal_ten(self, case: Workload) -> None:
        backend = self.make()
        split, whole = built(backend, case), built(backend, case)
        split.advance(4)
        split.advance(6)
        whole.advance(10)
        assert_same_state(split, whole, self.rounding(backend))
        said = "losses(4), beside losses()[4:]"
        np.testing.assert_array_equal(split.losses(4), split.losses()[4:], said)

    @pytest.mark.parametrize("fast", ["true", "false"])
    @pytest.mark.parametrize("case", STREAMS.values(), ids=STREAMS)
    def test_goes_on_from_a_state_that_is_loaded(self, case: Workload, fast: str) -> None:
        backend = self.make(f"backend.fast={fast}")
        loaded, whole = built(backend, case), built(backend, case)
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
        traced, plain = built(backend, case), built(backend, case)
        learns = case.optimizer is not None
        assert_traces(traced, plain, learns=learns, tolerance=self.rounding(backend))

    @pytest.mark.parametrize("case", FEW.values(), ids=FEW)
    def test_a_trace_that_is_ended_does_no_harm(self, case: Workload) -> None:
        backend = self.make()
        used, fresh = built(backend, case), built(backend, case)

        def end(part: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            used.trace(2, end)
        used.reallocate()
        for program in (used, fresh):
            program.advance(5)
        assert_same_state(used, fresh, self.rounding(backend))

    @pytest.mark.parametrize("dtype", TOLERANCE)
    @pytest.mark.parametrize("case", FEW.values(), ids=FEW)
    def test_arrays_are_the_live_ones(self, case: Workload, dtype: str) -> None:
        backend = self.make(f"backend.dtype={dtype}")
        program = built(backend, case)
        program.advance(3)
        arrays = program.arrays()
        for name, array in program.arrays().items():
            assert array is arrays[name], f"arrays(): {name} is another array in every call"
            assert_dtype(f"arrays(): {name}", array, dtype)
        learned = {} if case.optimizer is None else program.params()
        for group, named in (("data", first_data(case)), ("params", learned)):
            own = [name for name in arrays if name.startswith(f"{group}.")]
            assert_names(f"arrays(): of {group}", own, [f"{group}.{name}" for name in named])
        for name, value in learned.items():
            live = backend.to_numpy(arrays[f"params.{name}"])
            said = f"arrays(): params.{name}, beside params()"
            np.testing.assert_array_equal(live, value, said)

    @pytest.mark.parametrize("how", ["reset", "reallocate"])
    @pytest.mark.parametrize("case", FEW_DEVICE.values(), ids=FEW_DEVICE)
    def test_reset_returns_to_the_start(self, case: Workload, how: str) -> None:
        backend = self.make()
        used, fresh = built(backend, case), built(backend, case)
        used.advance(7)
        getattr(used, how)()
        left = used.losses().size
        assert left == 0, f"losses(): {left} came back after {how}(), takes none"
        for program in (used, fresh):
            program.advance(5)
        assert_same_state(used, fresh, self.rounding(backend))

    def test_inputs_unharmed(self) -> None:
        backend = self.make()
        host = np.arange(6.0).reshape(2, 3)
        placed = backend.asarray(host)
        host[...] = -1
        read = backend.to_numpy(placed)
        right = np.arange(6.0).reshape(2, 3)
        np.testing.assert_array_equal(read, right, "asarray: it takes a copy of what it is given")
        read[...] = -1
        said = "to_numpy: it takes a copy of the backend's array"
        np.testing.assert_array_equal(backend.to_numpy(placed), right, said)

    @pytest.mark.parametrize("case", FEW.values(), ids=FEW)
    def test_what_is_read_is_a_copy(self, case: Workload) -> None:
        program = built(self.make(), case)
        program.advance(3)

        def read() -> dict[str, HostArray]:
            params = {f"params(): {name}": value for name, value in program.params().items()}
            return {"losses()": program.losses()} | params

        given = read()
        before = {what: np.array(value) for what, value in given.items()}
        for value in given.values():
            value[...] = np.nan
        for what, value in read().items():
            said = f"{what} changed when what was read was written to; it takes a copy"
            np.testing.assert_array_equal(value, before[what], said)

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_settings_are_read_back(self, dtype: str) -> None:
        backend = self.make(f"backend.dtype={dtype}", "backend.threads=1")
        about = backend.describe()
        assert about.get("device"), "describe() has no device, takes its name, such as cpu"
        for key, asked in (("dtype", dtype), ("threads", 1)):
            got = f"describe(): {key} is {about.get(key)!r} with backend.{key}={asked}"
            assert about.get(key) == asked, f"{got}, takes {asked!r}"

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_dtypes_are_those_of_the_contract(self, dtype: str) -> None:
        backend = self.make(f"backend.dtype={dtype}")
        placed = backend.asarray(np.zeros(1))
        assert_dtype("asarray()", placed, dtype)
        assert_dtype("random(): what normal() draws", backend.random(7).normal((3,)), dtype)
        assert_dtype("to_numpy()", backend.to_numpy(placed), "float64")

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


class _Seen:
    """A program as a run reads it: queued work is finished before anything is read."""

    def __init__(self, backend: Backend, program: Program) -> None:
        self._backend, self._program = backend, program

    def __getattr__(self, name: str) -> Any:
        if name in ("losses", "params", "arrays"):
            self._backend.synchronize(self._program)
        return getattr(self._program, name)

    def trace(self, n: int, mark: Mark) -> None:
        def ended(part: str) -> None:
            self._backend.synchronize(self._program)
            mark(part)

        self._program.trace(n, ended)


def built(backend: Backend, case: Workload) -> Program:
    """The backend's program, with `synchronize` called where a run calls it."""
    return cast(Program, _Seen(backend, backend.build(case)))


def assert_dtype(what: str, array: Any, dtype: str) -> None:
    """Check an array's dtype, which may be any library's: PyTorch's is `torch.float32`."""
    got = str(getattr(array, "dtype", type(array).__name__))
    assert dtype in got, f"{what} is {got}, takes {dtype}"


def assert_names(what: str, got: Iterable[str], takes: Iterable[str]) -> None:
    """Check that the names are the same, in any order."""
    assert sorted(got) == sorted(takes), f"{what} there are {sorted(got)}, takes {sorted(takes)}"


def assert_close(actual: HostArray, expected: HostArray, tolerance: float, what: str = "") -> None:
    """Check equality to within a share of the largest expected value; to the bit if it is 0."""
    for array in (actual, expected):
        got = type(array).__name__
        assert isinstance(array, np.ndarray | np.generic), f"{what}: got {got}, takes a NumPy array"
        assert_dtype(what, array, "float64")
    said = f"{what}: got an array of shape {actual.shape}, takes {expected.shape}"
    assert actual.shape == expected.shape, said
    if tolerance == 0:
        np.testing.assert_array_equal(actual, expected, what)
        return
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def assert_losses(actual: HostArray, expected: HostArray, tolerance: float) -> None:
    """Check that the losses are as many, and close."""
    if np.ndim(actual) == np.ndim(expected) == 1:
        came, steps = len(actual), len(expected)
        assert came == steps, f"losses(): {came} came back for {steps} steps"
    assert_close(actual, expected, tolerance, "losses()")


def assert_params(
    actual: dict[str, HostArray], expected: dict[str, HostArray], tolerance: float
) -> None:
    """Check that the parameters have the same names, and are close."""
    assert_names("params():", actual, expected)
    for name, value in expected.items():
        assert_close(actual[name], value, tolerance, f"params(): {name}")


def assert_same_state(
    one: Program, other: Program, tolerance: float = 0.0, *, start: int = 0
) -> None:
    """Check that losses from a step on and parameters are the same: to the last bit, or to within
    a share of the largest value.
    """
    assert_losses(one.losses(start), other.losses(start), tolerance)
    assert_params(one.params(), other.params(), tolerance)


def assert_traces(traced: Program, plain: Program, *, learns: bool, tolerance: float = 0.0) -> None:
    """Check that tracing 4 of 10 steps changes nothing, and that each step marks its parts."""
    marks: list[str] = []
    traced.advance(3)
    traced.trace(4, marks.append)
    traced.advance(3)
    plain.advance(10)
    assert_same_state(traced, plain, tolerance)
    step = marks[: len(marks) // 4]
    assert step, f"trace: {len(marks)} marks in 4 steps, takes one at least as each step ends"
    assert marks == 4 * step, f"trace: the marks of 4 steps are {marks}, takes the same of each"
    if step[-1] == "step":
        takes = "takes step alone, or draw and step"
        assert step in (["step"], ["draw", "step"]), f"trace: a step marks {step}, {takes}"
        return
    last = "update" if learns else "forward"
    assert step[-1] == last, f"trace: a step ends with the mark {step[-1]!r}, takes {last!r}"
    learning = {"backward", "forward and backward", "update"} if learns else set()
    known = {"draw", "forward"} | learning
    assert set(step) <= known, f"trace: a step marks {step}, takes {sorted(known)}"
