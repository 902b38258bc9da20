"""The loops that expkit is compared with: the tutorials' own, variants of these, careful ones.

Nothing here uses expkit. A function named `tutorial` holds the lines of one of the two tutorials
that expkit starts from: the first is NumPy's part of "PyTorch vs NumPy" (Kaggle), the second is
"Pytorch Basics and Speed Comparisons with Numpy and GPU" (2020). Sizes, steps, rate and device are
arguments, the sine loop's start and points too, so that another loop can share them; where a
tutorial prints, the loop appends. All else is ours: where a tutorial has a loop for one library
only, there is one for the other, written the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]


def sine_tutorial_numpy(
    x: Array, y: Array, start: Array, steps: int, learning_rate: float
) -> tuple[Array, list[tuple[int, float]]]:
    """The first tutorial's loop: four numbers, powers computed anew in every step.

    Returns:
        The four numbers, and what it prints: every hundredth step with its loss.
    """
    printed = []
    a, b, c, d = start
    for t in range(steps):
        y_pred = a + b * x + c * x**2 + d * x**3
        loss = np.square(y_pred - y).sum()
        if t % 100 == 99:
            printed.append((t, loss))
        grad_y_pred = 2.0 * (y_pred - y)
        grad_a = grad_y_pred.sum()
        grad_b = (grad_y_pred * x).sum()
        grad_c = (grad_y_pred * x**2).sum()
        grad_d = (grad_y_pred * x**3).sum()
        a -= learning_rate * grad_a
        b -= learning_rate * grad_b
        c -= learning_rate * grad_c
        d -= learning_rate * grad_d
    return np.array([a, b, c, d]), printed


def sine_powers_once_numpy(x: Array, y: Array, start: Array, steps: int, lr: float) -> Array:
    """Ours: the tutorial's loop with the powers computed before it."""
    a, b, c, d = start
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


def sine_autograd(start: list[float], n: int, steps: int, lr: float, device: str) -> Any:
    """Ours: the tutorial's loop with PyTorch's autograd, in float32."""
    x = torch.linspace(-torch.pi, torch.pi, n, device=device)
    y = torch.sin(x)
    a, b, c, d = (torch.tensor(v, device=device, requires_grad=True) for v in start)
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
    """The loop that expkit's step is compared with: in place, basis built once, all losses kept."""
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
    """Autograd on the same basis; every loss is kept on the device."""
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


def linear_tutorial_torch(steps: int, learning_rate: float, device: str) -> Any:
    """The second tutorial's line, in float32. What it prints: w and b before and after each step.
    It does not time this loop.
    """
    w = torch.tensor([1.0], requires_grad=True, device=device)
    b = torch.tensor([1.0], requires_grad=True, device=device)
    printed = [(w.item(), b.item())]
    for _ in range(steps):
        x = torch.randn([20, 1], device=device)
        y = 3 * x - 2
        y_hat = w * x + b
        loss = torch.sum((y_hat - y) ** 2)
        loss.backward()
        with torch.no_grad():
            w -= learning_rate * w.grad
            b -= learning_rate * b.grad
            w.grad.zero_()
            b.grad.zero_()
        printed.append((w.item(), b.item()))
    return printed


def linear_numpy(steps: int, lr: float) -> Any:
    """Ours: the same with NumPy and gradients by hand, in float64."""
    w: Any = 1.0
    b: Any = 1.0
    printed = [(w, b)]
    for _ in range(steps):
        x = np.random.randn(20, 1)
        y = 3 * x - 2
        y_hat = w * x + b
        np.sum((y_hat - y) ** 2)
        grad_y_hat = 2.0 * (y_hat - y)
        w -= lr * np.sum(grad_y_hat * x)
        b -= lr * np.sum(grad_y_hat)
        printed.append((w, b))
    return printed


def linear_careful_numpy(batch: int, steps: int, lr: float, seed: int) -> Array:
    """The loop that expkit's step is compared with: y = 3x - 2, new batches, gradients by hand."""
    rng = np.random.Generator(np.random.Philox(seed))
    slope: Any = 1.0
    intercept: Any = 1.0
    losses = np.empty(steps)
    for step in range(steps):
        x = rng.standard_normal(batch)
        y = 3.0 * x - 2.0
        error = slope * x + intercept - y
        losses[step] = error @ error
        slope -= lr * (2 * (error @ x))
        intercept -= lr * (2 * error.sum())
    return np.array([slope, intercept])


def linear_careful_torch(batch: int, steps: int, lr: float, seed: int) -> Array:
    """The same with autograd; the host draws, as on expkit's shared stream."""
    rng = np.random.Generator(np.random.Philox(seed))
    slope, intercept = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    losses = []
    for _ in range(steps):
        x = torch.from_numpy(rng.standard_normal(batch))
        y = 3.0 * x - 2.0
        error = slope * x + intercept - y
        loss = error @ error
        loss.backward()
        with torch.no_grad():
            slope -= lr * slope.grad
            intercept -= lr * intercept.grad
        slope.grad = intercept.grad = None
        losses.append(loss.detach())
    return np.array([slope.item(), intercept.item()])


def mlp_careful_numpy(
    x: Array, y: Array, start: dict[str, Array], batch: int, steps: int, lr: float, seed: int
) -> dict[str, Array]:
    """Ours: the two layers of expkit's `mlp` by hand, everything in place, all losses kept.

    Args:
        x, y: pixels of shape (rows, pixels), and classes of shape (rows, classes), one a row 1.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    w1, b1, w2, b2 = (start[name].copy() for name in ("w1", "b1", "w2", "b2"))
    g1, g2, losses = np.empty_like(w1), np.empty_like(w2), np.empty(steps)
    pixels, classes = np.empty((batch, x.shape[1])), np.empty((batch, y.shape[1]))
    hidden, back, slope = (np.empty((batch, b1.size)) for _ in range(3))
    scores, own = np.empty_like(classes), np.empty_like(classes)
    largest, total = np.empty((batch, 1)), np.empty((batch, 1))
    order, taken = rng.permutation(len(x)), 0
    for step in range(steps):
        if taken + batch > len(x):
            order, taken = rng.permutation(len(x)), 0
        rows = order[taken : taken + batch]
        taken += batch
        np.take(x, rows, 0, pixels, "clip")
        np.take(y, rows, 0, classes, "clip")
        np.matmul(pixels, w1, out=hidden)
        hidden += b1
        np.tanh(hidden, out=hidden)
        np.matmul(hidden, w2, out=scores)
        scores += b2
        np.max(scores, axis=1, keepdims=True, out=largest)
        scores -= largest
        np.multiply(scores, classes, out=own)
        np.exp(scores, out=scores)
        np.sum(scores, axis=1, keepdims=True, out=total)
        losses[step] = (np.log(total).sum() - own.sum()) / batch
        scores /= total
        scores -= classes
        scores *= 1 / batch
        np.matmul(scores, w2.T, out=back)
        np.multiply(hidden, hidden, out=slope)
        np.subtract(1, slope, out=slope)
        back *= slope
        np.matmul(pixels.T, back, out=g1)
        np.matmul(hidden.T, scores, out=g2)
        g1 *= lr
        w1 -= g1
        g2 *= lr
        w2 -= g2
        b1 -= lr * back.sum(axis=0)
        b2 -= lr * scores.sum(axis=0)
    return {"w1": w1, "b1": b1, "w2": w2, "b2": b2}


def large_dot_tutorial_torch(N: int, epochs: int, learning_rate: float, device: str) -> Any:  # noqa: N803
    """The second tutorial's large problem, in float32. Its last loss, w and b."""
    w = torch.rand([N], requires_grad=True, device=device)
    b = torch.ones([1], requires_grad=True, device=device)
    for _ in range(epochs):
        x = torch.randn([N], device=device)
        y = torch.dot(3 * torch.ones([N], device=device), x) - 2
        y_hat = torch.dot(w, x) + b
        loss = torch.sum((y_hat - y) ** 2)
        loss.backward()
        with torch.no_grad():
            w -= learning_rate * w.grad
            b -= learning_rate * b.grad
            w.grad.zero_()
            b.grad.zero_()
    return loss, w, b


def threes_torch(n: int, count: int) -> Any:
    """Ours: what that loop makes anew in every step, and nothing else."""
    for _ in range(count):
        threes = 3 * torch.ones([n])
    return threes


def large_dot_numpy(n: int, steps: int, lr: float, dtype: str = "float64") -> Any:
    """Ours: the same with NumPy and gradients by hand."""
    w = np.random.rand(n).astype(dtype, copy=False)
    b = np.ones(1, dtype)
    for _ in range(steps):
        x = np.random.randn(n).astype(dtype, copy=False)
        y = np.dot(3 * np.ones(n, dtype), x) - 2
        y_hat = np.dot(w, x) + b
        loss = np.sum((y_hat - y) ** 2)
        grad_y_hat = 2 * (y_hat - y)
        w -= lr * (grad_y_hat * x)
        b -= lr * grad_y_hat
    return loss, w, b


def products_tutorial_numpy(n: int, steps: int) -> Any:
    """The second tutorial's products, n = 100."""
    for _ in range(steps):
        a = np.random.randn(n, n)
        b = np.random.randn(n, n)
        c = np.matmul(a, b)
    return c


def products_tutorial_torch(n: int, steps: int, device: str) -> Any:
    """The same, in float32."""
    for _ in range(steps):
        a = torch.randn([n, n], device=device)
        b = torch.randn([n, n], device=device)
        c = torch.matmul(a, b)
    return c


def sums_tutorial_numpy(n: int, steps: int) -> Any:
    """The second tutorial's sums, n = 10000."""
    for _ in range(steps):
        a = np.random.randn(n, n)
        b = np.random.randn(n, n)
        c = a + b
    return c


def sums_tutorial_torch(n: int, steps: int, device: str) -> Any:
    """The same, in float32."""
    for _ in range(steps):
        a = torch.randn([n, n], device=device)
        b = torch.randn([n, n], device=device)
        c = a + b
    return c


def draws_numpy(shape: tuple[int, ...], count: int) -> Any:
    """Ours: what those loops draw, and nothing else."""
    for _ in range(count):
        drawn = np.random.randn(*shape)
    return drawn.flat[0]


def draws_torch(shape: tuple[int, ...], count: int, device: str) -> Any:
    """The same, in float32."""
    for _ in range(count):
        drawn = torch.randn(*shape, device=device)
    return drawn.view(-1)[0]
