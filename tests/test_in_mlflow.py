"""What MLflow's page is given of runs, beside their figures: names, notes, curves, verdicts."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from expkit.record.curves import POINTS
from expkit.tracking import address, views

if TYPE_CHECKING:
    from conftest import Expkit
    from mlflow.entities import Metric, Run

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # MLflow leaves connections open
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

QUICK = (
    "measure.repeats_min=6",
    "measure.repeats_per_placement=1",
    "measure.budget_s=0",
    "measure.settle_s=0",
)


FAILING = """
    import os
    from dataclasses import dataclass
    from expkit.authors import StepProgram, manual
    from expkit_plugins.numpy.backend import NumpyBackend

    class Raising(StepProgram):
        def advance(self, n):
            raise RuntimeError("the device is gone")

    class Dying(StepProgram):
        def advance(self, n):
            os._exit(3)

    @dataclass(frozen=True)
    class Backend(NumpyBackend):
        dies: bool = False

        def build(self, workload):
            return (Dying if self.dies else Raising)(self, workload, manual(self.xp))
"""


def kept(expkit: Expkit) -> list[Run]:
    """The runs in MLflow, in the order of their starts."""
    from mlflow import MlflowClient

    client = MlflowClient(address.local(expkit.outputs))
    found = client.search_runs(["1"], order_by=["attributes.start_time ASC"])
    return list(found)


def history(expkit: Expkit, run: Run, key: str) -> list[Metric]:
    from mlflow import MlflowClient

    client = MlflowClient(address.local(expkit.outputs))
    return sorted(client.get_metric_history(run.info.run_id, key), key=lambda metric: metric.step)


def described(expkit: Expkit) -> str:
    """What MLflow's page shows above the runs."""
    from mlflow import MlflowClient

    client = MlflowClient(address.local(expkit.outputs))
    return str(client.get_experiment("1").tags["mlflow.note.content"])


def test_a_run_has_a_note_a_data_set_and_curves(expkit: Expkit) -> None:
    words = ("problem=sine", "steps=2000", "optimizer.lr=1e-6", *QUICK)
    assert expkit(*words).status == 0
    [run] = kept(expkit)
    assert run.info.run_name == "sine · numpy · sgd"
    said = run.data.tags["mlflow.note.content"].splitlines()
    assert len(said) == 5
    assert said[0] == "- **sine · numpy · sgd**, 2000 steps, float64 on cpu"
    assert said[2] == "- verdict: compared with none"
    assert said[4] == f"- again: `expkit {' '.join(words)}`"
    assert run.inputs
    apart = [key for key in run.data.params if key.startswith(("measure.", "tracking."))]
    assert apart == [], "nobody compares these"
    [data] = run.inputs.dataset_inputs
    assert data.dataset.name == "sine"
    loss, seconds = (history(expkit, run, f"curve/{what}") for what in ("loss", "seconds"))
    assert [point.step for point in loss] == [point.step for point in seconds]
    assert len(loss) <= POINTS
    assert (loss[0].step, loss[-1].step) == (0, 1999)
    assert loss[-1].value == run.data.metrics["final/loss"]
    readings = history(expkit, run, "time/step_seconds")
    starts = [-1, *(reading.step for reading in readings)]
    took = (r.value * (r.step - start) for r, start in zip(readings, starts, strict=False))
    assert seconds[-1].value == pytest.approx(sum(took))
    assert run.data.metrics["time/median_ms"] == 1e3 * run.data.metrics["time/median_seconds"]
    times = [point.timestamp for point in history(expkit, run, "train/loss")]
    assert times == sorted(times)
    assert run.info.start_time <= times[0] <= times[-1] <= run.info.end_time
    assert times[-1] - times[0] >= 500 * run.data.metrics["time/median_seconds"], "in milliseconds"


def test_runs_that_fail_have_a_note_too(expkit: Expkit) -> None:
    option = "_target_: broken_plugin.Backend\ndies: false\n"
    expkit.plugin({"__init__.py": FAILING, "conf/backend/failing.yaml": option})
    words = ("problem=linear", "steps=20", "backend=failing", "backend.dies=false,true")
    assert expkit("-m", *words, *QUICK).status == 1
    runs = sorted(kept(expkit), key=lambda run: str(run.data.params["backend.dies"]))
    raised, died = (run.data.tags["mlflow.note.content"].splitlines() for run in runs)
    assert raised[1] == "- no time: failed: RuntimeError: the device is gone"
    assert died[1].startswith("- no time: failed: ")
    for said, dies in ((raised, "false"), (died, "true")):
        assert len(said) == 5
        assert said[4].startswith("- again: `expkit problem=linear ")
        assert f"backend.dies={dies}" in said[4].lower()


def test_cells_have_names_colours_and_verdicts_that_sort(expkit: Expkit) -> None:
    words = ("problem=linear", "steps=40", "backend=numpy", "backend.fast=true,false")
    done = expkit("-m", *words, *QUICK)
    assert done.status == 0, done.err
    runs = {run.info.run_name: run for run in kept(expkit)}
    assert set(runs) == {"fast=true", "fast=false"}
    base, slow = runs["fast=true"].data, runs["fast=false"].data
    assert base.tags["mlflow.runColor"] != slow.tags["mlflow.runColor"]
    assert "verdict/ratio" not in base.metrics
    metrics = {what: slow.metrics[f"verdict/{what}"] for what in ("low", "ratio", "high")}
    assert 0 < metrics["low"] <= metrics["ratio"] <= metrics["high"]
    word = slow.tags["verdict"].partition(" (")[0]
    signs = {"FASTER": -1, "SAME": 0, "SLOWER": 1}
    assert slow.metrics.get("verdict/sign") == signs.get(word)
    assert f"- verdict: {slow.tags['verdict']}" in slow.tags["mlflow.note.content"].splitlines()
    said = described(expkit)
    assert "| numpy · sgd, backend.fast=true |" in said
    assert f"| {word} |" in said
    assert said.endswith(f"Again: `expkit -m {' '.join([*words, *QUICK])}`")


@pytest.mark.parametrize("apart", [["--isolate"], []])
def test_two_that_differ_in_one_key_have_two_names(expkit: Expkit, apart: list[str]) -> None:
    sides = ("backend.fast=true", "backend.fast=false")
    expkit("compare", *sides, "problem=linear", "steps=20", *QUICK, *apart)
    names = [run.info.run_name for run in kept(expkit)]
    assert sorted(names) == [f"linear · numpy · sgd, backend.fast={v}" for v in ("false", "true")]


def shown(expkit: Expkit) -> dict[str, Any]:
    """The view that MLflow's page opens with."""
    from mlflow import MlflowClient

    tags = MlflowClient(address.local(expkit.outputs)).get_experiment("1").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    packed = json.loads(tags[views.TAG])["state"].removeprefix("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def test_the_page_opens_on_what_was_run_last(expkit: Expkit) -> None:
    one = ("problem=linear", "steps=20", *QUICK)
    for _ in range(2):
        assert expkit(*one).status == 0
        assert shown(expkit)["searchFilter"] == ""
        assert expkit("-m", *one, "seed=1,2").status == 0
        newest = max(expkit.outputs.glob("sweeps/*/*/"))
        state = shown(expkit)
        assert state["searchFilter"] == f"tags.sweep = '{'/'.join(newest.parts[-2:])}'"
        assert state["orderByAsc"]
        assert len(state["compareRunCharts"]) >= 3


def test_a_sweeps_page_is_in_mlflow(expkit: Expkit) -> None:
    from mlflow import MlflowClient

    assert expkit("-m", "problem=linear", "steps=20", *QUICK, "seed=1,2").status == 0
    client = MlflowClient(address.local(expkit.outputs))
    [link] = re.findall(
        r"\(#/experiments/1/runs/(\w+)/artifacts/report.html\?\S+\)", described(expkit)
    )
    assert f"[The runs in charts]({views.opened('1')})" in described(expkit)
    there = {file.path for file in client.list_artifacts(link)}
    assert "report.html" in there
    [file] = expkit.outputs.glob("sweeps/*/*/report.html")
    sent = Path(client.download_artifacts(link, "report.html"))
    assert sent.read_bytes() == file.read_bytes()


def test_a_sweep_that_is_sent_later_is_shown_like_any(expkit: Expkit) -> None:
    words = ("problem=linear", "steps=40", "seed=1,2", *QUICK)
    assert expkit("-m", *words, "tracking.uri=http://127.0.0.1:9").status == 1
    uri = f"sqlite:///{expkit.outputs / 'mlflow.db'}"
    done = expkit("sync", "--uri", uri)
    assert done.status == 0, done
    assert "The latest sweep, " in described(expkit)
    assert shown(expkit)["searchFilter"].startswith("tags.sweep = '")


def test_what_a_person_wrote_above_the_runs_stays(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from expkit.tracking.upload import Uploader

    uri, uploader = address.local(tmp_path), Uploader()
    uploader.describe(uri, "mine", "1", "first")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine")
    assert experiment
    for theirs in ("", "Mine.\n\n"):
        was = client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"]
        changed = theirs + was
        client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", changed)
        uploader.describe(uri, "mine", "2", "second")
        now = client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"]
        assert now == changed.replace("first", "second")


def test_an_experiment_that_was_there_before_opens_on_its_runs(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from expkit.tracking.upload import Uploader

    client = MlflowClient(address.local(tmp_path))
    theirs = {name: client.create_experiment(name) for name in ("old", "chosen")}
    [kind] = views.KIND
    client.set_experiment_tag(theirs["chosen"], kind, "custom")
    for name in theirs:
        Uploader().describe(address.local(tmp_path), name, "1", "text")
    kinds = {name: client.get_experiment(number).tags[kind] for name, number in theirs.items()}
    assert kinds == {"old": views.KIND[kind], "chosen": "custom"}


def test_what_is_not_finite_is_no_number_there(expkit: Expkit) -> None:
    assert expkit("problem=sine", "optimizer.lr=1", *QUICK).status == 1
    [run] = kept(expkit)
    assert "final/loss" not in run.data.metrics
    losses = history(expkit, run, "train/loss")
    assert len(losses) == int(run.data.tags["first_bad_step"])
    assert all(math.isfinite(point.value) for point in losses)
    assert max(point.value for point in losses) < 1.7e308
    drawn = history(expkit, run, "curve/loss")
    assert len(drawn) >= 1
    assert max(point.value for point in drawn) <= 10 * losses[0].value, "it hides no other"
    assert "no time: diverged" in run.data.tags["mlflow.note.content"]
