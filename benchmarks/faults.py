"""Every planted fault through the real command line: a Markdown table of what became of it.

python -m benchmarks.faults
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import planted

WORDS = ("backend=planted", "problem=sine", "tracking=none")
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


def main() -> None:
    print("| fault | outcome | reason |\n| --- | --- | --- |")
    with TemporaryDirectory() as folder:
        install(Path(folder) / "site")
        for fault in (*planted.HONEST, *planted.FAULTS):
            outcome, reason = run(fault, Path(folder))
            print(f"| {fault.replace('_', ' ')} | {outcome} | {reason} |", flush=True)


if __name__ == "__main__":
    main()
