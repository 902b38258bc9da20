"""Every planted fault through the real command line: `python -m benchmarks.faults`.

An honest twin of each kind has to be accepted. Exit status 1 where a fault is not caught.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import planted
from benchmarks.machine import machine

WORDS = ("backend=planted", "problem=sine", "tracking=none")
HEAD = [
    "# Planted faults",
    "",
    "Written by `python -m benchmarks.faults --output FILE`: a backend with one fault at a time",
    "(`benchmarks/planted.py`), run as `python -m expkit backend=planted problem=sine`. The first",
    "rows are its honest twins. Where the outcome is not ok, no speed is shown and the exit status",
    "is 1.",
    "",
]
COLUMNS = ["| fault | outcome | reason |", "| --- | --- | --- |"]
METADATA = "Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n"
ENTRY = "[expkit.plugins]\nplanted = planted_plugin\n"


def install(site: Path) -> None:
    """Make the plugin a distribution in this folder."""
    package, about = site / "planted_plugin", site / "planted-1.0.dist-info"
    files = {
        package / "__init__.py": Path(planted.__file__).read_text(),
        package / "conf" / "backend" / "planted.yaml": planted.OPTION.format(package=package.name),
        about / "METADATA": METADATA,
        about / "entry_points.txt": ENTRY,
    }
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def run(fault: str, place: Path) -> tuple[str, str]:
    """The outcome of a run with this fault, and the reason in its journal."""
    outputs = place / fault
    env = {**os.environ, "EXPKIT_OUTPUTS": str(outputs), "PYTHONPATH": str(place / "site")}
    words = [sys.executable, "-m", "expkit", *WORDS, f"backend.fault={fault}"]
    done = subprocess.run(words, env=env, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    [journal] = outputs.rglob("journal.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    tags: dict[str, str] = {}
    for record in records:
        tags |= record.get("tags", {})
    return tags["outcome"], tags.get("reason", "")


def main() -> int:
    """Run them all, print the table and, if asked, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--output", type=Path, help="a Markdown file to write")
    given = parser.parse_args()
    lines, kept = [], True
    with TemporaryDirectory() as folder:
        install(Path(folder) / "site")
        for fault in (*planted.HONEST, *planted.FAULTS):
            outcome, reason = run(fault, Path(folder))
            kept &= (outcome == "ok") == (fault in planted.HONEST)
            lines.append(f"| {fault.replace('_', ' ')} | {outcome} | {reason} |")
            print(lines[-1], flush=True)
    if given.output:
        given.output.write_text("\n".join([*HEAD, *machine(), "", *COLUMNS, *lines]) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
