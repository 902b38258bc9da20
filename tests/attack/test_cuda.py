"""The CUDA path from outside, on a machine without a GPU.

What happens inside the torch plugin, and what waits for a real GPU, is in
plugins/torch/test_cuda_paths.py: a step is tried before it is captured, a capture that fails, side
streams, generators, replays, divergence, and steps that read a value or mix devices.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Expkit
from expkit_plugins.numpy.backend import NumpyBackend

from expkit.authors import StepProgram, manual
from expkit.config import compose_cell
from expkit.contracts import Array
from expkit.measure import parity
from expkit.measure.environment import environment, gpus
from expkit.sweeps import engine
from expkit.sweeps.manifest import Planned

# Which GPU a worker of a sweep is given

UUIDS = ["GPU-00000000-aaaa-bbbb-cccc-000000000000", "GPU-11111111-aaaa-bbbb-cccc-111111111111"]
SMI = f"""#!{sys.executable}
import sys
query, form = sys.argv[1:]
for index, uuid in enumerate({UUIDS!r}):
    known = {{"index": str(index), "uuid": uuid}}
    fields = query.removeprefix("--query-gpu=").split(",")
    print(", ".join(known.get(field, "[N/A]") for field in fields))
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that lists two, and an environment that chooses none."""
    script = tmp_path / "bin/nvidia-smi"
    script.parent.mkdir()
    script.write_text(SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def given(workers: int) -> list[str | None]:
    """What each worker's CUDA_VISIBLE_DEVICES is set to."""
    config = {"backend": {"device": "cuda", "threads": None}}
    planned = cast(Planned, SimpleNamespace(frozen={"config": config}))
    posts = engine._posts([planned] * workers, workers)
    return [engine._environment(planned, post.gpu).get("CUDA_VISIBLE_DEVICES") for post in posts]


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_handed_out_by_what_cuda_and_nvidia_smi_both_call_them() -> None:
    """Nvidia-smi's index 0 need not be CUDA's."""
    assert [gpu["uuid"] for gpu in gpus()] == UUIDS
    assert given(3) == [*UUIDS, None]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("MIG-3b0e, MIG-77aa", ["MIG-3b0e", "MIG-77aa"]),
        ("1,-1,0", ["1", None]),  # as CUDA reads it: what follows is not seen
        ("-1", [None, None]),
    ],
)
def test_who_has_chosen_gpus_is_taken_at_their_word(
    said: str, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert given(2) == expected


# Two models of GPU are not alike


class OnGpu(np.ndarray[Any, Any]):
    """An array that says where it lies as PyTorch's do."""

    device: str = "cuda:0"  # type: ignore[assignment]


class Board(NumpyBackend):  # type: ignore[misc]
    """NumPy in the name of a GPU, as none is at hand."""

    number, name, capability, uuid = 0, "NVIDIA H200", "9.0", "GPU-0"

    def asarray(self, host: npt.NDArray[Any]) -> Array:
        array = np.array(host, dtype=self.dtype).view(OnGpu)
        array.device = f"cuda:{self.number}"
        return array

    def describe(self) -> dict[str, str | int | float]:
        about: dict[str, str | int | float] = super().describe()
        own = {"device": self.name, "capability": self.capability, "gpu_uuid": self.uuid}
        return about | own


class OtherModel(Board):
    name, capability = "Tesla K80", "3.7"


class OtherBoard(Board):
    number, uuid = 1, "GPU-1"


def facts(backend: NumpyBackend) -> parity.Facts:
    cell = compose_cell("problem=sine", "problem.n=50", "seed=0")
    program = StepProgram(backend, cell.workload, manual(np))
    return parity.facts(backend, cell.workload, program, cell.log_every)


def test_two_models_of_gpu_are_not_alike() -> None:
    h200, k80 = facts(Board()), facts(OtherModel())
    assert parity.differences(h200, k80) == [
        "device: NVIDIA H200 (compute capability 9.0) against Tesla K80 (compute capability 3.7)"
    ]


def test_two_boards_of_one_model_are_alike() -> None:
    assert parity.differences(facts(Board()), facts(OtherBoard())) == []


def test_a_gpu_is_not_the_processor() -> None:
    [difference] = parity.differences(facts(NumpyBackend()), facts(Board()))
    assert difference.startswith("device: cpu against NVIDIA H200")


@pytest.mark.parametrize(
    ("says", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\nGCC 12.2",
            "580.65.06",
        ),
    ],
)
def test_the_driver_is_a_fact_of_the_place(
    says: str, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expkit.measure.environment import gpu_driver

    file = tmp_path / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text("something else")
    assert gpu_driver(tmp_path) is None
    file.write_text(says)
    assert gpu_driver(tmp_path) == driver
    monkeypatch.setattr(parity, "gpu_driver", lambda: driver)
    assert facts(Board()).get("driver") == driver
    assert "driver" not in facts(NumpyBackend())
    other = {**facts(Board()), "driver": "470.1"}
    assert parity.differences(facts(Board()), other, parity.PLACE) == [
        f"GPU driver: {driver} against 470.1"
    ]


@pytest.mark.usefixtures("two_gpus")
def test_the_record_names_the_very_board() -> None:
    assert [gpu["uuid"] for gpu in environment()["gpus"]] == UUIDS


# Why a faster path was not taken

BRANCHES = """
    from dataclasses import dataclass

    from expkit.problems.sine import Sine

    @dataclass(frozen=True)
    class Branching(Sine):
        def loss_and_grad(self, xp, params, batch):
            loss, grads = super().loss_and_grad(xp, params, batch)
            return (loss, grads) if loss > 0 else (2 * loss, grads)
"""
OPTION = "_target_: broken_plugin.Branching\nn: 50\ndegree: 3\n"
FAST = ("steps=20", "measure.repeats_min=2", "measure.budget_s=0", "tracking=none")
WHY = "the step cannot be recorded: the step uses an array's value in Python"


@pytest.fixture
def branching(expkit: Expkit) -> Callable[..., tuple[str, dict[str, str]]]:
    """Run a problem that branches on its loss; the table and the run's tags."""
    expkit.plugin({"__init__.py": BRANCHES, "conf/problem/branching.yaml": OPTION})

    def run(*words: str) -> tuple[str, dict[str, str]]:
        done = expkit("problem=branching", "seed=0", *FAST, *words)
        assert (done.status, done.err) == (0, "")
        tags: dict[str, str] = {}
        for line in (expkit.folders()[-1] / "journal.jsonl").read_text().splitlines():
            tags |= json.loads(line).get("tags", {})
        return done.out, tags

    return run


def test_why_a_run_went_step_by_step_is_shown_and_kept(
    branching: Callable[..., tuple[str, dict[str, str]]],
) -> None:
    table, tags = branching()
    assert f"path  step, because {WHY}" in table
    assert (tags["path"], tags["path_reason"]) == ("step", WHY)
    asked, tags = branching("backend.fast=false")
    assert "because" not in asked
    assert tags["path"] == "step"
    assert "path_reason" not in tags
