"""`make docs`: docs/tutorials.md, the tutorials' parts as they are written and as expkit does them.

    python docs/tutorials.py [--scale tiny] [--sums N] [--output FILE.md]

The page's words stand in tutorials.md.template, and every number comes from the run that fills it
in, except those that the tutorials printed. Their loops, and those of ours that stand beside them
(`benchmarks/loops.py`), run in a process of their own, which expkit has not touched, once each,
with a timer around them. A full run takes minutes and wants a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are not installed
import expkit
from benchmarks import loops, printed
from benchmarks.machine import machine
from benchmarks.notebook import CUDA, NUMPY, SIDES, TORCH, Notebook, Side, Timings
from benchmarks.pairs import paired
from expkit.authors import first_params
from expkit.contracts import HostArray
from expkit.units import seconds

HERE = Path(__file__).parent
DTYPES = ("float64", "float32")
NO_GPU = "not measured on a GPU (PyTorch finds none here)"
Fill = dict[str, Any]
"""What fills a part of the page, by name."""


@dataclass(frozen=True)
class Scale:
    """How much is run. Sizes are the tutorials' own, except that of the sums."""

    sine_steps: int = 2000
    sums: int = 3000
    vector: int = 10_000_000
    rounds: int = 11
    short: tuple[str, ...] = ("measure=standard",)
    long: tuple[str, ...] = (
        "measure=standard",
        "measure.repeats_per_placement=1",
        "measure.repeats_min=6",
        "measure.repeats_max=12",
    )


TINY = (
    "measure.repeats_min=6",
    "measure.repeats_per_placement=1",
    "measure.budget_s=0",
    "measure.settle_s=0",
)
SCALES = {"full": Scale(), "tiny": Scale(200, 40, 500, 1, TINY, TINY)}
ONCE = ("measure.repeats_min=1", "measure.repeats_max=1", "measure.warmup=0")
UNSENT = "tracking=none"
"""The page is all that is kept."""


# ---------------------------------------------------------------------------- expkit's way


def measure(experiment: str, *words: str) -> expkit.Sweep:
    """Every side that is here in both dtypes, in turn, the arrays of all placed anew."""
    backends, dtypes = [side.backend for side in SIDES], f"backend.dtype={','.join(DTYPES)}"
    return expkit.sweep(f"+experiment={experiment}", dtypes, UNSENT, *words, backend=backends)


def once(experiment: str, side: Side, dtype: str, *words: str) -> expkit.Run:
    """One repeat of one cell, for its answer."""
    chosen = (f"+experiment={experiment}", f"backend={side.backend}", f"backend.dtype={dtype}")
    return expkit.run(expkit.cell(*chosen, UNSENT, *ONCE, *words), here=True)


@dataclass(frozen=True)
class Comparison:
    """PyTorch on the CPU against NumPy, as written and like for like.

    Attributes:
        once: one timing of each side's loop.
        steps: of these loops.
        ours: the sides whose loop is ours.
        sweep: expkit's.
        holds: what else is in that one timing.
    """

    what: str
    once: Timings
    steps: int
    ours: Sequence[Side]
    sweep: expkit.Sweep
    holds: str

    @property
    def ratio(self) -> float:
        """Of one timing of each loop."""
        return self.once[TORCH].returned / self.once[NUMPY].returned

    def alike(self, dtype: str) -> expkit.Comparison:
        """Both in the same dtype."""
        cells = {(run.config["backend"], run.config["backend.dtype"]): run for run in self.sweep}
        return expkit.compare(*(cells[side.backend, dtype] for side in (NUMPY, TORCH)))

    @property
    def written(self) -> str:
        """The loops' table; on a GPU also when the steps were done that the loop had queued."""
        rows = []
        for side, timing in self.once.items():
            queued = "" if side.device == "cpu" else f", done after {seconds(timing.done)}"
            whose = "ours" if side in self.ours else "the tutorial's"
            ratio = timing.returned / self.once[NUMPY].returned
            timed = f"{seconds(timing.returned / self.steps)} a step{queued}"
            rows.append([f"{side.label}, {side.dtype}, {whose}", timed, f"{ratio:.3g}"])
        return table(["the loop as written, one timing", "", "times NumPy's"], rows)


# ----------------------------------------------------------------------------------- words


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(found: expkit.Comparison) -> str:
    """The ratio, its interval and the word."""
    if found.verdict is None:
        return "no verdict"
    interval = found.verdict.interval
    ends = "" if interval is None else " ({:.3g} to {:.3g})".format(*interval)
    return f"{found.verdict.ratio:.3g}{ends} {found.word}"


def drawing(timings: Timings, steps: int, alone: Mapping[Side, float]) -> Fill:
    """The draw's share of the loops; timed apart, so noise may take it beyond 1."""
    shares = {side: alone[side] / (timing.done / steps) for side, timing in timings.items()}
    rows = [
        [side.label, seconds(timings[side].done / steps), seconds(alone[side]), f"{share:.0%}"]
        for side, share in shares.items()
    ]
    return {
        "drawing": table(["as written", "a step", "its draw alone", "share"], rows),
        "holds": f"the draw: {shares[NUMPY]:.0%} of NumPy's, {shares[TORCH]:.0%} of PyTorch's",
    }


# -------------------------------------------------------------------- the parts of the page


def sine(notebook: Notebook, scale: Scale) -> Fill:
    """Tutorial 1."""
    n, steps, lr = 2000, scale.sine_steps, 1e-6
    x = np.linspace(-np.pi, np.pi, n)
    y, basis = np.sin(x), np.stack([x**k for k in range(4)])
    start = first_params(expkit.cell("+experiment=sine").workload)["w"]
    timings = {NUMPY: notebook.time(loops.sine_tutorial_numpy, x, y, start, steps, lr)}
    for side in SIDES[1:]:
        given = (start.tolist(), n, steps, lr, side.device)
        timings[side] = notebook.time(loops.sine_autograd, *given, device=side.device)

    def run(loop: Callable[..., Any], dtype: str = "float64") -> Callable[[], object]:
        args = (x.astype(dtype), y.astype(dtype), start.astype(dtype))
        return partial(loop, *args, steps, lr)

    as_written = run(loops.sine_tutorial_numpy)
    careful = partial(loops.sine_careful_numpy, basis, y, start, steps, lr)
    ways: dict[str, Callable[[], object]] = {
        "the same in float32": run(loops.sine_tutorial_numpy, "float32"),
        "in float64, powers before the loop": run(loops.sine_powers_once_numpy),
        "… as two products with the powers, in place": careful,
    }
    pairs = {what: paired(way, as_written, scale.rounds) for what, way in ways.items()}
    before = pairs["in float64, powers before the loop"]
    powers = f"{1 - 1 / before.ratio:.0%}"
    rows = [["the tutorial's loop, float64", seconds(before.other / steps), "1"]]
    rows += [[w, seconds(p.ours / steps), f"{1 / p.ratio:.2g}"] for w, p in pairs.items()]
    cells = measure("sine", f"steps={steps}", *scale.short)
    holds = f"{powers} of NumPy's is powers of x anew"
    return {
        "sine": Comparison("y = sin(x)", timings, steps, SIDES[1:], cells, holds),
        "rounds": scale.rounds,
        "powers": powers,
        "ladder": table(["NumPy", "a step", "times the tutorial's"], rows),
    }


def sine_printed() -> Fill:
    """The tutorial's printed losses beside expkit's, from a start that is fitted to them."""
    start, cell = printed.start(), expkit.cell("+experiment=sine")
    program = cell.backend.build(cell.workload)
    program.arrays()["params.w"][...] = start
    program.advance(printed.STEPS)
    at = range(99, printed.STEPS, 100)
    losses = program.losses()[at]
    names = [*map(str, at), *(f"{name} at the end" for name in "abcd")]
    theirs = np.append(printed.LOSSES, printed.RESULT)
    ours = np.append(losses, program.params()["w"])
    rows = [
        [n, repr(float(a)), repr(float(b))] for n, a, b in zip(names, theirs, ours, strict=True)
    ]
    a, b, c, d = start
    return {
        "cubic": f"{a:.6f} {b:+.6f} x {c:+.6f} x² {d:+.6f} x³",
        "printed": table(["step", "the tutorial printed", "expkit, NumPy, float64"], rows),
        "off": np.abs(losses / printed.LOSSES - 1).max(),
    }


def memory() -> Fill:
    """Tutorial 2, tensors and NumPy."""
    a = np.random.default_rng(0).standard_normal(5)
    a_pt, before = torch.from_numpy(a), a.copy()
    np.add(a, 1, out=a)
    x = torch.ones([3, 2])
    x_np = x.numpy()
    x.add_(x)
    named = (("`a` before", before), ("`a`", a), ("`a_pt`", a_pt))
    rows = [[name, " ".join(f"{float(v):.4f}" for v in values)] for name, values in named]
    return {
        "memory": table(["", "values here"], rows),
        "one_address": a_pt.data_ptr() == a.ctypes.data and x.data_ptr() == x_np.ctypes.data,
        "both_see": bool((a_pt.numpy() == before + 1).all() and (x_np == 2).all()),
    }


def products(notebook: Notebook, scale: Scale) -> Fill:
    """Tutorial 2, the matrix products."""
    n, steps = 100, 100
    both = (loops.products_tutorial_numpy, loops.products_tutorial_torch)
    timings, again = notebook.each(*both, n, steps), notebook.each(*both, n, steps)
    draws = drawing(timings, steps, notebook.draws(steps, (n, n), 2))
    cells = measure("matmul", *scale.short)
    part = Comparison(f"{steps} products", timings, steps, [CUDA], cells, draws["holds"])
    return {
        "products": part,
        "products_again": replace(part, once=again).written,
        "products_drawing": draws["drawing"],
        "products_alone": measure("matmul", "problem.draw=false", *scale.short),
    }


def sums(notebook: Notebook, scale: Scale) -> Fill:
    """Tutorial 2, the matrix sums."""
    n, steps = scale.sums, 10
    timings = notebook.each(loops.sums_tutorial_numpy, loops.sums_tutorial_torch, n, steps)
    draws = drawing(timings, steps, notebook.draws(5, (n, n), 2))
    words = (f"problem.n={n}", "steps=5", *scale.long)
    cells = measure("add", *words)
    return {
        "sums": Comparison(f"{steps} sums", timings, steps, [], cells, draws["holds"]),
        "sums_n": n,
        "sums_size": f"{(10_000 / n) ** 2:.3g}",
        "sums_drawing": draws["drawing"],
        "sums_alone": measure("add", "problem.draw=false", *words),
    }


def autodiff() -> Fill:
    """Tutorial 2, gradients of small expressions: by hand, by autograd, by central differences."""

    def total(x: Any, xp: Any) -> Any:
        y = x + 5
        return y * y + 1

    def sigmoid(x: Any, xp: Any) -> Any:
        return 1 / (1 + xp.exp(-(x + 5)))

    value, h, rows = float(sigmoid(1.0, np)), 1e-5, []
    for what, function, by_hand, weighted, said in (
        ("sum of (x + 5)² + 1, at 1", total, 2 * 6.0, False, "12."),
        ("sum of the sigmoid of x + 5, at 1", sigmoid, value * (1 - value), False, "0.0025"),
        ("the same as a vector times the Jacobian", sigmoid, value * (1 - value), True, "0.0025"),
    ):
        x: Any = torch.ones([3, 2], requires_grad=True)
        values = function(x, torch)
        values.backward(torch.ones([3, 2])) if weighted else values.sum().backward()
        central = (function(1 + h, np) - function(1 - h, np)) / (2 * h)
        three = (by_hand, float(x.grad.unique()), central)
        rows.append([f"{what}: x.grad", *(f"{v:.6g}" for v in three), said])
    problem: Any = expkit.cell("+experiment=linear").workload.problem
    drawn = np.random.default_rng(0).standard_normal(20)
    batch, one = {"x": drawn, "y": 3 * drawn - 2}, np.ones(())
    loss, grads = problem.loss_and_grad(np, {"slope": one, "intercept": one}, batch)
    leaves = {name: torch.ones((), dtype=torch.float64, requires_grad=True) for name in grads}
    by_torch = problem.loss(torch, leaves, {k: torch.from_numpy(v) for k, v in batch.items()})
    by_torch.backward()
    rows.append(["y = 3x − 2: loss", f"{loss:.6g}", f"{by_torch.item():.6g}", "", "237.3524"])
    for name, leaf, said in zip(grads, leaves.values(), ("-63.6629", "115.7930"), strict=True):
        ends = ({**dict.fromkeys(grads, one), name: one + way} for way in (h, -h))
        up, down = (problem.loss(np, params, batch) for params in ends)
        three = (float(grads[name]), float(leaf.grad or 0), float(up - down) / (2 * h))
        rows.append([f"y = 3x − 2: {name}.grad", *(f"{v:.6g}" for v in three), said])
    return {"autodiff": table(["", "by hand", "autograd", "central differences", "printed"], rows)}


def line(notebook: Notebook, scale: Scale) -> Fill:
    """Tutorial 2, the line."""
    steps, lr, seeds = 10, 0.01, 5
    timings = notebook.each(loops.linear_numpy, loops.linear_tutorial_torch, steps, lr)
    ends = [("the start of all", 1.0, 1.0)]
    ends.append(("the tutorial printed", 2.9600718021392822, -1.9627878665924072))
    for number in range(1, seeds + 1):
        slope, intercept = notebook.time(loops.linear_tutorial_torch, steps, lr, "cpu").values[-1]
        ends.append((f"the tutorial's loop here, time {number}", slope, intercept))
    untimed = ("sweep.timing=false", f"seed=range({seeds})")
    ended_at = {
        (run.config["backend"], run.config["backend.dtype"], run.config["seed"]): np.array(
            [run.params[name] for name in ("slope", "intercept")]
        )
        for run in measure("linear", *untimed)
    }
    apart = 0.0
    for seed in range(seeds):
        wide, narrow = (ended_at[side.backend, side.dtype, seed] for side in (NUMPY, TORCH))
        apart = max(apart, np.abs(wide - narrow).max())
        ends.append((f"expkit, seed {seed}", *wide))
    rows = [[w, f"{s:.4f}", f"{i:.4f}", f"{np.hypot(s - 3, i + 2):.3f}"] for w, s, i in ends]
    share = 1 - max(float(row[-1]) for row in rows[-seeds:]) / float(rows[0][-1])
    cells, holds = (
        measure("linear", *scale.short),
        f"{steps} steps go at least {share:.0%} of the way",
    )
    return {
        "line": Comparison("y = 3x − 2", timings, steps, [NUMPY, CUDA], cells, holds),
        "ends": table([f"after {steps} steps", "slope", "intercept", "distance"], rows),
        "apart": apart,
    }


def vector(notebook: Notebook, scale: Scale) -> Fill:
    """Tutorial 2, the large problem."""
    n, steps, few = scale.vector, 200, 5
    lr = 0.001 * 10_000_000 / n  # as far beyond what is stable, where there are fewer
    timings = notebook.each(loops.large_dot_numpy, loops.large_dot_tutorial_torch, n, steps, lr)
    threes = notebook.time(loops.threes_torch, n, few).done / few
    draws = drawing(timings, steps, notebook.draws(few, (n,), 1))
    size, small_rate = f"problem.n={n}", f"optimizer.lr={0.5 / n}"
    cells = measure("large_dot", size, f"steps={few}", small_rate, *scale.long)
    rows, nans, curves = [], [], {}
    for side, dtype in [(NUMPY, "float64"), *((side, "float32") for side in SIDES)]:
        run = once("large_dot", side, dtype, size, f"steps={steps}", f"optimizer.lr={lr}")
        finite = run.losses[np.isfinite(run.losses)]
        lost = f"{steps - finite.size} ({1 - finite.size / steps:.0%})"
        outcome = ": ".join(filter(None, (run.outcome, run.reason)))
        rows.append([f"{side.label}, {dtype}", outcome, lost])
        rows[-1].append(f"{finite[-1]:.3g}" if finite.size else "")
        if side is NUMPY:
            curves[f"rate {lr:g}, {dtype}"] = run.losses
        if side.dtype == dtype:
            nans.append(f"{lost} with {side.label}")
    tame = once("large_dot", NUMPY, "float32", size, f"steps={steps}", small_rate).losses
    curves[f"rate 0.5 / n = {0.5 / n:g}, float32"] = tame
    holds = "steps that are not finite: " + ", ".join(nans)
    return {
        "vector": Comparison("long vector", timings, steps, [NUMPY], cells, holds),
        "vector_n": n,
        "rate": lr,
        "factor": 1 - 2 * lr * n,
        "last": ", ".join(f"{float(t.values[0]):.3g} on {s.label}" for s, t in timings.items()),
        "wild": table(["", "outcome", f"not finite, of {steps}", "last finite loss"], rows),
        "curves": curves,
        "vector_drawing": draws["drawing"],
        "threes": f"{seconds(threes)}, {threes / (timings[TORCH].done / steps):.0%}",
        "finite": np.isfinite(tame).sum(),
        "tame": tame[[0, -1]],
        "small": once("large_dot_small", NUMPY, "float64").losses[[0, -1]],
    }


# -------------------------------------------------------------------------------- the page


def draw_ratios(found: Sequence[Comparison], file: Path) -> None:
    """PyTorch on the CPU against NumPy: one timing of each loop, and like for like."""
    figure = Figure(figsize=(7.2, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(1, color="0.6", linewidth=1)
    for index, part in enumerate(reversed(found)):
        axes.plot(part.ratio, index, "x", color="C3", markersize=9, markeredgewidth=2)
        for dtype, offset, colour in zip(DTYPES, (0.12, -0.12), ("C0", "C1"), strict=True):
            judged, y = part.alike(dtype).verdict, index + offset
            if judged:
                axes.plot(judged.interval or (judged.ratio,) * 2, [y, y], color=colour, linewidth=2)
                axes.plot(judged.ratio, y, "o", color=colour, markersize=6)
    axes.plot([], [], "x", color="C3", markeredgewidth=2, label="loops as written, one timing")
    for dtype, colour in zip(DTYPES, ("C0", "C1"), strict=True):
        axes.plot([], [], "o-", color=colour, label=f"expkit, both in {dtype}, 95 % interval")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(found)), [part.what for part in reversed(found)])
    axes.set_xlabel("PyTorch's time / NumPy's, on the CPU      (< 1: PyTorch is faster)")
    finish(figure, axes, file)


def draw_divergence(curves: Mapping[str, HostArray], file: Path) -> None:
    """The loss of every step, until it is not finite."""
    figure = Figure(figsize=(7.2, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, losses in curves.items():
        with np.errstate(all="ignore"):
            powers = np.log10(losses)
        steps = np.flatnonzero(np.isfinite(powers))
        [curve] = axes.plot(steps, powers[steps], label=name)
        if not np.isfinite(losses).all():
            end, colour = (steps[-1], powers[steps[-1]]), curve.get_color()
            axes.plot(*end, "x", color=colour, markersize=8, markeredgewidth=2)
            said = f"  not finite from step {int(np.argmin(np.isfinite(losses)))}"
            axes.annotate(said, end, va="center", fontsize="small", color=colour)
    axes.margins(x=0.03)
    axes.set(xlabel="step", ylabel="loss, as a power of ten")
    finish(figure, axes, file)


def finish(figure: Figure, axes: Any, file: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False, fontsize="small", ncols=2)
    figure.savefig(file)


def main() -> None:
    """Run everything and write the page with its figures beside it."""
    parser = argparse.ArgumentParser(prog="python docs/tutorials.py")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--sums", type=int, help="rows of the matrices to sum (3000; 10000: 9 GB)")
    parser.add_argument("--output", type=Path, default=HERE / "tutorials.md")
    given = parser.parse_args()
    scale = SCALES[given.scale]
    if given.sums:
        scale = replace(scale, sums=given.sums)
    gpu = torch.cuda.get_device_name() if CUDA in SIDES else NO_GPU
    fill: Fill = {"about": "\n".join([*machine(), f"- Scale: {given.scale}.", f"- GPU: {gpu}."])}
    notebook = Notebook()
    measured = (sine, products, sums, line, vector)
    parts: list[Callable[[], Fill]] = [partial(part, notebook, scale) for part in measured]
    with tempfile.TemporaryDirectory() as outputs:
        os.environ["EXPKIT_OUTPUTS"] = outputs
        for part in [*parts, sine_printed, memory, autodiff]:
            started = perf_counter()
            fill |= (found := part())
            print(f"{next(iter(found))}: {perf_counter() - started:.0f} s", flush=True)
        notebook.close()
        compared = [value for value in fill.values() if isinstance(value, Comparison)]
        rows = [
            [part.what, f"{part.ratio:.3g}", *(verdict(part.alike(d)) for d in DTYPES), part.holds]
            for part in compared
        ]
        head = ["PyTorch's time / NumPy's, on the CPU", "loops as written"]
        head += [f"like for like, {dtype}" for dtype in DTYPES] + ["what that timing holds"]
        page = (HERE / "tutorials.md.template").read_text(encoding="utf-8")
        page = page.format(summary=table(head, rows), **fill)
        given.output.write_text(page, encoding="utf-8")
        draw_ratios(compared, given.output.with_name("tutorials-ratios.png"))
        draw_divergence(fill["curves"], given.output.with_name("tutorials-diverge.png"))


if __name__ == "__main__":
    main()
