"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, 2019), as `torch.optim.AdamW`.

p <- (1 - lr weight_decay) p, then the step of Adam, whose gradient does not see the decay
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from expkit.contracts import OptState, Params
from expkit.errors import check
from expkit.optimizers.adam import Adam


@dataclass(frozen=True)
class AdamW(Adam):
    """Attributes:
    lr, beta1, beta2, eps: as in Adam.
    weight_decay: by which share of the rate all parameters shrink in a step.
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = 0 <= self.weight_decay < math.inf
        check(fits, "weight_decay", self.weight_decay, "a finite number of at least 0")

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        for k, p in params.items():
            p *= 1 - self.lr * self.weight_decay
            params[k] = p
        return super().update(xp, params, grads, state)
