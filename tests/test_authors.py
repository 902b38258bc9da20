"""What the author of a plugin relies on: the page, the contracts, and plain words."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from time import perf_counter, sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Expkit
from expkit_plugins.numpy.backend import NumpyBackend

from expkit import authors
from expkit.authors import StepProgram, first_data, first_params, first_state, manual
from expkit.conduct import run_together
from expkit.config import compose_cell
from expkit.contracts import Backend, Mark, Program, Recommended, Workload
from expkit.errors import PluginError
from expkit.measure.breakdown import Breakdown, breakdown
from expkit.optimizers.adam import Adam
from expkit.optimizers.sgd import Sgd
from expkit.problems.sine import Sine
from expkit.record.result import Result
from expkit.report.breakdown import parts_in, rows
from expkit.testing import BackendContract, ProblemContract, cells
from expkit.testing.backend import DEVICE, SHARED, TOLERANCE, assert_traces

PAGE = Path(__file__).parent.parent / "docs" / "plugins.md"


# The page


def pages_block(part: str, language: str = "python") -> str:
    """The one block of docs/plugins.md that has this in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = (block for block in blocks if part in block)
    return str(block)


def pages_program() -> Any:
    """The class that docs/plugins.md shows."""
    scope: dict[str, Any] = {}
    exec(compile(pages_block("class WholeStep"), str(PAGE), "exec"), scope)
    return scope["WholeStep"]


def test_the_backend_of_the_page_works_as_given(expkit: Expkit) -> None:
    """Installed as the page says, it runs and keeps to the whole contract."""
    package = "myplugin"
    expkit.plugin(
        {
            "__init__.py": "",
            "backend.py": pages_block("class MyBackend"),
            "conf/backend/mine.yaml": pages_block("_target_", "yaml"),
            "test_contract.py": pages_block("class TestMine"),
        },
        package,
    )
    words = ("backend=mine", "problem=linear", "backend.threads=1", "measure=quick")
    done = expkit(*words, "tracking=none")
    assert (done.status, done.err) == (0, ""), done
    assert "matches float64 NumPy on all" in done.out
    assert "unlike" not in done.out
    refused = expkit("backend=mine", "backend.dtype=int8", "tracking=none")
    takes = "takes float32 or float64"
    assert refused.err == f"expkit: backend.dtype: got 'int8', {takes}\n"
    code = f"""
        import sys, pytest
        test = {str(expkit.place / "site" / package / "test_contract.py")!r}
        sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", test]))
    """
    tried = expkit.python(code)
    assert tried.status == 0, tried.out[-3000:]
    skipped = [line for line in tried.out.splitlines() if line.startswith("SKIPPED")]
    assert all("recommends none for optimizer" in line for line in skipped), skipped


class Page(NumpyBackend):  # type: ignore[misc]
    """NumPy with the page's program: nothing is compiled, all else is as it says."""

    def build(self, workload: Workload) -> Program:
        if not self.fast:
            return StepProgram(self, workload, manual(np))
        program: Program = pages_program()(self, workload, lambda step: step)
        return program


class PageContract(BackendContract):
    backend = "numpy"

    def make(self, *words: str) -> Backend:
        made = super().make(*words)
        assert isinstance(made, NumpyBackend)
        return Page(made.dtype, made.threads, made.fast)


@pytest.mark.parametrize("title", ["linear-adam", "sine-momentum", "large_dot-sgd", "matmul-draw"])
def test_the_program_of_the_page_keeps_to_the_contract(title: str) -> None:
    contract, shared, device = PageContract(), SHARED[title], DEVICE[title]
    for dtype in TOLERANCE:
        contract.test_equals_the_reference(shared, dtype)
        contract.test_arrays_are_the_live_ones(shared, dtype)
    for case in (shared, device):
        contract.test_four_steps_then_six_equal_ten(case)
        contract.test_goes_on_from_a_state_that_is_loaded(case, "true")
        contract.test_traced_steps_are_the_same_steps(case, "true")
    contract.test_fast_equals_step_by_step(shared)
    contract.test_a_trace_that_is_ended_does_no_harm(shared)
    for how in ("reset", "reallocate"):
        contract.test_reset_returns_to_the_start(device, how)
    contract.test_what_is_read_is_a_copy(shared)


def test_the_program_of_the_page_passes_every_gate(tmp_path: Path) -> None:
    result = measured(tmp_path, Page(), "problem=linear", "steps=200")
    assert (result.outcome, result.mode) == ("ok", "whole step")
    assert "all 200 steps" in result.checked
    assert result.breakdown is not None
    assert list(result.breakdown.parts) == ["draw", "step"]


def test_the_page_names_what_is_there() -> None:
    """The module's docstring lists what authors need; all of it is there, and documented."""
    assert authors.__doc__ is not None
    for name, thing in vars(authors).items():
        own = getattr(thing, "__module__", None) == authors.__name__
        if own and not name.startswith("_"):
            assert f"`{name}`" in authors.__doc__, name
            assert inspect.getdoc(thing), name


def measured(folder: Path, backend: Backend, *words: str) -> Result:
    """One run in this process of a backend that is no installed option."""
    cell = compose_cell("backend=numpy", "measure=quick", "tracking=none", *words)
    cell = dataclasses.replace(cell, backend=backend)
    return run_together([(cell, folder / "run")], None, tags={})[0]


def test_what_an_import_takes_is_no_set_up_of_the_program(tmp_path: Path) -> None:
    imported: list[str] = []

    class Late(NumpyBackend):  # type: ignore[misc]
        @property
        def xp(self) -> Any:
            if not imported:
                sleep(0.5)
                imported.append("library")
            return np

    result = measured(tmp_path, Late(fast=False), "problem=linear")
    assert imported
    assert result.setup_seconds is not None
    assert result.setup_seconds < 0.4


class Nameless(NumpyBackend):  # type: ignore[misc]
    """Says nothing of its device."""

    def describe(self) -> dict[str, str | int]:
        return {"dtype": self.dtype, "threads": 1}


def test_a_backend_that_does_not_describe_itself_is_told_what_to_say(tmp_path: Path) -> None:
    said = "backend numpy: describe() has no device, takes device, dtype, threads"
    with pytest.raises(PluginError, match=re.escape(said)):
        measured(tmp_path, Nameless(), "problem=linear")


def test_a_size_that_is_left_open_is_not_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Open:
        n: int = 1000
        batch_size: int | None = None

    made = SimpleNamespace(workload=SimpleNamespace(problem=Open()))
    monkeypatch.setattr(cells, "compose_cell", lambda *_: made)
    assert [repr(form) for form in cells.forms("open").values()] == [repr(Open(n=50))]


# Scalars where arrays are meant


@dataclass(frozen=True)
class Scalars:
    """Learns a vector and a number; says the number in any way that Python has."""

    b: Any = 0.5

    def recommended(self) -> Recommended:
        return Recommended(steps=10, lr={"sgd": 0.1})

    def init(self, rng: np.random.Generator) -> Any:
        return {"w": np.ones(3), "b": self.b}

    def data(self, rng: np.random.Generator) -> Any:
        return {"c": np.float64(2), "d": 3}

    def batch(self, xp: Any, data: Mapping[str, Any], random: Any) -> Mapping[str, Any]:
        return data

    def loss(self, xp: Any, params: Any, batch: Any) -> Any:
        error = params["w"] - batch["c"]
        return error @ error + (params["b"] - batch["d"]) ** 2

    def loss_and_grad(self, xp: Any, params: Any, batch: Any) -> Any:
        error = params["w"] - batch["c"]
        off = params["b"] - batch["d"]
        return error @ error + off**2, {"w": 2 * error, "b": np.float64(2) * off}


@dataclass(frozen=True)
class Counting(Sgd):
    """Keeps a Python number and a NumPy scalar as its state."""

    def init(self, xp: Any, params: Any) -> Any:
        return {"t": 0, "s": np.float64(1)}

    def update(self, xp: Any, params: Any, grads: Any, state: Any) -> Any:
        state = {"t": state["t"] + 1, "s": state["s"] * 0.5}
        return {k: p - self.lr * state["s"] * grads[k] for k, p in params.items()}, state


def programs(case: Workload) -> list[tuple[Backend, Program]]:
    """Of every shipped kind that this machine has."""
    words = [("backend=numpy",), ("backend=numpy", "backend.fast=false")]
    made = [compose_cell(*w).backend for w in words]
    found = [(backend, backend.build(case)) for backend in made]
    try:
        from expkit_plugins.torch.program import StaticProgram, autograd
    except ImportError:
        return found
    torch: Any = compose_cell("backend=torch").backend
    stepwise = StepProgram(torch, case, autograd)
    return [*found, (torch, stepwise), (torch, StaticProgram(torch, case, capture=False))]


@pytest.mark.parametrize("b", [0.5, np.float64(0.5), np.float32(0.5), np.full((), 0.5)], ids=repr)
@pytest.mark.parametrize("optimizer", [Sgd(0.1), Adam(0.1), Counting(0.1)], ids=repr)
def test_a_scalar_is_an_array_of_no_dimension(optimizer: Any, b: Any) -> None:
    case = Workload(Scalars(b), optimizer, 10, 0, "shared")
    right: Program | None = None
    for backend, program in programs(case):
        program.advance(4)
        state = {name: backend.to_numpy(x) for name, x in program.arrays().items()}
        assert all(np.ndim(x) == 0 for name, x in state.items() if not name.endswith("w"))
        program.load(state, 4)
        program.reallocate()
        program.advance(10)
        right = right or program
        np.testing.assert_allclose(program.losses(), right.losses(), rtol=1e-12)
        np.testing.assert_allclose(program.params()["b"], right.params()["b"], rtol=1e-12)
        assert all("float64" in str(x.dtype) for x in program.arrays().values())


def test_a_scalar_passes_every_gate(tmp_path: Path) -> None:
    for number, (backend, _) in enumerate(programs(Workload(Scalars(), Sgd(0.1), 10, 0, "shared"))):
        cell = compose_cell("backend=numpy", "measure=quick", "tracking=none", "steps=10")
        case = Workload(Scalars(), Counting(0.1), 10, 0, "shared")
        cell = dataclasses.replace(cell, backend=backend, workload=case)
        result = run_together([(cell, tmp_path / str(number))], None, tags={})[0]
        assert (result.outcome, result.reason) == ("ok", None)
        assert "all 10 steps" in result.checked


def test_a_step_that_leaves_float32_is_named() -> None:
    class Contract(ProblemContract):
        def all(self) -> list[Any]:
            return [Scalars(0.5)]

    with pytest.raises(AssertionError, match="b"):
        Contract().test_a_step_in_float32_is_float32()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "init() gives NoneType, takes a dict of arrays by name"),
        ({"w": "one"}, "init(): w is str of <U3, takes an array of real numbers"),
        ({"w": None}, "init(): w is NoneType of object, takes an array of real numbers"),
        ({"w": np.ones(2, complex)}, "of complex128, takes an array of real numbers"),
        ({"w": [[1], [2, 3]]}, "init(): w is list ("),
    ],
)
def test_what_is_no_array_is_named_in_one_line(made: Any, said: str) -> None:
    class Bad(Sine):
        def init(self, rng: np.random.Generator) -> Any:
            return made

    with pytest.raises(PluginError) as error:
        first_params(Workload(Bad(), Sgd(0.1), 1, 0, "shared"))
    assert str(error.value).startswith("problem Bad: init()")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_state_that_is_no_array_is_named() -> None:
    class Bad(Sgd):
        def init(self, xp: Any, params: Any) -> Any:
            return {"velocity": None}

    case = Workload(Sine(n=5), Bad(0.1), 1, 0, "shared")
    with pytest.raises(PluginError, match=r"optimizer Bad: init\(\): velocity is NoneType"):
        first_state(NumpyBackend(), case, {})
    assert first_data(case)["y"].shape == (5,)


# Lazy libraries


def test_pending_is_all_that_a_lazy_library_has_to_compute() -> None:
    case = SHARED["sine-momentum"]
    program = StepProgram(NumpyBackend(), case, manual(np))
    program.advance(3)
    arrays = program.arrays()
    state = [x for name, x in arrays.items() if not name.startswith("data.")]
    assert {id(x) for x in program.pending()} >= {id(x) for x in state}
    assert len(program.pending()) == len(state) + 3
    program.losses()
    assert len(program.pending()) == len(state)
    operation = StepProgram(NumpyBackend(), SHARED["matmul"], manual(np))
    operation.advance(2)
    (result,) = operation.pending()
    np.testing.assert_array_equal(result, operation.params()["result"])


# What the contract's tests see


class Queued(StepProgram):
    """Steps wait for `synchronize`; what reads them only copies what is there."""

    def reset(self) -> None:
        self.queued = 0
        super().reset()

    def advance(self, n: int) -> None:
        self.queued += n

    def compute(self) -> None:
        n, self.queued = self.queued, 0
        super().advance(n)

    def trace(self, n: int, mark: Mark) -> None:
        self.compute()
        super().trace(n, mark)


class LiveParams(StepProgram):
    def params(self) -> Any:
        return dict(self._params) or super().params()


class LiveLosses(StepProgram):
    def losses(self, start: int = 0) -> Any:
        super().losses()
        return self._fetched[start:]


class NoLosses(StepProgram):
    def losses(self, start: int = 0) -> Any:
        return np.empty(0)


class ListedLosses(StepProgram):
    def losses(self, start: int = 0) -> Any:
        return list(super().losses(start))


class NoParams(StepProgram):
    def params(self) -> Any:
        return {}


class NoTrace(StepProgram):
    def trace(self, n: int, mark: Mark) -> None:
        self.advance(n)


@dataclass(frozen=True)
class Odd(NumpyBackend):  # type: ignore[misc]
    """NumPy with a program or a generator that is not as the contract says."""

    program: type[StepProgram] = StepProgram
    drawn: str | None = None
    fetched: str = "float64"

    def build(self, workload: Workload) -> Program:
        return self.program(self, workload, manual(np))

    def synchronize(self, program: Program | None = None) -> None:
        if isinstance(program, Queued):
            program.compute()

    def random(self, seed: int) -> Any:
        rng, dtype = np.random.default_rng(seed), self.drawn or self.dtype
        return SimpleNamespace(normal=lambda shape: np.asarray(rng.standard_normal(shape), dtype))

    def to_numpy(self, array: Any) -> Any:
        return np.array(array, dtype=self.fetched)


def contract(**odd: Any) -> BackendContract:
    class OddContract(BackendContract):
        backend = "numpy"

        def make(self, *words: str) -> Backend:
            made = super().make(*words)
            assert isinstance(made, NumpyBackend)
            return Odd(made.dtype, made.threads, made.fast, **odd)

    return OddContract()


@pytest.mark.parametrize("program", [StepProgram, Queued])
@pytest.mark.parametrize("title", ["linear-adam", "sine-sgd", "matmul-draw"])
def test_a_lazy_program_whose_getters_only_copy_keeps_to_the_contract(
    title: str, program: type[StepProgram]
) -> None:
    tests, case = contract(program=program), SHARED[title]
    for dtype in TOLERANCE:
        tests.test_equals_the_reference(case, dtype)
        tests.test_arrays_are_the_live_ones(case, dtype)
        tests.test_dtypes_are_those_of_the_contract(dtype)
    tests.test_fast_equals_step_by_step(case)
    tests.test_four_steps_then_six_equal_ten(case)
    tests.test_goes_on_from_a_state_that_is_loaded(case, "true")
    tests.test_traced_steps_are_the_same_steps(case, "true")
    tests.test_reset_returns_to_the_start(case, "reset")
    tests.test_what_is_read_is_a_copy(case)


READ, FOUR, TRACED = (
    "test_what_is_read_is_a_copy",
    "test_four_steps_then_six_equal_ten",
    "test_traced_steps_are_the_same_steps",
)
REFERENCE, DTYPES = "test_equals_the_reference", "test_dtypes_are_those_of_the_contract"
ODD: list[tuple[dict[str, Any], str, tuple[str, ...], str]] = [
    ({"program": LiveParams}, READ, (), "params(): w changed when what was read was written to"),
    ({"program": LiveLosses}, READ, (), "losses() changed when what was read was written to"),
    ({"program": NoLosses}, REFERENCE, ("float64",), "losses(): 0 came back for 40 steps"),
    ({"program": ListedLosses}, FOUR, (), "losses(): got list, takes a NumPy array"),
    ({"program": NoParams}, REFERENCE, ("float64",), "params(): there are [], takes ['w']"),
    ({"program": NoTrace}, TRACED, ("true",), "trace: 0 marks in 4 steps"),
    ({"drawn": "float64"}, DTYPES, ("float32",), "normal() draws is float64, takes float32"),
    ({"fetched": "float32"}, DTYPES, ("float64",), "to_numpy() is float32, takes float64"),
]


@pytest.mark.parametrize(("odd", "test", "args", "said"), ODD, ids=[case[3] for case in ODD])
def test_what_is_not_as_the_contract_says_is_named(
    odd: dict[str, Any], test: str, args: tuple[str, ...], said: str
) -> None:
    case = () if test == DTYPES else (SHARED["sine-sgd"],)
    with pytest.raises(AssertionError, match=re.escape(said)):
        getattr(contract(**odd), test)(*case, *args)


# What a run says of it


class Columns(StepProgram):
    def losses(self, start: int = 0) -> Any:
        return super().losses(start)[:, None]


class FloatParams(StepProgram):
    def params(self) -> Any:
        return {name: float(value.sum()) for name, value in super().params().items()}


class ListedParams(StepProgram):
    def params(self) -> Any:
        return list(super().params().values())


class OneTooMany(StepProgram):
    def losses(self, start: int = 0) -> Any:
        return np.append(super().losses(start), np.nan)


LOSSES = "backend numpy: losses() gives {}, takes a NumPy array of shape (steps,) in float64"
PARAMS = "backend numpy: params() gives {}, takes a dict of NumPy arrays in float64, by name"
REFUSED: list[tuple[type[StepProgram], str, str]] = [
    (ListedLosses, "sine", LOSSES.format("list")),
    (Columns, "sine", LOSSES.format("an array of shape (20, 1) in float64")),
    (FloatParams, "sine", PARAMS.format("w as float")),
    (FloatParams, "matmul", PARAMS.format("result as float")),
    (ListedParams, "sine", PARAMS.format("list")),
]
WORDS = ("steps=20", "log_every=20")


@pytest.mark.parametrize(("program", "problem", "said"), REFUSED)
def test_what_is_read_in_another_form_is_named(
    tmp_path: Path, program: type[StepProgram], problem: str, said: str
) -> None:
    with pytest.raises(PluginError, match=re.escape(said)):
        measured(tmp_path, Odd(program=program), f"problem={problem}", *WORDS)


@pytest.mark.parametrize(
    ("program", "problem", "came"),
    [
        (OneTooMany, "sine", "21 came back for 20 steps"),
        (NoLosses, "sine", "0 came back for 20 steps"),
        (OneTooMany, "matmul", "1 came back for 20 steps of an operation, which has none"),
    ],
)
def test_the_number_of_losses_is_looked_at_before_the_losses(
    tmp_path: Path, program: type[StepProgram], problem: str, came: str
) -> None:
    result = measured(tmp_path, Odd(program=program), f"problem={problem}", *WORDS)
    assert (result.outcome, result.reason) == ("wrong_answer", f"in repeat 1 losses(0): {came}")


def test_a_trace_that_does_nothing_costs_the_parts_alone(tmp_path: Path) -> None:
    result = measured(tmp_path, Odd(program=NoTrace), "problem=sine", *WORDS)
    assert (result.outcome, result.reason) == ("ok", None)
    assert result.breakdown is not None
    text = result.breakdown.hidden
    assert text.startswith("not shown: trace() made 0 marks in 1 step")


# What a compiler can keep


class Rounded(StepProgram):
    """Its traced steps are off by rounding, as those of a step that is taken apart may be."""

    by = 2.0**-50

    def trace(self, n: int, mark: Mark) -> None:
        for _ in range(n):
            super().trace(1, lambda part: None)
            for name, value in self._params.items():
                self._params[name] = value * (1 + self.by)
            mark("draw")
            mark("step")


class Off(Rounded):
    by = 1e-6


def test_traced_steps_equal_the_plain_ones_within_rounding() -> None:
    case = SHARED["sine-sgd"]
    plain, traced, off = (
        kind(NumpyBackend(), case, manual(np)) for kind in (StepProgram, Rounded, Off)
    )
    assert_traces(traced, plain, learns=True, tolerance=TOLERANCE["float64"])
    plain.reset()
    with pytest.raises(AssertionError):
        assert_traces(off, plain, learns=True, tolerance=TOLERANCE["float64"])


# Breakdowns


class SlowTrace(StepProgram):
    """Takes 0.2 s for each of four parts, or for the step as a whole."""

    parts: tuple[str, ...] = ("draw", "forward", "backward", "update")

    def trace(self, n: int, mark: Mark) -> None:
        for _ in range(n):
            self.advance(1)
            for part in self.parts:
                sleep(0.2)
                mark(part)


class Hopeless(SlowTrace):
    parts = ("draw", "forward", "backward", "update") * 20


@pytest.mark.parametrize("kind", [SlowTrace, Hopeless])
def test_a_trace_that_is_slow_out_of_all_proportion_is_given_up(kind: type[SlowTrace]) -> None:
    case = SHARED["sine-sgd"]
    backend = NumpyBackend()
    program = kind(backend, case, manual(np))
    started = perf_counter()
    found = breakdown(program, backend.synchronize, case.steps, 1e-3)
    assert perf_counter() - started < 2.5
    assert not found.adds_up
    said = r"not shown: traced one by one they take over [\d,]+ times as long as the timed step"
    assert re.match(said, found.hidden), found.hidden
    assert parts_in(found.metrics())[0] == {}
    assert program.losses().size == 0
    program.advance(case.steps)  # whole again, wherever it was stopped
    np.testing.assert_array_equal(program.losses(), reference_losses(case))


def reference_losses(case: Workload) -> Any:
    program = StepProgram(NumpyBackend(), case, manual(np))
    program.advance(case.steps)
    return program.losses()


def test_a_step_of_one_part_has_no_breakdown_to_show() -> None:
    for took in (1e-3, 5e-2):
        whole = Breakdown({"step": took}, 1e-3, 9, 1, 1e-7, 1e-3, 1e-4)
        assert rows(whole.metrics(), whole.hidden) == []


# A plugin's problem and optimizer, beside those of others

TINY = {
    "__init__.py": "",
    "conf/problem/rows.yaml": "_target_: tiny.parts.Rows\nrows: 3000000\nbatch_size: null\n",
    "conf/optimizer/signed.yaml": "_target_: tiny.parts.Signed\nlr: ???\n",
    "parts.py": """
        from dataclasses import dataclass, replace
        import numpy as np
        from expkit.contracts import Recommended

        @dataclass(frozen=True)
        class Rows:
            rows: int = 3000000
            batch_size: int | None = None

            def small(self):
                plain = replace(self, rows=40, batch_size=None)
                return {"": plain, "minibatch": replace(plain, batch_size=8)}

            def recommended(self):
                return Recommended(steps=30, lr={"rmsprop": 0.05, "of_another_plugin": 1.0})

            def init(self, rng):
                return {"w": np.float64(0.5)}

            def data(self, rng):
                return {} if self.batch_size else {"x": rng.standard_normal(self.rows)}

            def batch(self, xp, data, random):
                return {"x": random.normal((self.batch_size,))} if self.batch_size else data

            def loss(self, xp, params, batch):
                error = params["w"] * batch["x"] - 2 * batch["x"]
                return error @ error

            def loss_and_grad(self, xp, params, batch):
                error = params["w"] * batch["x"] - 2 * batch["x"]
                return error @ error, {"w": 2 * (error @ batch["x"])}

        @dataclass(frozen=True)
        class Signed:
            lr: float

            def init(self, xp, params):
                return {}

            def update(self, xp, params, grads, state):
                return {k: p - self.lr * xp.sign(grads[k]) for k, p in params.items()}, state
    """,
}
NO_RATE = (
    "optimizer.lr: it has no value, because problem {} recommends none for optimizer {}; "
    "say optimizer.lr=..."
)


def test_a_run_without_a_rate_says_what_to_set(expkit: Expkit) -> None:
    expkit.plugin(TINY, "tiny")
    done = expkit("problem=rows", "optimizer=adam")
    assert (done.status, done.out) == (2, "")
    assert done.err == f"expkit: {NO_RATE.format('rows', 'adam')}\n"


def test_a_sweep_skips_what_has_no_rate_and_says_why(expkit: Expkit) -> None:
    expkit.plugin(TINY, "tiny")
    words = ["-m", "problem=rows,linear", "backend=numpy", "seed=0,1", "sweep.dry_run=true"]
    done = expkit(*words, "optimizer=rmsprop,signed")
    assert done.status == 0, done.err
    assert re.search(r": 4 cells", done.out)
    for problem in ("rows", "linear"):
        assert f"{problem} · numpy · rmsprop, seed=1" in done.out
        title = f"skipped: {problem} · numpy · signed, seed=1: "
        assert title + NO_RATE.format(problem, "signed") in done.out
    none = expkit(*words, "optimizer=signed")
    assert (none.status, none.err) == (2, f"expkit: {NO_RATE.format('rows', 'signed')}\n")


CONTRACTS = """
    from expkit.testing import BackendContract, OptimizerContract, ProblemContract

    class TestNumpy(BackendContract):
        backend = "numpy"

    class TestRows(ProblemContract):
        problem = "rows"

    class TestSigned(OptimizerContract):
        optimizer = "signed"
        words = ("optimizer.lr=0.02",)
"""


def test_the_contracts_try_every_form_and_skip_what_has_no_rate(expkit: Expkit) -> None:
    """With a problem and an optimizer of a plugin beside those that ship."""
    expkit.plugin(TINY, "tiny")
    (expkit.place / "test_tiny.py").write_text(dedent(CONTRACTS))
    code = """
        import sys, pytest
        from expkit.testing.backend import STREAMS
        print(*STREAMS)
        words = ["-q", "-rs", "-p", "no:cacheprovider", "test_tiny.py"]
        tried = "TestRows or TestSigned or (reference and (rows or signed) and float64)"
        sys.exit(pytest.main([*words, "-k", tried]))
    """
    done = expkit.python(code)
    assert done.status == 0, done.out[-3000:]
    for title in ("signed", "adam"):
        assert NO_RATE.format("rows", title) in done.out
    assert NO_RATE.format("linear", "signed") in done.out
    listed = expkit.python(
        "from expkit.testing.backend import STREAMS; print(*STREAMS)"
    ).out.split()
    ours = {title for title in listed if title.startswith("rows") or "signed" in title}
    names = ("rows-rmsprop", "rows-minibatch-rmsprop")
    assert ours == {*names, *(f"{name}-device" for name in names)}
    assert {"matmul", "matmul-draw", "add-draw"} <= set(listed)
