"""What a cell costs among many: `python -m benchmarks.sweeps.scale`.

Sweeps of a small problem in throughput mode, on two CPUs, MLflow's database included: seconds a
cell of the whole command, from its start to its end, and the greatest memory of each kind of
process.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.sweeps.page import table, write_section
from benchmarks.sweeps.place import Place

SIZES = (100, 300, 1000)
CPUS = 2
MOST_S = 0.2
"""Most seconds that a cell may cost."""
HEAD = ["cells", "s", "s a cell", "parent MiB", "a worker MiB", "MLflow's MiB"]
ROLES = ("parent", "worker", "tracker")


@contextmanager
def watched(place: Place, every_s: float = 0.5) -> Iterator[dict[str, float]]:
    """Record the most memory of any process so far, in MiB, by its role."""
    peaks, ended = dict.fromkeys(ROLES, 0.0), threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            for pid, role in place.processes().items():
                peaks[role] = max(peaks[role], _peak_mib(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _peak_mib(pid: int) -> float:
    """Return the peak of a process so far: VmHWM, see proc(5)."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def measure(cells: int) -> list[object]:
    """Run a sweep of this many cells; return its line of the table."""
    with TemporaryDirectory() as folder:
        place = Place(Path(folder))
        words = ("problem=linear", "steps=100", f"seed=range({cells})", "sweep.timing=false")
        with watched(place) as peaks:
            begun = time.monotonic()
            place.run("-m", *words)
            seconds = time.monotonic() - begun
    memory = (f"{peaks[role]:.0f}" for role in ROLES)
    return [f"{cells:,}", f"{seconds:.1f}", f"{seconds / cells:.3f}", *memory]


def main() -> int:
    """Print the table and, if asked, write it into the page; return 1 if a cell costs too much."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.scale")
    parser.add_argument("--cells", type=int, nargs="+", default=SIZES)
    parser.add_argument("--output", type=Path, help="a Markdown page, its section is replaced")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])
    print(*table(HEAD, []), sep="\n", flush=True)
    rows = []
    for cells in given.cells:
        rows.append(measure(cells))
        print(table(HEAD, rows)[-1], flush=True)
    if given.output:
        about = (
            "`problem=linear steps=100 sweep.timing=false` over as many seeds, on two\nCPUs, "
            "MLflow's new sqlite database included: the whole command, from its start to its end. "
            "Memory is\nthe most that one process of its kind held."
        )
        write_section(
            given.output,
            "Many cells",
            "python -m benchmarks.sweeps.scale",
            about,
            table(HEAD, rows),
        )
    return 0 if float(str(rows[-1][2])) <= MOST_S else 1


if __name__ == "__main__":
    sys.exit(main())
