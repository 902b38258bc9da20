"""Whether a measurement can be relied on, and if not, why.

None of these checks drops a sample or changes a figure: they are reported beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from statistics import median

import numpy as np

from expkit.measure.environment import Activity
from expkit.measure.statistics import Rounds, Summary
from expkit.measure.stopping import Measure

SURE = 2.58
"""The critical value of a test at the 1 % level, in standard deviations."""
BUSY_CORES = 0.1
"""CPU use by others, in cores, above which it is reported."""
STOLEN = 0.01
"""The share of CPU time given to other virtual machines above which it is reported."""
CLOCK_CHANGE = 0.05
"""The relative change of the processor's clock above which it is reported."""
STILL_S = 0.05
"""Seconds of a repeat in which the process did not run, from which on they are reported."""
STILL_SHARE = 0.1
"""The same as a share of the repeat: both have to be reached."""
SLOWED = 0.75
"""The share of its usual processor time below which a reading counts as interrupted."""
RUNS = 0.2
"""Processor seconds per second below which a process normally waits most of the time."""
STOPPED = 0.05
"""SLOWED for such a process, since what it waits for may take longer at times."""
RECOMPILED = 2.0
"""How many times as long as the others a placement's first reading takes, to be reported."""
RECOMPILED_SHARE = 0.01
"""How much longer it takes, at least, as a share of a repeat."""


def unstable_because(
    measure: Measure,
    summary: Summary,
    rounds: Rounds,
    activity: Activity,
    paused: Sequence[str] = (),
) -> list[str]:
    """Every reason to distrust these rounds; empty for a stable measurement.

    Args:
        activity: what else the machine did meanwhile.
        paused: what `pauses` returns for these rounds.
    """
    others, stolen = activity.others_cores or 0.0, activity.steal_share or 0.0
    clock_change = activity.frequency_change or 0.0
    reasons = []
    # By round: repeats of one resemble each other, which could look like a trend or two modes.
    middles = [median(repeats) for repeats in rounds]
    if summary.interval is None:
        unit = "placement" if summary.rounds == 1 else "placements"
        reasons.append(f"too few: {summary.rounds} {unit}; an interval needs 6")
    elif summary.half_width > measure.target_ci:
        asked = f"asked for ± {measure.target_ci:.1%}"
        reasons.append(f"wide: the interval is ± {summary.half_width:.1%}, {asked}")
    reasons += [f"paused: {what}" for what in paused]
    if shift := drift(middles):
        times = f", {1 + shift:.3g} times as long" if shift > 1 else ""
        reasons.append(f"drift: {shift:+.1%} from the first placement to the last{times}")
    if modes := two_modes(middles):
        low, high = modes
        around = f"{low / summary.median:.2f} and {high / summary.median:.2f} times the median"
        reasons.append(f"bimodal: placements gather around {around}")
    if others > BUSY_CORES:
        reasons.append(f"load: others used {others:.1f} cores meanwhile")
    if stolen > STOLEN:
        reasons.append(f"load: {stolen:.0%} of the CPU time went to other virtual machines")
    if abs(clock_change) > CLOCK_CHANGE:
        reasons.append(f"frequency: the processor's clock changed by {clock_change:+.0%}")
    return reasons


def drift(samples: Sequence[float], least: float = 0.02) -> float | None:
    """The relative change from first to last, if it is significant (1 %) and at least `least`.

    The trend is tested after Mann (1945). Its size is the median slope of all pairs (Theil 1950,
    Sen 1968) of the logarithms, so that it is always above -1, and halving and doubling weigh the
    same. None where there is no such trend, or fewer than 6 samples. The samples must be above 0.

    >>> drift([1.01**i for i in range(12)])
    0.11...
    >>> drift([0.5**i for i in range(12)])
    -0.999...
    >>> drift([1.0, 1.1] * 6) is None
    True
    """
    x, n = np.asarray(samples), len(samples)
    if n < 6:
        return None
    earlier, later = np.triu_indices(n, 1)
    score = float(np.sign(x[later] - x[earlier]).sum())
    if abs(score) <= SURE * math.sqrt(n * (n - 1) * (2 * n + 5) / 18):
        return None
    logs = np.log(x)
    slope = float(np.median((logs[later] - logs[earlier]) / (later - earlier)))
    change = math.expm1(slope * (n - 1))
    return change if abs(change) >= least else None


def pauses(wall: Sequence[Sequence[float]], cpu: Sequence[Sequence[float]]) -> list[str]:
    """Find repeats in which the process did not run for a while: it was stopped, or preempted.

    Meanwhile its processor time stands still and wall time goes on. The usual ratio of both is the
    median over all readings, so that a process that waits for a device is compared with itself.

    Args:
        wall: seconds of each reading of each repeat.
        cpu: processor seconds of the same readings, all threads together.

    >>> pauses([[0.1], [20.2], [0.1]], [[0.1], [0.2], [0.1]])
    ['in repeat 2 the process did not run for 20 s of 20.2 s']
    """
    readings = zip(chain.from_iterable(wall), chain.from_iterable(cpu), strict=True)
    usual = median(ran / took for took, ran in readings) if any(wall) else 0.0
    if usual == 0:
        return []
    least = (SLOWED if usual >= RUNS else STOPPED) * min(usual, 1.0)
    found = []
    for repeat, (took, ran) in enumerate(zip(wall, cpu, strict=True)):
        still = sum(
            seconds - own / usual
            for seconds, own in zip(took, ran, strict=True)
            if own < least * seconds
        )
        if still >= max(STILL_S, STILL_SHARE * sum(took)):
            found.append((still, repeat, sum(took)))
    if not found:
        return []
    still, repeat, whole = max(found)
    worst = f"in repeat {repeat + 1} the process did not run for {still:.3g} s of {whole:.3g} s"
    more = f", and in {len(found) - 1} more for less" if len(found) > 1 else ""
    return [worst + more]


def recompiled(rounds: Rounds, chunk_seconds: Sequence[Sequence[float]]) -> list[str]:
    """Whether the first reading after each placement stands out, as in a program that compiles.

    It is compared with later readings of as many steps: those in the middle of the repeat, and the
    first readings of the placement's other repeats.

    Args:
        rounds: seconds of each repeat by placement, at least one.
        chunk_seconds: seconds of each reading of the same repeats, one repeat after another. All
            but the last reading of a repeat have as many steps as the first.

    >>> recompiled([[3.0, 2.0], [3.0, 2.0]], [[2.0, 1.0], [1.0, 1.0]] * 2)
    ['compile: the first reading of a placement takes 2 times as long as the others']
    >>> recompiled([[2.0, 2.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]] * 2)
    []
    """
    firsts, rest, at = [], [], 0
    for repeats in rounds:
        readings = chunk_seconds[at : at + len(repeats)]
        at += len(repeats)
        if readings:
            firsts.append(readings[0][0])
            rest += [reading[0] for reading in readings[1:]]
            rest += [seconds for reading in readings for seconds in reading[1:-1]]
    if not firsts or not rest:
        return []
    first, other = median(firsts), median(rest)
    repeat_s = median(seconds for repeats in rounds for seconds in repeats)
    if first < RECOMPILED * other or first - other < RECOMPILED_SHARE * repeat_s:
        return []
    times = f"{first / other:.3g} times as long as the others"
    return [f"compile: the first reading of a placement takes {times}"]


def two_modes(samples: Sequence[float], least: float = 0.02) -> tuple[float, float] | None:
    """The two values around which samples cluster; None where there are not two.

    Each of the two groups has at least a fifth of the samples, their means lie at least `least`
    apart, and Ashman's D (Ashman, Bird and Zepf 1994) is above 4 + 36 / n. With that bound, fewer
    than 1 in 50 unimodal samples (normal, uniform, exponential) are reported. None for fewer than
    12 values.
    """
    x, n = np.sort(samples), len(samples)
    if n < 12:
        return None
    best, found = 4 + 36 / n, None
    for cut in range(math.ceil(n / 5), n - math.ceil(n / 5) + 1):
        low, high = x[:cut], x[cut:]
        gap = float(high.mean() - low.mean())
        spread = math.sqrt((low.var() + high.var()) / 2)
        if gap > best * spread and gap > least * median(samples):
            best, found = (
                gap / spread if spread else math.inf,
                (float(low.mean()), float(high.mean())),
            )
    return found
