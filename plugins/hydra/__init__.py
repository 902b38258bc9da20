"""Hydra's side of a sweep: `-m` composes cells and hands them to the command line.

Hydra takes sweepers and launchers from packages named `hydra_plugins.*` alone, so this folder is
installed as `hydra_plugins.expkit`. What they do is in `expkit.sweeps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from expkit.config import as_typed
from expkit.sweeps.cluster import launcher_of
from expkit.sweeps.manifest import ONCE


class ExpkitSweeper(BasicSweeper):
    """Composes and checks all cells, in Hydra's grammar, before the first of them runs."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what is needed; a launcher other than ours runs each cell as a separate job."""
        self.hydra_context, self.config = hydra_context, config
        self._command: Any = task_function
        self.launcher = launcher_of(hydra_context, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run every combination of the words."""
        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        (jobs,) = self.split_arguments(parsed, None)
        # Words such as hydra/launcher=slurm, with references unresolved: each cell has its own.
        given = as_typed(self.config.hydra.overrides.hydra)
        hydras = [w for w in given if not w.startswith(ONCE)]
        words = [*hydras, *arguments]
        return self._command.sweep(self.config, loader, jobs, words, self.launcher)


class LocalLauncher(Launcher):
    """Runs cells on this machine, for sweepers that search."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what is needed to launch."""
        self._loader, self._config = hydra_context.config_loader, config
        self._command: Any = task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run these cells; each returns the objective."""
        found: Sequence[JobReturn] = self._command.launch(
            self._config, self._loader, job_overrides, initial_job_idx
        )
        return found
