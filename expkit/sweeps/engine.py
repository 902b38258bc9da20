"""Run a sweep's cells in separate processes: in turn if they are timed, else several at once.

A cell's failure, including the death of its process, is recorded as the end of its run; the other
cells go on. Only this process sends runs to MLflow and draws the pictures of timed cells.
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import takewhile
from time import monotonic
from types import FrameType

from expkit.child import Child, Gone, Late
from expkit.conduct import conduct
from expkit.measure.environment import gpus
from expkit.outcome import Outcome
from expkit.remote import Attempt, Done, RemoteTrial, end_prestarted, environment, worker
from expkit.report import plots
from expkit.sweeps.manifest import Manifest, Planned
from expkit.tracking.tracker import Tracker

ALIVE = 8
"""Default number of workers alive at once in a timed sweep, where one at a time is measured."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


class ProgressReporter:
    """Reports the progress of a sweep; this one shows nothing."""

    def begins(self, planned: Planned) -> None: ...

    def measures(self, planned: Planned, rounds: int) -> None: ...

    def ends(self, planned: Planned, outcome: str, reason: str) -> None: ...

    def says(self, text: str) -> None: ...


SILENT = ProgressReporter()


class GracefulInterrupt(AbstractContextManager["GracefulInterrupt"]):
    """Handles Ctrl-C: the first lets the running cells finish, the second ends them."""

    def __init__(self, reporter: ProgressReporter, tracker: Tracker | None) -> None:
        self.asked, self._reporter, self._tracker = False, reporter, tracker
        self._before = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> GracefulInterrupt:
        with suppress(ValueError):  # not the main thread, so no signal comes here
            signal.signal(signal.SIGINT, self)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, self._before)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if callable(self._before):
                self._before(number, frame)
            raise KeyboardInterrupt
        self.asked = True
        if self._tracker:
            self._tracker.hurry()
        self._reporter.says("interrupted: what is being measured is finished; again ends it now")


@dataclass(frozen=True)
class SweepContext:
    """Where the runs of a sweep are recorded and reported."""

    manifest: Manifest
    tracker: Tracker | None
    reporter: ProgressReporter

    def begin(self, planned: Planned, mark: Mapping[str, str]) -> Attempt:
        """Begin a new run of a cell, with these additional tags."""
        tags = {"sweep": self.manifest.id, "sweep.cell": str(planned.index), **mark}
        shown = {"mlflow.runName": planned.name, "mlflow.runColor": planned.colour}
        tags |= {tag: said for tag, said in shown.items() if said}
        self.reporter.begins(planned)
        folder = self.manifest.next_attempt(planned)
        ended = partial(self.reporter.ends, planned)
        checkpoint = self.manifest.checkpoint(planned)
        return Attempt(planned.frozen, folder, tags, self.tracker, ended, checkpoint=checkpoint)


def run(
    manifest: Manifest,
    todo: Sequence[Planned],
    tracker: Tracker | None,
    reporter: ProgressReporter = SILENT,
) -> bool:
    """Run these cells of a sweep; return whether Ctrl-C asked to stop it.

    Raises:
        KeyboardInterrupt: a second Ctrl-C. The running cells are ended and recorded as interrupted.
        OSError: the disk is full. The running cells are ended as well.
    """
    context = SweepContext(manifest, tracker, reporter)
    with GracefulInterrupt(reporter, tracker) as stop:
        if manifest.sweep.timing:
            for team in teams(todo, manifest.sweep.workers or ALIVE):
                if stop.asked:
                    break
                _measure(team, context)
        else:
            _fill(todo, context, stop)
    return stop.asked


def teams(todo: Iterable[Planned], most: int) -> list[list[Planned]]:
    """Divide cells into teams that take turns: cells of one problem, together with their baseline.

    If more than `most` cells share a baseline, the rest follow in teams without it.
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


def _wants_gpu(planned: Planned) -> bool:
    """Whether a cell takes any GPU (`cuda`); one that names a GPU (`cuda:1`) has chosen it."""
    return bool(planned.frozen["config"]["backend"].get("device") == "cuda")


def _measure(team: Sequence[Planned], context: SweepContext) -> None:
    """Measure cells in turn, each in its own interpreter; all but one are stopped meanwhile."""
    mark = {"interleaved": f"{context.manifest.id}/{datetime.now():%H-%M-%S-%f}"}
    places = {planned.index: number for number, planned in enumerate(team)}
    bases = [None if p.baseline is None else places.get(p.baseline) for p in team]
    with ExitStack() as stack:
        trials = []
        for planned in team:
            placed = partial(context.reporter.measures, planned)
            attempt, timeout_s = context.begin(planned, mark), context.manifest.sweep.limit_s
            trial = RemoteTrial(planned.cell, attempt, placed=placed, timeout_s=timeout_s)
            trials.append(stack.enter_context(trial))
        end_prestarted()
        if any(trial.cell.tracking.pictures for trial in trials):
            with suppress(Exception):  # reported when they are drawn
                plots.preload()
        for trial in trials:  # they import at the same time, as that is not timed
            trial.wait()
        processes = trials[0].cell.measure.processes
        conduct(trials, bases, compared=False, processes=processes)
        for trial in trials:
            if missing := plots.draw_wanted(trial.cell, trial.folder):
                context.reporter.says(f"{trial.cell.title}: {missing}")


@dataclass
class _Post:
    """A share of the CPUs, perhaps a GPU, and the worker that runs one cell after another on them.

    Attributes:
        worker: None before the first cell, and after a cell that failed.
        key: the backend settings that all cells of this worker have.
        attempt: the run that it is at; None if it is idle.
        ends_at: when that run has taken too long, on the clock of `monotonic`.
    """

    cpus: Sequence[int]
    gpu: str | None
    worker: Child | None = None
    key: tuple[str, ...] = ()
    attempt: Attempt | None = None
    ends_at: float = 0.0

    @property
    def signs(self) -> Sequence[int]:
        """The descriptors to wait on for the worker's answer."""
        return self.worker.signs if self.worker and self.attempt else ()


def _fill(todo: Sequence[Planned], context: SweepContext, stop: GracefulInterrupt) -> None:
    """Run cells without timing them, as many at once as there are workers.

    All cells of a worker have the same backend and backend settings, because libraries read some of
    these only when they are imported.
    """
    posts = _posts(todo, context.manifest.sweep.workers)
    waiting = deque(sorted(todo, key=_key))
    end_prestarted()
    try:
        while True:
            if not stop.asked:
                _occupy(context, waiting, posts)
            busy = [post for post in posts if post.attempt]
            if not busy:
                return
            soonest = min(post.ends_at for post in busy)
            signs = [sign for post in busy for sign in post.signs]
            heard = select.select(signs, [], [], max(0, soonest - monotonic()))[0]
            for post in busy:
                if post.ends_at <= monotonic() or not set(heard).isdisjoint(post.signs):
                    _vacate(post)
    finally:
        for post in posts:
            if post.worker and post.attempt:
                post.worker.kill()
                post.attempt.interrupt()
                post.attempt.send()
            elif post.worker:
                post.worker.close()


def _environment(planned: Planned, gpu: str | None) -> dict[str, str]:
    """Return the environment variables that a worker's libraries read at import."""
    env = environment(planned.frozen["config"])
    if gpu is not None and _wants_gpu(planned):
        env[VISIBLE] = gpu
    return env


def _posts(todo: Sequence[Planned], workers: int | None) -> list[_Post]:
    """Return one post per worker: each has a share of the CPUs, and a GPU while any is left."""
    cpus = sorted(os.sched_getaffinity(0))
    count = min(workers or len(cpus), len(todo))
    devices = _gpus() if any(map(_wants_gpu, todo)) else []
    shares = min(count, len(cpus))
    return [
        _Post(cpus[i % len(cpus) :: shares], devices[i] if i < len(devices) else None)
        for i in range(count)
    ]


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, in the form of CUDA_VISIBLE_DEVICES.

    If that is set, these are its entries up to the first that is empty or -1, where CUDA stops too.
    Otherwise they are UUIDs: nvidia-smi numbers GPUs in bus order, CUDA by default by speed.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        words = (word.strip() for word in visible.split(","))
        return list(takewhile(lambda word: word not in ("", "-1"), words))
    return [gpu["uuid"] for gpu in gpus() if "uuid" in gpu]


def _key(planned: Planned) -> tuple[str, ...]:
    """Return the backend settings, which all cells of one worker must share."""
    backend = planned.frozen["config"]["backend"]
    return tuple(f"{key}={backend[key]}" for key in sorted(backend))


def _occupy(context: SweepContext, waiting: deque[Planned], posts: Sequence[_Post]) -> None:
    """Give the next cells to idle posts. A worker with other backend settings is replaced."""
    while waiting and (post := _suitable(waiting[0], posts)):
        planned = waiting.popleft()
        if post.worker and post.key != _key(planned):
            post.worker.close()
            post.worker = None
        if post.worker is None:
            post.worker, post.key = worker(_environment(planned, post.gpu)), _key(planned)
            post.worker.pin(post.cpus)
        post.attempt = context.begin(planned, {"timed": "no"})
        post.ends_at = monotonic() + context.manifest.sweep.limit_s
        with suppress(Gone):  # `hear` reports it
            post.worker.tell(post.attempt.begin(timed=False))


def _suitable(planned: Planned, posts: Sequence[_Post]) -> _Post | None:
    """Return an idle post for a cell, one with a GPU if it wants that; None if it has to wait."""
    with_gpu = [post for post in posts if post.gpu is not None] if _wants_gpu(planned) else []
    idle = [post for post in with_gpu or posts if post.attempt is None]
    return max(idle, key=lambda post: post.key == _key(planned), default=None)


def _vacate(post: _Post) -> None:
    """End a worker's cell with its answer; kill the worker if the cell failed or took too long."""
    assert post.worker is not None
    assert post.attempt is not None
    try:
        done = post.worker.hear(0.0)
    except Gone as error:
        done = Done(Outcome.FAILED, f"its process {error}")
    except Late:
        if post.ends_at > monotonic():
            return
        done = Done(Outcome.FAILED, "it took longer than sweep.limit_s allows")
    post.attempt.end(done)
    if done.outcome == Outcome.FAILED:  # no other cell gets this process
        post.worker.kill()
        post.worker = None
    post.attempt.send()
    post.attempt = None
