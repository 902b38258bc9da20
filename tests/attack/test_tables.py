"""What the tables say, as a stranger reads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Expkit

from expkit.config import compose_cell
from expkit.contracts import Mark
from expkit.measure.answer import Answer, covered
from expkit.measure.breakdown import ADDS_UP, Breakdown, breakdown
from expkit.measure.roofline import StepLimit
from expkit.measure.warmup import WarmUp
from expkit.outcome import Outcome
from expkit.record import writing
from expkit.record.result import Result
from expkit.record.stored import Stored, load
from expkit.report.breakdown import parts_in, rows
from expkit.report.table import table

JARGON = ("of the variance", "outlying", "fetching", "placing data", "not attributed", "limit  0")


def found(step_seconds: float = 1e-3) -> Result:
    """Of a run of twelve repeats of ten steps."""
    return Result(
        outcome=Outcome.OK,
        setup_seconds=0.1,
        warm_up=WarmUp(0.01, 0.1, 20, 1e-3, settled=True),
        processes=[[[0.010 + 0.0001 * i, 0.0101 + 0.0001 * i] for i in range(6)]],
        chunk_seconds=[[10 * step_seconds]] * 12,
        chunk_ends=[9],
        losses=np.linspace(5.0, 1.0, 10),
        stopped_by="budget_s",
        checked="matches float64 NumPy on all 10 steps",
        limit=StepLimit(1e-6, "memory"),
        breakdown=Breakdown({"forward": 4e-4, "update": 5e-4}, 1e-3, 9, 2, 1e-7, 1e-3, 1e-4),
    )


def stored(result: Result, folder: Path) -> Stored:
    """The result as a run records it."""
    journal = writing.begin(compose_cell("steps=10"), folder, {})
    for placement, repeats in enumerate(result.processes[0]):
        for seconds in repeats:
            journal.write("sample", process=0, placement=placement, seconds=[seconds])
    journal.metric("train/loss", result.losses)
    journal.tags({"answer": result.checked, "outcome": result.outcome})
    writing.write_result(journal, result)
    journal.end("FINISHED")
    return load(folder)


def test_the_table_is_plain_and_the_rest_is_asked_for(tmp_path: Path) -> None:
    run = stored(found(), tmp_path)
    plain, verbose = table(run), table(run, verbose=True)
    assert [word for word in JARGON if word in plain] == []
    assert "95% interval: 10 ms to 10.6 ms, of 12 repeats" in plain
    assert "±" not in plain
    assert "less than 1%" not in plain, "a share that says nothing is left out"
    assert set(plain.splitlines()) < set(verbose.splitlines()), "no line changes, some are added"
    for word in ("less than 1%", "placements", "measure.budget_s", "the data takes"):
        assert word in verbose


def test_a_share_of_what_the_machine_can_do_is_shown_from_one_percent_on(tmp_path: Path) -> None:
    run = stored(replace(found(), limit=StepLimit(5e-5, "memory")), tmp_path)
    assert "5% of the most that this machine's memory allows" in table(run)


def test_what_was_odd_is_in_the_table_of_the_record_too(tmp_path: Path) -> None:
    warm = WarmUp(0.01, 0.1, 20, 1e-3, settled=False, compile_seconds=0.4)
    slow = Breakdown({"forward": 1e-3, "update": 5e-4}, 1e-3, 9, 2, 1e-7, 1e-3, 1e-4)
    odd = replace(found(), warm_up=warm, breakdown=slow, unstable=["wide", "load"])
    told = table(stored(odd, tmp_path))
    for said in (
        "100 ms of warm-up, in which a step's time did not settle",
        "compile  400 ms in the first call",
        "its parts are not shown: traced one by one they take 50% more than the timed step",
        "no: wide; load",
    ):
        assert said in told


@pytest.mark.parametrize(
    ("steps", "tight", "of", "said"),
    [
        (2000, 2000, 2000, "matches float64 NumPy on all 2000 steps"),
        (399, 399, 2000, "matches float64 NumPy on the first 399 of 2000 steps (the check is"),
        (20, 15, 20, "all 20 steps; on 5 of them rounding in float32 would explain any loss"),
        (20, 0, 20, "not checked: rounding in float32 explains any answer"),
    ],
)
def test_an_answer_that_is_right_does_not_read_as_wrong(
    steps: int, tight: int, of: int, said: str
) -> None:
    losses = np.ones(steps)
    allowed = np.where(np.arange(steps) < tight, 1e-9, 1.0)
    assert said in covered(Answer(steps, losses, allowed, {}, {}), of, "float32")


@pytest.mark.parametrize("share", [0.51, 0.21, -0.24, -1.04])
def test_parts_that_do_not_make_the_step_are_not_shown_but_why(share: float) -> None:
    whole = 1e-3
    parts = {"forward": (1 - share) * whole / 2, "backward": (1 - share) * whole / 2}
    off = Breakdown(parts, whole, 9, 2, 1e-7, 1e-3, 1e-4)
    more = "less" if share > 0 else "more"
    [(name, text)] = rows(off.metrics(), off.hidden)
    assert (name, text) == (
        "a step",
        f"its parts are not shown: traced one by one they take {abs(share):.0%}"
        + f" {more} than the timed step",
    )
    assert parts_in(off.metrics())[0] == {}, "nor in MLflow, nor in the picture, drawn of it"
    within = replace(off, step_seconds=sum(parts.values()) / (1 - 0.9 * ADDS_UP))
    assert "forward" in rows(within.metrics(), within.hidden)[0][1]
    drawn, step_seconds = parts_in(within.metrics())
    assert drawn == parts
    assert step_seconds == pytest.approx(within.step_seconds)


class Uneven:
    """Steps of which one in ten takes twenty times as long: PyTorch's, beside other processes."""

    mode = "step"

    def __init__(self, now: list[float]) -> None:
        self.now, self.step = now, 0

    def reallocate(self) -> None: ...

    def reset(self) -> None: ...

    def losses(self, start: int = 0) -> np.ndarray:
        return np.empty(0)

    def trace(self, n: int, mark: Mark) -> None:
        for _ in range(n):
            self.step += 1
            self.now[0] += 2e-3 if self.step % 10 == 0 else 1e-4
            mark("forward")
            self.now[0] += 1e-4
            mark("update")


def test_the_parts_are_of_the_same_kind_of_middle_as_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the step was not attributed: the parts were medians, the step is a mean."""
    now = [0.0]
    monkeypatch.setattr("expkit.measure.clock.perf_counter", lambda: now[0])
    step_s = (9 * 1e-4 + 2e-3) / 10 + 1e-4
    every: Callable[[int], Breakdown] = lambda n: breakdown(  # noqa: E731
        Uneven(now),  # type: ignore[arg-type]
        lambda: None,
        2000,
        step_s,
        n,
    )
    assert every(100).adds_up
    assert abs(every(100).unattributed) < 0.05 * step_s
    assert not every(1).adds_up, "single steps leave out what strikes one in ten"


def test_verbose_is_an_option_of_every_command_that_shows_a_table(expkit: Expkit) -> None:
    short = ["steps=20", "measure.repeats_min=2", "measure.budget_s=0", "tracking=none"]
    run = expkit("problem=linear", "--verbose", *short)
    assert (run.status, run.err) == (0, "")
    assert "repeats" in run.out
    sweep = expkit("--verbose", "-m", "problem=linear", "seed=1", *short)
    assert (sweep.status, "1 cell, timed in turn" in sweep.out) == (0, True), sweep
    assert str(expkit.outputs) in sweep.out.partition("final loss")[2].partition("\n\n")[0]
    again = expkit("resume", "--verbose")
    assert "nothing is left to run, of 1 cell\n" in again.out
    assert "0 cells" not in again.out


def test_nothing_to_send_is_said_in_a_sentence(expkit: Expkit) -> None:
    expkit.outputs.mkdir()
    done = expkit("sync")
    assert re.fullmatch(r"nothing to send: .*\n", done.out), done
    assert done.status == 0
