"""The two tutorials' own lines, and expkit's values in place of what they draw.

The lines stand as they stand in the tutorials, but for `%%time`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from expkit.authors import host_rng
from expkit.config import Cell, compose_cell

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
    both = (f"+experiment={problem}", f"backend={backend}", f"backend.dtype={dtype}")
    return compose_cell(*both, "stream=shared", f"seed={SEED}", "tracking=none", *more)


PLACES = [("numpy", "float64"), ("numpy", "float32"), ("torch", "float32"), ("torch", "float64")]
