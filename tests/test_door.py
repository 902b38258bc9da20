"""What scripts and notebooks get from `import expkit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from services import free_port

import expkit as door
from expkit.errors import UserError
from expkit.outcome import Outcome
from expkit.sweeps.plan import plan_words

if TYPE_CHECKING:
    from conftest import Expkit

QUICK = ("measure.repeats_min=6", "measure.repeats_max=6", "measure.repeats_per_placement=1")
LINE = {"problem": "linear", "steps": 50, "tracking": "none"}


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EXPKIT_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def test_importing_it_imports_nothing_heavy(expkit: Expkit) -> None:
    done = expkit.python("import sys, expkit; print(*sys.modules)")
    heavy = {"hydra", "omegaconf", "mlflow", "torch", "jax", "numba", "numpy", "matplotlib"}
    assert not heavy & set(done.out.split()), done


def test_a_cell_is_made_of_words_or_values_and_changed() -> None:
    cell = door.cell("optimizer.lr=0.25", **LINE, **{"problem.batch_size": 5})
    assert (cell.resolved["optimizer"]["lr"], cell.resolved["problem"]["batch_size"]) == (0.25, 5)
    other = cell.but(optimizer="adam", seed=3)
    assert other.title == "linear · numpy · adam"
    assert (other.resolved["seed"], other.resolved["optimizer"]["lr"]) == (3, 0.25)
    assert cell.resolved["seed"] == 0, "and the first is as it was"
    with pytest.raises(UserError, match="problem"):
        door.cell(problem="sin e")


@pytest.mark.parametrize("here", [True, False])
def test_a_run_is_a_view_of_its_record(here: bool, outputs: Path) -> None:
    found = door.run(door.cell(*QUICK, **LINE), here=here)
    assert found.outcome == Outcome.OK
    assert found.folder.is_relative_to(outputs / "runs")
    assert found.seconds is not None
    assert found.interval is not None
    low, high = found.interval
    assert low <= found.seconds <= high
    assert found.losses.shape == (50,)
    assert np.isfinite(found.losses).all()
    assert sum(value.size for value in found.params.values()) == 2
    assert (found.config["problem"], found.config["steps"]) == ("linear", 50)
    assert found.answer == "matches float64 NumPy on all 50 steps"
    again = door.load(found.folder)
    assert isinstance(again, door.Run)
    assert again.row() == found.row()
    assert again.table(verbose=True) == found.table(verbose=True)
    assert str(found.folder) in found._repr_html_()


def test_what_went_wrong_is_in_the_record_or_raised() -> None:
    found = door.run(door.cell(*QUICK, **LINE, **{"optimizer.lr": 1e9}))
    assert (found.outcome, found.seconds, found.interval) == (Outcome.DIVERGED, None, None)
    assert "not finite" in found.reason
    with pytest.raises(UserError, match="torch_cuda"):
        door.check(door.cell(backend="torch_cuda", tracking="none"))


@pytest.mark.alone  # the verdict is of few repeats
@pytest.mark.parametrize("here", [True, False])
def test_two_cells_are_compared_and_their_runs_may_be_again(here: bool) -> None:
    more = ("measure.repeats_min=60", "measure.repeats_max=60")  # the machine's speed may jump
    fast = door.cell(*QUICK, *more, **LINE)
    slow = fast.but("backend.fast=false")
    found = door.compare(fast, slow, here=here)
    assert found.word == "SLOWER", str(found)
    assert "SLOWER" in str(found)
    again = door.compare(found.a, found.b.folder)
    assert again.verdict == found.verdict
    with pytest.raises(UserError, match="measure: got two"):
        door.compare(fast, slow.but("measure.threshold=0.5"), here=here)


def test_a_sweep_keeps_no_password() -> None:
    address = "postgresql://me:S3cret@127.0.0.1:1/d"
    planned = plan_words(["problem=linear", "seed=1,2", f"tracking.uri={address}"])
    planned.save()
    kept = planned.file.read_text()
    assert "S3cret" not in kept
    assert "me@127.0.0.1:1/d" in kept


def test_a_sweep_gives_a_run_for_every_combination(outputs: Path) -> None:
    found = door.sweep(*QUICK, **LINE, seed=[1, 2], optimizer=["sgd", "adam"])
    assert [run.title for run in found] == ["linear · numpy · sgd", "linear · numpy · adam"] * 2
    assert {run.outcome for run in found} == {Outcome.OK}
    assert [row["loss"] for row in found.rows()] == [run.losses[-1] for run in found]
    told_by = [(row["seed"], row["optimizer"]) for row in found.rows()]
    assert told_by == [(1, "sgd"), (1, "adam"), (2, "sgd"), (2, "adam")]
    assert "steps" not in found._keys, "it is one for all"
    assert "median" in str(found)
    again = door.load("/".join(found.folder.parts[-2:]))
    assert isinstance(again, door.Sweep)
    assert again.rows() == found.rows()
    assert isinstance(found[1:], door.Runs)
    kept = door.load("expkit")
    assert isinstance(kept, door.Runs)
    assert len(kept) == 4
    pandas = pytest.importorskip("pandas")
    assert isinstance(found.frame(), pandas.DataFrame)
    assert list(found.frame()["run"]) == [run.stored.name for run in found]


def test_what_does_not_reach_mlflow_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    words: dict[str, object] = {**LINE, "tracking": "mlflow", "measure.settle_s": 0}
    uri = f"tracking.uri=http://127.0.0.1:{free_port()}"
    for go in (lambda: door.run(door.cell(*QUICK, uri, **words)), lambda: door.sweep(uri, **words)):
        with pytest.warns(UserWarning, match="not in MLflow: no server answers at"):
            go()


def test_nothing_of_that_name_is_one_line() -> None:
    with pytest.raises(UserError, match="nosuch"):
        door.load("nosuch")
    assert "hydra" in sys.modules
