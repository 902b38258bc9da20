"""What tells runs apart, and their figures for other tools."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pytest

import expkit as door
from expkit.record.colours import OTHERS, SHIPPED, colours, shade
from expkit.report import formats
from expkit.report.formats import csv_text
from expkit.sweeps.manifest import Manifest
from expkit.sweeps.plan import plan_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Done, Expkit

    from expkit.report.rows import Row

WORDS = (
    "problem=linear",
    "steps=40",
    "backend=numpy",
    "optimizer=sgd,adam",
    "optimizer.lr=0.001,1000000",
    "measure.repeats_min=6",
    "measure.repeats_per_placement=1",
    "measure.budget_s=0",
    "measure.settle_s=0",
    "tracking=none",
)
"""A sweep of four cells, of which those with plain gradient descent at the great rate diverge."""


@pytest.fixture(scope="module")
def sweep(outputs: Path) -> door.Sweep:
    return door.sweep(*WORDS)


def planned(*words: str) -> Manifest:
    """A sweep that is not run."""
    return plan_words(["tracking=none", *words])


# What tells them apart


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["optimizer=sgd,rmsprop", "optimizer.lr=0.01"], ["sgd", "rmsprop"]),
        (["optimizer=rmsprop", "optimizer.lr=0.01,0.1"], ["lr=0.01", "lr=0.1"]),
        (
            ["optimizer=sgd,rmsprop", "optimizer.lr=0.01,0.1"],
            ["sgd · lr=0.01", "sgd · lr=0.1", "rmsprop · lr=0.01", "rmsprop · lr=0.1"],
        ),
        (
            ["problem=linear,sine", "seed=1,2"],
            [f"{p} · seed={s}" for p in ("linear", "sine") for s in (1, 2)],
        ),
        (["problem=matmul,sine"], ["matmul", "sine"]),
        (["problem=large_dot", "problem.n=1000,2000"], ["n=1000", "n=2000"]),
        (["problem=linear"], ["linear · numpy · sgd"]),
    ],
)
def test_a_cells_name_is_what_differs(words: list[str], names: list[str]) -> None:
    assert [cell.name for cell in planned(*words).cells] == names


def test_what_nobody_has_set_is_in_no_title() -> None:
    """The rate that large_dot recommends depends on its size."""
    sizes = planned("problem=large_dot", "problem.n=1000,2000", "backend=numpy")
    rates = {cell.cell.params["optimizer.lr"] for cell in sizes.cells}
    assert len(rates) == 2
    assert {cell.title for cell in sizes.cells} == {"numpy · sgd"}


def test_a_backend_has_a_colour_and_its_cells_have_shades() -> None:
    pytest.importorskip("torch")
    both = planned("backend=numpy,torch", "optimizer=sgd,adam", "problem=linear")
    found = {cell.name: cell.colour for cell in both.cells}
    assert len(set(found.values())) == 4
    alone = planned("backend=torch", "optimizer=sgd,adam", "problem=linear")
    assert {f"torch · {cell.name}": cell.colour for cell in alone.cells}.items() <= found.items()
    assert planned("problem=linear").cells[0].colour == SHIPPED["numpy"]
    many = [shade(SHIPPED["torch"], number, 50) for number in range(50)]
    assert len(set(many)) == 50
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in many)


def test_seeds_share_a_shade_where_anything_else_differs() -> None:
    both = [cell.colour for cell in planned("optimizer=sgd,adam", "seed=1,2").cells]
    assert both[0] == both[1] != both[2] == both[3]
    assert len({cell.colour for cell in planned("problem=linear", "seed=1,2,3").cells}) == 3


def test_an_optimizer_has_one_shade_with_all_problems() -> None:
    cells = planned("problem=sine,linear", "optimizer=sgd,adam").cells
    shades = {(cell.cell.names["optimizer"], cell.colour) for cell in cells}
    assert len(cells) == 4
    assert len(shades) == 2


def test_two_backends_of_others_have_two_colours() -> None:
    names = [f"backend_{number}" for number in range(len(OTHERS))]
    assert set(colours(names).values()) == set(OTHERS)
    assert not set(OTHERS) & set(SHIPPED.values())


# For other tools


def exported(run: Callable[..., Done], sweep: door.Sweep, *words: str) -> str:
    done = run("export", str(sweep.folder), *words)
    assert (done.status, done.err) == (0, ""), done
    return done.out


@pytest.fixture
def to(run: Callable[..., Done], outputs: Path) -> Callable[..., str]:
    def go(sweep: door.Sweep, *words: str) -> str:
        return exported(run, sweep, *words)

    return go


def test_a_row_a_run_is_read_back_by_pandas(sweep: door.Sweep, to: Callable[..., str]) -> None:
    pandas = pytest.importorskip("pandas")
    found = pandas.read_csv(io.StringIO(to(sweep)))
    assert list(found["cell"]) == [0, 1, 2, 3]
    assert list(found["optimizer"]) == ["sgd", "sgd", "adam", "adam"]
    assert list(found["optimizer.lr"]) == [0.001, 1e6, 0.001, 1e6]
    assert list(found["outcome"]) == [str(run.outcome) for run in sweep]
    assert found["outcome"][1] == "diverged"
    assert found["seconds"].dtype == found["ratio"].dtype == float
    assert found["seconds"][0] == sweep[0].seconds
    assert list(found["seconds"].isna()) == [run.seconds is None for run in sweep]
    assert found["verdict"][0] == "baseline"
    assert {"time/setup_seconds", "time/steps_per_second", "answer", "stable"} <= set(found)
    assert "time/median_ms" not in found


@pytest.mark.parametrize("words", [[], ["--samples"], ["--curves"]])
def test_every_format_says_the_same(
    sweep: door.Sweep, to: Callable[..., str], tmp_path: Path, words: list[str]
) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(io.StringIO(to(sweep, *words)))
    for suffix, read in (("json", pandas.read_json), ("parquet", pandas.read_parquet)):
        file = tmp_path / f"found.{suffix}"
        assert to(sweep, *words, "--output", str(file)) == ""
        found = read(file)
        pandas.testing.assert_frame_equal(found, table, check_dtype=False, check_exact=False)
        if suffix == "parquet":
            assert [kind.kind for kind in found.dtypes] == [kind.kind for kind in table.dtypes]


@pytest.mark.parametrize("words", [[], ["--samples"], ["--curves"]])
def test_polars_reads_what_pandas_reads(
    sweep: door.Sweep, to: Callable[..., str], tmp_path: Path, words: list[str]
) -> None:
    polars = pytest.importorskip("polars")
    for suffix in ("csv", "parquet", "json"):
        file = tmp_path / f"found.{suffix}"
        to(sweep, *words, "--output", str(file))
        found = getattr(polars, f"read_{suffix}")(file)
        assert found["seconds"].dtype == polars.Float64
        assert found["cell"].dtype == polars.Int64
        assert found["optimizer.lr"].dtype == polars.Float64


def test_a_column_that_begins_without_values_is_one_of_numbers(tmp_path: Path) -> None:
    """As where the first cell has diverged: readers look at the first rows alone."""
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    rows: list[Row] = [{"cell": n // 300, "seconds": None if n < 300 else 0.5} for n in range(600)]
    file = tmp_path / "found.csv"
    file.write_text(csv_text(rows))
    found = polars.read_csv(file)
    assert found["seconds"].dtype == polars.Float64
    assert found["seconds"].is_nan().sum() == 300
    assert pandas.read_csv(file)["seconds"].isna().sum() == 300


def test_repeats_are_those_of_the_times(sweep: door.Sweep) -> None:
    found = [row for row in sweep.repeats() if row["cell"] == 0]
    assert [row["placement"] for row in found] == list(range(6))
    assert sweep[0].seconds == pytest.approx(median(float(str(r["seconds"])) for r in found))


def test_steps_have_their_loss_and_when_it_was_there(sweep: door.Sweep) -> None:
    found = [row for row in sweep.steps() if row["cell"] == 0]
    assert [row["step"] for row in found] == list(range(40))
    assert [row["loss"] for row in found] == list(sweep[0].losses)
    seconds = [float(str(row["seconds"])) for row in found]
    assert seconds == sorted(seconds)
    each, every = sweep[0].metrics["time/step_seconds"], int(str(sweep[0].config["log_every"]))
    lengths = [min(every, 40 - start) for start in range(0, 40, every)]
    assert seconds[-1] == pytest.approx((each * lengths).sum())
    lost = [row for row in sweep.steps() if row["cell"] == 1]
    assert lost[-1]["loss"] is None, "it diverged"
    assert {row["seconds"] for row in lost} == {None}


def test_tables_are_ready_to_be_pasted(sweep: door.Sweep, to: Callable[..., str]) -> None:
    markdown, latex = to(sweep, "--format", "md"), to(sweep, "--format", "latex")
    head, line, *rows = markdown.splitlines()[2:]
    assert head.count("|") == line.count("|") == rows[0].count("|")
    assert len(rows) == 4
    for run in ("sgd, optimizer.lr=0.001", "adam, optimizer.lr=0.001"):
        assert run in markdown
        assert f"{run}".replace("_", "\\_") in latex
    assert "diverged" in markdown
    assert latex.count(r"\\") == 5
    assert latex.startswith(r"\begin{table}")
    assert not re.search(r"(?<!\\)[%_#]", latex.replace("\\textmu{}", ""))


def test_a_run_and_an_experiment_are_exported_too(
    sweep: door.Sweep, run: Callable[..., Done]
) -> None:
    whole = json.loads(
        run("export", "expkit", "--format", "json", "--outputs", str(sweep.folder.parents[2])).out
    )
    assert len(whole) == len(sweep)
    [one] = json.loads(run("export", str(sweep[0].folder), "--format", "json").out)
    assert one["seconds"] == sweep[0].seconds
    assert "|" in run("export", str(sweep[0].folder), "--format", "md").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "got 'nowhere', takes a run, a sweep or an experiment: "),
        (["--format", "md", "--curves"], "got --format md with single values"),
        (["--format", "xlsx"], "invalid choice: 'xlsx'"),
        (["--output", "/nowhere/a.csv"], "cannot write /nowhere/a.csv"),
        (["--samples", "--curves"], "not allowed with"),
    ],
)
def test_bad_input_is_one_line(
    sweep: door.Sweep, run: Callable[..., Done], words: list[str], said: str
) -> None:
    what = [] if "nowhere" in words else [str(sweep.folder)]
    done = run("export", *what, *words)
    assert done.status == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1, done.err
    assert said in done.err


def test_values_of_a_column_are_of_one_kind() -> None:
    rows: list[dict[str, object]] = [{"a": 1, "b": 1, "c": None}, {"a": 0.5, "b": "x", "c": None}]
    assert formats.csv_text(rows) == "a,b\n1.0,1\n0.5,x\n"


def test_what_cannot_be_written_or_read_is_said(sweep: door.Sweep, expkit: Expkit) -> None:
    file = sweep[3].folder / "journal.jsonl"
    whole = file.read_text()
    file.write_text("not a journal\n")
    try:
        done = expkit("export", str(sweep.folder))
    finally:
        file.write_text(whole)
    assert (done.status, len(done.out.splitlines())) == (0, 4)
    assert done.err == "expkit: left out: 1 cell without a run that can be read\n"
    script = f"""
        import os, sys
        from expkit.cli import console
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        sys.argv[1:] = ["export", {str(sweep.folder)!r}]
        console()
    """
    full = expkit.python(script)
    assert (full.status, full.err.count("\n")) == (1, 1), full
    assert "No space left" in full.err
