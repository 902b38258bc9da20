"""Estimates how long a sweep still takes. Reads no clock and prints nothing."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from expkit.measure.stopping import Measure, fitted, most_repeats
from expkit.sweeps.manifest import Planned
from expkit.units import count, roughly


def left(team_s: float | None, waiting: Mapping[str, int], took: Mapping[str, float]) -> str:
    """Say how long a sweep still takes; empty if nothing is known.

    Only cells of a kind that has finished can be estimated, since ten times the points may take ten
    times as long, or no longer. The other cells are only counted.

    Args:
        team_s: seconds that the running cells still take; None if that is not known.
        waiting: how many cells of each kind have not begun.
        took: seconds of a cell, by kind, for the kinds of which a cell has finished.

    >>> left(3.0, {}, {}), left(3.0, {"a": 6}, {}), left(3.0, {"a": 6}, {"a": 2.0})
    ('about 3 s left', 'about 3 s for these, then 6 cells', 'about 15 s left')
    >>> left(3.0, {"a": 6, "b": 1}, {"a": 2.0}), left(None, {"a": 6}, {})
    ('about 15 s, then 1 cell of another kind', 'then 6 cells')
    """
    known_s = sum(took[kind] * number for kind, number in waiting.items() if kind in took)
    unlike = sum(number for kind, number in waiting.items() if kind not in took)
    rest = count(unlike, "cell")
    if team_s is None:
        return f"then {rest}" if unlike else ""
    if not unlike:
        return f"{roughly(team_s + known_s)} left"
    if known_s:
        return f"{roughly(team_s + known_s)}, then {rest} of another kind"
    return f"{roughly(team_s)} for these, then {rest}"


def most_rounds(measure: Measure, cells: int, rounds: int, elapsed_s: float) -> int:
    """Return the most rounds that cells taking turns can reach, if they go on at this pace.

    Args:
        measure: the settings of each cell; each may use its whole budget.
        rounds: the number of rounds done in `elapsed_s`, at least 1.
    """
    whole = replace(measure, budget_s=measure.budget_s * cells)
    limits = fitted(whole, elapsed_s / rounds / measure.repeats_per_placement, cells)
    per_round = limits.repeats_per_placement
    return math.ceil(most_repeats(limits, rounds * per_round, elapsed_s) / per_round)


class Pace:
    """Keeps track of the finished and running cells of a sweep; the caller passes the times.

    Args:
        timed: whether cells take turns; if not, they run side by side.
    """

    def __init__(self, todo: Sequence[Planned], *, timed: bool) -> None:
        self._timed = timed
        self._waiting = Counter(map(_kind, todo))
        self._took: dict[str, tuple[float, int]] = {}
        self._running: dict[int, tuple[Planned, float]] = {}
        self._team, self._begun = 0, 0.0
        self._rounds, self._rounds_begun, self._round_s, self._most = 0, 0.0, 0.0, 0

    def begins(self, planned: Planned, now: float) -> None:
        """A cell has begun."""
        if not self._running:
            self._team, self._rounds, self._begun = 0, 0, now
        self._running[planned.index] = planned, now
        self._team = max(self._team, len(self._running))
        self._waiting[_kind(planned)] -= 1

    def measures(self, planned: Planned, rounds: int, now: float) -> None:
        """A cell begins a round; the first cell of a team to do so counts for the whole team."""
        if rounds == self._rounds:
            return
        measure = planned.cell.measure
        self._rounds = rounds
        if rounds == 1:
            self._rounds_begun = now
            self._most = math.ceil(measure.repeats_max / measure.repeats_per_placement)
        else:
            elapsed_s = now - self._rounds_begun
            self._round_s = elapsed_s / (rounds - 1)
            self._most = max(rounds, most_rounds(measure, self._team, rounds - 1, elapsed_s))

    def ends(self, planned: Planned, now: float) -> None:
        """A cell has ended."""
        _, begun = self._running.pop(planned.index, (planned, now))
        # Cells that take turns or run side by side share the time.
        if self._timed:
            each_s = (now - self._begun) / max(1, self._team)
        else:
            each_s = (now - begun) / (len(self._running) + 1)
        total_s, number = self._took.get(_kind(planned), (0.0, 0))
        self._took[_kind(planned)] = total_s + each_s, number + 1

    def told(self, now: float) -> str:
        """Return the current round and the time left, in words."""
        took = {kind: total_s / number for kind, (total_s, number) in self._took.items()}
        parts = []
        if self._running and self._timed:
            at = f"round {self._rounds} of at most {self._most}"
            parts.append(at if self._rounds else "getting ready")
        parts.append(left(self._team_s(now, took), +self._waiting, took))
        return ", ".join(filter(None, parts))

    def _team_s(self, now: float, took: Mapping[str, float]) -> float | None:
        """Estimate the seconds that the running cells still take; None if nothing is known."""
        if not self._running:
            return 0.0 if any(kind in took for kind in +self._waiting) else None
        if self._rounds > 1:
            return max(0.0, self._most * self._round_s - (now - self._rounds_begun))
        running = [(_kind(planned), begun) for planned, begun in self._running.values()]
        if any(kind not in took for kind, _ in running):
            return None
        if self._timed:
            return max(0.0, sum(took[kind] for kind, _ in running) - (now - self._begun))
        beside = max(1, len(running))
        return sum(max(0.0, took[kind] - (now - begun) / beside) for kind, begun in running)


def _kind(planned: Planned) -> str:
    """Return what cells of about equal duration share: all but the seed and the rates."""
    config, choices = planned.frozen["config"], planned.frozen["choices"]
    keys = ("problem", "backend", "steps", "log_every", "stream", "measure")
    return json.dumps([{key: config.get(key) for key in keys}, choices.get("optimizer")])
