"""The PyTorch backends keep to the contract."""

import pytest
from expkit_plugins.torch.backend import TorchBackend
from expkit_plugins.torch.program import StaticProgram, autograd

from expkit.config import compose_cell
from expkit.contracts import Workload
from expkit.program import StepProgram
from expkit.testing import BackendContract
from expkit.testing.backend import assert_same_state
from expkit.testing.cells import learning, operations


class TestTorch(BackendContract):
    backend = "torch"


@pytest.mark.gpu
class TestTorchCuda(BackendContract):
    backend = "torch_cuda"


STATIC = learning(10, stream="device") | operations(10, stream="device")


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
