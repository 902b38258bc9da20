"""Optimizers of which it is known how soon they learn, beside plain gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from expkit.contracts import OptState, Params
from expkit.optimizers.sgd import Sgd

MORE = 1.1
"""How many times as many steps `Longer` needs."""
SHRINKS = 0.9
"""The factor from one step of `Stalling` to the next: ten steps of the first length in all."""


@dataclass(frozen=True)
class Twin(Sgd):
    """The same optimizer under another name."""


@dataclass(frozen=True)
class Longer(Sgd):
    """Needs a tenth more steps: on a quadratic function they go as the inverse of the rate."""

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        for k, p in params.items():
            p -= self.lr / MORE * grads[k]
            params[k] = p
        return params, state


@dataclass(frozen=True)
class Stalling(Sgd):
    """Takes ever smaller steps, so that it comes to rest above the optimum."""

    def init(self, xp: Any, params: Params) -> OptState:
        p = next(iter(params.values()))
        return {"left": xp.ones((), dtype=p.dtype, device=p.device)}

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        left = state["left"]
        for k, p in params.items():
            p -= self.lr * left * grads[k]
            params[k] = p
        return params, {"left": SHRINKS * left}
