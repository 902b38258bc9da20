"""Stochastic gradient descent, with momentum and Nesterov's variant.

    v <- momentum * v + g
    p <- p - lr * v                    or, with nesterov,  p - lr * (g + momentum * v)

Momentum after Polyak (1964), the second form after Sutskever et al. (2013), both in
`torch.optim.SGD`'s arrangement, where the rate stays outside of v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from expkit.contracts import OptState, Params
from expkit.errors import check


@dataclass(frozen=True)
class Sgd:
    """Attributes:
    lr: learning rate.
    momentum: share of the last step's velocity that stays, 0 for none.
    nesterov: look ahead along the velocity.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "lr", self.lr, "a finite number above 0")
        check(0 <= self.momentum < 1, "momentum", self.momentum, "a number from 0 to below 1")
        takes = "false where momentum is 0"
        check(self.momentum > 0 or not self.nesterov, "nesterov", self.nesterov, takes)

    def init(self, xp: Any, params: Params) -> OptState:
        if not self.momentum:
            return {}
        return {f"velocity/{k}": xp.zeros_like(p) for k, p in params.items()}

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        for k, p in params.items():
            step = grads[k]
            if self.momentum:
                v = state[f"velocity/{k}"]
                v *= self.momentum
                v += step
                state[f"velocity/{k}"] = v
                step = step + self.momentum * v if self.nesterov else v
            p -= self.lr * step
            params[k] = p
        return params, state
