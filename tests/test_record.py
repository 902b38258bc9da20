"""What a run records is declared once: a row more is a figure more, wherever figures are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expkit.conduct import run_together
from expkit.config import compose_cell
from expkit.errors import UserError
from expkit.record import quantities
from expkit.record.quantities import Quantity
from expkit.record.stored import find, load, metrics_of
from expkit.report import comparison
from expkit.report.table import table
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Expkit

WORDS = (
    "problem=linear",
    "steps=20",
    "tracking=none",
    "measure.repeats_per_placement=1",
    "measure.repeats_min=6",
    "measure.budget_s=0",
    "measure.settle_s=0",
)


def test_a_row_more_is_in_the_journal_the_table_and_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = Quantity(
        "final/fall", lambda r: float(r.losses[0] - r.losses[-1]), "", "how far it fell"
    )
    monkeypatch.setattr(quantities, "QUANTITIES", (*quantities.QUANTITIES, more))
    cell = compose_cell(*WORDS)
    found = run_together([(cell, tmp_path / "run")], None, tags={})[0]
    fell = found.losses[0] - found.losses[-1]
    assert metrics_of(tmp_path / "run")["final/fall"] == [fell]
    assert load(tmp_path / "run").quantities["final/fall"] == fell
    assert f"final/fall {fell:.6g} (how far it fell)" in table(load(tmp_path / "run"), verbose=True)


def test_every_figure_of_a_run_is_named_once_and_read_back(tmp_path: Path) -> None:
    names = [quantity.name for quantity in quantities.QUANTITIES]
    assert len(set(names)) == len(names)
    found = run_together([(compose_cell(*WORDS), tmp_path / "run")], None, tags={})[0]
    told = dict(quantities.found(found))
    stored = load(tmp_path / "run")
    assert stored.quantities == {name: told[name] for name in names if name in told}
    assert {
        name: list(values) for name, values in metrics_of(tmp_path / "run").items()
    }.items() >= {name: [value] for name, value in told.items()}.items()


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
    shown = comparison.table(comparison.hold(run, run, 0.02))
    assert "\u00b1" not in shown
    assert "1 s (its spread is not known: the arrays were placed once)" in shown
