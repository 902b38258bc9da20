"""L-BFGS (Liu and Nocedal, 1989) without a line search, as `torch.optim.LBFGS` with one evaluation
a step.

    d <- -H g, H from the last differences s of parameters and y of gradients (two-loop recursion)
    p <- p + lr d; in the first step by lr min(1, 1 / |g|_1)

A pair (s, y) is kept where s y > 1e-10. The history has a fixed length, so that every step has the
same form: pairs that are not there yet count as 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from expkit.contracts import Array, OptState, Params
from expkit.errors import check

LEAST = 1e-10
"""The least curvature s y of a pair that is kept."""


@dataclass(frozen=True)
class Lbfgs:
    """Attributes:
    lr: length of a step, 1 for the whole step of a quasi-Newton method.
    history: number of pairs that are kept.
    """

    lr: float
    history: int = 5

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, "lr", self.lr, "a finite number above 0")
        check(1 <= self.history <= 100, "history", self.history, "an integer from 1 to 100")

    def init(self, xp: Any, params: Params) -> OptState:
        state = {}
        for k, p in params.items():
            for name in ("step", "gradient"):
                state[f"{name}/{k}"] = xp.zeros_like(p)
            for i in range(self.history):
                state[f"s{i}/{k}"], state[f"y{i}/{k}"] = xp.zeros_like(p), xp.zeros_like(p)
        p = next(iter(params.values()))
        for name in ("taken", "scale", *(f"rho{i}" for i in range(self.history))):
            state[name] = xp.zeros((), dtype=p.dtype, device=p.device)
        return state

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        keys, oldest = list(params), range(self.history)

        def dot(a: Params, b: Params) -> Array:
            return sum(xp.sum(a[k] * b[k]) for k in keys)

        def kept(name: str) -> Params:
            return {k: state[f"{name}/{k}"] for k in keys}

        first = _positive(1 - 2 * state["taken"])  # 1 in the first step, 0 after it
        s = kept("step")
        y = {k: (1 - first) * (grads[k] - state[f"gradient/{k}"]) for k in keys}
        curvature = dot(s, y)
        use = (xp.sign(curvature - LEAST) + 1) / 2  # 1 where the pair is kept, else 0
        rho = use / (use * curvature + (1 - use))
        fresh = use * curvature / (use * dot(y, y) + (1 - use))
        scale = fresh + (1 - use) * state["scale"] + first
        pairs = [(kept(f"s{i}"), kept(f"y{i}"), state[f"rho{i}"]) for i in oldest] + [(s, y, rho)]
        # Where the newest pair is used the oldest one goes, else the newest is what it was.
        pairs = [
            (
                {k: use * later[0][k] + (1 - use) * own[0][k] for k in keys},
                {k: use * later[1][k] + (1 - use) * own[1][k] for k in keys},
                use * later[2] + (1 - use) * own[2],
            )
            for own, later in pairwise(pairs)
        ]
        q = {k: -grads[k] for k in keys}
        shares = []
        for s_i, y_i, rho_i in reversed(pairs):
            share = rho_i * dot(s_i, q)
            q = {k: q[k] - share * y_i[k] for k in keys}
            shares.append(share)
        q = {k: scale * q[k] for k in keys}
        for (s_i, y_i, rho_i), share in zip(pairs, reversed(shares), strict=True):
            q = {k: q[k] + (share - rho_i * dot(y_i, q)) * s_i[k] for k in keys}
        size = sum(xp.sum(abs(grads[k])) for k in keys)
        least = 1 / (1 + _positive(size - 1))  # min(1, 1 / size)
        rate = self.lr * ((1 - first) + first * least)
        after: OptState = {"taken": state["taken"] + first, "scale": scale}
        for i, (s_i, y_i, rho_i) in enumerate(pairs):
            after[f"rho{i}"] = rho_i
            for k in keys:
                after[f"s{i}/{k}"], after[f"y{i}/{k}"] = s_i[k], y_i[k]
        moved = {}
        for k, p in params.items():
            step = rate * q[k]
            after[f"step/{k}"], after[f"gradient/{k}"] = step, 1 * grads[k]
            moved[k] = p + step
        return moved, after


def _positive(x: Array) -> Array:
    """The larger of x and 0."""
    return (x + abs(x)) / 2
