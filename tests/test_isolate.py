"""`expkit compare --isolate`: each cell in its own process; and threads where they share one."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expkit.measure.idle import Lookout, threads_at_work, worked_meanwhile
from expkit.record.stored import load
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Done, Expkit

NONE = "tracking=none"
SINE = ("problem=sine", "steps=300", NONE)
TWELVE = ("measure.repeats_min=12", "measure.repeats_max=12")
LINE = ("problem=linear", "steps=3000", "optimizer.lr=1e-5", NONE)
"""Where what a call takes is most of a step."""
OWN = "measured  each cell in a process of its own"

PLUGIN = """
    import hashlib
    import os
    import threading
    from dataclasses import dataclass
    from expkit.authors import StepProgram, manual
    from expkit_plugins.numpy.backend import NumpyBackend

    def work():
        block = bytes(10**8)
        while True:
            hashlib.sha256(block).digest()  # without the interpreter's lock

    class Raising(StepProgram):
        def advance(self, n):
            raise RuntimeError("the device is gone")

    @dataclass(frozen=True)
    class Backend(NumpyBackend):
        spins: bool = False
        raises: bool = False

        def build(self, workload):
            if self.spins and not any(thread.name == "spins" for thread in threading.enumerate()):
                threading.Thread(target=work, name="spins", daemon=True).start()
            program = Raising if self.raises else StepProgram
            return program(self, workload, manual(self.xp))

        def describe(self):
            return super().describe() | {"process": os.getpid()}
"""


@pytest.fixture
def other(expkit: Expkit) -> Expkit:
    """With a backend that is not expkit's own."""
    option = "_target_: broken_plugin.Backend\nspins: false\nraises: false\n"
    expkit.plugin({"__init__.py": PLUGIN, "conf/backend/other.yaml": option})
    return expkit


def sides(expkit: Expkit) -> tuple[Path, Path]:
    [a] = expkit.outputs.glob("comparisons/*/*/a")
    return a, a.with_name("b")


def processes(expkit: Expkit) -> list[int]:
    """The process of each side, as its backend says it."""
    found = []
    for folder in sides(expkit):
        opening = journal.opening(folder)
        assert opening is not None
        found.append(int(opening["params"]["used.process"]))
    return found


def rows(done: Done, name: str) -> list[str]:
    lines = (line.strip() for line in done.out.splitlines())
    return [line.partition("  ")[2] for line in lines if line.startswith(f"{name}  ")]


# Processes


@pytest.mark.alone  # the verdict is of few repeats
def test_with_isolate_two_cells_of_our_own_are_held_against_each_other_too(expkit: Expkit) -> None:
    forty = ("measure.repeats_min=40", "measure.repeats_max=40")  # the machine's speed may jump
    done = expkit("compare", "backend.fast=true", "backend.fast=false", *LINE, *forty, "--isolate")
    assert done.err == "", done
    assert OWN in done.out
    assert rows(done, "verdict")[0].startswith("SLOWER")
    assert done.status == 1
    a, b = (load(folder) for folder in sides(expkit))
    assert (a.outcome, b.outcome) == ("ok", "ok")
    assert a.interleaved == b.interleaved is not None
    assert len(a.rounds) == len(b.rounds) == 20
    stored = expkit("compare", *map(str, sides(expkit)))
    assert stored == done, "and later it is told from the record in the same words"
    assert expkit.processes() == []


def test_a_backend_that_is_not_our_own_has_its_own_process(other: Expkit) -> None:
    done = other("compare", "backend=other", "backend=other", *SINE, *TWELVE)
    assert done.err == "", done
    assert OWN in done.out
    assert len(set(processes(other))) == 2


def test_no_isolate_takes_it_back(other: Expkit) -> None:
    done = other("compare", "backend=other", "backend=other", *SINE, *TWELVE, "--no-isolate")
    assert done.err == "", done
    assert OWN not in done.out
    assert len(set(processes(other))) == 1


def test_our_own_share_a_process_where_nothing_is_said(expkit: Expkit) -> None:
    done = expkit("compare", "backend=numpy", "backend=numpy", *SINE, *TWELVE)
    assert done.err == "", done
    assert OWN not in done.out


def test_a_side_that_raises_is_that_sides_affair(other: Expkit) -> None:
    done = other("compare", "backend=numpy", "backend=other backend.raises=true", *SINE, *TWELVE)
    assert (done.status, done.err) == (1, ""), done
    assert rows(done, "verdict") == ["MAY NOT BE COMPARED"]
    assert "the device is gone" in rows(done, "because")[0]
    a, b = (load(folder) for folder in sides(other))
    assert (a.outcome, b.outcome) == ("ok", "failed")


def test_an_interrupt_ends_both_processes_and_keeps_what_there_is(expkit: Expkit) -> None:
    endless = ("measure.repeats_min=100000", "measure.repeats_max=100000")
    process = expkit.start("compare", "seed=0", "seed=0", *SINE, *endless, "--isolate")
    deadline = time.monotonic() + 60
    while not any(b'"sample"' in file.read_bytes() for file in expkit.outputs.rglob(journal.FILE)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    done = expkit.end(process)
    assert (done.status, len(done.err.splitlines())) == (130, 1), done
    assert [load(folder).outcome for folder in sides(expkit)] == ["interrupted"] * 2
    assert expkit.processes() == []


def test_bad_input_is_one_line(expkit: Expkit) -> None:
    done = expkit("compare", "runs/a", "runs/b", "--isolate")
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done
    assert "--isolate" in done.err


@pytest.mark.parametrize("word", ["--isolate", "--no-isolate"])
def test_fresh_processes_measure_both_sides_again(expkit: Expkit, word: str) -> None:
    few = ("measure.repeats_min=2", "measure.repeats_max=2", "measure.repeats_per_placement=1")
    words = ("backend.fast=true", "backend.fast=false", *LINE, *few, "measure.processes=6", word)
    done = expkit("compare", *words)
    assert done.err == "", done
    assert rows(done, "verdict")[0].startswith(("SLOWER", "CAN'T TELL")), "of two repeats each"
    assert "in 6 processes" in rows(done, "ratio")[0]
    assert [len(load(folder).processes) for folder in sides(expkit)] == [6, 6]
    assert expkit.processes() == []


# Threads that go on


@pytest.mark.alone  # threads at work are counted
def test_a_thread_that_goes_on_is_named_where_it_can_slow_the_other(other: Expkit) -> None:
    pair = ("backend=numpy", "backend=other backend.spins=true", *SINE, *TWELVE)
    done = other("compare", *pair, "--no-isolate")
    worked = "another thread of this process worked meanwhile"
    assert [row[0] for row in rows(done, "unstable") if worked in row] == ["A", "B"], done


@pytest.mark.alone  # threads at work are counted
def test_in_processes_of_their_own_it_cannot(other: Expkit) -> None:
    pair = ("backend=numpy", "backend=other backend.spins=true", *SINE, *TWELVE)
    done = other("compare", *pair)
    assert OWN in done.out
    assert "another thread" not in done.out


def without_the_lock() -> None:
    hashlib.sha256(bytes(10**6)).digest()


def with_the_lock() -> None:
    sum(range(1000))


@pytest.mark.alone  # threads at work are counted
@pytest.mark.parametrize("does", [without_the_lock, with_the_lock])
def test_a_process_at_rest_has_no_thread_at_work_and_one_that_goes_on_is_seen(
    does: Callable[[], None],
) -> None:
    assert worked_meanwhile([threads_at_work() for _ in range(9)]) == []
    lookout = Lookout()
    with others_doing(does):
        found = [threads_at_work() for _ in range(9)]
        begun = time.monotonic()
        while time.monotonic() < begun + 1:
            lookout.look()
    assert worked_meanwhile(found) != []
    assert lookout.found == [1], "and looking takes next to none of the time"
    assert worked_meanwhile([threads_at_work() for _ in range(9)]) == []


@contextmanager
def others_doing(what: Callable[[], None]) -> Iterator[None]:
    """Another thread does this over and over."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            what()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
