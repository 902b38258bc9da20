"""Read the results of a sweep from its folder and from MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, text

from expkit.sweeps.manifest import Manifest
from expkit.tracking import address

if TYPE_CHECKING:
    from conftest import Expkit


def sweep_of(expkit: Expkit) -> Manifest:
    """The newest sweep."""
    return Manifest.load(max(expkit.outputs.glob("sweeps/*/*/sweep.json")).parent)


def runs(expkit: Expkit, database: str | None = None) -> list[tuple[str, str]]:
    """Cell and status of every run in MLflow."""
    query = """
        select t.value, r.status from runs r join tags t using (run_uuid)
        where t.key = 'sweep.cell' order by 1, 2
    """
    engine = create_engine(database or address.local(expkit.outputs))
    with engine.connect() as connection:
        found = [(cell, status) for cell, status in connection.execute(text(query))]
    engine.dispose()
    return found


def wait_for(what: Callable[[], Any], timeout_s: float = 120) -> Any:
    """Call `what` until its result is true, and return that."""
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found
