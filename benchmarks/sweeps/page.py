"""Sections of a page: each script writes its own and leaves the others alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import machine


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown.

    >>> table(["a", "b"], [[1, 2]])
    ['| a | b |', '| --- | --- |', '| 1 | 2 |']
    """
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def write_section(page: Path, title: str, command: str, about: str, lines: Sequence[str]) -> None:
    """Replace the section of this title, or add it at the end."""
    before = page.read_text() if page.is_file() else "# Sweeps, measured\n"
    head, *sections = before.split("\n## ")
    fresh = "\n".join([title, "", f"`{command}`: {about}", "", *machine(), "", *lines])
    titles = [section.partition("\n")[0] for section in sections]
    if title in titles:
        sections[titles.index(title)] = fresh
    else:
        sections.append(fresh)
    page.write_text("\n\n## ".join(part.strip("\n") for part in [head, *sections]) + "\n")
