"""The commands beside the run."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from expkit.cli.addresses import Unmet, check_option, confirmed
from expkit.cli.status import FAILED, MISUSED, OK, print_error
from expkit.config import default_outputs
from expkit.errors import UserError
from expkit.outcome import Outcome
from expkit.tracking import address, journal, known
from expkit.tracking.address import one_line

if TYPE_CHECKING:
    from expkit.tracking.upload import Uploader

COMPARE = """\
Compare B with A.

  expkit compare RUN RUN          two stored runs: their folders or MLflow ids
  expkit compare backend=numpy backend=torch problem=sine
                                  two cells, measured now and in turn; quote a side of several
                                  words; words after the two sides apply to both

The two cells share a process. With --isolate each has one of its own, so that threads of one cannot
work beside the other; that is the default where a backend is not expkit's own.

Exit status: 0 if B is FASTER or the SAME, 1 if it is SLOWER or one of them failed, 3 if it CAN'T
be TOLD, 4 if their work is UNLIKE or their times may not be compared.
"""


SYNC = """\
Send to MLflow what is not there yet. Runs made with tracking=none are sent only where one's own
folder is named, or --uri is given.
"""

EXPORT = """\
Write figures for other tools: a row for each run, in seconds.

csv, parquet and json have every figure of a run, and the keys in which runs differ. md and latex
have the table that a sweep prints, for a pull request or a paper.
"""
FORMATS = ("csv", "json", "parquet", "md", "latex")

CROSSOVER = """\
Search for the value of a key at which one of two cells overtakes the other.

  expkit crossover a=numpy b=torch over=problem.n problem=sine
  expkit crossover a=numpy b='backend=torch backend.threads=1' over=problem.n to=1e6

At each value both are measured in turn: first at five values from one end of the range to the
other, then around the first crossing, until it lies between two values that differ by a tenth, or
it cannot be located more closely. The range is from a tenth of the key's value to ten times it. The
runs are kept in outputs/comparisons; with tracking=mlflow they are sent too.

Exit status: 0 if there is an answer, including that there is none in the range; 3 if it CAN'T be
TOLD at any value which is faster; 4 if one of them failed or their work is UNLIKE.
"""
APART = "measure each cell in a process of its own while the other sleeps, or both in one"
VERBOSE = "also show how the figures were obtained"


class Parser(argparse.ArgumentParser):
    """A parser that reports bad input in one line."""

    def error(self, message: str) -> NoReturn:
        said = message.removeprefix("argument ")
        raise SystemExit(print_error(f"{said}; see {self.prog} --help", MISUSED))


def command(argv: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    parser = Parser(prog="expkit")
    commands = parser.add_subparsers(dest="command", required=True)
    add_compare(commands)
    add_crossover(commands)
    commands.add_parser("doctor", help="say what makes timing noisy here, and what to do")
    ui = commands.add_parser("ui", help="open MLflow's page on the runs kept here")
    ui.add_argument("--port", type=_port, default=5000, help="0 for one that is free")
    ui.add_argument("--outputs", type=Path, default=default_outputs())
    add_draw(commands)
    add_export(commands)
    add_report(commands)
    add_resume(commands)
    sync = commands.add_parser(
        "sync", help="send to MLflow what is not there yet", description=SYNC
    )
    sync.add_argument("folder", type=Path, nargs="?", help="one run's folder, or any above it")
    sync.add_argument("--uri", help="send to this tracking address, not to the one the runs name")
    sync.add_argument("--outputs", type=Path, default=default_outputs())
    own = commands.choices[argv[0]]  # a parser with commands does not take words after flags
    given = own.parse_intermixed_args(argv[1:], argparse.Namespace(command=argv[0]))
    try:
        check_option(getattr(given, "uri", None))
    except UserError as error:
        return print_error(error)
    if given.command == "compare":
        from expkit.cli.compare import compare

        return compare(
            given.a,
            given.b,
            given.words,
            given.outputs.absolute(),
            given.threshold,
            isolate=given.isolate,
            verbose=given.verbose,
        )
    if given.command == "crossover":
        from expkit.cli.crossover import crossover

        return crossover(given.words, given.outputs.absolute(), given.isolate)
    if given.command == "doctor":
        from expkit.cli.doctor import doctor

        return doctor()
    if given.command == "draw":
        return _draw(given.folders, allow_target=given.allow_target)
    if given.command == "export":
        from expkit.cli.export import export

        return export(given.what, given.rows, given.format, given.output, given.outputs.absolute())
    if given.command == "report":
        from expkit.cli.report import report

        return report(given.what, given.output, given.outputs.absolute())
    if given.command == "resume":
        return _resume(given)
    if given.command == "ui":
        from expkit.cli.ui import ui as open_page

        return open_page(given.outputs.absolute(), given.port)
    outputs = given.outputs.absolute()
    return _sync((given.folder or outputs).absolute(), given.uri, outputs)


def add_compare(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add `expkit compare` and its help."""
    parser = commands.add_parser(
        "compare",
        help="say which of two cells or runs is faster, if that can be told",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=COMPARE,
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("words", nargs="*", default=[], help="key=value words for both cells")
    parser.add_argument("--verbose", action="store_true", help=VERBOSE)
    parser.add_argument("--threshold", type=_share, help="smallest difference that matters")
    parser.add_argument("--isolate", action=argparse.BooleanOptionalAction, help=APART)
    parser.add_argument("--outputs", type=Path, default=default_outputs())


def add_crossover(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add `expkit crossover` and its help."""
    parser = commands.add_parser(
        "crossover",
        help="find the size beyond which one of two cells is faster",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=CROSSOVER,
    )
    words = "a=..., b=..., over=KEY, perhaps from=... and to=...; words for both cells"
    parser.add_argument("words", nargs="+", metavar="WORD", help=words)
    parser.add_argument("--isolate", action=argparse.BooleanOptionalAction, help=APART)
    parser.add_argument("--outputs", type=Path, default=default_outputs())


def add_draw(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add `expkit draw` and its help."""
    parser = commands.add_parser("draw", help="draw the pictures of stored runs again")
    folders = "runs' folders, or any above them"
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help=folders)
    allowed = "load classes that no installed option names, as allow_target=true did"
    parser.add_argument("--allow-target", action="store_true", help=allowed)


def add_export(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add `expkit export` and its help."""
    parser = commands.add_parser(
        "export",
        help="write a sweep's, an experiment's or a run's figures for other tools",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=EXPORT,
    )
    what = "a sweep's id or folder, a run's folder or MLflow id, or an experiment's name"
    parser.add_argument("what", nargs="?", help=f"{what}; by default the last sweep")
    parser.add_argument("--format", choices=FORMATS, help="by default the output's suffix, or csv")
    kind = parser.add_mutually_exclusive_group()
    for option, rows, about in (
        ("--samples", "repeats", "a row for each timed repeat"),
        ("--curves", "steps", "a row for each step, with its loss"),
    ):
        kind.add_argument(option, dest="rows", action="store_const", const=rows, help=about)
    parser.set_defaults(rows="rows")
    parser.add_argument("--output", type=Path, metavar="FILE", help="by default it is printed")
    parser.add_argument("--outputs", type=Path, default=default_outputs())


def add_report(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add `expkit report` and its help."""
    parser = commands.add_parser("report", help="write the page of sweeps or of an experiment")
    what = "ids or folders of sweeps, or experiments' names; by default the last sweep"
    parser.add_argument("what", nargs="*", metavar="WHAT", help=what)
    place = "by default report.html in the sweep's folder, or in OUTPUTS for several"
    parser.add_argument("--output", type=Path, metavar="FILE", help=place)
    parser.add_argument("--outputs", type=Path, default=default_outputs())


def add_resume(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add `expkit resume` and its help."""
    parser = commands.add_parser(
        "resume",
        help="run the cells of a sweep that are missing or failed, or go on with a run",
        usage="%(prog)s [SWEEP|RUN] [hydra.launcher.KEY=VALUE ...] [--retry OUTCOME] [OPTIONS]",
    )
    words = (
        "the sweep's id or folder, by default the last one, or the folder of a run with a "
        "checkpoint; words for the launcher"
    )
    parser.add_argument("words", nargs="*", metavar="SWEEP", help=words)
    again = (
        "also run cells again that ended with this outcome: "
        "diverged, wrong_answer, not_synchronized, off_the_clock or beyond_limit"
    )
    parser.add_argument("--retry", type=_outcomes, action="append", default=[], help=again)
    parser.add_argument("--uri", help="the sweep's tracking address with its password, or another")
    parser.add_argument(
        "--allow-target",
        action="store_true",
        help="load classes that no installed option names, as allow_target=true did",
    )
    parser.add_argument("--verbose", action="store_true", help=VERBOSE)
    parser.add_argument("--outputs", type=Path, default=default_outputs())


def _resume(given: argparse.Namespace) -> int:
    """Go on with a sweep, or with a single run."""
    from expkit.cli.sweep import resume as go_on
    from expkit.sweeps.manifest import is_for_hydra

    sweeps = [word for word in given.words if not is_for_hydra(word)]
    if len(sweeps) > 1:
        return print_error(f"resume: got {len(sweeps)} sweeps, takes one")
    typed = [word for word in given.words if is_for_hydra(word)]
    if sweeps and (Path(sweeps[0]) / journal.FILE).is_file():
        from expkit.cli.run import resume as go_on_with

        if typed or given.retry:
            word = typed[0] if typed else "--retry"
            return print_error(f"resume: got {word} for a run; only a sweep takes it")
        return go_on_with(
            Path(sweeps[0]).absolute(),
            given.outputs.absolute(),
            uri=given.uri,
            allow_target=given.allow_target,
            verbose=given.verbose,
        )
    return go_on(
        next(iter(sweeps), None),
        given.outputs.absolute(),
        typed,
        retry=[outcome for some in given.retry for outcome in some],
        uri=given.uri,
        allow_target=given.allow_target,
        verbose=given.verbose,
    )


def _draw(places: Sequence[Path], *, allow_target: bool) -> int:
    """Draw every run in or below these folders; print each picture's path, or what is wrong."""
    from expkit.config import require_installed, thaw
    from expkit.report import plots

    status, count = OK, 0
    for folder in sorted({file.parent for place in places for file in place.rglob(journal.FILE)}):
        count += 1
        try:
            run, problem = journal.opening(folder), None
            if run and "cell" in run:  # journals have it from version 2 on
                if not allow_target:
                    require_installed(run["cell"]["config"], "expkit draw --allow-target")
                problem = thaw(run["cell"]).workload.problem
            for name in plots.draw(folder, problem):
                print(folder.absolute() / name)
        except Exception as error:  # whatever it is, it concerns this run alone
            status = print_error(f"{folder}: {one_line(error)}", FAILED)
    return status if count else print_error(f"draw: no run in {', '.join(map(str, places))}")


def _outcomes(words: str) -> list[str]:
    known = [outcome for outcome in Outcome if outcome not in (Outcome.OK, Outcome.RUNNING)]
    for word in words.split(","):
        if word not in known:
            takes = f"one or several of {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"got {word!r}, takes {takes}")
    return words.split(",")


def _sync(place: Path, uri: str | None, outputs: Path) -> int:
    from expkit.tracking.sync_state import pending
    from expkit.tracking.upload import Uploader, is_unanswered

    if not place.is_dir():
        return print_error(f"{place}: no such folder")
    uploader, status, count = Uploader(), OK, 0
    refused: set[str] = set()
    mute: Counter[str] = Counter()
    private = 0
    sweeps: dict[Path, str] = {}
    for folder in pending(place, uri and address.kept(uri)):
        named = whole = uri or ""
        try:
            if not _may_be_sent(folder):
                continue
            if not uri and folder != place and _is_private(folder):
                private += 1
                continue
            named = uri or journal.address(folder)
            if named in refused:
                continue
            if named in mute:
                mute[named] += 1
                continue
            if uri:
                known.remember(uri, folder, outputs)
            whole = uri or confirmed(named, folder, outputs)
            run_id = uploader.send(folder, whole)
        except Unmet as error:
            refused.add(named)
            status = print_error(error, MISUSED)
        except Exception as error:  # whatever MLflow, its server or a file raises
            if isinstance(error, UserError):  # its line names the file
                said = str(error)
            else:
                said = f"{folder}: {address.explain(error, whole)}"
            status = max(status, print_error(said, FAILED))
            if is_unanswered(error):
                mute[named] = 0
        else:
            count += 1
            print(f"{folder}: sent as run {run_id}")
            sweeps[folder.parent] = whole
    for named, left in mute.items():
        if left:
            runs = f"{left} more {'run' if left == 1 else 'runs'}"
            print_error(f"not sent: {runs}; {address.kept(named)} does not answer", FAILED)
    _describe(sweeps, uploader)
    if count:
        print(f"sent {count} {'run' if count == 1 else 'runs'}")
    elif status == OK and not private:
        print(f"nothing to send: all that has ended in {place} is in MLflow")
    if private:
        runs = f"{private} {'run' if private == 1 else 'runs'}"
        print(f"left alone: {runs} made with tracking=none; name a run's folder, or give --uri")
    return status


def _describe(folders: Mapping[Path, str], uploader: Uploader) -> None:
    """Show the newest of these sweeps above its runs in MLflow; other folders are left out.

    Args:
        folders: each with the whole address that its runs were sent to.
    """
    from expkit import door
    from expkit.sweeps import manifest

    sweeps = [folder for folder in folders if (folder / manifest.FILE).is_file()]
    if not sweeps:
        return
    newest = max(sweeps, key=lambda folder: folder.parts[-2:])
    try:
        found = door.load(newest)
        assert isinstance(found, door.Sweep)
        for _, experiment in found.manifest.experiments():
            text = door.described(found)
            uploader.describe(folders[newest], experiment, found.manifest.id, text)
    except Exception as error:  # the runs are there all the same
        said = address.explain(error, folders[newest])
        print_error(f"{newest}: its tables are not above its runs in MLflow: {said}", OK)


def _may_be_sent(folder: Path) -> bool:
    """Whether a run has begun and ended; print a line if it has not."""
    if journal.opening(folder) is None:
        print(f"{folder}: killed before its run began; there is nothing to send")
        return False
    if not journal.close_if_orphaned(folder):
        print(f"{folder}: still running")
        return False
    return True


def _is_private(folder: Path) -> bool:
    """Whether a run was made with `tracking=none`."""
    run = journal.opening(folder)
    return run is not None and run["params"].get("tracking.kind") == "none"


def _port(word: str) -> int:
    with suppress(ValueError):
        if 0 <= (number := int(word)) < 65536:
            return number
    takes = "a number from 1 to 65535, or 0 for a port that is free"
    raise argparse.ArgumentTypeError(f"got {word!r}, takes {takes}")


def _share(word: str) -> float:
    with suppress(ValueError):
        if 0 < (share := float(word)) < 1:
            return share
    raise argparse.ArgumentTypeError(f"got {word!r}, takes a number between 0 and 1")
