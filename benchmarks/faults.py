"""Run planted faults and honest twins on several problems: `python -m benchmarks.faults`.

A fault is caught if no time is given for it: the run is refused, or it is marked as not like for
like. A twin has to be accepted. The exit status is 1 if one of them does not end as it should.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import expkit
from benchmarks import planted
from benchmarks.load import load
from benchmarks.machine import machine
from benchmarks.planted.kinds import CELLS

WORDS = (
    "backend.threads=1",  # threads that wait for a busy core make a step ten times as long
    "measure.repeats_min=6",
    "measure.repeats_max=6",
    "measure.repeats_per_placement=1",
    "tracking=none",
    "tracking.pictures=false",
)
SHIPPED = {
    "numpy": ("backend=numpy",),
    "numpy_float32": ("backend=numpy", "backend.dtype=float32"),
    "torch": ("backend=torch",),
    "torch_float32": ("backend=torch", "backend.dtype=float32"),
}
"""Twins that are not planted programs: the backends that come with expkit."""
UNLIKE = "not like for like"
NO_GATE = ("failed", "endless")
HEAD = [
    "# Planted faults",
    "",
    "Written by `python -m benchmarks.faults --output FILE`: a backend with one fault at a time",
    "(`benchmarks/planted/`), on several problems. Where the outcome is not ok, no speed is shown",
    "and the exit status is 1; what is not like for like gets no verdict. Honest twins, programs",
    "that look odd and keep to the contract, have to be ok.",
    "",
]
COLUMNS = ["| kind | problem | outcome | reason |", "| --- | --- | --- | --- |"]
METADATA = "Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n"
ENTRY = "[expkit.plugins]\nplanted = planted_plugin\n"
BURST_S = 0.05


@dataclass(frozen=True)
class Case:
    """A kind of program on a problem.

    Attributes:
        words: the words of the command line.
    """

    kind: str
    cell: str
    words: tuple[str, ...]
    honest: bool


@dataclass(frozen=True)
class Found:
    """The result of a case.

    Attributes:
        outcome: the run's; UNLIKE if it is ok but marked so; `endless` if there was none in time.
        reason: why it is not ok.
        seconds: the time of a repeat, if one was given.
    """

    outcome: str
    reason: str
    seconds: float | None = None

    def is_right(self, case: Case) -> bool:
        """Whether a twin is ok, or a fault was refused by a check; a crash or a hang is not."""
        accepted = self.outcome == "ok"
        return accepted if case.honest else not accepted and self.outcome not in NO_GATE


def cases() -> Iterator[Case]:
    """Yield all cases, the honest ones first."""
    left_out = lacking()
    for honest, kinds in ((True, planted.TWINS), (False, planted.FAULTS)):
        for name, kind in kinds.items():
            for cell in () if name in left_out else kind.cells:
                words = ("backend=planted", f"backend.fault={name}", *kind.words)
                yield Case(name, cell, _words(words, cell), honest)
    for name, words in SHIPPED.items():
        if find_spec(name.partition("_")[0]):
            for cell in ("sine", "linear", "large_dot", "matmul"):
                yield Case(name, cell, _words(words, cell), honest=True)


def lacking() -> dict[str, str]:
    """The kinds that cannot be tried here, each with the package that is not installed."""
    every = (planted.TWINS | planted.FAULTS).items()
    return {name: kind.needs for name, kind in every if kind.needs and not find_spec(kind.needs)}


def _words(own: tuple[str, ...], cell: str) -> tuple[str, ...]:
    """Return a cell's words; a kind's own words replace those of the same key."""
    words = (*WORDS, *CELLS[cell].split(), *own)
    return tuple({word.partition("=")[0]: word for word in words}.values())


def install(site: Path) -> None:
    """Install the plugin as a distribution in this folder."""
    about = {"METADATA": METADATA, "entry_points.txt": ENTRY}
    files = {f"planted_plugin/{k}": v for k, v in planted.files("planted_plugin").items()}
    for name, text in (files | {f"planted-1.0.dist-info/{k}": v for k, v in about.items()}).items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)


def run_here(case: Case, folder: Path, deadline_s: float) -> Found:
    """Run a case in a fork of this process, so that nothing of it outlives the case."""
    fork = multiprocessing.get_context("fork")
    found, its = fork.Pipe(duplex=False)
    process = fork.Process(target=_run, args=(case, folder, its))
    process.start()
    its.close()
    ends = found.poll(deadline_s)
    try:
        return found.recv() if ends else Found("endless", f"no outcome after {deadline_s:.0f} s")
    except EOFError:
        return Found("failed", "the process ended")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()


def _run(case: Case, folder: Path, pipe: Connection) -> None:
    os.setpgid(0, 0)
    try:
        run = expkit.run(expkit.cell(*case.words), here=True, folder=folder)
    except Exception as error:  # a planted program that crashes is reported like any other
        pipe.send(Found("failed", f"{type(error).__name__}: {error}"))
        return
    if run.outcome == "ok" and run.unlike:
        pipe.send(Found(UNLIKE, "; ".join(run.unlike), run.seconds))
    else:
        pipe.send(Found(run.outcome, run.reason, run.seconds))


def run_command(case: Case, folder: Path, deadline_s: float) -> Found:
    """Run a case by the command line, and read the result from the run's journal."""
    env = {**os.environ, "EXPKIT_OUTPUTS": str(folder)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))
    words = [sys.executable, "-m", "expkit", *case.words]
    folder.mkdir(parents=True)
    with subprocess.Popen(
        words,
        env=env,
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        process_group=0,
    ) as process:
        try:
            _, complaint = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Found("endless", f"no outcome after {deadline_s:.0f} s")
    tags: dict[str, str] = {}
    for journal in folder.rglob("journal.jsonl"):
        for line in journal.read_text().splitlines():
            tags |= json.loads(line).get("tags", {})
    if process.returncode not in (0, 1) or "outcome" not in tags:
        return Found("failed", complaint.strip().rpartition("\n")[2])
    if tags["outcome"] == "ok" and "parity" in tags:
        return Found(UNLIKE, tags["parity"].removeprefix(f"{UNLIKE}: "))
    return Found(tags["outcome"], tags.get("reason", ""))


def main() -> int:
    """Run all cases, print the table and, if asked, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--kinds", nargs="+", metavar="NAME", help="these alone, such as 'lazy_*'")
    parser.add_argument(
        "--problems", nargs="+", metavar="NAME", help="these alone, such as 'sine*'"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often, one after the other")
    parser.add_argument("--load", action="store_true", help="with a process that takes half a core")
    parser.add_argument("--command", action="store_true", help="by the command line, 2 s more each")
    parser.add_argument("--deadline", type=float, default=60.0, metavar="S", help="of one of them")
    parser.add_argument("--output", type=Path, help="a Markdown file to write")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the running case is ended too
    lines: list[str] = []
    wrong: list[str] = []
    started, tried = perf_counter(), 0
    with TemporaryDirectory() as place, load(BURST_S, BURST_S, processes=int(given.load)):
        install(Path(place) / "site")
        sys.path.insert(0, str(Path(place) / "site"))
        run = run_command if given.command else run_here
        print("\n".join(COLUMNS))
        for turn in range(given.rounds):
            for case in cases():
                if not (_is_among(case.kind, given.kinds) and _is_among(case.cell, given.problems)):
                    continue
                tried += 1
                before = perf_counter()
                found = run(case, Path(place) / str(tried), given.deadline)
                word = found.outcome if found.is_right(case) else f"**{found.outcome}**"
                line = f"| {case.kind} | {case.cell} | {word} | {_cell(found.reason)} |"
                given_s = "" if found.seconds is None else f", gave {found.seconds:.3g} s"
                print(f"{line} took {perf_counter() - before:.1f} s{given_s}", flush=True)
                if turn == 0:
                    lines.append(line)
                if not found.is_right(case):
                    wrong.append(f"round {turn + 1}: {line}")
    rounds = f"{given.rounds} round{'s' if given.rounds > 1 else ''}"
    beside = ", beside a process that takes half a core" if given.load else ""
    count = f"{tried - len(wrong)} of {tried} as they should be, in {rounds}{beside}"
    for name, package in lacking().items():
        count += f"; {name} left out, as {package} is not installed"
    print(f"\n{count}; {perf_counter() - started:.0f} s")
    print("\n".join(wrong))
    if given.output:
        says = [
            f"- `{name}`: {kind.says}" for name, kind in (planted.TWINS | planted.FAULTS).items()
        ]
        text = [*HEAD, *machine(), "", f"{count}. The table shows the first round.", ""]
        text += [*COLUMNS, *lines, "", "## What each does", "", *says]
        given.output.write_text("\n".join(text) + "\n")
    return 1 if wrong else 0


def _is_among(name: str, patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatch(name, pattern) for pattern in patterns)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
