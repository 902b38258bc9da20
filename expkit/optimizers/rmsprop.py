"""RMSprop (Hinton's lecture 6e, 2012), in `torch.optim.RMSprop`'s arrangement.

v <- alpha v + (1 - alpha) g^2
p <- p - lr * g / (sqrt(v) + eps)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from expkit.contracts import OptState, Params
from expkit.errors import check


@dataclass(frozen=True)
class RmsProp:
    """Attributes:
    lr: learning rate.
    alpha: decay of the squared gradient's mean.
    eps: added to the root of that mean.
    """

    lr: float
    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "lr", self.lr, "a finite number above 0")
        check(0 <= self.alpha < 1, "alpha", self.alpha, "a number from 0 to below 1")
        check(0 <= self.eps < math.inf, "eps", self.eps, "a finite number of at least 0")

    def init(self, xp: Any, params: Params) -> OptState:
        return {f"v/{k}": xp.zeros_like(p) for k, p in params.items()}

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        for k, p in params.items():
            g, v = grads[k], state[f"v/{k}"]
            v *= self.alpha
            v += (1 - self.alpha) * (g * g)
            p -= self.lr * g / (xp.sqrt(v) + self.eps)
            state[f"v/{k}"] = v
            params[k] = p
        return params, state
