"""`expkit report`: the page of sweeps, to be looked at or sent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from expkit import door
from expkit.cli.session import show
from expkit.cli.status import OK, print_error
from expkit.errors import UserError
from expkit.sweeps.manifest import newest
from expkit.sweeps.page import FILE


def report(what: Sequence[str], output: Path | None, outputs: Path) -> int:
    """Write the page of sweeps or experiments, and return the exit status.

    Args:
        what: none for the last sweep.
        output: the file; None for `report.html` in the sweep's folder, or in `outputs` for several.
    """
    os.environ["EXPKIT_OUTPUTS"] = str(outputs)
    try:
        found = [door.load(word) for word in what or [str(newest(outputs))]]
        text = door.report(*found)
    except UserError as error:
        return print_error(error)
    alone = found[0] if len(found) == 1 else None
    place = alone.folder if isinstance(alone, door.Sweep) else outputs
    file = (output or place / FILE).absolute()
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        return print_error(f"report: cannot write {file} ({error.strerror})")
    show(f"page: {file}")
    return OK
