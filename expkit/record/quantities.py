"""The figures that a run records once, one row each, for journal, MLflow, tables and loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from expkit.measure.statistics import Summary
from expkit.measure.verdict import FASTER, SAME, SLOWER, UNLIKE, Verdict
from expkit.measure.warmup import WarmUp
from expkit.record.result import Result


@dataclass(frozen=True)
class Quantity:
    """One figure of a run.

    Attributes:
        name: the metric's name; the part before the slash is its section in MLflow's page.
        of: computes it from a result; returns None if the result does not have it.
        unit: `s` for seconds, `ms` for the same in milliseconds, which MLflow's charts need to show
            short times, else empty.
        label: what it is, in words.
    """

    name: str
    of: Callable[[Result], float | None]
    unit: str
    label: str


def _of_times(of: Callable[[Result, Summary], float | None]) -> Callable[[Result], float | None]:
    """Compute a figure only for a run that has times to show."""
    return lambda result: of(result, result.summary) if result.summary else None


def _of_target(of: Callable[[Summary], float]) -> Callable[[Result], float | None]:
    return lambda result: of(result.target_summary) if result.target_summary else None


def _of_warm_up(of: Callable[[WarmUp], float]) -> Callable[[Result], float | None]:
    return lambda result: of(result.warm_up) if result.summary and result.warm_up else None


QUANTITIES = (
    Quantity(
        "final/loss",
        lambda result: float(result.losses[-1]) if result.losses.size else None,
        "",
        "the loss of the last step",
    ),
    Quantity("final/evaluations", lambda r: r.evaluations, "", "evaluations of the loss"),
    Quantity(
        "target/steps",
        lambda r: r.steps_to_target,
        "",
        "steps until the target is reached to stay",
    ),
    Quantity("target/seconds", _of_target(lambda s: s.median), "s", "until then, the median"),
    Quantity("target/low_seconds", _of_target(lambda s: s.low), "s", "its interval's low end"),
    Quantity("target/high_seconds", _of_target(lambda s: s.high), "s", "its interval's high end"),
    Quantity("target/ms", _of_target(lambda s: 1e3 * s.median), "ms", "until then, the median"),
    Quantity("time/setup_seconds", _of_times(lambda r, _: r.setup_seconds), "s", "to build"),
    Quantity(
        "time/first_step_seconds",
        _of_warm_up(lambda warm: warm.first_seconds),
        "s",
        "for the first step",
    ),
    Quantity("time/warmup_seconds", _of_warm_up(lambda warm: warm.seconds), "s", "of warm-up"),
    Quantity(
        "time/compile_seconds",
        _of_warm_up(lambda warm: warm.compile_seconds),
        "s",
        "of the first calls of the timed lengths beyond their steps' time",
    ),
    Quantity("time/median_seconds", _of_times(lambda _, s: s.median), "s", "the median repeat"),
    Quantity("time/low_seconds", _of_times(lambda _, s: s.low), "s", "its interval's low end"),
    Quantity("time/high_seconds", _of_times(lambda _, s: s.high), "s", "its interval's high end"),
    Quantity("time/median_ms", _of_times(lambda _, s: 1e3 * s.median), "ms", "the median repeat"),
    Quantity("time/low_ms", _of_times(lambda _, s: 1e3 * s.low), "ms", "its interval's low end"),
    Quantity("time/high_ms", _of_times(lambda _, s: 1e3 * s.high), "ms", "its interval's high end"),
    Quantity(
        "time/steps_per_second",
        _of_times(lambda r, s: (r.chunk_ends[-1] + 1) / s.median),
        "",
        "steps in a second",
    ),
    Quantity(
        "time/outliers", _of_times(lambda _, s: s.outliers), "", "repeats far from the others"
    ),
    Quantity(
        "time/placement_share",
        _of_times(lambda _, s: s.placement_share),
        "",
        "the part of the variance that is from one placement to the next",
    ),
    Quantity(
        "time/share_of_limit",
        lambda result: result.limit_share,
        "",
        "the part of the machine's limit that is reached",
    ),
)


def found(result: Result) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each figure that a result has, and of its breakdown of a step."""
    for quantity in QUANTITIES:
        if (value := quantity.of(result)) is not None:
            yield quantity.name, value
    if result.summary and result.breakdown:
        yield from result.breakdown.metrics().items()


EVAL = "eval/"
"""What the name of a metric begins with that a problem's `evaluate` returns."""
SIGNS = {FASTER: -1.0, SAME: 0.0, SLOWER: 1.0}


def of_verdict(verdict: Verdict) -> dict[str, float]:
    """Return the figures of a verdict, by which runs can be sorted; none for UNLIKE work.

    `verdict/sign` is -1 for FASTER, 0 for SAME and 1 for SLOWER; CAN'T TELL has none. There is no
    ratio where only a bound on it is known.
    """
    if verdict.word == UNLIKE:
        return {}
    found = {} if verdict.bound else {"verdict/ratio": verdict.ratio}
    if verdict.interval and not verdict.bound:
        found |= dict(zip(("verdict/low", "verdict/high"), verdict.interval, strict=True))
    return found | ({"verdict/sign": SIGNS[verdict.word]} if verdict.word in SIGNS else {})
