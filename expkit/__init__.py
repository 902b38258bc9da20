"""Run numerical experiments from configuration and compare ways of computing them.

>>> import expkit
>>> cell = expkit.cell(problem="linear", tracking="none", steps=20)
>>> cell.title
'linear · numpy · sgd'

`cell` makes a cell; `run`, `compare` and `sweep` measure; `load` reads records; `check` says what
this machine cannot run. Who writes plugins starts reading at `expkit.contracts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expkit.door import Comparison as Comparison
    from expkit.door import Crossover as Crossover
    from expkit.door import Run as Run
    from expkit.door import Runs as Runs
    from expkit.door import Sweep as Sweep
    from expkit.door import cell as cell
    from expkit.door import check as check
    from expkit.door import compare as compare
    from expkit.door import crossover as crossover
    from expkit.door import load as load
    from expkit.door import run as run
    from expkit.door import sweep as sweep

__version__ = "0.1.0"
__all__ = (
    "Comparison",
    "Crossover",
    "Run",
    "Runs",
    "Sweep",
    "cell",
    "check",
    "compare",
    "crossover",
    "load",
    "run",
    "sweep",
)


def __getattr__(name: str) -> Any:
    """Import what is asked for, and nothing before."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from expkit import door

    return getattr(door, name)
