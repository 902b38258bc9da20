"""Kill sweeps at random moments and go on with them: `python -m benchmarks.sweeps.chaos`.

A round starts a sweep of 60 cells, kills (SIGKILL) workers, MLflow's process and the parent at
random moments, and calls `expkit resume` until that says that all is done. Then every cell has to
have one finished run, in its journals and in MLflow, with the same loss; every journal has to have
its end; and nothing may still run or be marked as running. The exit status is 1 if that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.sweeps.page import table, write_section
from benchmarks.sweeps.place import Place

CELLS = 60
WORDS = (
    "-m",
    "problem=linear",
    "steps=20",
    "seed=1,2,3",
    "optimizer=sgd,adam",
    "optimizer.lr=" + ",".join(f"{0.001 * k:.3f}" for k in range(1, 11)),
    "measure.repeats_min=2",
    "measure.budget_s=0",
    "measure.warmup=0",
    "tracking.pictures=false",
)
ROLES = {"worker": 6, "parent": 2, "tracker": 2}
"""Which processes are killed, and how often in ten kills."""
KILLS = 12
"""Most kills in a round; after these the sweep is left alone."""
RESUMES = 30
"""Most resumes in a round."""


@dataclass
class Round:
    """What was done to a sweep, and what is wrong with it in the end."""

    timed: bool
    killed: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    attempts: int = 0
    finished: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def play(place: Place, timed: bool, rng: random.Random) -> Round:
    """One sweep, killed and resumed to its end."""
    played, begun = Round(timed), time.monotonic()
    process = place.start(*WORDS, f"sweep.timing={timed}")
    while not _survives(process, place, played, rng):
        if not any(place.outputs.glob("sweeps/*/*/sweep.json")):  # killed before there was one
            process = place.start(*WORDS, f"sweep.timing={timed}")
            continue
        if played.resumes == RESUMES:
            played.wrong.append(f"not done after {RESUMES} resumes: {place.said()}")
            break
        played.resumes += 1
        process = place.start("resume")
    played.wrong += [f"{role} {pid} still lives" for pid, role in place.left().items()]
    _check(place, played)
    played.seconds = time.monotonic() - begun
    return played


def _survives(
    process: subprocess.Popen[bytes], place: Place, played: Round, rng: random.Random
) -> bool:
    """Kill processes at random until the command ends; return whether it ended with all done."""
    while process.poll() is None:
        if played.killed.total() == KILLS:
            process.wait()
            break
        wait_s = rng.uniform(0, 3 if played.timed else 1.5)
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        (role,) = rng.choices(list(ROLES), list(ROLES.values()))
        found = [pid for pid, its in place.processes().items() if its == role]
        if found and process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
                played.killed[role] += 1
    return process.returncode == 0


def _check(place: Place, played: Round) -> None:
    """Note whatever is not as promised."""
    sweeps = [file.parent for file in place.outputs.glob("sweeps/*/*/sweep.json")]
    if len(sweeps) != 1:
        played.wrong.append(f"{len(sweeps)} sweeps")
        return
    losses: dict[str, list[float]] = {str(index): [] for index in range(CELLS)}
    for file in sweeps[0].glob("*/journal.jsonl"):
        played.attempts += 1
        records = _records(file, played)
        tags: dict[str, str] = {}
        for record in records:
            tags |= record.get("tags", {})
        if not records or records[-1]["kind"] != "end":
            played.wrong.append(f"{file} has no end")
        if tags.get("outcome") == "ok":
            (loss,) = [r["values"][0] for r in records if r.get("key") == "final/loss"]
            losses[tags["sweep.cell"]].append(loss)
    played.wrong += [f"cell {k} finished {len(v)} times" for k, v in losses.items() if len(v) != 1]
    played.finished = sum(len(found) == 1 for found in losses.values())
    try:
        kept = _in_mlflow(place.database, played)
    except sqlite3.Error as error:
        played.wrong.append(f"MLflow's database: {error}")
        return
    played.wrong += [f"cell {k}: MLflow has {kept[k]}" for k in losses if kept[k] != losses[k]]


def _records(file: Path, played: Round) -> list[dict[str, Any]]:
    records = []
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            records.append(json.loads(line))
        except ValueError:
            played.wrong.append(f"{file} has a torn line")
    return records


def _in_mlflow(database: Path, played: Round) -> dict[str, list[float]]:
    """The losses of every cell's finished runs."""
    query = """
        select r.run_uuid, r.status, t.value, m.value from runs r
        join tags t on t.run_uuid = r.run_uuid and t.key = 'sweep.cell'
        left join latest_metrics m on m.run_uuid = r.run_uuid and m.key = 'final/loss'
    """
    found: dict[str, list[float]] = {str(index): [] for index in range(CELLS)}
    with closing(sqlite3.connect(database)) as connection:
        for run, status, cell, loss in connection.execute(query):
            if status == "RUNNING":
                played.wrong.append(f"run {run} of cell {cell} is RUNNING")
            if status == "FINISHED":
                found[cell].append(loss)
    return found


def row(number: int, played: Round) -> list[object]:
    """A line of the table."""
    return [
        number,
        "yes" if played.timed else "no",
        *(played.killed[role] for role in ROLES),
        played.resumes,
        played.attempts,
        f"{played.finished} of {CELLS}",
        len(played.wrong) or "none",
        f"{played.seconds:.0f}",
    ]


HEAD = [
    "round",
    "timed",
    *(f"{role}s killed" for role in ROLES),
    "resumes",
    "runs begun",
    "finished once",
    "faults",
    "s",
]


def main() -> int:
    """Print the table and, if asked, write it into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps.chaos")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a Markdown page, its section is replaced")
    given = parser.parse_args()
    rows, good = [], True
    for number in range(1, given.rounds + 1):
        rng = random.Random(f"{given.seed} {number}")
        with TemporaryDirectory() as folder:
            place = Place(Path(folder))
            try:
                played = play(place, bool(number % 2), rng)
            finally:
                place.end()
        good &= not played.wrong
        rows.append(row(number, played))
        print(*table(HEAD, rows)[0 if number == 1 else -1 :], sep="\n", flush=True)
        print(*played.wrong, sep="\n", end="\n" * bool(played.wrong), flush=True)
    if given.output:
        about = (
            f"sweeps of {CELLS} cells, killed (SIGKILL) at random moments and resumed. A fault is "
            "a cell\nthat has not exactly one finished run, in its journals and in MLflow with the "
            "same loss, a journal\nthat is torn or has no end, a run left RUNNING, a process left "
            "behind."
        )
        write_section(
            given.output, "Killed", "python -m benchmarks.sweeps.chaos", about, table(HEAD, rows)
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
