"""The user's cache folder: what is kept between runs and can be found again without it."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """Expkit's own folder in it; it may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base, "expkit")
    try:
        return Path.home() / ".cache" / "expkit"
    except RuntimeError:  # a user without a home: a folder that cannot be
        return Path(os.devnull, "expkit")
