"""How much of a run's journal MLflow has: a small file beside the journal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expkit.checks import TEXT, WHOLE, misfit
from expkit.tracking import journal

FILE = "mlflow.json"
BEGUN = {"begun": TEXT}
NOTED = {"uri": TEXT, "run_id": TEXT, "offset": WHOLE}


def read(folder: Path) -> dict[str, Any]:
    """Return MLflow's address, its id of the run, the bytes sent and `done`; empty if unsent."""
    try:
        state: dict[str, Any] = json.loads((folder / FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    only_begun = isinstance(state, dict) and "uri" not in state
    return state if misfit(state, BEGUN if only_begun else NOTED) is None else {}


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the file, completely or not at all."""
    fresh = folder / f"{FILE}.new"
    fresh.write_text(json.dumps(state))
    fresh.replace(folder / FILE)


def is_whole(folder: Path) -> bool:
    """Whether a journal has ended and MLflow has all of it, including lines after the end."""
    state = read(folder)
    return bool(state.get("done")) and state["offset"] >= (folder / journal.FILE).stat().st_size


def pending(place: Path, uri: str | None = None) -> Iterator[Path]:
    """Yield folders in or below `place` whose journal MLflow (at this address) lacks in part."""
    for file in sorted(place.rglob(journal.FILE)):
        if not is_whole(file.parent) or uri not in (None, read(file.parent).get("uri")):
            yield file.parent
