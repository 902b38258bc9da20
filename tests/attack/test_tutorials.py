"""expkit does what the two tutorials do: their own lines are run here, beside it.

The lines stand below as they stand in the tutorials, but for `%%time`. Only what they draw is
replaced: they see the values that expkit draws.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from expkit.authors import host_rng
from expkit.config import Cell, compose_cell
from expkit.testing.cells import reference

ROOT = Path(__file__).parents[2]

SINE = """
import numpy as np
import math

# Create random input and output data
x = np.linspace(-math.pi, math.pi, 2000)
y = np.sin(x)

# Randomly initialize weights
a = np.random.randn()
b = np.random.randn()
c = np.random.randn()
d = np.random.randn()

learning_rate = 1e-6
for t in range(2000):
    # Forward pass: compute predicted y
    # y = a + b x + c x^2 + d x^3
    y_pred = a + b * x + c * x ** 2 + d * x ** 3

    # Compute and print loss
    loss = np.square(y_pred - y).sum()
    if t % 100 == 99:
        print(t, loss)

    # Backprop to compute gradients of a, b, c, d with respect to loss
    grad_y_pred = 2.0 * (y_pred - y)
    grad_a = grad_y_pred.sum()
    grad_b = (grad_y_pred * x).sum()
    grad_c = (grad_y_pred * x ** 2).sum()
    grad_d = (grad_y_pred * x ** 3).sum()

    # Update weights
    a -= learning_rate * grad_a
    b -= learning_rate * grad_b
    c -= learning_rate * grad_c
    d -= learning_rate * grad_d

print(f'Result: y = {a} + {b} x + {c} x^2 + {d} x^3')
"""
PRODUCTS_NUMPY = """
for i in range(100):
  a = np.random.randn(100,100)
  b = np.random.randn(100,100)
  c = np.matmul(a, b)
"""
PRODUCTS_TORCH = """
for i in range(100):
  a = torch.randn([100, 100])
  b = torch.randn([100, 100])
  c = torch.matmul(a, b)
"""
SUMS_NUMPY = """
for i in range(10):
  a = np.random.randn(10000,10000)
  b = np.random.randn(10000,10000)
  c = a + b
"""
SUMS_TORCH = """
for i in range(10):
  a = torch.randn([10000, 10000])
  b = torch.randn([10000, 10000])
  c = a + b
"""
SHARED_MEMORY = """
a = np.random.randn(5)
a_pt = torch.from_numpy(a)
np.add(a, 1, out=a)
"""
AUTODIFF_SUM = """
x = torch.ones([3, 2], requires_grad=True)
y = x + 5
z = y*y + 1
t = torch.sum(z)
t.backward()
"""
AUTODIFF_SIGMOID = """
x = torch.ones([3, 2], requires_grad=True)
y = x + 5
r = 1/(1 + torch.exp(-y))
s = torch.sum(r)
s.backward()
"""
AUTODIFF_VECTOR = """
x = torch.ones([3, 2], requires_grad=True)
y = x + 5
r = 1/(1 + torch.exp(-y))
a = torch.ones([3, 2])
r.backward(a)
"""
AUTODIFF_LINE = """
x = torch.randn([20, 1], requires_grad=True)
y = 3*x - 2
w = torch.tensor([1.], requires_grad=True)
b = torch.tensor([1.], requires_grad=True)

y_hat = w*x + b

loss = torch.sum((y_hat - y)**2)
loss.backward()
"""
LINE = """
learning_rate = 0.01

w = torch.tensor([1.], requires_grad=True)
b = torch.tensor([1.], requires_grad=True)

print(w.item(), b.item())

for i in range(10):
  
  x = torch.randn([20, 1])
  y = 3*x - 2
  
  y_hat = w*x + b
  loss = torch.sum((y_hat - y)**2)
  
  loss.backward()
  
  with torch.no_grad():
    w -= learning_rate * w.grad
    b -= learning_rate * b.grad
    
    w.grad.zero_()
    b.grad.zero_()

  print(w.item(), b.item())
"""
LARGE = """
learning_rate = 0.001
N = 10000000
epochs = 200

w = torch.rand([N], requires_grad=True)
b = torch.ones([1], requires_grad=True)

# print(torch.mean(w).item(), b.item())

for i in range(epochs):
  
  x = torch.randn([N])
  y = torch.dot(3*torch.ones([N]), x) - 2
  
  y_hat = torch.dot(w, x) + b
  loss = torch.sum((y_hat - y)**2)
  
  loss.backward()
  
  with torch.no_grad():
    w -= learning_rate * w.grad
    b -= learning_rate * b.grad
    
    w.grad.zero_()
    b.grad.zero_()

#   print(torch.mean(w).item(), b.item())
"""
ROUNDING = {"float64": 1e-11, "float32": 1e-4}
SEED = 3


def module(name: str) -> ModuleType:
    """A file of benchmarks/, which is not installed."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Draws:
    """expkit's shared stream and start, in the tutorials' words."""

    def __init__(self, dtype: str = "float64") -> None:
        self.stream, self.start = host_rng(SEED, "stream"), host_rng(SEED, "init")
        self.dtype = dtype

    def randn(self, *shape: int) -> Any:
        """NumPy's: a number is a starting value, an array is a step's."""
        return self.stream.standard_normal(shape) if shape else self.start.standard_normal()

    def tensor(self, shape: list[int], **options: Any) -> Any:
        """`torch.randn`."""
        return self._tensor(self.stream.standard_normal(shape), options)

    def uniform(self, shape: list[int], **options: Any) -> Any:
        """`torch.rand`."""
        return self._tensor(self.start.random(shape), options)

    def _tensor(self, values: Any, options: dict[str, Any]) -> Any:
        import torch

        made = torch.from_numpy(values).to(getattr(torch, self.dtype))
        return made.requires_grad_(options.get("requires_grad", False))


@contextmanager
def drawing(monkeypatch: pytest.MonkeyPatch, dtype: str) -> Iterator[None]:
    """Everything here draws expkit's values; PyTorch's own arrays are of this dtype."""
    torch = pytest.importorskip("torch")
    draws, before = Draws(dtype), torch.get_default_dtype()
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "randn", draws.randn)
        patch.setattr(torch, "randn", draws.tensor)
        patch.setattr(torch, "rand", draws.uniform)
        torch.set_default_dtype(getattr(torch, dtype))
        yield
        torch.set_default_dtype(before)


def run(
    monkeypatch: pytest.MonkeyPatch, lines: str, dtype: str = "float64", **replaced: str
) -> dict[str, Any]:
    """Run a tutorial's lines; its names afterwards, and `printed`."""
    for name, value in replaced.items():
        lines, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", lines, flags=re.MULTILINE)
        assert count == 1, name
    printed: list[tuple[Any, ...]] = []
    with drawing(monkeypatch, dtype):
        import torch

        names = {"np": np, "torch": torch, "print": lambda *given: printed.append(given)}
        exec(lines, names)
    return {**names, "printed": printed}


def built(cell: Cell) -> Any:
    cell.backend.configure()
    return cell.backend.build(cell.workload)


def words(problem: str, backend: str, dtype: str, *more: str) -> Cell:
    both = (f"+experiment={problem}_numpy", f"backend={backend}", f"backend.dtype={dtype}")
    return compose_cell(*both, "stream=shared", f"seed={SEED}", "tracking=none", *more)


PLACES = [("numpy", "float64"), ("numpy", "float32"), ("torch", "float32"), ("torch", "float64")]


@pytest.fixture(scope="module")
def sine() -> Any:
    """The first tutorial, run once: it takes half a second."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(monkeypatch, SINE)


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_the_first_tutorials_fit(sine: Any, backend: str, dtype: str) -> None:
    """All that it prints: the loss of every hundredth step, and the four numbers at the end."""
    program = built(words("sine", backend, dtype))
    program.advance(2000)
    at, losses = zip(*sine["printed"][:-1], strict=True)
    assert at == tuple(range(99, 2000, 100))
    np.testing.assert_allclose(program.losses()[list(at)], losses, rtol=ROUNDING[dtype])
    result = [float(v) for v in re.findall(r"-?\d\.\d+(?:e-?\d+)?", sine["printed"][-1][0])]
    np.testing.assert_allclose(program.params()["w"], result, atol=ROUNDING[dtype])


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_the_second_tutorials_line(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: str
) -> None:
    """Both parameters before and after each of the ten steps, and the loss of each."""
    program, losses = built(words("linear", backend, dtype)), []
    found = [program.params()]
    for step in range(1, 11):
        lines = LINE.replace("range(10)", f"range({step})")
        losses.append(run(monkeypatch, lines, dtype)["loss"].item())
        program.advance(1)
        found.append(program.params())
    printed = run(monkeypatch, LINE, dtype)["printed"]
    ours = [(float(p["slope"]), float(p["intercept"])) for p in found]
    assert printed[0] == (1.0, 1.0)
    np.testing.assert_allclose(ours, printed, rtol=ROUNDING[dtype])
    np.testing.assert_allclose(program.losses(), losses, rtol=10 * ROUNDING[dtype])


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_the_second_tutorials_large_problem(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: str
) -> None:
    """1000 weights instead of 10,000,000, which do not diverge: w, b and the loss of ten steps."""
    size = ("problem.n=1000", "steps=10")
    program, scale = built(words("large_dot", backend, dtype, *size)), 0.0
    for step in range(1, 11):
        names = run(monkeypatch, LARGE, dtype, N="1000", epochs=str(step))
        program.advance(1)
        found, loss = program.params(), names["loss"].item()
        scale = max(scale, loss)
        for ours, theirs in ((found["w"], names["w"]), (found["b"], names["b"])):
            right = theirs.detach().numpy().reshape(ours.shape)
            np.testing.assert_allclose(ours, right, atol=ROUNDING[dtype])
        assert abs(program.losses()[-1] - loss) <= ROUNDING[dtype] * scale, step
    assert scale > 1000
    assert np.isfinite(scale)


OPERATIONS = [
    ("matmul", "numpy", "float64", PRODUCTS_NUMPY, "100"),
    ("matmul", "torch", "float32", PRODUCTS_TORCH, "100"),
    ("add", "numpy", "float64", SUMS_NUMPY, "10000"),
    ("add", "torch", "float32", SUMS_TORCH, "10000"),
]


@pytest.mark.parametrize(("problem", "backend", "dtype", "lines", "n"), OPERATIONS)
def test_the_second_tutorials_products_and_sums(
    monkeypatch: pytest.MonkeyPatch, problem: str, backend: str, dtype: str, lines: str, n: str
) -> None:
    """The last of their results, at n = 60 for the sums' 10000."""
    size = min(int(n), 100 if problem == "matmul" else 60)
    right = run(monkeypatch, lines.replace(n, str(size)) if size < int(n) else lines, dtype)["c"]
    cell = words(problem, backend, dtype, f"problem.n={size}")
    program = built(cell)
    program.advance(cell.workload.steps)
    result = program.params()["result"]
    np.testing.assert_allclose(result, np.asarray(right), atol=ROUNDING[dtype])


def test_the_loops_that_are_timed_are_the_tutorials(
    monkeypatch: pytest.MonkeyPatch, sine: Any
) -> None:
    """To the last bit, from the same values."""
    pytest.importorskip("torch")
    loops = module("loops")
    start = host_rng(SEED, "init").standard_normal(4)
    values, printed = loops.sine_tutorial_numpy(sine["x"], sine["y"], start, 2000, 1e-6)
    assert printed == sine["printed"][:-1]
    assert list(values) == [sine[name] for name in "abcd"]

    line = run(monkeypatch, LINE, "float32")["printed"]
    large = run(monkeypatch, LARGE, "float32", N="1000", epochs="10")
    with drawing(monkeypatch, "float32"):
        assert loops.linear_tutorial_torch(10, 0.01, "cpu") == line
    with drawing(monkeypatch, "float32"):
        loss, w, b = loops.large_dot_tutorial_torch(1000, 10, 0.001, "cpu")
        assert (loss, b) == (large["loss"], large["b"])
        assert (w == large["w"]).all()
    for lines, loop, device in (
        (PRODUCTS_NUMPY, loops.products_tutorial_numpy, []),
        (PRODUCTS_TORCH, loops.products_tutorial_torch, ["cpu"]),
        (SUMS_NUMPY.replace("10000", "50"), loops.sums_tutorial_numpy, []),
        (SUMS_TORCH.replace("10000", "50"), loops.sums_tutorial_torch, ["cpu"]),
    ):
        right = run(monkeypatch, lines, "float32")["c"]
        with drawing(monkeypatch, "float32"):
            steps = int(re.findall(r"range\((\d+)\)", lines)[0])
            assert (loop(len(right), steps, *device) == right).all()


def test_the_loops_written_the_same_way_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, in float64: NumPy's line and long vector, and the sine by autograd."""
    pytest.importorskip("torch")
    loops = module("loops")
    line = run(monkeypatch, LINE)["printed"]
    with drawing(monkeypatch, "float64"):
        np.testing.assert_allclose(loops.linear_numpy(10, 0.01), line, rtol=1e-12)
    large = run(monkeypatch, LARGE, N="1000", epochs="10")
    with drawing(monkeypatch, "float64"):
        monkeypatch.setattr(np.random, "rand", host_rng(SEED, "init").random)
        _, w, b = loops.large_dot_numpy(1000, 10, 0.001, "float64")
    np.testing.assert_allclose(w, large["w"].detach(), atol=1e-11)
    np.testing.assert_allclose(b, large["b"].detach(), rtol=1e-11)


# What they print


def test_the_first_tutorials_printed_losses() -> None:
    """From the start that is fitted to them: all twenty, and the cubic that it ends with."""
    printed = module("printed")
    cell = compose_cell("+experiment=sine_numpy", "tracking=none")
    program = built(cell)
    program.arrays()["params.w"][...] = printed.start()
    program.advance(2000)
    np.testing.assert_allclose(program.losses()[99::100], printed.LOSSES, rtol=1e-12)
    np.testing.assert_allclose(program.params()["w"], printed.RESULT, atol=1e-12)
    assert (printed.LOSSES[0], printed.LOSSES[-1]) == (1492.5057618088194, 9.659890720665171)


@pytest.mark.parametrize("seed", range(5))
def test_ten_steps_learn_the_line(seed: int) -> None:
    """A bare `problem=linear` ends where the tutorial's does, at 2.96 and -1.96."""
    case = compose_cell("problem=linear", f"seed={seed}").workload
    assert case.steps == 10
    _, found = reference(case)
    assert float(found["slope"]) == pytest.approx(3, abs=0.15)
    assert float(found["intercept"]) == pytest.approx(-2, abs=0.15)


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "rmsprop"])
@pytest.mark.parametrize("seed", range(5))
def test_the_other_optimizers_come_near_the_line(optimizer: str, seed: int) -> None:
    _, found = reference(
        compose_cell("problem=linear", f"optimizer={optimizer}", f"seed={seed}").workload
    )
    far = np.hypot(float(found["slope"]) - 3, float(found["intercept"]) + 2)
    assert far < np.hypot(2, 3) / 4


def numbers(lines: str) -> dict[str, float]:
    """Steps, rate and size as they stand in a tutorial's lines."""
    found = {}
    for name, pattern in {
        "steps": r"(?:range\(|epochs = )(\d+)",
        "lr": r"learning_rate = (\S+)",
        "size": r"(?:pi, |N = |randn\(\[?)(\d+)",
    }.items():
        for value in re.findall(pattern, lines)[:1]:
            found[name] = float(value)
    return found


PRESETS = {
    "sine_numpy": (SINE, "n", "float64"),
    "matmul_numpy": (PRODUCTS_NUMPY, "n", "float64"),
    "matmul_torch": (PRODUCTS_TORCH, "n", "float32"),
    "add_numpy": (SUMS_NUMPY, "n", "float64"),
    "add_torch": (SUMS_TORCH, "n", "float32"),
    "add_cuda": (SUMS_TORCH, "n", "float32"),
    "linear_torch": (LINE, "batch_size", "float32"),
    "large_dot_torch": (LARGE, "n", "float32"),
    "large_dot_cuda": (LARGE, "n", "float32"),
}
OURS = {"sine_torch", "matmul_cuda", "linear_numpy", "linear_cuda"}
OURS |= {"large_dot_numpy", "large_dot_small"}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_tutorials_numbers(preset: str) -> None:
    lines, field, dtype = PRESETS[preset]
    cell = compose_cell(f"+experiment={preset}")
    found = {"steps": cell.workload.steps, "size": cell.resolved["problem"][field]}
    if "optimizer" in cell.resolved:
        found["lr"] = cell.resolved["optimizer"]["lr"]
    assert found == numbers(lines)
    assert cell.resolved["backend"]["dtype"] == dtype


def test_presets_that_are_no_tutorials_say_that_they_are_ours() -> None:
    folder = ROOT / "conf" / "experiment"
    said = {file.stem for file in folder.glob("*.yaml") if "\n# Ours" in file.read_text()}
    assert said == OURS
    assert {file.stem for file in folder.glob("*.yaml")} == OURS | set(PRESETS)


# Automatic differentiation, three ways


def central(function: Any, x: Any) -> Any:
    """The gradient of a sum of elementwise values, by central differences."""
    return (function(x + 1e-5) - function(x - 1e-5)) / 2e-5


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-(x + 5)))


@pytest.mark.parametrize(
    ("lines", "function", "by_hand", "printed"),
    [
        (AUTODIFF_SUM, lambda x: (x + 5) ** 2 + 1, 2 * 6, "12"),
        (AUTODIFF_SIGMOID, sigmoid, sigmoid(1) * (1 - sigmoid(1)), "0.0025"),
        (AUTODIFF_VECTOR, sigmoid, 1 * sigmoid(1) * (1 - sigmoid(1)), "0.0025"),
    ],
    ids=["sum", "sigmoid", "vector-Jacobian product"],
)
def test_autodiffs_values(
    monkeypatch: pytest.MonkeyPatch, lines: str, function: Any, by_hand: float, printed: str
) -> None:
    by_autograd = run(monkeypatch, lines)["x"].grad.numpy()
    np.testing.assert_allclose(by_autograd, np.full((3, 2), by_hand), rtol=1e-12)
    np.testing.assert_allclose(central(function, np.ones((3, 2))), by_autograd, rtol=1e-6)
    assert f"{by_hand:.2g}" == printed


def test_autodiffs_example_is_the_first_step_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`looks like what we usually do in Deep Learning`: its loss and its two gradients."""
    names = run(monkeypatch, AUTODIFF_LINE)
    problem: Any = compose_cell("problem=linear").workload.problem
    x = names["x"].detach().numpy().reshape(-1)
    params = problem.init(host_rng(0, "init"))
    loss, grads = problem.loss_and_grad(np, params, {"x": x, "y": 3 * x - 2})
    assert float(loss) == pytest.approx(names["loss"].item(), rel=1e-12)
    assert float(grads["slope"]) == pytest.approx(names["w"].grad.item(), rel=1e-12)
    assert float(grads["intercept"]) == pytest.approx(names["b"].grad.item(), rel=1e-12)


def test_numpy_and_pytorch_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(monkeypatch, SHARED_MEMORY)
    np.testing.assert_array_equal(names["a_pt"].numpy(), names["a"])
    np.testing.assert_array_equal(names["a"], host_rng(SEED, "stream").standard_normal(5) + 1)


def test_no_file_says_that_ten_steps_do_not_learn() -> None:
    """They do, and the tutorial shows it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() or [str(f) for f in ROOT.glob("expkit/**/*.py")]
    said = re.compile(r"(?:10|ten)\s+steps\s+do\s+not\s+learn|do not learn the line", re.IGNORECASE)
    for name in names:
        file = ROOT / name
        if file.suffix in (".py", ".md", ".yaml") and file != Path(__file__):
            assert not said.search(file.read_text()), name
