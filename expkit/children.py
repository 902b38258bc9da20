"""How other interpreters are started: nothing of the current folder stands before a library there.

Python puts the current folder first on the path of what it starts with `-m`; a file `random.py` in
it would be imported in place of the standard library's. What this interpreter finds, such as a
person's own module in that folder, a child finds too: it looks there last.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""For the environment of a child, so that it holds for what that starts in turn."""


def command(module: str, *words: str) -> list[str]:
    """What starts a module in another interpreter."""
    return [sys.executable, "-P", "-m", module, *words]


def own_path() -> list[str]:
    """Where this interpreter looks for modules, for `look_there_too` in a child."""
    return [str(Path(entry).absolute()) for entry in sys.path]


def look_there_too(path: Sequence[str]) -> None:
    """Look for modules in these folders as well, after all others."""
    sys.path += [entry for entry in path if entry not in sys.path]


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux): nobody would read it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before: this process would go on, beside its successor's
        os._exit(1)
