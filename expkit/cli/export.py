"""`expkit export`: figures of runs, for other tools."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from expkit import door, streams
from expkit.cli.status import FAILED, OK, print_error
from expkit.errors import UserError
from expkit.report import formats
from expkit.report.rows import Row
from expkit.sweeps.manifest import newest
from expkit.units import count

SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".md": "md", ".tex": "latex"}
READ = ("md", "latex")
"""Formats to be read by people, which have the tables."""


def export(
    what: str | None, rows: str, kind: str | None, output: Path | None, outputs: Path
) -> int:
    """Write what is asked for and return the exit status.

    Args:
        what: a sweep, a run or an experiment; None for the last sweep.
        rows: the method of `Runs` that gives the rows.
        kind: the format; None for that of the output's suffix.
        output: the file to write; None for standard output.
    """
    os.environ["EXPKIT_OUTPUTS"] = str(outputs)
    kind = kind or SUFFIXES.get(output.suffix if output else "", "csv")
    if kind in READ and rows != "rows":
        return print_error(f"export: got --format {kind} with single values, takes csv or parquet")
    try:
        found = door.load(what or newest(outputs))
    except UserError as error:
        return print_error(error)
    runs = door.Runs([found]) if isinstance(found, door.Run) else found
    if isinstance(runs, door.Sweep) and (lacking := len(runs.manifest.cells) - len(runs)):
        print_error(f"left out: {count(lacking, 'cell')} without a run that can be read", OK)
    data = _encoded(runs, rows, kind)
    if output is None:
        if kind == "parquet" and sys.stdout.isatty():
            return print_error("export: got a terminal for parquet, takes --output FILE")
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return FAILED if 1 in streams.LOST else OK
    try:
        output.write_bytes(data)
    except OSError as error:
        return print_error(f"--output: cannot write {output} ({error.strerror})")
    return OK


def _encoded(runs: door.Runs, rows: str, kind: str) -> bytes:
    if kind == "md":
        return f"{runs.markdown()}\n".encode()
    if kind == "latex":
        timed = any(run.stored.summary for run in runs)
        said = "Medians of whole runs with their 95 % confidence intervals" if timed else "Results"
        return formats.latex(runs.tables(), said).encode()
    found: list[Row] = getattr(runs, rows)()
    if kind == "parquet":
        return formats.parquet_bytes(found)
    return (formats.csv_text(found) if kind == "csv" else formats.json_text(found)).encode()
