"""Addresses that the user has given on this machine: runs may be sent there without asking.

An address in a journal or a sweep's file was chosen by whoever wrote that file. The known addresses
are kept without passwords, one per line, in a file of the user's cache folder.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from expkit import cache
from expkit.tracking import address

FILE = "addresses"
OUTPUTS = (("runs",), ("sweeps",), ("comparisons",))
"""The folders of an outputs folder that runs are kept in."""


def is_known(kept: str, folder: Path, outputs: Path) -> bool:
    """Whether an address may be sent to: it was given here, or is the run's own local database.

    Args:
        kept: as a journal has it, without a password.
        folder: of the run, or of its sweep.
        outputs: the user's outputs folder.
    """
    given = address.given()
    is_given = given is not None and kept == address.kept(given)
    return is_given or _is_own(kept, folder, outputs) or kept in _noted()


def remember(uri: str, folder: Path, outputs: Path) -> None:
    """Note an address that the user gave for a run, or a sweep, in this folder."""
    kept = address.without_password(uri)
    if not _is_own(kept, folder, outputs) and kept not in _noted():
        with suppress(OSError):  # it cannot be noted: the user is asked again
            _file().parent.mkdir(parents=True, exist_ok=True)
            with _file().open("a") as file:
                file.write(f"{kept}\n")


def _is_own(kept: str, folder: Path, outputs: Path) -> bool:
    """Whether it is the database of the user's outputs folder, or of the run's."""
    database = address.database(kept)
    if database is None or kept == address.local(outputs):
        return database is not None
    inside = database.name == address.DATABASE and folder.is_relative_to(database.parent)
    return inside and folder.relative_to(database.parent).parts[:1] in OUTPUTS


def _noted() -> list[str]:
    with suppress(OSError):
        return _file().read_text().splitlines()
    return []


def _file() -> Path:
    return cache.folder() / FILE
