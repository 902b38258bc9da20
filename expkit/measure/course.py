"""How far a repeat has come, and the checkpoints from which a long one goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from expkit.contracts import HostArray
from expkit.errors import UserError

FILE = "checkpoint.npz"
ARRAY, FIGURE = "array ", "figure "
"""What the names of a checkpoint's arrays and figures begin with in its file."""


@dataclass
class Course:
    """A repeat as far as it has come.

    Attributes:
        ends: the number of steps that were done at the end of each reading.
        seconds: seconds of each reading.
        cpu_seconds: the same in CPU seconds, over all threads.
        losses: the losses of each reading.
    """

    ends: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    losses: list[HostArray] = field(default_factory=list)

    @property
    def done(self) -> int:
        """The number of steps that are done."""
        return self.ends[-1] if self.ends else 0

    @property
    def curve(self) -> HostArray:
        """The losses so far."""
        return np.concatenate(self.losses) if self.losses else np.empty(0)


@dataclass(frozen=True)
class Checkpoint:
    """A state in the middle of a run's only repeat.

    Attributes:
        cell: the hash of the cell.
        every: the steps of a reading.
        arrays: parameters and optimizer state, by the names of `Program.arrays`.
        evaluated: the numbers of steps after which the problem was evaluated.
        figures: the values after each, by name.
    """

    cell: str
    every: int
    course: Course
    arrays: Mapping[str, HostArray]
    evaluated: Sequence[int]
    figures: Mapping[str, Sequence[float]]

    def save(self, folder: Path) -> None:
        """Write it in place of an earlier one, whole or not at all."""
        course, new = self.course, folder / f".{FILE}"
        arrays = {f"{ARRAY}{name}": array for name, array in self.arrays.items()}
        figures = {f"{FIGURE}{name}": np.array(values) for name, values in self.figures.items()}
        with new.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                cell=np.array(self.cell),
                every=np.array(self.every),
                ends=np.array(course.ends),
                seconds=np.array(course.seconds),
                cpu_seconds=np.array(course.cpu_seconds),
                losses=course.curve,
                evaluated=np.array(self.evaluated, np.int64),
                **arrays,
                **figures,
            )
            file.flush()
            os.fsync(file.fileno())
        new.replace(folder / FILE)

    @classmethod
    def load(cls, file: Path, cell: str) -> Checkpoint:
        """Read the checkpoint of the cell with this hash.

        Raises:
            UserError: it is damaged, or of another configuration.
        """
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
                found = {name: kept[name] for name in kept.files}
            course = Course(
                found["ends"].tolist(),
                found["seconds"].tolist(),
                found["cpu_seconds"].tolist(),
                [found["losses"]],
            )
            made = cls(
                str(found["cell"]),
                int(found["every"]),
                course,
                _named(found, ARRAY),
                found["evaluated"].tolist(),
                {name: values.tolist() for name, values in _named(found, FIGURE).items()},
            )
        except (
            AttributeError,
            BadZipFile,
            EOFError,
            KeyError,
            OSError,
            TypeError,
            ValueError,
        ) as error:
            raise UserError(f"{file}: it is damaged ({error}); remove it to begin anew") from error
        if made.cell != cell:
            got = f"it is of another configuration, cell {made.cell}"
            raise UserError(f"{file}: {got}; takes one of cell {cell}")
        return made


def _named(found: Mapping[str, HostArray], group: str) -> dict[str, HostArray]:
    return {k.removeprefix(group): x for k, x in found.items() if k.startswith(group)}
