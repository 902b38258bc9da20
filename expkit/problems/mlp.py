"""Read handwritten digits with a network of two layers.

The optical recognition data of Alpaydin and Kaynak (1998) as scikit-learn packages them: 1797
images of 8 x 8 pixels, of which a fifth is held out. Trained by minibatches without replacement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from expkit.contracts import (
    Array,
    Batch,
    Cost,
    Curves,
    HostArray,
    Params,
    Random,
    Recommended,
    Target,
)
from expkit.errors import check
from expkit.problems import _packaged

ROWS, PIXELS, CLASSES = 1438, 64, 10
GREY = 16.0
"""The darkest pixel."""


@dataclass(frozen=True)
class Mlp:
    """The mean cross-entropy of `softmax(tanh(x @ w1 + b1) @ w2 + b2)`.

    Attributes:
        hidden: number of hidden units.
        batch_size: rows of a step, drawn without replacement; None for all.
    """

    hidden: int = 64
    batch_size: int | None = 64

    def __post_init__(self) -> None:
        check(self.hidden >= 1, "hidden", self.hidden, "an integer of at least 1")
        takes = f"an integer from 1 to {ROWS}, or null for all rows"
        fits = self.batch_size is None or 1 <= self.batch_size <= ROWS
        check(fits, "batch_size", self.batch_size, takes)

    def check_available(self) -> None:
        _packaged.check_installed()

    def small(self) -> Mapping[str, Mlp]:
        return {"": Mlp(hidden=5, batch_size=16), "full": Mlp(hidden=3, batch_size=None)}

    def recommended(self) -> Recommended:
        lr = {"sgd": 0.5, "momentum": 0.05, "nesterov": 0.05, "adam": 5e-3, "rmsprop": 2e-3}
        lr |= {"adamw": 5e-3, "lion": 1e-3}
        target = Target("accuracy", 0.95)
        return Recommended(steps=2000, lr=lr, eval_every=100, target=target)

    def init(self, rng: np.random.Generator) -> dict[str, HostArray]:
        first = rng.standard_normal((PIXELS, self.hidden)) / PIXELS**0.5
        second = rng.standard_normal((self.hidden, CLASSES)) / self.hidden**0.5
        return {"w1": first, "b1": np.zeros(self.hidden), "w2": second, "b2": np.zeros(CLASSES)}

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        x, y, held_x, held_y = _packaged.split(*_packaged.load("digits"), rng)
        one_hot = np.eye(CLASSES)
        return {
            "x": x / GREY,
            "y": one_hot[y.astype(int)],
            "held_x": held_x / GREY,
            "held_y": one_hot[held_y.astype(int)],
        }

    def batch(self, xp: Any, data: Mapping[str, Array], random: Random) -> Batch:
        x, y = data["x"], data["y"]
        if self.batch_size is None:
            return {"x": x, "y": y}
        rows = random.minibatch(ROWS, self.batch_size)
        return {"x": x[rows], "y": y[rows]}

    def loss(self, xp: Any, params: Params, batch: Batch) -> Array:
        return _cross_entropy(xp, _scores(xp, params, batch["x"]), batch["y"])[0]

    def loss_and_grad(self, xp: Any, params: Params, batch: Batch) -> tuple[Array, Params]:
        x, y, w2 = batch["x"], batch["y"], params["w2"]
        hidden = xp.tanh(x @ params["w1"] + params["b1"])
        loss, shares = _cross_entropy(xp, hidden @ w2 + params["b2"], y)
        error = (shares - y) / self._size
        back = (error @ w2.mT) * (1 - hidden * hidden)
        return loss, {
            "w1": x.mT @ back,
            "b1": xp.sum(back, axis=0),
            "w2": hidden.mT @ error,
            "b2": xp.sum(error, axis=0),
        }

    @property
    def figures(self) -> Mapping[str, str]:
        return {"accuracy": "more", "held_out_loss": "less"}

    def evaluate(self, xp: Any, params: Params, data: Mapping[str, Array]) -> Mapping[str, Array]:
        """The loss and the share of right answers on the images that are held out."""
        y = data["held_y"]
        scores = _scores(xp, params, data["held_x"])
        loss, _ = _cross_entropy(xp, scores, y)
        own = xp.sum(scores * y, axis=1, keepdims=True)
        right = xp.where(own >= _largest(xp, scores), xp.ones_like(own), xp.zeros_like(own))
        return {"accuracy": xp.mean(right), "held_out_loss": loss}

    @property
    def axes(self) -> tuple[str, str]:
        return "digit", "share of all its images that are read right"

    def curves(self, params: Mapping[str, HostArray]) -> Curves:
        x, y = _packaged.load("digits")
        right = _scores(np, dict(params), x / GREY).argmax(axis=1) == y
        digits = np.arange(CLASSES, dtype=np.float64)
        return {"learnt": (digits, np.array([right[y == digit].mean() for digit in digits]))}

    def cost(self) -> Cost:
        """A row takes two products with w1, forward and for its gradient, three with w2, and some
        operations for each hidden unit and class. All parameters and the rows are read once.
        """
        first, second = PIXELS * self.hidden, self.hidden * CLASSES
        products = 2 * (2 * first + 3 * second)
        flops = self._size * (products + 6 * self.hidden + 10 * CLASSES)
        parameters = first + second + self.hidden + CLASSES
        return Cost(flops=flops, elements=self._size * (PIXELS + CLASSES) + parameters)

    @property
    def _size(self) -> int:
        return self.batch_size or ROWS


def _scores(xp: Any, params: Params, x: Array) -> Array:
    return xp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def _cross_entropy(xp: Any, scores: Array, y: Array) -> tuple[Array, Array]:
    """The mean cross-entropy, and the softmax of the scores."""
    top = _largest(xp, scores)
    powers = xp.exp(scores - top)
    total = xp.sum(powers, axis=1, keepdims=True)
    own = xp.sum(scores * y, axis=1, keepdims=True)
    return xp.mean(xp.log(total) + top - own), powers / total


def _largest(xp: Any, scores: Array) -> Array:
    """The largest score of each row, which is subtracted before powers could overflow."""
    # PyTorch's `max` returns indices too; the standard has no `amax`.
    largest = xp.amax if hasattr(xp, "amax") else xp.max
    return largest(scores, axis=1, keepdims=True)
