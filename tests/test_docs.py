"""README and docs: links lead somewhere, and the page of measurements can be made."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Expkit

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def dead_links(page: Path) -> list[str]:
    """Targets of relative links and pictures that are not there."""
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    return [t for t in targets if "://" not in t and not (page.parent / t).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    assert not dead_links(page)


def test_the_readmes_script_runs(expkit: Expkit) -> None:
    """As it is printed; only less is measured, PyTorch is spared, and MLflow is left alone."""
    [script] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    fewer = 'problem="sine", tracking="none", **{"measure.budget_s": 0.05, "measure.settle_s": 0}'
    shorter = script.replace('problem="sine"', fewer).replace("torch", "numpy")
    done = expkit.python(shorter)
    assert done.status == 0, done
    assert done.out.count("\nsine · numpy · sgd ") == 2, done


def test_the_tutorials_page_is_made(tmp_path: Path) -> None:
    """At a tiny size: every section, every comparison, every figure, and no value left unfilled."""
    pytest.importorskip("torch")
    page = tmp_path / "page.md"
    words = ["docs/tutorials.py", "--scale", "tiny", "--output", str(page)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert re.findall(r"^## (\d)", text, re.MULTILINE) == list("1234567")
    assert text.count("| the loop as written, one timing |") == 6
    assert text.count("| NumPy, float64, the tutorial's |") == 4
    assert text.count("| NumPy, float64, ours |") == 2
    assert text.count("against numpy") == 7, "as expkit prints it"
    assert text.count("| diverged: ") == 3
    assert not dead_links(page)
