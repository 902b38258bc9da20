"""Addresses of tracking stores, as MLflow and SQLAlchemy write them, and what is kept of them.

A password is kept nowhere. Files, names and messages hold an address without it; the whole address
stays in the memory of the process that was given it and of the one that sends to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from socket import gaierror
from urllib.parse import SplitResult, quote, unquote, unquote_plus, urlsplit

SQLITE = "sqlite:///"
DATABASE = "mlflow.db"
VARIABLE = "EXPKIT_TRACKING_URI"
"""The environment variable that holds the tracking address, with its password."""
SECRET = re.compile(
    r"pass|pwd|token|secret|credential|signature|api_?key|access_?key", re.IGNORECASE
)
"""Matches names of query fields, or of fields of an ODBC string, whose value is a password."""
PORT = re.compile(r"\d*(?=[/?#]|$)")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://\S+")
HIDDEN = "***"


def local(outputs: Path) -> str:
    """The address of the database in an outputs folder.

    >>> local(Path("/a b/50%"))
    'sqlite:////a%20b/50%25/mlflow.db'
    """
    return of(outputs / DATABASE)


def of(database: Path) -> str:
    """The address of a local database."""
    return SQLITE + quote(str(database))


def database(uri: str) -> Path | None:
    """The file of a local database; None for any other address.

    >>> database("sqlite:////a%20b/mlflow.db")
    PosixPath('/a b/mlflow.db')
    """
    return Path(unquote(uri.removeprefix(SQLITE))) if uri.startswith(SQLITE) else None


def given() -> str | None:
    """Return the address in the environment variable, if any."""
    return os.environ.get(VARIABLE) or None


def kept(uri: str) -> str | None:
    """Return an address without its password; None if the password cannot be told apart."""
    try:
        return without_password(uri) if uri.isprintable() else None
    except ValueError:
        return None


def readable(uri: str) -> str:
    """The address as libraries take it: with `@`, `/` and the like percent-encoded in a password.

    >>> readable("postgresql://me:p@ss/w:x@host:5432/runs")
    'postgresql://me:p%40ss%2Fw%3Ax@host:5432/runs'
    >>> readable("http://host:5000/a@b")
    'http://host:5000/a@b'
    """
    scheme, _, rest = uri.partition("://")
    user, _, after = rest.partition(":")
    if re.search(r"[/?#@]", user) or "@" not in after or PORT.match(after):
        return uri  # no password stands in it
    before_query, mark, query = after.partition("?")
    if "@" not in before_query:  # the password has a question mark in it
        before_query, mark, query = after, "", ""
    password, _, place = before_query.rpartition("@")
    return f"{scheme}://{user}:{quote(password, safe='%')}@{place}{mark}{query}"


def without_password(uri: str) -> str:
    """What may be kept and shown of an address: all but its password.

    >>> without_password("http://me:p%40ss@host:5000/runs")
    'http://me@host:5000/runs'
    >>> without_password("postgresql://host/runs?user=me&sslpassword=secret")
    'postgresql://host/runs?user=me'

    Raises:
        ValueError: a URL parser cannot read it, or reads a port where a password may stand.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return uri
    parts = _split(readable(uri))
    user, at, host = parts.netloc.rpartition("@")
    port = host.rpartition(":")[2]
    if not at and port.isdecimal() and "@" in parts.path:
        raise ValueError("an @ after the host")
    query = "&".join(field for field in parts.query.split("&") if not _is_secret(field))
    name = user.partition(":")[0]
    return f"{scheme}://{name}{at}{host}{parts.path}{'?' if query else ''}{query}"


def _split(uri: str) -> SplitResult:
    """Split an address. In a database's address `#` is part of the name, not a fragment's start."""
    return urlsplit(uri, allow_fragments=uri.startswith("http"))


def _is_secret(field: str) -> bool:
    """Whether a field of a query is a password, or an ODBC string with one."""
    name, _, value = field.partition("=")
    odbc = (part.partition("=")[0] for part in unquote_plus(value).split(";") if "=" in part)
    return any(SECRET.search(word) for word in (unquote_plus(name), *odbc))


def whole(stored: str, others: Iterable[str | None]) -> str:
    """Return the first of `others` that is `stored` with its password; else `stored` itself."""
    return next((uri for uri in others if uri and kept(uri) == stored), stored)


def scrub(text: str, whole: Iterable[str] = ()) -> str:
    """Return a message without the passwords of the addresses in it.

    >>> scrub("Failed to parse: 'http://me:p/w@host', again")
    "Failed to parse: 'http://me@host', again"

    Args:
        whole: addresses whose passwords are removed wherever they occur.
    """
    for uri in whole:
        for secret in sorted(_secrets(uri), key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return ADDRESS.sub(lambda found: _shown(found[0]), text)


def explain(error: BaseException, uri: str) -> str:
    """Explain why nothing could be sent to an address: the error, and a missing password.

    >>> explain(ConnectionRefusedError(111, "Connection refused"), "http://host:5000")
    'no server answers at http://host:5000: Connection refused'
    """
    parts = _split(readable(uri))
    hint = f"; a password is kept nowhere: give the whole address in {VARIABLE} or with --uri"
    why = _unreachable(error)
    said = f"no server answers at {_shown(uri)}: {why}" if why else scrub(one_line(error), [uri])
    return said + (hint if parts.username and not parts.password else "")


def _unreachable(error: BaseException | None) -> str:
    """Return what the system says of a server that cannot be reached; empty for other errors."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError | gaierror):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return ""


def _shown(uri: str) -> str:
    shown = kept(uri)
    return f"{uri.partition('://')[0]}://{HIDDEN}" if shown is None else shown


def _secrets(uri: str) -> set[str]:
    """Return the passwords in an address, both as written and percent-decoded."""
    parts = _split(readable(uri))
    fields = [field for field in parts.query.split("&") if _is_secret(field)]
    found = {field.partition("=")[2] for field in fields} | {parts.password or ""}
    forms = (form(secret) for secret in found for form in (str, unquote, unquote_plus))
    return set(filter(None, forms))


def one_line(error: BaseException) -> str:
    """An error's type and the first line of what it says, without passwords."""
    said = scrub((str(error).strip().splitlines() or [""])[0])
    return f"{type(error).__name__}: {said if len(said) <= 300 else said[:297] + '...'}"
