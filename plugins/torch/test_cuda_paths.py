"""The CUDA path, as far as a CPU can tell; tests/attack/test_cuda.py looks from outside.

Where there is no GPU, `Gpu` stands in for torch.cuda. Its graphs hold what a step's operations were
and do them again in the same memory, so a number that a capture would freeze is frozen here too;
its captures fail the way PyTorch's before 2.12 do. What needs the real thing is marked `gpu`.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakSet

import numpy as np
import pytest
import torch
from expkit_plugins.torch import program as programs
from expkit_plugins.torch.backend import TorchBackend
from expkit_plugins.torch.program import (
    HOST_INTEGERS,
    StaticProgram,
    _draws_on_host,
    autograd,
    build,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from expkit.authors import StepProgram
from expkit.config import compose_cell
from expkit.contracts import Array, Batch, Params, Program, Workload
from expkit.optimizers.sgd import Sgd
from expkit.problems.large_dot import LargeDot
from expkit.problems.sine import Sine
from expkit.testing.backend import assert_close, assert_same_state, assert_traces
from expkit.testing.cells import few, learning, operations, recordable, reference

STEPS = 10
DEVICE = recordable(learning(STEPS, stream="device")) | operations(STEPS, stream="device")
FEW = few(recordable(learning(STEPS, stream="device"))) | operations(STEPS, stream="device")
ON_DEVICE = {title: case for title, case in FEW.items() if not _draws_on_host(TorchBackend(), case)}
"""Those that draw no integers, which the host does in every step."""


# The stand-in


class Recorder(TorchDispatchMode):
    """Notes every operation with its arguments and the memory of its results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        taken = tree_map(_as_now, (args, kwargs))
        out = func(*args, **kwargs)
        self.calls.append((func, *taken, tree_map(_as_now, out)))
        return out

    def replay(self) -> None:
        """The same operations on the same arguments, into the same memory."""
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                again = func(*args, **kwargs)
                for kept, fresh in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(kept, torch.Tensor) and kept.data_ptr() != fresh.data_ptr():
                        kept.copy_(fresh)


def _as_now(x: Any) -> Any:
    """The same memory by a name of its own: `squeeze_` changes an array's shape where it stands."""
    return torch.ops.aten.alias.default(x) if isinstance(x, torch.Tensor) else x


class Strict(TorchDispatchMode):
    """What the sync debug mode `error` does to reading a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("called a synchronizing CUDA operation\nsecond line")
        return func(*args, **(kwargs or {}))


class Stream:
    """Work in order, which on a CPU all work is."""

    def wait_stream(self, other: Stream) -> None: ...


@dataclass
class Gpu:
    """What `expkit_plugins.torch` uses of torch.cuda.

    Attributes:
        streams: all that were made, the main one first.
        current: the stream that is current.
        debug: the sync debug mode.
        capturing: whether the allocator believes that a capture is under way.
        graphs: those that are alive.
        told: generators that graphs were told of.
        log: waits, captures, and the ends of graphs.
    """

    streams: list[Stream] = field(default_factory=lambda: [Stream()])
    debug: int | str = 1
    capturing: bool = False
    graphs: WeakSet[Any] = field(default_factory=WeakSet)
    told: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    strict: Strict | None = None

    def __post_init__(self) -> None:
        self.current = self.streams[0]

    def stream(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    def set_debug(self, mode: int | str) -> None:
        self.debug = mode
        if self.strict is not None:
            self.strict.__exit__(None, None, None)
            self.strict = None
        if mode == "error":
            self.strict = Strict()
            self.strict.__enter__()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A stand-in for torch.cuda, in a process where no capture has failed."""
    gpu = Gpu()

    class Graph:
        def __init__(self) -> None:
            self.recorder = Recorder()
            gpu.graphs.add(self)

        def register_generator_state(self, generator: Any) -> None:
            if torch.__version__ >= "2.14":
                warnings.warn("register_generator_state is deprecated", stacklevel=2)
            gpu.told.append(generator)

        def capture_begin(self, **_: Any) -> None:
            if gpu.capturing:
                raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
            assert gpu.current is not gpu.streams[0]
            gpu.log.append("capture")
            gpu.capturing = True
            self.broken = False
            self.recorder.__enter__()

        def capture_end(self) -> None:
            self.recorder.__exit__(None, None, None)
            if Refusing.refused:
                raise RuntimeError("operation failed due to a previous error during capture")
            gpu.capturing = False

        def replay(self) -> None:
            self.recorder.replay()

        def __del__(self) -> None:
            gpu.log.append("graph ends")

    class UseStream:
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            self.before, gpu.current = gpu.current, self.stream

        def __exit__(self, *_: object) -> None:
            gpu.current = self.before

    class Device:
        def __init__(self, device: Any) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    played = {
        "Stream": lambda *_: gpu.stream(),
        "CUDAGraph": Graph,
        "stream": UseStream,
        "device": Device,
        "current_stream": lambda *_: gpu.current,
        "synchronize": lambda *_: gpu.log.append("wait"),
        "empty_cache": lambda: None,
        "get_sync_debug_mode": lambda: gpu.debug,
        "set_sync_debug_mode": gpu.set_debug,
    }
    for name, thing in played.items():
        monkeypatch.setattr(torch.cuda, name, thing)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(programs, "_failed_captures", [], raising=False)
    monkeypatch.setattr(Refusing, "refused", False)
    return gpu


def played_backend() -> TorchBackend:
    """The arrays of the CPU, and a device that is not called `cpu`."""
    backend = compose_cell("backend=torch").backend
    assert isinstance(backend, TorchBackend)
    backend.configure()
    object.__setattr__(backend, "device", "cpu:0")
    return backend


def reason_of(program: Program) -> str:
    return cast(str, getattr(program, "mode_reason", "no reason"))


# Steps that a graph cannot hold


@dataclass(frozen=True)
class Waiting(Sine):
    """Reads the loss in Python and branches on it."""

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        loss = super().loss(xp, params, batch)
        return loss if loss.item() > 0 else 2 * loss


@dataclass(frozen=True)
class Refusing(Sine):
    """Does what only a capture minds."""

    refused = False

    error: Callable[[], BaseException] = lambda: RuntimeError(
        "operation not permitted when stream is capturing\nmore of it"
    )

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        if isinstance(torch.utils._python_dispatch._get_current_dispatch_mode(), Recorder):
            type(self).refused = True
            raise self.error()
        return super().loss(xp, params, batch)


def case_of(problem: Any, **changes: Any) -> Workload:
    settings: dict[str, Any] = {"steps": STEPS, "seed": 0, "stream": "shared"}
    return Workload(problem, Sgd(1e-6), **(settings | changes))


FINE = case_of(Sine(n=50))


def assert_learns(program: Program, case: Workload = FINE) -> None:
    program.advance(STEPS)
    losses, params = reference(case)
    assert_close(program.losses(), losses, 1e-9)
    assert_close(program.params()["w"], params["w"], 1e-9)


# A step is tried before it is captured


def test_a_step_that_waits_is_found_before_any_capture(gpu: Gpu) -> None:
    backend = played_backend()
    program = build(backend, case_of(Waiting(n=50)))
    assert program.mode == "step"
    assert reason_of(program).startswith("the step cannot be captured: it waits for the GPU")
    assert "second line" not in reason_of(program)
    assert "capture" not in gpu.log
    assert (gpu.current, gpu.debug, gpu.strict) == (gpu.streams[0], 1, None)
    assert_learns(program)
    assert build(backend, FINE).mode == "cuda graph", "and this process may capture still"


def test_state_that_has_no_fixed_memory_is_named(gpu: Gpu) -> None:
    @dataclass(frozen=True)
    class Lazy:
        def init(self, xp: Any, params: Params) -> Params:
            return {}

        def update(self, xp: Any, params: Params, grads: Params, state: Params) -> Any:
            return {k: p - 1e-6 * grads[k] for k, p in params.items()}, dict(grads)

    lazy: Any = Lazy()
    program = build(played_backend(), Workload(Sine(n=50), lazy, STEPS, 0, "shared"))
    assert program.mode == "step"
    assert "state that init does not make" in reason_of(program)
    assert_learns(program)


def test_what_the_host_draws_is_named(gpu: Gpu) -> None:
    backend = played_backend()
    drawing = case_of(LargeDot(n=50))
    program = build(backend, drawing)
    assert program.mode == "step"
    assert "stream=shared" in reason_of(program)
    assert build(backend, case_of(LargeDot(n=50), stream="device")).mode == "cuda graph"


def test_nothing_is_held_against_a_program_that_nobody_asked_to_be_fast(gpu: Gpu) -> None:
    backend = played_backend()
    object.__setattr__(backend, "fast", False)
    assert build(backend, FINE).mode == "step"
    assert not reason_of(build(backend, FINE))


# A capture that fails


def test_after_a_capture_that_fails_the_step_runs_on_the_right_stream(gpu: Gpu) -> None:
    program = build(played_backend(), case_of(Refusing(n=50)))
    assert gpu.current is gpu.streams[0]
    assert gpu.debug == 1
    assert program.mode == "step"
    assert reason_of(program) == (
        "the step cannot be captured: operation not permitted when stream is capturing"
    ), "what went wrong first, and not what ending the capture says"
    assert_learns(program)


def test_after_a_capture_that_failed_no_other_is_tried(gpu: Gpu) -> None:
    backend = played_backend()
    build(backend, case_of(Refusing(n=50)))
    gpu.log.clear()
    program = build(backend, FINE)
    assert program.mode == "step"
    assert "an earlier capture failed in this process" in reason_of(program)
    assert "operation not permitted" in reason_of(program)
    assert "a fresh process" in reason_of(program)
    assert "capture" not in gpu.log
    assert_learns(program)


def test_what_failed_leaves_no_memory_behind(gpu: Gpu) -> None:
    build(played_backend(), case_of(Refusing(n=50)))
    assert not gpu.graphs


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_memory_that_does_not_suffice_and_ctrl_c_are_no_reason_to_go_on(
    gpu: Gpu, error: type[BaseException]
) -> None:
    """As they are, and not as what ending the capture makes of them."""
    with pytest.raises(error):
        build(played_backend(), case_of(Refusing(n=50, error=error)))
    assert gpu.current is gpu.streams[0]


# Streams, graphs and generators


def test_a_program_has_one_side_stream_for_life(gpu: Gpu) -> None:
    program = StaticProgram(played_backend(), FINE, capture=True)
    for _ in range(3):
        program.reallocate()
        assert_learns(program)
    assert len(gpu.streams) == 2
    other = StaticProgram(played_backend(), FINE, capture=True)
    assert len(gpu.streams) == 3, "and shares it with no other program"
    assert_learns(other)


def test_a_graph_ends_when_it_has_run_and_before_the_next_is_made(gpu: Gpu) -> None:
    program = StaticProgram(played_backend(), FINE, capture=True)
    gpu.log.clear()
    program.reallocate()
    assert len(gpu.graphs) == 1
    assert gpu.log.index("wait") < gpu.log.index("graph ends") < gpu.log.index("capture")


@pytest.mark.parametrize(
    ("version", "tells"),
    [("2.11.0", True), ("2.13.0+cu130", True), ("2.14.0a0+git1", False), ("3.0.1", False)],
)
def test_a_graph_is_told_of_its_generators_where_it_does_not_find_them(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, version: str, tells: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    StaticProgram(played_backend(), DEVICE["large_dot-sgd"], capture=True)
    assert len(gpu.told) == tells


# What is replayed


def test_a_step_for_which_the_host_draws_integers_is_not_captured(gpu: Gpu) -> None:
    cases = {title: case for title, case in FEW.items() if title not in ON_DEVICE}
    assert any("minibatch" in title for title in cases)
    for case in cases.values():
        program = build(played_backend(), case)
        assert program.mode == "step"
        assert isinstance(program, StepProgram)
        assert program.mode_reason == f"the step cannot be captured: {HOST_INTEGERS}"


@pytest.mark.parametrize("case", ON_DEVICE.values(), ids=ON_DEVICE)
def test_a_replayed_step_equals_step_by_step(gpu: Gpu, case: Workload) -> None:
    backend = played_backend()
    replayed, stepwise = build(backend, case), StepProgram(backend, case, autograd)
    assert replayed.mode == "cuda graph"
    for again in ("reset", "reallocate"):
        for program in (replayed, stepwise):
            program.advance(4)
            program.advance(6)
        assert_same_state(replayed, stepwise)
        for program in (replayed, stepwise):
            getattr(program, again)()
    assert_traces(replayed, stepwise, learns=case.optimizer is not None)


def test_a_number_of_python_is_frozen_by_the_stand_in_too(gpu: Gpu) -> None:
    """Else the test above could not fail."""

    @dataclass(frozen=True)
    class Counting(Sine):
        counter: Iterator[int] = field(default_factory=lambda: iter(range(1, 100)))

        def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
            return next(self.counter) * super().loss(xp, params, batch)

    program = build(played_backend(), Workload(Counting(n=50), Sgd(1e-9), STEPS, 0, "shared"))
    program.advance(3)
    losses = program.losses()
    assert losses[1] == pytest.approx(losses[0], rel=0.01), "counted, it were 5/4 of it"


def test_a_run_that_diverges_does_so_at_the_same_step(gpu: Gpu) -> None:
    """From the first loss that is not finite on, a replay goes on as the steps do."""
    case = Workload(LargeDot(n=1000), Sgd(1.0), 150, 0, "device")
    backend = played_backend()
    replayed, stepwise = build(backend, case), StepProgram(backend, case, autograd)
    for program in (replayed, stepwise):
        program.advance(100)
        program.advance(50)
    bad = np.flatnonzero(~np.isfinite(stepwise.losses()))
    assert 10 < bad[0] < 140
    np.testing.assert_array_equal(replayed.losses(100), stepwise.losses(100))
    assert_same_state(replayed, stepwise)
    replayed.reset()
    replayed.advance(5)
    assert np.isfinite(replayed.losses()).all(), "a reset leaves no NaN behind"


# On no device at all: the whole step with its gradient, where a value cannot be read and an array
# of the CPU does not fit. (FakeTensorMode on `cuda` ends the process in autograd where PyTorch is
# built for the CPU.)


class NoValues:
    """The draws of a device that has no memory."""

    generators = ()

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float64, device="meta")

    def rewind(self) -> None: ...


def run_on_no_device(monkeypatch: pytest.MonkeyPatch, case: Workload) -> None:
    backend = TorchBackend()
    object.__setattr__(backend, "device", "meta")
    monkeypatch.setattr(TorchBackend, "random", lambda *_: NoValues())
    monkeypatch.setattr(TorchBackend, "synchronize", lambda _: None)
    StaticProgram(backend, case, capture=False).advance(3)


@pytest.mark.parametrize("case", FEW.values(), ids=FEW)
def test_no_step_reads_a_value_or_mixes_devices(
    monkeypatch: pytest.MonkeyPatch, case: Workload
) -> None:
    run_on_no_device(monkeypatch, case)


@dataclass(frozen=True)
class Elsewhere(Sine):
    """Makes an array where PyTorch does by default."""

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        return super().loss(xp, params, batch) + (params["w"] @ xp.ones(4, dtype=xp.float64))


@pytest.mark.parametrize("problem", [Waiting(n=50), Elsewhere(n=50)], ids=repr)
def test_a_step_that_does_is_found(monkeypatch: pytest.MonkeyPatch, problem: Any) -> None:
    """Else the test above could not fail."""
    with pytest.raises(RuntimeError, match=r"meta"):
        run_on_no_device(monkeypatch, case_of(problem))


# On a real GPU. Not run yet: not measured on a GPU.


def real_backend() -> TorchBackend:
    backend = compose_cell("backend=torch_cuda").backend
    assert isinstance(backend, TorchBackend)
    backend.configure()
    return backend


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_step_that_waits_is_found_before_any_capture() -> None:
    program = build(real_backend(), case_of(Waiting(n=50)))
    assert program.mode == "step"
    assert "waits for the GPU" in reason_of(program)
    assert torch.cuda.get_sync_debug_mode() == 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert_learns(program)
    fine = build(real_backend(), FINE)
    assert fine.mode == "cuda graph", reason_of(fine)
    assert_learns(fine)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_placing_anew_keeps_no_memory() -> None:
    case = case_of(LargeDot(n=1_000_000), stream="device")
    program = build(real_backend(), case)
    assert program.mode == "cuda graph", reason_of(program)
    program.reallocate()
    before = torch.cuda.memory_reserved()
    for _ in range(20):
        program.advance(STEPS)
        program.reallocate()
    assert torch.cuda.memory_reserved() <= before + (32 << 20)
