"""`make docs`: everything in README and docs/ that a run printed or drew, made again by a run.

Writes the examples in README and docs/sweeps.md, docs/sine.png and the pages of measurements. That
takes most of an hour and wants a quiet machine; `--quick` makes the examples alone. `--clusters`
makes those of docs/clusters.md alone: SLURM and Ray must be installed.
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
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.image import imread, imsave

HERE = Path(__file__).parent
EXPKIT = "python -m expkit"
EXAMPLE = r"<!-- example: (?P<command>[^\n]*) -->\n(```\n.*?```\n)?"
README = HERE.parent / "README.md"
PAGES = {
    "benchmarks.md": ["-m", "benchmarks"],
    "verdicts.md": ["-m", "benchmarks.verdicts"],
    "faults.md": ["-m", "benchmarks.faults"],
    "optimizers.md": ["docs/optimizers.py"],
    "targets.md": ["-m", "benchmarks.targets"],
    "tutorials.md": ["docs/tutorials.py"],
}
"""Each page with what writes it; one that keeps no promise says so and exits with 1."""


def examples(pages: Sequence[Path], env: Mapping[str, str]) -> None:
    """Run every command that these pages show with what it prints, and put that below it."""
    with tempfile.TemporaryDirectory() as outputs:
        env = {**os.environ, **env, "EXPKIT_OUTPUTS": outputs}
        run(EXPKIT, env)  # makes the database
        for page in pages:
            fill = partial(_filled, env)
            page.write_text(re.sub(EXAMPLE, fill, page.read_text(), flags=re.DOTALL))


def _filled(env: Mapping[str, str], found: re.Match[str]) -> str:
    command = found["command"]
    printed = run(EXPKIT if command == "make run" else command, env)
    if where := re.search(r"saved to +(\S+)", printed):
        pictures = [imread(Path(where[1], name)) for name in ("fit.png", "loss.png")]
        imsave(HERE / "sine.png", np.hstack(pictures))
    printed = printed.replace(env["EXPKIT_OUTPUTS"], "outputs")
    return f"<!-- example: {command} -->\n```\n{printed}```\n"


def clusters() -> None:
    """Run the sessions of docs/clusters.md, on clusters that are started here."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from services import run_ray, run_slurm

    with run_slurm() as slurm, run_ray() as ray:
        env = {**slurm.env, **ray.env, "RAY_ADDRESS": ray.address}
        examples([HERE / "clusters.md"], env)


def measured() -> None:
    """Make the pages of measurements; all name the tree as it is before any is put in it."""
    with tempfile.TemporaryDirectory() as made:
        for page, words in PAGES.items():
            command = [sys.executable, *words, "--output", str(Path(made, page))]
            subprocess.run(command, cwd=HERE.parent, check=False)
        for file in Path(made).iterdir():
            shutil.copy(file, HERE)


def run(command: str, env: Mapping[str, str]) -> str:
    """What a command prints, `python` being this one."""
    words = shlex.split(command)
    words[0] = sys.executable if words[0] == "python" else words[0]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=env).stdout


def main() -> None:
    """Make all, or what is asked for."""
    parser = argparse.ArgumentParser(prog="python docs/make.py")
    parser.add_argument("--quick", action="store_true", help="the examples alone")
    parser.add_argument("--clusters", action="store_true", help="docs/clusters.md alone")
    given = parser.parse_args()
    if given.clusters:
        clusters()
        return
    if not given.quick:
        measured()
    examples([README, HERE / "sweeps.md"], {})


if __name__ == "__main__":
    main()
