"""Every placement lies somewhere else, and holds the same values."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expkit.authors import LINE, PAGE
from expkit.conduct import run_together
from expkit.config import compose_cell

PLACEMENTS = 12


def address(array: Any) -> int:
    start = array.data_ptr() if hasattr(array, "data_ptr") else array.ctypes.data
    return int(start)


@pytest.mark.parametrize("n", [200, 20_000, 400_000])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_program_that_is_placed_anew_lies_elsewhere(backend: str, n: int) -> None:
    if not find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    cell = compose_cell("problem=sine", f"problem.n={n}", f"backend={backend}")
    program = cell.backend.build(cell.workload)
    starts = []
    for _ in range(PLACEMENTS):
        program.reallocate()
        arrays = program.arrays()
        starts.append([address(arrays[name]) for name in ("data.basis", "data.y")])
        values = cell.backend.to_numpy(arrays["data.y"])
        np.testing.assert_array_equal(values, np.sin(np.linspace(-np.pi, np.pi, n)))
    for own in zip(*starts, strict=True):
        assert all(start % LINE == 0 for start in own)
        # Of 64 lines: 12 draws show fewer than 7 less often than once in 100,000 times.
        assert len({start % PAGE for start in own}) >= 7
    between = {(basis - y) % PAGE for basis, y in starts}
    assert len(between) >= 7, "the arrays move against each other"


def test_the_data_are_made_once_however_often_they_are_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = ("measure.repeats_min=6", "measure.repeats_max=6", "measure.repeats_per_placement=1")
    cell = compose_cell("problem=sine", "steps=50", "tracking=none", *measure)
    kind, made = type(cell.workload.problem), []
    data = kind.data

    def counted(*given: Any) -> Any:
        made.append(given)
        return data(*given)

    monkeypatch.setattr(kind, "data", counted)
    [found] = run_together([(cell, tmp_path / "run")], None, tags={})
    assert found.outcome == "ok"
    assert len(found.processes[0]) == 6
    assert len(made) == 1
