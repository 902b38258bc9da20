"""Sweeps beyond one machine, and a real tracking server: SLURM, Ray, MLflow on PostgreSQL."""

from __future__ import annotations

import os
import signal
from collections import Counter
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
from services import free_port
from swept import runs, sweep_of, wait_for

from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Done, Expkit
    from services import Postgres, Ray, Slurm, TrackingServer

LIMIT_S = 240.0
QUICK = ("measure.repeats_min=2", "measure.budget_s=0", "measure.warmup=0")
LASTING = ("measure.repeats_max=1000000", "measure.budget_s=2", "measure.warmup=0")
STEADY = (*LASTING, "measure.target_ci=1e-9")
"""Cells that take two seconds each."""
FOUR = ("-m", "problem=linear", "steps=20", "seed=range(4)")
MURDERER = {
    "__init__.py": "",
    "conf/problem/murderer.yaml": "_target_: broken_plugin.murderer.Murderer\nvictim: none\n",
    "murderer.py": """
        import os, signal
        from dataclasses import dataclass

        from expkit.contracts import Recommended

        @dataclass(frozen=True)
        class Murderer:
            victim: str = "none"

            def recommended(self):
                return Recommended(steps=20, log_every=10)

            def data(self, rng):
                if self.victim == "job":
                    os.kill(os.getppid(), signal.SIGKILL)
                return {"x": rng.standard_normal(8)}

            def batch(self, xp, data, random):
                return {"x": data["x"]}

            def apply(self, xp, batch):
                return batch["x"] + batch["x"]
    """,
}


def finish(expkit: Expkit, *words: str) -> Done:
    """To the end, however long the queue."""
    return expkit.end(expkit.start(*words), LIMIT_S)


def finished(cells: int) -> list[tuple[str, str]]:
    """Every cell exactly once."""
    return [(str(cell), "FINISHED") for cell in range(cells)]


def once(found: list[tuple[str, str]], cells: int) -> bool:
    """Whether every cell has one finished run, beside ended ones that are not."""
    done = Counter(cell for cell, status in found if status == "FINISHED")
    return done == {str(cell): 1 for cell in range(cells)} and (
        "RUNNING" not in dict(found).values()
    )


def ended_well(expkit: Expkit) -> int:
    """How many cells are finished by now."""
    manifest = sweep_of(expkit)
    results = (manifest.result(cell) for cell in manifest.cells)
    return sum(run is not None and run.outcome == "ok" for run in results)


def begun(expkit: Expkit) -> int:
    return len(list(expkit.outputs.glob(f"sweeps/*/*/*/{journal.FILE}")))


def at_once(expkit: Expkit) -> int:
    """How many cells ran at the same time, at most."""
    changes = []
    for folder in sweep_of(expkit).folder.glob("[0-9]*"):
        times = {record["kind"]: record["time"] for record, _ in journal.read(folder)}
        changes += [(times["run"], 1), (times["end"], -1)]
    alive = [sum(change for _, change in sorted(changes)[: i + 1]) for i in range(len(changes))]
    return max(alive)


# SLURM


@pytest.fixture
def on_slurm(expkit: Expkit, slurm: Slurm) -> Expkit:
    expkit.env |= slurm.env
    return expkit


def test_every_cell_is_a_job_of_slurm_alone_on_its_node(on_slurm: Expkit) -> None:
    done = finish(on_slurm, *FOUR, *QUICK, "hydra/launcher=slurm")
    assert done.status == 0, done.out + done.err
    assert runs(on_slurm) == finished(4)
    assert len(list(sweep_of(on_slurm).folder.glob(".submitit/*/*_result.pkl"))) == 4
    assert at_once(on_slurm) == 1


def test_a_job_of_slurm_that_dies_without_a_result_is_one_cells_failure(on_slurm: Expkit) -> None:
    on_slurm.plugin(MURDERER)
    words = ("problem=murderer", "problem.victim=job,none", "backend=numpy")
    done = finish(on_slurm, "-m", *words, *QUICK, "hydra/launcher=slurm")
    assert done.status == 1
    manifest = sweep_of(on_slurm)
    dead, alive = (manifest.result(cell) for cell in manifest.cells)
    assert dead is not None
    assert dead.outcome == "failed"
    assert "SLURM's job" in dead.reason
    assert "no result" in dead.reason
    assert alive is not None
    assert alive.outcome == "ok"
    assert runs(on_slurm) == [("0", "FAILED"), ("1", "FINISHED")]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_on_slurm_that_is_ended_leaves_no_job_to_the_resumed_one(
    on_slurm: Expkit, slurm: Slurm, by: signal.Signals
) -> None:
    sweep = on_slurm.start(*FOUR, *STEADY, "hydra/launcher=slurm")
    wait_for(lambda: begun(on_slurm) >= 2)
    os.killpg(sweep.pid, by)
    ended = on_slurm.end(sweep, LIMIT_S)
    if by == signal.SIGINT:
        assert ended.status == 130, ended.err
        assert "expkit resume" in ended.err
        assert slurm.ask("squeue", "--noheader") == ""
        assert "RUNNING" not in dict(runs(on_slurm)).values()
    assert ended_well(on_slurm) < 4
    done = finish(on_slurm, "resume")
    assert done.status == 0, done.out + done.err
    assert once(runs(on_slurm), 4), runs(on_slurm)
    assert len(list(sweep_of(on_slurm).folder.glob(".submitit/[0-9]*_0"))) == 2, "resumed on SLURM"
    assert slurm.ask("squeue", "--noheader") == ""


def test_slurm_that_refuses_a_job_is_one_line(on_slurm: Expkit) -> None:
    done = finish(on_slurm, *FOUR, "hydra/launcher=slurm", "hydra.launcher.partition=nowhere")
    assert done.status == 2
    assert "hydra/launcher=slurm: sbatch: error:" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


# Ray


@pytest.fixture
def on_ray(expkit: Expkit, ray_cluster: Ray) -> Expkit:
    expkit.env |= {**ray_cluster.env, "RAY_ADDRESS": ray_cluster.address}
    return expkit


def test_cells_share_the_nodes_of_a_ray_cluster_one_to_a_node(on_ray: Expkit) -> None:
    done = finish(on_ray, *FOUR, *STEADY, "hydra/launcher=ray")
    assert done.status == 0, done.out + done.err
    assert runs(on_ray) == finished(4)
    assert at_once(on_ray) == 2


def test_a_ray_node_that_dies_costs_its_cell_and_resume_completes(
    on_ray: Expkit, ray_cluster: Ray
) -> None:
    # The node has to die while it runs a cell, so they are few and long.
    cells = *FOUR, *STEADY, "measure.budget_s=5"
    sweep = on_ray.start(*cells, "hydra/launcher=ray")
    wait_for(lambda: begun(on_ray) == 2)
    ray_cluster.kill_a_node()
    done = on_ray.end(sweep, LIMIT_S)
    assert done.status == 1, done.out + done.err
    assert 2 <= ended_well(on_ray) <= 3
    assert "RUNNING" not in dict(runs(on_ray)).values()
    done = finish(on_ray, "resume")
    assert done.status == 0, done.out + done.err
    assert once(runs(on_ray), 4), runs(on_ray)


def test_a_ray_cluster_without_room_for_cells_is_one_line(on_ray: Expkit) -> None:
    wanted = "+hydra.launcher.ray.remote.resources.moon=1"
    done = finish(on_ray, *FOUR, "hydra/launcher=ray", wanted)
    assert done.status == 2
    assert "no node offers 'moon'" in done.err
    assert "Traceback" not in done.err


# MLflow's server on PostgreSQL


def test_a_sweep_that_is_killed_and_resumed_is_whole_on_a_tracking_server(
    expkit: Expkit, tracking_server: TrackingServer
) -> None:
    sweep = expkit.start(*FOUR, *STEADY, f"tracking.uri={tracking_server.address}")
    wait_for(lambda: "RUNNING" in dict(runs(expkit, tracking_server.database)).values())
    os.kill(sweep.pid, signal.SIGKILL)
    expkit.end(sweep)
    done = finish(expkit, "resume")
    assert done.status == 0, done.out + done.err
    found = runs(expkit, tracking_server.database)
    assert once(found, 4), found
    assert not (expkit.outputs / "mlflow.db").exists()


@pytest.mark.parametrize("through", ["server", "database"])
def test_four_processes_open_a_fresh_database_at_once(
    expkit: Expkit, postgres: Postgres, request: pytest.FixtureRequest, through: str
) -> None:
    if through == "server":
        server: TrackingServer = request.getfixturevalue("tracking_server")
        uri = server.address
    else:
        uri = postgres.database("fresh")
    script = f"""
        import pathlib, sys, time
        from expkit.tracking.upload import Uploader

        uploader = Uploader()
        pathlib.Path(f"ready-{{sys.argv[1]}}").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.001)
        for name in ("one", "two", "three"):
            uploader._open({uri!r}, name)
    """
    processes = [expkit._start("-c", dedent(script), str(number)) for number in range(4)]
    wait_for(lambda: len(list(expkit.place.glob("ready-*"))) == 4)
    (expkit.place / "go").touch()
    for done in [expkit.end(process, LIMIT_S) for process in processes]:
        assert done.status == 0, done.err


def test_four_sweeps_begin_at_once_on_a_fresh_tracking_server(
    expkit: Expkit, tracking_server: TrackingServer
) -> None:
    words = ("problem=linear", "steps=20", *QUICK, f"tracking.uri={tracking_server.address}")
    sweeps = [expkit.start("-m", *words, f"seed={number}") for number in range(4)]
    for done in [expkit.end(sweep, LIMIT_S) for sweep in sweeps]:
        assert done.status == 0, done.out + done.err
    assert runs(expkit, tracking_server.database) == [("0", "FINISHED")] * 4


def test_a_database_server_that_is_not_there_is_told_at_once(expkit: Expkit) -> None:
    pytest.importorskip("psycopg2")
    uri = f"postgresql+psycopg2://u:p@127.0.0.1:{free_port()}/d"
    done = expkit("problem=linear", "steps=20", *QUICK, f"tracking.uri={uri}")  # within its limit
    assert done.status == 1
    assert "not in MLflow (OperationalError: " in done.err
    assert "expkit sync" in done.err
