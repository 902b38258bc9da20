"""What a run records is declared once: a row more is a figure more, wherever figures are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from expkit.conduct import run
from expkit.config import compose_cell
from expkit.record import quantities
from expkit.record.quantities import Quantity
from expkit.record.stored import load, metrics_of
from expkit.report.table import table

WORDS = ("problem=linear", "steps=20", "tracking=none", "measure=quick", "measure.budget_s=0")


def test_a_row_more_is_in_the_journal_the_table_and_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = Quantity(
        "final/fall", lambda r: float(r.losses[0] - r.losses[-1]), "", "how far it fell"
    )
    monkeypatch.setattr(quantities, "QUANTITIES", (*quantities.QUANTITIES, more))
    cell = compose_cell(*WORDS)
    found = run(cell, tmp_path / "run", None, lambda *_: None)
    fell = found.losses[0] - found.losses[-1]
    assert metrics_of(tmp_path / "run")["final/fall"] == [fell]
    assert load(tmp_path / "run").quantities["final/fall"] == fell
    assert f"final/fall {fell:.6g} (how far it fell)" in table(cell, found, tmp_path, verbose=True)


def test_every_figure_of_a_run_is_named_once_and_read_back(tmp_path: Path) -> None:
    names = [quantity.name for quantity in quantities.QUANTITIES]
    assert len(set(names)) == len(names)
    found = run(compose_cell(*WORDS), tmp_path / "run", None, lambda *_: None)
    told = {quantity.name: value for quantity, value in quantities.found(found)}
    stored = load(tmp_path / "run")
    assert stored.quantities == {name: told[name] for name in names if name in told}
    assert {
        name: list(values) for name, values in metrics_of(tmp_path / "run").items()
    }.items() >= {name: [value] for name, value in told.items()}.items()
