"""What counts as the same work, and what the clock, the threads and the limits say of it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from expkit_plugins.numpy.backend import NumpyBackend

from expkit import conduct
from expkit.authors import StepProgram, manual
from expkit.config import Cell, compose_cell
from expkit.contracts import Cost, Program, Workload
from expkit.errors import ParityError
from expkit.measure import parity, roofline
from expkit.measure.devices import device_name, is_host
from expkit.measure.parity import Facts
from expkit.measure.statistics import Rounds
from expkit.measure.threads import overused
from expkit.measure.verdict import FASTER, SAME, SLOWER, UNLIKE, held
from expkit.problems.matmul import Matmul
from expkit.record.result import Result
from expkit.record.stored import load
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Expkit

pytestmark = pytest.mark.alone

LIMITS = "measure.repeats_min=12", "measure.repeats_max=12", "tracking=none"
SMALL = ("problem=sine", "problem.n=200", "steps=200", *LIMITS)


@dataclass(frozen=True)
class Named(NumpyBackend):  # type: ignore[misc]
    """NumPy on a device of another name, without what not every library has."""

    device: str = "cpu:0"
    claimed: int = 1

    @property
    def xp(self) -> Any:
        names = ("ones_like", "zeros_like", "sqrt", "sum", "stack")
        return type("Bare", (), {name: staticmethod(getattr(np, name)) for name in names})

    def random(self, seed: int) -> Any:
        raise NotImplementedError("this library draws nothing")

    def describe(self) -> dict[str, str | int | float]:
        return {"device": self.device, "dtype": self.dtype, "threads": self.claimed}

    def build(self, workload: Workload) -> Program:
        return StepProgram(self, workload, manual(np))


def cell(backend: Any, *words: str) -> Cell:
    return replace(compose_cell(*(words or SMALL)), backend=backend)


def run(folder: Path, *cells: Cell) -> list[Result]:
    jobs = [(one, folder / str(number)) for number, one in enumerate(cells)]
    return conduct.run_together(jobs, None, lambda *_: None, tags={})


def tags(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for record, _ in journal.read(folder):
        found |= record.get("tags", {})
    return found


# Devices


@pytest.mark.parametrize(
    "said",
    [
        "cpu",
        "CPU",
        "cpu:0",
        "TFRT_CPU_0",
        "CpuDevice(id=0)",
        "Device(cpu, 0)",
        "/job:localhost/replica:0/task:0/device:CPU:0",
    ],
)
def test_the_processor_has_one_name(said: str) -> None:
    assert device_name(said) == "cpu"
    assert is_host(said)


@pytest.mark.parametrize(
    "said", ["cuda:0", "gpu:0", "TPU_0", "NVIDIA H200", "/job:localhost/device:GPU:0", "xpu"]
)
def test_a_device_of_its_own_keeps_its_name(said: str) -> None:
    assert device_name(said) == said
    assert not is_host(said)


@pytest.mark.parametrize(
    ("said", "place", "device"),
    [
        ("cpu", "cpu:0", "cpu"),
        ("cpu:0", "TFRT_CPU_0", "cpu"),
        ("cpu", "gpu:0", "gpu:0"),
        ("gpu:0", "gpu:0", "gpu:0"),
        ("NVIDIA H200", "cuda:0", "NVIDIA H200"),
        ("NVIDIA H200", "cpu", "cpu"),
    ],
)
def test_a_device_is_where_arrays_lie(said: str, place: str, device: str) -> None:
    arrays = {"params.w": SimpleNamespace(device=place)}
    assert parity._device(arrays, {"device": said}) == device


def test_devices_that_are_named_alike_are_alike(tmp_path: Path) -> None:
    ours, theirs = NumpyBackend(threads=1, fast=False), Named(threads=1)
    found = run(tmp_path, cell(ours), cell(theirs))
    assert [result.outcome for result in found] == ["ok"] * 2
    one, other = found
    assert parity.unlike(one, other) == []
    assert not tags(tmp_path / "1")["verdict"].startswith(UNLIKE)


# The verdict


@dataclass
class Side:
    """One of two, by hand."""

    rounds: Rounds
    facts: Facts = field(default_factory=dict)
    broken: Sequence[str] = ()
    until_target: Rounds = ()


@pytest.mark.parametrize(("ratio", "word"), [(0.5, FASTER), (1.0, SAME), (2.0, SLOWER)])
def test_only_like_work_is_faster_or_slower(ratio: float, word: str) -> None:
    a, b = ([[1.0]] * 6, [[ratio]] * 7)
    one, other = {"dtype": "float64"}, {"dtype": "float32"}
    assert held(Side(a, one), Side(b, one), 0.02).word == word
    assert held(Side(a), Side(b, one), 0.02).word == word, "what one alone says is no difference"
    unlike = held(Side(a, one), Side(b, other), 0.02)
    assert (unlike.word, unlike.ratio, unlike.rounds) == (UNLIKE, ratio, 6)
    broken = ["threads: says 1, had work for 1.9 processors on the clock"]
    assert held(Side(a, one, broken), Side(b, one), 0.02).word == UNLIKE
    assert held(Side(a, one), Side(b, one, broken), 0.02).word == UNLIKE


def test_compare_and_sweep_say_the_same_of_unlike_work(expkit: Expkit) -> None:
    """Whichever is faster: nobody is called so."""
    for turned in (False, True):
        sides = ["backend.dtype=float64", "backend.dtype=float32"]
        done = expkit("compare", *(reversed(sides) if turned else sides), *SMALL)
        assert (done.status, done.err) == (4, "")
        assert "verdict  UNLIKE" in done.out
        assert "B takes" in done.out, "the ratio is a fact"
        assert "unlike  not like for like: dtype: float" in done.out
    done = expkit("-m", "backend.dtype=float64,float32", *SMALL)
    assert done.status == 0
    assert "unlike work: numpy · sgd, backend.dtype=float32: dtype: float64 against" in done.out
    for word in (FASTER, SLOWER, SAME):
        assert f" {word} " not in done.out
    verdicts = [found for run in swept(expkit) if (found := tags(run).get("verdict"))]
    assert [verdict.split()[0] for verdict in verdicts] == [UNLIKE] * 3


@dataclass(frozen=True)
class Drawing(NumpyBackend):  # type: ignore[misc]
    """With a generator that does not do its work."""

    scale: float = 1.0

    def random(self, seed: int) -> Any:
        rng, scale = np.random.default_rng(seed), self.scale
        normal = staticmethod(lambda shape: scale * rng.standard_normal(shape))
        return type("Scaled", (), {"normal": normal})()

    def build(self, workload: Workload) -> Program:
        return StepProgram(self, workload, manual(np))


def test_every_library_may_draw_by_itself_but_it_has_to_draw_normal_values(tmp_path: Path) -> None:
    words = ("problem=large_dot", "problem.n=100", "steps=20", *LIMITS)
    assert compose_cell(*words).workload.stream == "device"
    cells = [cell(backend, *words) for backend in (NumpyBackend(), Drawing(), Drawing(scale=0.0))]
    plain, own, idle = run(tmp_path, *cells)
    assert parity.unlike(plain, own) == []
    assert parity.unlike(plain, idle) == [
        "random stream: device, standard normal against "
        "device, mean 0, standard deviation 0, 100% within 0.6745 of 0"
    ]


@pytest.mark.parametrize(("dtype", "broken"), [("float32", 1), ("float64", 0)])
def test_draws_of_another_dtype_than_the_backend_says_are_named(
    tmp_path: Path, dtype: str, broken: int
) -> None:
    words = ("problem=large_dot", "problem.n=100", "steps=20", *LIMITS)
    (found,) = run(tmp_path, cell(Drawing(dtype=dtype), *words))
    assert found.broken == ["dtype: says float32, what it draws is float64"] * broken


# Threads


@pytest.mark.parametrize(
    ("claimed", "wall_s", "cpu_s", "used"),
    [
        (1, 1.0, 1.0, None),
        (1, 1.0, 1.9, 1.9),
        (1, 0.01, 0.019, None),  # too short to tell
        (2, 1.0, 2.9, None),  # a helper of one library waits while two of another's compute
        (2, 1.0, 3.9, 3.9),
        (8, 1.0, 7.9, None),
        (1, 0.0, 0.0, None),
    ],
)
def test_more_processors_than_threads_are_named(
    claimed: int, wall_s: float, cpu_s: float, used: float | None
) -> None:
    assert overused(claimed, wall_s, cpu_s) == used


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_one_thread_draws_in_the_thread_that_calls_and_draws_the_same_as_two(name: str) -> None:
    """A helper and the caller would both wait for a core, as two threads that compute do."""
    if name == "torch":
        pytest.importorskip("torch")
    words = f"backend={name}", "problem=large_dot"
    one, two = (compose_cell(*words, f"backend.threads={n}").backend for n in (1, 2))
    before = set(threading.enumerate())
    alone = one.to_numpy(one.random(0).normal((600_000,)))
    assert set(threading.enumerate()) == before
    shared = two.to_numpy(two.random(0).normal((600_000,)))
    assert set(threading.enumerate()) != before
    np.testing.assert_array_equal(alone, shared)


class Helped(StepProgram):
    """A second thread that computes as long as a chunk is on the clock."""

    pool = ThreadPoolExecutor(1)

    def advance(self, n: int) -> None:
        done = threading.Event()

        def work() -> None:
            x = np.ones(1_000_000)
            while not done.is_set():
                np.negative(x, out=x)

        helper = self.pool.submit(work)
        y = np.ones(1_000_000)
        for _ in range(20):
            np.negative(y, out=y)
        super().advance(n)
        done.set()
        helper.result()


@dataclass(frozen=True)
class Helping(Named):
    def build(self, workload: Workload) -> Program:
        return Helped(self, workload, manual(np))


@pytest.mark.parametrize("cores", [1, 2])
def test_two_threads_that_say_one_are_named_wherever_they_are_compared(
    cores: int, tmp_path: Path
) -> None:
    """Also where they share a core, as they do where other processes have the rest."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < cores:
        pytest.skip("needs two processors")
    words = ("problem=sine", "problem.n=200", "steps=20", "log_every=10", *LIMITS)
    pair = cell(NumpyBackend(threads=1), *words), cell(Helping(threads=1), *words)
    required = cell(Helping(threads=1), *words, "measure.parity=require")
    os.sched_setaffinity(0, usable[:cores])
    try:
        honest, helped = run(tmp_path / "compared", *pair)
        with pytest.raises(ParityError, match="threads: says 1, had work for"):
            run(tmp_path / "required", required)
    finally:
        os.sched_setaffinity(0, usable)
    assert honest.broken == []
    [said] = helped.broken
    assert said.startswith("threads: says 1, had work for ")
    assert said.endswith(" processors on the clock")
    a, b = (load(tmp_path / "compared" / side) for side in "01")
    assert (a.broken, b.broken) == ([], [said])
    assert held(a, b, 0.02).word == UNLIKE
    found = tags(b.folder)
    assert found["verdict"].startswith(UNLIKE)
    assert said in found["parity"]


PLUGIN = """
    from dataclasses import dataclass
    from expkit.contracts import Cost
    from expkit.measure import threads
    from expkit.problems.matmul import Matmul
    from expkit_plugins.numpy.backend import NumpyBackend

    @dataclass(frozen=True)
    class Boastful(Matmul):
        n: int = 50

        def cost(self):
            return Cost(flops=1e15, elements=1)

    @dataclass(frozen=True)
    class Busy(NumpyBackend):
        def configure(self):
            super().configure()
            threads.SLACK = threads.SLACK_S = -1.0  # so that one processor is too many
"""


@pytest.fixture
def planted(expkit: Expkit) -> Expkit:
    files = {"__init__.py": PLUGIN, "conf/problem/boastful.yaml": "_target_: likeness.Boastful\n"}
    option = "_target_: likeness.Busy\nthreads: 1\n"
    expkit.plugin(files | {"conf/backend/busy.yaml": option}, package="likeness")
    return expkit


def test_a_sweep_names_more_processors_than_threads(planted: Expkit) -> None:
    words = ("problem=linear", "steps=300", "backend=numpy,busy", "backend.threads=1", *LIMITS)
    done = planted("-m", *words)
    assert done.status == 0, done
    said = "unlike work: busy · sgd: this cell: threads: says 1, had work for "
    assert said in done.out, done
    assert "unlike work: numpy" not in done.out
    assert " UNLIKE " in done.out
    verdicts = [found for run in swept(planted) if (found := tags(run).get("verdict"))]
    assert [verdict.split()[0] for verdict in verdicts] == [UNLIKE]
    assert ["threads: says 1" in tags(run).get("parity", "") for run in swept(planted)] == [0, 1]


def swept(expkit: Expkit) -> list[Path]:
    return sorted(file.parent for file in expkit.outputs.rglob("journal.jsonl"))


# Limits


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the limits are kept; not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "expkit" / "limits.json"


@pytest.mark.parametrize("device", ["cpu:0", "TFRT_CPU_0", "gpu:0"])
def test_any_device_is_measured_without_finfo_or_generator(device: str) -> None:
    found = roofline.machine_limits(Named(threads=1, device=device))
    assert found is not None
    assert found.itemsize == 8
    last, _ = found.bandwidth[-1]
    assert last == (1 << 28 if device == "gpu:0" else 1 << 27), (
        "the host's own where it is the host"
    )
    assert all(1e8 < rate < 1e14 for _, rate in found.bandwidth)


@dataclass(frozen=True)
class Opaque(Named):
    """A library whose arrays this measurement cannot use."""

    def asarray(self, host: Any) -> Any:
        return object()


def test_arrays_that_cannot_be_used_leave_the_hosts_own_limit_or_none() -> None:
    assert roofline.machine_limits(Opaque(threads=1, device="gpu:0")) is None
    host = roofline.machine_limits(Opaque(threads=1, device="cpu:0"))
    assert host is not None
    assert host.flops_per_second > 1e8


@dataclass(frozen=True)
class Lazy:
    """An array that is computed when its values are asked for."""

    make: Any
    ndim: int = 2

    def __matmul__(self, other: Lazy) -> Lazy:
        return Lazy(lambda: self.value() @ other.value())

    def __getitem__(self, where: Any) -> Lazy:
        return Lazy(lambda: self.value()[where])

    def value(self) -> Any:
        object.__setattr__(self, "kept", getattr(self, "kept", None))
        if self.kept is None:  # type: ignore[attr-defined]
            object.__setattr__(self, "kept", self.make())
        return self.kept  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Graph(Named):
    """A library that computes nothing before it is asked to."""

    def asarray(self, host: Any) -> Any:
        return Lazy(lambda: np.array(host))

    def to_numpy(self, array: Any) -> Any:
        return np.array(array.value())


def test_a_lazy_library_cannot_raise_the_limit_by_doing_nothing() -> None:
    eager, lazy = (roofline._product_rate(backend) for backend in (Named(), Graph()))
    assert lazy < 4 * eager


@dataclass(frozen=True)
class Boastful(Matmul):
    """Declares more work than it asks for, so that every program of it is too fast to be true."""

    def cost(self) -> Cost:
        return Cost(flops=1e15, elements=1)


def too_fast() -> Cell:
    words = ("problem=matmul", "problem.n=50", "steps=20", "backend.threads=1", *LIMITS)
    given = compose_cell(*words)
    return replace(given, workload=replace(given.workload, problem=Boastful(n=50)))


@pytest.mark.parametrize("own_cores", [roofline.OWN_CORES, 9.0])
def test_a_time_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cores: float
) -> None:
    """Also where the limit is not settled: others who had some of the cores explain no billion."""
    monkeypatch.setattr(roofline, "OWN_CORES", own_cores)
    [found] = run(tmp_path, too_fast())
    assert (found.outcome, found.summary, found.limit_share) == ("beyond_limit", None, None)
    assert "of the most that this machine's arithmetic allows, measured 4 times" in str(
        found.reason
    )
    kept = load(tmp_path / "0")
    assert (kept.outcome, kept.share_of_limit) == ("beyond_limit", None)
    assert not kept.is_finished


def test_runs_sweeps_and_comparisons_refuse_it_alike(planted: Expkit) -> None:
    words = ("problem=boastful", "steps=20", *LIMITS)
    done = planted(*words)
    assert done.status == 1
    assert "steps/s" not in done.out
    assert "outcome  beyond_limit: a step seems to take" in done.out
    done = planted("compare", "backend.fast=true", "backend.fast=false", *words)
    assert done.status == 1
    assert "MAY NOT BE COMPARED" in done.out
    done = planted("-m", "backend.fast=true,false", *words)
    assert done.status == 1
    assert "2 beyond limit" in done.out
    again = planted("resume")
    assert (again.status, "nothing is left to run" in again.out) == (1, True), "it would come again"


def test_where_the_limit_was_not_settled_it_is_named_as_doubtful(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where others had nearly all of the cores while it was measured."""
    monkeypatch.setattr(roofline._Cores, "share", lambda self: 1e-12)
    [found] = run(tmp_path, too_fast())
    assert (found.outcome, found.limit_share) == ("ok", None)
    [doubt] = [reason for reason in found.unstable if reason.startswith("limit: ")]
    assert doubt.endswith("as measured while others had its cores")


def test_a_machine_that_became_slower_accuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "OWN_CORES", 0.0)
    backend = NumpyBackend(threads=1)
    backend.configure()
    work = Cost(flops=1e15, elements=1)
    found = roofline.hold_to_limit(backend, work, 0.0, 1e-4, lambda: 1e9)
    assert (found.limit, found.beyond) == (None, "")
    assert found.doubt.endswith("as measured after it had become slower")
    assert roofline.hold_to_limit(backend, work, 0.0, 1e-4, lambda: 1e-4).beyond


def test_nobody_is_accused_by_a_limit_that_is_too_low(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was measured while others used the memory."""
    monkeypatch.setattr(roofline, "OWN_CORES", 0.0)
    given = compose_cell(*SMALL, "backend.threads=1")
    given.backend.configure()
    right = roofline.machine_limits(given.backend)
    assert right is not None
    text = cache.read_text()
    slow = [[size, 1.0] for size, _ in right.bandwidth]
    kept = {key: entry | {"bandwidth": slow} for key, entry in json.loads(text).items()}
    cache.write_text(json.dumps(kept))
    low = roofline.machine_limits(given.backend)
    assert low is not None
    assert low.bytes_per_second(1e6) == 1.0
    [found] = run(tmp_path, given)
    assert found.outcome == "ok"
    assert found.limit_share is not None
    assert found.limit_share < 1.05


def test_two_runs_read_at_other_steps_are_unlike() -> None:
    """Each reading waits for the device and looks at the losses."""
    a, b = {"log_every": "1"}, {"log_every": "100"}
    assert parity.differences(a, b) == ["log_every (steps between two readings): 1 against 100"]
