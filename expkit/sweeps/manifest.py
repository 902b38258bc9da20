"""The manifest of a sweep: which cells it runs, written before the first of them runs.

A sweep's folder holds `sweep.json`, which has the manifest, and a folder for every attempt at a
cell: `3` is the first attempt at the fourth cell, `3-2` the second. The state of a cell is recorded
only in the journals of its attempts, so a kill cannot leave the manifest out of date.

The file is checked when it is read, because it may have been edited or come from somebody else. A
damaged cell is not run; the others are.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from expkit.checks import (
    MAPPING,
    TEXT,
    TEXTS,
    TEXTS_BY_NAME,
    WHOLE,
    Check,
    is_text,
    is_whole,
    misfit,
    unknown,
)
from expkit.config import (
    Cell,
    Sweep,
    Tracking,
    checked_sweep,
    default_outputs,
    reference,
    require_installed,
    thaw,
)
from expkit.errors import UserError
from expkit.measure.course import FILE as CHECKPOINT
from expkit.outcome import ALIKE, FINISHED, Outcome
from expkit.record.stored import Stored, load
from expkit.record.writing import record_failure
from expkit.tracking import address, journal
from expkit.tracking.address import one_line

FILE = "sweep.json"
LOCK = "sweep.lock"
VERSION = 3
"""Version of the file's format. A file without a version that names its folder is read as 0."""
ONCE = ("hydra.mode=", "hydra.sweep.dir=")
"""How words begin that are not kept: whoever repeats a sweep needs another folder."""
FROM_2 = {"name": "", "colour": ""}
"""What cells have from version 2 on, as it is read from an older file."""
FROM_3 = {"best": ""}
"""What the file has from version 3 on, as it is read from an older one."""


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_text, value))


def _is_again(value: object) -> bool:
    pairs = value.items() if isinstance(value, dict) else [("", None)]
    return all(number.isdecimal() and is_whole(index) for number, index in pairs)


KEYS = {
    "version": WHOLE,
    "words": TEXTS,
    "sweep": MAPPING,
    "groups": TEXTS,
    "cells": Check("a list", lambda value: isinstance(value, list)),
    "skipped": Check(
        "a list of titles with a reason each",
        lambda value: isinstance(value, list) and all(map(_is_pair, value)),
    ),
    "again": Check("numbers of cells by number", _is_again),
    "best": Check("least, greatest or nothing", lambda v: v in ("least", "greatest", "")),
}
CELL = {
    "index": WHOLE,
    "hash": TEXT,
    "title": TEXT,
    "group": WHOLE,
    "baseline": Check("another cell's number or null", lambda v: v is None or is_whole(v)),
    "frozen": MAPPING,
    "name": TEXT,
    "colour": TEXT,
}
FROZEN = {"config": MAPPING, "choices": TEXTS_BY_NAME, "words": TEXTS}
COUNT = Check("an integer of at least 1 or ???", lambda v: v == "???" or (is_whole(v) and v > 0))
CONFIG = {
    **dict.fromkeys(("problem", "backend", "optimizer", "measure", "tracking"), MAPPING),
    **dict.fromkeys(("steps", "log_every"), COUNT),
    **dict.fromkeys(("stream", "outputs"), TEXT),
    "seed": WHOLE,
}
"""Checks of the values that thawing a cell does not check, or that are read before."""
NEWER = {
    "eval_every": Check("an integer of at least 0 or ???", lambda v: v == "???" or is_whole(v)),
    **dict.fromkeys(("target", "update"), MAPPING),
}
"""The same of keys that an older expkit does not write."""


@dataclass(frozen=True)
class Planned:
    """A cell to be run.

    Attributes:
        index: its number in the sweep.
        hash: hash of what determines its result.
        title: what distinguishes it from the other cells of its problem.
        group: the number of its problem: cells of one group do the same work.
        baseline: the index of the cell that it is compared with; None for that cell itself.
        frozen: the record from which `expkit.config.thaw` makes the cell.
        name: what distinguishes it from all other cells of the sweep, for MLflow and pictures.
        colour: its colour there.
    """

    index: int
    hash: str
    title: str
    group: int
    baseline: int | None
    frozen: Mapping[str, Any]
    name: str = ""
    colour: str = ""

    @cached_property
    def cell(self) -> Cell:
        return thaw(self.frozen)


@dataclass(frozen=True)
class Manifest:
    """A sweep as it was planned.

    Attributes:
        folder: where it is kept.
        words: what was typed after `-m`.
        sweep: how it is run.
        groups: the problems' titles.
        cells: what is to be run.
        skipped: the titles of cells that cannot or need not be run, with the reasons.
        again: the numbers of skipped cells that repeat another cell, with the number of that cell.
        best: of a search, which objective is the best: `least` or `greatest`; empty for others.
        damaged: what is wrong with each cell of the file that is not among `cells`.
    """

    folder: Path
    words: Sequence[str]
    sweep: Sweep
    groups: Sequence[str]
    cells: Sequence[Planned]
    skipped: Sequence[tuple[str, str]] = field(default_factory=tuple)
    again: Mapping[int, int] = field(default_factory=dict)
    best: str = ""
    damaged: Sequence[str] = field(default_factory=tuple)

    @property
    def id(self) -> str:
        """The day and the time of its start."""
        return "/".join(self.folder.parts[-2:])

    @property
    def file(self) -> Path:
        return self.folder / FILE

    @property
    def is_tracked(self) -> bool:
        """Whether any cell is to be sent to MLflow."""
        return any(c.frozen["config"]["tracking"].get("kind") == "mlflow" for c in self.cells)

    def save(self) -> None:
        """Write the file, completely or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"version": VERSION, **asdict(self)}
        for key in ("folder", "damaged"):
            del record[key]
        fresh = self.folder / f"{FILE}.new"
        fresh.write_text(json.dumps(record))
        fresh.replace(self.file)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the sweep in a folder; what is wrong with single cells is in `damaged`.

        Raises:
            UserError: its file cannot be read, or something outside the cells is wrong.
        """
        file = folder / FILE
        try:
            record = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"sweep {file}: it cannot be read ({one_line(error)})") from error
        if isinstance(record, dict) and "version" not in record and "folder" in record:
            record["version"] = 0
        version: Any = record.get("version") if isinstance(record, dict) else None
        if version == 0:
            record.pop("folder", None)
        if is_whole(version) and version < VERSION:
            record = FROM_3 | record
        if is_whole(version) and version > VERSION:
            raise UserError(
                f"sweep {file}: a newer expkit wrote it: version {version}, takes {VERSION}"
            )
        if reason := misfit(record, KEYS) or unknown(record, KEYS):
            raise UserError(f"sweep {file}: {reason}")
        try:
            sweep = checked_sweep(record["sweep"])
        except UserError as error:
            raise UserError(f"sweep {file}: {error}") from error
        cells = record["cells"]
        if version < 2:
            cells = [FROM_2 | cell if isinstance(cell, dict) else cell for cell in cells]
        cells, damaged = _sound(cells, len(record["groups"]))
        return cls(
            folder,
            record["words"],
            sweep,
            record["groups"],
            cells,
            [(title, reason) for title, reason in record["skipped"]],
            {int(number): index for number, index in record["again"].items()},
            record["best"],
            damaged,
        )

    def thawed(self, some: Collection[Planned]) -> Manifest:
        """Return the sweep without those of `some` that cannot be thawed; `damaged` says why."""
        bad: dict[int, str] = {}
        for planned in some:
            try:
                planned.cell  # noqa: B018
            except Exception as error:  # whatever an edited configuration leads to
                said = str(error) if isinstance(error, UserError) else one_line(error)
                bad[planned.index] = f"cell {planned.index}: {said}"
        cells = [planned for planned in self.cells if planned.index not in bad]
        return replace(self, cells=cells, damaged=[*self.damaged, *bad.values()])

    def joined(self, more: Manifest) -> Manifest:
        """Return the sweep with the cells of another of its batches added."""
        groups = [*self.groups, *(title for title in more.groups if title not in self.groups)]
        cells = [replace(c, group=groups.index(more.groups[c.group])) for c in more.cells]
        skipped = [*self.skipped, *more.skipped]
        return replace(self, groups=groups, cells=[*self.cells, *cells], skipped=skipped)

    def attempts(self, planned: Planned) -> list[Path]:
        """The folders of a cell's runs so far, oldest first."""
        first = self.folder / str(planned.index)
        found, number = [], 1
        while first.is_dir():
            found.append(first)
            number += 1
            first = self.folder / f"{planned.index}-{number}"
        return found

    def close_orphans(self) -> None:
        """End the runs of a killed process. Call it only while nobody else runs this sweep."""
        for planned in self.cells:
            for folder in self.attempts(planned):
                with suppress(UserError):  # damaged: it is left as it is, and its cell run again
                    self._close_orphan(planned, folder)

    def _close_orphan(self, planned: Planned, folder: Path) -> None:
        with journal.locked(folder):  # that process's tracker may be ending it too
            begun = (folder / journal.FILE).exists()
            if not begun or journal.opening(folder) is None:
                tags = {"sweep": self.id, "sweep.cell": str(planned.index)}
                reason = "killed before its run began"
                record_failure(planned.cell, folder, tags, Outcome.INTERRUPTED, reason)
            else:
                journal.close_if_orphaned(folder)

    def unreadable(self, planned: Planned) -> list[str]:
        """Return what is wrong with each journal of a cell that cannot be read."""
        found = []
        for folder in self.attempts(planned):
            try:
                load(folder)
            except FileNotFoundError:  # killed before its run began
                continue
            except (UserError, OSError) as error:
                found.append(str(error))
        return found

    def next_attempt(self, planned: Planned) -> Path:
        """Return the folder for the next attempt at a cell."""
        number = len(self.attempts(planned)) + 1
        return self.folder / (f"{planned.index}-{number}" if number > 1 else f"{planned.index}")

    def checkpoint(self, planned: Planned) -> Path | None:
        """The checkpoint of a cell's newest attempt that left one; None if none did."""
        files = (folder / CHECKPOINT for folder in reversed(self.attempts(planned)))
        return next((file for file in files if file.is_file()), None)

    def result(self, planned: Planned) -> Stored | None:
        """Return a cell's newest finished run, or else its newest; None if none can be read."""
        newest = None
        for folder in reversed(self.attempts(planned)):
            with suppress(UserError, OSError):  # damaged, or killed before its run began
                run = load(folder)
                if run.is_finished:
                    return run
                newest = newest or run
        return newest

    @property
    def name(self) -> str:
        """Its name for `expkit resume`: the id, or the folder if that is in another place."""
        kept = default_outputs() / "sweeps" == self.folder.parent.parent
        return self.id if kept else shlex.quote(str(self.folder))

    def experiments(self) -> list[tuple[str, str]]:
        """Return the addresses, without passwords, and the names of its runs' experiments."""
        configs = [cell.frozen["config"] for cell in self.cells]
        found = (
            (
                config["tracking"]["uri"] or address.local(Path(config["outputs"])),
                config["tracking"].get("experiment", Tracking().experiment),
            )
            for config in configs
            if config["tracking"]["kind"] == "mlflow"
        )
        return list(dict.fromkeys(found))

    def addresses(self) -> list[str]:
        """Return the addresses to which its runs are to be sent, without passwords."""
        return list(dict.fromkeys(kept for kept, _ in self.experiments()))

    def require_installed(self) -> None:
        """Check that its cells name only classes of installed options: loading a class runs code.

        Raises:
            ConfigError: a cell names another class.
        """
        for cell in self.cells:
            require_installed(cell.frozen["config"], "expkit resume --allow-target")

    def missing(self, retry: Collection[str] = ()) -> list[Planned]:
        """Return the cells to run: all that are not finished and would not fail the same way.

        Args:
            retry: outcomes whose cells are run again nevertheless.
        """
        left = {*FINISHED, *ALIKE} - {*retry}
        results = ((planned, self.result(planned)) for planned in self.cells)
        return [planned for planned, run in results if run is None or run.outcome not in left]

    def room(self, cells: int) -> float:
        """Estimate the bytes on disk that this many more cells take, from the finished ones.

        MLflow's database and its copies of a run's files take about as much again.
        """
        runs = [run for run in map(self.result, self.cells) if run and run.is_finished]
        files = [file for run in runs for file in run.folder.iterdir()]
        taken = sum(file.stat().st_blocks * 512 for file in files) / max(1, len(runs))
        return cells * taken * (2 if self.is_tracked else 1)


def _sound(records: Sequence[Any], groups: int) -> tuple[list[Planned], list[str]]:
    """Return the valid cells of a file, and what is wrong with each of the others."""
    indices = Counter(r["index"] for r in records if misfit(r, {"index": WHOLE}) is None)
    lost = len(records) > indices.total()
    cells: list[Planned] = []
    damaged: list[str] = []
    for position, record in enumerate(records):
        wrong = misfit(record, CELL) or unknown(record, CELL)
        if wrong is None:
            index, group, baseline = record["index"], record["group"], record["baseline"]
            frozen = record["frozen"]
            if indices[index] > 1:
                wrong = f"index: {index} stands {indices[index]} times, takes a number of its own"
            elif group >= groups:
                wrong = f"group: got {group}, takes a number below {groups}"
            elif baseline == index or baseline not in (None, *indices):
                if lost:  # its baseline may be a cell without a readable number
                    record = {**record, "baseline": None}
                else:
                    wrong = f"baseline: got {baseline}, takes another cell's number or null"
            wrong = wrong or misfit({"words": [], **frozen}, FROZEN)
            wrong = wrong or _misfit_of_config(frozen["config"])
            wrong = wrong or reference(frozen["config"])
        if wrong:
            damaged.append(f"{_called(record, position, indices)}: {wrong}")
        else:
            cells.append(Planned(**record))
    return cells, damaged


def _misfit_of_config(config: Mapping[str, Any]) -> str | None:
    newer = {key: check for key, check in NEWER.items() if key in config}
    return misfit(config, CONFIG | newer)


def _called(record: Any, position: int, indices: Mapping[int, int]) -> str:
    """Name a damaged cell by its number or, without a unique one, by its position in the file."""
    if misfit(record, {"index": WHOLE}) is not None:
        return f"cell {position}"
    index = record["index"]
    return f"cell {index}" if indices[index] == 1 else f"cells[{position}]"


def is_for_hydra(word: str) -> bool:
    """Whether a word sets how Hydra runs the sweep, and not what is run."""
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def newest(outputs: Path) -> Path:
    """The folder of the sweep that began last.

    Raises:
        UserError: there is none.
    """
    found = sorted((outputs / "sweeps").glob(f"*/*/{FILE}"))
    if not found:
        raise UserError(f"no sweep is kept in {outputs}")
    return found[-1].parent


def named(word: str, outputs: Path) -> Path:
    """Return the folder of a sweep, which is given by that folder or by its id.

    Raises:
        UserError: there is no such sweep, or more than one.
    """
    if (Path(word) / FILE).is_file():
        return Path(word).absolute()
    kept = (outputs / "sweeps").glob(f"*/*/{FILE}")
    found = [file.parent for file in kept if f"{file.parent}".endswith(f"/{word}")]
    if not found and Path(word).is_dir():
        raise UserError(f"resume: {Path(word).absolute()} is no sweep's folder: no {FILE} is in it")
    if len(found) != 1:
        takes = f"a sweep's folder or its id, such as 2026-01-31/23-59-59-000000 (in {outputs})"
        raise UserError(f"resume: got {word!r}, takes {takes}")
    return found[0]


def require_unused(folder: Path) -> None:
    """Check that the folder of a new sweep is empty or does not exist.

    Raises:
        UserError: there is something in it.
    """
    held = {file.name for file in folder.iterdir()} - {LOCK} if folder.is_dir() else set()
    if held:
        what = "a sweep" if FILE in held else "other files"
        takes = "takes an empty or new folder"
        raise UserError(f"hydra.sweep.dir: {folder} holds {what} already; {takes}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a sweep, so that one process at a time runs it.

    Raises:
        UserError: another process is running it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(f"sweep {folder}: process {lock.read()} is running it") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def finished_elsewhere(outputs: Path, timing: bool) -> dict[tuple[str, str], Path]:
    """Return the folders of finished runs, by the cell's hash and how it was measured."""
    found = {}
    for file in (outputs / "sweeps").glob(f"*/*/*/{journal.FILE}"):
        params: dict[str, Any] = {}
        tags: dict[str, str] = {}
        with suppress(UserError, OSError):  # a damaged run does not count
            for record, _ in journal.read(file.parent):
                params |= record.get("params", {})
                tags |= record.get("tags", {})
            timed = tags.get("timed") != "no"
            if tags.get("outcome") in FINISHED and "cell" in tags and timed == timing:
                found[tags["cell"], measured_how(params)] = file.parent
    return found


def measured_how(params: Mapping[str, Any]) -> str:
    """Return the settings of a measurement as one string."""
    return json.dumps({k: v for k, v in params.items() if k.startswith("measure.")}, sort_keys=True)
