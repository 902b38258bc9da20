"""The work that problems declare, and the machine's limits that it is held against."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from expkit.config import compose_cell
from expkit.contracts import Backend, Cost, HasCost, HasGradient, Operation, Problem
from expkit.measure import roofline as measured
from expkit.measure.roofline import Limits, optimizer_elements, step_limit
from expkit.problems.add import Add
from expkit.problems.large_dot import LargeDot
from expkit.problems.linear import Linear
from expkit.problems.matmul import Matmul
from expkit.problems.sine import Sine

pytestmark = pytest.mark.alone


@dataclass(frozen=True)
class Shape:
    """An array without values, which adds up the operations done with it."""

    shape: tuple[int, ...]
    counted: list[int]

    def _each(self, other: Any) -> Shape:
        """An operation for each element of the result."""
        result = np.broadcast_shapes(self.shape, getattr(other, "shape", ()))
        self.counted.append(int(np.prod(result)))
        return Shape(result, self.counted)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _each

    def __matmul__(self, other: Shape) -> Shape:
        """A product and a sum for each term of each result."""
        result = (*self.shape[:-1], *other.shape[1:])
        self.counted.append(2 * int(np.prod(result)) * self.shape[-1])
        return Shape(result, self.counted)


def _sum(x: Shape) -> Shape:
    x.counted.append(int(np.prod(x.shape)))
    return Shape((), x.counted)


CASES: list[tuple[Any, int]] = [
    # The elements, by hand:
    (Sine(n=10, degree=1), 20 + 10 + 2),  # basis, y, w
    (Sine(n=2000), 8000 + 2000 + 4),
    (Sine(n=7, degree=0), 7 + 7 + 1),
    (Linear(batch_size=20), 2),  # slope, intercept
    (Linear(batch_size=1), 2),
    (LargeDot(n=100), 100 + 1 + 200),  # w, b, x there and back
    (LargeDot(n=12_345), 37_036),
    (Matmul(n=100), 10_000 + 10_000 + 10_000),  # a, b, the result
    (Matmul(n=3, draw=True), 9),  # the result
    (Add(n=1000), 3_000_000),
    (Add(n=5, draw=True), 25),
]


@pytest.mark.parametrize(("problem", "elements"), CASES, ids=[repr(p) for p, _ in CASES])
def test_work_is_what_a_step_does(problem: Any, elements: int) -> None:
    counted: list[int] = []

    def shapes(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {name: Shape(np.shape(a), counted) for name, a in arrays.items()}

    rng = np.random.default_rng(0)
    xp = SimpleNamespace(sum=_sum, ones_like=lambda x: x)
    random = SimpleNamespace(normal=lambda s: Shape(s, counted))
    batch = problem.batch(xp, shapes(problem.data(rng)), random)
    if isinstance(problem, Operation):
        problem.apply(xp, batch)
    else:
        assert isinstance(problem, Problem)
        assert isinstance(problem, HasGradient)
        problem.loss_and_grad(xp, shapes(problem.init(rng)), batch)
    assert isinstance(problem, HasCost)
    spared = 2 * problem.n - 1 if isinstance(problem, LargeDot) else 0  # 3 * ones @ x is 3 * sum(x)
    assert problem.cost() == Cost(flops=sum(counted) - spared, elements=elements)


LIMITS = Limits(
    bandwidth=((1000, 8e9), (4000, 2e9), (16_000, 1e9)),
    flops_per_second=1e10,
    itemsize=8,
    cores=1.0,
)


@pytest.mark.parametrize(
    ("working_set", "rate"),
    [(0, 8e9), (1000, 8e9), (3999, 8e9), (4000, 2e9), (16_000, 1e9), (1e12, 1e9)],
)
def test_the_bandwidth_is_that_of_the_next_smaller_rung(working_set: float, rate: float) -> None:
    assert LIMITS.bytes_per_second(working_set) == rate


def test_a_smaller_set_is_no_slower_than_a_larger_one() -> None:
    launching = replace(LIMITS, bandwidth=((1000, 1e8), (4000, 2e9), (16_000, 1e9)))
    assert launching.bytes_per_second(1000) == 2e9


def test_the_larger_of_the_two_times_binds() -> None:
    reading = step_limit(LIMITS, Cost(flops=10, elements=100))
    assert reading.binds == "memory"
    assert reading.seconds == pytest.approx(800 / 8e9)
    counting = step_limit(LIMITS, Cost(flops=1e6, elements=100))
    assert counting.binds == "arithmetic"
    assert counting.seconds == pytest.approx(1e-4)


def test_the_optimizers_traffic_is_added() -> None:
    alone, trained = (step_limit(LIMITS, Cost(1, 10_000), own) for own in (0, 10_000))
    assert trained.seconds == pytest.approx(2 * alone.seconds)


def test_a_share_above_one_is_told() -> None:
    limit = step_limit(LIMITS, Cost(flops=1e10, elements=1))
    assert limit.share(2.0) == pytest.approx(0.5)
    assert limit.share(0.1) == pytest.approx(10.0)


def test_an_optimizer_moves_parameters_and_state_twice() -> None:
    arrays = {"data.x": np.ones(1000), "params.w": np.ones((3, 4)), "state.m/w": np.ones((3, 4))}
    assert optimizer_elements(arrays | {"state.beta1/w": np.ones(())}) == 2 * (12 + 12 + 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the limits are kept; not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "expkit" / "limits.json"


def machine_limits(backend: Backend) -> Limits:
    found = measured.machine_limits(backend)
    assert found is not None
    return found


def configured(*words: str) -> Backend:
    backend = compose_cell("problem=sine", "backend.threads=1", *words).backend
    backend.check_available()
    backend.configure()
    return backend


@pytest.mark.parametrize(
    ("words", "itemsize"),
    [
        (("backend=numpy", "backend.dtype=float64"), 8),
        (("backend=numpy", "backend.dtype=float32"), 4),
        (("backend=torch", "backend.dtype=float64"), 8),
        (("backend=torch", "backend.dtype=bfloat16"), 2),
    ],
)
def test_limits_are_those_of_a_machine(words: tuple[str, ...], itemsize: int) -> None:
    """Loose enough for a Raspberry Pi and for the largest server, with a busy neighbour."""
    if words[0] == "backend=torch":
        pytest.importorskip("torch")
    limits = machine_limits(configured(*words))
    assert limits.itemsize == itemsize
    sizes, rates = zip(*limits.bandwidth, strict=True)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[0] <= 1 << 16, "within a first-level cache"
    assert sizes[-1] >= 1 << 26, "beyond most caches"
    assert all(1e8 < rate < 1e14 for rate in rates)
    assert 1e8 < limits.flops_per_second < 1e16


def test_a_device_of_its_own_is_measured_through_its_arrays() -> None:
    """The NumPy backend under another device's name, as no such device may be at hand."""

    @dataclass(frozen=True)
    class Elsewhere(type(configured())):  # type: ignore[misc]
        def describe(self) -> dict[str, str | int | float]:
            about: dict[str, str | int | float] = super().describe()
            return about | {"device": "elsewhere"}

    limits = machine_limits(Elsewhere(threads=1))
    assert limits.bandwidth[-1][0] == 1 << 28
    assert all(1e8 < rate < 1e14 for _, rate in limits.bandwidth)


def test_a_second_call_takes_what_is_kept(cache: Path) -> None:
    machine_limits(configured())
    (key, entry), *others = json.loads(cache.read_text()).items()
    assert not others
    kept = entry | {"flops_per_second": 12_345.0, "cores": 1.0}
    cache.write_text(json.dumps({key: kept}))
    assert machine_limits(configured()).flops_per_second == 12_345.0
    assert json.loads(cache.read_text()) == {key: kept}


def test_what_a_busy_machine_gave_is_measured_again_and_the_best_kept(cache: Path) -> None:
    machine_limits(configured())
    (key, entry), *_ = json.loads(cache.read_text()).items()
    slow = [[size, 1.0] for size, _ in entry["bandwidth"]]
    busy = {"bandwidth": slow, "flops_per_second": 1e30, "itemsize": 8, "cores": 0.1}
    cache.write_text(json.dumps({key: busy}))
    limits = machine_limits(configured())
    assert limits.flops_per_second == 1e30
    assert all(rate > 1.0 for _, rate in limits.bandwidth)


def test_other_conditions_are_kept_beside(cache: Path) -> None:
    for dtype in ("float64", "float32"):
        machine_limits(configured(f"backend.dtype={dtype}"))
    kept = json.loads(cache.read_text())
    assert sorted(entry["itemsize"] for entry in kept.values()) == [4, 8]


@pytest.mark.parametrize("damage", ["", "{", "[1]", "\x00", "entry", "rate", "rungs"])
def test_a_damaged_cache_is_measured_again(cache: Path, damage: str) -> None:
    machine_limits(configured())
    (key, entry), *_ = json.loads(cache.read_text()).items()
    entries = {
        "entry": {key: 3},
        "rate": {key: entry | {"flops_per_second": -1, "cores": 1.0}},
        "rungs": {key: entry | {"bandwidth": [[1, 1.0]], "cores": 0.1, "at": 0}},
    }
    cache.write_text(json.dumps(entries[damage]) if damage in entries else damage)
    limits = machine_limits(configured())
    assert limits.flops_per_second > 0
    again = json.loads(cache.read_text())[key]
    assert again["flops_per_second"] == limits.flops_per_second
    assert len(again["bandwidth"]) == len(entry["bandwidth"])


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")  # root may write anywhere, but not in a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert machine_limits(configured()).flops_per_second > 0
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_user_without_a_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "~")  # what Path.home() takes for none
    assert machine_limits(configured()).flops_per_second > 0


MEASURE = """
import sys
from expkit.config import compose_cell
from expkit.measure.roofline import machine_limits
words = "problem=sine", "backend.threads=1", f"backend.dtype={sys.argv[1]}"
backend = compose_cell(*words).backend
backend.configure()
print(machine_limits(backend).itemsize)
"""


def test_two_processes_at_once_keep_both_findings(cache: Path) -> None:
    commands = [[sys.executable, "-c", MEASURE, dtype] for dtype in ("float64", "float32")]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for words in commands]
    assert [process.communicate(timeout=60)[0] for process in started] == ["8\n", "4\n"]
    assert len(json.loads(cache.read_text())) == 2
    assert [file.name for file in cache.parent.iterdir()] == ["limits.json"]
