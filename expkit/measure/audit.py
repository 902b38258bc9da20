"""Is all work done while the clock runs?

The clock is around `advance` and `synchronize`. Whatever depends on a step belongs there; this
looks for it in a program's other calls, whose time nobody would see:

- after many steps, reading losses and parameters may take hardly longer than after one;
- to build, place and reset a program for more steps may take hardly longer.

Both are held against the time of the same steps on the clock, and seen several times, longer and
longer apart, before anything is said: a burst of another process does not repeat itself. The
processor time of processes that this one has started counts as well.
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
from functools import cache
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
"""Of the clocked time, what may pass after it on account of the steps, besides fetching losses."""
FETCHES = 2.0
"""How often a loss may be fetched, in the time that the backend takes to fetch a number: one that
another process has kept takes half as long again.
"""
HARDLY = 5.0
"""How many times as slow."""
AHEAD = 0.15
"""Of the clocked time, what may pass before it on account of the steps."""
HEARINGS = 7
PAUSE_S = 0.01
"""Before the second hearing; before the third twice as long, and so on."""
CLOCKED_S = 4e-3
"""A shorter time on the clock tells nothing: more steps are taken, where there is room."""
TOLD_S = 1e-3
"""From which on a quarter less is no accident."""
CYCLE_S = 1e-2
"""About the longest of those times, unless a step or reading the parameters takes longer."""
READINGS = 3
"""Steps are to take as long as reading the parameters this often, where there is room: reading many
of them is noisier than a short work is long."""
NOISE = 0.75
"""The share of what reading takes by itself that cannot be its noise."""
FEW_NOISE = 0.05
"""The same, of the middle of many."""
RESTS, RESTED = 1.5, 0.25
"""A rest lasts so many times as long as the steps at least; what they may take less by after it."""
CONVINCED, SPARED, SPARED_OFTEN = 6, 1, 3
"""By how many more of the rests that spare time than of those that do not a program is refused, and
by how many fewer it is believed: other processes make a fault look honest in some of the tries, and
an honest program look faulty in few (a sequential test, as in Wald 1945). Of steps that take long,
whose times are little disturbed, one that spares nothing will do.
"""
TRIES = 60
"""Of them at most."""
SHORT_TRIES = 7
"""How many more of them may be too short to tell than not, before more steps are taken."""
REMEMBERED = 3.0
LONG_STEP_S = 0.05
"""From which on noise is small beside a step: once will do."""
MORE = 16.0
"""Times as many steps at most, where some were too few."""
BLATANT, BLATANT_S = 10.0, 1e-3
NUMBERS = 100
READING_NOISE_S = 2e-4
"""What reading the losses once may take longer than it did before, by chance."""
GROWTH = 4
LOOKING_S = 3.0
"""After so long, programs for even more steps are not built."""
SWITCH_S = 1e-5
"""Python's own is 5e-3."""
BUILDING_S = 0.5
"""Where building takes longer, as a compiler's does, two more programs are built at most, and what
building takes by itself is not looked at."""


@dataclass(frozen=True)
class Finding:
    """What was computed beside the clock.

    Attributes:
        outcome: `not_synchronized` for work that was left when `synchronize` returned,
            `off_the_clock` for any other.
    """

    outcome: Outcome
    reason: str


class Audit:
    """Times all calls of a program that is about to be timed, or was. Leaves it reset."""

    def __init__(
        self,
        program: Program,
        synchronize: Callable[[], None],
        room: int,
        fetching: Callable[[], float],
        fetch_seconds: float | None = None,
    ) -> None:
        """Look at what the calls take without steps.

        Args:
            room: the most steps that the program takes between two resets.
            fetching: tells what fetching a loss takes now, see `number_seconds`; 0 for an
                operation, which has none.
            fetch_seconds: what it took just now, where that is known.
        """
        self._program, self._synchronize, self.room = program, synchronize, room
        self.short = False
        """Whether all its steps together were too short to tell what is done `meanwhile`."""
        self.ahead_s = 0.0
        """About what is done `ahead` for a step."""
        _own()  # to open what it reads lets others have the interpreter
        self._fetching = fetching
        self._fetch_seconds = FETCHES * (fetching() if fetch_seconds is None else fetch_seconds)
        self._rng = np.random.default_rng()
        self._step_seconds = math.inf
        program.reset()
        self._long = self._cycle(1)[0] > LONG_STEP_S
        often = 1 if self._long else HEARINGS
        # Around one step, as its loss has to be fetched too, where there is room for more.
        self._reading = median(self._cycle(min(1, room - 1))[1] for _ in range(often))

    def _price_fetches(self) -> None:
        """What fetching a loss takes: more than before, where the machine has become slower."""
        self._fetch_seconds = max(self._fetch_seconds, FETCHES * self._fetching())

    def left(self, lengths: Sequence[int], step_seconds: float) -> Finding | None:
        """What is still computed when losses and parameters are read.

        Args:
            lengths: that are timed; another one is drawn at random.
            step_seconds: what a step takes on the clock.
        """
        each = max(step_seconds, 1e-9)
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
        """`left` of a program whose steps all but take no time on the clock: whether that is all
        there is, before it is asked for so many that they do.
        """
        found = self._left_after(self.room)
        for _ in range(0 if found else READINGS):  # of a time that is to be relied on
            self._cycle(min(self.room, 1 + int(CLOCKED_S / max(self._step_seconds, 1e-9))))
        self._program.reset()
        return found

    def _left_after(self, n: int, *, longer: bool = True) -> Finding | None:
        hearing = 0
        while hearing < HEARINGS:
            if hearing:
                sleep(PAUSE_S * hearing)
                self._program.reset()  # nothing is to be done in that time
            clocked, after = self._cycle(n)
            beyond = after - self._reading
            blatant = beyond > BLATANT * clocked + BLATANT_S
            if longer and clocked < CLOCKED_S and n < self.room and not blatant:
                more = 1.5 * CLOCKED_S / max(clocked, 1e-9)
                n = min(self.room, 1 + int(n * min(more, MORE)))
                continue
            allowed = SHARE * max(clocked, CLOCKED_S) + n * self._fetch_seconds
            allowed = max(allowed, NOISE * self._reading)
            if beyond > allowed and not blatant:
                # After a long stretch of steps the caches hold none of what reading needs: so it is
                # after a quarter of them.
                fewer = max(1, n // 4)
                after_fewer = median(self._cycle(fewer)[1] for _ in range(3))
                beyond = min(beyond, (after - after_fewer) * n / max(1, n - fewer))
            if beyond <= allowed:
                return None
            # What takes this long is no burst: twice will do.
            hearing += -(-HEARINGS // 2) if blatant else 1
            self._price_fetches()
        return Finding(
            Outcome.NOT_SYNCHRONIZED,
            f"{_seconds(beyond)} of work was left when synchronize had returned: {n} steps took "
            f"{_seconds(clocked)} on the clock, and reading their losses and parameters took that "
            "much longer than reading those of one step",
        )

    def _left_after_few(self, n: int) -> Finding | None:
        """The same of fewer steps than can be told from noise at once: in the middle of many, and
        of losses alone, which are asked for first and are few.
        """
        for _ in _hearings():
            turns: list[tuple[float, float, float]] = []
            started = perf_counter()
            while len(turns) < HEARINGS or perf_counter() - started < CYCLE_S:
                turns.append((*self._cycle(n, params=False), self._cycle(1, params=False)[1]))
                # Not of one or two, which may be interruptions: the others left out the work.
                if sum(clocked > CLOCKED_S for clocked, *_ in turns) > HEARINGS // 2:
                    return self._left_after(n, longer=False)
            clocked, after, after_one = (median(seconds) for seconds in zip(*turns, strict=True))
            beyond = after - after_one
            if beyond <= SHARE * clocked + (n - 1) * self._fetch_seconds + FEW_NOISE * after_one:
                return None
            self._price_fetches()
        return Finding(
            Outcome.NOT_SYNCHRONIZED,
            f"{_seconds(beyond)} of work was left when synchronize had returned, in the median of "
            f"{len(turns)} tries: {n} steps took {_seconds(clocked)} on the clock, and reading "
            "their losses took that much longer than reading that of one step",
        )

    def meanwhile(self) -> Finding | None:
        """What goes on being computed, by a thread or a process, while nobody asks for a step:
        after a rest less of the same steps is left to be done.
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
            this, later = self._whole(n, 0.0), 0.0
            if this >= TOLD_S:
                # Part of it may be done before we ask: the nearer to belief, the longer the rest.
                rest = RESTS * (1 + max(0.0, -score))
                later = self._whole(n, rest * median([*at_once, this]))
                # Memory that is given back may make every other stretch slower, and no rest helps.
                if later <= (1 - RESTED) * this:
                    this = min(this, self._whole(n, 0.0), self._whole(n, 0.0))
            if this >= TOLD_S:
                at_once.append(max(this, later))
                rested.append(later)
                # A stretch that takes longer after a rest may have been disturbed: half a word.
                slower = (1 - RESTED) * later > this
                score += 1.0 if later <= (1 - RESTED) * this else -0.5 if slower else -1.0
                continue
            # It may be done before we can ask, on a busy machine now and then: that tells nothing.
            too_short += 1
            if score <= 0 and too_short > len(at_once) + SHORT_TRIES:  # it takes more steps to see
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

    def _whole(self, n: int, rest_s: float) -> float:
        """Seconds of n steps and of reading what they leave, so long after a reset."""
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
        """What was computed before the clock: in `reset`, `reallocate` or when building.

        Only where these calls take long beside the steps are other programs built, for more and
        more steps until that must show, each of which takes as much memory again.

        Args:
            build: makes the program for this many steps.
            step_seconds: what a step takes on the clock, where that is known better than here.
        """
        clocked = self.room * min(self._step_seconds, step_seconds)
        building, placing = self._made(build, self.room)
        quick = building <= BUILDING_S
        once = placing + (building if quick else 0.0)
        times = 1.0 if quick or placing > BUILDING_S else MORE
        # What takes no time on the clock has no end of steps that may be asked for; and threads of
        # programs that were built for so many may work on.
        enough = perf_counter() + LOOKING_S
        while AHEAD * max(clocked, TOLD_S) * times < GROWTH * once:
            found = self._grown(build, int(times), clocked, once, quick)
            if found or not quick or perf_counter() > enough:
                return found
            times *= GROWTH
        return None

    def _grown(
        self, build: Callable[[int], Program], times: int, clocked: float, once: float, quick: bool
    ) -> Finding | None:
        """Whether what is done `once` takes longer for this many times more steps."""

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
                grown = min(larger - this, more - one)  # by turns, and in the best case of each
            if grown <= allowed:
                self.ahead_s = grown / (times * self.room)
                return None
            # What takes this long is no burst: a few times will do.
            hearing += -(-HEARINGS // 3) if grown > BUILDING_S else 1
        return Finding(
            Outcome.OFF_THE_CLOCK,
            f"{times * self.room} steps take {_seconds(times * clocked)} on the clock; a program "
            f"that is built for as many more takes {_seconds(grown)} longer to be built, placed "
            "and reset",
        )

    def _made(self, build: Callable[[int], Program], steps: int) -> tuple[float, float]:
        """Seconds of building a program for so many steps; of placing it anew and resetting it."""
        started = _Stopwatch()
        program = build(steps)
        self._synchronize()
        building = started.seconds()
        started = _Stopwatch()
        program.reallocate()
        program.reset()
        self._synchronize()
        program.losses()
        program.params()
        return building, started.seconds()

    def _cycle(self, n: int, *, params: bool = True) -> tuple[float, float]:
        """Seconds of n steps on the clock; of reading what they left, and of waiting in a reset."""
        program, synchronize = self._program, self._synchronize
        synchronize()
        # By the wall alone: while this thread waits for a core, others of the program may work.
        start = perf_counter()
        program.advance(n)
        synchronize()
        clocked = perf_counter() - start
        if n:
            self._step_seconds = min(self._step_seconds, clocked / n)
        with _no_collection():
            started = _Stopwatch()
            program.losses()
            if params:
                program.params()
            after, waited = started.lap()
        program.reset()
        synchronize()
        # Not what it computes itself: memory that steps have used is given back here.
        return clocked, after + max(0.0, started.lap()[1] - waited)


@contextmanager
def _no_collection() -> Iterator[None]:
    """What a collection of garbage takes is of all that was allocated before; and where tries take
    turns, it may come in every other one.
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
    """Threads of a program that keep the interpreter give it back soon. Who builds or places a
    program lets go of it a hundred times, and would wait as often for each of them.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def number_seconds(backend: Backend) -> float:
    """What fetching a number from the device takes, one of many, as a step-by-step program does:
    stacked, or one by one where that is hardly slower.
    """
    pair, stacked, single = backend.asarray(np.ones(2)), [], []
    for _ in range(HEARINGS):
        numbers = [backend.xp.sum(pair) for _ in range(NUMBERS)]  # losses: NumPy's are scalars
        backend.synchronize()
        backend.to_numpy(backend.xp.stack(numbers))  # a lazy library's sums are computed here
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
    """What was computed off the clock in more than half of the readings.

    Args:
        clocked: seconds of each reading.
        beside: processor seconds of reading the losses after it, beyond what that takes again.
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


def processor_seconds(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and what it took of the processor, all threads together.

    While this thread waits for a core, others may spin on theirs, as after a parallel loop: that is
    left out.
    """
    (_, own), cpu = _own(), process_time()
    returned = call()
    cpu = process_time() - cpu
    return returned, min(cpu, (_own()[1] - own) * (os.cpu_count() or 1))


def remembered(timed_s: float, seen: Take, unseen: Take) -> Finding | None:
    """Whether steps take much longer from a start that was not seen before.

    Args:
        timed_s: what they took when they were timed.
        seen, unseen: each gets ready to take the same steps, from the start of every repeat and
            from another one; returns what takes them.
    """
    other = again = math.inf  # the best of each: a disturbed one explains nothing
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


def _hearings() -> Iterator[None]:
    for hearing in range(HEARINGS):
        sleep(PAUSE_S * hearing)
        yield


def _taken(take: Callable[[], object]) -> float:
    started = _Stopwatch()
    take()
    return started.seconds()


class _Stopwatch:
    """Seconds of the wall, less those that this thread, or a process that this one has started,
    waited for a core of a busy machine; or, where it is more, of those processes' processors.

    What starting takes this thread is left out. While it reads files, others may get hold of the
    interpreter and do the work that is looked for: that counts.
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
        """Seconds since the start; those of them in which this thread did nothing."""
        cpu, own = _own()
        cpu, own = cpu - self._cpu, own - self._own
        children, queued = _children_seconds()
        busy = max(own - (queued - self._queued), cpu, children - self._children)
        return busy, own - cpu


def _own() -> tuple[float, float]:
    """This thread's processor time; the wall's clock, stopped while the thread is ready to run and
    others have its core (Linux).

    The clock and the wait are read one after the other; if others got the core between, it is done
    again. No other thread gets hold of the interpreter meanwhile: it could do the work then.
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
    """The open file that tells how long this thread, of this number, waited for a core (Linux)."""
    try:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return None


def _read_holding(file: int | None) -> float:
    """The seconds of waiting in such a file, read without letting go of the interpreter."""
    if file is None:
        return 0.0
    text = ctypes.create_string_buffer(100)
    _pread(file, text, len(text) - 1, 0)
    return int(text.value.split()[1]) / 1e9


_pread = ctypes.PyDLL(None).pread
_pread.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64)
_pread.restype = ctypes.c_ssize_t


def _times_ousted() -> int:
    """How often this thread (elsewhere than on Linux, any of this process) lost its core."""
    whose = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return resource.getrusage(whose).ru_nivcsw


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s"


def _children_seconds() -> tuple[float, float]:
    """Of all processes that this one has started: their processor time, now or ever, and how long
    those that live were ready to run and had no core (Linux).
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
