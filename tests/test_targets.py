"""What is evaluated beside the loss, and when a target is reached."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expkit.authors import first_data, first_params
from expkit.config import compose_cell
from expkit.contracts import HasEvaluation, HasOptimum, Problem, Target
from expkit.errors import UserError
from expkit.measure.evaluation import Evaluation
from expkit.measure.subject import Subject
from expkit.measure.target import Goal, reached
from expkit.record.stored import Stored, load
from expkit.testing.cells import forms
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Done, Expkit

Run = Callable[..., "Done"]
"""The command line in this process."""

QUICK = ("tracking=none", "measure.repeats_min=2", "measure.budget_s=0")
WITH_OPTIMUM = ("ridge", "logistic", "rosenbrock", "matrix_factorization")


def only_run(place: Path) -> Stored:
    (folder,) = (file.parent for file in place.glob("outputs/runs/*/*/journal.jsonl"))
    return load(folder)


def series(run: Stored, key: str) -> tuple[list[int], list[float]]:
    found = [r for r, _ in journal.read(run.folder) if r.get("key") == key]
    assert len(found) == 1
    return found[0]["steps"], [float(value) for value in found[0]["values"]]


# Evaluation


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("steps", [3, 250])
def test_a_problem_is_evaluated_as_often_as_asked(
    run: Run, tmp_path: Path, backend: str, steps: int
) -> None:
    """In the first repeat, or where that is too short to be interrupted, in one of its own."""
    words = ("problem=logistic", f"backend={backend}", f"steps={steps}", "log_every=10")
    done = run(*words, "eval_every=50", *QUICK)
    assert done.status == 0, done.err
    found = only_run(tmp_path)
    for name in ("accuracy", "held_out_loss"):
        after, values = series(found, f"eval/{name}")
        assert after == ([0, 3] if steps == 3 else [0, 50, 100, 150, 200, 250])
        assert found.evaluated[name] == values[-1]
    assert found.evaluated["accuracy"] > 0.9
    assert f"accuracy {found.evaluated['accuracy']:.6g}" in done.out
    after, values = series(found, "eval/held_out_loss")
    assert values[0] == pytest.approx(math.log(2)), "the weights are 0 at first"
    assert values[-1] < values[0]


def test_evaluation_sees_the_parameters_of_its_step() -> None:
    cell = compose_cell("problem=logistic", "steps=6")
    problem = cell.workload.problem
    assert isinstance(problem, HasEvaluation)
    subject = Subject(cell.backend, cell.workload, 1, "numpy")
    subject.begin()
    evaluation, right = Evaluation(subject, 2), []
    evaluation.apart()
    assert evaluation.steps == [0, 2, 4, 6]
    program = cell.backend.build(cell.workload)
    for done in range(7):
        if done:
            program.advance(1)
        if done % 2 == 0:
            params = program.params()
            right.append(float(problem.evaluate(np, params, first_data(cell.workload))["accuracy"]))
    np.testing.assert_allclose(evaluation.figures["accuracy"], right, rtol=1e-12)


def test_losses_are_the_same_with_and_without_evaluation(run: Run, tmp_path: Path) -> None:
    losses = []
    for number, every in enumerate((0, 7)):
        words = ("problem=mlp", "problem.hidden=4", "steps=60", "log_every=1")
        done = run(*words, f"eval_every={every}", *QUICK, f"outputs={tmp_path / str(number)}")
        assert done.status == 0, done.err
        (file,) = (tmp_path / str(number)).glob("runs/*/*/journal.jsonl")
        losses.append(series(load(file.parent), "train/loss")[1])
        assert bool(load(file.parent).evaluated) == bool(every)
    assert losses[0] == losses[1]


EVALUATED = {
    "__init__.py": "",
    "conf/problem/odd.yaml": "_target_: broken_plugin.odd.Odd\ngives: nan\n",
    "odd.py": """
        from dataclasses import dataclass

        import numpy as np

        from expkit.problems.sine import Sine


        @dataclass(frozen=True)
        class Odd(Sine):
            gives: str = "nan"

            @property
            def figures(self):
                return {"error": "less"}

            def evaluate(self, xp, params, data):
                made = params["w"] @ params["w"]
                return {
                    "nan": {"error": made * np.nan},
                    "other": {"mistake": made},
                    "number": made,
                    "fine": {"error": made},
                }[self.gives]
    """,
}


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        ("nan", "evaluate: error is nan after 0 steps"),
        (
            "other",
            "evaluate() gives ['mistake'], takes a dict of its figures ['error']",
        ),
        ("number", "problem Odd: evaluate() gives float64, takes a dict of its figures ['error']"),
    ],
)
def test_a_figure_that_cannot_be_kept_is_one_line(expkit: Expkit, gives: str, said: str) -> None:
    expkit.plugin(EVALUATED)
    done = expkit("problem=odd", f"problem.gives={gives}", "eval_every=10", "steps=100", *QUICK)
    assert done.status == 1
    assert said in done.out + done.err
    assert "Traceback" not in done.err


# Optima


@pytest.mark.parametrize("name", WITH_OPTIMUM)
def test_no_loss_is_below_an_optimum_and_some_come_close(name: str) -> None:
    """Held against scipy's BFGS from the problem's own start."""
    from scipy.optimize import minimize

    problem = forms(name)[""]
    assert isinstance(problem, Problem)
    assert isinstance(problem, HasOptimum)
    workload = compose_cell(f"problem={name}").workload
    data, start = first_data(workload), first_params(workload)
    problem = workload.problem
    assert isinstance(problem, Problem)
    names, shapes = list(start), [value.shape for value in start.values()]
    sizes = [math.prod(shape) for shape in shapes]

    def params(flat: Any) -> dict[str, Any]:
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        return {k: v.reshape(s) for k, v, s in zip(names, parts, shapes, strict=True)}

    def loss_and_grad(flat: Any) -> tuple[float, Any]:
        loss, grads = problem.loss_and_grad(np, params(flat), batch)  # type: ignore[attr-defined]
        return float(loss), np.concatenate([np.ravel(grads[k]) for k in names])

    batch = problem.batch(np, data, None)  # type: ignore[arg-type]  # none of them draws
    first = np.concatenate([np.ravel(value) for value in start.values()])
    options = {"maxiter": 5000, "gtol": 1e-10, "ftol": 1e-16}
    found = minimize(loss_and_grad, first, jac=True, method="L-BFGS-B", options=options)
    optimum = workload.problem.optimum(data)  # type: ignore[union-attr]
    assert optimum.certificate
    assert -1e-12 < found.fun - optimum.value < 1e-6


# Targets


def goal(of: str, value: float, *, more: bool = False, least: float = 0.0) -> Goal:
    return Goal(Target(of, value), more, least)


CURVES: Mapping[str, tuple[list[float], int | None]] = {
    "falls": ([5, 4, 3, 2, 1], 4),
    "comes back up": ([5, 2, 5, 2, 5], None),
    "rises once more": ([5, 2, 5, 2, 1], 4),
    "from the start": ([1, 1, 1, 1, 1], 1),
    "never": ([5, 5, 5, 5, 5], None),
    "at last": ([5, 5, 5, 5, 2], 5),
}


@pytest.mark.parametrize("curve", CURVES)
def test_a_target_is_reached_where_it_holds_to_the_end(curve: str) -> None:
    losses, right = CURVES[curve]
    assert goal("loss", 2.0).steps(np.array(losses), [], {}) == right
    assert goal("gap", 1.0, least=1.0).steps(np.array(losses), [], {}) == right


@pytest.mark.parametrize("more", [True, False])
def test_a_figure_is_reached_on_its_better_side(more: bool) -> None:
    losses, after = np.zeros(25), [0, 10, 20, 25]
    rising, falling = {"it": [1.0, 2.0, 3.0, 4.0]}, {"it": [4.0, 3.0, 2.0, 1.0]}
    assert goal("it", 3.0, more=more).steps(losses, after, rising) == (20 if more else None)
    assert goal("it", 3.0, more=more).steps(losses, after, falling) == (None if more else 10)
    assert goal("it", 5.0, more=False).steps(losses, after, rising) == 1, "from the start on"


def test_the_time_to_a_step_is_read_off_the_clock() -> None:
    """Three readings of 4, 4 and 2 steps, of which the second is slow."""
    seconds = [[1.0, 4.0, 1.0], [2.0, 8.0, 2.0]]
    found = reached(6, [3, 7, 9], seconds, [[[6.0], [12.0]]])
    assert found == [[[3.0], [6.0]]]
    again = reached(6, [3, 7, 9], seconds, [[[6.0], [12.0]], [[10.0, 20.0]]])
    assert again == [[[3.0], [6.0]], [[5.0, 10.0]]]


def test_a_run_says_when_it_reached_its_target(run: Run, tmp_path: Path) -> None:
    words = ("problem=sine", "steps=1000", "target.of=loss", "target.value=500")
    done = run(*words, *QUICK)
    assert done.status == 0, done.err
    found = only_run(tmp_path)
    _, losses = series(found, "train/loss")
    right = next(step for step, loss in enumerate(losses) if loss <= 500) + 1
    assert 1 < right < 1000
    assert found.quantities["target/steps"] == right
    assert found.tags["target"] == f"loss of at most 500: reached after {right} of 1000 steps"
    share = found.quantities["target/seconds"] / found.quantities["time/median_seconds"]
    assert share == pytest.approx(right / 1000, abs=0.15)
    (line,) = (line for line in done.out.splitlines() if line.startswith("    target"))
    assert f"reached after {right} of 1000 steps, " in line


@pytest.mark.parametrize("words", [(), ("measure=quick", "steps=3")])
def test_what_is_not_reached_has_no_time(run: Run, tmp_path: Path, words: Any) -> None:
    done = run("problem=sine", "steps=100", "target.of=loss", "target.value=1", *words, *QUICK)
    assert done.status == 0, done.err
    found = only_run(tmp_path)
    assert "not reached in" in found.tags["target"]
    assert not [name for name in found.quantities if name.startswith("target/")]
    assert "not reached in" in done.out


def test_a_gap_is_above_the_optimum(run: Run, tmp_path: Path) -> None:
    done = run("problem=ridge", "target.of=gap", "target.value=1e-4", *QUICK)
    assert done.status == 0, done.err
    found = only_run(tmp_path)
    _, losses = series(found, "train/loss")
    steps = int(found.quantities["target/steps"])
    workload = compose_cell("problem=ridge").workload
    least = workload.problem.optimum(first_data(workload)).value  # type: ignore[union-attr]
    assert losses[steps - 1] <= least + 1e-4 < losses[steps - 2]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"target/steps", "values": [', '"target/steps", "values": ["nan", '),
        ('"target/steps", "values": [', '"target/steps", "values": [-'),
        ('"target/steps", "values": [', '"target/steps", "values": [9'),
        ('"process": 0', '"process": 1'),
        ('"placement": 0, "seconds": [', '"placement": 0, "seconds": [0.0, '),
        ('"key": "time/step_seconds"', '"key": "time/other_seconds"'),
    ],
)
def test_a_damaged_record_of_a_target_is_one_line(
    run: Run, tmp_path: Path, before: str, after: str
) -> None:
    done = run("problem=sine", "steps=1000", "target.value=500", *QUICK)
    assert done.status == 0, done.err
    folder = only_run(tmp_path).folder
    file = folder / journal.FILE
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)


BAD = {
    "target.of=speed target.value=1": "target.of: got 'speed', takes loss for problem sine",
    "target.of=gap target.value=1": "target.of: got 'gap', takes loss for problem sine",
    "target.of=loss": "target.value: got None, takes the value of loss that is to be reached",
    "target.value=inf": "target.value: got inf, takes a finite number",
    "target.value=abc": "target.value: got 'abc', takes a number",
    "problem=matmul target.value=1": "target.of: got 'loss', takes null: matmul learns nothing",
    "eval_every=10": "eval_every: got 10, takes 0: problem sine has nothing to evaluate",
    "problem=mlp eval_every=-1": "eval_every: got -1, takes an integer of at least 0",
    "problem=mlp eval_every=0 target.of=accuracy target.value=0.5": "eval_every: got 0, takes",
    "problem=mlp problem.batch_size=5000": "problem.batch_size: got 5000, takes an integer from 1",
}


@pytest.mark.parametrize("words", BAD)
def test_a_target_that_cannot_be_is_one_line(run: Run, words: str) -> None:
    done = run(*words.split(), "tracking=none")
    assert done.status == 2
    assert done.err.startswith(f"expkit: {BAD[words]}")
    assert done.err.count("\n") == 1


def test_a_gap_to_what_is_not_known_is_one_line(run: Run) -> None:
    words = ("problem=logistic", "problem.batch_size=32", "target.of=gap", "target.value=1")
    done = run(*words, *QUICK)
    assert done.status == 1
    assert "target.of: got 'gap', takes another target" in done.out + done.err


def test_no_target_is_needed_where_nothing_is_evaluated() -> None:
    with pytest.raises(UserError, match="eval_every"):
        compose_cell("problem=mlp", "eval_every=0", "target.of=accuracy")
    assert compose_cell("problem=mlp", "eval_every=0").target is None
    assert compose_cell("problem=mlp").target == Target("accuracy", 0.95)


@pytest.mark.parametrize("problem", ["logistic", "mlp", "ridge"])
def test_data_that_are_not_installed_are_one_line(expkit: Expkit, problem: str) -> None:
    done = expkit.python(f"""
        import importlib.util
        import expkit.problems._packaged as packaged
        packaged.find_spec = lambda name: None
        from expkit.cli import main
        raise SystemExit(main(("problem={problem}", "tracking=none")))
    """)
    assert done.status == 2
    assert done.err.startswith(f"expkit: problem={problem}: scikit-learn, which packages its data")
    assert "pip install 'expkit[data]'" in done.err


# A problem of one's own


def page_block(part: str, language: str) -> str:
    page = (Path(__file__).parent.parent / "docs" / "problems.md").read_text()
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    (block,) = (block for block in blocks if part in block)
    return str(block)


def own_problem(expkit: Expkit) -> None:
    """Write the files that docs/problems.md shows."""
    (expkit.place / "mine.py").write_text(page_block("class Mine", "python"))
    option = expkit.place / "conf" / "problem" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(page_block("_target_", "yaml"))


def test_the_problem_of_the_page_works_as_given(expkit: Expkit) -> None:
    own_problem(expkit)
    words = ("--config-dir", "conf", "problem=mine", "allow_target=true", *QUICK)
    for backend in ("numpy", "torch"):
        done = expkit(*words, f"backend={backend}")
        assert (done.status, done.err) == (0, ""), done
        assert "matches float64 NumPy on all 500 steps" in done.out
        assert "target  accuracy of at least 0.9: reached after" in done.out


def test_the_problem_of_the_page_keeps_to_the_contract(expkit: Expkit) -> None:
    expkit.plugin(
        {
            "__init__.py": "",
            "mine.py": page_block("class Mine", "python"),
            "conf/problem/mine.yaml": page_block("_target_", "yaml").replace(
                "mine.Mine", "broken_plugin.mine.Mine"
            ),
            "test_mine.py": """
                from expkit.testing import ProblemContract

                class TestMine(ProblemContract):
                    problem = "mine"
            """,
        }
    )
    test = str(expkit.place / "site" / "broken_plugin" / "test_mine.py")
    tried = expkit.python(f"""
        import sys, pytest
        sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", {test!r}]))
    """)
    assert tried.status == 0, tried.out[-3000:]


# Sweeps


def test_a_sweep_over_optimizers_is_ranked_by_the_time_to_the_target(expkit: Expkit) -> None:
    own_problem(expkit)
    words = ("--config-dir", "conf", "-m", "problem=mine", "optimizer=sgd,adam", "optimizer.lr=0.2")
    done = expkit(*words, "allow_target=true", "steps=300", "tracking=none")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert any("; target: accuracy of at least 0.9" in line for line in lines)
    (head,) = (line for line in lines if "to target" in line)
    assert head.split()[:3] == ["to", "target", "steps"]
    ranked = [line for line in lines if line.startswith("  numpy")]
    assert len(ranked) == 2
    assert not any("UNLIKE" in line for line in ranked)


def test_a_sweep_over_rates_says_which_is_first_at_the_target(expkit: Expkit) -> None:
    rates = "optimizer.lr=1e-6,0.04,0.05,0.2"
    done = expkit("-m", "problem=ridge", rates, "steps=300", *QUICK)
    assert done.status == 0, done.err
    (line,) = (line for line in done.out.splitlines() if line.startswith("Time to the target by"))
    assert line.startswith("Time to the target by optimizer.lr: the target is reached first at ")
    assert "optimizer.lr = 0.2: " in line
    assert ", at the end of the range; not reached at 1 of 4 values" in line
    (row,) = (
        line for line in done.out.splitlines() if "lr=1e-06" in line and "not reached" in line
    )
    assert row


def test_what_loads_the_data_brings_no_threads(expkit: Expkit) -> None:
    """scikit-learn imports SciPy, whose BLAS is another one than NumPy's."""
    done = expkit("problem=ridge", "backend.threads=1", "steps=50", *QUICK)
    assert done.status == 0, done.err
    assert "unlike" not in done.out


def test_a_single_pass_says_that_its_spread_is_not_known(run: Run) -> None:
    done = run("problem=sine", "measure=once", "tracking=none")
    assert done.status == 0, done.err
    assert "(one repeat: its spread is not known)" in done.out


def test_one_that_does_not_get_there_is_slower_by_a_bound(expkit: Expkit) -> None:
    """An optimizer of a tiny rate, which stays above the target, in a sweep and in `compare`."""
    sides = ("optimizer=sgd", "optimizer=momentum optimizer.lr=1e-12")
    words = ("problem=sine", "steps=1000", "target.value=500", "tracking=none")
    done = expkit("compare", *sides, *words)
    assert done.status == 1, done
    assert "B takes at least " in done.out
    assert " times as long as A to loss of at most 500 " in done.out
    assert "SLOWER" in done.out
    assert "; not to loss of at most 500" in done.out


def test_neither_is_called_faster_where_neither_gets_there(expkit: Expkit) -> None:
    sides = ("optimizer=sgd optimizer.lr=1e-12", "optimizer=momentum optimizer.lr=1e-12")
    done = expkit("compare", *sides, "problem=sine", "target.value=1", "tracking=none")
    assert "UNLIKE" in done.out
