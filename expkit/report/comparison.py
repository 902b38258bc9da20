"""Two runs held side by side, for a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from expkit.measure import parity
from expkit.measure.verdict import CANT_TELL, FASTER, SLOWER, UNLIKE, Verdict, held
from expkit.outcome import Outcome
from expkit.record.stored import Stored
from expkit.units import percent, seconds

MAY_NOT = "MAY NOT BE COMPARED"


@dataclass(frozen=True)
class Comparison:
    """The comparison of run B with run A.

    Attributes:
        unlike: where their work differs, or where one does not do what its configuration says.
        barriers: why their times may not be compared; empty if they may.
        verdict: None if there are barriers.
        threshold: the smallest difference that matters, as a share.
    """

    a: Stored
    b: Stored
    unlike: list[str]
    barriers: list[str]
    verdict: Verdict | None
    threshold: float


def hold(a: Stored, b: Stored, threshold: float) -> Comparison:
    """Compare two runs, or say why not."""
    barriers = [
        f"{name} is {run.outcome}" + (f": {run.reason}" if run.reason else "")
        for name, run in (("A", a), ("B", b))
        if run.outcome != Outcome.OK
    ]
    untimed = (name for name, run in (("A", a), ("B", b)) if not run.timed)
    barriers += [f"{name} ran beside other cells, so it was not timed" for name in untimed]
    unlike = parity.unlike(a, b)
    interleaved = a.interleaved is not None and a.interleaved == b.interleaved
    if not interleaved:
        barriers.append("they were not interleaved: other load may have slowed only one of them")
        barriers += unlike  # separate runs may not have been meant to be compared
    barriers += parity.differences(a.facts, b.facts, parity.PLACE)
    if barriers:
        return Comparison(a, b, unlike, barriers, None, threshold)
    return Comparison(a, b, unlike, [], held(a, b, threshold), threshold)


def table(found: Comparison, *, verbose: bool = False) -> str:
    """Return a table of both sides, the ratio, the verdict and what speaks against it."""
    sides = (("A", found.a), ("B", found.b))
    rows = [(name, _side(run)) for name, run in sides]
    if found.verdict:
        unit = "processes" if len(found.a.processes) > 1 else "placements"
        rows.append(("ratio", _ratio(found.verdict, unit)))
        rows.append(("verdict", _in_words(found.verdict, found.threshold)))
        rows += [("unstable", f"{name}: {run.stable}") for name, run in sides if not run.is_stable]
        rows += [("unlike", f"not like for like: {line}") for line in found.unlike]
    else:
        rows.append(("verdict", MAY_NOT))
        rows += [("because", line) for line in found.barriers]
    if all("isolated" in run.tags for _, run in sides):
        rows.append(("measured", "each cell in a process of its own"))
    rows += [("saved to", f"{name}: {run.folder}") for name, run in sides]
    if verbose:
        rows += [row for name, run in sides for row in _details(name, run)]
    return "\n".join(f"{name:>10}  {text}" for name, text in rows)


def _side(run: Stored) -> str:
    text = f"{run.title}: "
    summary = run.summary
    if summary is None:
        return text + f"{run.outcome}, no time is given"
    what = "95% interval" if summary.interval else "least to greatest"
    spread = f"{what}: {seconds(summary.low)} to {seconds(summary.high)}"
    if summary.rounds == 1:
        spread = "its spread is not known: the arrays were placed once"
    text += f"{seconds(summary.median)} ({spread})"
    if run.target:
        until = run.target_summary
        text += f"; {seconds(until.median)} to {run.target}" if until else f"; not to {run.target}"
    return text


def _details(name: str, run: Stored) -> list[tuple[str, str]]:
    """Return rows that explain how a side's time was obtained."""
    rows: list[tuple[str, str]] = []
    if run.summary:
        units = "processes" if len(run.processes) > 1 else "placements of the arrays"
        repeats = sum(len(repeats) for rounds in run.processes for repeats in rounds)
        rows.append((f"{name} repeats", f"{repeats} in {run.summary.rounds} {units}"))
        if run.share_of_limit is not None:
            share = percent(run.share_of_limit)
            rows.append((f"{name} speed", f"{share} of the most that this machine allows"))
    return rows


def _ratio(verdict: Verdict, unit: str) -> str:
    interval = "no interval"
    if verdict.interval:
        interval = "95% interval: {:.3f} to {:.3f}".format(*verdict.interval)
    counted = f"measured in turn, in {verdict.rounds} {unit}"
    to = f" to {verdict.target}" if verdict.target else ""
    return f"B takes {verdict.times} as long as A{to} ({interval}; {counted})"


def _in_words(verdict: Verdict, threshold: float) -> str:
    if verdict.word == FASTER:
        return f"FASTER: B is faster than A by more than {threshold:.0%}"
    if verdict.word == SLOWER:
        return f"SLOWER: B is slower than A by more than {threshold:.0%}"
    if verdict.word == CANT_TELL:
        return (
            f"CAN'T TELL at a threshold of {threshold:.0%}: measure longer, or on a calmer machine"
        )
    if verdict.word == UNLIKE:
        return "UNLIKE: they do not do the same work, so neither is called faster"
    return f"SAME: they differ by less than {threshold:.0%}"
