"""Make docs/optimizers.md: which optimizer is first at its target, on four problems, ten seeds.

    python docs/optimizers.py [--scale tiny] [--output FILE]

Runs the sweep, writes the page with its tables, and draws docs/optimizers.png beside it. At full
scale this takes about a quarter of an hour; `--scale tiny` shows that the page can be made.
"""

from __future__ import annotations

import argparse
import sys
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are not installed
import expkit
from benchmarks.machine import machine
from expkit.record.colours import OTHERS, SHIPPED
from expkit.report.formats import markdown
from expkit.sweeps import profiles

ABOUT = """# Which optimizer gets there first

Written by `python docs/optimizers.py`. Five optimizers at the rates that the problems recommend, on
four problems and ten seeds, each until the target that the problem sets:
"""
SEEDS = """
A seed changes the start, the minibatches and, for `logistic` and `mlp`, which rows are held out.
The interval is over seeds. A verdict is on the time until the target, seed by seed against `sgd`.
"""
FIGURE = """
Left: with which share of the problems and seeds an optimizer takes at most so many times as long as
the one that was first (Dolan and Moré, 2002). Right: with which share it has reached the target
after so many seconds. The bands are from resampling problems, and seeds in them.

## What may be concluded, and what not
"""
CONCLUDED = """\
- The verdicts hold for these problems at these rates, on this machine. Each rate is one that the
  problem recommends, and was not searched for as carefully for every optimizer: another rate may
  turn a verdict round. A sweep over several rates, `optimizer.lr=...`, says whether.
- Seconds are those of the NumPy backend, whose step costs an optimizer more or less than it does on
  a GPU. The steps until the target do not depend on that.
- Four problems are few. The bands say how much the curves depend on which of these were taken; they
  say nothing of problems that are unlike them.
"""
PROBLEMS = ("ridge", "logistic", "mlp", "matrix_factorization")
OPTIMIZERS = ("sgd", "momentum", "adam", "rmsprop", "lion")
SCALES = {"full": 10, "tiny": 2}
"""The number of seeds."""


def measured(seeds: int) -> expkit.Sweep:
    """Run the sweep."""
    quick = {} if seeds == SCALES["full"] else {"measure.budget_s": 0, "measure.repeats_min": 2}
    return expkit.sweep(
        problem=PROBLEMS, optimizer=OPTIMIZERS, seed=range(seeds), tracking="none", **quick
    )


def draw(found: profiles.Times, file: Path) -> None:
    """Draw the performance profile, and the targets reached by time."""
    mpl.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    drawn = (profiles.performance(found), profiles.reached(found))
    labels = ("times as long as the first one", "seconds")
    colours = cycle((*SHIPPED.values(), *OTHERS))
    palette = {name: colour for name, colour in zip(found, colours, strict=False)}
    for place, curves, label in zip(axes, drawn, labels, strict=True):
        for curve in curves:
            name, colour = curve.name.removeprefix("numpy · "), palette[curve.name]
            place.plot(curve.x, curve.y, color=colour, label=name)
            place.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.12, lw=0)
        place.set(xscale="log", xlabel=label, ylim=(-0.02, 1.02))
        place.grid(alpha=0.3)
    axes[0].set_ylabel("share of problems and seeds")
    axes[1].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def page(sweep: expkit.Sweep, picture: str) -> str:
    """Write the page."""
    words = f"problem={','.join(PROBLEMS)} optimizer={','.join(OPTIMIZERS)}"
    seeds = len({run.config["seed"] for run in sweep})
    command = f"python -m expkit -m {words} 'seed=range({seeds})'"
    missed = [
        f"{run.config['problem']}, {run.config['optimizer']}, seed {run.config['seed']}"
        for run in sweep
        if run.stored.target and run.seconds_to_target is None
    ]
    lines = [ABOUT, f"```\n{command}\n```\n", *machine(), "", SEEDS]
    for (title, _), (_, table) in zip(sweep.results.by_problem(), sweep.tables(), strict=True):
        aim = next(run.stored.target for run in sweep if run.config["problem"] == title)
        lines += [f"## {title}: {aim}", "", markdown(table), ""]
    lines += [f"![Performance profile, and targets reached by time]({picture})", "", FIGURE]
    never = "; ".join(missed) if missed else "none"
    lines += [f"- Not reached: {never}. Those count as never, and are in no mean.", CONCLUDED]
    return "\n".join(lines)


def main() -> int:
    """Run the sweep and write the page."""
    parser = argparse.ArgumentParser(prog="python docs/optimizers.py")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "optimizers.md")
    given = parser.parse_args()
    sweep = measured(SCALES[given.scale])
    picture = given.output.with_suffix(".png")
    draw(profiles.times(sweep.results), picture)
    given.output.write_text(page(sweep, picture.name))
    print(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
