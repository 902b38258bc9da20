"""FISTA: proximal gradient descent with acceleration (Beck and Teboulle, 2009).

    x' <- prox(p - lr grad f(p)), f the loss without its penalty
    t' <- (1 + sqrt(1 + 4 t^2)) / 2
    p  <- x' + (t - 1) / t' (x' - x)

The parameters are the points p at which gradients are taken; they come to the same limit as x.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from expkit.contracts import HasProximal, Optimizer, OptState, Params, Problem
from expkit.errors import UserError, check


@dataclass(frozen=True)
class Fista:
    """Attributes:
    lr: learning rate, at most the inverse of the smooth part's largest curvature.
    """

    lr: float

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "lr", self.lr, "a finite number above 0")

    def bound(self, problem: Problem) -> Optimizer:
        if not isinstance(problem, HasProximal):
            name = type(problem).__name__
            takes = "takes a problem with a proximal map"
            raise UserError(f"optimizer: fista {takes}; {name} has none")
        made = copy.copy(self)
        object.__setattr__(made, "_problem", problem)
        return made

    def init(self, xp: Any, params: Params) -> OptState:
        p = next(iter(params.values()))
        state = {f"x/{k}": 1 * p for k, p in params.items()}
        return state | {"t": xp.ones((), dtype=p.dtype, device=p.device)}

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        problem: HasProximal = self._problem  # type: ignore[attr-defined]  # set by `bound`
        penalty = problem.penalty_grad(xp, params)
        moved = {k: p - self.lr * (grads[k] - penalty.get(k, 0)) for k, p in params.items()}
        x = moved | problem.prox(xp, moved, self.lr)
        t = (1 + xp.sqrt(1 + 4 * state["t"] * state["t"])) / 2
        ahead = (state["t"] - 1) / t
        after = {k: x[k] + ahead * (x[k] - state[f"x/{k}"]) for k in params}
        return after, {f"x/{k}": x[k] for k in params} | {"t": t}
