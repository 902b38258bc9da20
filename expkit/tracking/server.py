"""MLflow's server in a child: it ends with whoever started it, and all that it has started."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from expkit import child
from expkit.child import Child, Parent

TERM_S = 3.0
"""How long the server may take to end by itself."""
OPTIONS = f"--app-dir {os.devnull} --log-level warning"
"""Of uvicorn, which would look for modules in the current folder first, and log every request."""
WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Keeps the server from starting eight processes that wait for jobs, such as the evaluation of a
language model (seen in MLflow 3.17)."""


@dataclass(frozen=True)
class Serve:
    """Start the server.

    Attributes:
        words: for `mlflow server`.
    """

    words: Sequence[str]


@dataclass(frozen=True)
class Ended:
    """The server has ended by itself."""

    status: int


REQUESTS = (Serve,)


def start(uri: str, host: str, port: int) -> Child:
    """Start the server of a database. The child answers `Ended` if the server ends by itself."""
    server = Child(__name__, [Ended])
    address = ["--host", host, "--port", str(port), "--backend-store-uri", uri]
    server.tell(Serve(["--workers", "1", *address, "--uvicorn-opts", OPTIONS]))
    return server


def serve(parent: Parent) -> None:
    """Keep the server for as long as the parent listens."""
    request = parent.hear()
    if request is None:
        return
    command = child.command("mlflow", "server", *request.words)
    env = {**WITHOUT_JOBS, **os.environ}
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env)
    threading.Thread(target=lambda: parent.tell(Ended(server.wait())), daemon=True).start()
    parent.hear()
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(TERM_S)
