"""The PyTorch backends keep to the contract."""

import subprocess
import sys
from dataclasses import dataclass
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from expkit_plugins.torch.backend import TorchBackend
from expkit_plugins.torch.program import StaticProgram, autograd

from expkit.authors import StepProgram
from expkit.config import compose_cell
from expkit.contracts import Batch, HostArray, Params, Workload
from expkit.measure.breakdown import breakdown
from expkit.optimizers.sgd import Sgd
from expkit.problems.sine import Sine
from expkit.testing import BackendContract
from expkit.testing.backend import assert_same_state, assert_traces
from expkit.testing.cells import few, learning, operations


class TestTorch(BackendContract):
    backend = "torch"
    exact = True


@pytest.mark.gpu
class TestTorchCuda(BackendContract):
    backend = "torch_cuda"
    exact = True


MOMENT_S = 2e-3
STATIC = few(learning(10, stream="device")) | operations(10, stream="device")


@pytest.mark.parametrize("case", STATIC.values(), ids=STATIC)
def test_the_step_that_a_graph_captures_equals_step_by_step(case: Workload) -> None:
    """On the CPU, where nothing is captured: the same fixed memory, the same step."""
    backend = compose_cell("backend=torch").backend
    assert isinstance(backend, TorchBackend)
    backend.configure()
    static = StaticProgram(backend, case, capture=False)
    stepwise = StepProgram(backend, case, autograd)
    for _ in range(2):
        for program in (static, stepwise):
            program.advance(4)
            program.advance(6)
        assert_same_state(static, stepwise)
        static.reset()
        stepwise.reset()


@pytest.mark.parametrize("case", STATIC.values(), ids=STATIC)
def test_the_step_that_a_graph_captures_is_traced_as_it_is(case: Workload) -> None:
    backend = compose_cell("backend=torch").backend
    assert isinstance(backend, TorchBackend)
    traced, plain = (StaticProgram(backend, case, capture=False) for _ in range(2))
    assert_traces(traced, plain, learns=case.optimizer is not None)
    assert traced.arrays().keys() == StepProgram(backend, case, autograd).arrays().keys()


class Slow(torch.autograd.Function):
    """The identity: a moment forward, three backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        sleep(MOMENT_S)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        sleep(3 * MOMENT_S)
        return grad


@dataclass(frozen=True)
class SlowSine(Sine):
    """Takes known times to compute the loss and its gradient."""

    def loss(self, xp: Any, params: Params, batch: Batch) -> Any:
        return super().loss(xp, {"w": Slow.apply(params["w"])}, batch)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("static", [False, True])
def test_autograd_is_traced_in_forward_and_backward(static: bool) -> None:
    backend = compose_cell("backend=torch").backend
    assert isinstance(backend, TorchBackend)
    case = Workload(SlowSine(n=50), Sgd(1e-6), 20, 0, "shared")
    program = StaticProgram(backend, case, capture=False) if static else backend.build(case)
    parts = breakdown(program, backend.synchronize, case.steps, 1.0).parts
    assert list(parts) == ["draw", "forward", "backward", "update"]
    assert 2 < parts["backward"] / parts["forward"] < 4
    assert parts["draw"] + parts["update"] < parts["forward"]


@dataclass(frozen=True)
class HeavyBall:
    """Keeps the iterate before the last, which the update overwrites."""

    def init(self, xp: Any, params: Params) -> Params:
        return {k: p.clone() for k, p in params.items()}

    def update(self, xp: Any, params: Params, grads: Params, state: Params) -> Any:
        new = {k: p - 1e-7 * grads[k] + 0.5 * (p - state[k]) for k, p in params.items()}
        return new, dict(params)


def test_fixed_memory_holds_what_the_update_returned() -> None:
    backend = compose_cell("backend=torch").backend
    assert isinstance(backend, TorchBackend)
    case = Workload(Sine(n=50), HeavyBall(), 10, 0, "shared")
    static = StaticProgram(backend, case, capture=False)
    stepwise = StepProgram(backend, case, autograd)
    for program in (static, stepwise):
        program.advance(10)
    assert_same_state(static, stepwise)


@dataclass(frozen=True)
class Unused(Sine):
    """Has a parameter that the loss does not look at."""

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return super().init(rng) | {"unused": np.ones(2)}


def test_a_parameter_that_the_loss_does_not_use_stays() -> None:
    backend = compose_cell("backend=torch").backend
    program = backend.build(Workload(Unused(n=50), Sgd(1e-6), 3, 0, "shared"))
    program.advance(3)
    np.testing.assert_array_equal(program.params()["unused"], np.ones(2))


MIXED = """
import torch
torch.backends.fp32_precision = "tf32"
from expkit_plugins.torch.backend import TorchBackend
backend = TorchBackend()
print(backend.describe()["matmul_precision"], backend._tf32())
"""


def test_a_backend_describes_itself_where_settings_of_precision_were_mixed() -> None:
    """In a process of its own: they cannot be put back."""
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this PyTorch has the old settings alone")
    done = subprocess.run([sys.executable, "-c", MIXED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "fp32_precision=tf32 1\n"), done.stderr
