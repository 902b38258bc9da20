"""`make docs`: everything in README and docs/ that a run printed or drew, made again by a run.

Writes README's example, docs/sine.png and docs/benchmarks.md. The benchmarks take minutes and want
a quiet machine; `--quick` leaves them as they are.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.image import imread, imsave

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


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


def run(*words: str) -> str:
    """What `python -m expkit` prints."""
    command = [sys.executable, "-m", "expkit", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Make all, or all that is quick."""
    parser = argparse.ArgumentParser(prog="python docs/make.py")
    parser.add_argument("--quick", action="store_true", help="without the benchmarks")
    given = parser.parse_args()
    if not given.quick:  # first, so that the tree it names is as committed
        report = ["--output", str(HERE / "benchmarks.md")]
        subprocess.run([sys.executable, "-m", "benchmarks", *report], cwd=HERE.parent, check=False)
    example()


if __name__ == "__main__":
    main()
