"""Describe the machine that figures come from, for the pages that show them."""

from __future__ import annotations

import os
from pathlib import Path

from expkit.measure.environment import cpu_model, git_state, versions


def machine() -> list[str]:
    """Return processor, versions and commit, as one list item each."""
    state = git_state(Path(__file__).parent)
    commit = "unknown" if state is None else state["commit"][:12] + "-dirty" * state["dirty"]
    return [
        f"- Machine: {cpu_model()}, {os.cpu_count()} cores, shared with others: trust the ratios.",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in versions().items())}.",
        f"- Commit: {commit}.",
    ]
