"""What a sweep is to run, written before the first cell runs, and what became of it.

A sweep's folder holds `sweep.json`, written once, and a folder for every attempt at a cell: `3` is
the first at the fourth cell, `3-2` the second. What became of a cell is in their journals alone, so
there is nothing that a kill could leave untrue.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from expkit.config import Cell, Sweep, default_outputs, require_installed, thaw
from expkit.errors import UserError
from expkit.runner import record_failure
from expkit.tracking import address, journal
from expkit.tracking.stored import Stored, load

FILE = "sweep.json"
LOCK = "sweep.lock"


@dataclass(frozen=True)
class Planned:
    """A cell to be run.

    Attributes:
        index: its number in the sweep.
        hash: of what determines its result.
        title: what tells it from the others of its problem.
        group: the number of its problem: cells of one group do the same work.
        baseline: the index of the cell that it is held against; None for that cell itself.
        frozen: what `expkit.config.thaw` makes the cell of.
    """

    index: int
    hash: str
    title: str
    group: int
    baseline: int | None
    frozen: Mapping[str, Any]

    @cached_property
    def cell(self) -> Cell:
        return thaw(self.frozen)


@dataclass(frozen=True)
class Manifest:
    """A sweep, frozen.

    Attributes:
        folder: where it is kept.
        words: what was typed after `-m`.
        sweep: how it is run.
        groups: the problems' titles.
        cells: what is to be run.
        skipped: what cannot be or need not be, with the reason.
        again: of those, the numbers that are another cell again, and which.
    """

    folder: Path
    words: Sequence[str]
    sweep: Sweep
    groups: Sequence[str]
    cells: Sequence[Planned]
    skipped: Sequence[tuple[str, str]] = field(default_factory=tuple)
    again: Mapping[int, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The day and the time of its start."""
        return "/".join(self.folder.parts[-2:])

    def save(self) -> None:
        """Write it, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = asdict(self) | {"folder": None}
        fresh = self.folder / f"{FILE}.new"
        fresh.write_text(json.dumps(record))
        fresh.replace(self.folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the sweep that is kept in a folder.

        Raises:
            UserError: its file is not whole, or another version of expkit wrote it.
        """
        try:
            record = json.loads((folder / FILE).read_text())
            record["sweep"] = Sweep(**record["sweep"])
            record["cells"] = [Planned(**cell) for cell in record["cells"]]
            record["skipped"] = [(title, reason) for title, reason in record["skipped"]]
            return cls(**record | {"folder": folder})
        except (ValueError, KeyError, TypeError) as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            torn = "it is torn, or another version of expkit wrote it"
            raise UserError(f"sweep {folder / FILE}: {torn} ({said})") from error

    def joined(self, more: Manifest) -> Manifest:
        """With the cells of another batch of the same sweep."""
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
        """End the runs of a process that was killed. Call where no other runs this sweep."""
        for planned in self.cells:
            for folder in self.attempts(planned):
                with journal.locked(folder):  # what is left of that process may be at it too
                    begun = (folder / journal.FILE).exists()
                    if not begun or journal.opening(folder) is None:
                        tags = {"sweep": self.id, "sweep.cell": str(planned.index)}
                        reason = "killed before its run began"
                        record_failure(planned.cell, folder, tags, "interrupted", reason)
                    else:
                        journal.close_if_orphaned(folder)

    def next_attempt(self, planned: Planned) -> Path:
        """Where to run a cell."""
        number = len(self.attempts(planned)) + 1
        return self.folder / (f"{planned.index}-{number}" if number > 1 else f"{planned.index}")

    def result(self, planned: Planned) -> Stored | None:
        """A cell's finished run, or else its last one; None where none has begun."""
        last = None
        for folder in self.attempts(planned):
            with suppress(UserError, OSError):  # killed before its run began
                last = load(folder)
                if last.outcome == "ok":
                    return last
        return last

    @property
    def name(self) -> str:
        """What `expkit resume` knows it by: its id, or its folder where that is elsewhere."""
        kept = default_outputs() / "sweeps" == self.folder.parent.parent
        return self.id if kept else shlex.quote(str(self.folder))

    def addresses(self) -> list[str]:
        """Where its cells' runs are to be sent, without passwords; empty where nowhere."""
        configs = [cell.frozen["config"] for cell in self.cells]
        found = (
            config["tracking"]["uri"] or address.local(Path(config["outputs"]))
            for config in configs
            if config["tracking"]["kind"] == "mlflow"
        )
        return list(dict.fromkeys(found))

    def require_installed(self) -> None:
        """See that its cells name no class but those of installed options: loading runs code.

        Raises:
            ConfigError: one does.
        """
        for cell in self.cells:
            require_installed(cell.frozen["config"], "expkit resume --allow-target")

    def missing(self) -> list[Planned]:
        """What has not been finished."""
        results = ((planned, self.result(planned)) for planned in self.cells)
        return [planned for planned, run in results if run is None or run.outcome != "ok"]


def is_for_hydra(word: str) -> bool:
    """Whether a word says how Hydra is to run the sweep, and not what."""
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def newest(outputs: Path) -> Path:
    """The folder of the sweep that began last.

    Raises:
        UserError: there is none.
    """
    found = sorted((outputs / "sweeps").glob(f"*/*/{FILE}"))
    if not found:
        raise UserError(f"resume: no sweep is kept in {outputs}")
    return found[-1].parent


def named(word: str, outputs: Path) -> Path:
    """The folder of a sweep: itself, or by its id.

    Raises:
        UserError: there is no such sweep, or more than one.
    """
    if (Path(word) / FILE).is_file():
        return Path(word).absolute()
    kept = (outputs / "sweeps").glob(f"*/*/{FILE}")
    found = [file.parent for file in kept if f"{file.parent}".endswith(f"/{word}")]
    if len(found) != 1:
        takes = f"a sweep's folder or its id, such as 2026-01-31/23-59-59-000000 (in {outputs})"
        raise UserError(f"resume: got {word!r}, takes {takes}")
    return found[0]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process runs a sweep at a time.

    Raises:
        UserError: another does.
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
    """The run that finished a cell, by the cell's hash and how it was measured."""
    found = {}
    for file in (outputs / "sweeps").glob(f"*/*/*/{journal.FILE}"):
        opening: dict[str, Any] | None = None
        tags: dict[str, str] = {}
        for record, _ in journal.read(file.parent):
            if record["kind"] == "run":
                opening = record
            if record["kind"] in ("run", "tags"):
                tags |= record["tags"]
        if opening and tags["outcome"] == "ok" and (tags.get("timed") != "no") == timing:
            found[tags["cell"], measured_how(opening["params"])] = file.parent
    return found


def measured_how(params: Mapping[str, Any]) -> str:
    """The settings of a measurement, as one word."""
    return json.dumps({k: v for k, v in params.items() if k.startswith("measure.")}, sort_keys=True)
