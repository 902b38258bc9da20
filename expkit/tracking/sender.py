"""The tracker's process, which imports MLflow and sends runs to it."""

from __future__ import annotations

import gc
import math
import os
import select
import threading
import time
from contextlib import suppress
from pathlib import Path

from expkit.child import Parent
from expkit.errors import UserError
from expkit.tracking import address, journal
from expkit.tracking.imports import uploader
from expkit.tracking.tracker import PATIENCE_S, Allow, Describe, Progress, Send, Sent

REQUESTS = (Allow, Send, Describe)


class _Teller:
    """Tells the parent that MLflow makes progress; ends this process some time after the parent.

    Otherwise a process whose parent was killed could wait for ever for a server that is silent.
    """

    def __init__(self, parent: Parent) -> None:
        self._parent, self._last, self._told = parent, time.monotonic(), -math.inf
        threading.Thread(target=self._outlive, daemon=True).start()

    def __call__(self) -> None:
        self._last = time.monotonic()
        if self._last - self._told > 1:
            self._told = self._last
            self._parent.tell(Progress())

    def _outlive(self) -> None:
        with suppress(ProcessLookupError):
            death = os.pidfd_open(self._parent.pid)
            if os.getppid() == self._parent.pid:
                select.select([death], [], [])
        self._last = time.monotonic()
        while (left_s := self._last + PATIENCE_S - time.monotonic()) > 0:
            time.sleep(left_s)
        os._exit(1)


def serve(parent: Parent) -> None:
    """Answer each request of the parent; then end the journals that it left open."""
    progress = _Teller(parent)
    try:
        to_mlflow, broken = uploader(progress), None
        progress()
    except Exception as error:  # a broken MLflow must not cost the run
        to_mlflow, broken = None, address.one_line(error)
    gc.freeze()  # libraries are kept, what thousands of runs leave is collected
    gc.enable()
    folders: set[Path] = set()
    addresses: dict[str, str] = {}
    failed: dict[Path, Sent] = {}

    def answer(folder: Path, *, last: bool) -> Sent:
        if to_mlflow is None:
            return Sent(None, broken)
        if folder in failed and not last:
            return failed[folder]  # a server that refuses is asked again at the end
        kept = journal.address(folder)
        uri = addresses.get(kept)
        if uri is None:
            return Sent(None, f"nobody gave the address {kept} here")
        try:
            return Sent(to_mlflow.send(folder, uri), None)
        except Exception as error:  # whatever MLflow or its server raises, the parent reports
            failed[folder] = Sent(None, address.explain(error, uri))
            return failed[folder]

    def describe(request: Describe) -> Sent:
        uri = addresses.get(request.kept)
        if to_mlflow is None or uri is None:
            return Sent(None, broken or f"nobody gave the address {request.kept} here")
        try:
            to_mlflow.describe(uri, request.experiment, request.sweep, request.text)
        except Exception as error:  # whatever MLflow or its server raises, the parent reports
            return Sent(None, address.explain(error, uri))
        return Sent(None, None)

    while (request := parent.hear()) is not None:
        if isinstance(request, Allow):
            addresses[request.kept] = request.uri
        elif isinstance(request, Describe):
            parent.tell(describe(request))
        else:
            folders.add(Path(request.folder))
            parent.tell(answer(Path(request.folder), last=request.last))
    for folder in folders:
        with suppress(OSError, UserError):  # disk full (the next start ends it), or damaged
            with journal.locked(folder):
                if left := not journal.is_ended(folder):
                    journal.end_orphan(folder)  # the parent ended in the middle of the run
            if left:
                answer(folder, last=True)
