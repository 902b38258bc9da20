"""MLflow's databases: opened with care, and a new local one copied and not made anew.

Seen in MLflow 3.17. It makes a database by some 70 migrations, which take over a second; of several
processes that open an empty one at once all but one fail; and one that a kill tore apart cannot be
opened any more. So one process at a time opens a local database, and a new one appears whole: a
copy of the first that this version of MLflow made here, or, where there is none that is sound, one
that MLflow makes.
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
"""Pauses while another process fills an empty database of a server."""
LONG_PATH = 400
"""Characters of a path that are likely why sqlite cannot open it: it takes some 500."""
PLACE = "UPDATE experiments SET artifact_location = ? WHERE name = 'Default'"
"""MLflow's own experiment keeps files where the process stood that made the database."""


def preload() -> None:
    """Import what MLflow would at the first request to a database: half a second, now to spare."""
    import_module("mlflow.store.tracking.sqlalchemy_store")


def client(uri: str) -> MlflowClient:
    """Open a server's address or a database, which is made if it is a local one.

    Of several that open an empty database of a server at once one fills it; the others wait.

    Raises:
        OSError: there can be no local database of this name.
    """
    if uri.startswith("http"):
        return MlflowClient(uri)
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    file = address.database(uri)
    if file is not None and not file.exists():
        _make(file)
    _connect(uri)
    if file is not None:  # made whole: nobody is filling it
        return MlflowClient(uri)
    for pause_s in FILLING_S:
        try:
            return MlflowClient(uri)
        except (IntegrityError, ProgrammingError, MlflowException):
            time.sleep(pause_s)
    return MlflowClient(uri)


def _make(file: Path) -> None:
    """Make a new local database, whole or not at all.

    Each attempt has a name of its own: MLflow keeps connections, by name, to what is gone.
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
    """Copy the database that is kept, if it is a sound one."""
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
    """Keep a copy of what MLflow made, for the next one; a cache that cannot be written is none."""
    with suppress(OSError):
        ready.parent.mkdir(parents=True, exist_ok=True)
        part = ready.with_name(f"{ready.name}.{uuid.uuid4().hex}.new")
        shutil.copyfile(made, part)
        part.replace(ready)


def _connect(uri: str) -> None:
    """See that there is a database, or can be one: MLflow would try for minutes.

    Raises:
        OSError: there can be no local database of this name.
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
    """A new database takes hundreds of statements, and on a slow disk a minute: each is told of."""
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
    """One process opens a local database at a time: eight at once break its first migration."""
    file = address.database(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
