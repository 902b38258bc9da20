"""Addresses of tracking stores, as MLflow and SQLAlchemy write them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

SQLITE = "sqlite:///"


def local(outputs: Path) -> str:
    """The address of the database in an outputs folder.

    >>> local(Path("/a b/50%"))
    'sqlite:////a%20b/50%25/mlflow.db'
    """
    return of(outputs / "mlflow.db")


def of(database: Path) -> str:
    """The address of a local database."""
    return SQLITE + quote(str(database))


def database(uri: str) -> Path | None:
    """The file of a local database; None for any other address.

    >>> database("sqlite:////a%20b/mlflow.db")
    PosixPath('/a b/mlflow.db')
    """
    return Path(unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None
