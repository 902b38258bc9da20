"""The names that a user gives to cells' folders by `hydra.sweep.subdir`.

A cell's folder is named by its number, so that a second attempt and a resumed sweep find it. The
user's name is a symbolic link beside it that points to the attempt which counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from expkit.sweeps.manifest import Manifest

ATTEMPT = re.compile(r"(\d+)(-\d+)?")
"""The name of an attempt's folder, which begins with its cell's number."""


def link(manifest: Manifest, names: Mapping[int, str]) -> list[str]:
    """Create links with these names, update the existing ones, and return the refused names."""
    refused = []
    places: dict[Path, int] = {}
    for cell in manifest.cells:
        if (index := cell.index) not in names:
            continue
        name = names[index]
        place = Path(os.path.normpath(manifest.folder / name))
        inside = place.is_relative_to(manifest.folder) and place != manifest.folder
        first = place.relative_to(manifest.folder).parts[0] if inside else ""
        if not inside or ATTEMPT.fullmatch(first) or place in places or not _is_free(place):
            refused.append(name)
        else:
            places[place] = index
    for file in manifest.folder.rglob("*"):
        if file.is_symlink() and (number := ATTEMPT.fullmatch(file.readlink().name)):
            places.setdefault(file, int(number[1]))
    cells = {cell.index: cell for cell in manifest.cells}
    for place, index in places.items():
        if index not in cells:
            continue
        run = manifest.result(cells[index])
        target = run.folder if run else manifest.folder / str(index)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(os.path.relpath(target, place.parent))
        except OSError:  # a name that is too long, or a file system without links
            refused.append(str(place.relative_to(manifest.folder)))
    return refused


def _is_free(place: Path) -> bool:
    """Whether nothing but a link is there."""
    return not os.path.lexists(place) or place.is_symlink()  # only is_symlink rejects long names
