"""What tells a sweep's cells apart where they are shown together: names and colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from expkit.config import Cell
from expkit.optimizers._chain import Update
from expkit.record.colours import colours, shade

CHOICES = ("problem", "backend", "optimizer")
UNSET = {f"update.{key}": value for key, value in asdict(Update()).items()}
"""What a cell has that does not say what comes before its optimizer's step."""
IN_TURN = 8
"""How many shades there are for the trials of a search; then they start again."""


def varying(cells: Sequence[Cell]) -> set[str]:
    """Return the keys in which cells with the same options differ, whichever word set them.

    Values that only the problem's recommendation gives are alike.
    """
    chosen: dict[tuple[str, ...], dict[str, Any]] = {}
    found: set[str] = set()
    for cell in cells:
        alike = chosen.setdefault((*cell.names.values(), how_long(cell)), {})
        for key, value in (UNSET | cell.params).items():
            own = "???" if key in cell.recommended else value
            if alike.setdefault(key, own) != own:
                found.add(key)
    return found | ({"measure"} if len({how_long(cell) for cell in cells}) > 1 else set())


def titles(cells: Sequence[Cell]) -> list[str]:
    """Return the cells' titles, with the values of keys in which cells of one title differ."""
    keys = varying(cells)
    return [
        cell.title + "".join(f", {key}={short(value)}" for key, value in values(cell, keys).items())
        for cell in cells
    ]


def names(cells: Mapping[int, Cell], varying: Collection[str]) -> dict[int, str]:
    """Name each cell by the options and values that differ, such as `rmsprop · lr=0.01`.

    Args:
        varying: the keys whose values differ. Options that differ need not be among them.
    """
    options = {
        kind: {cell.names[kind] for cell in cells.values() if kind in cell.names}
        for kind in CHOICES
    }
    kinds = [kind for kind in CHOICES if len(options[kind]) > 1 or kind in varying]
    ends = Counter(key.rpartition(".")[2] for key in varying)
    found = {}
    for number, cell in cells.items():
        parts = [cell.names[kind] for kind in kinds if kind in cell.names]
        for key, value in values(cell, varying).items():
            end = key.rpartition(".")[2]
            parts.append(f"{end if ends[end] == 1 else key}={short(value)}")
        found[number] = " · ".join(parts) or cell.title
    return found


def shades(
    cells: Mapping[int, Cell], solvers: Mapping[int, str], *, searched: bool = False
) -> dict[int, str]:
    """Return each cell's colour: its backend's, in a shade for each of this backend's solvers, so
    that one has the same shade with all problems and seeds. With a single solver each cell has one.

    Args:
        solvers: what computes each cell, such as `numpy · sgd`.
        searched: whether these are trials of a search. More may follow, so a cell's shade is chosen
            by its number.
    """
    backends = {number: cell.names["backend"] for number, cell in cells.items()}
    base = colours(backends.values())
    if searched:
        return {n: shade(base[backend], n % IN_TURN, IN_TURN) for n, backend in backends.items()}
    found = {}
    for backend, colour in base.items():
        kinds = {number: solvers[number] for number in cells if backends[number] == backend}
        if len(set(kinds.values())) == 1:
            kinds = {number: str(number) for number in kinds}
        places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds.values()))}
        for number, kind in kinds.items():
            found[number] = shade(colour, places[kind], len(places))
    return found


def values(cell: Cell, keys: Collection[str]) -> dict[str, Any]:
    """Return the values of these keys that a cell has, without options and MLflow's address."""
    wanted = {key for key in keys if not key.startswith("tracking.")}.difference(CHOICES)
    every = {"measure": how_long(cell)} | UNSET | cell.params
    return {key: value for key, value in every.items() if key in wanted}


def how_long(cell: Cell) -> str:
    """Return the option of `measure` that a cell has."""
    return str(cell.frozen["choices"].get("measure"))


def short(value: Any) -> str:
    """Write a value as one types it; a number with six digits, as a sampled rate has seventeen.

    >>> short(0.012345678), short(1000), short(True), short(None)
    ('0.0123457', '1000', 'true', 'null')
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
