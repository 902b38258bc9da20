"""What expkit computes, and the loops timed beside it, do as the tutorials' own lines do."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from notebooks import (
    LARGE,
    LINE,
    PLACES,
    PRODUCTS_NUMPY,
    PRODUCTS_TORCH,
    ROUNDING,
    SEED,
    SINE,
    SUMS_NUMPY,
    SUMS_TORCH,
    built,
    drawing,
    run,
    words,
)

from expkit.authors import host_rng
from expkit.config import compose_cell

ROOT = Path(__file__).parents[1]


def module(name: str) -> ModuleType:
    """A file of benchmarks/, which is not installed."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def sine() -> Any:
    """The first tutorial, run once: it takes half a second."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(monkeypatch, SINE)


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_the_first_tutorials_fit(sine: Any, backend: str, dtype: str) -> None:
    """All that it prints: the loss of every hundredth step, and the four numbers at the end."""
    program = built(words("sine", backend, dtype))
    program.advance(2000)
    at, losses = zip(*sine["printed"][:-1], strict=True)
    assert at == tuple(range(99, 2000, 100))
    np.testing.assert_allclose(program.losses()[list(at)], losses, rtol=ROUNDING[dtype])
    result = [float(v) for v in re.findall(r"-?\d\.\d+(?:e-?\d+)?", sine["printed"][-1][0])]
    np.testing.assert_allclose(program.params()["w"], result, atol=ROUNDING[dtype])


OPERATIONS = [
    ("matmul", "numpy", "float64", PRODUCTS_NUMPY, "100"),
    ("matmul", "torch", "float32", PRODUCTS_TORCH, "100"),
    ("add", "numpy", "float64", SUMS_NUMPY, "10000"),
    ("add", "torch", "float32", SUMS_TORCH, "10000"),
]


@pytest.mark.parametrize(("problem", "backend", "dtype", "lines", "n"), OPERATIONS)
def test_the_second_tutorials_products_and_sums(
    monkeypatch: pytest.MonkeyPatch, problem: str, backend: str, dtype: str, lines: str, n: str
) -> None:
    """The last of their results, at n = 60 for the sums' 10000."""
    size = min(int(n), 100 if problem == "matmul" else 60)
    right = run(monkeypatch, lines.replace(n, str(size)) if size < int(n) else lines, dtype)["c"]
    cell = words(problem, backend, dtype, f"problem.n={size}")
    program = built(cell)
    program.advance(cell.workload.steps)
    result = program.params()["result"]
    np.testing.assert_allclose(result, np.asarray(right), atol=ROUNDING[dtype])


def test_the_loops_that_are_timed_are_the_tutorials(
    monkeypatch: pytest.MonkeyPatch, sine: Any
) -> None:
    """To the last bit, from the same values."""
    pytest.importorskip("torch")
    loops = module("loops")
    start = host_rng(SEED, "init").standard_normal(4)
    values, printed = loops.sine_tutorial_numpy(sine["x"], sine["y"], start, 2000, 1e-6)
    assert printed == sine["printed"][:-1]
    assert list(values) == [sine[name] for name in "abcd"]

    line = run(monkeypatch, LINE, "float32")["printed"]
    large = run(monkeypatch, LARGE, "float32", N="1000", epochs="10")
    with drawing(monkeypatch, "float32"):
        assert loops.linear_tutorial_torch(10, 0.01, "cpu") == line
    with drawing(monkeypatch, "float32"):
        loss, w, b = loops.large_dot_tutorial_torch(1000, 10, 0.001, "cpu")
        assert (loss, b) == (large["loss"], large["b"])
        assert (w == large["w"]).all()
    for lines, loop, device in (
        (PRODUCTS_NUMPY, loops.products_tutorial_numpy, []),
        (PRODUCTS_TORCH, loops.products_tutorial_torch, ["cpu"]),
        (SUMS_NUMPY.replace("10000", "50"), loops.sums_tutorial_numpy, []),
        (SUMS_TORCH.replace("10000", "50"), loops.sums_tutorial_torch, ["cpu"]),
    ):
        right = run(monkeypatch, lines, "float32")["c"]
        with drawing(monkeypatch, "float32"):
            steps = int(re.findall(r"range\((\d+)\)", lines)[0])
            assert (loop(len(right), steps, *device) == right).all()


def test_the_loops_written_the_same_way_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, in float64: NumPy's line and long vector, and the sine by autograd."""
    pytest.importorskip("torch")
    loops = module("loops")
    line = run(monkeypatch, LINE)["printed"]
    with drawing(monkeypatch, "float64"):
        np.testing.assert_allclose(loops.linear_numpy(10, 0.01), line, rtol=1e-12)
    large = run(monkeypatch, LARGE, N="1000", epochs="10")
    with drawing(monkeypatch, "float64"):
        monkeypatch.setattr(np.random, "rand", host_rng(SEED, "init").random)
        _, w, b = loops.large_dot_numpy(1000, 10, 0.001, "float64")
    np.testing.assert_allclose(w, large["w"].detach(), atol=1e-11)
    np.testing.assert_allclose(b, large["b"].detach(), rtol=1e-11)


def test_the_first_tutorials_printed_losses() -> None:
    """From the start that is fitted to them: all twenty, and the cubic that it ends with."""
    printed = module("printed")
    cell = compose_cell("+experiment=sine", "tracking=none")
    program = built(cell)
    program.arrays()["params.w"][...] = printed.start()
    program.advance(2000)
    np.testing.assert_allclose(program.losses()[99::100], printed.LOSSES, rtol=1e-12)
    np.testing.assert_allclose(program.params()["w"], printed.RESULT, atol=1e-12)
    assert (printed.LOSSES[0], printed.LOSSES[-1]) == (1492.5057618088194, 9.659890720665171)


OURS = {"large_dot_small", "scaling"}


def test_presets_say_whether_they_are_a_tutorials_or_ours() -> None:
    files = list((ROOT / "conf" / "experiment").glob("*.yaml"))
    assert {file.stem for file in files if "\n# Ours" in file.read_text()} == OURS
    theirs = {file.stem for file in files if " tutorial: " in file.read_text()}
    assert theirs == {file.stem for file in files} - OURS
