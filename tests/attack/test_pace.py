"""How long a measurement takes, what it says meanwhile, and what it says of a process stopped."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import Expkit

from expkit.cli.progress import Pace, line
from expkit.config import compose_cell
from expkit.measure.answer import Answer, another_start, reference, reference_from
from expkit.measure.rounds import run_rounds
from expkit.measure.stability import drift, pauses
from expkit.measure.stopping import Measure, fitted, seconds_left
from expkit.record.result import Now
from expkit.sweeps.manifest import Planned
from expkit.sweeps.pace import Pace as SweepPace
from expkit.sweeps.pace import left, most_rounds

QUICK = Measure(repeats_min=12, repeats_max=40, repeats_per_placement=2, budget_s=0.25)


# How long still


@pytest.mark.parametrize("each_s", [0.001, 0.05, 0.4, 7.0])
def test_at_a_steady_pace_the_time_left_falls_to_nothing(each_s: float) -> None:
    limits = fitted(QUICK, each_s)
    total = max(limits.repeats_min, min(limits.repeats_max, round(QUICK.budget_s / each_s)))
    found = [seconds_left(limits, n, n * each_s) for n in np.arange(0.25, total + 0.1, 0.25)]
    assert all(later <= before + 1e-9 for before, later in itertools.pairwise(found))
    assert found[0] == pytest.approx((total - 0.25) * each_s, rel=0.1)
    assert found[-1] <= each_s


def planned(index: int, **problem: Any) -> Planned:
    """A cell of a sweep, of which the pace asks no more than this."""
    choices = {"problem": "sine", "backend": "numpy", "optimizer": "sgd"}
    frozen = {"config": {"problem": problem, "backend": {}, "steps": 20}, "choices": choices}
    cell = Planned(index, "", f"cell {index}", index, None, frozen)
    cell.__dict__["cell"] = SimpleNamespace(measure=QUICK)  # what would be thawed of a whole one
    return cell


def told(seconds: list[float], *, alike: bool) -> list[str]:
    """What a sweep says as it goes, of cells one after the other whose six rounds take these."""
    cells = [planned(i, n=0 if alike else i) for i in range(len(seconds))]
    pace, now, said = SweepPace(cells, timed=True), 0.0, []
    for cell, whole_s in zip(cells, seconds, strict=True):
        pace.begins(cell, now)
        said.append(pace.told(now))
        for number in range(1, 7):
            pace.measures(cell, number, now)
            for _ in range(10):
                said.append(pace.told(now))
                now += whole_s / 60
        pace.ends(cell, now)
        said.append(pace.told(now))
    return said


def of_all(said: list[str]) -> list[float]:
    """The seconds that are said to be left of the whole sweep."""
    found = (re.search(r"about ([\d.]+) (s|min|h) left$", text) for text in said)
    unit = {"s": 1, "min": 60, "h": 3600}
    return [float(match[1]) * unit[match[2]] for match in found if match]


@pytest.mark.parametrize("growth", [1.5, 4.0, 10.0])
def test_cells_that_grow_give_no_time_left_that_rises(growth: float) -> None:
    said = told([growth**i for i in range(5)], alike=False)
    whole = of_all(said)
    assert all(later <= before for before, later in itertools.pairwise(whole)), said
    assert any("for these, then 3 cells" in text for text in said), "and the others are counted"
    assert of_all(said[-30:]), "the last of them is the whole rest"


def test_cells_alike_tell_of_those_to_come() -> None:
    whole = of_all(told([6.0] * 10, alike=True))
    assert whole[0] == pytest.approx(54, abs=7), "as soon as one has finished"
    assert all(later <= before + 1 for before, later in itertools.pairwise(whole))


def test_a_cell_is_never_foretold_by_another_kind() -> None:
    assert left(3.0, {"large": 2}, {"small": 1.0}) == "about 3 s for these, then 2 cells"
    assert left(None, {"large": 2}, {}) == "then 2 cells"


def test_rounds_are_counted_as_the_engine_counts_them() -> None:
    assert most_rounds(QUICK, 8, 1, 8 * 2 * 0.01) == 13, "the budget of all: 2 s"
    assert most_rounds(QUICK, 1, 1, 10.0) == 6, "of one repeat each"
    assert most_rounds(QUICK, 1, 1, 1e-4) == 20, "repeats_max"


def test_nothing_is_left_where_nothing_runs() -> None:
    said = told([1.0, 1.0], alike=False)
    assert said[-1] == ""
    assert said[len(said) // 2 - 1] == "then 1 cell"


# What a single run says


def test_the_line_says_of_how_many_repeats_and_how_long_still() -> None:
    pace = Pace(QUICK, 200, 1)
    assert line(Now("warming up"), pace, 0.0) == ("warming up", "")
    pace.reached(0, first := Now("", 1, 100, 3.5, 40.0))
    assert line(first, pace, 2.5) == (
        "repeat 1 of at most 6",
        "about 28 s left, loss 3.5, 40 steps/s",
    )
    checking = line(Now("checking the parameters", 1), pace, 2.5)
    assert checking == (
        "repeat 1 of at most 6, about 28 s left: checking the parameters",
        "",
    )


@pytest.mark.parametrize(("own_s", "most"), [(0.2, 12), (0.3, 6)])
def test_what_is_done_around_the_repeats_does_not_change_how_many_there_are(
    own_s: float, most: int
) -> None:
    """As `run_rounds` does it goes by the first repeat's own seconds."""
    pace, elapsed_s = Pace(QUICK, 200, 1), 0.0
    for repeat in range(1, most + 1):
        for done in range(20, 201, 20):
            elapsed_s += own_s / 10 + 0.3 / 10 * (repeat % 3)
            pace.reached(0, now := Now("", repeat, done, None, 200 / own_s))
            assert line(now, pace, elapsed_s)[0] == f"repeat {repeat} of at most {most}"


def drawn(words: list[str], env: dict[str, str], cwd: Path) -> Iterator[str]:
    """What a command draws on a terminal, as it comes."""
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(sys.executable, [sys.executable, "-m", "expkit", *words], env)
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    try:
        while select.select([screen], [], [], 60)[0]:
            try:
                text = os.read(screen, 4096)
            except OSError:  # the other end is closed
                break
            if not text:
                break
            yield text.decode(errors="replace")
    finally:
        os.close(screen)
        os.waitpid(pid, 0)


def test_a_terminal_is_told_of_every_stage(expkit: Expkit) -> None:
    limits = ["measure.repeats_min=6", "measure.repeats_per_placement=1", "measure.budget_s=0"]
    limits.append("measure.settle_s=0")
    words = ["problem=large_dot", "problem.n=200000", "steps=40", "log_every=4", *limits]
    plain = ["tracking=none", "tracking.pictures=false"]
    text = "".join(drawn([*words, *plain], expkit.env, expkit.place))
    stages = (
        "starting backend numpy",
        "building the program",
        "warming up",
        "computing the right answer",
        "repeat 1",
        "checking later steps, and another start",
        "checking that all work was done on the clock",
        "tracing where a step's time goes",
    )
    places = [text.find(stage) for stage in stages]
    assert -1 not in places, text
    assert places == sorted(places), text
    assert re.search(r"repeat [2-6] of at most 6 .*about \d+ s left.*steps/s", text), text


# What a budget costs


class Slow:
    """A source whose repeats take this long on its own clock."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.rounds = seconds, cast("list[int]", [])

    def place(self) -> None:
        self.rounds.append(0)

    def repeat(self) -> float | None:
        self.rounds[-1] += 1
        return self.seconds


@pytest.mark.parametrize("others", [0, 1, 7])
def test_a_repeat_that_takes_long_is_alone_in_its_placement(others: int) -> None:
    """The interval takes six placements; a second repeat in each would double the time."""
    sources = [Slow(8.0 * (1 + others)), *(Slow(0.001) for _ in range(others))]
    measure = Measure(12, 40, 2, budget_s=0.0)
    assert run_rounds(sources, measure, lambda: None) == "budget_s"
    assert [source.rounds for source in sources] == [[1] * 6] * len(sources)


def test_the_reference_takes_no_longer_than_its_time() -> None:
    cell = compose_cell("problem=large_dot", "problem.n=4000000")
    started = time.process_time()
    found = reference(cell.backend, cell.workload, "float64", 10**8, 0.001)
    start = another_start(cell.backend, cell.workload, np.random.default_rng(0))
    shifted = reference_from(cell.backend, cell.workload, "float64", start, step=0, steps=1)
    one_s = (time.process_time() - started) / 4
    assert isinstance(found, Answer)
    assert (found.steps, shifted.steps) == (1, 1)
    assert found.wrong_losses(found.losses) is None
    more = reference(cell.backend, cell.workload, "float64", 10**8, 1e9)
    assert isinstance(more, Answer)
    assert more.steps == 12, f"with all the time that it wants, of {one_s:.2f} s a step"


# What stood still


@pytest.mark.parametrize("n", [6, 12, 40])
@pytest.mark.parametrize("first", [1e-6, 1.0, 1e6])
def test_no_time_falls_by_more_than_all_of_it(n: int, first: float) -> None:
    steep = [first * 0.5**i for i in range(n)]
    found = drift(steep)
    assert found == pytest.approx(0.5 ** (n - 1) - 1)
    back = drift(steep[::-1])
    assert back is not None
    assert found is not None
    assert (1 + found) * (1 + back) == pytest.approx(1), "the way back is the inverse"
    rng = np.random.default_rng(n)
    falling = (np.linspace(2, 0.01, n) * rng.uniform(0.5, 1, n)).tolist()
    assert -1 < (drift(falling) or 0) < 0


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("stopped_s", [1.0, 20.0])
def test_a_repeat_in_which_the_process_stood_still_is_named(threads: int, stopped_s: float) -> None:
    rng = np.random.default_rng(threads)
    cpu = rng.uniform(0.009, 0.011, (12, 4)) * threads
    wall = cpu / threads
    wall[6, 2] += stopped_s
    [said] = pauses(wall.tolist(), cpu.tolist())
    assert said.startswith(f"in repeat 7 the process did not run for {stopped_s:.3g} s of ")
    assert pauses((cpu / threads).tolist(), cpu.tolist()) == []


def test_who_waits_for_a_device_has_not_stood_still() -> None:
    rng = np.random.default_rng(0)
    wall = rng.uniform(0.1, 0.2, (12, 4))
    assert pauses(wall.tolist(), (0.01 * wall).tolist()) == [], "it waits by itself"
    uneven = (0.05 * wall).tolist()
    assert pauses((wall * rng.uniform(1, 5, (12, 4))).tolist(), uneven) == [], "so is the device"
    wall[3, 1] += 20
    assert pauses(wall.tolist(), uneven) != [], "but this is no device"
    wall[3, 1] -= 20
    slower = wall * np.linspace(1, 5, 12)[:, None]
    assert pauses(slower.tolist(), (0.5 * slower).tolist()) == [], "slower, but at work"


def measuring(folder: Path, marks: int) -> bool:
    """Whether the journal has this many repeats."""
    journal = folder / "journal.jsonl"
    return journal.is_file() and journal.read_text().count('"kind": "sample"') >= marks


def await_samples(place: Path, marks: int, process: Any) -> Path:
    """The run's folder, once it has this many repeats."""
    for _ in range(3000):
        for journal in place.rglob("journal.jsonl"):
            if measuring(journal.parent, marks):
                return journal.parent
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise TimeoutError(place)


def stable(folder: Path) -> str:
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    found = [line["tags"]["stable"] for line in lines if "stable" in line.get("tags", {})]
    return str(found[-1])


LONG = ["problem=sine", "problem.n=20000", "steps=4000", "backend.threads=1", "tracking=none"]
MANY = ["measure.repeats_min=16", "measure.repeats_max=16", "tracking.pictures=false"]


def stop_now_and_then(pid: int) -> None:
    """A process group, for a while each time: most of its time it is in a repeat."""
    with suppress(ProcessLookupError):  # it may end before the last of them
        for gap_s in (0.11, 0.17, 0.13, 0.19, 0.07):
            os.killpg(pid, signal.SIGSTOP)
            time.sleep(0.7)
            os.killpg(pid, signal.SIGCONT)
            time.sleep(gap_s)


def test_a_run_that_was_stopped_for_a_while_says_so(expkit: Expkit) -> None:
    process = expkit.start(*LONG, *MANY)
    folder = await_samples(expkit.outputs, 2, process)
    stop_now_and_then(process.pid)
    done = expkit.end(process)
    assert "paused: in repeat" in stable(folder)
    assert "the process did not run for" in done.out


def test_a_sweep_whose_worker_was_stopped_says_so(expkit: Expkit) -> None:
    process = expkit.start("-m", *LONG, *MANY, "seed=1")
    folder = await_samples(expkit.outputs, 2, process)
    [worker] = expkit.workers()
    stop_now_and_then(worker)
    done = expkit.end(process)
    assert "paused: in repeat" in stable(folder)
    assert "unstable: " in done.out
    assert "the process did not run for" in done.out
