"""`make docs`: everything in README and docs/ that a run printed or drew, made again by a run.

Writes README's example, docs/sine.png, docs/benchmarks.md, docs/verdicts.md, docs/faults.md and
docs/tutorials.md. That takes most of an hour and wants a quiet machine; `--quick` makes the example
alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.image import imread, imsave

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGES = {
    "benchmarks.md": ["-m", "benchmarks"],
    "verdicts.md": ["-m", "benchmarks.verdicts"],
    "faults.md": ["-m", "benchmarks.faults"],
    "tutorials.md": ["docs/tutorials.py"],
}
"""Each page with what writes it; one that keeps no promise says so and exits with 1."""


def example() -> None:
    """Run the default cell; put what it prints into README and its pictures side by side."""
    with tempfile.TemporaryDirectory() as outputs:
        run(f"outputs={outputs}")  # makes the database
        printed = run(f"outputs={outputs}")
        folder = Path(re.search(r"where +(\S+)", printed)[1])  # type: ignore[index]
        pictures = [imread(folder / name) for name in ("fit.png", "loss.png")]
        imsave(HERE / "sine.png", np.hstack(pictures))
        printed = printed.replace(outputs, "outputs")
    pattern = r"(<!-- example: make run -->\n```\n).*?(```)"
    text = re.sub(pattern, lambda m: m[1] + printed + m[2], README.read_text(), flags=re.DOTALL)
    README.write_text(text)


def measured() -> None:
    """Make the pages of measurements; all name the tree as it is before any is put in it."""
    with tempfile.TemporaryDirectory() as made:
        for page, words in PAGES.items():
            command = [sys.executable, *words, "--output", str(Path(made, page))]
            subprocess.run(command, cwd=HERE.parent, check=False)
        for file in Path(made).iterdir():
            shutil.copy(file, HERE)


def run(*words: str) -> str:
    """What `python -m expkit` prints."""
    command = [sys.executable, "-m", "expkit", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Make all, or all that is quick."""
    parser = argparse.ArgumentParser(prog="python docs/make.py")
    parser.add_argument("--quick", action="store_true", help="the example alone")
    given = parser.parse_args()
    if not given.quick:
        measured()
    example()


if __name__ == "__main__":
    main()
