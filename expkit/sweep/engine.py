"""Run a sweep's cells in workers: in turn where they are timed, several at once where not.

What goes wrong with a cell, be it the death of its process, is recorded as that cell's end; the
others go on. This process alone sends runs to MLflow.
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import median
from time import monotonic
from types import FrameType
from typing import Any, Protocol

from expkit.measure import parity
from expkit.measure.environment import Activity, Snapshot
from expkit.measure.rounds import run_rounds
from expkit.measure.stopping import is_narrow
from expkit.measure.verdict import judge
from expkit.runner import record_failure
from expkit.sweep.manifest import Manifest, Planned
from expkit.sweep.worker import Ended, Message, Worker
from expkit.tracking import journal
from expkit.tracking.tracker import Tracker

ALIVE = 8
"""Workers that are alive together by default, where one at a time is measured."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Screen(Protocol):
    """Shows how a sweep goes."""

    def begins(self, planned: Planned) -> None: ...

    def ends(self, planned: Planned, outcome: str, reason: str) -> None: ...

    def says(self, text: str) -> None: ...


class Stop:
    """Ctrl-C, counted: the first lets what is running finish, the second ends it."""

    def __init__(self, screen: Screen) -> None:
        self.asked, self._screen = False, screen

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._screen.says("interrupted: what is being measured is finished; again ends it now")


@dataclass
class Member:
    """One cell of a team, and the worker that holds it: a source of repeats."""

    planned: Planned
    folder: Path
    tags: dict[str, str]
    worker: Worker
    left_s: float
    tracker: Tracker | None
    rounds: list[list[float]] = field(default_factory=list)
    facts: Mapping[str, str] = field(default_factory=dict)
    expected_s: float = 0.0
    ready: bool = False
    ended: tuple[str, str] | None = None
    """Outcome and reason, once there is one."""

    def ask(self, **request: Any) -> Message:
        """Hand it a request and wait for the answer; then it sleeps. `done` if it is gone."""
        begun = monotonic()
        try:
            if request:
                self.worker.tell(**request)
            answer = self.worker.hear(self.left_s)
            if answer["is"] == "done":
                self.ended = answer["outcome"], answer["reason"]
        except Ended as error:
            self.ended = "failed", str(error)
            answer = {"is": "done"}
        self.worker.sleep()
        self.left_s -= monotonic() - begun
        return answer

    def place(self) -> None:
        if not self.ended:
            self.rounds.append([])
            self.ask(do="place")

    def repeat(self) -> bool:
        answer = {} if self.ended else self.ask(do="repeat")
        seconds = answer.get("seconds")
        if seconds is None:
            return False
        self.rounds[-1].append(seconds)
        if self.tracker:
            self.tracker.refresh(self.folder)
        return True

    @property
    def lives(self) -> bool:
        """Whether it has times, and may have more."""
        return self.ready and self.ended is None and bool(self.rounds) and bool(self.rounds[-1])


def run(
    manifest: Manifest, todo: Sequence[Planned], tracker: Tracker | None, screen: Screen
) -> bool:
    """Run these cells of a sweep; returns whether it was asked to stop before the end.

    Raises:
        KeyboardInterrupt: it was asked twice; what was running is ended and recorded so.
    """
    with _interruptible(screen) as stop:
        if manifest.sweep.timing:
            for team in teams(todo, manifest.sweep.workers or ALIVE):
                if stop.asked:
                    break
                _measure(manifest, team, tracker, screen)
        else:
            _fill(manifest, todo, tracker, screen, stop)
    return stop.asked


def end_what_was_left(manifest: Manifest) -> None:
    """End the journals of a sweep whose process was killed, and its workers with it."""
    for planned in manifest.cells:
        for folder in manifest.attempts(planned):
            begun = (folder / journal.FILE).exists()
            if begun and journal.is_ended(folder):
                continue
            opening = journal.opening(folder) if begun else None
            if opening is None or journal.is_dead(opening["owner"]):
                tags = opening["tags"] if opening else _tags(manifest, planned)
                end = "interrupted", "its sweep was killed"
                record_failure(planned.cell, folder, tags, *end)


@contextmanager
def _interruptible(screen: Screen) -> Iterator[Stop]:
    stop = Stop(screen)
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


def environment(planned: Planned) -> dict[str, str]:
    """What a worker's libraries read when they are imported."""
    threads = planned.frozen["config"]["backend"].get("threads")
    return dict.fromkeys(THREADS, str(threads)) if threads else {}


def _tags(manifest: Manifest, planned: Planned) -> dict[str, str]:
    return {"sweep": manifest.id, "sweep.cell": str(planned.index)}


def _measure(
    manifest: Manifest, team: Sequence[Planned], tracker: Tracker | None, screen: Screen
) -> None:
    """Measure cells in turn, each in an interpreter of its own, one awake at a time."""
    together = f"{manifest.id}/{datetime.now():%H-%M-%S-%f}"
    with ExitStack() as stack:
        members = []
        for planned in team:
            worker = Worker(environment(planned))
            stack.callback(worker.kill)
            tags = _tags(manifest, planned) | {"interleaved": together}
            folder = manifest.next_attempt(planned)
            left_s = manifest.sweep.limit_s
            members.append(Member(planned, folder, tags, worker, left_s, tracker))
        try:
            _take_turns(members, screen)
        except BaseException:
            for member in members:
                member.worker.kill()
                if member.ended is None:
                    member.ended = "interrupted", "stopped before its end"
            raise
        finally:
            for member in members:
                assert member.ended is not None
                _close(member.planned, member.folder, member.tags, *member.ended)
                _send(tracker, member.folder)
                screen.ends(member.planned, *member.ended)


def _take_turns(members: Sequence[Member], screen: Screen) -> None:
    for member in members:  # importing is not timed: all at once
        screen.begins(member.planned)
        with suppress(Ended):
            cell = member.planned.frozen
            request = {"cell": cell, "folder": str(member.folder), "tags": member.tags}
            member.worker.tell(timed=True, **request)
    for member in members:
        member.ask()
    with _quiet(members):
        for member in members:
            if not member.ended:
                _prepare(member)
    _require_alike(members)
    ready = [member for member in members if member.ready and not member.ended]
    for member in ready:
        _send(member.tracker, member.folder)
    with _quiet(ready):
        pids = [member.worker.pid for member in ready]
        start = Snapshot.take(pids=pids)
        stopped_by = _rounds(ready)
        activity = asdict(Activity.between(start, Snapshot.take(pids=pids)))
        for member in ready:
            if not member.ended:
                tags, unlike = _held_against(member, members)
                member.ask(
                    do="stop", stopped_by=stopped_by, activity=activity, tags=tags, unlike=unlike
                )
    waiting = [member for member in members if not member.ended]
    for member in waiting:
        with suppress(Ended):  # told by the next line
            member.worker.tell(do="draw")
    for member in waiting:
        member.ask()


@contextmanager
def _quiet(members: Sequence[Member]) -> Iterator[None]:
    """Nothing of ours beside the clock; first let long runs appear in MLflow."""
    with ExitStack() as quiet:
        for member in members:
            if member.tracker:
                expected_s = member.expected_s * len(members)
                quiet.enter_context(member.tracker.quiet(member.folder, expected_s))
        yield


def _prepare(member: Member) -> None:
    answer = member.ask(do="prepare")
    if answer["is"] == "ready":
        member.ready, member.facts = True, answer["facts"]
        member.expected_s = answer["expected_s"]


def _require_alike(members: Sequence[Member]) -> None:
    """With `measure.parity=require`, end what does not do its baseline's work."""
    for member in members:
        required = member.ready and member.planned.cell.measure.parity == "require"
        if required and (unlike := _unlike(member, members)):
            member.ask(do="refuse", unlike=unlike)


def _rounds(ready: Sequence[Member]) -> str | None:
    if not ready:
        return None
    measure = ready[0].planned.cell.measure

    def enough() -> str | None:
        alive = (member for member in ready if member.lives)
        middles = [[median(repeats) for repeats in member.rounds] for member in alive]
        return "target_ci" if all(is_narrow(measure, found) for found in middles) else None

    # What one cell may take, each of them may.
    measure = replace(measure, budget_s=measure.budget_s * len(ready))
    return run_rounds(ready, measure, enough)


def _held_against(member: Member, members: Sequence[Member]) -> tuple[dict[str, str], list[str]]:
    """A cell's verdict against its baseline, as a tag, and where the two do unlike work."""
    base, unlike = _baseline(member, members), _unlike(member, members)
    tags = {"parity": "not like for like: " + "; ".join(unlike)} if unlike else {}
    if base and base.lives and member.lives:
        verdict = judge(base.rounds, member.rounds, member.planned.cell.measure.threshold)
        tags["verdict"] = f"{verdict.word} ({verdict.ratio:.3f} times {base.planned.title})"
    return tags, unlike


def _baseline(member: Member, members: Sequence[Member]) -> Member | None:
    found = [m for m in members if m.planned.index == member.planned.baseline and m.ready]
    return found[0] if found else None


def _unlike(member: Member, members: Sequence[Member]) -> list[str]:
    """Where a cell does not do the work that its baseline does; not the optimizer, by intent."""
    base = _baseline(member, members)
    if base is None:
        return []
    meant = {"optimizer"} if base.planned.cell.names != member.planned.cell.names else set()
    names = {key: said for key, said in parity.WORK.items() if key not in meant}
    return parity.differences(base.facts, member.facts, names)


@dataclass
class _Post:
    """A worker that runs one cell after another."""

    worker: Worker
    key: tuple[str, ...]
    cpus: Sequence[int]
    planned: Planned | None = None
    folder: Path = Path()
    ends_at: float = 0.0


def _fill(
    manifest: Manifest,
    todo: Sequence[Planned],
    tracker: Tracker | None,
    screen: Screen,
    stop: Stop,
) -> None:
    """Keep as many cells running at once as there are workers; none of them is timed.

    A worker takes cells of one backend and its settings, one after another: what a library fixes
    when it is imported is then right for all of them. Each has its share of the CPUs to itself.
    """
    cpus = sorted(os.sched_getaffinity(0))
    count = min(manifest.sweep.workers or len(cpus), len(todo))
    free: deque[Sequence[int]] = deque(
        cpus[i % len(cpus) :: min(count, len(cpus))] for i in range(count)
    )
    waiting = deque(sorted(todo, key=_key))
    posts: list[_Post] = []
    try:
        while (waiting and not stop.asked) or any(post.planned for post in posts):
            if not stop.asked:
                _occupy(manifest, waiting, posts, free, screen)
            busy = [post for post in posts if post.planned]
            soonest = min(post.ends_at for post in busy)
            heard = select.select([p.worker for p in busy], [], [], max(0, soonest - monotonic()))
            for post in busy:
                if post.worker in heard[0] or post.ends_at <= monotonic():
                    _vacate(manifest, post, posts, free, tracker, screen)
    finally:
        for post in posts:
            if post.planned:
                post.worker.kill()
                end = "interrupted", "stopped before its end"
                _close(post.planned, post.folder, _untimed(manifest, post.planned), *end)
                _send(tracker, post.folder)
                screen.ends(post.planned, *end)
            post.worker.close()


def _key(planned: Planned) -> tuple[str, ...]:
    """What two cells must share to be run by one worker."""
    backend = planned.frozen["config"]["backend"]
    return tuple(f"{key}={backend[key]}" for key in sorted(backend))


def _occupy(
    manifest: Manifest,
    waiting: deque[Planned],
    posts: list[_Post],
    free: deque[Sequence[int]],
    screen: Screen,
) -> None:
    """Give every worker that has nothing to do a cell; replace those of another kind."""
    for post in [post for post in posts if post.planned is None]:
        if waiting and post.key != _key(waiting[0]):
            post.worker.close()
            posts.remove(post)
            free.append(post.cpus)
    while free and waiting and len([p for p in posts if p.planned is None]) < len(waiting):
        cpus = free.popleft()
        worker = Worker(environment(waiting[0]), cpus)
        posts.append(_Post(worker, _key(waiting[0]), cpus))
    for post in posts:
        if waiting and post.planned is None and post.key == _key(waiting[0]):
            planned = waiting.popleft()
            post.planned, post.folder = planned, manifest.next_attempt(planned)
            post.ends_at = monotonic() + manifest.sweep.limit_s
            screen.begins(planned)
            tags = _untimed(manifest, planned)
            with suppress(Ended):  # told by the next answer
                request = {"cell": planned.frozen, "folder": str(post.folder), "tags": tags}
                post.worker.tell(timed=False, **request)


def _vacate(
    manifest: Manifest,
    post: _Post,
    posts: list[_Post],
    free: deque[Sequence[int]],
    tracker: Tracker | None,
    screen: Screen,
) -> None:
    """Take in what a worker has answered; let go of one that is gone."""
    assert post.planned is not None
    try:
        answer = post.worker.hear(post.ends_at - monotonic())
        end = answer["outcome"], answer["reason"]
    except Ended as error:
        end = "failed", str(error)
        post.worker.kill()
        posts.remove(post)
        free.append(post.cpus)
    _close(post.planned, post.folder, _untimed(manifest, post.planned), *end)
    _send(tracker, post.folder)
    screen.ends(post.planned, *end)
    post.planned = None


def _untimed(manifest: Manifest, planned: Planned) -> dict[str, str]:
    return _tags(manifest, planned) | {"timed": "no"}


def _close(
    planned: Planned, folder: Path, tags: Mapping[str, str], outcome: str, reason: str
) -> None:
    """See to it that the cell's journal has its end."""
    if not (folder / journal.FILE).exists() or not journal.is_ended(folder):
        record_failure(planned.cell, folder, tags, outcome, reason)


def _send(tracker: Tracker | None, folder: Path) -> None:
    if tracker and (folder / journal.FILE).exists():
        tracker.update(folder)
