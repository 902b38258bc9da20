"""The other side of each pair: loops as the tutorials write them, and as a careful person does.

Nothing here uses expkit. The loops take their data as arguments, so that both sides do the same
work from the same start.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]


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


def large_dot_tutorial_numpy(target: Array, steps: int, lr: float) -> Array:
    """A fresh random vector a step, as one writes it, in the target's dtype."""
    w = np.zeros_like(target)
    for _ in range(steps):
        x = np.random.randn(target.size).astype(target.dtype)
        y = x.dot(target)
        y_pred = x.dot(w)
        loss = (y_pred - y) ** 2
        grad = 2.0 * (y_pred - y) * x
        w = w - lr * grad
    assert np.isfinite(loss)
    return w


def large_dot_tutorial_torch(n: int, steps: int, lr: float) -> None:
    """The same with autograd."""
    target = _target(n)
    w = torch.zeros_like(target, requires_grad=True)
    for _ in range(steps):
        x = torch.randn(target.numel())
        y = x.dot(target)
        y_pred = x.dot(w)
        loss = (y_pred - y).pow(2)
        loss.backward()
        with torch.no_grad():
            w -= lr * w.grad
            w.grad.zero_()


@cache
def _target(n: int) -> torch.Tensor:
    return torch.randn(n)
