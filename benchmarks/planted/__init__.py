"""A backend with planted faults, which the framework has to find, and its honest twins.

It is a plugin: its files are installed as a package by `benchmarks.faults` and by the tests. Every
kind is a program of its own, mostly a few lines beside the step-by-step program.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from expkit_plugins.numpy.backend import NumpyBackend

from expkit.contracts import Program, Workload

from . import ahead, lazy, queues, twins, wrong
from .kinds import CELLS, Kind

FAULTS = lazy.FAULTS | ahead.FAULTS | wrong.FAULTS | queues.FAULTS
TWINS = twins.TWINS | lazy.TWINS | wrong.TWINS | queues.TWINS
OPTION = "_target_: {package}.Planted\nfault: honest\ndtype: float64\nthreads: null\nfast: false\n"
"""The plugin's file `conf/backend/planted.yaml`."""


@dataclass(frozen=True)
class Planted(NumpyBackend):  # type: ignore[misc]
    """Attributes:
    fault: one of FAULTS or TWINS.
    """

    fault: str = "honest"

    def configure(self) -> None:
        needs = (FAULTS | TWINS)[self.fault].needs
        if needs:
            import_module(f"{needs}.array")  # it may bring a BLAS of its own, with its own threads
        super().configure()

    def synchronize(self, program: Program | None = None) -> None:
        finish = getattr(program, "finish", None)
        if finish is not None:
            finish()

    def build(self, workload: Workload) -> Program:
        return (FAULTS | TWINS)[self.fault].make(self, workload)


def files(package: str) -> dict[str, str]:
    """The plugin as a package of this name: every file's text by its path in it."""
    modules = {file.name: file.read_text() for file in Path(__file__).parent.glob("*.py")}
    return modules | {"conf/backend/planted.yaml": OPTION.format(package=package)}


__all__ = ["CELLS", "FAULTS", "OPTION", "TWINS", "Kind", "Planted", "files"]
