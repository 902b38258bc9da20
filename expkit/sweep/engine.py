"""Run a sweep's cells in workers: in turn where they are timed, several at once where not.

What goes wrong with a cell, be it the death of its process, is recorded as that cell's end; the
others go on. This process alone sends runs to MLflow, and draws the pictures of timed cells.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Protocol

from expkit.config import Cell, Sweep
from expkit.errors import is_disk_full
from expkit.measure import parity
from expkit.measure.environment import Activity, Snapshot, gpus
from expkit.measure.looking import Look
from expkit.measure.rounds import run_rounds
from expkit.measure.verdict import held
from expkit.report import plots
from expkit.runner import record_failure
from expkit.sweep.manifest import Manifest, Planned
from expkit.sweep.worker import Ended, Message, Worker, end_spares
from expkit.tracking import journal
from expkit.tracking.address import one_line
from expkit.tracking.tracker import Tracker

ALIVE = 8
"""Workers that are alive together by default, where one at a time is measured."""
FOR_EVER_S = 1e9
"""What a comparison's cells may take: as in one process, there is no limit."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Screen(Protocol):
    """Shows how a sweep goes."""

    def begins(self, planned: Planned) -> None: ...

    def measures(self, planned: Planned, rounds: int) -> None: ...

    def ends(self, planned: Planned, outcome: str, reason: str) -> None: ...

    def says(self, text: str) -> None: ...


class Stop:
    """Ctrl-C, counted: the first lets what is running finish, the second ends it."""

    def __init__(self, screen: Screen, tracker: Tracker | None) -> None:
        self.asked, self._screen, self._tracker = False, screen, tracker
        self._before = signal.getsignal(signal.SIGINT)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if callable(self._before):
                self._before(number, frame)
            raise KeyboardInterrupt
        self.asked = True
        if self._tracker:
            self._tracker.hurry()
        self._screen.says("interrupted: what is being measured is finished; again ends it now")


@dataclass(frozen=True)
class Ledger:
    """Where a sweep's runs are written down, and told of."""

    manifest: Manifest
    tracker: Tracker | None
    screen: Screen

    def begin(self, planned: Planned, mark: Mapping[str, str]) -> Attempt:
        """A new run of a cell, with this tag."""
        tags = {"sweep": self.manifest.id, "sweep.cell": str(planned.index), **mark}
        self.screen.begins(planned)
        return Attempt(planned, self.manifest.next_attempt(planned), tags, self)

    def send(self, attempt: Attempt) -> None:
        """To MLflow, some time soon. Not while the tracker is stopped."""
        if self.tracker and (attempt.folder / journal.FILE).exists():
            self.tracker.update(attempt.folder)


@dataclass
class Attempt:
    """A run of a cell."""

    planned: Planned
    folder: Path
    tags: Mapping[str, str]
    ledger: Ledger
    outcome: str | None = None
    """Once there is one."""

    @property
    def request(self) -> Message:
        """What its worker is told."""
        return {"cell": self.planned.frozen, "folder": str(self.folder), "tags": self.tags}

    def end(self, outcome: str, reason: str, *, full: bool = False) -> None:
        """See to it that the journal has its end.

        Args:
            full: whether it failed for want of room on the disk.

        Raises:
            OSError: there is no room, so that the cells that are left would fail too.
        """
        if full:
            self.outcome = outcome
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not (self.folder / journal.FILE).exists() or not journal.is_ended(self.folder):
            record_failure(self.planned.cell, self.folder, self.tags, outcome, reason)
        self.outcome = outcome
        self.ledger.screen.ends(self.planned, outcome, reason)

    def interrupt(self) -> None:
        """End it where nothing else has, if the disk takes that."""
        if self.outcome is None:
            full = is_disk_full(sys.exception())
            with suppress(OSError):
                self.end("interrupted", "the disk is full" if full else "stopped before its end")


@dataclass
class Member:
    """One cell of a team, and the worker that holds it: a source of repeats."""

    attempt: Attempt
    worker: Worker
    left_s: float
    rounds: list[list[float]] = field(default_factory=list)
    facts: Mapping[str, str] = field(default_factory=dict)
    broken: Sequence[str] = ()
    """Where its program does not work with what it says."""
    expected_s: float = 0.0
    ready: bool = False
    refused: bool = False
    """Whether it has come to no time: diverged, or a wrong answer."""

    @property
    def planned(self) -> Planned:
        return self.attempt.planned

    @property
    def ended(self) -> bool:
        return self.attempt.outcome is not None

    def ask(self, **request: Any) -> Message:
        """Hand it a request and wait for the answer; then it sleeps. `done` if it is gone."""
        begun = monotonic()
        try:
            if request:
                self.worker.tell(**request)
            answer = self.worker.hear(self.left_s)
        except Ended as error:
            answer = {"is": "done", "outcome": "failed", "reason": str(error)}
        self.worker.sleep()
        if answer["is"] == "done":
            full = answer.get("full", False)
            self.attempt.end(answer["outcome"], answer["reason"], full=full)
        self.left_s -= monotonic() - begun
        return answer

    def place(self) -> None:
        if not self.ended:
            self.rounds.append([])
            self.attempt.ledger.screen.measures(self.planned, len(self.rounds))
            self.ask(do="place")

    def repeat(self) -> float | None:
        answer = {} if self.ended else self.ask(do="repeat")
        seconds: float | None = answer.get("seconds")
        if seconds is None:
            self.refused = True
            return None
        self.rounds[-1].append(seconds)
        if tracker := self.attempt.ledger.tracker:
            tracker.refresh(self.attempt.folder)
        return seconds

    def conclude(self, stopped_by: str | None, activity: Mapping[str, float | None]) -> None:
        """End its repeats, and take in what is found after the last."""
        answer = self.ask(do="stop", stopped_by=stopped_by, activity=activity)
        if not self.ended:
            (found,) = answer["found"]
            self.broken = found["broken"]
            self.refused = self.refused or found["outcome"] != "ok"

    @property
    def lives(self) -> bool:
        """Whether it has times, and may have more."""
        return self.ready and not self.ended and not self.refused and bool(self.rounds)


def run(
    manifest: Manifest, todo: Sequence[Planned], tracker: Tracker | None, screen: Screen
) -> bool:
    """Run these cells of a sweep; returns whether it was asked to stop before the end.

    Raises:
        KeyboardInterrupt: it was asked twice; what was running is ended and recorded so.
        OSError: the disk is full; so is what was running.
    """
    ledger = Ledger(manifest, tracker, screen)
    with _interruptible(Stop(screen, tracker)) as stop:
        if manifest.sweep.timing:
            for team in teams(todo, manifest.sweep.workers or ALIVE):
                if stop.asked:
                    break
                _measure(team, ledger)
        else:
            _fill(todo, ledger, stop)
    return stop.asked


@contextmanager
def _interruptible(stop: Stop) -> Iterator[Stop]:
    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread, so no signal comes here
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def teams(todo: Iterable[Planned], most: int) -> list[list[Planned]]:
    """Cells that take turns: of one problem, a cell beside the one that it is held against.

    Where all that share a baseline are more than may live together, the rest follow without it.
    """
    clusters: dict[tuple[int, int], list[Planned]] = {}
    for planned in todo:
        leader = planned.index if planned.baseline is None else planned.baseline
        clusters.setdefault((planned.group, leader), []).append(planned)
    found: list[list[Planned]] = []
    for (group, leader), cluster in clusters.items():
        cluster.sort(key=lambda planned: (planned.index != leader, planned.index))
        fits = found and found[-1][0].group == group and len(found[-1]) + len(cluster) <= most
        if fits:
            found[-1] += cluster
        else:
            found += [cluster[start : start + most] for start in range(0, len(cluster), most)]
    return found


def environment(planned: Planned, gpu: str | None = None) -> dict[str, str]:
    """What a worker's libraries read when they are imported."""
    threads = planned.frozen["config"]["backend"].get("threads")
    env = dict.fromkeys(THREADS, str(threads)) if threads else {}
    if gpu is not None and _wants_gpu(planned):
        env[VISIBLE] = gpu
    return env


def _wants_gpu(planned: Planned) -> bool:
    """Whether any GPU will do: a cell that names one (`cuda:1`) chooses for itself."""
    return bool(planned.frozen["config"]["backend"].get("device") == "cuda")


def _measure(team: Sequence[Planned], ledger: Ledger) -> None:
    """Measure cells in turn, each in an interpreter of its own, one awake at a time."""
    mark = {"interleaved": f"{ledger.manifest.id}/{datetime.now():%H-%M-%S-%f}"}
    _hold(team, ledger, lambda planned: ledger.begin(planned, mark), compared=False)


def compare(
    cells: Sequence[Cell],
    folders: Sequence[Path],
    tags: Mapping[str, str],
    tracker: Tracker | None,
    screen: Screen,
) -> None:
    """Measure cells against the first of them as a sweep does, until a verdict is known.

    What goes wrong with a cell is recorded as its end; the others go on.

    Args:
        folders: where to keep each cell's run.
        tags: of every run.
    """
    first = cells[0]
    team = [
        Planned(index, cell.hash, cell.title, 0, 0 if index else None, cell.frozen)
        for index, cell in enumerate(cells)
    ]
    sweep = Sweep(limit_s=FOR_EVER_S)
    manifest = Manifest(folders[0].parent, [], sweep, [first.names["problem"]], team)
    ledger = Ledger(manifest, tracker, screen)

    def begin(planned: Planned) -> Attempt:
        screen.begins(planned)
        return Attempt(planned, folders[planned.index], tags, ledger)

    _hold(team, ledger, begin, compared=True)


def _hold(
    team: Sequence[Planned],
    ledger: Ledger,
    begin: Callable[[Planned], Attempt],
    *,
    compared: bool,
) -> None:
    """Let cells take turns in workers, from their beginning to their end."""
    with ExitStack() as stack:
        members = []
        for planned in team:
            worker = Worker(environment(planned))
            stack.callback(worker.kill)
            members.append(Member(begin(planned), worker, ledger.manifest.sweep.limit_s))
        end_spares()
        try:
            _take_turns(members, compared=compared)
        finally:
            for member in members:
                if not member.ended:
                    member.worker.kill()
                    member.attempt.interrupt()
            for member in members:
                ledger.send(member.attempt)


def _take_turns(members: Sequence[Member], *, compared: bool) -> None:
    for member in members:  # importing is not timed: all at once
        with suppress(Ended):  # told by the next answer
            member.worker.tell(timed=True, **member.attempt.request)
    if any(member.planned.cell.tracking.pictures for member in members):
        with suppress(Exception):  # told when they cannot be drawn
            plots.preload()
    for member in members:
        member.ask()
    with _quiet(members):
        for member in members:
            if not member.ended:
                member.ask(do="prepare")
    prepared = [member for member in members if not member.ended]
    for member in prepared:
        member.attempt.ledger.send(member.attempt)
    for member in prepared:  # what a right answer is: all at once again
        with suppress(Ended):
            member.worker.tell(do="answer")
    for member in prepared:
        answer = member.ask()
        if answer["is"] == "ready":
            member.ready, member.facts = True, answer["facts"]
            member.expected_s = answer["expected_s"]
    _require_alike(members)
    ready = [member for member in members if member.ready and not member.ended]
    with _quiet(ready):
        pids = [member.worker.pid for member in ready]
        start = Snapshot.take(pids=pids)
        stopped_by = _rounds(ready, compared=compared)
        activity = asdict(Activity.between(start, Snapshot.take(pids=pids)))
        for member in ready:
            if not member.ended:
                member.conclude(stopped_by, activity)
    waiting = [member for member in members if not member.ended]
    for member in waiting:
        with suppress(Ended):  # told by the next line
            member.worker.tell(do="finish", tags=_held_against(member, members))
        member.attempt.ledger.send(member.attempt)
    for member in waiting:
        member.ask()
    for member in members:
        _draw(member)


def _draw(member: Member) -> None:
    """Draw what a cell's record shows; what cannot be drawn is said, and the run is as good.

    Raises:
        OSError: the disk is full.
    """
    folder, cell = member.attempt.folder, member.planned.cell
    if not cell.tracking.pictures or not (folder / journal.FILE).exists():
        return
    try:
        plots.draw(folder, cell.workload.problem)
    except Exception as error:
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        again = f"draw them later: expkit draw {folder}"
        screen = member.attempt.ledger.screen
        screen.says(f"{cell.title}: no pictures ({one_line(error)}); {again}")


@contextmanager
def _quiet(members: Sequence[Member]) -> Iterator[None]:
    """Nothing of ours beside the clock; first let long runs appear in MLflow."""
    with ExitStack() as quiet:
        for member in members:
            if tracker := member.attempt.ledger.tracker:
                expected_s = member.expected_s * len(members)
                quiet.enter_context(tracker.quiet(member.attempt.folder, expected_s))
        yield


def _require_alike(members: Sequence[Member]) -> None:
    """With `measure.parity=require`, end what does not do its baseline's work."""
    for member in members:
        required = member.ready and member.planned.cell.measure.parity == "require"
        base = _baseline(member, members) if required else None
        if base and (unlike := parity.differences(base.facts, member.facts)):
            member.ask(do="refuse", unlike=unlike)


def _rounds(ready: Sequence[Member], *, compared: bool) -> str | None:
    if not ready:
        return None
    measure = ready[0].planned.cell.measure
    if not compared:  # what one cell may take, each of them may
        measure = replace(measure, budget_s=measure.budget_s * len(ready))
    look = Look(measure, lambda: [m.rounds for m in ready if m.lives], compared=compared)
    return run_rounds(ready, measure, look.enough, look.width)


def _held_against(member: Member, members: Sequence[Member]) -> dict[str, str]:
    """How a cell stands against its baseline, as tags: its verdict, and where they are unlike."""
    base = _baseline(member, members)
    if base is None or not member.ready:
        return {}
    unlike = parity.unlike(base, member, (base.planned.title, "this cell"))
    tags = {"parity": "not like for like: " + "; ".join(unlike)} if unlike else {}
    if base.lives and member.lives:
        verdict = held(base, member, member.planned.cell.measure.threshold)
        tags["verdict"] = f"{verdict.word} ({verdict.ratio:.3f} times {base.planned.title})"
    return tags


def _baseline(member: Member, members: Sequence[Member]) -> Member | None:
    found = [m for m in members if m.planned.index == member.planned.baseline and m.ready]
    return found[0] if found else None


@dataclass(frozen=True)
class _Slot:
    """What a worker has to itself while others run beside it."""

    cpus: Sequence[int]
    gpu: str | None


@dataclass
class _Post:
    """A worker that runs one cell after another."""

    worker: Worker
    key: tuple[str, ...]
    slot: _Slot
    attempt: Attempt | None = None
    ends_at: float = 0.0


def _fill(todo: Sequence[Planned], ledger: Ledger, stop: Stop) -> None:
    """Keep as many cells running at once as there are workers; none of them is timed.

    A worker takes cells of one backend and its settings, one after another: what a library fixes
    when it is imported is then right for all of them. Each has its share of the CPUs to itself, and
    a GPU if its cells ask for one.
    """
    free = deque(_slots(todo, ledger.manifest.sweep.workers))
    waiting = deque(sorted(todo, key=_key))
    posts: list[_Post] = []
    end_spares()
    try:
        while (waiting and not stop.asked) or any(post.attempt for post in posts):
            if not stop.asked:
                _occupy(ledger, waiting, posts, free)
            busy = [post for post in posts if post.attempt]
            if not busy:
                break  # asked to stop just now
            soonest = min(post.ends_at for post in busy)
            signs = [sign for post in busy for sign in post.worker.signs]
            heard = select.select(signs, [], [], max(0, soonest - monotonic()))[0]
            for post in busy:
                told = any(sign in heard for sign in post.worker.signs)
                if told or post.ends_at <= monotonic():
                    _vacate(ledger, post, posts, free)
    finally:
        for post in posts:
            if post.attempt:
                post.worker.kill()
                post.attempt.interrupt()
                ledger.send(post.attempt)
            post.worker.close()


def _slots(todo: Sequence[Planned], workers: int | None) -> list[_Slot]:
    """One for every worker: its share of the CPUs, and a GPU as long as there are any."""
    cpus = sorted(os.sched_getaffinity(0))
    count = min(workers or len(cpus), len(todo))
    devices = _gpus() if any(map(_wants_gpu, todo)) else []
    shares = min(count, len(cpus))
    return [
        _Slot(cpus[i % len(cpus) :: shares], devices[i] if i < len(devices) else None)
        for i in range(count)
    ]


def _gpus() -> list[str]:
    """The devices that this process may use, as CUDA_VISIBLE_DEVICES takes them.

    Where that is set, the person's own words, up to the first that names none (-1), as CUDA reads
    it. Else UUIDs: nvidia-smi counts devices in the bus's order, CUDA the fastest first.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        words = (word.strip() for word in visible.split(","))
        return list(takewhile(lambda word: word not in ("", "-1"), words))
    return [gpu["uuid"] for gpu in gpus() if "uuid" in gpu]


def _key(planned: Planned) -> tuple[str, ...]:
    """What two cells must share to be run by one worker."""
    backend = planned.frozen["config"]["backend"]
    return tuple(f"{key}={backend[key]}" for key in sorted(backend))


def _occupy(
    ledger: Ledger, waiting: deque[Planned], posts: list[_Post], free: deque[_Slot]
) -> None:
    """Give every worker that has nothing to do a cell; replace those of another kind."""
    for post in [post for post in posts if post.attempt is None]:
        if waiting and post.key != _key(waiting[0]):
            post.worker.close()
            posts.remove(post)
            free.append(post.slot)
    while waiting:
        key = _key(waiting[0])
        idle = next((p for p in posts if p.attempt is None and p.key == key), None)
        if idle is None:
            slot = _suitable(waiting[0], free, posts)
            if slot is None:
                return
            idle = _Post(Worker(environment(waiting[0], slot.gpu), slot.cpus), key, slot)
            posts.append(idle)
        idle.attempt = ledger.begin(waiting.popleft(), {"timed": "no"})
        idle.ends_at = monotonic() + ledger.manifest.sweep.limit_s
        with suppress(Ended):  # told by the next answer
            idle.worker.tell(timed=False, **idle.attempt.request)


def _suitable(planned: Planned, free: deque[_Slot], posts: Sequence[_Post]) -> _Slot | None:
    """A free slot, taken: one with a GPU for a cell that asks for one, if there are any."""
    wants = _wants_gpu(planned) and any(slot.gpu is not None for slot in free)
    if _wants_gpu(planned) and not wants and any(post.slot.gpu is not None for post in posts):
        return None  # every GPU has its cell
    found = next((slot for slot in free if slot.gpu is not None or not wants), None)
    if found:
        free.remove(found)
    return found


def _vacate(ledger: Ledger, post: _Post, posts: list[_Post], free: deque[_Slot]) -> None:
    """Take in what a worker has answered; let go of one that is gone."""
    attempt = post.attempt
    assert attempt is not None
    try:
        answer = post.worker.hear(post.ends_at - monotonic())
    except Ended as error:
        answer = {"outcome": "failed", "reason": str(error)}
    attempt.end(answer["outcome"], answer["reason"], full=answer.get("full", False))
    if answer["outcome"] == "failed":  # what it has done to its process is not the next cell's
        post.worker.kill()
        posts.remove(post)
        free.append(post.slot)
    ledger.send(attempt)
    post.attempt = None
