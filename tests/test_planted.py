"""The planted programs themselves: what is said of work off the clock must not be another fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Expkit

ROOT = Path(__file__).parents[1]
TRIED = """
    import json
    import numpy as np
    from broken_plugin import FAULTS, TWINS
    from broken_plugin.kinds import CELLS, FIRST, Steps
    from expkit.config import compose_cell

    SMALL = {
        "sine": "problem.n=50 steps=20",
        "linear": "steps=20",
        "large_dot": "problem.n=40 steps=20",
        "matmul": "problem.n=6 steps=20",
    }

    def same(one, other, start=0):
        backend.synchronize(one)
        pairs = [(one.losses(start), other.losses(start))]
        pairs += [(one.params()[name], value) for name, value in other.params().items()]
        return all(a.shape == b.shape and np.allclose(a, b, 1e-12, 0) for a, b in pairs)

    words = ("backend=planted", "backend.threads=1")
    cells = {k: compose_cell(f"problem={k}", *v.split(), *words) for k, v in SMALL.items()}
    backend, found = cells["sine"].backend, {}
    for name, kind in (TWINS | FAULTS).items():
        problems = {CELLS[cell].partition("problem=")[2].partition(" ")[0] for cell in kind.cells}
        if kind.needs or not problems <= SMALL.keys():
            continue
        for problem in sorted(problems):
            workload = cells[problem].workload
            one, other = kind.make(backend, workload), Steps(backend, workload)
            right = []
            for restart in ("reset", *["reallocate"] * FIRST, "reset"):
                for n in (3, 7, 10):
                    one.advance(n)
                    other.advance(n)
                    right.append(same(one, other))
                for program in (one, other):
                    getattr(program, restart)()
            state = {k: np.array(v) for k, v in other.arrays().items() if k[:7] == "params."}
            for program in (one, other):
                program.load({k: v + 0.125 for k, v in state.items()}, 8)
                program.advance(5)
            right.append(same(one, other, 8))
            found.setdefault(name, []).append(all(right))
    print(json.dumps({name: all(right) for name, right in found.items()}))
"""
WRONG = {
    "float32_arrays",
    "float32_inside",
    "left_queued",
    "rate_off",
    "repeats_loss_at_end",
    "replays_first",
    "returns_early",
    "returns_early_padded",
    "skips_updates",
    "stale_losses",
    "wrong_later",
}
"""Those whose answer is wrong within the first steps, or after a few placements."""


def test_what_is_computed_off_the_clock_is_computed_right(planted: Expkit) -> None:
    done = planted.python(TRIED)
    assert done.status == 0, done
    found = json.loads(done.out)
    assert {name for name, right in found.items() if not right} == WRONG
    assert len(found) > 40


def test_the_table_tells_faults_from_twins() -> None:
    kinds = ("honest", "computes_in_synchronize", "owed_to_losses", "draws_in_reset", "left_queued")
    words = [sys.executable, "-m", "benchmarks.faults", "--problems", "linear", "--kinds", *kinds]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = [row.split(" | ") for row in done.stdout.splitlines() if row.startswith("| ")][2:]
    assert [row[0][2:] for row in rows] == list(kinds), done
    assert [row[2] == "ok" for row in rows] == [True, True, False, False, False]
    assert done.returncode == 0


def test_a_benchmark_that_is_killed_leaves_no_load_behind() -> None:
    """It is no child that dies with it, as an audit would count a child's work."""
    code = "from benchmarks.load import load\nwith load(0.01, 0.1):\n    input(print(flush=True))"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as benchmark:
        assert benchmark.stdout is not None
        benchmark.stdout.readline()
        [burner] = started_by(benchmark.pid)
        os.kill(benchmark.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while burner.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def started_by(benchmark: int) -> list[Path]:
    """The processes that were given this one's id as a word, by their folder in /proc."""
    found = []
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended meanwhile
            if str(benchmark).encode() in words.read_bytes().split(b"\0")[1:]:
                found.append(words.parent)
    return found
