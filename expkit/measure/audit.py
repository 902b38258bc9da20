"""Look for work that a program does while the clock does not run.

The clock is around `advance` and `synchronize`. Whatever depends on a step belongs there; the audit
looks for it in a program's other calls, which nobody times:

- reading losses and parameters after many steps may take hardly longer than after one;
- building, placing and resetting a program for more steps may take hardly longer;
- placing and resetting a program may not take much longer after its repeats than before them;
- a rest between a reset and the steps may not make the steps shorter.

The extra time is compared with that of the same steps on the clock. It has to be seen several
times, at growing intervals, before a program is refused: a burst of load from another process does
not recur like that. The processor time of processes that this one has started counts as well.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from threading import get_native_id
from time import perf_counter, process_time, sleep, thread_time
from typing import TypeVar

import numpy as np

from expkit.contracts import Backend, Program
from expkit.outcome import Outcome

T = TypeVar("T")
Take = Callable[[], Callable[[], object]]

SHARE = 0.05
"""By what share of the clocked time reading may take longer after steps, beyond fetching losses."""
FETCHES = 2.0
"""The time allowed to fetch a loss, as a multiple of `number_seconds`: a loss that another process
keeps takes half as long again.
"""
HARDLY = 5.0
"""`number_seconds` counts fetching numbers singly up to this multiple of fetching them stacked."""
AHEAD = 0.15
"""By what share of the clocked time building, placing and resetting may take longer for steps."""
HEARINGS = 7
"""How often a fault is seen (each look is a hearing) before a program is refused: in a row, or for
work that is left, more often than it is not seen."""
CLEARED = 2
"""How much more often than not no work is seen to be left before a program is cleared. A look that
shows far less than a fault clears it at once. One alone may be disturbed, and hide the work."""
PAUSE_S = 0.01
"""The pause after the first hearing that shows a fault; it is twice as long after the second, and
so on.
"""
CLOCKED_S = 4e-3
"""A shorter time on the clock tells nothing: more steps are taken, where there is room."""
TOLD_S = 1e-3
"""The shortest time in which a saving of a quarter is no accident."""
CYCLE_S = 1e-2
"""About the longest time on the clock, unless a step or reading the parameters takes longer."""
READINGS = 3
"""Where there is room, the steps take this many times as long as reading the parameters, whose
noise would otherwise hide a short piece of work."""
NOISE = 0.75
"""Extra time of at most this share of a reading without steps may be noise of the reading."""
FEW_NOISE = 0.05
"""The same, for the median of many readings."""
RESTS, RESTED = 1.5, 0.25
"""A rest lasts at least RESTS times as long as the steps. It has spared time where the steps after
it take less by the share RESTED."""
CONVINCED, SPARED, SPARED_OFTEN = 8, 1, 3
"""The bounds of a sequential test, as in Wald (1945). A rest that spares time adds 1 to a score,
and one that does not subtracts up to 1. A program is refused at CONVINCED and cleared at
-SPARED_OFTEN, or at -SPARED where its steps take long, as their times are little disturbed. Other
processes make a fault look honest in some of the tries, and an honest program look faulty in few.
"""
TRIES = 120
"""The most tries of that test."""
TURNS = 4
"""Steps that are not compared are taken a random number of times, fewer than this."""
SHORT_TRIES = 7
"""By how many the tries that are too short may outnumber the rest before more steps are taken."""
REMEMBERED = 3.0
"""How many times as long steps may take from a start that the program has not seen."""
LATER = 0.08
"""By what share of the clocked time placing and resetting may take longer after the last repeat."""
LENGTHENED = 2.5
"""How many times as long placing and resetting may take after the last repeat as before the first.
A machine may become twice as slow, and new memory may come from elsewhere."""
LONG_STEP_S = 0.05
"""The noise is small beside a step that takes this long or longer: one look is enough."""
MORE = 16.0
"""The largest factor on the number of steps at once, where there were too few."""
BLATANT, BLATANT_S = 10.0, 1e-3
"""Work is blatant if it takes this many times the clocked time and so many seconds more."""
NUMBERS = 100
READING_NOISE_S = 2e-4
"""By how much the first reading of the losses may exceed the second by chance."""
GROWTH = 4
LOOKING_S = 3.0
"""After this many seconds, `Audit.ahead` builds no programs for even more steps."""
SWITCH_S = 1e-5
"""The interpreter's switch interval during an audit; Python's default is 5e-3."""
BUILDING_S = 0.5
"""Where building takes longer than this, as with a compiler, at most two more programs are built,
and the building time itself is not checked."""


@dataclass(frozen=True)
class Finding:
    """Work that was computed off the clock.

    Attributes:
        outcome: `not_synchronized` for work that was left when `synchronize` returned,
            `off_the_clock` for any other.
    """

    outcome: Outcome
    reason: str


class Audit:
    """Times all calls of a program, before or after its timed repeats. Leaves it reset."""

    def __init__(
        self,
        program: Program,
        synchronize: Callable[[Program], None],
        room: int,
        fetching: Callable[[], float],
        fetch_seconds: float | None = None,
    ) -> None:
        """Measure how long the calls take without steps.

        Args:
            synchronize: returns when all work of a program is done.
            room: the most steps that the program takes between two resets.
            fetching: measures the seconds to fetch a loss, see `number_seconds`; returns 0 for an
                operation, which has none.
            fetch_seconds: what `fetching` has just returned, if it was called before.
        """
        self._program, self._synchronize, self.room = program, partial(synchronize, program), room
        self._wait_for = synchronize
        self.short = False
        """Whether all steps together were too short for `meanwhile` to tell anything."""
        self.ahead_s = 0.0
        """About how many seconds per step `ahead` has seen spent before the clock starts."""
        _own()  # opens the file that it reads, which releases the interpreter lock
        self._fetching = fetching
        self._fetch_seconds = FETCHES * (fetching() if fetch_seconds is None else fetch_seconds)
        self._rng = np.random.default_rng()
        self._step_seconds = math.inf
        program.reset()
        self._long = self._cycle(1)[0] > LONG_STEP_S
        often = 1 if self._long else HEARINGS
        # After one step, so that a loss is fetched here too; after none if only one fits.
        self._reading = median(self._cycle(min(1, room - 1))[1] for _ in range(often))

    def _price_fetches(self) -> float:
        """Measure the time allowed to fetch a loss again, as the machine becomes slower and faster;
        return the greater of it and the one before.
        """
        before, self._fetch_seconds = self._fetch_seconds, FETCHES * self._fetching()
        return max(before, self._fetch_seconds)

    def left(self, lengths: Sequence[int], step_seconds: float) -> Finding | None:
        """Look for work that is left to be done when losses and parameters are read.

        Args:
            lengths: the numbers of steps that are timed; one more is drawn at random.
            step_seconds: seconds of a step on the clock.
        """
        # The less of two: a burst of load while one was measured would make the lengths too short.
        each = max(min(step_seconds, self._step_seconds), 1e-9)
        least = min(self.room, 2 + int(max(CLOCKED_S, READINGS * self._reading) / each))
        most = max(least, min(self.room, int(CYCLE_S / each)))
        drawn = int(self._rng.integers(least, most, endpoint=True))
        timed = {min(max(n, least), most) for n in lengths}
        asked = {least} if self._long else {*timed, drawn}
        found = next(filter(None, map(self._left_after, asked)), None)
        if self._fetch_seconds and not self._long and not found:
            short = {n for n in lengths if 1 < n < least}
            found = next(filter(None, map(self._left_after_few, short)), None)
        self._program.reset()
        return found

    def all_left(self) -> Finding | None:
        """Do as `left` for a program whose steps take almost no time on the clock: look for work
        left by all of them, before the program is asked for many more.
        """
        # More than once: on a busy machine a thread may have done it all before the clock stops.
        tries = (self._left_after(self.room) for _ in range(READINGS))
        found = next(filter(None, tries), None)
        for _ in range(0 if found else READINGS):  # to get a reliable time of a step
            self._cycle(min(self.room, 1 + int(CLOCKED_S / max(self._step_seconds, 1e-9))))
        self._program.reset()
        return found

    def _left_after(self, n: int, *, longer: bool = True) -> Finding | None:
        score = hearings = 0
        while -CLEARED < score < HEARINGS and hearings < TRIES:
            if hearings:
                sleep(PAUSE_S * max(0, score))
                self._change_turn(n)
                self._price_fetches()
                self._program.reset()  # discards what was computed during the pause
            clocked, after = self._cycle(n)
            beyond = after - self._reading
            blatant = beyond > BLATANT * clocked + BLATANT_S
            if longer and clocked < CLOCKED_S and n < self.room and not blatant:
                more = 1.5 * CLOCKED_S / max(clocked, 1e-9)
                n = min(self.room, 1 + int(n * min(more, MORE)))
                continue
            share = SHARE * max(clocked, CLOCKED_S)
            allowed = max(share + n * self._fetch_seconds, NOISE * self._reading)
            if beyond > allowed:
                allowed = max(allowed, share + n * self._price_fetches())
            if beyond > allowed and not blatant:
                # A long stretch of steps evicts from the caches what reading needs, but so does a
                # quarter of it: compare with the reading after that.
                fewer = max(1, n // 4)
                after_fewer = median(self._cycle(fewer)[1] for _ in range(3))
                beyond = min(beyond, (after - after_fewer) * n / max(1, n - fewer))
            hearings += 1
            # Extra time this long is no burst of load: two hearings are enough.
            score += -(-HEARINGS // 2) if blatant else _heard(beyond, allowed)
        if score < HEARINGS:
            return None
        return Finding(
            Outcome.NOT_SYNCHRONIZED,
            f"{_seconds(beyond)} of work was left when synchronize had returned: {n} steps took "
            f"{_seconds(clocked)} on the clock, and reading their losses and parameters took that "
            "much longer than reading those of one step",
        )

    def _left_after_few(self, n: int) -> Finding | None:
        """Do the same for too few steps to stand out from noise: take the median of many tries, and
        read only the losses, which are read first and are few.

        A process that has just waited is slower to read results, because it has to wake up. So if
        work seems to be left, the steps are compared with one step and a rest as long as theirs.
        """
        rest_s, score, hearings = 0.0, 0, 0
        while -CLEARED < score < HEARINGS and hearings < TRIES:
            if hearings:
                sleep(PAUSE_S * max(0, score))
                self._price_fetches()
            hearings += 1
            turns: list[tuple[float, float, float]] = []
            started = perf_counter()
            while len(turns) < HEARINGS or perf_counter() - started < CYCLE_S:
                one = self._cycle(1, params=False, rest_s=rest_s)
                turns.append((*self._cycle(n, params=False), one[1]))
                # One or two long tries may be interruptions. With more of them, the steps only
                # seemed short, because the other tries left out the work.
                if sum(clocked > CLOCKED_S for clocked, *_ in turns) > HEARINGS // 2:
                    return self._left_after(n, longer=False)
            clocked, after, after_one = (median(seconds) for seconds in zip(*turns, strict=True))
            beyond = after - after_one
            share = SHARE * clocked + FEW_NOISE * after_one
            allowed = share + (n - 1) * self._fetch_seconds
            if beyond > allowed:
                rest_s = clocked
                allowed = max(allowed, share + (n - 1) * self._price_fetches())
            score += _heard(beyond, allowed)
        if score < HEARINGS:
            return None
        return Finding(
            Outcome.NOT_SYNCHRONIZED,
            f"{_seconds(beyond)} of work was left when synchronize had returned, in the median of "
            f"{len(turns)} tries: {n} steps took {_seconds(clocked)} on the clock, and reading "
            "their losses took that much longer than reading that of one step",
        )

    def meanwhile(self) -> Finding | None:
        """Look for a thread or process that computes steps while nobody asks for them: the same
        steps then take less time after a rest.
        """
        n = self.room
        if self._step_seconds * n > CLOCKED_S:
            n = min(n, 2 + int(CLOCKED_S / self._step_seconds))
        score, doubt = 0.0, SPARED if self._long else SPARED_OFTEN
        at_once: list[float] = []
        rested: list[float] = []
        self.short = False
        tries = too_short = 0
        while -doubt < score < CONVINCED and tries < TRIES:
            tries += 1
            sleep(PAUSE_S * max(0, score))
            # Part of the work may be done before the clock starts, so rest longer the closer the
            # program is to being cleared.
            rest = RESTS * (1 + max(0.0, -score))
            # In a fixed order, the rests could keep step with quick turns: see `_change_turn`.
            if at_once and self._rng.random() < 0.5:
                later = self._whole(n, rest * median(at_once))
                this = self._whole(n, 0.0)
            else:
                this, later = self._whole(n, 0.0), 0.0
                if this >= TOLD_S:
                    later = self._whole(n, rest * median([*at_once, this]))
            if this >= TOLD_S and later <= (1 - RESTED) * this:
                this = min(this, self._whole(n, 0.0), self._whole(n, 0.0))
                self._change_turn(n)
            if this >= TOLD_S:
                at_once.append(max(this, later))
                rested.append(later)
                # A stretch that takes longer after a rest may have been disturbed: it counts half.
                slower = (1 - RESTED) * later > this
                score += 1.0 if later <= (1 - RESTED) * this else -0.5 if slower else -1.0
                continue
            # On a busy machine the work may be done before the clock starts, which tells nothing.
            too_short += 1
            if score <= 0 and too_short > len(at_once) + SHORT_TRIES:  # more steps are needed
                self.short = n == self.room
                if self.short:
                    break
                n, score, too_short, at_once, rested = min(self.room, GROWTH * n), 0.0, 0, [], []
        self._program.reset()
        if score < CONVINCED:
            return None
        took, left = _seconds(median(at_once)), _seconds(median(rested))
        return Finding(
            Outcome.OFF_THE_CLOCK,
            f"{n} steps and reading what they leave take {took} right after a reset, and {left} "
            "after a rest: they are computed while nobody asks for them",
        )

    def _change_turn(self, n: int) -> None:
        """Take n steps a random number of times, or not at all. Where memory is freed and taken
        again, stretches are quick and slow in turn, and no comparison may keep step with that.
        """
        for _ in range(int(self._rng.integers(TURNS))):
            self._whole(n, 0.0)

    def _whole(self, n: int, rest_s: float) -> float:
        """Seconds of n steps and of reading their results, begun `rest_s` after a reset."""
        self._program.reset()
        self._synchronize()
        if rest_s:
            sleep(rest_s)
        with _no_collection():
            started = _Stopwatch()
            self._program.advance(n)
            self._synchronize()
            self._program.losses()
            self._program.params()
            return started.seconds()

    def ahead(
        self, build: Callable[[int], Program], step_seconds: float = math.inf
    ) -> Finding | None:
        """Look for work done before the clock starts: in `reset`, `reallocate` or while building.

        Only where these calls take long compared with the steps, other programs are built, for more
        and more steps until such work must show. Each takes as much memory as this one.

        Args:
            build: builds the program for this many steps.
            step_seconds: seconds of a step on the clock, where a better value is known.
        """
        clocked = self.room * min(self._step_seconds, step_seconds)
        building, placing = self._made(build, self.room)
        quick = building <= BUILDING_S
        once = placing + (building if quick else 0.0)
        times = 1.0
        # Steps that take no time on the clock could be asked for without end, and threads of the
        # programs built for them may go on working: hence a time limit.
        enough = perf_counter() + LOOKING_S
        while AHEAD * max(clocked, TOLD_S) * times < GROWTH * once:
            # For several times as many steps, work that is done ahead stands out even where the
            # machine becomes twice as fast from one program to the next.
            times = max(times, GROWTH if quick or placing > BUILDING_S else MORE)
            found = self._grown(build, int(times), clocked, once, quick)
            if found or not quick or perf_counter() > enough:
                return found
            times *= GROWTH
        return None

    def _grown(
        self, build: Callable[[int], Program], times: int, clocked: float, once: float, quick: bool
    ) -> Finding | None:
        """Compare the time of making a program, `once`, with that for `1 + times` as many steps."""

        def seconds(steps: int) -> float:
            building, placing = self._made(build, steps)
            return placing + (building if quick else 0.0)

        allowed = max(AHEAD * clocked * times, once / 2)
        this, one, more = once, math.inf, math.inf
        hearing = 0
        while hearing < HEARINGS:
            sleep(PAUSE_S * hearing)
            larger = seconds((1 + times) * self.room)
            grown = larger - this
            if grown > allowed:
                this = seconds(self.room)
                one, more = min(one, this), min(more, larger)
                grown = min(larger - this, more - one)  # of this pair, and of the best of each
            if grown <= allowed:
                self.ahead_s = grown / (times * self.room)
                return None
            # A difference this long is no burst of load: a few hearings are enough.
            hearing += -(-HEARINGS // 3) if grown > BUILDING_S else 1
        return Finding(
            Outcome.OFF_THE_CLOCK,
            f"{times * self.room} steps take {_seconds(times * clocked)} on the clock; a program "
            f"that is built for as many more takes {_seconds(grown)} longer to be built, placed "
            "and reset",
        )

    def _made(self, build: Callable[[int], Program], steps: int) -> tuple[float, float]:
        """Seconds of building a program for `steps`, and seconds of placing and resetting it."""
        started = _Stopwatch()
        program = build(steps)
        self._wait_for(program)
        building = started.seconds()
        started = _Stopwatch()
        program.reallocate()
        program.reset()
        self._wait_for(program)
        program.losses()
        program.params()
        return building, started.seconds()

    def _cycle(self, n: int, *, params: bool = True, rest_s: float = 0.0) -> tuple[float, float]:
        """Seconds of n steps on the clock; and of reading their results, `rest_s` after it stopped,
        and waiting in a reset.
        """
        program, synchronize = self._program, self._synchronize
        synchronize()
        # Wall time alone: while this thread waits for a core, the program's others may work.
        start = perf_counter()
        program.advance(n)
        synchronize()
        clocked = perf_counter() - start
        if n:
            self._step_seconds = min(self._step_seconds, clocked / n)
        if rest_s:
            sleep(rest_s)
        with _no_collection():
            started = _Stopwatch()
            program.losses()
            if params:
                program.params()
            after, waited = started.lap()
        program.reset()
        synchronize()
        # Only the waiting: what this thread does in a reset may be freeing the steps' memory.
        return clocked, after + max(0.0, started.lap()[1] - waited)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection: its time depends on all earlier allocations, and where two kinds
    of try alternate, it may fall into one kind only.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def quick_switches() -> Iterator[None]:
    """Shorten the interpreter's switch interval. Building or placing a program releases the
    interpreter lock a hundred times, and each time would wait for threads that take it.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def number_seconds(backend: Backend) -> float:
    """Seconds to fetch one of many numbers from the device, as a step-by-step program does:
    stacked, or singly where that is slower, up to `HARDLY` times as slow.
    """
    pair, stacked, single = backend.asarray(np.ones(2)), [], []
    for _ in range(HEARINGS):
        numbers = [backend.xp.sum(pair) for _ in range(NUMBERS)]  # as losses: NumPy's are scalars
        backend.synchronize()
        backend.to_numpy(backend.xp.stack(numbers))  # makes a lazy library compute the sums
        start = perf_counter()
        backend.to_numpy(backend.xp.stack(numbers))
        stacked.append((perf_counter() - start) / NUMBERS)
        start = perf_counter()
        for number in numbers:
            backend.to_numpy(number)
        single.append((perf_counter() - start) / NUMBERS)
        numbers.clear()
    return max(median(stacked), min(median(single), HARDLY * median(stacked)))


def left_in_readings(clocked: Sequence[float], beside: Sequence[float]) -> Finding | None:
    """Find work that was computed off the clock in more than half of the readings.

    Args:
        clocked: seconds of each reading.
        beside: processor seconds of reading its losses, beyond those of reading them once more.
    """
    pairs = zip(beside, clocked, strict=True)
    off = [(b, c) for b, c in pairs if b > max(SHARE * c, READING_NOISE_S)]
    if 2 * len(off) <= len(clocked):
        return None
    left, seen = (median(seconds) for seconds in zip(*off, strict=True))
    return Finding(
        Outcome.NOT_SYNCHRONIZED,
        f"{len(off)} of {len(clocked)} timed readings took {_seconds(seen)} on the clock, and "
        f"reading their losses then took {_seconds(left)} of processor time off it",
    )


def starting_seconds(program: Program, wait_for: Callable[[Program], None]) -> tuple[float, float]:
    """Seconds of placing a program in fresh memory, and of resetting it."""
    found = []
    for call in (program.reallocate, program.reset):
        started = _Stopwatch()
        call()
        wait_for(program)
        found.append(started.seconds())
    return found[0], found[1]


def longer_to_start(
    start: Callable[[], tuple[float, float]], before: Sequence[float], clocked: float
) -> Finding | None:
    """Find out whether a program has begun to compute steps while it is placed or reset.

    Args:
        start: places and resets it, and returns the seconds of each.
        before: the same seconds, before the first repeat.
        clocked: seconds of all steps on the clock.
    """
    share = max(LATER * clocked, AHEAD * CLOCKED_S)
    allowed = [max(then + share, LENGTHENED * then) for then in before]
    for _ in _hearings():
        took = start()
        if all(now <= most for now, most in zip(took, allowed, strict=True)):
            return None
    return Finding(
        Outcome.OFF_THE_CLOCK,
        f"the steps take {_seconds(clocked)} on the clock, and placing and resetting the program "
        f"take {_seconds(sum(took))}, where they took {_seconds(sum(before))} before the first "
        "repeat",
    )


def processor_seconds(call: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a call and its processor seconds, all threads together.

    While this thread waits for a core, others may spin on theirs, as after a parallel loop. The
    seconds are therefore limited to what all cores can do in the rest of the time.
    """
    (_, own), cpu = _own(), process_time()
    returned = call()
    cpu = process_time() - cpu
    return returned, min(cpu, (_own()[1] - own) * (os.cpu_count() or 1))


def remembered(timed_s: float, seen: Take, unseen: Take) -> Finding | None:
    """Find out whether steps take much longer from a start that the program has not seen.

    Args:
        timed_s: seconds of the steps when they were timed.
        seen, unseen: prepare the same steps, from the start of every repeat and from another one;
            each returns the function that takes them.
    """
    other = again = math.inf  # the best of each, which is the least disturbed
    for _ in _hearings():
        other = min(other, _taken(unseen()))
        if other <= max(REMEMBERED * timed_s, CLOCKED_S / 4):
            return None
        again = min(again, _taken(seen()))
        if other <= REMEMBERED * again:
            return None
    return Finding(
        Outcome.OFF_THE_CLOCK,
        f"the timed steps took {_seconds(timed_s)}, and as many steps from a start not seen before "
        f"took {_seconds(other)}: the program remembers instead of computing",
    )


def _heard(beyond: float, allowed: float) -> int:
    """What a hearing adds to the score: `beyond` are the seconds of work that seem to be left."""
    return 1 if beyond > allowed else -1 if 2 * beyond > allowed else -CLEARED


def _hearings() -> Iterator[None]:
    for hearing in range(HEARINGS):
        sleep(PAUSE_S * hearing)
        yield


def _taken(take: Callable[[], object]) -> float:
    started = _Stopwatch()
    take()
    return started.seconds()


class _Stopwatch:
    """Measures wall time, less the time that this thread, or a process that this one has started,
    waited for a core. Where the processor time of either is more, that counts instead.

    This thread's processor time of starting the stopwatch is left out, but not the wall time: while
    it reads files, other threads may get the interpreter lock and do the work that is looked for.
    """

    def __init__(self) -> None:
        began, self._own = _own()
        self._children, self._queued = _children_seconds()
        self._cpu = thread_time()
        self._own += self._cpu - began

    def seconds(self) -> float:
        """Since the start."""
        return self.lap()[0]

    def lap(self) -> tuple[float, float]:
        """Seconds since the start, and the part of them in which this thread did nothing."""
        cpu, own = _own()
        cpu, own = cpu - self._cpu, own - self._own
        children, queued = _children_seconds()
        busy = max(own - (queued - self._queued), cpu, children - self._children)
        return busy, own - cpu


def _own() -> tuple[float, float]:
    """This thread's processor time, and wall time that stands still while the thread waits for a
    core (Linux).

    The clock and the waiting time are read one after the other, and again if the thread lost its
    core in between. The interpreter lock is held meanwhile: another thread could do the work.
    """
    file = _schedstat(os.getpid(), get_native_id())
    while True:
        times_ousted, cpu = _times_ousted(), thread_time()
        now = perf_counter()
        queued = _read_holding(file)
        if _times_ousted() == times_ousted:
            return cpu, now - queued


@cache
def _schedstat(process: int, thread: int) -> int | None:
    """Open the file that tells how long this thread waited for a core (Linux), once per thread."""
    try:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return None


def _read_holding(file: int | None) -> float:
    """Read the seconds of waiting from such a file without releasing the interpreter lock."""
    if file is None:
        return 0.0
    text = ctypes.create_string_buffer(100)
    _pread(file, text, len(text) - 1, 0)
    return int(text.value.split()[1]) / 1e9


_pread = ctypes.PyDLL(None).pread
_pread.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64)
_pread.restype = ctypes.c_ssize_t


def _times_ousted() -> int:
    """How often this thread lost its core; except on Linux, that of all threads of this process."""
    whose = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return resource.getrusage(whose).ru_nivcsw


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s"


def _children_seconds() -> tuple[float, float]:
    """Processor seconds of all processes started from this one, living or ended, and the seconds
    that the living ones waited for a core (Linux).
    """
    ended = os.times()
    total, queued = ended.children_user + ended.children_system, 0.0
    waiting = ["self"]
    while waiting:
        pid = waiting.pop()
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with suppress(OSError, IndexError):  # it ended meanwhile
                waiting += (task / "children").read_text().split()
                if pid != "self":
                    ran_ns, queued_ns, _ = map(int, (task / "schedstat").read_text().split())
                    total += ran_ns / 1e9
                    queued += queued_ns / 1e9
    return total, queued
