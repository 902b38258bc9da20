"""How often a verdict between optimizers is wrong: `python -m benchmarks.targets [--output FILE]`.

Sweeps over optimizers of which it is known how soon they reach a gap above the optimum: plain
gradient descent, the same under another name, one that needs a tenth more steps, and one that never
gets there. The same should be FASTER or SLOWER in at most 2 of 40 sweeps, the slower one be SLOWER
in at least 36, and the last one be said not to reach the target in all. The exit status is 1 if
that does not hold.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import expkit
from benchmarks.machine import machine

ROOT = Path(__file__).parent.parent
OPTIMIZERS = {"twin": "Twin", "longer": "Longer", "stalling": "Stalling"}
WORDS = ("problem=ridge", "steps=2000", "target.of=gap", "target.value=1e-3", "optimizer.lr=0.05")


def verdicts(place: Path) -> dict[str, Any]:
    """Make one sweep; return what it says of each optimizer."""
    options = place / "conf" / "optimizer"
    options.mkdir(parents=True)
    for name, cls in OPTIMIZERS.items():
        (options / f"{name}.yaml").write_text(f"_target_: benchmarks.learners.{cls}\nlr: ???\n")
    names = ",".join(["sgd", *OPTIMIZERS])
    words = ["-m", *WORDS, f"optimizer={names}", "allow_target=true", "tracking=none"]
    folder = place / "sweep"
    words += ["--config-dir", str(place / "conf"), f"hydra.sweep.dir={folder}"]
    subprocess.run(
        [sys.executable, "-m", "expkit", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    found = expkit.load(folder)
    assert isinstance(found, expkit.Sweep)
    said: dict[str, Any] = {}
    for run, row in zip(found, found.rows(), strict=True):
        reached = run.stored.quantities.get("target/steps")
        said[str(row["optimizer"])] = (row["verdict"], row.get("ratio"), reached)
    return said


def main() -> int:
    """Make the sweeps, print what each says, and how often each verdict was given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targets")
    parser.add_argument("--sweeps", type=int, default=40)
    parser.add_argument("--output", type=Path, help="a Markdown file to write")
    given = parser.parse_args()
    words: dict[str, Counter[str]] = {name: Counter() for name in OPTIMIZERS}
    missed = 0
    for number in range(given.sweeps):
        with tempfile.TemporaryDirectory() as place:
            said = verdicts(Path(place))
        missed += said["stalling"][2] is None
        for name, counted in words.items():
            counted[said[name][0]] += 1
        line = ", ".join(f"{n} {said[n][0]} {said[n][1] or 0:.3f}" for n in OPTIMIZERS)
        print(f"{number + 1:3}  {line}", flush=True)
    n = given.sweeps
    wrong = words["twin"]["FASTER"] + words["twin"]["SLOWER"]
    found = words["longer"]["SLOWER"]
    rows = [
        ("under another name", "FASTER or SLOWER", wrong, "at most 2 of 40", wrong <= n / 20),
        ("a tenth more steps", "SLOWER", found, "at least 36 of 40", found >= 0.9 * n),
        ("never there", "not reached", missed, "all", missed == n),
    ]
    lines = [f"| {what} | {word} | {k} of {n} | {bound} |" for what, word, k, bound, _ in rows]
    print("\n".join(lines))
    if given.output:
        about = ["# Verdicts between optimizers", "", *(__doc__ or "").splitlines()[2:], ""]
        head = ["| optimizer | verdict | sweeps | promised |", "| --- | --- | --- | --- |"]
        how = f"- `expkit -m {' '.join(WORDS)} optimizer=sgd,{','.join(OPTIMIZERS)}`"
        given.output.write_text("\n".join([*about, *machine(), how, "", *head, *lines]) + "\n")
    return 0 if all(holds for *_, holds in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
