"""One folder, one run; what is read back from a folder is checked; resume does what was asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from expkit.cli import main
from expkit.errors import UserError
from expkit.record.stored import load
from expkit.sweeps import cluster
from expkit.sweeps.manifest import VERSION, Manifest
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Expkit

QUICK = ("steps=20", "measure.repeats_min=2", "measure.budget_s=0", "measure.warmup=0")
FAST = (*QUICK, "problem=linear", "tracking=none", "tracking.pictures=false")
DAY = "2026-01-31/23-59-59-000000"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three cells that are finished, to be copied."""
    place = tmp_path_factory.mktemp("finished")
    words = ["-m", *FAST, "seed=1,2,3", "sweep.timing=false", f"hydra.sweep.dir={place / 'sweep'}"]
    done = subprocess.run(
        [sys.executable, "-m", "expkit", *words],
        env={**os.environ, "EXPKIT_OUTPUTS": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return place / "sweep"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An outputs folder of the command line in this process."""
    monkeypatch.setenv("EXPKIT_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


@pytest.fixture
def sweep(finished: Path, outputs: Path) -> Path:
    """The finished sweep, in an outputs folder."""
    shutil.copytree(finished, outputs / "sweeps" / DAY)
    return outputs / "sweeps" / DAY


def edit(sweep: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a sweep's file."""
    file = sweep / "sweep.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


# One folder, one run


def test_a_folder_takes_one_run(expkit: Expkit) -> None:
    place = expkit.place / "mine"
    place.mkdir()  # an empty one is taken
    assert expkit(*FAST, f"hydra.run.dir={place}").status == 0
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    again = expkit(*FAST, "backend=numpy", f"hydra.run.dir={place}")
    said = f"hydra.run.dir: {place} holds a run already; takes an empty or new folder"
    assert (again.status, again.err) == (2, f"expkit: {said}\n")
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before


@pytest.mark.parametrize("word", ["hydra.run.dir=.", "hydra.sweep.dir=."])
def test_nothing_is_written_among_a_persons_files(
    word: str, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.txt").touch()
    sweeps = ["-m"] if "sweep" in word else []
    assert main([*sweeps, *FAST, word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"expkit: {word.partition('=')[0]}: {Path.cwd()} holds other files")
    assert said.count("\n") == 1
    assert [file.name for file in Path.cwd().iterdir()] == ["mine.txt"]


def test_two_journals_cannot_begin_in_one_folder(tmp_path: Path) -> None:
    first = journal.Journal(tmp_path, new=True)
    with pytest.raises(UserError, match="holds a run already"):
        journal.Journal(tmp_path, new=True)
    first.end("FINISHED")


def test_a_journal_of_two_runs_is_not_pooled(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep / "0" / journal.FILE
    file.write_bytes(file.read_bytes() + (sweep / "1" / journal.FILE).read_bytes())
    assert main(["compare", str(sweep / "0"), str(sweep / "1")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"expkit: {file}: line ")
    assert "a second run begins" in said
    assert said.count("\n") == 1


def test_a_folder_without_a_sweep_is_told_as_it_is(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = outputs / "it's é"
    place.mkdir(parents=True)
    assert main(["resume", str(place)]) == 2
    said = f"expkit: resume: {place} is no sweep's folder: no sweep.json is in it\n"
    assert capsys.readouterr().err == said


# Sync


def test_sync_says_what_is_wrong_with_a_journal_and_no_name_of_a_class(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep / "1" / journal.FILE
    file.write_bytes(b"[]\n" + file.read_bytes())
    assert main(["sync", str(sweep / "1")]) == 1
    said = f"expkit: {file}: line 1: got [], takes keys with values\n"
    assert capsys.readouterr().err == said


def test_sync_leaves_alone_what_was_to_be_sent_nowhere(expkit: Expkit, finished: Path) -> None:
    folder = expkit.outputs / "sweeps" / DAY
    shutil.copytree(finished, folder)
    done = expkit("sync")
    said = "left alone: 3 runs made with tracking=none; name a run's folder, or give --uri\n"
    assert done == (0, said, "")
    assert not list(expkit.outputs.rglob("mlflow*"))
    uri = f"sqlite:///{expkit.place}/elsewhere.db"
    done = expkit("sync", "--uri", uri, str(folder / "0"))
    assert done.status == 0, done
    assert "sent 1 run\n" in done.out
    assert "sent 2 runs\n" in expkit("sync", "--uri", uri).out


# Resume reads the manifest and nothing else

NASTY = ["a\\b", "end\\", "a${b}", "a${b", "${oc.env:HOME}"]


@pytest.mark.parametrize("name", NASTY)
def test_resume_takes_a_folder_of_any_name(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / name / "sweeps" / DAY
    shutil.copytree(finished, kept)
    for words in (["--outputs", str(tmp_path / name)], [str(kept)]):
        assert main(["resume", *words]) == 0
        said = capsys.readouterr()
        assert f"\n3 cells finished; {kept}\n" in said.out
        assert said.err == ""
    assert [file.parent for file in tmp_path.rglob("sweep.json")] == [kept]


def test_an_outputs_folder_may_have_any_name_but_a_reference(expkit: Expkit) -> None:
    expkit.outputs = expkit.place / "a\\b 'c' \"d\" $e {f} [g], (h=~i)#\\"
    expkit.env["EXPKIT_OUTPUTS"] = str(expkit.outputs)
    assert expkit(*FAST).status == 0
    assert expkit("compare", "backend=numpy", "optimizer=adam", *FAST).status in (0, 1, 3, 4)
    assert len(list(expkit.outputs.rglob(journal.FILE))) == 3
    refused = expkit.place / "a${b"
    expkit.env["EXPKIT_OUTPUTS"] = str(refused)
    done = expkit(*FAST)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert not refused.exists()


def test_a_stored_word_runs_nothing(sweep: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    word = f"+hydra.callbacks.x={{_target_:os.mkdir,path:{made}}}"
    edit(sweep, lambda record: record["words"].append(word))
    assert main(["resume"]) == 0
    assert not made.exists()


@pytest.mark.parametrize(
    "word",
    [
        "hydra.launcher.setup=[reboot]",
        "+hydra.launcher.setup=[reboot]",
        "hydra.launcher._target_=os.system",
        "hydra.launcher.partition={_target_:os.system}",
        "hydra.launcher.partition=${oc.env:HOME}",
        "hydra.launcher.partition=a\n#SBATCH --wrap=reboot",
        "hydra.launcher.submitit_folder=/etc",
        "hydra.launcher.ray.init.address=evil:1",
        "hydra.launcher.additional_parameters.output=/etc/passwd",
        "hydra/launcher=../x y",
    ],
)
def test_a_word_for_the_launcher_is_stored_only_if_it_is_plain(
    word: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(sweep, lambda r: r["words"].append(word))
    assert main(["resume"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"expkit: sweep {sweep / 'sweep.json'}: {word} is not taken from a file")


def test_plain_words_for_the_launcher_are_kept_and_typed_ones_added() -> None:
    plain = [
        "hydra/launcher=slurm",
        "hydra.launcher.partition=gpu-a.b",
        "~hydra.launcher.additional_parameters.exclusive",
        "+hydra.launcher.ray.remote.num_gpus=1",
    ]
    stored = [*plain, "problem=linear", "hydra.job.name=x", "hydra/sweeper=optuna"]
    file = Path("sweep.json")
    assert cluster.replayed(stored, [], file) == plain
    typed = ["hydra.launcher.setup=[module load x]"]
    assert cluster.replayed([*stored, "hydra.launcher.setup=[y]"], typed, file) == [
        *plain,
        *typed,
    ]
    assert cluster.replayed(stored, ["hydra/launcher=local"], file) == ["hydra/launcher=local"]


def test_a_launcher_is_told_of_the_folder_as_it_is_called(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder = tmp_path / "a\\b 'c' \"d\" {e}, [f]\n\\"
    launcher: Any = cluster.chosen(["hydra/launcher=slurm"], folder)
    assert launcher.config.hydra.sweep.dir == str(folder)
    assert cluster.chosen(["hydra/launcher=local"], folder) is None


# A result is a result


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        ("diverged", 0, "3 cells finished, 1 of them diverged; "),
        ("wrong_answer", 1, "2 cells finished; 1 wrong answer; "),
        ("not_synchronized", 1, "2 cells finished; 1 not synchronized; "),
    ],
)
def test_what_would_end_alike_is_left_alone_unless_asked(
    outcome: str,
    status: int,
    said: str,
    sweep: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended_as(sweep, "1", outcome)
    assert main(["resume"]) == status
    shown = capsys.readouterr().out
    assert "nothing is left to run" in shown
    assert said in shown
    assert (f"expkit resume {DAY} --retry {outcome}" in shown) == (status == 1)
    assert len(list(sweep.glob("1*"))) == 1
    manifest = Manifest.load(sweep)
    assert [cell.index for cell in manifest.missing([outcome])] == [1]


def test_a_diverged_cell_is_run_again_on_demand(expkit: Expkit) -> None:
    words = ("-m", "problem=sine", "steps=200", "optimizer.lr=1e-6,1e-3", "tracking=none")
    done = expkit(*words, *QUICK[1:], "sweep.timing=false")
    assert done.status == 0, done.err
    assert "2 cells finished, 1 of them diverged; " in done.out
    assert "failed" not in done.out
    assert expkit("resume", "--retry", "diverged").status == 0
    assert sorted(f.parent.name for f in expkit.outputs.rglob(journal.FILE)) == ["0", "1", "1-2"]


@pytest.mark.parametrize("word", ["ok", "nothing", "", "diverged,nothing"])
def test_an_outcome_that_there_is_not_is_one_line(
    word: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["resume", "--retry", word])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "takes one or several of diverged, wrong_answer" in said
    assert said.count("\n") == 1


def ended_as(sweep: Path, cell: str, outcome: str) -> None:
    """Change a cell's outcome."""
    file = sweep / cell / journal.FILE
    file.write_text(file.read_text().replace('"outcome": "ok"', f'"outcome": "{outcome}"'))


# Damaged files


def cell(number: int, **changes: object) -> Callable[[dict[str, Any]], object]:
    """Change keys of a cell."""
    return lambda record: record["cells"][number].update(changes)


def config(number: int, **changes: object) -> Callable[[dict[str, Any]], object]:
    """Change keys of a cell's configuration."""
    return lambda record: record["cells"][number]["frozen"]["config"].update(changes)


CELLS: dict[str, tuple[Callable[[dict[str, Any]], object], str, int]] = {
    # what is changed, what is said of it, how many cells are still counted as finished
    "an index that leaves the folder": (cell(1, index="../../../etc"), "cell 1: index: got", 2),
    "an index that is not whole": (cell(1, index=1.0), "cell 1: index: got 1.0", 2),
    "a negative index": (cell(1, index=-1), "cell 1: index: got -1", 2),
    "an index that is true": (cell(1, index=True), "cell 1: index: got True", 2),
    "an index beyond all names": (cell(1, index=10**400), "cell 1: index: got 1", 2),
    "an index twice": (cell(1, index=0), "index: 0 stands 2 times", 1),
    "no index": (lambda r: r["cells"][1].pop("index"), "cell 1: index: it is missing", 2),
    "a group that there is not": (cell(1, group=7), "cell 1: group: got 7", 2),
    "a group before the first": (cell(1, group=-1), "cell 1: group: got -1", 2),
    "a baseline that there is not": (cell(1, baseline=99), "cell 1: baseline: got 99", 2),
    "itself as the baseline": (cell(1, baseline=1), "cell 1: baseline: got 1", 2),
    "a baseline that is a text": (cell(1, baseline="0"), "cell 1: baseline: got '0'", 2),
    "a title that is none": (cell(1, title=None), "cell 1: title: got None", 2),
    "a hash that is none": (cell(1, hash=3), "cell 1: hash: got 3", 2),
    "a key that has no meaning": (cell(1, more=1), "cell 1: 'more': no such key", 2),
    "no configuration": (cell(1, frozen=None), "cell 1: frozen: got None", 2),
    "half a configuration": (cell(1, frozen={"config": {}}), "cell 1: choices: it is missing", 2),
    "a configuration that is a list": (
        cell(1, frozen={"config": [], "choices": {}}),
        "cell 1: config: got []",
        2,
    ),
    "no backend": (config(1, backend=None), "cell 1: backend: got None", 2),
    "steps that are a text": (config(1, steps="many"), "cell 1: steps: got 'many'", 2),
    "steps that are not whole": (config(1, steps=1.5), "cell 1: steps: got 1.5", 2),
    "a seed below 0": (config(1, seed=-1), "cell 1: seed: got -1", 2),
    "outputs that are a number": (config(1, outputs=1), "cell 1: outputs: got 1", 2),
    "a reference": (
        config(1, stream="${oc.env:HOME}"),
        "cell 1: stream: got '${oc.env:HOME}', takes a value without ${",
        2,
    ),
    "a cell that is a list": (lambda r: r["cells"].__setitem__(1, []), "cell 1: got []", 2),
    "a cell that is null": (lambda r: r["cells"].__setitem__(1, None), "cell 1: got None", 2),
}


@pytest.mark.parametrize(("change", "said", "finished_cells"), CELLS.values(), ids=CELLS)
def test_a_damaged_cell_is_its_own_affair(
    change: Callable[[dict[str, Any]], object],
    said: str,
    finished_cells: int,
    sweep: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(sweep, change)
    before = everything(sweep)
    assert main(["resume"]) == 1
    shown = capsys.readouterr()
    damaged = 3 - finished_cells
    start = f"expkit: sweep {sweep / 'sweep.json'}: "
    lines = shown.err.splitlines()
    assert len(lines) == damaged
    assert all(line.startswith(start) and line.endswith("; it is not run") for line in lines)
    assert said in lines[0]
    count = "1 cell" if finished_cells == 1 else f"{finished_cells} cells"
    assert f"\n{count} finished; {damaged} damaged; {sweep}\n" in shown.out
    assert everything(sweep) == before | {sweep / "result.txt"}


ALL_DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "one number": (
        lambda record: [cell.update(index=0) for cell in record["cells"]],
        [f"cells[{n}]: index: 0 stands 3 times, takes a number of its own" for n in range(3)],
    ),
    "references": (
        lambda record: [config(n, stream="${oc.env:HOME}")(record) for n in range(3)],
        [f"cell {n}: stream: got '${{oc.env:HOME}}', takes a value without ${{" for n in range(3)],
    ),
}


@pytest.mark.parametrize(("change", "said"), ALL_DAMAGED.values(), ids=ALL_DAMAGED)
@pytest.mark.parametrize("timing", [True, False])
def test_a_sweep_of_nothing_but_damaged_cells_is_a_line_for_each(
    change: Callable[[dict[str, Any]], object],
    said: list[str],
    timing: bool,
    sweep: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(sweep, lambda record: (change(record), record["sweep"].update(timing=timing)))
    assert main(["resume"]) == 1
    shown = capsys.readouterr()
    start = f"expkit: sweep {sweep / 'sweep.json'}: "
    assert shown.err.splitlines() == [f"{start}{line}; it is not run" for line in said]
    assert f"\n0 cells finished; 3 damaged; {sweep}\n" in shown.out


def everything(sweep: Path) -> set[Path]:
    return set(sweep.parent.rglob("*"))


LOST: dict[str, Callable[[dict[str, Any]], object]] = {
    "its number": lambda record: record["cells"][0].update(index="../../../etc"),
    "its configuration": config(0, backend=None),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_those_held_against_a_damaged_cell_are_resumed(
    lose: Callable[[dict[str, Any]], object], sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(record: dict[str, Any]) -> None:
        for other in record["cells"][1:]:
            other["baseline"] = 0
        lose(record)

    edit(sweep, change)
    assert main(["resume"]) == 1
    shown = capsys.readouterr()
    assert "2 cells finished; 1 damaged; " in shown.out, shown


def test_a_cell_whose_baseline_is_damaged_keeps_its_time(expkit: Expkit) -> None:
    assert expkit("-m", *FAST, "optimizer=sgd,momentum").status == 0
    [file] = expkit.outputs.rglob("sweep.json")
    edit(file.parent, config(0, backend=None))
    done = expkit("resume")
    assert done.status == 1
    assert "the baseline has no time" in done.out, done
    assert "1 cell finished; 1 damaged; " in done.out, done


WHOLE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a setting that is a reference": lambda r: r["sweep"].update(baseline="${oc.env:HOME}"),
    "cells by name": lambda r: r.update(cells={}),
    "words in one": lambda r: r.update(words="-m"),
    "a word that is a number": lambda r: r.update(words=[1]),
    "groups that are numbers": lambda r: r.update(groups=[1]),
    "again that is a list": lambda r: r.update(again=[]),
    "again that is no number": lambda r: r.update(again={"one": 1}),
    "no version": lambda r: r.pop("version"),
    "a newer version": lambda r: r.update(version=VERSION + 1),
    "a version that is a text": lambda r: r.update(version="1"),
}


@pytest.mark.parametrize("change", WHOLE.values(), ids=WHOLE)
def test_a_manifest_that_is_wrong_as_a_whole_is_one_line(
    change: Callable[[dict[str, Any]], object], sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(sweep, change)
    before = everything(sweep)
    assert main(["resume"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"expkit: sweep {sweep / 'sweep.json'}: ")
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert everything(sweep) == before


def test_a_manifest_of_nothing_but_brackets_is_one_line(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "sweep.json").write_bytes(b"[" * 100_000)
    assert main(["resume"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"expkit: sweep {sweep / 'sweep.json'}: ")
    assert said.count("\n") == 1


def as_version_2(record: dict[str, Any]) -> None:
    """As it was before a search was known as one."""
    record["version"] = 2
    del record["best"]


def as_version_1(record: dict[str, Any]) -> None:
    """As it was before cells had names and colours for all their sweep."""
    as_version_2(record)
    record["version"] = 1
    for cell in record["cells"]:
        del cell["name"], cell["colour"]


def as_version_0(record: dict[str, Any]) -> None:
    as_version_1(record)
    del record["version"]
    record["folder"] = None


@pytest.mark.parametrize("change", [as_version_0, as_version_1, as_version_2])
def test_a_manifest_of_an_older_expkit_is_read(
    change: Callable[[dict[str, Any]], object], sweep: Path
) -> None:
    edit(sweep, change)
    assert main(["resume"]) == 0


def line(kind: str, /, **changes: object) -> Callable[[list[bytes]], list[bytes]]:
    """Change keys of the last line of a kind."""

    def changed(lines: list[bytes]) -> list[bytes]:
        number = max(n for n, text in enumerate(lines) if json.loads(text)["kind"] == kind)
        record = json.loads(lines[number]) | changes
        lines[number] = json.dumps({k: v for k, v in record.items() if v != "gone"}).encode()
        return lines

    return changed


def added(text: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """Put a line after the first."""
    return lambda lines: [lines[0], text, *lines[1:]]


JOURNALS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "no kind": line("metric", kind="gone"),
    "a kind that there is not": line("metric", kind="more"),
    "a kind that is a list": line("metric", kind=[]),
    "a line that is a list": added(b"[1, 2]"),
    "a line that is a number": added(b"7"),
    "a line that is a text": added(b'"text"'),
    "binary garbage": added(b"\x80\x00\xff\xfe"),
    "garbage alone": lambda lines: [b"\x80\x00\xff\xfe" * 100],
    "a torn line of a run that finished": added(b'{"kind": "metric", "val'),
    "a newer version": line("run", version=journal.VERSION + 1),
    "a version that is a text": line("run", version="1"),
    "no name": line("run", name="gone"),
    "a name that is a number": line("run", name=1),
    "no owner": line("run", owner="gone"),
    "an owner without a process": line("run", owner={"host": "here"}),
    "params that are a list": line("run", params=[]),
    "tags that are a list": line("tags", tags=[]),
    "a tag that is a number": line("tags", tags={"outcome": 1}),
    "an outcome that there is not": line("tags", tags={"outcome": "good"}),
    "values that are a text": line("metric", values="1, 2"),
    "values that are texts": line("metric", values=["one"], steps=[0]),
    "values that are lists": line("metric", values=[[1]], steps=[0]),
    "more steps than values": line("metric", values=[1.0], steps=[0, 1]),
    "a step below 0": line("metric", values=[1.0], steps=[-1]),
    "several last losses": line("metric", key="final/loss", values=[1, 2], steps=[0, 1]),
    "a status that there is not": line("end", status="DONE"),
    "a sample of no time": added(
        b'{"kind": "sample", "process": 0, "placement": 0, "seconds": []}'
    ),
    "a sample of a text": added(
        b'{"kind": "sample", "process": 0, "placement": 0, "seconds": ["1"]}'
    ),
    "a sample that is not a number": added(
        b'{"kind": "sample", "process": 0, "placement": 0, "seconds": [NaN]}'
    ),
    "a sample of a process with a name": added(
        b'{"kind": "sample", "process": "a", "placement": 0, "seconds": [1.0]}'
    ),
}


@pytest.mark.parametrize("change", JOURNALS.values(), ids=JOURNALS)
def test_a_damaged_journal_is_its_cells_affair(
    change: Callable[[list[bytes]], list[bytes]], sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep / "1" / journal.FILE
    file.write_bytes(b"\n".join(change(file.read_bytes().splitlines())) + b"\n")
    before = file.read_bytes()
    with pytest.raises(UserError) as raised:
        load(file.parent)
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)
    manifest = Manifest.load(sweep)
    manifest.close_orphans()
    assert file.read_bytes() == before
    assert [missing.index for missing in manifest.missing()] == [1]
    assert manifest.unreadable(manifest.cells[1]) == [str(raised.value)]
    assert main(["compare", str(file.parent), str(sweep / "0")]) == 2
    assert capsys.readouterr().err == f"expkit: {raised.value}\n"


def test_a_cell_of_a_damaged_journal_is_run_again_and_said(expkit: Expkit, finished: Path) -> None:
    folder = expkit.outputs / "sweeps" / DAY
    shutil.copytree(finished, folder)
    file = folder / "1" / journal.FILE
    file.write_bytes(b"[]\n" + file.read_bytes())
    done = expkit("resume")
    assert done.status == 0, done.err
    said = f"expkit: {file}: line 1: got [], takes keys with values; cell 1 is not finished\n"
    assert done.err == said + "[1/1] linear · numpy · sgd, seed=2: ok\n"
    assert f"\n3 cells finished; {folder}\n" in done.out
    again = expkit("resume")
    assert (again.status, again.err) == (0, "")


def test_one_damaged_journal_does_not_hide_what_is_finished_elsewhere(expkit: Expkit) -> None:
    words = ("-m", *FAST, "sweep.timing=false", "sweep.skip_finished=true")
    assert expkit(*words, "seed=1,2").status == 0
    (file,) = expkit.outputs.glob(f"sweeps/*/*/0/{journal.FILE}")
    file.write_text('{"no": "kind"}\n')
    done = expkit(*words, "seed=1,2,3", "sweep.dry_run=true")
    assert done.status == 0, done.err
    assert done.out.count("finished before") == 1


# A full disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk that is soon full."""
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("timing", [True, False])
def test_a_full_disk_ends_a_sweep_at_once_and_resume_finishes_it(
    expkit: Expkit, small: Path, timing: bool
) -> None:
    expkit.env["EXPKIT_OUTPUTS"] = str(small)
    words = ("-m", *FAST, "steps=200", "seed=range(9)", f"sweep.timing={timing}")
    done = expkit(*words, "sweep.workers=2")
    assert done.status == 1
    (folder,) = small.glob("sweeps/*/*")
    full = [line for line in done.err.splitlines() if "full" in line or "space" in line]
    full = [line for line in full if not line.endswith(": interrupted: the disk is full")]
    assert full == done.err.splitlines()[-1:]
    assert full[0].startswith(f"expkit: the disk of {folder} is full; the ")
    assert "left need about 1 MB; free that, then go on with: expkit resume " in full[0]
    assert "cells finished; " in done.out
    again = expkit("resume")  # nothing was freed
    assert again.status == 1
    assert again.err.splitlines()[-1].startswith("expkit: the disk ")
    assert "Traceback" not in again.err
    subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
    done = expkit("resume")
    assert done.status == 0, done.err
    assert "\n9 cells finished; " in done.out


def test_cells_that_end_for_want_of_room_say_so(expkit: Expkit, small: Path) -> None:
    expkit.env["EXPKIT_OUTPUTS"] = str(small)
    (small / "filler").write_bytes(bytes(30_000))
    words = ("-m", *FAST, "steps=200", "seed=range(9)", "sweep.timing=false")
    done = expkit(*words, "sweep.workers=2")
    assert done.status == 1
    assert "stopped before its end" not in done.err + done.out


def test_a_full_disk_is_one_line_of_a_run(expkit: Expkit, small: Path) -> None:
    expkit.env["EXPKIT_OUTPUTS"] = str(small)
    (small / "filler").write_bytes(bytes(92_000))
    done = expkit(*FAST, "steps=3000")
    assert done.status == 1
    assert done.err.startswith("expkit: the disk is full; what could be kept is in ")
    assert done.err.count("\n") == 1
