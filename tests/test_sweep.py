"""`-m`: every cell checked first, isolated, interleaved, resumable."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hydra import initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from swept import runs, sweep_of, wait_for

from expkit import config
from expkit.cli import main
from expkit.errors import UserError
from expkit.record.stored import Stored
from expkit.remote import worker as a_worker
from expkit.sweeps.engine import teams
from expkit.sweeps.manifest import VERSION, Manifest, Planned
from expkit.sweeps.plan import Composer
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Done, Expkit

Run = Callable[..., "Done"]
"""The command line in this process."""

QUICK = ("measure.repeats_min=2", "measure.budget_s=0", "measure.warmup=0")
LINEAR = ("-m", "problem=linear", "steps=20", *QUICK)
FRAGILE = {
    "__init__.py": "",
    "conf/problem/fragile.yaml": "_target_: broken_plugin.fragile.Fragile\nhow: fine\nn: 8\n",
    "conf/problem/ungraded.yaml": "_target_: broken_plugin.fragile.Ungraded\n",
    "fragile.py": """
        import os, signal, sys, time
        from dataclasses import dataclass

        import numpy as np
        from expkit.contracts import Recommended

        @dataclass(frozen=True)
        class Fragile:
            how: str = "fine"
            n: int = 8

            def recommended(self):
                return Recommended(steps=20, log_every=10)

            def data(self, rng):
                getattr(self, self.how)()
                return {"x": rng.standard_normal(self.n)}

            def batch(self, xp, data, random):
                return {"x": data["x"]}

            def apply(self, xp, batch):
                return batch["x"] + batch["x"]

            def fine(self):
                pass

            def throws(self):
                print("about to go wrong")
                raise RuntimeError("the data are bad")

            def exits(self):
                sys.exit(3)

            def crashes(self):
                os.kill(os.getpid(), signal.SIGSEGV)

            def dies(self):
                os.kill(os.getpid(), signal.SIGKILL)

            def hangs(self):
                time.sleep(600)

            def slow(self):
                time.sleep(1.5)

            def fills(self):
                import resource
                resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
                np.ones(1 << 40)

        @dataclass(frozen=True)
        class Ungraded:
            def recommended(self):
                return Recommended(steps=5, lr={"sgd": 0.1})

            def init(self, rng):
                return {"w": np.ones(3)}

            def data(self, rng):
                return {}

            def batch(self, xp, data, random):
                return {}

            def loss(self, xp, params, batch):
                return (params["w"] * params["w"]).sum()
    """,
}


def results(expkit: Expkit) -> dict[str, Stored | None]:
    """Every cell's run, by title."""
    manifest = sweep_of(expkit)
    return {cell.title: manifest.result(cell) for cell in manifest.cells}


def samples(run: Stored) -> list[dict[str, Any]]:
    return [record for record, _ in journal.read(run.folder) if record["kind"] == "sample"]


# Composing and checking


def test_every_cell_is_checked_before_the_first_runs(run: Run, tmp_path: Path) -> None:
    done = run(*LINEAR, "optimizer=sgd,adam", "optimizer.lr=0.1,abc", "tracking=none")
    assert done.status == 2
    assert done.err == "expkit: optimizer.lr: got 'abc', takes a number\n"
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").rglob("*.json*"))


def test_a_dry_run_says_what_would_run_and_runs_nothing(run: Run, tmp_path: Path) -> None:
    done = run(*LINEAR, "backend=numpy", "seed=range(3)", "sweep.dry_run=true", "tracking=none")
    assert done.status == 0, done.err
    assert "3 cells" in done.out
    assert all(f"numpy · sgd, seed={seed}" in done.out for seed in range(3))
    assert not list((tmp_path / "outputs").rglob("*.json*"))


def test_what_cannot_run_is_skipped_with_its_reason(expkit: Expkit) -> None:
    expkit.plugin(FRAGILE)
    done = expkit("-m", "problem=ungraded,linear", "backend=numpy", "steps=5", *QUICK)
    assert done.status == 0, done.err
    said = "skipped: ungraded · numpy · sgd: problem Ungraded gives no gradient by hand"
    assert said in done.out
    assert [cell.title for cell in sweep_of(expkit).cells] == ["numpy · sgd"]


def test_a_cell_that_is_named_twice_runs_once(expkit: Expkit) -> None:
    done = expkit(*LINEAR, "tracking=none", "seed=1,2,1")
    assert done.status == 0, done.err
    assert "it is cell 0 again" in done.out
    assert len(sweep_of(expkit).cells) == 2


def test_editing_an_option_file_changes_nothing_in_a_sweep_that_runs(expkit: Expkit) -> None:
    expkit.plugin(FRAGILE)
    words = ("-m", "problem=fragile", "problem.how=fine", "seed=1,2,3,4", *QUICK)
    process = expkit.start(*words, "tracking=none", "sweep.workers=1")
    wait_for(lambda: list(expkit.outputs.glob("sweeps/*/*/sweep.json")))
    option = expkit.place / "site/broken_plugin/conf/problem/fragile.yaml"
    option.write_text("_target_: nowhere.Nothing\nn: 9\n")
    done = expkit.end(process)
    assert done.status == 0, done.err
    for run in results(expkit).values():
        assert run is not None
        opening = journal.opening(run.folder)
        assert opening is not None
        assert opening["params"]["problem.n"] == 8


SHARING = {
    "values": ("problem=linear", "seed=3", "optimizer.lr=0.5"),
    "again": ("problem=linear", "seed=4", "optimizer.lr=0.25"),
    "a choice after a value of its": ("optimizer.lr=0.5", "problem=linear", "optimizer=adam"),
    "a preset": ("+experiment=sine", "steps=7"),
    "a value over a preset's": ("problem.n=5", "+experiment=sine"),
    "a key that is added": ("+optimizer.more=1", "optimizer.lr=0.5"),
    "a key that is deleted": ("problem=linear", "seed=1", "~problem.batch_size"),
    "a whole option's values": ("optimizer={lr: 0.5}", "seed=1"),
    "another option and a value of its": ("measure=thorough", "measure.budget_s=7"),
    "Hydra's own": ("hydra.job.name=mine", "seed=1"),
    "a reference": ("steps=${seed}", "seed=9", "backend.threads=${steps}"),
    "several values of one key": ("seed=1", "seed=2"),
    "the defaults": ("problem=sine", "backend=numpy", "optimizer=sgd", "steps=9"),
    "the defaults but one": ("problem=sine", "backend=torch", "optimizer=sgd", "steps=9"),
}


def loader_of_hydra() -> ConfigLoader:
    """Inside of Hydra's `initialize`."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.config_loader


@pytest.mark.parametrize("order", [1, -1])
def test_what_cells_share_is_composed_once_and_to_the_same(order: int) -> None:
    config.register()
    with initialize_config_module("expkit.conf", version_base="1.3"):
        loader = loader_of_hydra()
        master = loader.load_configuration("config", ["seed=1,2"], RunMode.MULTIRUN)
        composer = Composer(master, loader)
        for words in list(SHARING.values())[::order]:
            alone = loader.load_sweep_config(master, list(words))
            choices = dict(alone.hydra.runtime.choices)
            with open_dict(alone):
                del alone["hydra"]
            composed, chosen = composer(words)
            assert chosen == choices
            assert composed == alone
            assert OmegaConf.to_yaml(composed) == OmegaConf.to_yaml(alone)
            assert OmegaConf.to_yaml(composed, resolve=True) == OmegaConf.to_yaml(
                alone, resolve=True
            )


BAD = ("seed=abc", "nonsense=1", "optimizer=nonsense", "+backend=numpy")


@pytest.mark.parametrize("words", [(word,) for word in BAD])
def test_what_cannot_be_composed_is_told_as_hydra_tells_it(words: tuple[str, ...]) -> None:
    config.register()
    with initialize_config_module("expkit.conf", version_base="1.3"):
        loader = loader_of_hydra()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        with pytest.raises(HydraException) as alone:
            loader.load_sweep_config(master, list(words))
        with pytest.raises(HydraException) as shared:
            Composer(master, loader)(words)
    assert type(shared.value) is type(alone.value)
    assert str(shared.value) == str(alone.value)


@pytest.mark.parametrize("word", ["sweep.workers=0", "sweep.limit_s=-1", "sweep.objective=luck"])
def test_bad_settings_of_a_sweep_are_one_line(run: Run, word: str) -> None:
    done = run(*LINEAR, "seed=1,2", word, "tracking=none")
    assert done.status == 2
    assert done.err.startswith(f"expkit: {word.partition('=')[0]}: got")
    assert done.err.count("\n") == 1


def test_an_unknown_baseline_is_one_line(run: Run) -> None:
    done = run(*LINEAR, "seed=1,2", "sweep.baseline=jax", "tracking=none")
    assert (done.status, done.err) == (
        2,
        "expkit: sweep.baseline: got 'jax', takes one of numpy, sgd\n",
    )


# Isolation


REASONS = {
    "throws": "RuntimeError: the data are bad",
    "exits": "SystemExit: 3",
    "crashes": "killed by SIGSEGV",
    "dies": "killed by SIGKILL (out of memory?)",
    "fills": "MemoryError",
    "hangs": "longer than sweep.limit_s",
}


@pytest.mark.parametrize("timing", [True, False])
def test_a_failure_is_one_cells_affair(expkit: Expkit, timing: bool) -> None:
    expkit.plugin(FRAGILE)
    words = ("-m", "problem=fragile", f"problem.how={','.join(REASONS)},fine", *QUICK)
    done = expkit(*words, "problem.n=8", "sweep.limit_s=10", f"sweep.timing={timing}")
    assert done.status == 1, done.err
    manifest = sweep_of(expkit)
    for cell in manifest.cells:
        run = manifest.result(cell)
        assert run is not None
        if (how := cell.frozen["config"]["problem"]["how"]) == "fine":
            assert (run.outcome, run.reason) == ("ok", "")
        else:
            assert run.outcome == "failed"
            assert REASONS[how] in run.reason
            assert REASONS[how] in done.out
    assert f"{len(REASONS)} cells failed" in done.out
    assert "about to go wrong" in done.out
    assert [status for _, status in runs(expkit)] == ["FAILED"] * len(REASONS) + ["FINISHED"]
    assert expkit.processes() == []


def test_a_backend_that_is_not_there_is_told_and_the_others_go_on(expkit: Expkit) -> None:
    done = expkit(*LINEAR, "backend=numpy,torch_cuda", "tracking=none")
    run = results(expkit)["torch_cuda · sgd"]
    if run is not None and run.outcome == "ok":
        pytest.skip("there is a CUDA device")
    assert done.status == 1
    assert run is not None
    assert run.outcome == "unavailable"
    assert "backend=torch_cuda" in run.reason
    found = results(expkit)["numpy · sgd"]
    assert found is not None
    assert found.outcome == "ok"


# Timing


def test_cells_of_a_problem_take_turns_and_sleep_meanwhile(expkit: Expkit) -> None:
    words = ("-m", "problem=sine", "steps=2000", "optimizer=sgd,adam,momentum")
    long = ("measure.budget_s=2", "measure.repeats_max=100000", "measure.target_ci=0")
    process = expkit.start(*words, "tracking=none", *long)
    states: set[int] = set()

    def awake() -> int:
        """At once: those that are awake before and after a look at all of them."""
        seen = [
            {p for p in pids if Path(f"/proc/{p}/stat").read_text().split(") ")[1][0] != "T"}
            for _ in range(2)
        ]
        return len(set.intersection(*seen))

    def sampled() -> bool:
        files = list(expkit.outputs.glob("sweeps/*/*/*/journal.jsonl"))
        return len(files) == 3 and all('"sample"' in file.read_text() for file in files)

    wait_for(sampled)
    pids = expkit.workers()
    assert len(pids) == 3
    for _ in range(50):
        states.add(awake())
        time.sleep(0.01)
    done = expkit.end(process)
    assert done.status == 0, done.err
    assert max(states) <= 1
    found = list(results(expkit).values())
    assert len({run.interleaved for run in found if run}) == 1
    order = sorted(
        (sample["time"], number)
        for number, run in enumerate(found)
        if run
        for sample in samples(run)
    )
    turns = [number for _, number in order]
    assert len(turns) >= 36
    for start in range(0, 36, 6):  # a round: everyone twice
        assert sorted(turns[start : start + 6]) == [0, 0, 1, 1, 2, 2]


def test_the_table_ranks_cells_against_the_baseline(expkit: Expkit) -> None:
    words = ("-m", "problem=sine", "optimizer=sgd,adam", "optimizer.lr=1e-6", "tracking=none")
    done = expkit(*words, "sweep.baseline=adam")
    assert done.status == 0, done.err
    lines = [line.split() for line in done.out.splitlines() if line.startswith("  numpy")]
    ranked = [(line[2], "baseline" in line, "UNLIKE" in line) for line in lines]
    assert ranked == [("sgd", False, True), ("adam", True, False)], "not the same work"


def test_without_timing_no_time_is_shown_or_kept(expkit: Expkit) -> None:
    done = expkit(*LINEAR, "seed=range(6)", "sweep.timing=false")
    assert done.status == 0, done.err
    assert " ms" not in done.out
    for run in results(expkit).values():
        assert run is not None
        assert (run.outcome, run.timed, run.processes) == ("ok", False, [])
        kinds = {record.get("key") for record, _ in journal.read(run.folder)}
        assert kinds == {None, "train/loss", "curve/loss", "final/loss"}
    with sqlite3.connect(expkit.outputs / "mlflow.db") as database:
        query = "select count(*) from tags where key = 'timed' and value = 'no'"
        assert database.execute(query).fetchone() == (6,)


def test_a_bare_run_and_an_untimed_cell_have_the_same_loss(expkit: Expkit) -> None:
    expkit(*LINEAR, "seed=3,4", "sweep.timing=false", "tracking=none")
    expkit("problem=linear", "steps=20", "seed=3", *QUICK, "tracking=none")
    (folder,) = expkit.folders()
    last = [r["values"] for r, _ in journal.read(folder) if r.get("key") == "final/loss"]
    (run,) = [run for title, run in results(expkit).items() if "seed=3" in title]
    assert run is not None
    assert [[run.loss]] == last


def test_threads_are_set_before_a_worker_imports_anything(expkit: Expkit) -> None:
    expkit.plugin(
        {
            "__init__.py": "",
            "conf/problem/seen.yaml": "_target_: broken_plugin.seen.Seen\n",
            "seen.py": FRAGILE["fragile.py"]
            .replace("class Fragile", "class Seen")
            .replace("def fine(self):", "def fine(self):\n                print(SEEN)\n")
            .replace(
                "import os, signal",
                "import os; SEEN = os.environ.get('OMP_NUM_THREADS')\n        import signal",
            ),
        }
    )
    done = expkit("-m", "problem=seen", "backend.threads=1,2", *QUICK, "tracking=none")
    assert done.status == 0, done.err
    said = [(run.folder / "output.txt").read_text() for run in results(expkit).values() if run]
    assert [text.split()[0] for text in said] == ["1", "2"]


# Resuming


def cells(*clusters: tuple[int, int | None]) -> list[Planned]:
    return [Planned(i, f"{i}", f"{i}", g, b, {}) for i, (g, b) in enumerate(clusters)]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_teams_hold_every_cell_once_and_one_problem_each(most: int) -> None:
    todo = cells((0, None), (0, None), (0, 0), (0, 1), (1, None), (1, 4), (0, 0), (1, 4))
    found = teams(todo, most)
    assert sorted(p.index for team in found for p in team) == list(range(8))
    assert all(len({p.group for p in team}) == 1 and len(team) <= most for team in found)


def test_a_cell_is_in_the_team_of_its_baseline_where_that_has_room() -> None:
    todo = cells((0, None), (0, None), (0, 0), (0, 1), (0, 0), (0, 1))
    found = teams(todo, 3)
    assert [[p.index for p in team] for team in found] == [[0, 2, 4], [1, 3, 5]]


def test_the_baseline_leads_where_a_cluster_is_larger_than_a_team() -> None:
    todo = cells((0, 2), (0, 2), (0, None), (0, 2))
    assert [[p.index for p in team] for team in teams(todo, 2)] == [[2, 0], [1, 3]]


def test_a_cell_is_held_against_the_baselines_cell_that_is_most_like_it(expkit: Expkit) -> None:
    expkit(*LINEAR, "tracking=none", "backend=numpy,torch", "optimizer=sgd,adam", "seed=1,2")
    manifest = sweep_of(expkit)
    for cell in manifest.cells:
        base = None if cell.baseline is None else manifest.cells[cell.baseline].title
        expected = cell.title.replace("torch", "numpy")
        assert base == (None if expected == cell.title else expected)


def test_seeds_are_not_held_against_each_other(expkit: Expkit) -> None:
    """They are other data, so parity could not be required of them."""
    done = expkit(*LINEAR, "tracking=none", "seed=1,2", "measure.parity=require")
    assert done.status == 0, done.err
    assert "unlike" not in done.out
    assert [cell.baseline for cell in sweep_of(expkit).cells] == [None, None]


def test_an_unknown_key_among_lists_is_told_what_there_is(run: Run) -> None:
    done = run("-m", "problem=linear,sine", "optimzer=sgd", "tracking=none")
    assert done.status == 2
    assert done.err.startswith("expkit: optimzer: no such key; the top level takes problem, ")


@pytest.mark.parametrize("timing", [True, False])
def test_a_worker_that_is_busy_dies_with_its_parent(expkit: Expkit, timing: bool) -> None:
    expkit.plugin(FRAGILE)
    words = ("-m", "problem=fragile", "problem.how=hangs", f"sweep.timing={timing}", *QUICK)
    process = expkit.start(*words, "seed=1,2", "tracking=none")
    wait_for(lambda: len(list(expkit.outputs.glob("sweeps/*/*/*/output.txt"))) == 2)
    process.kill()
    expkit.end(process)
    wait_for(lambda: expkit.processes() == [], timeout_s=5)


@pytest.mark.parametrize("timing", [True, False])
def test_after_a_killed_parent_every_cell_is_finished_once(expkit: Expkit, timing: bool) -> None:
    words = (*LINEAR, "seed=range(6)", f"sweep.timing={timing}", "sweep.workers=2")
    process = expkit.start(*words)
    ended = "sweeps/*/*/*/config.yaml"
    wait_for(lambda: len(list(expkit.outputs.glob(ended))) >= 2)
    process.kill()
    expkit.end(process)
    wait_for(lambda: expkit.processes() == [])
    done = expkit("resume")
    assert done.status == 0, done.err
    manifest = sweep_of(expkit)
    for cell in manifest.cells:
        ends = [load_outcome(folder) for folder in manifest.attempts(cell)]
        assert ends.count("ok") == 1
    found = runs(expkit)
    assert sorted(cell for cell, status in found if status == "FINISHED") == list("012345")
    assert not [status for _, status in found if status == "RUNNING"]
    again = expkit("resume")
    assert again.status == 0
    assert "nothing is left to run" in again.out
    assert runs(expkit) == found


@pytest.mark.parametrize("tracking", ["mlflow", "none"])
def test_what_a_killed_parent_left_open_is_ended(expkit: Expkit, tracking: str) -> None:
    assert expkit(*LINEAR, "seed=range(3)", f"tracking={tracking}").status == 0
    manifest = sweep_of(expkit)
    for cell, lines in zip(manifest.cells, (None, 0, 2), strict=True):  # of the journal
        (folder,) = manifest.attempts(cell)
        (folder / "mlflow.json").unlink(missing_ok=True)
        file = folder / "journal.jsonl"
        if lines is None:
            file.unlink()
        else:
            file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:lines]))
    done = expkit("resume")
    assert (done.status, done.err.count("expkit:")) == (0, 0), done.err
    for cell in manifest.cells:
        folders = manifest.attempts(cell)
        assert all(journal.is_ended(folder) for folder in folders)
        assert load_outcome(folders[-1]) == "ok"
        assert [load_outcome(folder) for folder in folders[:-1]] in ([], ["interrupted"])
    assert len(manifest.attempts(manifest.cells[0])) == 2


def test_a_run_is_made_once_though_a_kill_came_before_its_id_was_noted(expkit: Expkit) -> None:
    assert expkit("problem=linear", "steps=20", *QUICK, "tracking=none").status == 0
    (folder,) = expkit.folders()
    done = expkit.python(f"""
        from pathlib import Path
        from expkit.tracking import journal, sync_state
        from expkit.tracking.upload import MlflowClient, Uploader

        folder, write = Path({str(folder)!r}), sync_state.write
        journal.is_dead = lambda owner: False  # the sweep goes on

        def killed(folder, state):
            if "run_id" in state:
                raise SystemExit
            write(folder, state)

        sync_state.write = killed
        try:
            Uploader().send(folder)
        except SystemExit:
            sync_state.write = write
        made = Uploader().send(folder)
        runs = MlflowClient(sync_state.read(folder)["uri"]).search_runs(["1"])
        assert [run.info.run_id for run in runs] == [made], runs
        assert runs[0].info.status == "FINISHED"
    """)
    assert done.status == 0, done.err


def test_a_database_is_made_anew_where_a_kill_came_while_it_was_made(expkit: Expkit) -> None:
    expkit.env["XDG_CACHE_HOME"] = str(expkit.place / "cache")  # no other has been made yet
    assert expkit("problem=linear", "steps=20", *QUICK, "tracking=none").status == 0
    (folder,) = expkit.folders()
    killed = expkit.python(f"""
        import os
        from pathlib import Path
        from expkit.tracking.upload import Uploader
        from sqlalchemy import Engine, event

        def end(connection, cursor, statement, *rest):
            if "ADD COLUMN" in statement:  # one of a migration's several steps
                os._exit(9)

        event.listen(Engine, "after_cursor_execute", end)
        Uploader().send(Path({str(folder)!r}))
    """)
    assert killed.status == 9, killed.err
    done = expkit("sync", str(folder))
    assert done.status == 0, done.err


@pytest.mark.parametrize("kept", ["sound", "damaged", "empty", "a folder"])
def test_a_new_database_is_a_copy_of_one_that_is_sound(expkit: Expkit, kept: str) -> None:
    """Else MLflow makes it, and that one is kept for the next."""
    expkit.env["XDG_CACHE_HOME"] = str(expkit.place / "cache")
    made = expkit.python(f"""
        from pathlib import Path
        from expkit import cache
        from expkit.tracking import address, database
        from sqlalchemy import Engine, event

        def statements(name):
            seen = []
            def note(connection, cursor, statement, *rest):
                seen.append(statement)
            event.listen(Engine, "before_cursor_execute", note)
            file = Path({str(expkit.place)!r}, name, "mlflow.db")
            file.parent.mkdir()
            client = database.client(address.of(file))
            event.remove(Engine, "before_cursor_execute", note)
            (default,) = client.search_experiments()
            assert name in default.artifact_location, default.artifact_location
            assert client.create_experiment("mine")
            return sum("ADD COLUMN" in statement for statement in seen)

        print(statements("first") > 0)
        (ready,) = cache.folder().glob("mlflow-*.db")
        if {kept!r} == "damaged":
            ready.write_bytes(ready.read_bytes()[:5000] + b"x" * 5000)
        elif {kept!r} == "empty":
            ready.write_bytes(b"")
        elif {kept!r} == "a folder":
            ready.unlink()
            ready.mkdir()
        print(statements("second") > 0, statements("third") > 0)
    """)
    assert made.status == 0, made.err
    again = {"sound": "False False", "a folder": "True True"}.get(kept, "True False")
    assert made.out.split("\n")[:2] == ["True", again]


def test_a_worker_is_asleep_when_it_was_told_to_sleep() -> None:
    worker = a_worker()
    try:
        for _ in range(50):
            worker.resume()
            worker.stop()
            state = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]
            assert state == "T"
        worker.kill()
        worker.stop()
    finally:
        worker.kill()


def load_outcome(folder: Path) -> str:
    tags = {"outcome": "killed before its journal began"}
    for record, _ in journal.read(folder) if (folder / journal.FILE).exists() else ():
        tags |= record.get("tags", {})
    return tags["outcome"]


def test_resume_runs_what_failed(expkit: Expkit) -> None:
    expkit.plugin(FRAGILE)
    words = ("-m", "problem=fragile", "problem.how=throws,fine", *QUICK, "tracking=none")
    assert expkit(*words).status == 1
    code = expkit.place / "site/broken_plugin/fragile.py"
    code.write_text(code.read_text().replace('raise RuntimeError("the data are bad")', "pass"))
    done = expkit("resume", sweep_of(expkit).id)
    assert done.status == 0, done.err
    assert "1 cell," in done.out
    assert {run.outcome for run in results(expkit).values() if run} == {"ok"}


def test_what_an_earlier_sweep_finished_is_skipped_on_demand(expkit: Expkit) -> None:
    words = (*LINEAR, "tracking=none", "sweep.skip_finished=true")
    assert expkit(*words, "seed=1,2").status == 0
    done = expkit(*words, "seed=range(4)")
    assert done.status == 0, done.err
    assert done.out.count("finished before") == 2
    assert [cell.title for cell in sweep_of(expkit).cells] == [
        "numpy · sgd, seed=0",
        "numpy · sgd, seed=3",
    ]
    other = expkit(*words, "seed=1,2", "measure.repeats_min=3")
    assert "finished before" not in other.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("resume",), "expkit: no sweep is kept in "),
        (("resume", "2020-01-01/00-00-00-000000"), "expkit: resume: "),
    ],
)
def test_resuming_what_is_not_there_is_one_line(
    run: Run, words: tuple[str, ...], said: str
) -> None:
    done = run(*words)
    assert done.status == 2
    assert done.err.startswith(said)
    assert done.err.count("\n") == 1


def test_a_sweep_is_run_by_one_process_at_a_time(expkit: Expkit) -> None:
    expkit.plugin(FRAGILE)
    process = expkit.start("-m", "problem=fragile", "problem.how=hangs", "seed=1,2", *QUICK)
    wait_for(lambda: list(expkit.outputs.glob("sweeps/*/*/0")))
    done = expkit("resume")
    assert done.status == 2
    assert f"process {process.pid} is running it" in done.err
    process.send_signal(signal.SIGTERM)
    assert expkit.end(process).status == 143
    assert expkit.processes() == []


# Interrupts


@pytest.fixture
def slow(expkit: Expkit) -> Any:
    """A sweep of four slow cells, two at a time, in its first pair."""
    expkit.plugin(FRAGILE)
    words = ("-m", "problem=fragile", "problem.how=slow", "seed=range(4)", *QUICK)
    process = expkit.start(*words, "sweep.workers=2", "sweep.timing=false")
    wait_for(lambda: list(expkit.outputs.glob("sweeps/*/*/1")))
    return process


def test_one_interrupt_finishes_what_is_being_measured(expkit: Expkit, slow: Any) -> None:
    os.kill(slow.pid, signal.SIGINT)
    done: Done = expkit.end(slow)
    assert done.status == 130
    assert "expkit resume" in done.err
    outcomes = [run.outcome if run else None for run in results(expkit).values()]
    assert outcomes == ["ok", "ok", None, None]
    send_what_was_not_waited_for(expkit, done)
    assert [status for _, status in runs(expkit)] == ["FINISHED", "FINISHED"]
    assert expkit.processes() == []
    assert expkit("resume").status == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_two_interrupts_end_it_now(expkit: Expkit, slow: Any, end: signal.Signals) -> None:
    if end == signal.SIGINT:
        os.kill(slow.pid, signal.SIGINT)
        time.sleep(0.2)
    os.kill(slow.pid, end)
    done: Done = expkit.end(slow)
    assert done.status == (130 if end == signal.SIGINT else 143)
    outcomes = [run.outcome if run else None for run in results(expkit).values()]
    assert outcomes == ["interrupted", "interrupted", None, None]
    assert expkit.processes() == []
    send_what_was_not_waited_for(expkit, done)
    assert [status for _, status in runs(expkit)] == ["KILLED", "KILLED"]


def send_what_was_not_waited_for(expkit: Expkit, done: Done) -> None:
    """An interrupted sweep waits seconds for MLflow, which may not be ready by then; it says so."""
    if "not in MLflow" in done.err:
        assert "send it later: expkit sync" in done.err
        assert expkit("sync").status == 0


def test_a_manifest_is_read_as_it_was_written(expkit: Expkit) -> None:
    expkit(*LINEAR, "tracking=none", "seed=1,2")
    manifest = sweep_of(expkit)
    before = (manifest.folder / "sweep.json").read_text()
    manifest.save()
    assert json.loads((manifest.folder / "sweep.json").read_text()) == json.loads(before)


def test_what_may_end_otherwise_is_run_again_and_a_newer_manifest_is_refused(
    expkit: Expkit,
) -> None:
    expkit(*LINEAR, "tracking=none", "sweep.timing=false", "seed=1,2")
    manifest = sweep_of(expkit)
    assert manifest.missing() == []
    file = manifest.folder / "1" / journal.FILE
    finished = file.read_text()
    for outcome in ("failed", "unavailable", "interrupted", "running"):
        file.write_text(finished.replace('"outcome": "ok"', f'"outcome": "{outcome}"'))
        assert [cell.index for cell in Manifest.load(manifest.folder).missing()] == [1]
    record = json.loads((manifest.folder / "sweep.json").read_text())
    (manifest.folder / "sweep.json").write_text(json.dumps(record | {"version": VERSION + 1}))
    with pytest.raises(UserError, match="version"):
        Manifest.load(manifest.folder)


# Found by use

NASTY = {
    "__init__.py": "",
    "conf/problem/nasty.yaml": "_target_: broken_plugin.nasty.Nasty\nhow: fine\nn: 8\n",
    "nasty.py": FRAGILE["fragile.py"]
    .replace("class Fragile", "class Nasty")
    .replace(
        "            def fine(self):",
        """
            def forks(self):
                if os.fork() == 0:
                    time.sleep(600)
                os.kill(os.getpid(), signal.SIGKILL)

            def spawns(self):
                import subprocess
                subprocess.Popen(["sleep", "600"])

            def limits(self):
                import resource
                resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
                np.ones(1 << 40)

            def grabs(self):
                np.ones(1 << 28)

            def chatters(self):
                print("x" * 10_000_000)
                raise RuntimeError("enough")

            def fine(self):""",
    ),
}


def nasty(expkit: Expkit, how: str, *words: str) -> Done:
    """A sweep over these ways to behave."""
    expkit.plugin(NASTY)
    return expkit("-m", "problem=nasty", f"problem.how={how}", *QUICK, "tracking=none", *words)


def outcomes(expkit: Expkit) -> list[str | None]:
    manifest = sweep_of(expkit)
    return [run.outcome if run else None for run in map(manifest.result, manifest.cells)]


@pytest.mark.parametrize("timing", [True, False])
def test_a_dead_worker_is_noticed_though_its_child_holds_the_pipe(
    expkit: Expkit, timing: bool
) -> None:
    done = nasty(expkit, "forks,fine", "sweep.limit_s=50", f"sweep.timing={timing}")
    assert done.status == 1, done.err
    assert "killed by SIGKILL" in done.out
    assert "sweep.limit_s" not in done.out
    assert expkit.processes() == []


def test_what_a_cell_started_ends_with_its_worker(expkit: Expkit) -> None:
    assert nasty(expkit, "spawns,fine", "sweep.timing=false").status == 0
    assert expkit.processes() == []


def test_what_a_failed_cell_did_to_its_process_is_not_the_next_ones(expkit: Expkit) -> None:
    nasty(expkit, "limits,grabs", "sweep.timing=false", "sweep.workers=1")
    assert outcomes(expkit) == ["failed", "ok"]


def test_a_cell_may_print_megabytes(expkit: Expkit) -> None:
    done = nasty(expkit, "chatters,fine")
    assert done.status == 1, done.err
    assert "enough" in done.out
    assert len(done.out) < 10_000


def test_a_worker_whose_parent_died_before_it_began_does_nothing() -> None:
    words = [sys.executable, "-m", "expkit.child", "expkit.far_end", "1"]  # not this process
    done = subprocess.run(words, input="{}\n", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_unlike_work_is_told_in_the_table(expkit: Expkit) -> None:
    done = expkit(*LINEAR, "backend.dtype=float64,float32", "tracking=none")
    assert " UNLIKE " in done.out
    assert "unlike work: numpy · sgd, backend.dtype=float32: dtype: float64 against" in done.out
    alike = expkit(*LINEAR, "backend.fast=true,false", "tracking=none")
    assert " UNLIKE " not in alike.out
    assert "unlike work" not in alike.out


def test_cells_of_two_measures_are_told_apart(run: Run) -> None:
    done = run(
        "-m", "problem=linear", "measure=quick,standard", "sweep.dry_run=true", "tracking=none"
    )
    assert "linear, measure=quick · numpy · sgd\n" in done.out
    assert "linear, measure=standard · numpy · sgd\n" in done.out


def test_what_a_preset_changes_tells_cells_apart(run: Run) -> None:
    done = run("-m", "+experiment=large_dot,large_dot_small", "sweep.dry_run=true", "tracking=none")
    lines = [line[8:] for line in done.out.splitlines() if line.startswith("    ")]
    assert len(set(lines)) == 2
    assert all("problem.n=" in line for line in lines)


def test_a_diverged_cell_has_no_verdict(expkit: Expkit) -> None:
    expkit("-m", "problem=sine", "optimizer.lr=1e-6,1e-3", *QUICK, "tracking=none")
    assert outcomes(expkit) == ["ok", "diverged"]
    for run in results(expkit).values():
        assert run is not None
        assert not [r for r, _ in journal.read(run.folder) if "verdict" in r.get("tags", {})]


def test_whoever_reads_the_output_may_have_seen_enough(expkit: Expkit) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "expkit", *LINEAR, "seed=1,2", "tracking=none"]
    done = subprocess.run(words, env=expkit.env, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert outcomes(expkit) == ["ok", "ok"]


@pytest.mark.parametrize(
    "text",
    ["", '{"words": ["pro', '{"sweep": {"older": 1}}', "[]", "\0\N{BYTE ORDER MARK}", "{}"],
)
def test_a_manifest_that_cannot_be_read_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sweeps/2026-01-01/00-00-00-000000/sweep.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert main(["resume", "--outputs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"expkit: sweep {file}: ")
    assert said.count("\n") == 1


def test_a_folder_that_holds_a_sweep_takes_no_other(expkit: Expkit) -> None:
    words = ("seed=1,2", "tracking=none", f"hydra.sweep.dir={expkit.place / 'mine'}")
    assert expkit(*LINEAR, *words).status == 0
    again = expkit(*LINEAR, *words)
    assert (again.status, "nothing is left to run" in again.out) == (0, True), again.err
    other = expkit("-m", "problem=sine", *words)
    assert other.status == 2
    assert other.err.startswith("expkit: hydra.sweep.dir: got ")
    assert other.err.count("\n") == 1


def test_resume_needs_no_option_file_and_takes_any_path(expkit: Expkit) -> None:
    expkit.plugin(FRAGILE)
    expkit.outputs = expkit.place / "out 'puts' ü"
    expkit.env["EXPKIT_OUTPUTS"] = str(expkit.outputs)
    words = ("-m", "problem=fragile", "problem.how=throws,fine", *QUICK, "tracking=none")
    assert expkit(*words).status == 1
    (expkit.place / "site/broken_plugin/conf/problem/fragile.yaml").unlink()
    code = expkit.place / "site/broken_plugin/fragile.py"
    code.write_text(code.read_text().replace('raise RuntimeError("the data are bad")', "pass"))
    refused = expkit("resume")  # no installed option names the class any more
    assert (refused.status, "--allow-target" in refused.err) == (2, True), refused.err
    done = expkit("resume", "--allow-target")
    assert done.status == 0, done.err


def test_a_journal_that_a_kill_left_empty_holds_nothing_up(expkit: Expkit) -> None:
    assert expkit(*LINEAR, "seed=1,2").status == 0
    folder = sweep_of(expkit).folder / "0-2"
    folder.mkdir()
    (folder / journal.FILE).touch()
    done = expkit("resume")
    assert done.status == 0, done.err
    assert runs(expkit) == [("0", "FINISHED"), ("0", "KILLED"), ("1", "FINISHED")]


def test_resume_ends_what_was_left_running(expkit: Expkit) -> None:
    """Though nothing is left to run: no new run looks for orphans."""
    assert expkit(*LINEAR, "seed=1,2").status == 0
    folder = sweep_of(expkit).folder
    first = (folder / "0" / journal.FILE).read_text().splitlines()[0]
    opening = json.loads(first) | {"id": "f" * 32}
    opening["owner"]["started"] = "1"
    (folder / "0-2").mkdir()
    (folder / "0-2" / journal.FILE).write_text(json.dumps(opening) + "\n")
    done = expkit("resume")
    assert done.status == 0, done.err
    assert load_outcome(folder / "0-2") == "interrupted"
    assert runs(expkit) == [("0", "FINISHED"), ("0", "KILLED"), ("1", "FINISHED")]


def test_how_to_go_on_is_told_for_a_folder_elsewhere(expkit: Expkit) -> None:
    expkit.plugin(FRAGILE)
    place = expkit.place / "my place"
    words = ("-m", "problem=fragile", "problem.how=slow", "seed=1,2", *QUICK, "tracking=none")
    process = expkit.start(*words, "sweep.workers=1", f"hydra.sweep.dir='{place}'")
    wait_for(lambda: list(place.glob("0/journal.jsonl")))
    os.kill(process.pid, signal.SIGINT)
    done = expkit.end(process)
    assert done.status == 130
    assert f"go on with: expkit resume '{place}'" in done.err
    assert expkit("resume", str(place)).status == 0


searching = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None,
    reason="hydra-optuna-sweeper is not installed",
)


@searching
def test_a_search_goes_on_after_a_cell_that_diverged(expkit: Expkit) -> None:
    rate = "optimizer.lr=tag(log, interval(1e-7,1e-3))"
    words = ("-m", "hydra/sweeper=optuna", "problem=sine", "hydra.sweeper.sampler.seed=1", rate)
    done = expkit(*words, "hydra.sweeper.n_trials=6", "sweep.timing=false", "tracking=none")
    assert "\033" not in done.err, "Optuna's own lines have colours"
    assert "diverged" in done.out
    assert len(outcomes(expkit)) == 6
    best = min(run.loss for run in results(expkit).values() if run and run.loss is not None)
    assert f"best: a final loss of {best:.6g}, by sine · numpy · sgd, optimizer.lr=" in done.out


@searching
def test_a_search_takes_a_value_twice(expkit: Expkit) -> None:
    words = ("-m", "hydra/sweeper=optuna", "problem=matmul", "problem.n=10")
    twice = ("backend.threads=choice(1,2)", "hydra.sweeper.n_trials=6", "tracking=none")
    done = expkit(*words, *twice, "sweep.objective=seconds", *QUICK)
    assert done.status == 0, done.err
    assert "best: " in done.out


@searching
def test_a_search_for_seconds_needs_timing(expkit: Expkit) -> None:
    words = ("-m", "hydra/sweeper=optuna", "problem=matmul", "backend.threads=choice(1,2)")
    done = expkit(*words, "sweep.objective=seconds", "sweep.timing=false", "tracking=none")
    assert done.status == 2
    assert "expkit: sweep.objective: got 'seconds', takes loss" in done.err
    assert not list(expkit.outputs.rglob("sweep.json"))


@searching
def test_an_interrupted_search_says_what_is_left_of_it(expkit: Expkit) -> None:
    expkit.plugin(FRAGILE)
    words = ("-m", "hydra/sweeper=optuna", "problem=fragile", "problem.how=slow", "tracking=none")
    process = expkit.start(*words, "seed=choice(1,2,3,4)", "hydra.sweeper.n_trials=4", *QUICK)
    wait_for(lambda: list(expkit.outputs.glob("sweeps/*/*/0/journal.jsonl")))
    os.kill(process.pid, signal.SIGINT)
    done = expkit.end(process)
    assert done.status == 130
    rest = f"what has not finished: expkit resume {sweep_of(expkit).id}"
    assert f"the search is interrupted; {rest}" in done.err
    assert expkit.processes() == []


# Beside the cells


def test_a_worker_that_no_cell_needs_is_gone_before_the_clock_runs(expkit: Expkit) -> None:
    long = ("measure.budget_s=20", "measure.repeats_max=100000", "measure.target_ci=0")
    process = expkit.start("-m", "problem=linear", "steps=50", "tracking=none", *long)
    wait_for(lambda: expkit.processes() and "sample" in journal_text(expkit))
    assert len(expkit.workers()) == 1
    process.send_signal(signal.SIGTERM)
    assert expkit.end(process).status == 143
    assert expkit.processes() == []


def journal_text(expkit: Expkit) -> str:
    return "".join(file.read_text() for file in expkit.outputs.glob("sweeps/*/*/*/journal.jsonl"))


@pytest.mark.parametrize("words", [("optimizer.lr=0.1,abc",), ("problem=linear,nothing",)])
def test_a_refused_sweep_leaves_no_process(expkit: Expkit, words: tuple[str, ...]) -> None:
    assert expkit("-m", *words).status == 2
    assert expkit.processes() == []


def test_a_worker_has_the_threads_that_a_bare_run_has(expkit: Expkit) -> None:
    assert expkit(*LINEAR, "seed=1,2,3", "tracking=none").status == 0
    assert expkit(*LINEAR[1:], "tracking=none").status == 0
    files = [*expkit.outputs.glob("sweeps/*/*/*/environment.json")]
    (bare,) = expkit.outputs.glob("runs/*/*/environment.json")
    found = [json.loads(file.read_text()) for file in [*files, bare]]
    assert len(found) == 4
    for key in ("thread_variables", "threadpools"):
        assert all(about[key] == found[-1][key] for about in found)


PICTURES = ("tracking=none", "tracking.pictures=true")


def test_a_timed_cells_pictures_are_drawn_and_nothing_else_is_left(expkit: Expkit) -> None:
    done = expkit("-m", "problem=sine", "steps=50", "seed=1,2", *QUICK, *PICTURES)
    assert done.status == 0, done.err
    for run in results(expkit).values():
        assert run is not None
        pictures = {"loss.png", "fit.png"}
        kept = {file.name for file in run.folder.iterdir()}
        texts = {"config.yaml", "environment.json", "journal.jsonl", "overrides.yaml", "params.npz"}
        # Where parts do not add up to the step they are not drawn, as on a busy machine.
        assert kept - {"step.png", "report.html"} == pictures | texts
        journaled = {record["file"] for record, _ in journal.read(run.folder) if "file" in record}
        assert pictures < journaled


def test_a_picture_that_cannot_be_drawn_spoils_no_run(expkit: Expkit) -> None:
    expkit.plugin(CROOKED)
    done = expkit("-m", "problem=crooked,sine", "steps=50", *QUICK, *PICTURES)
    assert done.status == 0, done.err
    assert outcomes(expkit) == ["ok", "ok"]
    folder = sweep_of(expkit).folder / "0"
    [said] = [line for line in done.err.splitlines() if "no pictures" in line]
    assert "same first dimension" in said
    assert said.endswith(f"draw them later: expkit draw {folder}")
    code = expkit.place / "site/broken_plugin/crooked.py"
    code.write_text(code.read_text().replace("np.arange(2)", "np.arange(3)"))
    done = expkit("draw", str(folder))
    assert done.status == 0, done.err
    assert f"{folder / 'fit.png'}" in done.out.splitlines()


def test_pictures_are_drawn_again_from_the_record_alone(expkit: Expkit) -> None:
    """As they were, and they are sent as those were."""
    assert expkit("problem=sine", "steps=50", *QUICK).status == 0
    (folder,) = expkit.folders()
    before = {file: file.read_bytes() for file in folder.glob("*.png")}
    assert {"loss.png", "fit.png"} <= {file.name for file in before}
    for file in before:
        file.unlink()
    done = expkit("draw", str(expkit.outputs))
    assert done.status == 0, done.err
    assert sorted(done.out.split()) == sorted(map(str, before))
    assert {file: file.read_bytes() for file in before} == before
    assert "sent 1 run" in expkit("sync").out, "what was noted after the end is news"
    assert "nothing to send" in expkit("sync").out
    assert expkit("draw", str(expkit.place / "nowhere")).status == 2


CROOKED = {
    "__init__.py": "",
    "conf/problem/crooked.yaml": "_target_: broken_plugin.crooked.Crooked\nn: 50\n",
    "crooked.py": """
        from dataclasses import dataclass

        import numpy as np

        from expkit.problems.sine import Sine


        @dataclass(frozen=True)
        class Crooked(Sine):
            def curves(self, params):
                return {"fit": (np.arange(3), np.arange(2))}
    """,
}
