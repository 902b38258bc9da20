"""Open MLflow's databases. A new local one is copied from a template if possible.

MLflow 3.17 creates a database by some 70 migrations, which take over a second. If several processes
open an empty database at once, all but one fail, and if the creation is killed, the database cannot
be opened any more. Therefore one process at a time opens a local database, and a new one appears
complete: as a copy of the first one that this version of MLflow created here or, if there is no
intact copy, as one that MLflow creates.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from expkit import cache
from expkit.tracking import address

FILLING_S = (1, 2, 4, 8, 16)
"""Pauses, in seconds, while another process sets up an empty database on a server."""
LONG_PATH = 400
"""Length of a path that is likely why sqlite cannot open it; its limit is about 500."""
PLACE = "UPDATE experiments SET artifact_location = ? WHERE name = 'Default'"
"""Moves MLflow's default experiment, which keeps its files where the database was created."""


def preload() -> None:
    """Import early what MLflow imports at the first request to a database: half a second."""
    import_module("mlflow.store.tracking.sqlalchemy_store")


def client(uri: str) -> MlflowClient:
    """Open a server or a database; a local database that does not exist is created.

    If several processes open an empty database on a server, one sets it up and the others wait.

    Raises:
        OSError: the local database cannot be opened or created.
    """
    if uri.startswith("http"):
        return MlflowClient(uri)
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    file = address.database(uri)
    if file is not None and not file.exists():
        _make(file)
    _connect(uri)
    if file is not None:  # it is complete: nobody is setting it up
        return MlflowClient(uri)
    for pause_s in FILLING_S:
        try:
            return MlflowClient(uri)
        except (IntegrityError, ProgrammingError, MlflowException):
            time.sleep(pause_s)
    return MlflowClient(uri)


def _make(file: Path) -> None:
    """Create a new local database, completely or not at all.

    Each attempt uses a new name, because MLflow keeps connections, by name, to files that are gone.
    """
    for left in file.parent.glob(f"{file.name}.*.new*"):
        left.unlink()
    fresh = file.with_name(f"{file.name}.{uuid.uuid4().hex}.new")
    ready = cache.folder() / f"mlflow-{mlflow.__version__}.db"
    if not _copied(ready, fresh):
        _connect(address.of(fresh))
        MlflowClient(address.of(fresh)).search_experiments(max_results=1)
        _keep(fresh, ready)
    with suppress(sqlite3.Error), closing(sqlite3.connect(fresh)) as database, database:
        database.execute(PLACE, [(file.parent / "mlruns" / "0").as_uri()])
    fresh.replace(file)


def _copied(ready: Path, fresh: Path) -> bool:
    """Copy the template database; return False, and leave no copy, if it is missing or damaged."""
    try:
        shutil.copyfile(ready, fresh)
        with closing(sqlite3.connect(fresh)) as database:
            if database.execute("PRAGMA quick_check").fetchall() != [("ok",)]:
                raise sqlite3.DatabaseError
            database.execute("SELECT version_num FROM alembic_version").fetchone()
    except (OSError, sqlite3.Error):
        fresh.unlink(missing_ok=True)
        return False
    return True


def _keep(made: Path, ready: Path) -> None:
    """Keep a copy of a database that MLflow created, unless the cache cannot be written."""
    with suppress(OSError):
        ready.parent.mkdir(parents=True, exist_ok=True)
        part = ready.with_name(f"{ready.name}.{uuid.uuid4().hex}.new")
        shutil.copyfile(made, part)
        part.replace(ready)


def _connect(uri: str) -> None:
    """Check that a database can be opened or created; MLflow itself would retry for minutes.

    Raises:
        OSError: the local database cannot be opened or created.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    file = address.database(uri)
    try:
        create_engine(uri).connect().close()
    except OperationalError as error:
        if file is None:
            raise
        long = len(os.fsencode(file))
        path = f"a path of {long} characters" if long > LONG_PATH else str(file)
        raise OSError(f"sqlite: {error.orig}: {path}; choose another outputs folder") from error


@contextmanager
def each_statement(progress: Callable[[], None]) -> Iterator[None]:
    """Call `progress` after each SQL statement: a new database may take a minute of them."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def executed(*_: Any) -> None:
        progress()

    event.listen(Engine, "after_cursor_execute", executed)
    try:
        yield
    finally:
        event.remove(Engine, "after_cursor_execute", executed)


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Let one process at a time open a local database: eight at once break its first migration."""
    file = address.database(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
