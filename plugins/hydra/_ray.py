"""Ray through hydra-ray-launcher, changed so that a task whose node dies fails alone.

As shipped, hydra-ray-launcher stops waiting for all tasks when the first is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_ray_launcher import ray_launcher

from expkit.errors import UserError
from expkit.tracking.address import one_line


class RayLauncher(ray_launcher.RayLauncher):  # type: ignore[misc]
    """Runs a task for every cell; returns when all have ended, and leaves none behind."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Connect, start the tasks and wait for them."""
        import ray
        from hydra_plugins.hydra_ray_launcher import _core

        try:
            _core.start_ray(self.ray_cfg.init)
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise UserError(f"hydra/launcher=ray: {one_line(error)}") from error
        try:
            offered = ray.cluster_resources()
            for name, amount in self.ray_cfg.remote.get("resources", {}).items():
                if name not in offered:  # the tasks would wait for ever
                    start = f"ray start --resources='{{\"{name}\": {amount}}}'"
                    raise UserError(
                        f"hydra/launcher=ray: no node offers {name!r}; begin nodes with {start}"
                    )
            _core.ray = _Patient  # it uses nothing of the module but get
            found: Sequence[JobReturn] = super().launch(job_overrides, initial_job_idx)
        finally:
            ray.shutdown()
        return found


class _Patient:
    """Replaces the module `ray` where the launcher waits for tasks."""

    @staticmethod
    def get(task: Any) -> JobReturn:
        """Return the task's result; if the task was lost, a failure."""
        import ray

        try:
            done: JobReturn = ray.get(task)
        except ray.exceptions.RayError as error:
            done = JobReturn(_return_value=error, status=JobStatus.FAILED)
        return done
