"""The entry point of a child: python -m expkit.child MODULE PARENT [outlives]."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from expkit.child import Parent


def main() -> None:
    """Tie this process to its parent before anything slow is imported; then serve it."""
    module, pid, *outlives = sys.argv[1:]
    parent = Parent(int(pid), outlives=bool(outlives))
    served = import_module(module)
    parent.requests = served.REQUESTS
    served.serve(parent)
    os._exit(0)  # skips the interpreter's shutdown, which takes longer than the work


if __name__ == "__main__":
    main()
