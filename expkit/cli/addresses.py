"""Where stored runs may be sent: an address that was not met before is the person's to confirm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from expkit.config import Tracking, default_outputs
from expkit.errors import ConfigError, UserError
from expkit.tracking import address, known
from expkit.tracking.tracker import Tracker

if TYPE_CHECKING:
    from expkit.sweeps.manifest import Manifest


class Unmet(UserError):
    """A stored address that the user has not given on this machine."""


def confirmed(kept: str, folder: Path, outputs: Path) -> str:
    """Return the whole of an address from a journal or sweep, if the user gave it or confirms it.

    Raises:
        Unmet: the user has not given it and does not confirm it.
    """
    if address.kept(kept) != kept:
        raise Unmet(f"{folder}: it names {address.scrub(kept)!r}, no address; needs --uri")
    if not known.is_known(kept, folder, outputs):
        if not _is_asked() or input(f"{folder}: send to {kept}? [y/N] ").strip().lower() != "y":
            new = f"it names {kept}, which nobody gave on this machine before"
            raise Unmet(f"{folder}: {new}; needs --uri {kept} to confirm")
        known.remember(kept, folder, outputs)
    return address.whole(kept, [address.given()])


def allow_given(tracker: Tracker | None, sweep: Manifest, typed: str | None) -> None:
    """Let the runs of a sweep be sent to the addresses that the user has just given for it.

    Args:
        typed: one of these addresses, with its password.
    """
    for kept in sweep.addresses() if tracker else ():
        assert tracker is not None
        known.remember(kept, sweep.folder, default_outputs())
        tracker.allow(kept, address.whole(kept, [typed, address.given()]))


def allow_stored(
    tracker: Tracker | None,
    sweep: Manifest,
    outputs: Path,
    *,
    uri: str | None = None,
    typed: str | None = None,
) -> None:
    """Let the runs of a sweep be sent to the addresses that its file names.

    Args:
        outputs: the user's outputs folder.
        uri: the address to send them to instead.
        typed: an address that the user has just given, with its password.

    Raises:
        Unmet: the user has not given one of them on this machine.
    """
    for kept in sweep.addresses() if tracker else ():
        assert tracker is not None
        if typed and address.kept(typed) == kept:
            known.remember(kept, sweep.folder, outputs)
        elif not uri:
            confirmed(kept, sweep.folder, outputs)
        tracker.allow(kept, uri or address.whole(kept, [typed, address.given()]))


def check_option(uri: str | None) -> None:
    """Check that the value of `--uri` is an address.

    Raises:
        ConfigError: it is not.
    """
    try:
        Tracking(uri=uri)
    except ConfigError as error:
        raise ConfigError("--uri", error.got, error.takes) from error


def _is_asked() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
