"""`make docs`: docs/tutorials.md, the tutorials' parts as they are written and as expkit does them.

    python docs/tutorials.py [--scale tiny] [--sums N] [--output FILE.md]

Every number in the page comes from the run that writes it, except those that the tutorials printed.
Their loops, and those of ours that stand beside them (`benchmarks/loops.py`), run in a process of
their own, which expkit has not touched, once each, with a timer around them. A full run takes
minutes and wants a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are not installed
from benchmarks import loops, printed
from benchmarks.pairs import paired
from expkit.authors import first_params
from expkit.conduct import run_together
from expkit.config import Cell, compose_cell
from expkit.contracts import HostArray, Program
from expkit.measure.environment import cpu_model, git_state, versions
from expkit.measure.parity import differences
from expkit.measure.verdict import CANT_TELL, FASTER, SAME, SLOWER, UNLIKE, Verdict, held
from expkit.problems.linear import Linear
from expkit.record.result import Result
from expkit.report.units import seconds

DTYPES = ("float64", "float32")
NOT_MEASURED = "not measured"
NO_GPU = "not measured on a GPU (PyTorch finds none here)."
WORDS = {
    FASTER: "faster than",
    SLOWER: "slower than",
    SAME: "as fast as",
    CANT_TELL: "not to be told from",
    UNLIKE: "not like for like with",
}


@dataclass(frozen=True)
class Side:
    """A row: the backend, and the dtype that the tutorials gave it by leaving it at its default."""

    label: str
    backend: str
    dtype: str

    @property
    def device(self) -> str:
        return "cuda" if self.backend == "torch_cuda" else "cpu"

    @property
    def is_here(self) -> bool:
        return self.device == "cpu" or torch.cuda.is_available()


NUMPY = Side("NumPy", "numpy", "float64")
TORCH = Side("PyTorch CPU", "torch", "float32")
CUDA = Side("PyTorch CUDA", "torch_cuda", "float32")
SIDES = (NUMPY, TORCH, CUDA)
Cells = Mapping[tuple[Side, str], Result]
"""What expkit found, by side and dtype."""


@dataclass(frozen=True)
class Scale:
    """How much is run. Sizes are the tutorials' own, except that of the sums."""

    sine_steps: int = 2000
    sums: int = 3000
    vector: int = 10_000_000
    vector_steps: int = 200
    measured_steps: int = 5
    rounds: int = 11
    short: tuple[str, ...] = ("measure=standard",)
    long: tuple[str, ...] = (
        "measure=standard",
        "measure.repeats_per_placement=1",
        "measure.repeats_min=6",
        "measure.repeats_max=12",
    )


TINY_MEASURE = ("measure.repeats_min=6", "measure.repeats_per_placement=1", "measure.budget_s=0")
TINY = Scale(200, 40, 500, 200, 5, 1, TINY_MEASURE, TINY_MEASURE)
SCALES = {"full": Scale(), "tiny": TINY}


@dataclass(frozen=True)
class Timing:
    """One call of a loop.

    Attributes:
        returned: seconds until it returned, which is what a timer around it shows.
        done: until the device had also done what the loop queued.
        values: what the loop returned, without its long arrays.
    """

    returned: float
    done: float
    values: Any


@dataclass(frozen=True)
class Ratio:
    """PyTorch on the CPU against NumPy in one comparison, for the summary and its figure.

    Attributes:
        once: one timing of each loop.
        alike: like for like, by dtype.
        holds: what else is in that timing.
    """

    what: str
    once: float
    alike: Mapping[str, Verdict | None]
    holds: str


@dataclass(frozen=True)
class Share:
    """How much of a step is the draw, for the figure and the tables."""

    what: str
    step_seconds: float
    draw_seconds: float

    @property
    def share(self) -> float:
        """Timed apart, so noise may take it beyond 1."""
        return self.draw_seconds / self.step_seconds


@dataclass(frozen=True)
class Section:
    """A part of the page, and what it gives to the figures."""

    text: str
    ratio: Ratio | None = None
    shares: Sequence[Share] = ()


# ---------------------------------------------------------------------- loops as written


class Notebook:
    """A process in which loops run one after the other, as in a notebook."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        self._pool.submit(int).result()  # started now: what expkit sets later does not reach it

    def time(self, loop: Callable[..., Any], *given: Any, device: str = "cpu") -> Timing:
        """Run it once, the timer around it."""
        return self._pool.submit(_time, loop, given, device).result()

    def each(
        self, numpy: Callable[..., Any], on_torch: Callable[..., Any], *given: Any
    ) -> dict[Side, Timing]:
        """Both libraries' loops with the same arguments, on every device there is."""
        found = {NUMPY: self.time(numpy, *given)}
        for side in SIDES[1:]:
            if side.is_here:
                found[side] = self.time(on_torch, *given, side.device, device=side.device)
        return found

    def close(self) -> None:
        self._pool.shutdown()


def _time(loop: Callable[..., Any], given: Sequence[Any], device: str) -> Timing:
    wait(device)  # also makes the device's context, which is not the loop's to pay
    with np.errstate(all="ignore"):
        start = perf_counter()
        values = loop(*given)
        returned = perf_counter() - start
        wait(device)
        done = perf_counter() - start
    return Timing(returned, done, _on_host(values))


def wait(device: str) -> None:
    """Return when the device has done what was queued."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def _on_host(values: Any) -> Any:
    """Numbers and short arrays, wherever they lie; None for long ones."""
    if isinstance(values, tuple | list):
        return [_on_host(value) for value in values]
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.array(values)
    return array if array.size <= 100 else None


# ---------------------------------------------------------------------------- expkit's way


def compose(experiment: str, side: Side, dtype: str, *words: str) -> Cell:
    """The preset on this side, in this dtype."""
    chosen = (f"+experiment={experiment}", f"backend={side.backend}")
    return compose_cell(*chosen, f"backend.dtype={dtype}", "tracking=none", *words)


def measure(experiment: str, *words: str) -> Cells:
    """Every side that is here in both dtypes, in turn, the arrays of all placed anew."""
    return together(
        [(side, dtype) for side in SIDES if side.is_here for dtype in DTYPES], experiment, *words
    )


def together(keys: Sequence[tuple[Side, str]], experiment: str, *words: str) -> Cells:
    """Cells of an experiment in one process, their repeats in turn."""
    cells = [compose(experiment, side, dtype, *words) for side, dtype in keys]
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(cell, Path(folder, str(index))) for index, cell in enumerate(cells)]
        results = run_together(jobs, None, lambda *seen: None, tags={})
    return dict(zip(keys, results, strict=True))


def compared(cells: Cells, side: Side, dtype: str) -> Verdict | None:
    """This side against NumPy in the same dtype; None where one of them has no time."""
    a, b = cells.get((NUMPY, dtype)), cells.get((side, dtype))
    if a is None or b is None or not a.outcome == b.outcome == "ok":
        return None
    return held(a, b, 0.02)


def parted(cells: Cells, what: str, steps: int) -> list[Share]:
    """How expkit's traced pass divides a step of each cell."""
    found = []
    for (side, dtype), result in cells.items():
        if result.breakdown and result.summary:
            step = result.summary.median / steps
            draw = result.breakdown.parts.get("draw", 0.0)
            found.append(Share(f"{what}, {side.label}, {dtype}, expkit", step, draw))
    return found


def done(cell: Cell) -> Program:
    """The program of a cell, all its steps done."""
    cell.backend.configure()
    program = cell.backend.build(cell.workload)
    program.advance(cell.workload.steps)
    return program


# ----------------------------------------------------------------------------------- words


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison(
    once: Mapping[Side, Timing],
    cells: Cells,
    steps: int,
    measured_steps: int,
    ours: Sequence[Side] = (),
) -> str:
    """The table that every comparison has; times are of one step, `ours` have a loop of ours."""
    rows = []
    for side in SIDES:
        if side not in once:
            rows.append([side.label, *[NOT_MEASURED] * 6])
            continue
        ratio = once[side].returned / once[NUMPY].returned
        whose = "our loop" if side in ours else "the tutorial's"
        timed = f"{seconds(once[side].returned / steps)}<br>({whose}, {side.dtype})"
        results = [cells[side, dtype] for dtype in DTYPES]
        times = [measured(result, measured_steps) for result in results]
        alike = [f"{dtype}: {verdict(compared(cells, side, dtype))}" for dtype in DTYPES]
        against = "1" if side is NUMPY else f"{ratio:.3g}"
        judged = "1" if side is NUMPY else "<br>".join(alike)
        answers = dict.fromkeys(answer(result) for result in results)
        rows.append([side.label, timed, against, *times, judged, "<br>".join(answers)])
    head = [
        "",
        "the loop as written, one timing",
        "times NumPy's",
        "expkit, float64",
        "expkit, float32",
        "times NumPy's, like for like",
        "answer, both dtypes",
    ]
    return table(head, rows)


def measured(result: Result, steps: int) -> str:
    """Median and interval of a step, or why there is none."""
    if result.summary is None:
        return result.outcome
    low, high = seconds(result.summary.low / steps), seconds(result.summary.high / steps)
    doubt = "<br>unstable" if result.unstable else ""
    return f"{seconds(result.summary.median / steps)}<br>({low} to {high}){doubt}"


def verdict(found: Verdict | None) -> str:
    """The ratio, its interval and the word."""
    if found is None:
        return "no verdict"
    interval = "" if found.interval is None else " ({:.3g} to {:.3g})".format(*found.interval)
    return f"{found.ratio:.3g}{interval} {found.word}"


def answer(result: Result) -> str:
    """Whether it was right."""
    if result.outcome != "ok":
        return f"{result.outcome}: {result.reason}"
    checked = result.checked
    return checked if checked.startswith("not checked") else f"agrees: {checked}"


def both_ways(once: Mapping[Side, Timing], cells: Cells) -> str:
    """What one timing says of PyTorch on the CPU, and what like for like says."""
    ratio = once[TORCH].returned / once[NUMPY].returned
    said = [
        f"in {dtype} {judged}"
        for dtype in DTYPES
        if (judged := spoken(compared(cells, TORCH, dtype)))
    ]
    alike = "; ".join(said) or "there is nothing to compare, as a side was refused"
    return (
        f"**One timing of each loop** says that PyTorch on the CPU takes {ratio:.3g} times as long "
        f"as NumPy. **Like for like**, {alike}."
    )


def spoken(found: Verdict | None) -> str:
    """The verdict as a clause."""
    return (
        ""
        if found is None
        else f"it is {WORDS[found.word]} NumPy ({found.ratio:.3g} times its time)"
    )


def unlike(cells: Cells) -> str:
    """What differs between expkit's cells of one dtype, as its own gate sees it."""
    pairs = [(cells[NUMPY, dtype].facts, cells[TORCH, dtype].facts) for dtype in DTYPES]
    found = {line.partition(":")[0] for a, b in pairs for line in differences(a, b)}
    if found:
        listed = ", ".join(sorted(found))
        return f"Between expkit's cells of one dtype these differ: {listed}; nothing else does."
    own = pairs[0][0]["stream"].startswith("device")
    drawn = (
        "each library draws from its own generator, as in the loops" if own else "random bits too"
    )
    same = "dtype, threads, first parameters and data are the same"
    return f"Expkit's cells of one dtype are like for like: {same}; {drawn}."


def dtypes(cells: Cells) -> str:
    """What float32 instead of float64 does by itself."""
    said = []
    for side in SIDES:
        wide, narrow = cells.get((side, "float64")), cells.get((side, "float32"))
        if wide and narrow and wide.outcome == narrow.outcome == "ok":
            ratio = held(wide, narrow, 0.02).ratio
            said.append(f"{ratio:.2g} times the float64 time on {side.label}")
    return f"The dtype alone: float32 takes {', '.join(said)}." if said else ""


def second_time(first: Mapping[Side, Timing], again: Mapping[Side, Timing], steps: int) -> str:
    """What one timing is worth."""
    said = ", ".join(
        f"{seconds(again[side].returned / steps)} a step on {side.label} (the first time "
        f"{seconds(first[side].returned / steps)})"
        for side in first
    )
    ratio = again[TORCH].returned / again[NUMPY].returned
    return (
        f"How much one timing is worth: the loops a second time, in the same process, "
        f"took {said}, and PyTorch on the CPU {ratio:.3g} times as long as NumPy."
    )


def enqueued(once: Mapping[Side, Timing], steps: int) -> str:
    """What a timer that does not wait leaves out."""
    if CUDA not in once:
        return f"**Enqueue against done**: {NOT_MEASURED} on a GPU."
    returned, done = once[CUDA].returned, once[CUDA].done
    return (
        f"**Enqueue against done**: on the GPU the loop returned after {seconds(returned)}; its "
        f"{steps} steps were done after {seconds(done)}: a timer that does not wait saw "
        f"{returned / done:.0%} of the time."
    )


def shares(found: Sequence[Share], rest: str) -> str:
    """The table of the draw's share."""
    rows = [
        [part.what, seconds(part.step_seconds), seconds(part.draw_seconds), f"{part.share:.0%}"]
        for part in found
    ]
    return table([rest, "a step", "of which drawing", "share"], rows)


def ratio_of(what: str, once: Mapping[Side, Timing], cells: Cells, holds: str) -> Ratio:
    """For the summary."""
    found = {dtype: compared(cells, TORCH, dtype) for dtype in DTYPES}
    return Ratio(what, once[TORCH].returned / once[NUMPY].returned, found, holds)


def paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


# ------------------------------------------------------------------------- the comparisons


def sine(notebook: Notebook, scale: Scale) -> Section:
    """Tutorial 1."""
    n, steps, lr = 2000, scale.sine_steps, 1e-6
    x = np.linspace(-np.pi, np.pi, n)
    y, basis = np.sin(x), np.stack([x**k for k in range(4)])
    start = first_params(compose("sine", NUMPY, "float64").workload)["w"]
    once = {NUMPY: notebook.time(loops.sine_tutorial_numpy, x, y, start, steps, lr)}
    for side in SIDES[1:]:
        if side.is_here:
            given = (start.tolist(), n, steps, lr, side.device)
            once[side] = notebook.time(loops.sine_autograd, *given, device=side.device)
    cells = measure("sine", f"steps={steps}", *scale.short)

    def run(loop: Callable[..., Any], dtype: str) -> Callable[[], object]:
        args = (x.astype(dtype), y.astype(dtype), start.astype(dtype))
        return partial(loop, *args, steps, lr)

    as_written = run(loops.sine_tutorial_numpy, "float64")
    narrow = paired(run(loops.sine_tutorial_numpy, "float32"), as_written, scale.rounds)
    before = paired(run(loops.sine_powers_once_numpy, "float64"), as_written, scale.rounds)
    careful = partial(loops.sine_careful_numpy, basis, y, start, steps, lr)
    in_place = paired(careful, as_written, scale.rounds)
    ladder = [["the tutorial's loop, float64", seconds(before.other / steps), "1"]]
    ladder += [
        [what, seconds(pair.ours / steps), f"{1 / pair.ratio:.2g}"]
        for what, pair in (
            ("the same in float32", narrow),
            ("in float64, powers before the loop", before),
            ("… as two products with the powers, in place", in_place),
        )
    ]
    powers = 1 - 1 / before.ratio
    text = paragraphs(
        "## 1. Fit y = sin(x) with a cubic\n\n"
        f"{n} points, {steps} full-batch steps at rate {lr:g}, gradients by hand in NumPy. The "
        "tutorial has this loop for NumPy alone and times nothing; the loop for PyTorch, by "
        "autograd in float32, and all times are ours. Below all sides start from the same numbers.",
        comparison(once, cells, steps, steps, SIDES[1:]),
        both_ways(once, cells) + " " + unlike(cells),
        "What makes the tutorial's NumPy loop slow (run in turn in one process, "
        f"{scale.rounds} pairs each):",
        table(["NumPy", "a step", "times the tutorial's"], ladder),
        f"Computing `x**2` and `x**3` anew in every step is {powers:.0%} of the tutorial's loop. "
        f"{dtypes(cells)}",
        sine_printed(),
    )
    return Section(
        text,
        ratio_of("y = sin(x)", once, cells, f"{powers:.0%} of NumPy's is powers of x anew"),
    )


def sine_printed() -> str:
    """The tutorial's printed losses beside expkit's, from a start that is fitted to them."""
    start, cell = printed.start(), compose("sine", NUMPY, "float64")
    program = cell.backend.build(cell.workload)
    program.arrays()["params.w"][...] = start
    program.advance(printed.STEPS)
    at = range(99, printed.STEPS, 100)
    losses, found = program.losses()[at], program.params()["w"]
    off = np.abs(losses / printed.LOSSES - 1).max()
    rows = [
        [str(step), repr(float(theirs)), repr(float(ours))]
        for step, theirs, ours in zip(at, printed.LOSSES, losses, strict=True)
    ]
    rows += [
        [f"{name} at the end", repr(float(theirs)), repr(float(ours))]
        for name, theirs, ours in zip("abcd", printed.RESULT, found, strict=True)
    ]
    a, b, c, d = start
    return paragraphs(
        "What the tutorial printed, and what expkit computes (`+experiment=sine`). Its four "
        "starting values were random and are not printed. They are fitted to its twenty losses, "
        "and their signs to its printed cubic (`benchmarks/printed.py`): the start is "
        f"{a:.6f} {b:+.6f} x {c:+.6f} x² {d:+.6f} x³. Of the four directions in which the start "
        "may differ, this determines two; of the third it determines the size and not the sign, "
        "taken as positive; the fourth is forgotten before step 99 and taken as zero.",
        table(["step", "the tutorial printed", "expkit, NumPy, float64"], rows),
        f"The largest relative difference between the losses is {off:.1g}.",
    )


def memory() -> Section:
    """Tutorial 2, tensors and NumPy."""
    a = np.random.default_rng(0).standard_normal(5)
    a_pt, before = torch.from_numpy(a), a.copy()
    np.add(a, 1, out=a)
    x = torch.ones([3, 2])
    x_np = x.numpy()
    x.add_(x)
    rows = [
        [what, " ".join(f"{float(v):.4f}" for v in values)]
        for what, values in (("`a` before", before), ("`a`", a), ("`a_pt`", a_pt))
    ]
    one = a_pt.data_ptr() == a.ctypes.data and x.data_ptr() == x_np.ctypes.data
    seen = bool((a_pt.numpy() == before + 1).all()) and bool((x_np == 2).all())
    text = paragraphs(
        "## 2. NumPy and PyTorch on one memory\n\nThe second tutorial begins with tensors: made, "
        "sliced, reshaped, added. It then turns a tensor into an array (`x.numpy()`) and an array "
        "into a tensor (`a_pt = torch.from_numpy(a)`); `np.add(a, 1, out=a)` changes both:",
        table(["", "values here"], rows),
        f"Both names have one address: {one}. What is written through one is read through the "
        f"other, for `x.numpy()` and `x.add_(x)` too: {seen}. expkit's backends copy, so that no "
        "program's arrays are another's.",
    )
    return Section(text)


def products(notebook: Notebook, scale: Scale) -> Section:
    """Tutorial 2, the matrix products."""
    n, steps = 100, 100
    both = (loops.products_tutorial_numpy, loops.products_tutorial_torch)
    once, again = notebook.each(*both, n, steps), notebook.each(*both, n, steps)
    cells = measure("matmul", *scale.short)
    alone = measure("matmul", "problem.draw=false", *scale.short)
    draws = drawn(notebook, "products", once, (n, n), 2, steps, steps)
    parts = [*draws, *parted(cells, "products", steps)]
    text = paragraphs(
        f"## 3. {steps} products of {n} × {n} matrices\n\nBoth matrices are drawn inside the loop. "
        "The tutorial printed 158 ms with NumPy and 36.3 ms with PyTorch; on a GPU it has none.",
        comparison(once, cells, steps, steps, [CUDA]),
        both_ways(once, cells) + " " + unlike(cells),
        second_time(once, again, steps),
        "Draw against product:",
        shares(parts, "products"),
        "The product alone, with the same two matrices in every step: "
        + operation_alone(alone, steps),
        enqueued(once, steps),
    )
    holds = draws_held(draws)
    return Section(text, ratio_of(f"{steps} products", once, cells, holds), parts)


def sums(notebook: Notebook, scale: Scale) -> Section:
    """Tutorial 2, the matrix sums."""
    n, steps = scale.sums, 10
    few = 5
    once = notebook.each(loops.sums_tutorial_numpy, loops.sums_tutorial_torch, n, steps)
    words = (f"problem.n={n}", f"steps={few}", *scale.long)
    cells = measure("add", *words)
    alone = measure("add", "problem.draw=false", *words)
    draws = drawn(notebook, "sums", once, (n, n), 2, few, steps)
    parts = [*draws, *parted(cells, "sums", few)]
    size = (
        "the tutorial's own size"
        if n == 10_000
        else f"the tutorial's 10000 × 10000 are {(10_000 / n) ** 2:,.0f} times as many elements "
        "(`python docs/tutorials.py --sums 10000` runs them, and takes longer)"
    )
    text = paragraphs(
        f"## 4. {steps} sums of {n} × {n} matrices\n\nBoth matrices are drawn inside the loop. The "
        "tutorial printed, at 10000 × 10000, 1 min 37 s with NumPy, 16 s with PyTorch and 6.16 ms "
        f"on a K80, which nothing waited for. Here n is {n}: {size}.",
        comparison(once, cells, steps, few),
        both_ways(once, cells) + " " + unlike(cells),
        "Draw against sum:",
        shares(parts, "sums"),
        "The sum alone, of the same two matrices in every step: " + operation_alone(alone, few),
        enqueued(once, steps)
        + " PyTorch returns from a GPU operation as soon as it is queued; a timer around the loop "
        "shows how long queueing takes unless something waits. expkit waits on both sides of every "
        "reading, and refuses the time of a backend whose `synchronize` does not.",
    )
    holds = draws_held(draws)
    return Section(text, ratio_of(f"{steps} sums", once, cells, holds), parts)


def autodiff() -> Section:
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
    problem, drawn = Linear(), np.random.default_rng(0).standard_normal(20)
    batch, one = {"x": drawn, "y": 3 * drawn - 2}, np.ones(())
    loss, grads = problem.loss_and_grad(np, {"slope": one, "intercept": one}, batch)
    leaves = {name: torch.ones((), dtype=torch.float64, requires_grad=True) for name in grads}
    by_torch = problem.loss(torch, leaves, {k: torch.from_numpy(v) for k, v in batch.items()})
    by_torch.backward()
    rows.append(["y = 3x − 2: loss", f"{loss:.6g}", f"{by_torch.item():.6g}", "", "237.3524"])
    for name, leaf, said in zip(grads, leaves.values(), ("-63.6629", "115.7930"), strict=True):
        up, down = (
            problem.loss(np, {**dict.fromkeys(grads, one), name: one + way}, batch)
            for way in (h, -h)
        )
        three = (float(grads[name]), float(leaf.grad or 0), float(up - down) / (2 * h))
        rows.append([f"y = 3x − 2: {name}.grad", *(f"{v:.6g}" for v in three), said])
    text = paragraphs(
        "## 5. Automatic differentiation\n\nThe tutorial's values, each computed three ways here:",
        table(["", "by hand", "autograd", "central differences", "printed"], rows),
        "The last three are the tutorial's example that looks like deep learning: the sum of "
        "squares over 20 points, from w = b = 1. Its points are random and not printed, so its "
        "numbers are others than those of the points drawn here.",
    )
    return Section(text)


def linear(notebook: Notebook, scale: Scale) -> Section:
    """Tutorial 2, the line."""
    steps, lr, seeds = 10, 0.01, 5
    once = notebook.each(loops.linear_numpy, loops.linear_tutorial_torch, steps, lr)
    cells = measure("linear", *scale.short)
    far, rows = float(np.hypot(2, 3)), []

    def row(what: str, slope: float, intercept: float) -> float:
        distance = float(np.hypot(slope - 3, intercept + 2))
        rows.append([what, f"{slope:.4f}", f"{intercept:.4f}", f"{distance:.3f}"])
        return distance

    row("the start of all", 1, 1)
    row("the tutorial printed", 2.9600718021392822, -1.9627878665924072)
    for index in range(seeds):
        ended = notebook.time(loops.linear_tutorial_torch, steps, lr, "cpu").values[-1]
        row(f"the tutorial's loop here, time {index + 1}", *map(float, ended))
    near, apart = 0.0, 0.0
    for seed in range(seeds):
        wide, narrow = (
            done(compose("linear", side, side.dtype, f"seed={seed}")).params()
            for side in (NUMPY, TORCH)
        )
        apart = max(apart, *(float(abs(wide[name] - narrow[name])) for name in wide))
        distance = row(f"expkit, seed {seed}", float(wide["slope"]), float(wide["intercept"]))
        near = max(near, distance)
    text = paragraphs(
        "## 6. Learn y = 3x − 2\n\nThe sum of squares over fresh batches of 20, from slope = "
        f"intercept = 1, {steps} steps at rate {lr:g}. The tutorial has this loop for PyTorch and "
        "does not time it; the loop for NumPy and all times are ours.",
        comparison(once, cells, steps, steps, [NUMPY, CUDA]),
        both_ways(once, cells) + " " + unlike(cells),
        f"{steps} steps learn the line, slope 3 and intercept −2, as the tutorial shows:",
        table([f"after {steps} steps", "slope", "intercept", "distance from the line"], rows),
        f"expkit's rows are NumPy's in float64; PyTorch's in float32 see the same bits and end at "
        f"most {apart:.1g} apart.",
    )
    holds = f"{steps} steps go at least {1 - near / far:.0%} of the way"
    return Section(text, ratio_of("y = 3x − 2", once, cells, holds))


def vector(notebook: Notebook, scale: Scale, curves: dict[str, HostArray]) -> Section:
    """Tutorial 2, the large problem."""
    n, steps, few, lr = scale.vector, scale.vector_steps, scale.measured_steps, 0.001
    if n < 10_000_000:
        lr *= 10_000_000 / n  # as far beyond what is stable
    once = notebook.each(loops.large_dot_numpy, loops.large_dot_tutorial_torch, n, steps, lr)
    threes = notebook.time(loops.threes_torch, n, few).done / few
    size = f"problem.n={n}"
    single = ("measure.repeats_min=1", "measure.repeats_max=1", "measure.warmup=0")
    keys = [(NUMPY, "float64"), *((s, "float32") for s in SIDES if s.is_here)]
    wild = together(keys, "large_dot", size, f"steps={steps}", f"optimizer.lr={lr}", *single)
    tame = measure("large_dot", size, f"steps={few}", f"optimizer.lr={0.5 / n}", *scale.long)
    draws = drawn(notebook, "vector", once, (n,), 1, few, steps)
    parts = [*draws, *parted(tame, "vector", few)]
    rows, nans = [], []
    for (side, dtype), result in wild.items():
        bad = result.first_bad_step
        if side is NUMPY:
            curves[f"rate {lr:g}, {dtype}"] = result.losses
        if not result.losses.size:  # refused before it began
            rows.append([f"{side.label}, {dtype}", answer(result), *[NOT_MEASURED] * 3])
            continue
        lost = "0" if bad is None else f"{steps - bad} ({(steps - bad) / steps:.0%})"
        first = "none" if bad is None else str(bad)
        final = f"{result.losses[np.isfinite(result.losses)][-1]:.3g}"
        rows.append([f"{side.label}, {dtype}", result.outcome, first, lost, final])
        if side.dtype == dtype:
            nans.append(f"{lost} with {side.label}")
    own = compose("large_dot", NUMPY, "float32", size, f"steps={steps}", f"optimizer.lr={0.5 / n}")
    tame_losses = done(own).losses()
    curves[f"rate 0.5 / n = {0.5 / n:g}, float32"] = tame_losses
    converged = done(compose_cell("+experiment=large_dot_small", "tracking=none")).losses()
    nan_steps = "steps that are not finite: " + ", ".join(nans)
    last = ", ".join(f"{float(t.values[0]):.3g} on {s.label}" for s, t in once.items())
    text = paragraphs(
        f"## 7. Learn a vector of {n:,}\n\nTargets 3 for every weight and −2 for the intercept, w "
        f"uniform in [0, 1) and b = 1 at first, one fresh random vector a step, {steps} steps at "
        f"rate {lr:g}. The tutorial printed 32.3 s on the CPU and 1.34 s on a K80, with PyTorch; "
        "the loop for NumPy is ours. The loops are timed at that rate. expkit gives no time to a "
        f"run whose loss is not finite: its times are at rate 0.5 / n, over {few} steps.",
        comparison(once, tame, steps, few, [NUMPY]),
        both_ways(once, tame) + " " + unlike(tame),
        f"At rate {lr:g} it diverges; what expkit says (steps count from 0):",
        table(
            [
                "",
                "outcome",
                "first loss not finite",
                f"steps not finite, of {steps}",
                "last finite loss",
            ],
            rows,
        ),
        f"The loops as written ended with the loss {last}. A step multiplies the error along its "
        f"vector by about 1 − 2 · {lr:g} · {n:,} = {1 - 2 * lr * n:,.0f}.",
        "![The loss by step on NumPy, at both rates](tutorials-diverge.png)",
        "Draw against all of a step:",
        shares(parts, "vector"),
        "The tutorial makes `3 * torch.ones(N)` anew in every step: "
        f"{seconds(threes)}, {threes / (once[TORCH].done / steps):.0%} of its step on the CPU. So "
        "does expkit with PyTorch; its recorded NumPy step makes what depends on no input once.",
        "At rate 0.5 / n a step removes the whole error along its vector, and the expected squared "
        f"distance shrinks by 1 − 1/n. Of its {steps} losses {np.isfinite(tame_losses).sum()} are "
        f"finite; they go from {tame_losses[0]:.3g} to {tame_losses[-1]:.3g}. "
        "At n = 100 (`+experiment=large_dot_small`, ours) "
        f"{converged.size} steps take the loss from {converged[0]:.3g} to {converged[-1]:.3g}.",
        enqueued(once, steps),
    )
    return Section(text, ratio_of("long vector", once, tame, nan_steps), parts)


def drawn(
    notebook: Notebook,
    what: str,
    once: Mapping[Side, Timing],
    shape: tuple[int, ...],
    each: int,
    count: int,
    steps: int,
) -> list[Share]:
    """The draws of the loops alone, timed once."""
    found = []
    for side, timing in once.items():
        rest = () if side is NUMPY else (side.device,)
        loop = loops.draws_numpy if side is NUMPY else loops.draws_torch
        alone = notebook.time(loop, shape, each * count, *rest, device=side.device)
        label = f"{what}, {side.label}, {side.dtype}, as written"
        found.append(Share(label, timing.done / steps, alone.done / count))
    return found


def draws_held(found: Sequence[Share]) -> str:
    """For the summary."""
    return f"the draw: {found[0].share:.0%} of NumPy's, {found[1].share:.0%} of PyTorch's"


def operation_alone(cells: Cells, steps: int) -> str:
    """A product or sum without the draw."""
    said = []
    for dtype in DTYPES:
        sides = [cells[side, dtype] for side in (NUMPY, TORCH)]
        times = [measured(result, steps).partition("<br>")[0] for result in sides]
        judged = spoken(compared(cells, TORCH, dtype)) or "no verdict"
        said.append(f"in {dtype} {times[0]} with NumPy, {times[1]} with PyTorch: {judged}")
    return "; ".join(said) + "."


# --------------------------------------------------------------------------------- figures


def draw_ratios(found: Sequence[Ratio], file: Path) -> None:
    """PyTorch on the CPU against NumPy: one timing of each loop, and like for like."""
    figure = Figure(figsize=(7.2, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(1, color="0.6", linewidth=1)
    offsets = {"float64": 0.12, "float32": -0.12}
    colours = {"float64": "C0", "float32": "C1"}
    for index, ratio in enumerate(reversed(found)):
        axes.plot(ratio.once, index, "x", color="C3", markersize=9, markeredgewidth=2)
        for dtype, judged in ratio.alike.items():
            if judged is None:
                continue
            low, high = judged.interval or (judged.ratio, judged.ratio)
            place, colour = index + offsets[dtype], colours[dtype]
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot(judged.ratio, place, "o", color=colour, markersize=6)
    axes.plot([], [], "x", color="C3", markeredgewidth=2, label="loops as written, one timing")
    for dtype, colour in colours.items():
        axes.plot([], [], "o-", color=colour, label=f"expkit, both in {dtype}, 95 % interval")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(found)), [ratio.what for ratio in reversed(found)])
    axes.set_xlabel("PyTorch's time / NumPy's, on the CPU      (< 1: PyTorch is faster)")
    finish(figure, axes, file)


def draw_shares(found: Sequence[Share], file: Path) -> None:
    """How much of a step is the draw."""
    figure = Figure(figsize=(7.2, 0.9 + 0.27 * len(found)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for index, part in enumerate(reversed(found)):
        axes.barh(index, 1, color="0.88", height=0.7)
        axes.barh(index, min(1, part.share), color="C1", height=0.7)
        text = f"{part.share:.0%} of {seconds(part.step_seconds)}"
        axes.text(1.01, index, text, va="center")
    axes.set_yticks(
        range(len(found)), [part.what.removesuffix(", as written") for part in reversed(found)]
    )
    axes.set(xlabel="drawing alone, as a share of the loop's time", xlim=(0, 1.25))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    figure.savefig(file)


def draw_divergence(curves: Mapping[str, HostArray], file: Path) -> None:
    """The loss of every step, until it is not finite."""
    figure = Figure(figsize=(7.2, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, losses in curves.items():
        with np.errstate(all="ignore"):
            powers = np.log10(losses)
        steps = np.flatnonzero(np.isfinite(powers))
        [line] = axes.plot(steps, powers[steps], label=name)
        if not np.isfinite(losses).all():
            last, top = steps[-1], powers[steps[-1]]
            axes.plot(last, top, "x", color=line.get_color(), markersize=8, markeredgewidth=2)
            bad = int(np.flatnonzero(~np.isfinite(losses))[0])
            said = f"  not finite from step {bad}"
            axes.annotate(said, (last, top), va="center", fontsize="small", color=line.get_color())
    axes.margins(x=0.03)
    axes.set(xlabel="step", ylabel="loss, as a power of ten")
    finish(figure, axes, file)


def finish(figure: Figure, axes: Any, file: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", frameon=False, fontsize="small", ncols=2)
    figure.savefig(file)


# -------------------------------------------------------------------------------- the page


PAGE = """\
# The tutorials, told truthfully

expkit starts from two tutorials. The first, NumPy's part of "PyTorch vs NumPy" on Kaggle, fits a
cubic to a sine and times nothing. The second, "Pytorch Basics and Speed Comparisons with Numpy and
GPU" of 2020, times products and sums of matrices with NumPy and PyTorch, shows automatic
differentiation, and learns a line and a long vector with PyTorch. This page goes through both part
by part. What is timed runs twice: as written (the loop, one timer around it, run once, in a process
that expkit has not touched) and as expkit does (same work on both sides, in turn, arrays placed
anew every round, device waited for, answers checked against a float64 reference). Where a tutorial
has a loop for one library alone, a loop of ours for the other stands beside it and is called so.
The page is written by `python docs/tutorials.py`; no number is typed in but those that the
tutorials printed.

{about}

![PyTorch against NumPy on the CPU, as written and like for like](tutorials-ratios.png)

{summary}

How to read the tables: times are of one step. "Times NumPy's" below 1 means less time than NumPy.
"Like for like" is both sides in the same dtype: the median of the rounds' ratios, its 95 %
interval, and expkit's verdict at a threshold of 2 %: FASTER, SLOWER, SAME or CAN'T TELL. After an
expkit time stands the 95 % interval of its median, and "unstable" where expkit saw reasons to
distrust it, such as other processes on the same cores. "not measured" means no such device here.

{sections}

## The draw, in all of them

The second tutorial times the drawing of random numbers together with what it is about. Here are the
loops as written, timed once, beside the same draws with nothing else.

![The share of the loops that is the draw](tutorials-draw.png)
"""


def about(scale_name: str) -> str:
    """Machine, versions, commit."""
    state = git_state(Path(__file__).parent)
    commit = "unknown" if state is None else state["commit"][:12] + "-dirty" * state["dirty"]
    gpu = f"{torch.cuda.get_device_name()}." if CUDA.is_here else NO_GPU
    cores = len(os.sched_getaffinity(0))
    return "\n".join(
        [
            f"- Machine: {cpu_model()}, {cores} cores.",
            f"- Versions: {', '.join(f'{k} {v}' for k, v in versions().items())}.",
            f"- Commit: {commit}. Scale: {scale_name}.",
            f"- GPU: {gpu}",
        ]
    )


def summary(found: Sequence[Ratio]) -> str:
    """All comparisons in one table."""
    head = ["PyTorch's time / NumPy's, on the CPU", "loops as written"]
    head += [f"like for like, {dtype}" for dtype in DTYPES] + ["what that timing holds"]
    rows = [
        [r.what, f"{r.once:.3g}", *(verdict(r.alike[d]) for d in DTYPES), r.holds] for r in found
    ]
    return table(head, rows)


def main() -> None:
    """Run everything and write the page with its figures beside it."""
    parser = argparse.ArgumentParser(prog="python docs/tutorials.py")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--sums", type=int, help="rows of the matrices to sum (3000; 10000: 9 GB)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "tutorials.md")
    given = parser.parse_args()
    scale = SCALES[given.scale]
    if given.sums:
        scale = replace(scale, sums=given.sums)
    told = about(given.scale)  # first: the tree as it was committed
    notebook, curves = Notebook(), dict[str, HostArray]()
    sections = []
    for write in (
        partial(sine, notebook, scale),
        memory,
        partial(products, notebook, scale),
        partial(sums, notebook, scale),
        autodiff,
        partial(linear, notebook, scale),
        partial(vector, notebook, scale, curves),
    ):
        started = perf_counter()
        sections.append(write())
        title = sections[-1].text.partition("\n")[0]
        print(f"{title}: {perf_counter() - started:.0f} s", flush=True)
    notebook.close()
    folder, ratios = given.output.parent, [s.ratio for s in sections if s.ratio]
    draw_ratios(ratios, folder / "tutorials-ratios.png")
    as_written = [p for s in sections for p in s.shares if p.what.endswith("as written")]
    draw_shares(as_written, folder / "tutorials-draw.png")
    draw_divergence(curves, folder / "tutorials-diverge.png")
    texts = "\n\n".join(section.text for section in sections)
    given.output.write_text(PAGE.format(about=told, summary=summary(ratios), sections=texts))


if __name__ == "__main__":
    main()
