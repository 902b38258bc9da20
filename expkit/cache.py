"""The user's cache folder, for what is kept between runs and can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Expkit's own folder in the user's cache; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base, "expkit")
    try:
        return Path.home() / ".cache" / "expkit"
    except RuntimeError:  # a user without a home gets a folder that cannot exist
        return Path(os.devnull, "expkit")
