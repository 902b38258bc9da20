"""The gates before a speed: does it do the work that it says, all of it, and right?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expkit import conduct
from expkit.config import compose_cell, options
from expkit.contracts import Operation
from expkit.errors import UnsetError
from expkit.measure import answer, parity
from expkit.measure.answer import Answer, reference
from expkit.testing.cells import forms, workload
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Done, Expkit

QUICK = ("measure.repeats_min=2", "measure.repeats_max=2", "tracking.pictures=false")
SPEEDS = {
    "time/median_seconds",
    "time/low_seconds",
    "time/high_seconds",
    "time/steps_per_second",
    "time/step_seconds",
    "time/share_of_limit",
}


def records(folder: Path) -> Iterator[dict[str, Any]]:
    for record, _ in journal.read(folder):
        yield record


def tags(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for record in records(folder):
        found |= record.get("tags", {})
    return found


def metrics(folder: Path) -> set[str]:
    return {record["key"] for record in records(folder) if record["kind"] == "metric"}


def is_refused(expkit: Expkit, done: Done, *outcomes: str) -> str:
    """The law of a gate; returns the reason."""
    assert (done.status, done.err) == (1, ""), done
    [folder] = expkit.folders()
    found = tags(folder)
    assert found["outcome"] in outcomes, found
    assert f"{found['outcome']}: {found['reason']}" in done.out
    assert metrics(folder) & SPEEDS == set()
    for word in ("steps/s", "wall time", " a step,", "  speed"):
        assert word not in done.out, done.out
    assert "no time is given" in done.out
    end = list(records(folder))[-1]
    assert (end["kind"], end["status"]) == ("end", "FAILED")
    return found["reason"]


# Planted faults

WRONG, QUEUED = "wrong_answer", "not_synchronized"
FAULTS = {
    "skips_updates": (WRONG,),
    "float32_inside": (WRONG,),
    "float32_arrays": (WRONG,),
    "returns_early": (WRONG,),
    "returns_early_padded": (WRONG,),
    "stale_losses": (WRONG,),
    "unsynchronized": (QUEUED,),
    "left_queued": (WRONG, QUEUED),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(planted: Expkit, fault: str) -> None:
    done = planted("backend=planted", f"backend.fault={fault}", "tracking=none", *QUICK)
    assert is_refused(planted, done, *FAULTS[fault])


def test_a_fault_that_comes_later_is_refused(planted: Expkit) -> None:
    """With what was measured before it, of which no speed is shown either."""
    done = planted("backend=planted", "backend.fault=wrong_later", "tracking=none")
    assert is_refused(planted, done, WRONG).startswith("in repeat 3 ")
    [folder] = planted.folders()
    assert [r["placement"] for r in records(folder) if r["kind"] == "sample"] == [0, 0]


def test_an_answer_that_was_kept_from_the_first_repeat_is_refused(planted: Expkit) -> None:
    words = ("backend=planted", "backend.fault=replays_first", "tracking=none")
    is_refused(planted, planted(*words, "measure.repeats_max=12"), WRONG)


@pytest.mark.parametrize("twin", ["honest", "honest_queue"])
def test_its_honest_twin_is_accepted(planted: Expkit, twin: str) -> None:
    done = planted("backend=planted", f"backend.fault={twin}", "tracking=none", *QUICK)
    assert (done.status, done.err) == (0, "")
    [folder] = planted.folders()
    assert tags(folder)["outcome"] == "ok"
    assert metrics(folder) >= SPEEDS - {"time/share_of_limit"}
    assert "steps/s" in done.out


def test_what_is_refused_has_no_speed_in_mlflow(planted: Expkit) -> None:
    done = planted("backend=planted", "backend.fault=skips_updates", *QUICK)
    assert "skips" not in is_refused(planted, done, WRONG)
    [folder] = planted.folders()
    code = f"""
        import warnings
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient
        client = MlflowClient("sqlite:///{planted.outputs / "mlflow.db"}")
        [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
        import json
        print(json.dumps([run.info.status, run.data.tags, sorted(run.data.metrics)]))
    """
    status, kept, keys = json.loads(planted.python(code).out.splitlines()[-1])
    assert (status, kept["outcome"], kept["reason"]) == ("FAILED", WRONG, tags(folder)["reason"])
    assert "train/loss" in keys
    assert SPEEDS & set(keys) == set()


# The answer


def accepted() -> list[tuple[str, ...]]:
    """Every problem with every optimizer that fits, at the size and for the steps that the problem
    recommends, on each backend and dtype in turn.
    """
    backends = ["numpy", *(["torch"] if find_spec("torch") else [])]
    ways = [
        (f"backend={b}", f"backend.dtype={d}") for b in backends for d in ("float64", "float32")
    ]
    cases: list[tuple[str, ...]] = []
    for problem in options("problem"):
        learns = not isinstance(forms(problem)[""], Operation)
        for optimizer in options("optimizer") if learns else ["sgd"]:
            words = (f"problem={problem}", f"optimizer={optimizer}")
            try:
                workload(problem, optimizer, 1)
            except UnsetError:  # the problem recommends no rate: the two do not fit
                continue
            cases.append((*words, *ways[len(cases) % len(ways)]))
    return cases


SMALLER = {"large_dot": ("problem.n=2000",), "matmul": ("problem.n=60",), "add": ("problem.n=60",)}


@pytest.mark.parametrize("words", accepted(), ids=" ".join)
def test_no_right_answer_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Those of plain gradient descent are timed too, and audited."""
    timed = "optimizer=sgd" in words
    words += SMALLER.get(words[0].partition("=")[2], ())
    cell = compose_cell(*words, "tracking=none", "measure.repeats_min=1", "measure.repeats_max=1")
    [found] = conduct.run_together([(cell, tmp_path / "run")], None, tags={}, timed=timed)
    assert (found.outcome, found.reason) == ("ok", None)
    assert found.checked.startswith("matches float64 NumPy on "), found.checked
    assert found.broken == []


JUMPS = [
    "problem=logistic problem.batch_size=null backend=torch optimizer=lion",
    "problem=mlp problem.hidden=640 steps=200 backend=torch optimizer=lion",
    "problem=rosenbrock problem.n=1000 backend=torch optimizer=lbfgs",
]
"""Seldom does a rounding error change a step here, and then by much."""


@pytest.mark.parametrize("words", JUMPS)
def test_rounding_that_seldom_matters_is_no_wrong_answer(tmp_path: Path, words: str) -> None:
    pytest.importorskip("torch")
    ways = ("backend.dtype=float32", "backend.threads=1", "measure=once", "tracking=none")
    cell = compose_cell(*words.split(), *ways)
    [found] = conduct.run_together([(cell, tmp_path / "run")], None, tags={}, timed=False)
    assert (found.outcome, found.reason) == ("ok", None)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lion"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_second_look_excuses_no_wrong_rate(backend: str, optimizer: str) -> None:
    """What rounding may change at most is found once more before an answer is called wrong."""
    if not find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    ways = (f"backend={backend}", "backend.dtype=float32", "backend.threads=1", "steps=50")
    right = compose_cell(
        "problem=logistic", "problem.batch_size=null", f"optimizer={optimizer}", *ways
    )
    rate = right.params["optimizer.lr"]
    found = reference(right.backend, right.workload, "float32", 1000)
    assert isinstance(found, Answer)
    off = right.but(f"optimizer.lr={1.01 * rate}")
    program = off.backend.build(off.workload)
    program.advance(50)
    assert found.wrong_losses(program.losses()) is not None
    assert found.jumps is None, "it has been looked at twice"
    assert found.wrong_params(program.params()) is not None


def test_what_has_no_reference_says_so(expkit: Expkit) -> None:
    """A problem without a gradient by hand, on a backend that differentiates."""
    if not find_spec("torch"):
        pytest.skip("needs a backend that differentiates")
    code = """
        from dataclasses import dataclass
        import numpy as np
        from expkit.contracts import Recommended

        @dataclass(frozen=True)
        class Square:
            def recommended(self):
                return Recommended(steps=50, log_every=10, lr={"sgd": 0.1})
            def init(self, rng):
                return {"w": np.ones(3)}
            def data(self, rng):
                return {"t": np.zeros(3)}
            def batch(self, xp, data, random):
                return data
            def loss(self, xp, params, batch):
                return ((params["w"] - batch["t"]) ** 2).sum()
    """
    option = "_target_: broken_plugin.Square\n"
    expkit.plugin({"__init__.py": code, "conf/problem/square.yaml": option})
    done = expkit("problem=square", "backend=torch", "tracking=none", *QUICK)
    assert done.status == 0, done
    assert "not checked: the problem gives no gradient by hand" in done.out


# The same work


@pytest.mark.parametrize("program", ["float32_arrays", "honest"])
def test_arrays_of_another_dtype_than_the_backend_says_are_named(
    planted: Expkit, program: str
) -> None:
    done = planted("backend=planted", f"backend.fault={program}", "tracking=none", *QUICK)
    said = "dtype: says float64, its arrays are float32"
    assert (said in done.out) == (program == "float32_arrays"), done.out
    [folder] = planted.folders()
    assert (said in tags(folder).get("parity", "")) == (program == "float32_arrays")


def test_parity_can_be_required(planted: Expkit) -> None:
    words = ("backend=planted", "measure.parity=require", "tracking=none", *QUICK)
    assert planted(*words).status == 0
    done = planted(*words, "backend.fault=float32_arrays")
    assert done.status == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert "dtype: says float64, its arrays are float32" in done.err
    assert "steps/s" not in done.out


def facts(*words: str) -> parity.Facts:
    cell = compose_cell(*words)
    cell.backend.configure()
    program = cell.backend.build(cell.workload)
    return parity.facts(cell.backend, cell.workload, program, cell.log_every)


UNLIKE = [
    # words, what differs
    (("backend.dtype=float32",), {"dtype", "stream"}),  # no data; a start of ones is the same
    (("backend.threads=1",), {"threads"}),
    (("seed=1",), {"stream"}),
    (("problem=sine", "steps=10", "stream=shared"), {"problem", "optimizer", "start", "data"}),
    (("stream=device",), {"stream"}),
    (("steps=7",), {"steps"}),
    (("optimizer=adam",), {"optimizer"}),
    (("optimizer.lr=0.123",), {"optimizer"}),
    (("problem.batch_size=21",), {"problem", "optimizer"}),  # whose rate follows the size
    (("backend.fast=false",), set()),
    ((), set()),
]


@pytest.mark.parametrize(("words", "keys"), UNLIKE, ids=[" ".join(case[0]) for case in UNLIKE])
def test_whatever_is_unlike_is_listed(words: tuple[str, ...], keys: set[str]) -> None:
    base = ("problem=linear", "backend.threads=2", "seed=0")
    a, b = facts(*base), facts(*base, *words)
    found = {line.partition(":")[0] for line in parity.differences(a, b)}
    assert found == {parity.WORK[key] for key in keys}
    assert parity.differences(a, b, parity.PLACE) == []


@pytest.mark.skipif(not find_spec("torch"), reason="needs two backends")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_two_backends_start_alike(dtype: str) -> None:
    for problem in options("problem"):
        words = (f"problem={problem}", f"backend.dtype={dtype}", "stream=shared")
        small = SMALLER.get(problem, ())
        a, b = (facts(f"backend={name}", *words, *small) for name in ("numpy", "torch"))
        assert parity.differences(a, b) == []


# Short programs


TINY = [
    "problem=matmul problem.n=3 steps=1",
    "problem=add problem.n=3 steps=1",
    "problem=sine steps=1",
    "problem=linear problem.batch_size=1 steps=2",
]


@pytest.mark.parametrize("words", TINY)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_no_program_is_too_short_for_the_gates(tmp_path: Path, backend: str, words: str) -> None:
    if not find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    for trial in range(5):
        cell = compose_cell(f"backend={backend}", *words.split(), "tracking=none", *QUICK)
        folder = tmp_path / str(trial)
        found = conduct.run_together([(cell, folder)], None, tags={})[0]
        assert (found.outcome, found.reason) == ("ok", None)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("seed", range(4))
def test_adams_first_steps_in_float32_are_no_wrong_answer(seed: int, steps: int) -> None:
    """Its bias correction, 1 - beta**t, makes a thousand rounding errors of one."""
    words = ("problem=linear", "optimizer=adam", "backend.dtype=float32", "tracking=none")
    cell = compose_cell(*words, f"steps={steps}", f"seed={seed}")
    right = answer.reference(cell.backend, cell.workload, "float32", 100)
    assert isinstance(right, answer.Answer)
    program = cell.backend.build(cell.workload)
    program.advance(steps)
    assert right.wrong_losses(program.losses()) is None
    assert right.wrong_params(program.params()) is None


# What rounding explains


def test_what_rounding_explains_is_no_matter_of_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disturbed loss may by chance be where the right one is."""
    monkeypatch.setattr(answer, "LONG", 1)  # as of long arrays, whose sums are what is off
    words = ("problem=large_dot", "problem.n=2000", "backend.dtype=float32", "tracking=none")
    cell = compose_cell(*words, "steps=1")
    explained = []
    for seed in range(300):
        workload = dataclasses.replace(cell.workload, seed=seed)
        right = answer.reference(cell.backend, workload, "float32", 4000)
        assert isinstance(right, answer.Answer)
        explained.append(right.allowed[0] / right.losses[0] ** 0.5)  # the loss is an error squared
    least, usual = float(np.min(explained)), float(np.median(explained))
    assert least > usual / 20


@pytest.mark.parametrize(
    "words",
    [
        "problem=sine problem.n=50 problem.degree=12 backend.dtype=float32 seed=867351",
        "problem=sine problem.n=1 problem.degree=0 optimizer=adam backend=torch"
        " backend.dtype=float16 seed=252639",
    ],
    ids=["what-an-update-stores-is-rounded", "near-zero-a-dtype-has-steps"],
)
def test_rounding_alone_is_no_wrong_answer(words: str) -> None:
    cell = compose_cell(*words.split())
    program = cell.backend.build(cell.workload)
    program.advance(cell.workload.steps)
    found = reference(cell.backend, cell.workload, str(cell.backend.describe()["dtype"]), 100)
    assert isinstance(found, Answer)
    assert found.wrong_losses(program.losses()) is None
    assert found.wrong_params(program.params()) is None


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_rate_off_by_a_hundredth_is_a_wrong_answer(dtype: str) -> None:
    """That what rounding explains does not explain everything."""
    cell = compose_cell(f"backend.dtype={dtype}", "optimizer.lr=1e-6")
    off = compose_cell(f"backend.dtype={dtype}", "optimizer.lr=1.01e-6")
    program = off.backend.build(off.workload)
    program.advance(off.workload.steps)
    found = reference(cell.backend, cell.workload, dtype, 100)
    assert isinstance(found, Answer)
    assert found.wrong_losses(program.losses()) is not None
    assert found.wrong_params(program.params()) is not None


def test_too_few_losses_are_a_wrong_answer_and_no_traceback() -> None:
    cell = compose_cell("problem=linear", "steps=5")
    right = reference(cell.backend, cell.workload, "float64", 2)
    assert isinstance(right, Answer)
    assert right.wrong_losses(right.losses) is None
    assert right.wrong_losses(right.losses[:3]) == "3 losses came back for 5 steps"
