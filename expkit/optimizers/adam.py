"""Adam (Kingma and Ba, 2015, algorithm 1), in `torch.optim.Adam`'s arrangement.

    m <- beta1 m + (1 - beta1) g
    v <- beta2 v + (1 - beta2) g^2
    p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

The powers beta^t are arrays in the state: a Python counter would be frozen into a captured graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from expkit.contracts import OptState, Params
from expkit.errors import check


@dataclass(frozen=True)
class Adam:
    """Attributes:
    lr: learning rate.
    beta1: decay of the gradient's mean.
    beta2: decay of the squared gradient's mean.
    eps: added to the root of the latter.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "lr", self.lr, "a finite number above 0")
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            check(0 <= beta < 1, name, beta, "a number from 0 to below 1")
        check(0 <= self.eps < math.inf, "eps", self.eps, "a finite number of at least 0")

    def init(self, xp: Any, params: Params) -> OptState:
        state = {}
        for k, p in params.items():
            state[f"m/{k}"], state[f"v/{k}"] = xp.zeros_like(p), xp.zeros_like(p)
            for power in ("beta1", "beta2"):
                state[f"{power}/{k}"] = xp.ones((), dtype=p.dtype, device=p.device)
        return state

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        for k, p in params.items():
            g, m, v = grads[k], state[f"m/{k}"], state[f"v/{k}"]
            power1, power2 = state[f"beta1/{k}"], state[f"beta2/{k}"]
            power1 *= self.beta1
            power2 *= self.beta2
            m *= self.beta1
            m += (1 - self.beta1) * g
            v *= self.beta2
            v += (1 - self.beta2) * (g * g)
            root = xp.sqrt(v) / xp.sqrt(1 - power2) + self.eps
            p -= self.lr / (1 - power1) * (m / root)
            state |= {f"m/{k}": m, f"v/{k}": v, f"beta1/{k}": power1, f"beta2/{k}": power2}
            params[k] = p
        return params, state
