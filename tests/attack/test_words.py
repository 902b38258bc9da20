"""Wrong words get the right answer, and Hydra's idioms do what Hydra's users expect."""

from __future__ import annotations

import html
import importlib.util
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from expkit import __version__, config, door
from expkit.record.stored import load
from expkit.report import plots
from expkit.sweeps import plan
from expkit.sweeps.manifest import Manifest, Planned
from expkit.sweeps.names import link
from expkit.sweeps.page import FILE
from expkit.sweeps.ranking import Results
from expkit.sweeps.table import course, result

if TYPE_CHECKING:
    from conftest import Done, Expkit
    from matplotlib.figure import Figure

SHORT = (
    "steps=20",
    "measure.repeats_min=1",
    "measure.repeats_max=1",
    "measure.warmup=0",
    "tracking=none",
)
DRY = "sweep.dry_run=true"
OPTIONS = {
    "list.yaml": b"- 1\n- 2\n",
    "empty.yaml": b"",
    "scalar.yaml": b"hello\n",
    "latin.yaml": "a: é\n".encode("latin-1"),
}
Run = Callable[..., "Done"]


def is_one_line(done: Done, place: Path, *names: str) -> None:
    """The law of wrong words."""
    assert done.status == 2, done
    assert done.out == ""
    assert len(done.err.splitlines()) == 1, done.err
    for name in names:
        assert re.search(rf"(?<![\w.-]){re.escape(name)}(?!\w)", done.err), (name, done.err)
    assert list((place / "outputs").rglob("*")) == []


MOST = str(config.MOST)
HUGE = "99999999999999999999999"
WRONG = [
    # words, what the line names
    ("~problem", "problem", "~problem", "sine"),
    ("~problem=sine", "problem", "sine"),
    ("~backend", "backend", "~backend", "numpy"),
    ("~optimizer", "optimizer", "sgd"),
    ("~measure", "measure", "quick"),
    ("~tracking", "tracking", "none"),
    ("~sweep", "sweep", "left out"),
    ("~steps", "steps", "~steps"),
    ("~seed", "seed", "~seed"),
    ("~nope", "nope", "no such key", "log_every"),
    ("~measure.warmup", "measure.warmup", "an integer"),
    ("backend=numpy ~backend", "backend", "~backend"),
    (f"-m ~problem seed=1,2 {DRY}", "problem", "~problem"),
    (f"seed=1,2 -m ~backend {DRY}", "backend", "~backend", "numpy"),
    (
        "frobnicate",
        "frobnicate",
        "no such command",
        "compare, crossover, doctor, draw, export, report, resume",
    ),
    ("tracking.uri=http://bob:pw@h:9/x?token=abc", "http://bob@h:9/x", "= , :", "'tracking.uri="),
    # keys that are not there
    ("+sweep.x=1", "sweep.x", "no such key", "dry_run"),
    ("++sweep.x.y=1", "sweep.x", "no such key"),
    ("+measure.x=1", "measure.x", "no such key"),
    ("+tracking.x=1", "tracking.x", "no such key"),
    ("+problem.x=1", "problem.x", "no such key"),
    ("+x=1", "x", "no such key", "sweep"),
    # ranges
    (f"steps={HUGE}", "steps", HUGE, MOST),
    (f"-m steps=10,{HUGE} {DRY}", "steps", HUGE, MOST),
    (f"log_every={HUGE}", "log_every", HUGE, MOST),
    (f"seed={HUGE}", "seed", HUGE, str(config.MOST_SEED)),
    (f"problem.n={HUGE}", "problem.n", HUGE, "at most"),
    ("problem=matmul problem.n=9999999", "problem.n", "9999999", "at most"),
    (f"measure.repeats_max={HUGE}", "measure.repeats_max", HUGE, MOST),
    (f"measure.warmup={HUGE}", "measure.warmup", HUGE, MOST),
    (f"measure.processes={HUGE}", "measure.processes", HUGE, "at most"),
    (f"backend.threads={HUGE}", "backend.threads", HUGE, "at most"),
    ("measure.budget_s=1e400", "measure.budget_s", "inf", "finite"),
    ("optimizer.lr=1e400", "optimizer.lr", "inf", "finite"),
    ("stream=null", "stream", "None", "shared or device"),
    # several values, or what cannot be read
    ("seed=1,2", "seed", "1,2", "-m"),
    ("seed=range(0,3)", "seed", "range(0,3)", "-m"),
    (f"-m seed=interval(1,2) {DRY}", "seed", "interval(1,2)", "optuna"),
    (f"-m seed=range(0,3,0) {DRY}", "seed", "range(0,3,0)", "zero"),
    (f"-m seed=1, {DRY}", "seed=1,", "cannot be read", "key=value"),
    (f"-m hydra.job.name=a,b {DRY}", "hydra.job.name", "a,b", "one value"),
    ("hydra.job.name=a/b", "hydra.job.name", "a/b"),
    # groups, and what hardly is a word
    ("+problem=sine", "+problem=sine", "without +"),
    ("experiment=sine", "experiment", "+experiment=sine"),
    ("+experiment=null", "experiment", "null", "sine"),
    ("=x", "=x", "key=value"),
    ("a=b=c", "a=b=c", "cannot be read", "key=value"),
    ("problem={sine", "problem={sine", "cannot be read", "key=value"),
    ("problem.n=${nope}", "problem", "nope"),
    ("sweep.limit_s=inf", "sweep.limit_s", "inf"),
    ("hydra.verbose=5", "hydra.verbose", "5", "a logger"),
    ("hydra.run.dir=", "hydra.run.dir", "a folder"),
    # flags
    ("--run -m", "--run", "--multirun", "do not go together"),
    ("-m --cfg job", "--multirun", "--cfg", "do not go together"),
    ("--resolve", "--resolve", "--cfg job"),
    ("--package problem", "--package", "--cfg"),
    ("--cfg=nope", "--cfg", "nope", "job"),
    ("--config-dir", "--config-dir"),
    ("--config-dir=nowhere", "--config-dir", "nowhere", "a folder"),
    ("--config-dir=", "--config-dir", "a folder"),
    ("--config-path=x", "--config-path", "x", "--config-dir"),
    ("--config-name=x", "--config-name", "x", "--config-dir"),
    ("--experimental-rerun x", "--experimental-rerun", "no such option"),
    ("-sc", "--shell-completion", "install="),
    ("hydra.mode=RUN -m seed=1,2", "hydra.mode", "RUN", "MULTIRUN"),
    # option files that hold no keys
    *((f"--config-dir=cd backend={name[:-5]}", "backend", name) for name in OPTIONS),
    (f"--config-dir=cd -m backend=numpy,list {DRY}", "backend", "list.yaml", "a list"),
    # commands
    ("compare", "A, B;"),
    ("compare backend=numpy", "required: B;"),
]


@pytest.mark.parametrize(("words", "names"), [(w, n) for w, *n in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_words(run: Run, tmp_path: Path, words: str, names: list[str]) -> None:
    (tmp_path / "cd" / "backend").mkdir(parents=True)
    for name, content in OPTIONS.items():
        (tmp_path / "cd" / "backend" / name).write_bytes(content)
    quicker = [] if words.startswith("compare") else ["tracking=none"]
    is_one_line(run(*words.split(), *quicker), tmp_path, *names)


def test_flags_may_stand_between_words(run: Run) -> None:
    done = run("steps=10,20", "-m", "seed=5,6", "tracking=none", DRY)
    assert (done.status, done.err) == (0, "")
    assert "4 cells" in done.out
    assert all(f"seed={seed}" in done.out for seed in (5, 6))


def test_the_version_is_expkits(run: Run) -> None:
    assert run("--version") == (0, f"expkit {__version__}\n", "")


def test_options_are_told_while_hydra_runs() -> None:
    before = config.options("problem")
    from hydra import initialize_config_module

    with initialize_config_module("expkit.conf", version_base="1.3"):
        assert config.options("problem") == before


# Hydra's idioms


def typed(folder: Path) -> list[str]:
    found: list[str] = yaml.safe_load((folder / "overrides.yaml").read_text())
    return found


def test_a_run_keeps_its_words(run: Run, tmp_path: Path) -> None:
    address = "tracking.uri=http://me:secret@localhost:1/x"
    done = run("problem=linear", *SHORT, address, "hydra.job.name=foo")
    assert done.status == 0, done.err
    (folder,) = {file.parent for file in tmp_path.rglob("journal.jsonl")}
    assert typed(folder) == ["problem=linear", *SHORT, "tracking.uri=http://me@localhost:1/x"]
    assert b"overrides.yaml" in (folder / "journal.jsonl").read_bytes()
    assert b"secret" not in (folder / "overrides.yaml").read_bytes()


def test_what_words_refer_to_is_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIDDEN", "hush")
    words = (
        "problem=linear",
        *SHORT,
        "problem.batch_size=${steps}",
        "tracking.experiment=${oc.env:HIDDEN}",
    )
    done = run(*words)
    assert done.status == 0, done.err
    (folder,) = {file.parent for file in tmp_path.rglob("journal.jsonl")}
    assert typed(folder) == list(words)


def test_both_sides_of_a_comparison_keep_theirs(run: Run, tmp_path: Path) -> None:
    run("compare", "problem=linear seed=1", "problem=linear seed=2", *SHORT)
    for side, seed in (("a", 1), ("b", 2)):
        (folder,) = tmp_path.glob(f"outputs/comparisons/*/*/{side}")
        assert {f"seed={seed}", "problem=linear", "steps=20"} <= set(typed(folder))


def test_cells_have_the_names_that_the_person_gave(run: Run, tmp_path: Path) -> None:
    how = "hydra.sweep.subdir=${hydra.job.override_dirname}"
    apart = "hydra.job.config.override_dirname.exclude_keys=[outputs,tracking]"
    words = ("problem=linear", "seed=1,2", "sweep.timing=false", how, apart, *SHORT)
    done = run("-m", *words)
    assert done.status == 0, done.err
    (place,) = tmp_path.glob("outputs/sweeps/*/*")
    links = {path.name: path.resolve() for path in place.iterdir() if path.is_symlink()}
    assert set(links.values()) == {place / "0", place / "1"}
    for name, folder in links.items():
        assert "problem=linear" in name
        seed = re.search(r"seed=\d", name)
        assert seed
        assert seed[0] in typed(folder)


def test_cells_whose_names_are_numbers_keep_theirs(run: Run, tmp_path: Path) -> None:
    words = ("problem=linear", "seed=0,1", "sweep.timing=false", *SHORT)
    done = run("-m", *words, "hydra.sweep.subdir=${seed}")
    assert done.status == 0, done.err
    (said,) = [line for line in done.err.splitlines() if line.startswith("expkit: ")]
    assert said.startswith("expkit: hydra.sweep.subdir: got '0', takes a different name")
    (place,) = tmp_path.glob("outputs/sweeps/*/*")
    for seed in (0, 1):
        assert f"seed={seed}" in typed(place / str(seed))
    assert len(list(tmp_path.rglob("journal.jsonl"))) == 2


NOT_NAMES = ("0", "1-2", "7/x", "../x", "/tmp/x", "sweep.json", ".", "a/../../x", "x" * 300)


@pytest.mark.parametrize("name", NOT_NAMES, ids=[name[:10] for name in NOT_NAMES])
def test_names_that_no_folder_can_have(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "sweep.json").touch()
    before = sorted(tmp_path.rglob("*"))
    manifest = Manifest(folder, [], config.Sweep(), [], [Planned(0, "", "", 0, None, {})])
    assert link(manifest, {0: name}) == [name]
    assert sorted(tmp_path.rglob("*")) == before


def test_two_cells_of_one_name(tmp_path: Path) -> None:
    cells = [Planned(index, "", "", 0, None, {}) for index in (0, 1)]
    manifest = Manifest(tmp_path, [], config.Sweep(), [], cells)
    assert link(manifest, {0: "a/b", 1: "a/b"}) == ["a/b"]
    assert (tmp_path / "a" / "b").readlink() == Path("../0")


LOGS = {
    "__init__.py": """
        import logging
        from dataclasses import dataclass
        from expkit.problems.sine import Sine

        @dataclass(frozen=True)
        class Logs(Sine):
            def data(self, rng):
                logging.getLogger("author").debug("fine")
                logging.getLogger("author").info("coarse")
                return super().data(rng)
    """,
    "conf/problem/logs.yaml": "_target_: broken_plugin.Logs\n",
}


@pytest.mark.parametrize("words", [(), ("-m", "sweep.timing=false")], ids=["run", "sweep"])
def test_what_code_logs_is_in_the_file_that_hydra_names(
    words: tuple[str, ...], expkit: Expkit
) -> None:
    expkit.plugin(LOGS)
    done = expkit(*words, "problem=logs", *SHORT, "hydra.job.name=foo")
    assert done.status == 0, done.err
    (file,) = expkit.outputs.rglob("*.log")
    assert file.name == "foo.log"
    assert (file.parent / "journal.jsonl").exists()
    assert "[author][INFO] - coarse" in file.read_text()
    assert "fine" not in file.read_text()
    expkit(*words, "problem=logs", *SHORT, "hydra.job.name=bar", "hydra.verbose=[author]")
    (file,) = expkit.outputs.rglob("bar.log")
    assert "[author][DEBUG] - fine" in file.read_text()


# A search


searching = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is None,
    reason="hydra-optuna-sweeper is not installed",
)


@searching
@pytest.mark.filterwarnings("ignore")  # Optuna's, of SQLAlchemy
def test_a_search_ends_with_its_trials_by_their_objective(run: Run, tmp_path: Path) -> None:
    searched = "optimizer.lr=tag(log, interval(1e-7,1e-5))"
    how = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=5", "hydra.sweeper.sampler.seed=1")
    short = [*SHORT, "tracking.pictures=true", "sweep.timing=false"]
    done = run("-m", *how, "problem=sine", searched, *short)
    assert done.status == 0, done.err
    counts = re.findall(r"^\[(\d+)/(\d+)\]", done.err, re.MULTILINE)
    assert counts == [(str(n), "5") for n in range(1, 6)]
    _, head, *rows = done.out.strip().splitlines()[:7]
    assert head.split() == ["trial", "final", "loss", "optimizer.lr", "outcome"]
    assert "baseline" not in done.out
    losses = [float(row.split()[1]) for row in rows]
    assert losses == sorted(losses)
    (place,) = tmp_path.glob("outputs/sweeps/*/*")
    for row in rows:
        number, loss, rate, _ = row.split()
        run_there = load(place / number)
        assert run_there.loss == pytest.approx(float(loss), rel=1e-5)
        (word,) = [w for w in typed(place / number) if w.startswith("optimizer.lr=")]
        assert float(word.partition("=")[2]) == pytest.approx(float(rate), rel=1e-5)
    assert f"picture: {place / 'search.png'}" in done.out
    assert (place / "search.png").read_bytes().startswith(b"\x89PNG")
    text = (place / FILE).read_text()
    assert f"5 trials; best: a final loss of {rows[0].split()[1]}, by" in text
    names = [f"lr={row.split()[2]}" for row in rows]
    assert sorted(names, key=text.index) == names, "the best first"
    again = shlex.join(["-m", *how, "problem=sine", searched, *short])
    assert f"expkit {html.escape(again)}\n" in text
    found = Results.read(Manifest.load(place))
    assert course(found).key == "optimizer.lr"
    other = replace(found.manifest, best="greatest")
    greatest = result(replace(found, manifest=other)).splitlines()[2:7]
    assert [float(row.split()[1]) for row in greatest] == sorted(losses, reverse=True)


@searching
@pytest.mark.filterwarnings("ignore")
def test_a_search_for_seconds_says_units(run: Run, tmp_path: Path) -> None:
    how = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1")
    what = ("sweep.objective=seconds", "problem=matmul", "problem.n=choice(10,200)")
    done = run("-m", *how, *what, *SHORT)
    assert done.status == 0, done.err
    _, head, *rows = done.out.strip().splitlines()
    assert head.split()[:2] == ["trial", "median"]
    assert re.match(r"  \d +[\d.]+ (ns|µs|ms|s) +(10|200) +ok", rows[0])
    assert "baseline" not in done.out
    (place,) = tmp_path.glob("outputs/sweeps/*/*")
    [(title, table)] = door.Sweep(Results.read(Manifest.load(place))).tables()
    assert title == "matmul"
    lines = [head, *rows[: len(table) - 1]]
    assert [list(row) for row in table] == [re.split("  +", line.strip()) for line in lines]


@searching
@pytest.mark.filterwarnings("ignore")
def test_a_search_without_a_result_says_so(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    how = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={place}")
    what = ("problem=sine", "optimizer.lr=interval(1,2)", "tracking.pictures=true")
    done = run("-m", *how, *what, *SHORT, "steps=600")
    assert "\nbest: no cell came to a loss\n" in done.out, done
    text = (place / FILE).read_text()
    assert "2 trials; best: no cell came to a loss; 2 diverged." in text
    found = Results.read(Manifest.load(place))
    assert found.manifest.words == [*how[:2], *what, *SHORT, "steps=600"], "another place next time"
    nothing = Results(replace(found.manifest, cells=[]), [])
    assert result(nothing).startswith(": 0 trials")
    assert door.Sweep(nothing).tables()[0][1] == [("trial", "final loss", "outcome")]
    assert "Sweep" in door.report(door.Sweep(nothing))


def test_the_picture_of_a_search_shows_the_best_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    what = plots.Course(
        title="sine",
        objective="final loss",
        trials=[0, 1, 2, 3],
        values=[3.0, None, 5.0, 2.0],
        greatest=False,
        key="optimizer.lr",
        choices=[0.1, 0.2, 0.3, 0.4],
    )
    assert plots.draw_search(what, tmp_path) == tmp_path / "search.png"
    left, right = drawn[0].axes
    lines = {line.get_label(): line for line in left.get_lines()}
    assert np.array_equal(lines["best so far"].get_ydata(), [3, 3, 2])
    assert np.array_equal(lines["no value"].get_xdata(), [1])
    assert np.array_equal(right.get_lines()[0].get_xdata(), [0.1, 0.3, 0.4])


def test_a_subdir_that_is_the_number_needs_no_link() -> None:
    """Composing every cell a second time is for those who asked for names alone."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    config.register()
    with initialize_config_module("expkit.conf", version_base="1.3"):
        master = compose("config", return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        assert plan.subdirs(master, loader, [["seed=1"]]) == {}
