"""Long runs: checkpoints, going on from one, and ending before the last step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expkit import conduct
from expkit.authors import first_data
from expkit.config import Cell, compose_cell
from expkit.contracts import HasEvaluation
from expkit.errors import UserError
from expkit.measure.course import FILE, Checkpoint, Course
from expkit.record.result import Now, Result
from expkit.record.stored import load
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Done, Expkit

Run = Callable[..., "Done"]
"""The command line in this process."""

ALWAYS = ("tracking=none", "measure=once", "measure.checkpoint_s=1e-9")
"""A checkpoint after every reading."""
WAYS = {
    "in place": "backend=numpy",
    "step by step": "backend=numpy backend.fast=false",
    "torch": "backend=torch backend.threads=1",
}
WORK = {
    "draws": "problem=linear steps=60 log_every=7 optimizer=adam",
    "draws on the device": "problem=linear steps=60 log_every=7 stream=device optimizer=momentum",
    "minibatches and figures": "problem=mlp problem.hidden=8 steps=60 log_every=5 eval_every=10",
    "all data": "problem=logistic problem.batch_size=null steps=60 log_every=7 optimizer=lbfgs",
}


UNTIMED = {"timed": "no"}


class Broken(Exception):
    """The end of a run in its middle."""


def breaks_after(steps: int) -> Callable[[int, Now], None]:
    def watch(number: int, now: Now) -> None:
        if now.repeat == 1 and now.done >= steps:
            raise Broken

    return watch


def broken(cell: Cell, folder: Path, steps: int) -> Path:
    """A run that ends after so many steps, and its checkpoint."""
    with pytest.raises(Broken):
        conduct.run_together([(cell, folder)], None, breaks_after(steps), tags=UNTIMED, timed=False)
    return folder / FILE


def ran(cell: Cell, folder: Path, checkpoint: Path | None = None) -> Result:
    jobs = [(cell, folder)]
    [found] = conduct.run_together(jobs, None, tags=UNTIMED, timed=False, checkpoint=checkpoint)
    assert found.reason is None
    return found


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_going_on_from_a_checkpoint_gives_the_bits_of_an_unbroken_run(
    tmp_path: Path, way: str, work: str
) -> None:
    cell = compose_cell(*work.split(), *way.split(), *ALWAYS)
    checkpoint = broken(cell, tmp_path / "broken", 30)
    at = Checkpoint.load(checkpoint, cell.hash).course.done
    assert 0 < at < 60
    went_on = ran(cell, tmp_path / "on", checkpoint)
    unbroken = ran(cell, tmp_path / "whole")
    assert went_on.resumed_at == at
    np.testing.assert_array_equal(went_on.losses, unbroken.losses)
    assert went_on.params.keys() == unbroken.params.keys()
    for name, value in unbroken.params.items():
        np.testing.assert_array_equal(went_on.params[name], value)
    assert load(tmp_path / "on").evaluated == load(tmp_path / "whole").evaluated
    for folder in ("on", "whole"):
        assert not (tmp_path / folder / FILE).exists(), "a run that has ended needs none"


def test_a_checkpoint_may_be_of_a_run_that_went_on_from_one(tmp_path: Path) -> None:
    cell = compose_cell(*WORK["minibatches and figures"].split(), *ALWAYS)
    first = broken(cell, tmp_path / "1", 15)
    jobs, watch = [(cell, tmp_path / "2")], breaks_after(40)
    with pytest.raises(Broken):
        conduct.run_together(jobs, None, watch, tags=UNTIMED, timed=False, checkpoint=first)
    on = ran(cell, tmp_path / "3", tmp_path / "2" / FILE)
    np.testing.assert_array_equal(on.losses, ran(cell, tmp_path / "whole").losses)
    assert load(tmp_path / "3").evaluated == load(tmp_path / "whole").evaluated


def test_a_checkpoint_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Checkpoint(
        "cell", 1, Course([1], [0.1], [0.1], [np.ones(1)]), {"params.w": np.ones(3)}, [], {}
    )
    first.save(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        Checkpoint("cell", 1, Course(), {}, [], {}).save(tmp_path)
    kept = Checkpoint.load(tmp_path / FILE, "cell")
    assert kept.course.done == 1
    np.testing.assert_array_equal(kept.arrays["params.w"], np.ones(3))


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    cell = compose_cell(*WORK["draws"].split(), *ALWAYS)
    checkpoint = broken(cell, tmp_path / "broken", 30)
    other = cell.but("seed=1")
    with pytest.raises(
        UserError, match=f"of another configuration.*takes one of cell {other.hash}"
    ):
        ran(other, tmp_path / "on", checkpoint)
    assert not (tmp_path / "on").exists()


@pytest.mark.parametrize("left", [0, 1, 100, 0.5, 0.99])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, left: float) -> None:
    cell = compose_cell(*WORK["draws"].split(), *ALWAYS)
    checkpoint = broken(cell, tmp_path / "broken", 30)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(left * len(whole)) if left < 1 else int(left)])
    with pytest.raises(UserError, match=r"checkpoint\.npz: it is damaged"):
        ran(cell, tmp_path / "on", checkpoint)


LONG = ("problem=linear", "problem.batch_size=2000", "steps=9000", "log_every=100", "measure=once")


def kill_with_a_checkpoint(expkit: Expkit, *words: str) -> Path:
    process = expkit.start(*words)
    for _ in count():
        found = sorted(expkit.outputs.rglob(FILE))
        if found or process.poll() is not None:
            break
    process.send_signal(signal.SIGKILL)
    expkit.end(process)
    assert found, "it ended without a checkpoint"
    return found[0].parent


def test_a_killed_run_goes_on(expkit: Expkit) -> None:
    words = (*LONG, "measure.checkpoint_s=0.01", "tracking=none")
    stopped = kill_with_a_checkpoint(expkit, *words)
    done = expkit("resume", str(stopped))
    assert done.status == 0, done
    assert "resumed: at step " in done.out
    on = stopped.with_name(f"{stopped.name}-2")
    assert f"saved to  {on}" in done.out
    assert load(on).tags["resumed_from"] == str(stopped)
    assert load(stopped).outcome == "interrupted"
    whole = expkit(*words, "hydra.run.dir=whole")
    assert whole.status == 0, whole
    went_on, unbroken = (
        np.concatenate([r["values"] for r, _ in journal.read(f) if r.get("key") == "train/loss"])
        for f in (on, expkit.place / "whole")
    )
    np.testing.assert_array_equal(went_on, unbroken)


def test_a_killed_sweep_goes_on_in_the_middle_of_a_cell(expkit: Expkit) -> None:
    words = (*LONG, "measure.checkpoint_s=0.01", "tracking=none", "seed=1,2")
    stopped = kill_with_a_checkpoint(expkit, "-m", *words)
    done = expkit("resume")
    assert done.status == 0, done
    on = load(stopped.with_name(f"{stopped.name}-2"))
    assert on.outcome == "ok"
    assert "resumed: at step " in on.stable


def test_no_checkpoint_is_left_of_the_last_reading(tmp_path: Path) -> None:
    """There would be no reading to go on with."""
    cell = compose_cell(*WORK["draws"].split(), *ALWAYS)
    checkpoint = broken(cell, tmp_path / "broken", 60)
    assert Checkpoint.load(checkpoint, cell.hash).course.done < 60
    ran(cell, tmp_path / "on", checkpoint)
    assert not checkpoint.exists(), "a run that has ended needs none"


def test_a_cell_of_a_sweep_goes_on_with_its_sweep(run: Run, tmp_path: Path) -> None:
    words = ("problem=linear", "steps=20", "seed=1,2", "tracking=none", "sweep.timing=false")
    assert run("-m", *words, "hydra.sweep.dir=sweep").status == 0
    done = run("resume", "sweep/0")
    assert (done.status, done.out) == (2, "")
    again = f"resume the sweep: expkit resume {tmp_path / 'sweep'}"
    assert done.err == f"expkit: resume: {tmp_path / 'sweep/0'} is a cell of a sweep; {again}\n"


def test_what_cannot_be_resumed_says_why(run: Run, tmp_path: Path) -> None:
    done = run("problem=linear", "tracking=none", "hydra.run.dir=ended")
    assert done.status == 0, done
    done = run("resume", "ended")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"expkit: resume: {tmp_path / 'ended'} has no checkpoint; takes a run that was stopped "
        "after its first checkpoint (measure.checkpoint_s)\n"
    )


# Ending before the last step


@pytest.mark.parametrize(
    ("of", "value"), [("loss", 0.7), ("gap", 0.2), ("accuracy", 0.9)], ids=lambda x: str(x)
)
def test_a_run_may_end_at_its_target(run: Run, tmp_path: Path, of: str, value: float) -> None:
    words = ("problem=logistic", "steps=2000", "log_every=5", "eval_every=10", "tracking=none")
    aim = (f"target.of={of}", f"target.value={value}", "target.stop=true")
    done = run(*words, *aim, "measure=once", "hydra.run.dir=run")
    assert done.status == 0, done.err
    found = load(tmp_path / "run")
    assert found.steps < 2000
    assert found.tags["ended"] == f"after {found.steps} steps: the target is reached"
    assert f"ended  after {found.steps} steps: the target is reached" in done.out
    assert f"{found.steps} steps)" in done.out
    assert 0 < found.quantities["target/steps"] <= found.steps
    assert found.steps - found.quantities["target/steps"] < 10, "it ended when that was seen"


def test_the_record_of_a_run_that_ended_is_of_where_it_ended(tmp_path: Path) -> None:
    words = ("problem=logistic", "steps=500", "log_every=5", "optimizer=backtracking")
    aim = ("target.of=gap", "target.value=0.05", "target.stop=true", "eval_every=50")
    cell = compose_cell(*words, *aim, "measure=once", "tracking=none")
    found = ran(cell, tmp_path / "run")
    run = load(tmp_path / "run")
    assert run.steps == found.losses.size < 500
    program = cell.backend.build(cell.workload)
    program.advance(run.steps)
    for name, value in program.params().items():
        np.testing.assert_array_equal(found.params[name], value)
    assert found.evaluations == float(program.arrays()["state.evaluations"])
    problem = cell.workload.problem
    assert isinstance(problem, HasEvaluation)
    figures = problem.evaluate(np, program.params(), first_data(cell.workload))
    assert run.evaluated["held_out_loss"] == pytest.approx(float(figures["held_out_loss"]))
    assert run.answer == f"matches float64 NumPy on all {run.steps} steps"


def test_a_run_that_may_end_and_does_not_has_all_its_steps(tmp_path: Path) -> None:
    words = ("problem=ridge", "steps=50", "target.of=gap", "target.value=0", "target.stop=true")
    cell = compose_cell(*words, "measure=once", "tracking=none")
    assert ran(cell, tmp_path / "run").facts["ended"] == "50"
    assert "ended" not in load(tmp_path / "run").tags


def test_a_run_may_end_when_nothing_has_improved(run: Run, tmp_path: Path) -> None:
    words = ("problem=logistic", "steps=4000", "log_every=10", "eval_every=10", "tracking=none")
    aim = ("target.of=accuracy", "target.value=1", "target.patience=100")
    done = run(*words, *aim, "measure=once", "hydra.run.dir=run")
    assert done.status == 0, done.err
    found = load(tmp_path / "run")
    [record] = [r for r, _ in journal.read(found.folder) if r.get("key") == "eval/accuracy"]
    best = int(np.argmax(np.array(record["values"], float)))
    assert found.steps == record["steps"][best] + 100 < 4000
    assert found.tags["ended"].endswith("accuracy has not improved for 100 steps")
    assert found.tags["target"].endswith(f"not reached in {found.steps} steps")


def test_runs_that_end_apart_are_not_alike(run: Run) -> None:
    words = ("problem=ridge", "steps=500", "log_every=5", "measure=once", "tracking=none")
    aim = ("target.of=gap", "target.value=0.5", "target.stop=true")
    done = run("compare", "optimizer=sgd", "optimizer=sgd optimizer.lr=0.02", *words, *aim)
    assert "steps until the run ended: " in done.out, done
    both = ("target.stop=true", "target.stop=false")
    done = run("compare", *both, *words, *aim[:2])
    assert "against 500" in done.out, done


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("target.stop=true", "target.stop: got True, takes false unless measure=once"),
        ("target.patience=10", "target.patience: got 10, takes 0 unless measure=once"),
        ("target.patience=-1", "target.patience: got -1, takes an integer of at least 0"),
    ],
)
def test_what_only_a_single_repeat_can_have_is_refused(run: Run, word: str, line: str) -> None:
    done = run("problem=ridge", word)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"expkit: {line}"), done.err
    assert done.err.count("\n") == 1
