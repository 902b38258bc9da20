"""Other processes that work and rest by turns while a benchmark measures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BURNER = """
import os, random, sys
from time import monotonic, sleep

benchmark, *bounds = sys.argv[1:]
shortest_s, longest_s = map(float, bounds)
while os.path.exists(f"/proc/{benchmark}"):  # a benchmark that is killed leaves nothing behind
    end = monotonic() + random.uniform(shortest_s, longest_s)
    while monotonic() < end:
        pass
    sleep(random.uniform(shortest_s, longest_s))
"""


@contextmanager
def load(shortest_s: float, longest_s: float, processes: int = 1) -> Iterator[None]:
    """Run processes that each take a core about half of the time, in bursts of a random length.

    They are not children of this process: an audit counts the work of children as the program's.
    """
    command = '"$0" -c "$@" > /dev/null 2>&1 & echo $!'
    bounds = str(shortest_s), str(longest_s)
    words = ["sh", "-c", command, sys.executable, BURNER, str(os.getpid()), *bounds]
    burners = [int(subprocess.check_output(words)) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            os.kill(burner, signal.SIGKILL)
