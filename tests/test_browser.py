"""What a person sees: MLflow's page as `expkit ui` opens it, and a sweep's own page.

`make screenshots` keeps the pictures in docs/.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from services import need

from expkit.sweeps import page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Expkit

SWEEP = ("problem=sine", "backend=numpy", "optimizer=sgd,momentum", "optimizer.lr=1e-7,1e-6")
SIZES = ("problem=sine", "backend=numpy,torch", "problem.n=200,2000,20000")
RATES = ("problem=sine", "optimizer=sgd,momentum,adam", "optimizer.lr=1e-8,1e-7,1e-6,1e-5")
TARGETS = ("problem=ridge,logistic", "optimizer=sgd,adam", "seed=1,2")
TIMES = (
    "steps=400",
    "measure.repeats_min=12",
    "measure.repeats_per_placement=1",
    "measure.budget_s=0",
    "measure.settle_s=0",
)
LONG = 1900
"""The most pixels of a page in a picture."""
DEADLINE_S = 200.0
"""Four tests at once may measure beside each other, with a browser."""
WAIT_MS = 60_000
FULL = """() => [...document.querySelectorAll('.js-plotly-plot')]
    .filter(chart => (chart.data || []).some(trace => (trace.y || trace.x || []).length > 0)).length
"""
"""Counts the charts that hold data, in the browser."""


class Seen(NamedTuple):
    """A browser's page, the address of MLflow, and the sweep's folder."""

    page: Any
    home: str
    start: str
    sweep: Path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    need("chromium", packages=("playwright", "torch"))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def seen(expkit: Expkit, chromium: Any) -> Iterator[Seen]:
    done = expkit.end(expkit.start("-m", *SWEEP, *TIMES), DEADLINE_S)
    assert done.status == 0, done.err
    [sweep] = expkit.outputs.glob("sweeps/*/*/")
    server = expkit.start("ui", "--port", "0")
    assert server.stdout is not None
    start = next(line.strip() for line in server.stdout if line.startswith("http://127.0.0.1"))
    home = f"http://{urlsplit(start).netloc}/"
    window = chromium.new_page(viewport={"width": 1600, "height": 1000})
    window.set_default_timeout(WAIT_MS)
    yield Seen(window, home, start, sweep)
    window.close()
    os.killpg(server.pid, signal.SIGINT)
    assert expkit.end(server).status == 0


def brightness(colour: str) -> float:
    """How bright a computed colour is, from 0 to 255."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
    whole = 255.0 if colour.startswith("color(") else 1.0
    return whole * sum(n * w for n, w in zip(numbers, (0.3, 0.59, 0.11), strict=True))


def kept(window: Any, name: str) -> None:
    """Keep a picture of the page, if pictures are wanted: as much of it as is read at once."""
    if folder := os.environ.get("EXPKIT_SCREENSHOTS"):
        width, height = window.evaluate("() => [innerWidth, document.body.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, LONG)}
        window.screenshot(path=str(Path(folder) / name), full_page=True, clip=clip)


def test_mlflows_page_is_ready_on_opening(seen: Seen) -> None:
    """Without a click: every run by its name, charts with data; then what a click leads to."""
    window = seen.page
    window.goto(seen.start)
    window.wait_for_function(f"({FULL})() >= 3", timeout=WAIT_MS)
    names = [f"{o} · lr={rate}" for o in ("sgd", "momentum") for rate in ("1e-07", "1e-06")]
    for name in names:
        window.get_by_role("link", name=name, exact=True).first.wait_for()
    assert "4 matching runs" in window.inner_text("body")
    assert f"tags.sweep = '{'/'.join(seen.sweep.parts[-2:])}'" in window.inner_html("body")
    kept(window, "mlflow.png")

    hrefs = [
        window.get_by_role("link", name=name, exact=True).first.get_attribute("href")
        for name in names
    ]
    ids = [str(href).rpartition("/")[2] for href in hrefs]
    both = ",".join(f'"{one}"' for one in ids)
    window.goto(f'{seen.home}#/compare-runs?runs=[{both}]&experiments=["1"]')
    for name in names:
        window.get_by_text(name).first.wait_for()

    window.goto(seen.start.replace("&compareRunsMode=CHART", ""))
    for column in ("outcome", "time/median_ms", "verdict", "stable"):
        window.get_by_role("columnheader").get_by_text(column, exact=True).first.wait_for()

    window.goto(f"{seen.home}#/experiments/1/runs/{ids[0]}")
    window.get_by_text("verdict:").first.wait_for()
    window.goto(f"{seen.home}#/experiments/1/runs/{ids[0]}/artifacts/loss.png")
    window.wait_for_function(
        "() => [...document.images].some(image => image.naturalWidth > 300)", timeout=WAIT_MS
    )
    window.goto(f"{seen.home}#/experiments/1/runs/{ids[0]}/artifacts/{page.FILE}")
    window.reload()  # by the address alone it would stay with the picture
    inside = window.frame_locator("iframe")
    inside.get_by_text("Time of a run: each repeat").first.wait_for()


@pytest.mark.parametrize(
    ("words", "scheme", "picture"),
    [
        (SIZES, "light", "page-light.png"),
        (SIZES, "dark", "page-dark.png"),
        (RATES, "light", "page-rates.png"),
        (TARGETS, "dark", "page-targets.png"),
    ],
)
def test_a_sweeps_page_is_read_in_light_and_in_dark(
    expkit: Expkit, chromium: Any, words: tuple[str, ...], scheme: str, picture: str
) -> None:
    more = ("tracking=none", "tracking.pictures=true")
    done = expkit.end(expkit.start("-m", *words, *TIMES, *more), DEADLINE_S)
    assert done.status == 0, done.err
    [file] = expkit.outputs.glob(f"sweeps/*/*/{page.FILE}")
    window = chromium.new_page(color_scheme=scheme, viewport={"width": 1300, "height": 1000})
    asked: list[str] = []
    window.on("request", lambda request: asked.append(request.url))
    window.goto(file.as_uri())
    assert asked == [file.as_uri()], "nothing else is fetched"
    shades = {
        what: window.evaluate(f"() => getComputedStyle(document.querySelector('{where}')).{css}")
        for what, where, css in (
            ("paper", "body", "backgroundColor"),
            ("ink", "svg text", "fill"),
            ("line", "svg g:has(> title) path", "stroke"),
        )
    }
    bright = {what: brightness(shade) for what, shade in shades.items()}
    for what in ("ink", "line"):
        assert abs(bright[what] - bright["paper"]) > 60, shades
    assert (bright["paper"] > 128) == (scheme == "light")
    kept(window, picture)
    folds = window.locator("details").count()
    window.emulate_media(media="print")
    for fold in range(folds):
        inside = window.locator("details > :not(summary)").nth(fold)
        assert inside.bounding_box()["height"] > 0, "what is folded is printed"
    window.close()
