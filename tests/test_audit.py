"""Work that the clock does not see is found, whichever call does it; honest work is believed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from statistics import median
from time import perf_counter, process_time, sleep, thread_time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from expkit import conduct
from expkit.authors import StepProgram, manual
from expkit.config import compose_cell
from expkit.contracts import Backend, HostArray, Program
from expkit.measure import answer, clock
from expkit.measure.audit import (
    Audit,
    _Stopwatch,
    left_in_readings,
    number_seconds,
    processor_seconds,
    quick_switches,
    remembered,
)
from expkit.measure.audits import Audits
from expkit.measure.subject import MORE, Subject
from expkit.measure.warmup import WarmUp

pytestmark = pytest.mark.alone

STEP_S = 2e-5


def loop(times: int) -> None:
    for _ in range(times):
        pass


def per_second() -> float:
    """How often a loop goes round in a second that nobody disturbs."""
    best = 0.0
    for _ in range(20):
        start = perf_counter()
        loop(20_000)
        best = max(best, 20_000 / (perf_counter() - start))
    return best


PER_SECOND = per_second()


def spin(seconds: float) -> None:
    """Work that takes about so long, and not less because others have the core meanwhile."""
    loop(int(PER_SECOND * seconds))


def taken_by(seconds: float) -> float:
    """Seconds of such work now: more where the machine has become slower."""
    start = perf_counter()
    spin(seconds)
    return perf_counter() - start


def compute_in_child(seconds: float) -> None:
    code = (
        f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: ..."
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclass
class Working:
    """A program whose work takes STEP_S a step, and is done by the calls that are named.

    Attributes:
        room: steps between two resets.
        shares: of a step's work, by call; `fixed` seconds in each of the calls besides.
    """

    room: int
    shares: dict[str, float]
    fixed: float = 0.0
    left: int = 0
    mode: str = "test"
    disturbed: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ahead("build")

    def _ahead(self, call: str) -> None:
        spin(self.fixed + self.shares.get(call, 0) * self.room * STEP_S)

    def _read(self, call: str) -> None:
        spin(self.fixed + self.shares.get(call, 0) * self.left * STEP_S)
        if self.disturbed:
            spin(self.disturbed.pop())

    def reset(self) -> None:
        self.left = 0
        self._ahead("reset")
        if "child" in self.shares:
            compute_in_child(self.shares["child"] * self.room * STEP_S)

    def reallocate(self) -> None:
        self._ahead("reallocate")

    def advance(self, n: int) -> None:
        self.left += n
        spin(self.shares.get("advance", 0) * n * STEP_S)

    def synchronize(self) -> None:
        self._read("synchronize")

    def losses(self, start: int = 0) -> HostArray:
        self._read("losses")
        return np.empty(0)

    def params(self) -> dict[str, HostArray]:
        self._read("params")
        self.left = 0
        return {}


def wait_for(program: Program) -> None:
    cast(Any, program).synchronize()


class Lazy(Working):
    """Works seven steps at a time; what is left is done when losses are read."""

    def advance(self, n: int) -> None:
        self.left = n % 7
        spin((n - self.left) * STEP_S)


class Hurrying(Working):
    """Somebody else works from the reset on, and whoever asks for a step waits for that."""

    done = interrupted = 0.0

    def reset(self) -> None:
        self.done = perf_counter() + self.room * STEP_S

    def advance(self, n: int) -> None:
        spin(self.interrupted)
        self.interrupted = 0.0
        while perf_counter() < self.done:
            pass


class Queueing(Working):
    """A thread that needs the interpreter works; a reset alone waits for it."""

    thread = threading.Thread()

    def reset(self) -> None:
        if self.thread.ident:
            self.thread.join()

    def advance(self, n: int) -> None:
        self.thread = threading.Thread(target=spin, args=(n * STEP_S,))
        self.thread.start()


def audited(
    shares: dict[str, float],
    room: int = 200,
    made: type[Working] = Working,
    asked: int = 100,
    fetching: Callable[[], float] = lambda: 1e-9,
    **given: Any,
) -> str | None:
    """The outcome that the audit of such a program comes to."""

    def build(steps: int) -> Program:
        return cast(Program, made(steps, shares, **given))

    program = build(room)
    # What a step takes on the clock.
    step_s = STEP_S * (shares.get("advance", 0) + shares.get("synchronize", 0)) or 1e-7
    audit = Audit(program, wait_for, room, fetching)
    found = audit.left([asked], step_s) or audit.meanwhile() or audit.ahead(build)
    return None if found is None else found.outcome


@pytest.mark.parametrize("fixed", [0.0, 2e-3])
@pytest.mark.parametrize("call", ["advance", "synchronize"])
def test_work_on_the_clock_is_believed(call: str, fixed: float) -> None:
    """Also where the other calls take long, as long as steps have no part in that."""
    if call == "synchronize" and fixed:
        pytest.skip("then its fixed part is on the clock")
    assert audited({call: 1.0}, fixed=fixed) is None


@pytest.mark.parametrize("share", [0.8, 1.0])
@pytest.mark.parametrize("call", ["losses", "params"])
def test_work_that_synchronize_leaves_is_found(call: str, share: float) -> None:
    assert audited({"advance": 1 - share, call: share}) == "not_synchronized"


@pytest.mark.parametrize("share", [0.8, 1.0])
@pytest.mark.parametrize("call", ["reset", "reallocate", "build"])
def test_work_done_ahead_is_found(call: str, share: float) -> None:
    assert audited({"advance": 1 - share, call: share}) == "off_the_clock"


@pytest.mark.parametrize("wrong", [2, 3, 5])
def test_a_price_of_fetching_that_was_wrong_once_clears_nobody(wrong: int) -> None:
    prices = chain(repeat(1e-9, wrong), [1.0], repeat(1e-9))
    shares = {"advance": 0.5, "losses": 0.5}
    assert audited(shares, fetching=partial(next, prices)) == "not_synchronized"


class InHundreds(Working):
    """Computes a hundred steps together on the clock; whoever reads losses computes the rest."""

    def advance(self, n: int) -> None:
        self.left += n
        spin(0.2 * n * STEP_S)  # to note what is to be done
        while self.left >= 100:
            spin(100 * STEP_S)
            self.left -= 100

    def losses(self, start: int = 0) -> HostArray:
        spin(self.left * STEP_S)
        return np.empty(0)


def test_a_burst_while_a_step_was_timed_hides_nothing_that_is_left() -> None:
    """The audit is told that a step takes a hundred times as long as it does."""
    program = InHundreds(1000, {})
    audit = Audit(cast(Program, program), wait_for, program.room, lambda: 1e-9)
    found = audit.left([50], 100 * STEP_S)
    assert found is not None
    assert found.outcome == "not_synchronized"


@pytest.mark.parametrize("asked", [10, 11, 12])
def test_what_is_left_of_a_few_steps_is_found(asked: int) -> None:
    """However little it is beside the noise of reading the clock once."""
    assert audited({"losses": 1.0}, made=Lazy, asked=asked, fixed=2e-5) == "not_synchronized"
    assert audited({"advance": 1.0}, asked=asked, fixed=2e-5) is None


class Dozing(Working):
    """Honest, and slow to wake up when nobody has asked it for anything for a while."""

    asked = 0.0

    def reset(self) -> None:
        super().reset()
        self.asked = perf_counter()

    def losses(self, start: int = 0) -> HostArray:
        if perf_counter() - self.asked > 5e-4:
            spin(4e-4)
        return super().losses(start)


def test_what_waking_up_takes_after_a_few_steps_is_no_work() -> None:
    assert audited({"advance": 1.0}, made=Dozing) is None


class Blocks(Working):
    """Works half a reading and more at a time; what is left is done when losses are read."""

    step_s = 1e-4

    def advance(self, n: int) -> None:
        before, self.left = self.left, (self.left + n) % self.room
        spin((before + n - self.left) * self.step_s)

    def losses(self, start: int = 0) -> HostArray:
        spin(self.left * self.step_s)
        return super().losses(start)


def test_the_length_of_a_reading_is_looked_at_however_long_reading_takes() -> None:
    """All steps together leave nothing, and reading what they leave asks for that many."""
    program = Blocks(100, {}, fixed=1e-3)
    audit = Audit(cast(Program, program), wait_for, 100, lambda: 1e-9)
    found = audit.left((50, 50), 6e-5)
    assert found is not None
    assert found.outcome == "not_synchronized"


@pytest.mark.parametrize(("share", "found"), [(1.0, False), (0.15, True)])
def test_what_is_done_ahead_is_held_against_the_step_as_it_is_when_it_is_known(
    share: float, found: bool
) -> None:
    """The first steps of a program may be slow. Several audits are made, because the speed of the
    machine may change during one of them.
    """

    def build(steps: int) -> Program:
        return cast(Program, Working(steps, {"advance": 1.0, "reset": 0.05}))

    ahead: list[float] = []
    found_then = []
    for _ in range(7):
        program = build(400)
        audit = Audit(program, wait_for, 400, lambda: 1e-9)
        audit.all_left()
        assert audit.ahead(build) is None
        takes_s = audit._step_seconds  # here and now
        ahead.append(audit.ahead_s / takes_s)
        found_then.append(audit.ahead(build, share * takes_s) is not None)
    assert 0.02 < median(ahead) < 0.15
    assert any(found_then) == found


def test_threads_that_keep_the_interpreter_do_not_keep_the_audit() -> None:
    """Each time that placing lets go of the interpreter, it waits for those that want it."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.is_set():
            loop(1000)

    class LettingGo(Working):
        def reallocate(self) -> None:
            for _ in range(100):
                sleep(0)

    def build(steps: int) -> Program:
        return cast(Program, LettingGo(steps, {"advance": 1.0}))

    audit = Audit(build(200), wait_for, 200, lambda: 1e-9)
    threads = [threading.Thread(target=keep) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        start = perf_counter()
        build(200).reallocate()
        once_s = perf_counter() - start
        start = perf_counter()
        with quick_switches():
            audit.ahead(build)
        assert perf_counter() - start < once_s
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_program_that_is_long_in_placing_is_not_asked_for_many_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program for five times as many steps is enough to find the work, even where the machine
    becomes twice as fast meanwhile.
    """
    monkeypatch.setattr("expkit.measure.audit.BUILDING_S", 0.01)
    asked = []

    def build(steps: int) -> Program:
        asked.append(steps)
        return cast(Program, Working(steps, {"build": 1.0, "reallocate": 1.0}))

    audit = Audit(build(1000), wait_for, 1000, lambda: 1e-9)
    assert audit.ahead(build)
    assert max(asked) == 5000
    assert len(asked) < 10


def test_what_a_lazy_sum_takes_is_no_price_of_fetching_it() -> None:
    sum_s = 1e-4

    class Lazy:
        """A sum, computed when it is asked for, and once."""

        done = False

        def value(self) -> float:
            if not self.done:
                spin(sum_s)
                self.done = True
            return 2.0

    def to_numpy(given: Lazy | list[Lazy]) -> HostArray:
        return np.array([one.value() for one in (given if isinstance(given, list) else [given])])

    xp = SimpleNamespace(sum=lambda pair: Lazy(), stack=list)
    backend = SimpleNamespace(
        xp=xp, asarray=lambda host: host, synchronize=lambda: None, to_numpy=to_numpy
    )
    assert number_seconds(cast(Backend, backend)) < taken_by(sum_s) / 4


def test_what_is_computed_while_nobody_asks_is_found() -> None:
    assert audited({"advance": 1.0}, made=Hurrying) == "off_the_clock"


class HurryingAmongOthers(Hurrying):
    """The same where every third rest spares nothing: others had the core."""

    asked = 0

    def advance(self, n: int) -> None:
        self.asked += 1
        super().advance(n)
        if self.asked in (7, 13, 19):  # the first is no try; then each is two, with a rest between
            spin(self.room * STEP_S)


def test_others_that_hide_it_now_and_then_do_not_hide_it() -> None:
    program = HurryingAmongOthers(200, {"advance": 1.0})
    audit = Audit(cast(Program, program), wait_for, program.room, lambda: 1e-9)
    found = audit.meanwhile()
    assert found is not None
    assert found.outcome == "off_the_clock"


class HurryingUnseen(Hurrying):
    """The same where this thread often gets the core back late: a share of the work is done then.

    Attributes:
        left_over: shares of the work that are left when a reset returns, in turn.
    """

    left_over: tuple[float, ...] = (1.0,)
    resets = 0

    def reset(self) -> None:
        share = self.left_over[self.resets % len(self.left_over)]
        self.resets += 1
        self.done = perf_counter() + share * self.room * STEP_S


@pytest.mark.parametrize(
    "left_over", [(0, 1, 0, 1, 1), (*(0.25, 1) * 3, *(1,) * 80)], ids=["all", "most"]
)
def test_what_is_done_before_it_can_be_asked_for_now_and_then_is_found(
    left_over: tuple[float, ...],
) -> None:
    program = HurryingUnseen(400, {"advance": 1.0})
    audit = Audit(cast(Program, program), wait_for, program.room, lambda: 1e-9)
    program.left_over, program.resets = left_over, 0
    audit._rng = np.random.default_rng(0)
    found = audit.meanwhile()
    assert found is not None
    assert found.outcome == "off_the_clock"


@dataclass
class Alternating(Working):
    """Honest, but some of its stretches take longer in turn, as where memory is taken again."""

    period: int = 2
    slow: int = 1
    turn: int = 0
    asked: int = 0
    done: int = 0

    def reset(self) -> None:
        self.turn = (self.turn + 1) % self.period
        self.asked += 1
        self.done = 0

    def advance(self, n: int) -> None:
        self.done += n
        assert self.done <= self.room
        spin(n * STEP_S * self._factor)

    def losses(self, start: int = 0) -> HostArray:
        spin(2e-4 * self._factor)
        return np.empty(0)

    @property
    def _factor(self) -> float:
        return 3.0 if self.turn < self.slow else 1.0


@pytest.mark.parametrize(("period", "slow"), [(2, 1), (3, 1), (3, 2), (4, 3)])
def test_what_alternates_is_believed(period: int, slow: int) -> None:
    """Whichever turn the audit begins with."""
    for turn in range(period):
        program = Alternating(200, {"advance": 1.0}, period=period, slow=slow)
        audit = Audit(cast(Program, program), wait_for, program.room, lambda: 1e-9)
        program.turn = program.asked = turn
        assert audit.left([100], STEP_S) is None
        assert audit.meanwhile() is None
        assert program.asked < 400


def test_what_is_computed_while_the_audit_reads_its_clock_is_found() -> None:
    found = [audited({}, made=Queueing, room=1000) for _ in range(12)]
    assert found == ["not_synchronized"] * 12


def test_a_difference_of_microseconds_is_no_work() -> None:
    """A call right after another finds its memory in the caches, one after a rest does not."""
    assert audited({"advance": 1.0}, made=Hurrying, room=45) is None


def test_nor_are_they_where_one_of_them_was_interrupted() -> None:
    program = Hurrying(45, {"advance": 1.0})
    audit = Audit(cast(Program, program), wait_for, program.room, lambda: 1e-9)
    program.interrupted = 5e-3
    assert audit.meanwhile() is None


def test_a_machine_that_becomes_slower_leaves_no_work() -> None:
    """What fetching a loss takes is asked again before anything is said."""
    prices = chain([1e-9], (taken_by(100 * STEP_S) / 100 for _ in repeat(None)))
    shares = {"advance": 1.0, "losses": 0.5}
    assert audited(shares, fetching=partial(next, prices)) is None
    assert audited(shares) == "not_synchronized"


def test_work_of_a_child_process_is_found() -> None:
    assert audited({"advance": 0.1, "child": 5.0}, room=1000) == "off_the_clock"


PINNED = "import os\nos.sched_setaffinity(0, [{core}])\n"


@contextmanager
def others_on(core: int, how_many: int) -> Iterator[None]:
    """Processes that want this core for themselves; nobody's children, as those would count."""
    orphan = '"$@" > /dev/null 2>&1 & echo $!'
    code = PINNED.format(core=core) + "while True: ..."
    busy = ["sh", "-c", orphan, "sh", sys.executable, "-c", code]
    started = [subprocess.run(busy, capture_output=True, check=True) for _ in range(how_many)]
    try:
        yield
    finally:
        for done in started:
            os.kill(int(done.stdout), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux")
def test_a_child_that_waits_for_a_core_does_not_work() -> None:
    """Half of the time another process has the core that it must have."""
    core = min(os.sched_getaffinity(0))
    works = "print(flush=True)\nfor i in range(5_000_000): ...\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", PINNED.format(core=core) + works]
    with (
        others_on(core, 1),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout
        child.stdout.readline()
        start, started = perf_counter(), _Stopwatch()
        child.stdout.readline()
        seen, passed = started.seconds(), perf_counter() - start
        child.communicate(b"\n")
    assert 0.1 * passed < seen < 0.7 * passed


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_what_threads_spin_while_this_one_waits_for_a_core_is_no_work() -> None:
    core, *rest = usable = sorted(os.sched_getaffinity(0))
    ended = threading.Event()

    def spin_elsewhere() -> None:
        os.sched_setaffinity(0, rest)
        while not ended.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)  # without the interpreter

    thread = threading.Thread(target=spin_elsewhere)
    thread.start()
    os.sched_setaffinity(0, [core])
    try:
        with others_on(core, 3):
            sleep(0.2)
            cpu = process_time()
            start = thread_time()
            _, seen = processor_seconds(lambda: loop(10_000_000))
            own, all_of_it = thread_time() - start, process_time() - cpu
    finally:
        os.sched_setaffinity(0, usable)
        ended.set()
        thread.join()
    assert all_of_it > 1.5 * (os.cpu_count() or 1) * own, "the others had the core"
    assert own < seen < 1.3 * (os.cpu_count() or 1) * own


def test_a_burst_of_another_process_is_no_work() -> None:
    """The audit asks again: what is slow once is not believed to be the program's."""
    disturbed = [*[0.0] * 10, 0.02, *[0.0] * 42]
    assert audited({"advance": 1.0}, disturbed=disturbed) is None
    assert len(disturbed) <= 10, "it was read while it was disturbed"


def test_readings_are_held_against_what_reading_their_losses_took() -> None:
    assert left_in_readings([0.01] * 6, [0.0004] * 6) is None
    assert left_in_readings([0.01] * 6, [0.0004] * 5 + [0.006]) is None, "once is a burst"
    found = left_in_readings([0.01] * 6, [0.0, *[0.01] * 5])
    assert found is not None
    assert found.outcome == "not_synchronized"


@pytest.mark.parametrize(("unseen", "remembers"), [(0.01, False), (0.1, True)])
def test_a_start_not_seen_before_takes_as_long(unseen: float, remembers: bool) -> None:
    def seen() -> Callable[[], object]:
        return partial(spin, 0.01)

    found = remembered(0.01, seen, lambda: partial(spin, unseen))
    assert (found is not None) == remembers
    burst = iter([0.1, 0.01])
    assert remembered(0.01, seen, lambda: partial(spin, next(burst))) is None
    slow = chain([0.01, 0.05, 0.01, 0.05], repeat(0.01))  # others had the core in some of them
    found = remembered(0.01, lambda: partial(spin, next(slow)), lambda: partial(spin, 0.1))
    assert found is not None


# Later steps, and another start


class Lapsing(StepProgram):
    """Right for LAPSE steps after a reset; then it repeats the last loss, or rounds to float32."""

    LAPSE = 400
    how = "repeats"

    def reset(self) -> None:
        super().reset()
        self._done = 0

    def advance(self, n: int) -> None:
        right = min(n, max(0, self.LAPSE - self._done))
        super().advance(right)
        self._done += n
        for _ in range(n - right):
            last = self._kept[-1] if self._kept else self._fetched[-1]
            if self.how == "rounds":
                self._params = {
                    k: v.astype("float32").astype("float64") for k, v in self._params.items()
                }
            super().advance(1)
            if self.how == "repeats":
                self._kept[-1] = last


class Remembering(StepProgram):
    """Gives a chunk again that it has computed from these very parameters before."""

    def __init__(self, *given: Any) -> None:
        self._known: dict[Any, Any] = {}
        super().__init__(*given)

    def reset(self) -> None:
        super().reset()
        self._curve = [np.empty(0)]

    def advance(self, n: int) -> None:
        key = (n, self._params["w"].tobytes())
        if key not in self._known:
            before = len(super().losses())
            super().advance(n)
            self._known[key] = super().losses(before), self._params["w"].copy()
        losses, w = self._known[key]
        self._curve.append(losses)
        self._params = {"w": w.copy()}

    def losses(self, start: int = 0) -> HostArray:
        return np.concatenate(self._curve)[start:]


def outcome(
    program: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[str, str]:
    """Of a run of sine whose program is this one, and what it says of the answer."""
    cell = compose_cell("problem=sine", "steps=600", "backend.fast=false", "tracking=none", *words)
    monkeypatch.setattr(
        type(cell.backend), "build", lambda self, w: program(self, w, manual(np)), raising=True
    )
    found = conduct.run_together([(cell, tmp_path / "run")], None, tags={})[0]
    return found.outcome, found.checked


QUICK = ("measure.repeats_min=2", "measure.repeats_max=2")


@pytest.mark.parametrize("how", ["repeats", "rounds"])
def test_steps_after_the_reference_are_checked_where_nobody_knows(
    how: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "ELEMENT_STEPS", 1)
    monkeypatch.setattr("expkit.measure.verification.PLACES", 8)
    monkeypatch.setattr(Lapsing, "how", how)
    assert outcome(Lapsing, tmp_path, monkeypatch, *QUICK)[0] == "wrong_answer"


@pytest.mark.parametrize("words", ["backend=numpy", "backend=numpy backend.fast=false"])
def test_data_that_were_moved_are_put_back(
    words: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation is tried on other data, and its later steps on its own."""
    monkeypatch.setattr(answer, "ELEMENT_STEPS", 1)
    cell = compose_cell("problem=matmul", "problem.n=30", *words.split(), "tracking=none", *QUICK)
    found = conduct.run_together([(cell, tmp_path / "run")], None, tags={})[0]
    assert (found.outcome, found.reason) == ("ok", None)
    assert "from steps" in found.checked


def test_the_picture_is_of_what_the_last_repeat_learnt(tmp_path: Any) -> None:
    cell = compose_cell("problem=sine", "steps=600", "tracking=none", *QUICK)
    found = conduct.run_together([(cell, tmp_path / "run")], None, tags={})[0]
    program = cell.backend.build(cell.workload)
    program.advance(600)
    for name, learnt in program.params().items():
        np.testing.assert_array_equal(found.params[name], learnt)


class Changing(StepProgram):
    """Spins in `reset` or in `reallocate` for as long as its steps take, once it was placed often.

    Attributes:
        where: the call in which it spins, if any.
    """

    where = ""
    _placed = 0

    def reallocate(self) -> None:
        self._placed += 1
        super().reallocate()
        self._spin("reallocate")

    def reset(self) -> None:
        super().reset()
        self._spin("reset")

    def _spin(self, where: str) -> None:
        if self.where == where and self._placed > 6:
            spin(0.01)


@pytest.mark.parametrize("where", ["reset", "reallocate", ""])
def test_work_that_a_later_placement_begins_to_do_is_found(
    where: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was honest in all that was looked at before the first repeat."""
    monkeypatch.setattr(Changing, "where", where)
    words = ("measure.repeats_min=12", "measure.repeats_max=12", "measure.repeats_per_placement=1")
    expected = "off_the_clock" if where else "ok"
    assert outcome(Changing, tmp_path, monkeypatch, *words)[0] == expected


def test_every_program_that_is_made_is_waited_for() -> None:
    """A library that records a graph has placed nothing before that."""

    class Recording(Working):
        waited = False

        def synchronize(self) -> None:
            self.waited = True

        def params(self) -> dict[str, HostArray]:
            assert self.waited
            return {}

    made: list[Recording] = []

    def build(steps: int) -> Program:
        made.append(Recording(steps, {"advance": 1.0}))
        return cast(Program, made[-1])

    assert Audit(build(200), wait_for, 200, lambda: 1e-9).ahead(build) is None
    assert len(made) > 1


class Roomy(StepProgram):
    """Has room for the steps of its workload, and no more."""

    def reset(self) -> None:
        super().reset()
        self._done = 0

    def advance(self, n: int) -> None:
        self._done += n
        assert self._done <= self._workload.steps
        super().advance(n)


def test_no_program_is_asked_for_more_steps_than_it_has_room_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a chunk is longer than the run, and every length is looked at as a short one."""
    monkeypatch.setattr("expkit.measure.audit.CLOCKED_S", 0.1)
    monkeypatch.setattr("expkit.measure.audits.CLOCKED_S", 0.0)
    words = ("steps=90", "log_every=100", *QUICK)
    assert outcome(Roomy, tmp_path, monkeypatch, *words)[0] == "ok"


@pytest.mark.parametrize(("longest_s", "most"), [(0.05, 320), (0.005, 20)])
def test_a_slow_reset_is_not_made_slower_and_slower(
    longest_s: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps too short to tell anything are audited in larger numbers, unless resets for them take
    too long: one that computes all steps would take minutes.
    """
    rooms = []

    class Slow(StepProgram):
        def reset(self) -> None:
            super().reset()
            rooms.append(self._workload.steps)
            sleep(1e-4 * self._workload.steps)

        def advance(self, n: int) -> None: ...

    cell = compose_cell("problem=linear", "steps=20", "backend.fast=false", "tracking=none")
    build = lambda self, workload: Slow(self, workload, manual(np))  # noqa: E731
    monkeypatch.setattr(type(cell.backend), "build", build)
    monkeypatch.setattr("expkit.measure.audits.RESETS_S", longest_s)
    monkeypatch.setattr(Audit, "ahead", lambda *_: None)  # it would find this
    monkeypatch.setattr(Audit, "all_left", lambda *_: None)
    subject = Subject(cell.backend, cell.workload, 20, "numpy")
    subject.begin()
    Audits(subject, np.random.default_rng()).early(WarmUp(0.0, 0.0, 1, 1e-6, settled=True))
    assert max(rooms) == most


def test_steps_that_seem_to_take_no_time_are_asked_for_a_few_more_at_once() -> None:
    """Their work may be done elsewhere: of a hundred thousand at once it would take minutes."""
    cell = compose_cell("problem=linear", "steps=1", "tracking=none")
    subject = Subject(cell.backend, cell.workload, 1, "numpy")
    subject.begin()
    rooms = [subject.room]
    for _ in range(3):
        assert subject.enlarge(WarmUp(0.0, 0.0, 1, 1e-12, settled=True))
        rooms.append(subject.room)
    assert rooms == [1, MORE, MORE**2, MORE**3]
    assert not subject.enlarge(WarmUp(0.0, 0.0, 1, 1.0, settled=True))
    subject.program.advance(subject.room)
    assert subject.losses().shape == (MORE**3,)


def test_the_answer_line_tells_which_steps_were_checked(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "ELEMENT_STEPS", 1)
    ended, said = outcome(StepProgram, tmp_path, monkeypatch, *QUICK)
    assert ended == "ok"
    assert "the first 12 of 600 steps, and on a few from step" in said
    places = [int(word) for word in said.split() if word.isdigit()][2:]
    drawn, at_the_end = places[:-1], places[-1]
    assert ("(drawn at random)" in said) == bool(drawn), "the last stretch is not drawn"
    assert at_the_end == max(places)
    assert all(12 <= place < 600 for place in places)


def test_draws_too_quick_for_the_clock_are_no_trouble(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run without times, which knows of no step either what it takes."""
    monkeypatch.setattr(answer, "drawing_seconds", lambda *_: 0.0)
    cell = compose_cell("problem=linear", "steps=20", "tracking=none", *QUICK)
    jobs = [(cell, tmp_path / "run")]
    [found] = conduct.run_together(jobs, None, lambda *_: None, tags={}, timed=False)
    assert found.outcome == "ok"


def test_a_program_that_remembers_is_found(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("measure.repeats_min=6", "problem.n=20000")
    ended, _ = outcome(Remembering, tmp_path, monkeypatch, *words)
    assert ended in ("off_the_clock", "not_synchronized")


def test_reading_losses_is_held_against_the_clock(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a program that is honest whenever it is not timed."""

    class Turning(StepProgram):
        on_the_clock = False
        _owed = 0

        def advance(self, n: int) -> None:
            self._owed = n
            if not self.on_the_clock:
                self._pay()

        def _pay(self) -> None:
            owed, self._owed = self._owed, 0
            super().advance(owed)

        def losses(self, start: int = 0) -> HostArray:
            self._pay()
            return super().losses(start)

        def params(self) -> dict[str, HostArray]:
            self._pay()
            return super().params()

    def timed(*given: Any) -> float:
        Turning.on_the_clock = True
        seconds = clock.timed(*given)
        Turning.on_the_clock = False
        return seconds

    monkeypatch.setattr("expkit.trial.timed", timed)
    assert outcome(Turning, tmp_path, monkeypatch, *QUICK)[0] == "not_synchronized"
