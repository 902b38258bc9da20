"""SLURM through hydra-submitit-launcher: a job that dies is noticed, and fails on its own.

submitit reads the state of its jobs from SLURM's accounting. Without accounting it waits for ever
for a job that died. When one job fails, it stops waiting for the others, which go on unattended.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import submitit_launcher

from expkit.errors import Unavailable, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("sbatch", "squeue", "scancel")
QUEUE = ("squeue", "--me", "--array", "--noheader", "--format=%i|%T")
ASK_S = 15
"""Interval at which the queue is read in the long run."""
END_S = 60.0
"""Time that jobs may take to end after they were cancelled."""


class SlurmLauncher(submitit_launcher.SlurmLauncher):  # type: ignore[misc]
    """Runs a job for every cell; returns when all have ended, and leaves none behind."""

    def require_here(self) -> None:
        """Check that SLURM's commands are on this machine, before anything is written.

        Raises:
            Unavailable: one of them is not.
        """
        for program in PROGRAMS:
            if shutil.which(program) is None:
                remedy = "start the sweep on a machine that submits to SLURM"
                raise Unavailable(f"hydra/launcher=slurm: no {program} on PATH", remedy)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs and wait for them."""
        folder = Path(self.config.hydra.sweep.dir).absolute()
        name = self.params["name"] = "-".join(["expkit", *folder.parts[-2:]])
        cancel(name)  # jobs of a process that was killed while it waited
        with _patient():
            try:
                found: Sequence[JobReturn] = super().launch(job_overrides, initial_job_idx)
            except Exception as error:  # errors inside a job do not get here
                with suppress(UserError):  # the first error is reported
                    cancel(name)
                said = str(error).strip() or type(error).__name__
                raise UserError(f"hydra/launcher=slurm: {said.splitlines()[-1]}") from error
            except BaseException:
                cancel(name)
                raise
        return found


def cancel(name: str) -> None:
    """End all jobs of this name, and wait until they have ended."""
    try:
        command = ["scancel", "--me", f"--name={name}"]
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UserError(f"hydra/launcher=slurm: {said.strip().splitlines()[-1]}") from error
    queue = [*QUEUE, f"--name={name}"]
    end = time.monotonic() + END_S
    while subprocess.run(queue, capture_output=True).stdout and time.monotonic() < end:
        time.sleep(0.2)


@contextmanager
def _patient() -> Iterator[None]:
    """Make submitit notice dead jobs, and go on waiting for the others when a job fails."""
    from submitit.core.utils import UncompletedJobError
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Queue(SlurmInfoWatcher):  # type: ignore[misc]
        """Reads the jobs' states from `squeue`; a job that it does not list any more has ended."""

        def _make_command(self) -> list[str] | None:
            return [*QUEUE, "--states=all"] if self._registered - self._finished else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            states = dict(line.split("|") for line in text.split())
            return {job: {"State": states.get(job, "GONE")} for job in self._registered}

    def results(job: Any) -> list[JobReturn]:
        try:
            return list(wait(job))
        except UncompletedJobError:
            said = f"SLURM's job {job.job_id} has no result ({job.state}); see {job.paths.stderr}"
            return [JobReturn(_return_value=RuntimeError(said), status=JobStatus.FAILED)]

    wait, watcher = SlurmJob.results, SlurmJob.watcher
    SlurmJob.results, SlurmJob.watcher = results, Queue(delay_s=ASK_S)
    try:
        yield
    finally:
        SlurmJob.results, SlurmJob.watcher = wait, watcher
