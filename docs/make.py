"""`make docs`: everything in README and docs/ that a run printed or drew, made again by a run.

Writes README's example, docs/sine.png, docs/benchmarks.md, docs/verdicts.md, docs/faults.md and
docs/tutorials.md. That takes most of an hour and wants a quiet machine; `--quick` makes the example
alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.image import imread, imsave

HERE = Path(__file__).parent
MAKE = ("make", "run")
EXAMPLE = r"<!-- example: (?P<command>[^\n]*) -->\n(```\n.*?```\n)?"
README = HERE.parent / "README.md"
PAGES = {
    "benchmarks.md": ["-m", "benchmarks"],
    "verdicts.md": ["-m", "benchmarks.verdicts"],
    "faults.md": ["-m", "benchmarks.faults"],
    "tutorials.md": ["docs/tutorials.py"],
}
"""Each page with what writes it; one that keeps no promise says so and exits with 1."""


def examples() -> None:
    """Run every command that a page shows with what it prints, and put that below it."""
    with tempfile.TemporaryDirectory() as outputs:
        run(outputs)  # makes the database
        for page in (README, HERE / "sweeps.md"):
            text = re.sub(EXAMPLE, partial(_filled, outputs), page.read_text(), flags=re.DOTALL)
            page.write_text(text)


def _filled(outputs: str, found: re.Match[str]) -> str:
    command = found["command"]
    printed = run(outputs, *shlex.split(command.removeprefix("python -m expkit")))
    if where := re.search(r"where +(\S+)", printed):
        pictures = [imread(Path(where[1], name)) for name in ("fit.png", "loss.png")]
        imsave(HERE / "sine.png", np.hstack(pictures))
    return f"<!-- example: {command} -->\n```\n{printed.replace(outputs, 'outputs')}```\n"


def measured() -> None:
    """Make the pages of measurements; all name the tree as it is before any is put in it."""
    with tempfile.TemporaryDirectory() as made:
        for page, words in PAGES.items():
            command = [sys.executable, *words, "--output", str(Path(made, page))]
            subprocess.run(command, cwd=HERE.parent, check=False)
        for file in Path(made).iterdir():
            shutil.copy(file, HERE)


def run(outputs: str, *words: str) -> str:
    """What `make run` prints, or `python -m expkit` with these words."""
    command = [sys.executable, "-m", "expkit", *(word for word in words if word not in MAKE)]
    env = {**os.environ, "EXPKIT_OUTPUTS": outputs}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


def main() -> None:
    """Make all, or all that is quick."""
    parser = argparse.ArgumentParser(prog="python docs/make.py")
    parser.add_argument("--quick", action="store_true", help="the examples alone")
    given = parser.parse_args()
    if not given.quick:
        measured()
    examples()


if __name__ == "__main__":
    main()
