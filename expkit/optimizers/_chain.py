"""What comes before an optimizer's own step: clipping, weight decay and a schedule of the rate.

    g <- g min(1, clip_norm / (|g| + 1e-6))       as `torch.nn.utils.clip_grad_norm_`
    g <- g + weight_decay p                       as `weight_decay` of `torch.optim.Adam`
    lr <- lr w(t) f(t - warmup)                   for step t = 0, 1, ...

The warm-up is w(t) = min(1, (t + 1) / warmup). With U = steps - warmup and u = t - warmup, which
is kept between 0 and U, as `torch.optim.lr_scheduler` has them:

    constant      f = 1
    linear        f = 1 + (last - 1) u / U
    cosine        f = last + (1 - last) (1 + cos(pi u / U)) / 2
    exponential   f = factor^(u / every)
    step          f = factor^floor(u / every)

The rate of step U would be `last` times the first: the last step that is taken is U - 1.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

from expkit.contracts import Array, EvaluatesAgain, Optimizer, OptState, Params
from expkit.errors import UserError, check

SCHEDULES = ("constant", "linear", "cosine", "exponential", "step")
COUNTED = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24}
"""How far the step's number can be counted in a dtype."""
STEP = "step/number"
"""The name of the step's number in the state."""


@dataclass(frozen=True)
class Update:
    """What comes before an optimizer's own step.

    Attributes:
        clip_norm: the most that the gradient's norm may be; None for any.
        weight_decay: multiple of the parameters that is added to the gradient.
        schedule: of the rate: constant, linear, cosine, exponential or step.
        warmup: steps in which the rate grows from nothing.
        last: the rate towards the end, as a share, with linear and cosine.
        factor: by which the rate is multiplied every so many steps, with exponential and step.
        every: those steps.
    """

    clip_norm: float | None = None
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    last: float = 0.0
    factor: float = 0.1
    every: int | None = None

    def __post_init__(self) -> None:
        clip, takes = self.clip_norm, "a finite number above 0, or null"
        check(clip is None or 0 < clip < math.inf, "clip_norm", clip, takes)
        fits = 0 <= self.weight_decay < math.inf
        check(fits, "weight_decay", self.weight_decay, "a finite number of at least 0")
        check(self.schedule in SCHEDULES, "schedule", self.schedule, " or ".join(SCHEDULES))
        check(self.warmup >= 0, "warmup", self.warmup, "an integer of at least 0")
        check(0 <= self.last <= 1, "last", self.last, "a number from 0 to 1")
        check(0 < self.factor <= 1, "factor", self.factor, "a number above 0 and at most 1")
        takes = "an integer of at least 1, or null"
        check(self.every is None or self.every >= 1, "every", self.every, takes)
        if self.schedule in ("exponential", "step"):
            takes = f"an integer of at least 1 with schedule={self.schedule}"
            check(self.every is not None, "every", self.every, takes)

    @property
    def scheduled(self) -> bool:
        """Whether the rate changes."""
        return self.schedule != "constant" or self.warmup > 0

    def around(self, optimizer: Optimizer, steps: int, dtype: str | None = None) -> Optimizer:
        """The optimizer with this before its own step.

        Args:
            dtype: in which the backend computes, and counts.

        Raises:
            ConfigError: the schedule is longer than the run, or than the dtype can count.
        """
        if self == Update():
            return optimizer
        if isinstance(optimizer, EvaluatesAgain):
            who = f"optimizer {type(optimizer).__name__}"
            raise UserError(
                f"update: {who} takes none, as it evaluates the loss several times a step"
            )
        most = COUNTED.get(dtype or "", math.inf)
        takes = f"constant without warm-up: {dtype} counts no further than {most}"
        check(not self.scheduled or steps <= most, "schedule", self.schedule, takes)
        takes = f"an integer of at most steps ({steps})"
        check(self.warmup <= steps, "warmup", self.warmup, takes)
        check(self.every is None or self.every <= steps, "every", self.every, takes)
        return Chain(optimizer, self, steps)


@dataclass(frozen=True)
class Chain:
    """An optimizer with clipping, weight decay and a schedule before its own step.

    Attributes:
        steps: of the run, in which the schedule ends.
    """

    optimizer: Optimizer
    before: Update
    steps: int

    def init(self, xp: Any, params: Params) -> OptState:
        state = self.optimizer.init(xp, params)
        if not self.before.scheduled:
            return state
        p = next(iter(params.values()))
        return state | {STEP: xp.zeros((), dtype=p.dtype, device=p.device)}

    def update(
        self, xp: Any, params: Params, grads: Params, state: OptState
    ) -> tuple[Params, OptState]:
        before, optimizer = self.before, self.optimizer
        if before.clip_norm is not None:
            norm = xp.sqrt(sum(xp.sum(g * g) for g in grads.values()))
            share = _at_most_one(before.clip_norm / (norm + 1e-6))
            grads = {k: share * g for k, g in grads.items()}
        if before.weight_decay:
            grads = {k: g + before.weight_decay * params[k] for k, g in grads.items()}
        if not self.before.scheduled:
            return optimizer.update(xp, params, grads, state)
        number = state[STEP]
        now = copy.copy(optimizer)
        rate = optimizer.lr * self._share(xp, number)  # type: ignore[attr-defined]
        object.__setattr__(now, "lr", rate)  # an array, which the fields of a frozen one are not
        own = {k: x for k, x in state.items() if k != STEP}
        params, own = now.update(xp, params, grads, own)
        return params, own | {STEP: number + 1}

    def _share(self, xp: Any, number: Array) -> Array:
        """The share of the rate in this step."""
        before = self.before
        behind = number - before.warmup
        length = max(1, self.steps - before.warmup)
        u = length * _at_most_one((behind + abs(behind)) / (2 * length))
        share: Array = 1.0
        if before.warmup:
            share = _at_most_one((number + 1) / before.warmup)
        match before.schedule:
            case "linear":
                return share * (1 + (before.last - 1) / length * u)
            case "cosine":
                wave = (1 + xp.cos(math.pi / length * u)) / 2
                return share * (before.last + (1 - before.last) * wave)
            case "exponential":
                return share * xp.exp(math.log(before.factor) / (before.every or 1) * u)
            case "step":
                times = xp.floor((u + 0.5) / (before.every or 1))  # sure to be rounded right
                return share * xp.exp(math.log(before.factor) * times)
        return share


def _at_most_one(x: Array) -> Array:
    """The smaller of x and 1: x itself where it is smaller, without a rounding error."""
    return x / (1 + (x - 1 + abs(x - 1)) / 2)
