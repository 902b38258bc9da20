"""Where stored runs may be sent: an address that was not met before is the person's to confirm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from expkit.config import Tracking, default_outputs
from expkit.errors import ConfigError, UserError
from expkit.tracking import address, known

if TYPE_CHECKING:
    from expkit.sweep.manifest import Manifest
    from expkit.tracking.tracker import Tracker


def allow(
    tracker: Tracker,
    sweep: Manifest,
    *,
    typed: str | None = None,
    uri: str | None = None,
    again: bool,
) -> None:
    """Tell the tracker where to send a sweep's runs.

    Args:
        typed: the address that the words composed, whole.
        uri: where to send them in place of what the sweep names.
        again: whether a file names the addresses, and not the person.

    Raises:
        UserError: nobody has given one of them on this machine.
    """
    outputs = default_outputs()
    for kept in sweep.addresses():
        if not again or (typed and address.kept(typed) == kept):
            known.remember(kept, sweep.folder, outputs)
        elif not uri:
            confirmed(kept, sweep.folder, outputs)
        tracker.allow(kept, uri or address.whole(kept, [typed, address.given()]))


def confirmed(kept: str, folder: Path, outputs: Path) -> str:
    """The whole address of one that a journal or a sweep names, if a person has given it or does.

    Raises:
        UserError: nobody has.
    """
    if address.kept(kept) != kept:
        raise UserError(f"{folder}: it names {address.scrub(kept)!r}, no address; needs --uri")
    if not known.is_known(kept, folder, outputs):
        if not _is_asked() or input(f"{folder}: send to {kept}? [y/N] ").strip().lower() != "y":
            new = f"it names {kept}, which nobody gave on this machine before"
            raise UserError(f"{folder}: {new}; needs --uri {kept} to confirm")
        known.remember(kept, folder, outputs)
    return address.whole(kept, [address.given()])


def check_option(uri: str | None) -> None:
    """See that what `--uri` got is an address.

    Raises:
        ConfigError: it is not.
    """
    try:
        Tracking(uri=uri)
    except ConfigError as error:
        raise ConfigError("--uri", error.got, error.takes) from error


def _is_asked() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
