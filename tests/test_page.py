"""The page of a sweep: what it says first, what it shows, and where it is written."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import expkit as door
from expkit.measure.crossover import Crossing, Point
from expkit.record.colours import SHIPPED
from expkit.sweeps import page, scaling
from expkit.sweeps.manifest import Manifest
from expkit.sweeps.ranking import Results
from expkit.units import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Done, Expkit

QUICK = (
    "measure.repeats_min=6",
    "measure.repeats_per_placement=1",
    "measure.budget_s=0",
    "measure.settle_s=0",
    "tracking=none",
    "tracking.pictures=true",
)
RATES = ("problem=linear", "steps=40", "optimizer=sgd,adam", "optimizer.lr=0.001,0.01,1000000")
"""A sweep of six cells, of which plain gradient descent at the great rate diverges."""
SIZES = ("problem=add", "problem.n=10,20,40", "steps=10")


class Parsed(HTMLParser):
    """A page's tags, and the text of each title of a mark."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.titles: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == ["html"] or not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title":
            self.titles.append(data)
        self.text.append(data)


@pytest.fixture(scope="module")
def rates(outputs: Path) -> door.Sweep:
    return door.sweep(*RATES, *QUICK)


@pytest.fixture(scope="module")
def sizes(outputs: Path) -> door.Sweep:
    return door.sweep(*SIZES, *QUICK)


def text_of(sweep: door.Sweep) -> str:
    return (sweep.folder / page.FILE).read_text(encoding="utf-8")


def test_a_page_needs_nothing_else_and_is_small(rates: door.Sweep) -> None:
    text = text_of(rates)
    parsed = Parsed(text)
    assert len(text) < 500_000
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in parsed.tags}
    addresses = [v for _, attrs in parsed.tags for v in attrs.values() if v and "://" in v]
    assert set(addresses) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_a_page_shows_every_cell_and_every_repeat(rates: door.Sweep) -> None:
    text = text_of(rates)
    parsed = Parsed(text)
    rows = "".join(parsed.text)
    for cell in rates.manifest.cells:
        assert cell.name in rows
    timed = [e for e in rates.results.entries if e.run and e.run.summary]
    assert len(timed) == 5
    for entry in timed:
        drawn = text[text.index(f"<title>{entry.planned.name}: 6 repeats</title>") :]
        path = re.search(r'<path d="([^"]*)"', drawn)
        assert path is not None
        assert path[1].count("M") == 6, "a tick for each"
    assert "1 diverged" in rows
    assert "the loss is not finite from step" in rows
    assert f"expkit -m {' '.join(rates.manifest.words)}" in rows


def test_a_page_says_what_came_out_first(rates: door.Sweep) -> None:
    said = page.findings(rates.results)
    problem, first = said[2]
    assert problem == "linear"
    times = "the times of 2 cells are not compared: their work is UNLIKE that of their baselines"
    assert first == f"{times}; 1 diverged."
    none = [
        f"none reaches the final loss of sgd · lr={rate} before it does." for rate in (0.001, 0.01)
    ]
    assert sorted(said[:2]) == [("linear", line) for line in none]
    rest = said[3:]
    assert [what for what, _ in rest] == ["Final loss by optimizer.lr"] * 2
    assert rest[0][1].startswith("the loss of sgd is least at optimizer.lr = 0.01")
    best = min(
        (r for r in rates if "adam" in r.title and r.losses.size), key=lambda r: r.losses[-1]
    )
    assert f"{best.losses[-1]:.6g}" in rest[1][1]
    text = text_of(rates)
    assert 0 < text.index(f"<b>{problem}</b>") < text.index("<table>")
    assert "below 1 is faster" not in text, "of those none is like its baseline"


def test_the_optimizer_that_is_sooner_at_a_loss_is_named(outputs: Path) -> None:
    words = ("problem=sine", "steps=300", "optimizer=sgd,momentum", "optimizer.lr=1e-6")
    found = door.sweep(*words, *QUICK)
    [(_, line), _] = page.findings(found.results)
    assert line.startswith("momentum reaches the final loss of sgd first: ")
    plain, fast = found
    after = int((fast.losses <= plain.losses[-1]).argmax())
    assert 0 < after < 250
    rows = [row for row in found.steps() if row["cell"] == 1]
    assert f"after {seconds(float(str(rows[after]['seconds'])))}, against" in line


def test_a_crossing_is_marked_in_its_chart(sizes: door.Sweep) -> None:
    [chart] = scaling.charts(sizes.results)
    at = Crossing(28.3, Point(20, 0.5, "FASTER"), Point(40, 2.0, "SLOWER"))
    chart.crossed.append((chart.curves[0], chart.curves[0], at))
    assert ">28.3</text>" in chart.svg()
    assert chart.findings[0].endswith("problem.n = 28.3 (between 20 and 40)")


def test_times_by_size_are_one_chart(sizes: door.Sweep) -> None:
    [chart] = scaling.charts(sizes.results)
    assert (chart.key, chart.of) == ("problem.n", "time")
    [curve] = chart.curves
    assert list(curve.x) == [10, 20, 40]
    assert list(curve.y) == [run.seconds for run in sizes]
    assert "Time by problem.n" in text_of(sizes)


def test_each_seed_has_a_curve_of_its_own(outputs: Path) -> None:
    found = door.sweep(*SIZES, *QUICK, "seed=1,2", "measure.repeats_max=6")
    [chart] = scaling.charts(found.results)
    assert [list(curve.x) for curve in chart.curves] == [[10, 20, 40]] * 2
    assert [curve.name for curve in chart.curves] == ["seed=1", "seed=2"]


def test_what_somebody_wrote_into_a_record_is_text(sizes: door.Sweep, tmp_path: Path) -> None:
    copy = tmp_path / "2026-01-01" / "00-00-00"
    shutil.copytree(sizes.folder, copy)
    kept = json.loads((copy / "sweep.json").read_text())
    kept["groups"][0] = "<script>alert(1)</script>"
    for cell in kept["cells"]:
        cell["title"] = cell["name"] = "</title><script>#ffffff $x^"
        cell["colour"] = 'red"><script>'
    (copy / "sweep.json").write_text(json.dumps(kept))
    parsed = Parsed(page.page([Results.read(Manifest.load(copy))]))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert any("<script>#ffffff $x^: " in title for title in parsed.titles), "and is not changed"


def test_of_many_cells_the_first_are_drawn(
    rates: door.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST", 3)
    monkeypatch.setattr(page, "CURVES", 2)
    text = page.page([rates.results])
    rows = "".join(Parsed(text).text)
    assert all(cell.name in rows for cell in rates.manifest.cells)
    assert text.count(" repeats</title>") == 3
    assert "The charts show the first 3 of 6 cells." in rows
    assert "losses of 1 more cell are not drawn" in rows


def test_several_sweeps_are_told_apart(
    rates: door.Sweep, sizes: door.Sweep, run: Callable[..., Done], tmp_path: Path
) -> None:
    file = tmp_path / "both.html"
    done = run("report", str(rates.folder), str(sizes.folder), "--output", str(file))
    assert (done.status, done.out, done.err) == (0, f"page: {file}\n", "")
    rows = "".join(Parsed(file.read_text(encoding="utf-8")).text)
    assert "2 sweeps. Times are compared within a sweep, and never from one to another" in rows
    assert rows.index(f"Sweep {rates.manifest.id}") < rows.index(f"Sweep {sizes.manifest.id}")


def test_an_experiment_has_its_sweeps_and_its_other_runs(
    rates: door.Sweep, outputs: Path, run: Callable[..., Done]
) -> None:
    one = door.run(door.cell("problem=linear", f"outputs={outputs}", *QUICK), here=True)
    done = run("report", "expkit", "--outputs", str(outputs))
    assert done.out == f"page: {outputs / page.FILE}\n"
    rows = "".join(Parsed((outputs / page.FILE).read_text(encoding="utf-8")).text)
    assert f"Sweep {rates.manifest.id}" in rows
    assert "Other runs" in rows
    assert one.title in rows[rows.index("Other runs") :]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "got 'nowhere', takes a run, a sweep or an experiment: "),
        (["RUN"], "takes a sweep or an experiment"),
        (["SWEEP", "--output", "/nowhere/a.html"], "cannot write /nowhere/a.html"),
        (["--outputs", "/nowhere"], "no sweep is kept in /nowhere"),
    ],
)
def test_bad_input_is_one_line(
    sizes: door.Sweep, run: Callable[..., Done], words: list[str], said: str
) -> None:
    places = {"RUN": str(sizes[0].folder), "SWEEP": str(sizes.folder)}
    done = run("report", *(places.get(word, word) for word in words))
    assert (done.status, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1, done.err
    assert said in done.err


def test_a_sweep_from_the_command_line_ends_with_its_page(expkit: Expkit) -> None:
    done = expkit("-m", *SIZES, *QUICK)
    assert done.status == 0, done.err
    [file] = expkit.outputs.glob(f"sweeps/*/*/{page.FILE}")
    assert f"page: {file}" in done.out
    file.unlink()
    assert expkit("report").out == f"page: {file}\n"
    assert file.is_file()


def test_without_pictures_there_is_no_page_and_nothing_that_draws_is_imported(
    expkit: Expkit,
) -> None:
    for words in (["-m", *SIZES, *QUICK[:-1]], ["problem=add", "steps=10", *QUICK[:-1]]):
        done = expkit.python(f"""
            import sys
            from expkit.cli import main
            status = main({words!r})
            print(status, "matplotlib" in sys.modules)
        """)
        assert done.out.endswith("0 False\n"), done.err
        assert "page:" not in done.out
    assert not list(expkit.outputs.glob(f"sweeps/*/*/{page.FILE}"))


def test_the_terminal_has_one_table_for_several_sizes(sizes: door.Sweep, rates: door.Sweep) -> None:
    """And the best rate of each optimizer."""
    head, *rows = str(sizes).splitlines()
    assert head.split() == ["add", "numpy"]
    assert [row.split()[0] for row in rows[:3]] == [f"problem.n={n}" for n in (10, 20, 40)]
    lines = str(rates).splitlines()
    best = [line for line in lines if line.startswith("Final loss by optimizer.lr: ")]
    assert [line.split(": ")[1].split()[3] for line in best] == ["sgd", "adam"]


def test_sizes_of_two_backends_stand_side_by_side(outputs: Path) -> None:
    both = ("backend.fast=true,false", "measure.repeats_max=12")
    [head, *rows] = str(door.sweep(*SIZES, *QUICK, *both)).splitlines()
    columns = [column.strip() for column in re.split("  +", head.strip())]
    fast, slow = "numpy, backend.fast=true", "numpy, backend.fast=false"
    assert columns == ["add", fast, slow, f"against {fast}", "verdict"]
    assert [row.split()[0] for row in rows[:3]] == [f"problem.n={n}" for n in (10, 20, 40)]
    for row in rows[:3]:
        assert re.search(r"\d\.\d{3} \(.*\) +(FASTER|SLOWER|SAME|CAN'T TELL)$", row), row


def test_where_the_work_differs_has_a_heading(outputs: Path) -> None:
    words = ("problem=linear", "backend.dtype=float64,float32", "steps=20")
    text = text_of(door.sweep(*words, *QUICK))
    _, _, after = text.partition("Where the work differs</h4>")
    assert "dtype: float64 against float32" in after.partition("</pre>")[0]


def test_what_is_evaluated_is_drawn_and_profiles_have_the_backends_colours(outputs: Path) -> None:
    pytest.importorskip("sklearn")
    words = ("problem=ridge,logistic", "optimizer=sgd,adam", "steps=400")
    text = text_of(door.sweep(*words, *QUICK))
    for what in ("accuracy by time", "held_out_loss by time", "Performance profile"):
        assert f"<figcaption>{what}</figcaption>" in text
    others = {name: colour for name, colour in SHIPPED.items() if name != "numpy"}
    assert [name for name, colour in others.items() if colour.lower() in text.lower()] == []
