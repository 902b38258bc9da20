"""A run read back from its journal, to be compared."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from expkit.checks import WHOLE, misfit, short
from expkit.contracts import HostArray
from expkit.errors import UserError
from expkit.measure.breakdown import PREFIX
from expkit.measure.statistics import Rounds, Summary, nested, summarize
from expkit.measure.stopping import Measure
from expkit.measure.target import reached
from expkit.outcome import FINISHED, Outcome
from expkit.record import quantities
from expkit.record.curves import elapsed
from expkit.record.quantities import EVAL
from expkit.tracking import journal


@dataclass(frozen=True)
class Stored:
    """What a journal says of a run.

    Attributes:
        outcome: as in the run's tag; `running` for one without an end.
        config: its configuration, flat, and as `used.*` what its backend said of itself.
        tags: the last value of each.
        facts: see `expkit.measure.parity`.
        broken: where its program does not work with what its configuration says.
        processes: seconds of each repeat, by placement, by process.
        until: seconds of each repeat until the target, as `processes`; empty where there are none.
        quantities: those of `expkit.record.quantities` that it has, by name.
        evaluated: the last value of each figure that its problem evaluates.
        parts: seconds of the parts of a step, by the names of their metrics.
        first_loss: the loss of the first step; None where there is none.
        threshold: of a comparison, as it was configured.
    """

    folder: Path
    title: str
    outcome: Outcome
    config: Mapping[str, object]
    tags: Mapping[str, str]
    facts: Mapping[str, str]
    broken: list[str]
    processes: list[list[list[float]]]
    until: list[list[list[float]]]
    quantities: Mapping[str, float]
    evaluated: Mapping[str, float]
    parts: Mapping[str, float]
    first_loss: float | None
    threshold: float

    @property
    def name(self) -> str:
        """What tells it from the other runs of its sweep; without one, its title."""
        return self.tags.get("mlflow.runName", self.title)

    @property
    def reason(self) -> str:
        """What is wrong with a run that is not ok."""
        return self.tags.get("reason", "")

    @property
    def answer(self) -> str:
        """How the answer was checked, or why it was not; empty where it came to none."""
        return self.tags.get("answer", "")

    @property
    def stable(self) -> str:
        """`yes`, or every reason to distrust the times."""
        return self.tags.get("stable", "yes")

    @property
    def interleaved(self) -> str | None:
        """The name that runs share whose rounds were measured in turn; else None."""
        return self.tags.get("interleaved")

    @property
    def timed(self) -> bool:
        """False where other things ran meanwhile, by intent."""
        return self.tags.get("timed") != "no"

    @cached_property
    def summary(self) -> Summary | None:
        """The summary of its repeats; None where no time may be shown."""
        return summarize(self.rounds) if self.outcome == Outcome.OK and self.timed else None

    @property
    def until_target(self) -> Rounds:
        """Seconds of the repeats until the target, as `rounds`; empty where it was not reached."""
        return nested(self.until) if self.until and self.summary else []

    @cached_property
    def target_summary(self) -> Summary | None:
        """The summary of those; None where it was not reached."""
        return summarize(self.until_target) if self.until_target else None

    @property
    def target(self) -> str:
        """What it was to reach; empty for nothing."""
        return self.facts.get("target", "")

    @property
    def ended_after(self) -> int | None:
        """The steps of a run that may end before its last one; None for others."""
        ended = self.facts.get("ended", "")
        return int(ended) if ended.isdecimal() else None

    @property
    def steps(self) -> int:
        """The number of steps in a repeat; of a run that ended early, those that it took.

        Raises:
            UserError: the record says none.
        """
        steps = self.ended_after or self.config.get("steps")
        if not isinstance(steps, int) or steps < 1:
            file = self.folder / journal.FILE
            raise UserError(f"{file}: steps: got {short(steps)}, takes a whole number above 0")
        return steps

    @property
    def loss(self) -> float | None:
        """The last; None where there is none."""
        return self.quantities.get("final/loss")

    @property
    def share_of_limit(self) -> float | None:
        """How much of the machine's limit the time reaches; None where that is not known."""
        return self.quantities.get("time/share_of_limit")

    @property
    def is_stable(self) -> bool:
        """Whether there is no reason to distrust the times."""
        return self.stable == "yes"

    @property
    def is_finished(self) -> bool:
        """Whether there is a result."""
        return self.outcome in FINISHED

    @property
    def rounds(self) -> Rounds:
        """Repeats by placement; by process, where several measured."""
        return nested(self.processes)


def load(folder: Path) -> Stored:
    """Read a run's folder.

    Raises:
        UserError: there is no journal with a beginning, or a damaged one, or one of an older
            expkit, which does not say where a repeat was placed.
    """
    file = folder / journal.FILE
    records = _by_kind(folder)
    if not records["run"]:
        raise UserError(f"{folder}: its journal has no beginning")
    opening = records["run"][-1]
    config = opening["params"]
    threshold = config.get("measure.threshold", Measure().threshold)
    tags: dict[str, str] = {}
    for record in (opening, *records["tags"]):
        tags |= record["tags"]
    claims = records["facts"][-1] if records["facts"] else {"facts": {}, "broken": []}
    metrics = _metrics(records["metric"])
    once = {quantity.name for quantity in quantities.QUANTITIES}
    found = Stored(
        folder=folder,
        title=opening["name"],
        outcome=_outcome(tags, file),
        config=config,
        tags=tags,
        facts=claims["facts"],
        broken=claims["broken"],
        processes=_processes(records["sample"], file),
        until=_until(records, metrics, file),
        quantities={key: _one(metrics, key, file) for key in metrics if key in once},
        evaluated={
            key.removeprefix(EVAL): values[-1]
            for key, values in metrics.items()
            if key.startswith(EVAL) and values
        },
        parts={key: _one(metrics, key, file) for key in metrics if key.startswith(PREFIX)},
        first_loss=next(iter(metrics.get("train/loss", ())), None),
        threshold=_threshold(threshold, file),
    )
    if found.outcome == Outcome.OK and found.timed and not found.processes:
        raise UserError(f"{folder}: its journal has no times")
    return found


Record = Mapping[str, Any]
"""A line of a journal."""


def _by_kind(folder: Path) -> Mapping[str, Sequence[Record]]:
    found = defaultdict[str, list[Record]](list)
    for record, _ in journal.read(folder):
        found[record["kind"]].append(record)
    return found


def _metrics(records: Sequence[Record]) -> dict[str, list[float]]:
    """All values of each metric, in the order in which they were written."""
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record["key"], []).extend(map(float, record["values"]))
    return found


def _one(metrics: Mapping[str, Sequence[float]], key: str, file: Path) -> float:
    """Return the value of a metric that a run records only once."""
    if len(metrics[key]) != 1:
        raise UserError(f"{file}: {key}: got {len(metrics[key])}, takes one")
    return metrics[key][0]


def _processes(records: Sequence[Record], file: Path) -> list[list[list[float]]]:
    """Seconds of each repeat, by placement, by process."""
    found: dict[int, dict[int, list[float]]] = {}
    for record in records:
        if "process" not in record or "placement" not in record:
            raise UserError(f"{file.parent}: an older expkit wrote it, without placements")
        if reason := misfit(record, {"process": WHOLE, "placement": WHOLE}):
            raise UserError(f"{file}: {reason}")
        rounds = found.setdefault(record["process"], {})
        rounds.setdefault(record["placement"], []).append(sum(record["seconds"]))
    return [list(rounds.values()) for rounds in found.values()]


def _until(
    records: Mapping[str, Sequence[Record]], metrics: Mapping[str, Sequence[float]], file: Path
) -> list[list[list[float]]]:
    """Seconds of each repeat until the target; empty where it was not reached, or nothing timed."""
    if "target/seconds" not in metrics:
        return []
    steps, ends = _one(metrics, "target/steps", file), _readings(records["metric"])
    samples = [record for record in records["sample"] if record["process"] == 0]
    chunks = [record["seconds"] for record in samples]
    rises = ends and all(a < b for a, b in pairwise([-1, *ends]))
    fits = rises and steps.is_integer() and 1 <= steps <= ends[-1] + 1
    whole = all(len(own) == len(ends) and own[0] > 0 for own in chunks)
    if not fits or not whole or not chunks or records["sample"][0]["process"] != 0:
        raise UserError(f"{file}: target/steps: got {steps:g}, takes a step of the timed readings")
    return reached(int(steps), ends, chunks, _processes(records["sample"], file))


def _readings(records: Sequence[Record]) -> list[int]:
    """The last step of each reading."""
    own = (record["steps"] for record in records if record["key"] == "time/step_seconds")
    return [step for steps in own for step in steps]


def _outcome(tags: Mapping[str, str], file: Path) -> Outcome:
    try:
        return Outcome(tags.get("outcome", ""))
    except ValueError:
        got, takes = short(tags.get("outcome")), ", ".join(Outcome)
        raise UserError(f"{file}: outcome: got {got}, takes one of {takes}") from None


PARAMS = "params.npz"
"""What a run learnt, in its folder."""
COLOUR = re.compile("#[0-9A-Fa-f]{6}")


def look_of(folder: Path) -> tuple[str, str | None]:
    """The title and the colour of a run's pictures; no colour where none is recorded.

    Raises:
        UserError: its journal is damaged, or has no beginning.
    """
    run = journal.opening(folder)
    if run is None:
        raise UserError(f"{folder}: its journal has no beginning")
    title, problem = str(run["name"]), str(run["params"].get("problem"))
    name = run["tags"].get("mlflow.runName", title)
    colour = run["tags"].get("mlflow.runColor", "")
    if name != title and not name.startswith(problem):
        name = f"{problem}: {name}"
    return name, colour if COLOUR.fullmatch(colour) else None


def metrics_of(folder: Path) -> dict[str, HostArray]:
    """All that a run recorded of each metric, in its order.

    Raises:
        UserError: its journal is damaged.
    """
    metrics = _metrics(_by_kind(folder)["metric"])
    return {key: np.array(values) for key, values in metrics.items()}


def losses_of(folder: Path) -> tuple[HostArray, HostArray]:
    """The loss of each step of a run's first repeat, and when the step ended.

    Returns:
        Two arrays of shape (steps,): losses, and seconds from the start of a repeat by the median
        of each reading, which are not a number in a run without times.

    Raises:
        UserError: its journal is damaged.
    """
    records = _by_kind(folder)["metric"]
    metrics = _metrics(records)
    losses = np.array(metrics.get("train/loss", []))
    ends = np.array(_readings(records), dtype=np.int64)
    step_seconds = np.array(metrics.get("time/step_seconds", []))
    return losses, elapsed(ends, step_seconds, losses.size)


def evaluated_of(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """After how many steps a run's problem was evaluated, and the values, by name.

    Raises:
        UserError: its journal is damaged.
    """
    found = {}
    for record in _by_kind(folder)["metric"]:
        if record["key"].startswith(EVAL):
            values = [float(value) for value in record["values"]]
            found[record["key"].removeprefix(EVAL)] = record["steps"], values
    return found


def params_of(folder: Path) -> dict[str, HostArray]:
    """The parameters that a run came to; empty where it kept none.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / PARAMS
    if not file.exists():
        return {}
    try:
        with np.load(file, allow_pickle=False) as kept:
            return {name: np.asarray(kept[name], dtype=np.float64) for name in kept.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise UserError(f"{file}: it cannot be read ({error})") from error


def _threshold(value: object, file: Path) -> float:
    """The smallest difference that matters, as the run was configured."""
    with suppress(TypeError, ValueError):
        if 0 < (share := float(value)) < 1:  # type: ignore[arg-type]
            return share
    raise UserError(
        f"{file}: measure.threshold: got {short(value)}, takes a number between 0 and 1"
    )


def find(word: str, outputs: Path) -> Path:
    """The folder of a run: itself, or by the id that MLflow gave the run.

    Raises:
        UserError: there is no such run.
    """
    folder = Path(word).absolute()
    if (folder / journal.FILE).is_file():
        return folder
    for file in outputs.rglob("mlflow.json") if word.isalnum() else ():
        with suppress(OSError, ValueError, KeyError, TypeError):  # torn by a kill: another's
            if json.loads(file.read_text())["run_id"] == word:
                return file.parent
    takes = "a run's folder, an MLflow run id or words such as backend=torch"
    raise UserError(f"got {word!r}, takes {takes} (looked for runs in {outputs})")
