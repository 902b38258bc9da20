"""What a review found: each was wrong once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expkit.child import VERSION, Hello, encode
from expkit.config import compose_cell
from expkit.errors import UserError
from expkit.measure.answer import Answer, reference
from expkit.measure.parity import differences
from expkit.record.stored import find, load
from expkit.record.writing import opening
from expkit.report.comparison import hold, table
from expkit.tracking import address, journal
from expkit.tracking.journal import Journal
from expkit.tracking.tracker import Allow, Send

if TYPE_CHECKING:
    from conftest import Expkit


def test_a_tracker_whose_answer_nobody_reads_ends_the_run(tmp_path: Path) -> None:
    """The parent was killed between its request and the answer."""
    cell = compose_cell(f"outputs={tmp_path}")
    folder = tmp_path / "run"
    folder.mkdir()
    opened = Journal(folder)
    opened.write("run", **opening(cell, folder, {}, {}))
    opened._file.close()
    database = address.local(tmp_path)
    asked = (Hello(VERSION, []), Allow(database, database), Send(str(folder), last=False))
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.run(
        [
            sys.executable,
            "-m",
            "expkit.child",
            "expkit.tracking.sender",
            str(os.getpid()),
            "outlives",
        ],
        env={**os.environ, "EXPKIT_OUTPUTS": str(tmp_path)},
        input="".join(encode(message).decode() for message in asked),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (child.returncode, child.stderr) == (0, "")
    assert journal.is_ended(folder)


@pytest.mark.parametrize(
    "words",
    [
        "problem=sine problem.n=50 problem.degree=12 backend.dtype=float32 seed=867351",
        "problem=sine problem.n=1 problem.degree=0 optimizer=adam backend=torch"
        " backend.dtype=float16 seed=252639",
    ],
    ids=["what-an-update-stores-is-rounded", "near-zero-a-dtype-has-steps"],
)
def test_rounding_alone_is_no_wrong_answer(words: str) -> None:
    cell = compose_cell(*words.split())
    program = cell.backend.build(cell.workload)
    program.advance(cell.workload.steps)
    found = reference(cell.backend, cell.workload, str(cell.backend.describe()["dtype"]), 100)
    assert isinstance(found, Answer)
    assert found.wrong_losses(program.losses()) is None
    assert found.wrong_params(program.params()) is None


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_rate_off_by_a_hundredth_is_a_wrong_answer(dtype: str) -> None:
    """That what rounding explains does not explain everything."""
    cell = compose_cell(f"backend.dtype={dtype}", "optimizer.lr=1e-6")
    off = compose_cell(f"backend.dtype={dtype}", "optimizer.lr=1.01e-6")
    program = off.backend.build(off.workload)
    program.advance(off.workload.steps)
    found = reference(cell.backend, cell.workload, dtype, 100)
    assert isinstance(found, Answer)
    assert found.wrong_losses(program.losses()) is not None
    assert found.wrong_params(program.params()) is not None


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


def _stored(folder: Path, *lines: object) -> Path:
    folder.mkdir()
    run = {
        "kind": "run",
        "time": 0,
        "id": "a",
        "name": folder.name,
        "owner": journal.owner(),
        "tracking": {},
        "params": {},
        "tags": {"outcome": "running", "interleaved": "x"},
    }
    text = "".join(json.dumps(line) + "\n" for line in (run, *lines))
    (folder / journal.FILE).write_text(text)
    return folder


OK_TAG = {"kind": "tags", "tags": {"outcome": "ok"}}
SAMPLE = {"kind": "sample", "process": 0, "placement": 0, "seconds": [1.0]}


def test_a_journal_from_before_placements_is_one_line(expkit: Expkit) -> None:
    expkit.outputs.mkdir()
    old = _stored(expkit.outputs / "old", {"kind": "sample", "seconds": [1.0]}, OK_TAG)
    empty = _stored(expkit.outputs / "empty", OK_TAG)
    for folder in (old, empty):
        done = expkit("compare", str(folder), str(folder))
        assert done.status == 2
        assert done.err.startswith(f"expkit: {folder}: ")
        assert done.err.count("\n") == 1


def test_a_torn_note_of_another_run_does_not_hide_one(tmp_path: Path) -> None:
    run = _stored(tmp_path / "run", SAMPLE, OK_TAG)
    (run / "mlflow.json").write_text('{"run_id": "abc"}')
    torn = _stored(tmp_path / "torn", SAMPLE)
    (torn / "mlflow.json").write_text('{"run')
    assert find("abc", tmp_path) == run
    with pytest.raises(UserError):
        find("nobody", tmp_path)


def test_one_round_has_no_spread_to_show(tmp_path: Path) -> None:
    run = load(_stored(tmp_path / "run", SAMPLE, OK_TAG))
    shown = table(hold(run, run, 0.02), 0.02)
    assert "\u00b1" not in shown
    assert "1 s (its spread is not known: the arrays were placed once)" in shown


def test_two_runs_read_at_other_steps_are_unlike() -> None:
    """Each reading waits for the device and looks at the losses."""
    a, b = {"log_every": "1"}, {"log_every": "100"}
    assert differences(a, b) == ["log_every (steps between two readings): 1 against 100"]


def test_a_comparison_says_of_stored_runs_what_it_said_of_them(expkit: Expkit) -> None:
    words = ("problem.n=50", "steps=50", "tracking=none", "measure=quick")
    sides = ("backend.fast=true", "backend.fast=false")
    now = expkit("compare", *sides, *words, "measure.threshold=0.9")
    folder = next(expkit.outputs.glob("comparisons/*/*"))
    later = expkit("compare", str(folder / "a"), str(folder / "b"))
    assert now == later
    assert "90%" in now.out


def test_too_few_losses_are_a_wrong_answer_and_no_traceback() -> None:
    cell = compose_cell("problem=linear", "steps=5")
    right = reference(cell.backend, cell.workload, "float64", 2)
    assert isinstance(right, Answer)
    assert right.wrong_losses(right.losses) is None
    assert right.wrong_losses(right.losses[:3]) == "3 losses came back for 5 steps"
