"""Gradient descent with a backtracking line search (Armijo, 1966).

p <- p - t g, with the first t of 2 r, r, r / 2, ... at which f(p - t g) <= f(p) - enough t |g|^2
r <- t, and lr at first

If no t is found within `most` evaluations, the last one is taken. Every step looks at values to
decide whether to go on, so it cannot be recorded: backends compute it step by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from expkit.contracts import Array, Evaluate, OptState, Params
from expkit.errors import check


@dataclass(frozen=True)
class Backtracking:
    """Attributes:
    lr: the rate of the first step; each step begins at twice the rate of the one before.
    enough: the share of the decrease along the gradient that the loss has to make.
    most: evaluations of a step beside the one that every step has.
    """

    lr: float
    enough: float = 1e-4
    most: int = 30

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "lr", self.lr, "a finite number above 0")
        check(0 < self.enough < 1, "enough", self.enough, "a number between 0 and 1")
        check(self.most >= 1, "most", self.most, "an integer of at least 1")

    def init(self, xp: Any, params: Params) -> OptState:
        p = next(iter(params.values()))
        rate = xp.full((), self.lr / 2, dtype=p.dtype, device=p.device)
        return {"rate": rate, "evaluations": xp.zeros((), dtype=p.dtype, device=p.device)}

    def update_again(
        self,
        xp: Any,
        params: Params,
        loss: Array,
        grads: Params,
        state: OptState,
        evaluate: Evaluate,
    ) -> tuple[Params, OptState]:
        rate, steep = 2 * state["rate"], sum(xp.sum(g * g) for g in grads.values())
        made = 1
        if bool(steep == 0):  # any rate would do, and twice as large a one every time
            return params, {**state, "evaluations": state["evaluations"] + made}
        if bool(rate == 0):  # it was halved until nothing was left
            rate = rate + self.lr
        while True:
            moved = {k: p - rate * grads[k] for k, p in params.items()}
            reached, _ = evaluate(moved)
            made += 1
            if made > self.most or bool(reached <= loss - self.enough * rate * steep):
                return moved, {"rate": rate, "evaluations": state["evaluations"] + made}
            rate = rate / 2
