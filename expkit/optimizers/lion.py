"""Lion (Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2).

p <- (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g)
m <- beta2 m + (1 - beta2) g
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from expkit.contracts import OptState, Params
from expkit.errors import check


@dataclass(frozen=True)
class Lion:
    """Attributes:
    lr: learning rate, by which every parameter moves in every step.
    beta1: share of the kept mean in what is followed.
    beta2: decay of the kept mean.
    weight_decay: by which share of the rate all parameters shrink in a step.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "lr", self.lr, "a finite number above 0")
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            check(0 <= beta < 1, name, beta, "a number from 0 to below 1")
        fits = 0 <= self.weight_decay < math.inf
        check(fits, "weight_decay", self.weight_decay, "a finite number of at least 0")

    def init(self, xp: Any, params: Params) -> OptState:
        return {f"m/{k}": xp.zeros_like(p) for k, p in params.items()}

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        for k, p in params.items():
            g, m = grads[k], state[f"m/{k}"]
            way = xp.sign(self.beta1 * m + (1 - self.beta1) * g)
            p *= 1 - self.lr * self.weight_decay
            p -= self.lr * way
            m *= self.beta2
            m += (1 - self.beta2) * g
            state[f"m/{k}"] = m
            params[k] = p
        return params, state
