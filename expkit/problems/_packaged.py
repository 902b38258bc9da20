"""Data sets that scikit-learn packages, so that they need no network."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from expkit.contracts import HostArray
from expkit.errors import Unavailable

HELD_OUT = 0.2
"""The share of the rows that no step sees."""


def check_installed() -> None:
    """See that the data can be loaded.

    Raises:
        Unavailable: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise Unavailable(
            "scikit-learn, which packages its data, is not installed", "pip install 'expkit[data]'"
        )


def load(name: str) -> tuple[HostArray, HostArray]:
    """The rows of a data set, of shape (rows, columns), and their targets, of shape (rows,)."""
    check_installed()
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def diabetes() -> dict[str, HostArray]:
    """`x` and `y` of the diabetes data, each column of mean 0 and variance 1."""
    x, y = load("diabetes")
    return {"x": (x - x.mean(axis=0)) / x.std(axis=0), "y": (y - y.mean()) / y.std()}


def split(
    x: HostArray, y: HostArray, rng: np.random.Generator
) -> tuple[HostArray, HostArray, HostArray, HostArray]:
    """Rows and targets to learn from, and rows and targets that are held out, at random."""
    order = rng.permutation(len(x))
    kept = len(x) - round(HELD_OUT * len(x))
    seen, held = order[:kept], order[kept:]
    return x[seen], y[seen], x[held], y[held]
