"""A whole sweep against benchopt's whole run: `python -m benchmarks.sweeps.benchopt`.

The sine fit in NumPy by hand and in PyTorch with autograd, 2,000 points and steps, 5 repeats each,
MLflow's database written. benchopt (https://benchopt.github.io) runs its own protocol, each solver
once a repeat, on the files in `benchopt_sine/`. The two commands are timed in turn, from start to
end. benchopt lives in an environment of its own, which is made once and kept: it sees the NumPy and
PyTorch of this one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.pairs import paired
from benchmarks.sweeps.page import table, write_section
from benchmarks.sweeps.place import Place

BENCHOPT = "benchopt==1.10.*"
FILES = Path(__file__).parent / "benchopt_sine"
REPEATS = 5
WORDS = (
    "-m",
    "problem=sine",
    "backend=numpy,torch",
    f"measure.repeats_min={REPEATS}",
    f"measure.repeats_max={REPEATS}",
)
WAYS = {
    "neither draws": (("tracking.pictures=false",), ("--no-plot",)),
    "both draw": ((), ("--no-display",)),
}
"""More words for expkit and for benchopt."""
HEAD = ["", "expkit, s", "benchopt, s", "benchopt / expkit (least to greatest)"]


def environment(folder: Path) -> Path:
    """Return the Python that has benchopt, which is installed there if it is not yet."""
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        origins = (spec.origin for spec in map(find_spec, ("numpy", "torch")) if spec)
        shared = {str(Path(origin).parent.parent) for origin in origins if origin}
        (site / "shared.pth").write_text("\n".join(sorted(shared)))
        subprocess.run([python, "-m", "pip", "install", "--quiet", BENCHOPT], check=True)
        (folder / "ready").touch()
    return python


def run_benchopt(python: Path, words: tuple[str, ...]) -> None:
    """Run benchopt on a fresh copy of its files, so that nothing comes from its cache."""
    with TemporaryDirectory() as folder:
        benchmark = Path(folder) / "benchmark_sine"
        shutil.copytree(FILES, benchmark)
        run = ("-m", "benchopt", "run", str(benchmark), "-r", str(REPEATS))
        command = [str(python), *run, *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not list(benchmark.glob("outputs/*.parquet")):
            raise RuntimeError(f"benchopt: status {done.returncode}\n{done.stdout}{done.stderr}")


def row(python: Path, pairs: int, way: str) -> list[object]:
    """A line of the table."""
    ours, theirs = WAYS[way]
    with TemporaryDirectory() as folder:
        place = Place(Path(folder))  # its database is made in the warm-up
        found = paired(
            lambda: place.run(*WORDS, *ours), lambda: run_benchopt(python, theirs), pairs
        )
    ratio = f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"
    return [way, f"{found.ours:.2f}", f"{found.other:.2f}", ratio]


def main() -> int:
    """Print the table and, if asked, write it into the page; return 1 if benchopt is faster."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.benchopt")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--environment", type=Path, default=cache / "expkit" / "benchopt")
    parser.add_argument("--output", type=Path, help="a Markdown page, its section is replaced")
    given = parser.parse_args()
    python = environment(given.environment)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # both cache bytecode, as by default
    rows = []
    print(*table(HEAD, []), sep="\n", flush=True)
    for way in WAYS:
        rows.append(row(python, given.pairs, way))
        print(table(HEAD, rows)[-1], flush=True)
    if given.output:
        about = (
            f"`problem=sine backend=numpy,torch`, {REPEATS} repeats a cell,\nwith MLflow's sqlite "
            f"database, against {BENCHOPT} on the same fit, each command from its start to\nits "
            f"end, {given.pairs} pairs in turn after a warm-up of each, medians."
        )
        command = "python -m benchmarks.sweeps.benchopt"
        write_section(given.output, "Against benchopt", command, about, table(HEAD, rows))
    return 0 if all(float(str(line[1])) <= float(str(line[2])) for line in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
