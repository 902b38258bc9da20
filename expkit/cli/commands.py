"""The commands beside the run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from expkit.cli.addresses import Unmet, check_option, confirmed
from expkit.cli.status import FAILED, MISUSED, OK, complain
from expkit.config import default_outputs
from expkit.errors import UserError
from expkit.tracking import address, journal, known
from expkit.tracking.tracker import one_line

COMPARE = """\
Hold B against A.

  expkit compare RUN RUN          two stored runs: their folders or MLflow ids
  expkit compare backend=numpy backend=torch problem=sine
                                  two cells, measured now, their repeats in turn; a side of several
                                  words is quoted, words after the first two are for both

Exit status: 0 if B is FASTER or the SAME, 1 if it is SLOWER or one of them failed, 3 if it CAN'T
be TOLD, 4 if their times may not be compared.
"""


class Parser(argparse.ArgumentParser):
    """Bad input is one line here too."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(complain(f"{message}; see {self.prog} --help", MISUSED))


def command(argv: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    parser = Parser(prog="expkit")
    commands = parser.add_subparsers(dest="command", required=True)
    add_compare(commands)
    commands.add_parser("doctor", help="say what makes timing noisy here, and what to do")
    ui = commands.add_parser("ui", help="open MLflow's page on the runs kept here")
    ui.add_argument("--port", type=_port, default=5000)
    ui.add_argument("--outputs", type=Path, default=default_outputs())
    resume = commands.add_parser("resume", help="run what is missing of a sweep, or failed")
    resume.add_argument("sweep", nargs="?", help="its id or folder; the last one by default")
    resume.add_argument("--uri", help="the tracking address, whole; or another than it began with")
    resume.add_argument(
        "--allow-target",
        action="store_true",
        help="load classes that no installed option names, as allow_target=true did",
    )
    resume.add_argument("--outputs", type=Path, default=default_outputs())
    sync = commands.add_parser("sync", help="send to MLflow what is not there yet")
    sync.add_argument("folder", type=Path, nargs="?", help="one run's folder, or any above it")
    sync.add_argument("--uri", help="another tracking address than the runs were made for")
    sync.add_argument("--outputs", type=Path, default=default_outputs())
    given = parser.parse_args(argv)
    try:
        check_option(getattr(given, "uri", None))
    except UserError as error:
        return complain(error)
    if given.command == "compare":
        from expkit.cli.compare import compare

        outputs = given.outputs.absolute()
        return compare(given.a, given.b, given.words, outputs, given.threshold)
    if given.command == "doctor":
        from expkit.cli.doctor import doctor

        return doctor()
    if given.command == "resume":
        from expkit.cli.sweep import resume as go_on

        return go_on(given.sweep, given.outputs.absolute(), given.uri, given.allow_target)
    if given.command == "ui":
        from expkit.cli.ui import ui as open_page

        return open_page(given.outputs.absolute(), given.port)
    outputs = given.outputs.absolute()
    return _sync((given.folder or outputs).absolute(), given.uri, outputs)


def add_compare(commands: argparse._SubParsersAction[Parser]) -> None:
    """`expkit compare` and its help."""
    parser = commands.add_parser(
        "compare",
        help="say which of two is faster, or that it cannot be told",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=COMPARE,
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("words", nargs="*", help="of the configuration, for both cells")
    parser.add_argument("--threshold", type=_share, help="smallest difference that matters")
    parser.add_argument("--outputs", type=Path, default=default_outputs())


def _sync(place: Path, uri: str | None, outputs: Path) -> int:
    from expkit.tracking.sent import pending
    from expkit.tracking.upload import Uploader

    if not place.is_dir():
        return complain(f"{place}: no such folder")
    uploader, status, count = Uploader(), OK, 0
    refused: set[str] = set()
    for folder in pending(place, uri and address.kept(uri)):
        named = whole = uri or ""
        try:
            if not _may_be_sent(folder):
                continue
            named = uri or journal.address(folder)
            if named in refused:
                continue
            if uri:
                known.remember(uri, folder, outputs)
            whole = uri or confirmed(named, folder, outputs)
            run_id = uploader.send(folder, whole)
        except Unmet as error:
            refused.add(named)
            status = complain(error, MISUSED)
        except Exception as error:  # whatever MLflow, its server or a file raises
            said = address.explain(one_line(error), whole)
            status = max(status, complain(f"{folder}: {said}", FAILED))
        else:
            count += 1
            print(f"{folder}: sent as run {run_id}")
    print(f"{count} sent")
    return status


def _may_be_sent(folder: Path) -> bool:
    """Whether a run has begun and ended; says so where it has not."""
    if journal.opening(folder) is None:
        print(f"{folder}: killed before its run began; there is nothing to send")
        return False
    if not journal.close_if_orphaned(folder):
        print(f"{folder}: still running")
        return False
    return True


def _port(word: str) -> int:
    number = int(word)
    if not 0 < number < 65536:
        raise ValueError
    return number


def _share(word: str) -> float:
    with suppress(ValueError):
        if 0 < (share := float(word)) < 1:
            return share
    raise argparse.ArgumentTypeError(f"got {word!r}, takes a number between 0 and 1")
