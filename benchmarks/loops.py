"""The other side of each pair: loops as the tutorials write them, and as a careful person does.

Nothing here uses expkit. The loops take their data as arguments, so that both sides do the same
work from the same start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Operation = Callable[[Any, Any], Any]


def sine_tutorial_numpy(x: Array, y: Array, w: Array, steps: int, lr: float) -> Array:
    """The tutorial's loop: four numbers, powers computed anew every step."""
    a, b, c, d = w
    for _ in range(steps):
        y_pred = a + b * x + c * x**2 + d * x**3
        loss = np.square(y_pred - y).sum()
        grad_y_pred = 2.0 * (y_pred - y)
        grad_a = grad_y_pred.sum()
        grad_b = (grad_y_pred * x).sum()
        grad_c = (grad_y_pred * x**2).sum()
        grad_d = (grad_y_pred * x**3).sum()
        a -= lr * grad_a
        b -= lr * grad_b
        c -= lr * grad_c
        d -= lr * grad_d
    assert np.isfinite(loss)
    return np.array([a, b, c, d])


def sine_powers_once_numpy(x: Array, y: Array, w: Array, steps: int, lr: float) -> Array:
    """The same loop with the powers computed before it."""
    a, b, c, d = w
    x2, x3 = x**2, x**3
    for _ in range(steps):
        y_pred = a + b * x + c * x2 + d * x3
        loss = np.square(y_pred - y).sum()
        grad_y_pred = 2.0 * (y_pred - y)
        a -= lr * grad_y_pred.sum()
        b -= lr * (grad_y_pred * x).sum()
        c -= lr * (grad_y_pred * x2).sum()
        d -= lr * (grad_y_pred * x3).sum()
    assert np.isfinite(loss)
    return np.array([a, b, c, d])


def sine_tutorial_torch(w: list[float], n: int, steps: int, lr: float, device: str) -> Any:
    """The tutorial's loop with tensors and gradients by hand, in float32."""
    x = torch.linspace(-torch.pi, torch.pi, n, device=device)
    y = torch.sin(x)
    a, b, c, d = torch.tensor(w, device=device)
    for _ in range(steps):
        y_pred = a + b * x + c * x**2 + d * x**3
        (y_pred - y).pow(2).sum().item()
        grad_y_pred = 2.0 * (y_pred - y)
        grad_a = grad_y_pred.sum()
        grad_b = (grad_y_pred * x).sum()
        grad_c = (grad_y_pred * x**2).sum()
        grad_d = (grad_y_pred * x**3).sum()
        a = a - lr * grad_a
        b = b - lr * grad_b
        c = c - lr * grad_c
        d = d - lr * grad_d
    return a, b, c, d


def sine_tutorial_autograd(w: list[float], n: int, steps: int, lr: float, device: str) -> Any:
    """The same with autograd."""
    x = torch.linspace(-torch.pi, torch.pi, n, device=device)
    y = torch.sin(x)
    a, b, c, d = (torch.tensor(v, device=device, requires_grad=True) for v in w)
    for _ in range(steps):
        y_pred = a + b * x + c * x**2 + d * x**3
        loss = (y_pred - y).pow(2).sum()
        loss.backward()
        with torch.no_grad():
            for parameter in (a, b, c, d):
                parameter -= lr * parameter.grad
                parameter.grad = None
    return a, b, c, d


def sine_careful_numpy(basis: Array, y: Array, w: Array, steps: int, lr: float) -> Array:
    """In place, on a basis built once, every loss kept: what expkit's step is held against."""
    w, losses = w.copy(), np.empty(steps)
    residual, grad = np.empty_like(y), np.empty_like(w)
    for step in range(steps):
        np.matmul(w, basis, out=residual)
        residual -= y
        losses[step] = residual @ residual
        np.matmul(basis, residual, out=grad)
        grad *= 2 * lr
        w -= grad
    return w


def sine_careful_torch(
    basis: torch.Tensor, y: torch.Tensor, w: torch.Tensor, steps: int, lr: float
) -> torch.Tensor:
    """Autograd on the same basis, every loss kept on the device."""
    w, losses = w.clone().requires_grad_(), []
    for _ in range(steps):
        residual = w @ basis - y
        loss = residual @ residual
        loss.backward()
        with torch.no_grad():
            w -= lr * w.grad
        w.grad = None
        losses.append(loss.detach())
    return w.detach()


def linear_tutorial_numpy(batch: int, steps: int, lr: float) -> Any:
    """Y = 3x - 2 from fresh batches, from a random start."""
    slope, intercept = np.random.randn(), np.random.randn()
    for _ in range(steps):
        x = np.random.randn(batch)
        y = 3 * x - 2
        y_pred = slope * x + intercept
        grad_y_pred = 2.0 * (y_pred - y) / batch
        slope -= lr * (grad_y_pred * x).sum()
        intercept -= lr * grad_y_pred.sum()
    return slope, intercept


def linear_tutorial_torch(batch: int, steps: int, lr: float, device: str) -> Any:
    """The same with autograd, in float32."""
    slope = torch.randn((), device=device, requires_grad=True)
    intercept = torch.randn((), device=device, requires_grad=True)
    for _ in range(steps):
        x = torch.randn(batch, device=device)
        y = 3 * x - 2
        y_pred = slope * x + intercept
        loss = (y_pred - y).pow(2).mean()
        loss.backward()
        with torch.no_grad():
            for parameter in (slope, intercept):
                parameter -= lr * parameter.grad
                parameter.grad = None
    return slope, intercept


def linear_careful_numpy(batch: int, w: Array, steps: int, lr: float, seed: int) -> Array:
    """Y = 3x - 2 from fresh batches, gradients by hand."""
    rng = np.random.Generator(np.random.Philox(seed))
    slope, intercept = w
    losses = np.empty(steps)
    for step in range(steps):
        x = rng.standard_normal(batch)
        y = 3.0 * x - 2.0
        error = slope * x + intercept - y
        losses[step] = error @ error / batch
        slope -= lr * (2 / batch * (error @ x))
        intercept -= lr * (2 / batch * error.sum())
    return np.array([slope, intercept])


def linear_careful_torch(batch: int, w: Array, steps: int, lr: float, seed: int) -> Array:
    """The same with autograd; the host draws, as on expkit's shared stream."""
    rng = np.random.Generator(np.random.Philox(seed))
    slope, intercept = (torch.tensor(v, requires_grad=True) for v in w)
    losses = []
    for _ in range(steps):
        x = torch.from_numpy(rng.standard_normal(batch))
        y = 3.0 * x - 2.0
        error = slope * x + intercept - y
        loss = error @ error / batch
        loss.backward()
        with torch.no_grad():
            slope -= lr * slope.grad
            intercept -= lr * intercept.grad
        slope.grad = intercept.grad = None
        losses.append(loss.detach())
    return np.array([slope.item(), intercept.item()])


def large_dot_tutorial_numpy(target: Array, steps: int, lr: float) -> Any:
    """A fresh random vector a step, as one writes it, in the target's dtype. Its last loss."""
    w = np.zeros_like(target)
    for _ in range(steps):
        x = np.random.randn(target.size).astype(target.dtype, copy=False)
        y = x.dot(target)
        y_pred = x.dot(w)
        loss = (y_pred - y) ** 2
        grad = 2.0 * (y_pred - y) * x
        w = w - lr * grad
    return loss


def large_dot_tutorial_torch(n: int, steps: int, lr: float, device: str = "cpu") -> Any:
    """The same with autograd, in float32."""
    target = _target(n, device)
    w = torch.zeros_like(target, requires_grad=True)
    for _ in range(steps):
        x = torch.randn(target.numel(), device=device)
        y = x.dot(target)
        y_pred = x.dot(w)
        loss = (y_pred - y).pow(2)
        loss.backward()
        with torch.no_grad():
            w -= lr * w.grad
            w.grad.zero_()
    return loss.detach()


@cache
def _target(n: int, device: str) -> torch.Tensor:
    return torch.randn(n, device=device)


def matrices_tutorial_numpy(operation: Operation, n: int, steps: int) -> Any:
    """A product or sum of two fresh matrices a step."""
    for _ in range(steps):
        a = np.random.randn(n, n)
        b = np.random.randn(n, n)
        result = operation(a, b)
    return result[0, 0]


def matrices_tutorial_torch(operation: Operation, n: int, steps: int, device: str) -> Any:
    """The same, in float32."""
    for _ in range(steps):
        a = torch.randn(n, n, device=device)
        b = torch.randn(n, n, device=device)
        result = operation(a, b)
    return result[0, 0]


def draws_numpy(shape: tuple[int, ...], count: int) -> Any:
    """What those loops draw, and nothing else."""
    for _ in range(count):
        drawn = np.random.randn(*shape)
    return drawn.flat[0]


def draws_torch(shape: tuple[int, ...], count: int, device: str) -> Any:
    """The same, in float32."""
    for _ in range(count):
        drawn = torch.randn(*shape, device=device)
    return drawn.view(-1)[0]
