"""A run read back from its journal, to be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from expkit.checks import WHOLE, misfit, short
from expkit.contracts import HostArray
from expkit.errors import UserError
from expkit.measure.statistics import Rounds, nested
from expkit.measure.stopping import Measure
from expkit.outcome import FINISHED, Outcome
from expkit.record import quantities
from expkit.tracking import journal


@dataclass(frozen=True)
class Stored:
    """What a journal says of a run.

    Attributes:
        outcome: as in the run's tag; `running` for one without an end.
        reason: what is wrong with one that is not ok.
        config: its configuration, flat, and as `actual.*` what its backend said of itself.
        answer: how the answer was checked, or why it was not; empty where it came to none.
        facts: see `expkit.measure.parity`.
        broken: where its program does not work with what its configuration says.
        processes: seconds of each repeat, by placement, by process.
        quantities: those of `expkit.record.quantities` that it has, by name.
        threshold: of a comparison, as it was configured.
        interleaved: the name that runs share whose rounds were measured in turn; else None.
        timed: false where other things ran meanwhile, by intent.
        stable: `yes`, or every reason to distrust the times.
    """

    folder: Path
    title: str
    outcome: Outcome
    reason: str
    config: Mapping[str, object]
    answer: str
    facts: Mapping[str, str]
    broken: list[str]
    processes: list[list[list[float]]]
    quantities: Mapping[str, float]
    threshold: float
    interleaved: str | None
    timed: bool
    stable: str

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
    tags: dict[str, str] = {}
    config: dict[str, object] = {}
    facts: dict[str, str] = {}
    broken: list[str] = []
    processes: dict[int, dict[int, list[float]]] = {}
    once = {quantity.name for quantity in quantities.QUANTITIES}
    figures: dict[str, float] = {}
    title = None
    threshold = Measure().threshold
    for record, _ in journal.read(folder):
        if record["kind"] == "run":
            title, config = record["name"], record["params"]
            threshold = _threshold(config.get("measure.threshold", threshold), file)
        if record["kind"] in ("run", "tags"):
            tags |= record["tags"]
        elif record["kind"] == "facts":
            facts, broken = record["facts"], record["broken"]
        elif record["kind"] == "metric" and record["key"] in once:
            if len(record["values"]) != 1:
                raise UserError(f"{file}: {record['key']}: got {len(record['values'])}, takes one")
            figures[record["key"]] = float(record["values"][0])
        elif record["kind"] == "sample":
            if "process" not in record or "placement" not in record:
                raise UserError(f"{folder}: an older expkit wrote it, without placements")
            if reason := misfit(record, {"process": WHOLE, "placement": WHOLE}):
                raise UserError(f"{file}: {reason}")
            rounds = processes.setdefault(record["process"], {})
            rounds.setdefault(record["placement"], []).append(sum(record["seconds"]))
    if title is None:
        raise UserError(f"{folder}: its journal has no beginning")
    timed = tags.get("timed") != "no"
    try:
        outcome = Outcome(tags.get("outcome", ""))
    except ValueError:
        got, takes = short(tags.get("outcome")), ", ".join(Outcome)
        raise UserError(f"{file}: outcome: got {got}, takes one of {takes}") from None
    if outcome == Outcome.OK and timed and not processes:
        raise UserError(f"{folder}: its journal has no times")
    return Stored(
        folder=folder,
        title=title,
        outcome=outcome,
        reason=tags.get("reason", ""),
        config=config,
        answer=tags.get("answer", ""),
        facts=facts,
        broken=broken,
        processes=[list(rounds.values()) for rounds in processes.values()],
        quantities=figures,
        threshold=threshold,
        interleaved=tags.get("interleaved"),
        timed=timed,
        stable=tags.get("stable", "yes"),
    )


PARAMS = "params.npz"
"""What a run learnt, in its folder."""


def title_of(folder: Path) -> str:
    """What a run is called.

    Raises:
        UserError: its journal is damaged, or has no beginning.
    """
    run = journal.opening(folder)
    if run is None:
        raise UserError(f"{folder}: its journal has no beginning")
    return str(run["name"])


def metrics_of(folder: Path) -> dict[str, HostArray]:
    """All that a run recorded of each metric, in its order.

    Raises:
        UserError: its journal is damaged.
    """
    found: dict[str, list[float]] = {}
    for record, _ in journal.read(folder):
        if record["kind"] == "metric":
            found.setdefault(record["key"], []).extend(map(float, record["values"]))
    return {key: np.array(values) for key, values in found.items()}


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
    raise UserError(f"compare: got {word!r}, takes {takes} (looked for runs in {outputs})")
