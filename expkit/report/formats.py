"""Rows and tables in the formats of other tools."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence

from expkit.report.rows import Row

LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "µ": r"\textmu{}",
        "·": r"\textperiodcentered{}",
    }
)
"""Characters that LaTeX reads in another way, or does not know in every encoding."""

LOOKED_AT = 50
"""After so many missing values a column would be taken for one of texts."""

Table = Sequence[Sequence[str]]
"""Rows of cells; the first row is the head."""


def csv_text(rows: Iterable[Row]) -> str:
    """Write rows as CSV with a head. A value that is missing is empty; in a column of numbers that
    begins with many of these it is NaN, so that readers which look at the first rows see numbers.

    >>> csv_text([{"n": 1, "lr": 0.5, "fast": True}, {"n": 2, "lr": None, "fast": False}])
    'n,lr,fast\\n1,0.5,true\\n2,,false\\n'
    """
    columns, table = _columns(rows)
    table = [_with_nan(column) for column in table]
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*table, strict=True):
        writer.writerow(str(v).lower() if isinstance(v, bool) else v for v in row)
    return file.getvalue()


def json_text(rows: Iterable[Row]) -> str:
    """Write rows as a JSON array of objects."""
    columns, table = _columns(rows)
    records = [dict(zip(columns, row, strict=True)) for row in zip(*table, strict=True)]
    return json.dumps(records, indent=1, ensure_ascii=False) + "\n"


def parquet_bytes(rows: Iterable[Row]) -> bytes:
    """Write rows as a Parquet file."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    columns, table = _columns(rows)
    file = io.BytesIO()
    parquet.write_table(pa.table(dict(zip(columns, table, strict=True))), file)
    return file.getvalue()


def markdown(table: Table) -> str:
    r"""Write a table as GitHub's Markdown.

    >>> print(markdown([["", "median"], ["a|b", "1 s"]]))
    |  | median |
    | --- | --- |
    | a\|b | 1 s |
    """
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def latex(tables: Sequence[tuple[str, Table]], caption: str) -> str:
    """Write tables with titles and like columns as one of LaTeX, for the package `booktabs`."""
    wide = max(len(table[0]) for _, table in tables)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption)}}}"]
    lines.append(rf"\begin{{tabular}}{{l{'r' * (wide - 1)}}}")
    for number, (title, (head, *rows)) in enumerate(tables):
        lines.append(r"\midrule" if number else r"\toprule")
        lines += [_line([title, *head[1:]]), r"\midrule", *map(_line, rows)]
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(_escaped, cells))} \\\\"


def _escaped(text: str) -> str:
    return text.translate(LATEX)


def _columns(rows: Iterable[Row]) -> tuple[list[str], list[list[object]]]:
    """Return the names and the values of columns, each of one type, without those with no value."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    kept = {
        name: _of_one_type(values)
        for name, values in columns.items()
        if any(value is not None for value in values)
    }
    return list(kept), list(kept.values())


def _with_nan(column: list[object]) -> list[object]:
    """Return a column of floats with NaN for each missing value, if many of these come first."""
    late = all(value is None for value in column[:LOOKED_AT]) and len(column) > LOOKED_AT
    if late and all(isinstance(value, float | None) for value in column):
        return ["NaN" if value is None else value for value in column]
    return column


def _of_one_type(values: list[object]) -> list[object]:
    """Convert numbers to floats if any is one, and values of several kinds to texts."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) == 1 and kinds <= {bool, int, float, str}:
        return values
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]  # type: ignore[arg-type]
    return [None if value is None else str(value) for value in values]
