"""`expkit compare`: two sides measured in turn, or two runs that are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expkit.record.stored import load
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Done, Expkit

TWELVE = ("measure.repeats_min=12", "measure.repeats_max=12")
FORTY = ("measure.repeats_min=40", "measure.repeats_max=40")
"""Enough for a verdict, even where the machine's speed jumps."""
NONE = "tracking=none"
STATUS = {"SLOWER": 1, "FASTER": 0, "SAME": 0, "CAN'T TELL": 3, "UNLIKE": 4}
SLOW, FAST = "backend.fast=false", "backend.fast=true"
"""The same work by a step at a time, and by a step that is recorded once."""
LARGE, SMALL = "problem.n=8000", "problem.n=100"
SINE = ("problem=sine", "steps=300", NONE)
TINY = ("problem=linear", "optimizer=adam", "steps=1000", NONE)


def said(done: Done) -> dict[str, list[str]]:
    """The rows of the table by their names."""
    rows: dict[str, list[str]] = {}
    for line in done.out.splitlines():
        name, _, text = line.strip().partition("  ")
        rows.setdefault(name, []).append(text)
    return rows


def verdict(done: Done) -> str:
    """The law of a verdict: its word, its exit status, and a ratio beside it."""
    assert done.err == "", done
    [text] = said(done)["verdict"]
    word = next(word for word in STATUS if text.startswith(word))
    assert done.status == STATUS[word], done
    assert "B takes" in said(done)["ratio"][0]
    assert word == "UNLIKE" or "2%" in text, "the threshold is told"
    return word


def sides(expkit: Expkit) -> tuple[Path, Path]:
    [place] = (expkit.outputs / "comparisons").glob("*/*")
    return place / "a", place / "b"


def refuses(expkit: Expkit, done: Done, *names: str) -> None:
    """The law of bad input."""
    assert done.status == 2, done
    assert "Traceback" not in done.out + done.err
    assert len(done.err.splitlines()) == 1, done.err
    for name in names:
        assert name in done.err
    assert list(expkit.outputs.rglob("journal.jsonl")) == []


# Measured now


@pytest.mark.alone  # the verdict is of few repeats
@pytest.mark.skipif(not find_spec("torch"), reason="needs two backends")
def test_two_backends_measured_in_turn(expkit: Expkit) -> None:
    words = ("backend=numpy", "backend=torch", "problem=linear", NONE, *FORTY)
    done = expkit("compare", *words)
    assert verdict(done) == "SLOWER", "a batch of 20 is all overhead, and NumPy's is replayed"
    a, b = map(load, sides(expkit))
    assert (a.outcome, b.outcome) == ("ok", "ok")
    assert a.interleaved == b.interleaved is not None
    for run in (a, b):
        assert [len(repeats) for repeats in run.rounds] == [2] * 20
    assert "not like for like" not in done.out


@pytest.mark.alone  # the verdict is of few repeats
@pytest.mark.parametrize(
    ("a", "b", "word"),
    [(FAST, SLOW, "SLOWER"), (SLOW, FAST, "FASTER")],
    ids=["slower", "faster"],
)
def test_the_verdict_is_b_held_against_a_and_is_said_again_of_the_stored_two(
    expkit: Expkit, a: str, b: str, word: str
) -> None:
    done = expkit("compare", a, b, *TINY, *FORTY)
    assert verdict(done) == word
    assert "unlike" not in said(done)
    again = expkit("compare", *map(str, sides(expkit)))
    assert verdict(again) == word
    assert said(again)["ratio"] == said(done)["ratio"]
    back = expkit("compare", *map(str, reversed(sides(expkit))))
    assert verdict(back) == {"SLOWER": "FASTER", "FASTER": "SLOWER"}[word]
    assert word in tags(sides(expkit)[1])["verdict"]


def test_a_thing_held_against_itself_is_neither(expkit: Expkit) -> None:
    wide = ("measure.threshold=0.5", *TWELVE)
    done = expkit("compare", "backend=numpy", "backend=numpy", *SINE, *wide)
    assert said(done)["verdict"][0].startswith(("SAME", "CAN'T TELL")), done
    assert done.status in (0, 3)
    assert "50%" in done.out


def test_too_few_rounds_cannot_tell(expkit: Expkit) -> None:
    few = ("measure.repeats_min=4", "measure.repeats_max=4")
    done = expkit("compare", SLOW, FAST, *TINY, *few)
    assert verdict(done) == "CAN'T TELL"
    assert "no interval; measured in turn, in 2 placements" in said(done)["ratio"][0]


@pytest.mark.parametrize("turned", [False, True])
def test_unlike_work_is_neither_faster_nor_slower(expkit: Expkit, turned: bool) -> None:
    pair = [SMALL, LARGE]
    done = expkit("compare", *(reversed(pair) if turned else pair), *SINE, *TWELVE)
    assert verdict(done) == "UNLIKE"
    [unlike] = [text for text in said(done)["unlike"] if "problem:" in text]
    assert "n=100" in unlike
    assert "n=8000" in unlike
    again = expkit("compare", *map(str, sides(expkit)))
    assert verdict(again) == "UNLIKE"
    assert said(again)["ratio"] == said(done)["ratio"]
    assert tags(sides(expkit)[1])["verdict"].startswith("UNLIKE (")


def test_what_is_unlike_is_listed_and_can_be_forbidden(expkit: Expkit) -> None:
    words = ("compare", "backend.dtype=float64", "backend.dtype=float32", *SINE, *TWELVE)
    done = expkit(*words)
    assert verdict(done) == "UNLIKE"
    assert "not like for like: dtype: float64 against float32" in said(done)["unlike"]
    shutil.rmtree(expkit.outputs)
    done = expkit(*words, "measure.parity=require")
    assert (done.status, done.out) == (1, "")
    assert len(done.err.splitlines()) == 1, done.err
    assert "dtype: float64 against float32" in done.err


@pytest.mark.alone  # the processors in use are counted
def test_threads_are_each_sides_own(expkit: Expkit) -> None:
    """They are the process's, which both sides share."""
    words = ("problem=matmul", "problem.n=64", NONE, "measure.repeats_min=2")
    done = expkit("compare", "backend.threads=1", "backend.threads=2", *words)
    assert said(done)["unlike"] == ["not like for like: threads: 1 against 2"]
    for folder, threads in zip(sides(expkit), (1, 2), strict=True):
        assert load(folder).facts["threads"] == str(threads)
        kept = json.loads((folder / "environment.json").read_text())
        assert kept["backend"]["threads"] == threads


# Where a side fails

PLUGIN = """
    from dataclasses import dataclass
    from expkit.authors import StepProgram, manual
    from expkit_plugins.numpy.backend import NumpyBackend

    class Early(StepProgram):
        def advance(self, n):
            super().advance(n - n // 10)

    class Raising(StepProgram):
        def advance(self, n):
            raise RuntimeError("the device is gone\\nand does not come back")

    @dataclass(frozen=True)
    class Backend(NumpyBackend):
        fault: str = "early"

        def build(self, workload):
            program = {"early": Early, "raising": Raising}[self.fault]
            return program(self, workload, manual(self.xp))
"""
OPTION = "_target_: broken_plugin.Backend\nfault: early\n"


@pytest.mark.parametrize("turned", [False, True])
def test_a_side_that_is_refused_has_no_speed_and_there_is_no_verdict(
    expkit: Expkit, turned: bool
) -> None:
    expkit.plugin({"__init__.py": PLUGIN, "conf/backend/broken.yaml": OPTION})
    pair = ["backend=numpy", "backend=broken"]
    done = expkit("compare", *(reversed(pair) if turned else pair), *SINE, *TWELVE)
    assert done.status == 1
    rows = said(done)
    assert "ratio" not in rows
    assert rows["verdict"] == ["MAY NOT BE COMPARED"]
    broken = "A" if turned else "B"
    assert rows[broken] == ["sine · broken · sgd: wrong_answer, no time is given"]
    assert f"{broken} is wrong_answer: in repeat 1" in rows["because"][0]
    other = load(sides(expkit)[1 if turned else 0])
    assert (other.outcome, sum(map(len, other.rounds))) == ("ok", 12), "it went on alone"


def test_a_side_that_raises_is_one_line(expkit: Expkit) -> None:
    expkit.plugin({"__init__.py": PLUGIN, "conf/backend/broken.yaml": OPTION})
    words = ("backend=numpy", "backend=broken backend.fault=raising", *SINE, "--no-isolate")
    done = expkit("compare", *words)
    assert done.status == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert "the device is gone" in done.err
    [report] = re.findall(r"see (\S+)", done.err)
    assert "RuntimeError: the device is gone" in Path(report).read_text()
    for folder in sides(expkit):
        assert load(folder).outcome == "failed"


def test_an_interrupted_comparison_keeps_both_sides(expkit: Expkit) -> None:
    endless = ("measure.repeats_min=100000", "measure.repeats_max=100000")
    process = expkit.start("compare", SMALL, LARGE, *SINE, *endless)
    deadline = time.monotonic() + 60
    while not any(b'"sample"' in file.read_bytes() for file in expkit.outputs.rglob(journal.FILE)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    done = expkit.end(process)
    assert done.status == 130
    assert len(done.err.splitlines()) == 1, done.err
    assert str(sides(expkit)[0].parent) in done.err
    runs = [load(folder) for folder in sides(expkit)]
    assert [run.outcome for run in runs] == ["interrupted"] * 2
    assert any(run.rounds for run in runs)


# Bad input

BAD = [
    # words, what is named
    (("outputs/nothing", "outputs/nothing_either"), "outputs/nothing"),
    (("0123456789abcdef0123456789abcdef", "/"), "0123456789abcdef0123456789abcdef"),
    (("backend=nope", "backend=numpy"), "nope"),
    (("backend=numpy", "backend=nope"), "nope"),
    (("backend=numpy", "backend=numpy problem.foo=1"), "problem.foo"),
    (("backend=numpy", "optimizer.lr=abc"), "optimizer.lr"),
    (("backend=numpy", "backend='"), "quotation"),
    (("backend=numpy", "backend=numpy", "foo"), "foo"),
    (("backend=numpy", "backend=numpy", "measure.threshold=0"), "measure.threshold"),
    (("backend=numpy", "backend=numpy", "--threshold", "0"), "threshold"),
    (("backend=numpy", "backend=numpy", "--threshold", "nan"), "threshold"),
    (("/", "/", "--threshold", "0"), "threshold"),
    (("backend=numpy", "backend=numpy", "measure.parity=maybe"), "report or require"),
    (("backend=numpy", "/"), "backend=numpy"),
    (("backend=numpy",), "B"),
    (("a", "b", "seed=1"), "seed=1"),
]


@pytest.mark.parametrize(("words", "named"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_line(expkit: Expkit, words: tuple[str, ...], named: str) -> None:
    refuses(expkit, expkit("compare", *words), named)


# Two runs that are kept


@pytest.fixture
def two(expkit: Expkit) -> tuple[Path, Path]:
    """Two runs of the same cell, one after the other."""
    for _ in range(2):
        assert expkit(*SINE, *TWELVE).status == 0
    first, second = expkit.folders()
    return first, second


def tags(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for record, _ in journal.read(folder):
        found |= record.get("tags", {})
    return found


def rewritten(folder: Path, **facts: str) -> Path:
    """A copy of the run, with these facts in its journal."""
    copy = folder.with_name(folder.name + "-copy")
    shutil.copytree(folder, copy)
    lines = []
    for record, _ in journal.read(folder):
        if record["kind"] == "facts":
            record["facts"] |= facts
        lines.append(json.dumps(record))
    (copy / journal.FILE).write_text("\n".join(lines) + "\n")
    return copy


def may_not(done: Done) -> list[str]:
    """The law of what may not be compared; why."""
    assert (done.status, done.err) == (4, ""), done
    rows = said(done)
    assert rows["verdict"] == ["MAY NOT BE COMPARED"]
    assert "ratio" not in rows
    return rows["because"]


def test_runs_that_were_not_interleaved_may_not_be_compared(
    expkit: Expkit, two: tuple[Path, Path]
) -> None:
    [why] = may_not(expkit("compare", *map(str, two)))
    assert "not interleaved" in why
    refused = expkit("compare", *map(str, two), "seed=1")
    assert (refused.status, len(refused.err.splitlines())) == (2, 1), "takes no words"
    changes = {
        "host": "elsewhere",
        "cpu": "another",
        "cores": "999",
        "versions": "numpy 0.1",
        "threads": "77",
        "dtype": "float16",
        "device": "cuda:7",
        "data": "0123",
    }
    copy = rewritten(two[1], **changes)
    why_not = may_not(expkit("compare", str(two[0]), str(copy)))
    for key, value in changes.items():
        named = [line for line in why_not if line.endswith(f"against {value}")]
        assert len(named) == 1, (key, why_not)


@pytest.mark.parametrize("key", ["host", "cpu", "cores", "versions"])
def test_another_place_is_a_barrier_for_interleaved_names_too(expkit: Expkit, key: str) -> None:
    """As of folders that were copied from machine to machine."""
    few = ("measure.repeats_min=2", "measure.repeats_max=2")
    expkit("compare", "backend=numpy", "backend=numpy", *SINE, *few)
    a, b = sides(expkit)
    copy = rewritten(b, **{key: "another"})
    [why] = may_not(expkit("compare", str(a), str(copy)))
    assert why.endswith("against another")


def test_a_run_without_its_end_has_no_time(expkit: Expkit, two: tuple[Path, Path]) -> None:
    copy = rewritten(two[1])
    whole = (copy / journal.FILE).read_bytes().splitlines(keepends=True)
    samples = [n for n, line in enumerate(whole) if b'"sample"' in line]
    (copy / journal.FILE).write_bytes(b"".join(whole[: samples[3]]) + whole[samples[3]][:20])
    done = expkit("compare", str(two[0]), str(copy))
    assert (done.status, done.err) == (1, "")
    assert said(done)["B"] == ["sine · numpy · sgd: running, no time is given"]
    (copy / journal.FILE).write_bytes(b"")
    done = expkit("compare", str(two[0]), str(copy))
    assert (done.status, len(done.err.splitlines())) == (2, 1), done


def test_a_run_is_found_by_its_name_in_mlflow(expkit: Expkit) -> None:
    done = expkit("compare", FAST, SLOW, *TINY[:-1], "tracking.pictures=false", *FORTY)
    assert verdict(done) == "SLOWER"
    ids = [json.loads((folder / "mlflow.json").read_text())["run_id"] for folder in sides(expkit)]
    assert len(set(ids)) == 2
    again = expkit("compare", *ids)
    assert verdict(again) == "SLOWER"
    assert said(again)["ratio"] == said(done)["ratio"]
    assert expkit.processes() == []


@pytest.mark.parametrize(
    ("side", "said"),
    [
        ("backend=null", "backend: got 'null', takes one of numpy"),
        ("backend=[numpy]", "backend: got '[numpy]', takes one of numpy"),
        ("outputs=", "outputs: got '', takes a folder"),
    ],
)
def test_a_side_of_a_comparison_is_checked_as_a_run_is(
    expkit: Expkit, side: str, said: str
) -> None:
    done = expkit("compare", side, "backend=torch", "tracking=none", "steps=1")
    assert done.status == 2
    assert done.err.startswith(f"expkit: {said}")
    assert done.err.count("\n") == 1


def test_a_comparison_says_of_stored_runs_what_it_said_of_them(expkit: Expkit) -> None:
    words = ("problem.n=50", "steps=50", "tracking=none", "measure=quick")
    sides = ("backend.fast=true", "backend.fast=false")
    now = expkit("compare", *sides, *words, "measure.threshold=0.9")
    folder = next(expkit.outputs.glob("comparisons/*/*"))
    later = expkit("compare", str(folder / "a"), str(folder / "b"))
    assert now == later
    assert "90%" in now.out
