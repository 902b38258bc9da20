"""A sweep for a terminal: what will run, what came out, what failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from expkit.measure.statistics import median_interval
from expkit.outcome import FINISHED, Outcome
from expkit.record.stored import Stored
from expkit.remote import SAID
from expkit.report.plots import Course
from expkit.sweeps import seeds
from expkit.sweeps.labels import short
from expkit.sweeps.manifest import Manifest, Planned
from expkit.sweeps.ranking import Entry, Results
from expkit.sweeps.scaling import FEWEST, charts, settings
from expkit.sweeps.seeds import Family
from expkit.units import count, seconds

SHOWN = 30
"""Most rows shown of a problem; `result.txt` in the sweep's folder has all of them."""
WIDE = 3
"""The most cells of a problem in the table of all sizes."""
LAST_LINES = 5
LAST_BYTES = 1000
"""Most that is read of a process's output, of which there may be any amount."""

OBJECTIVES = {"loss": "final loss", "seconds": "median", "target": "time to target"}

Row = Sequence[str]


def planned(manifest: Manifest, todo: Sequence[Planned], *, apart: bool) -> str:
    """Say what will run and what will not; `apart`: whether each cell is a separate job."""
    turns = "timed, each by itself" if apart else "timed in turn"
    how = turns if manifest.sweep.timing else "several at once, without times"
    what = f"{count(len(todo), 'cell')}, {how}"
    if manifest.cells and not todo:
        what = f"nothing is left to run, of {count(len(manifest.cells), 'cell')}"
    lines = [f"sweep {manifest.id}: {what}"]
    shown = list(todo)[:SHOWN]
    lines += [f"  {p.index:>4}  {name(manifest, p)}" for p in shown]
    if len(todo) > SHOWN:
        lines.append(f"        and {len(todo) - SHOWN} more")
    lines += [f"  skipped: {title}: {reason}" for title, reason in manifest.skipped]
    return "\n".join(lines)


def result(found: Results, most: int | None = SHOWN) -> str:
    """Return a table of each problem's cells, the fastest first, or of a search's trials, the best
    first; then every failure.

    Args:
        most: most rows per problem; None for all, with the folder of each run.
    """
    if found.manifest.best:
        return _search(found, most)
    parts, manifest = [], found.manifest
    sizes = by_size(found) if most is not None else None
    if sizes:
        lines = [*_aligned(sizes), *_doubts(found, most)]
        parts.append("\n".join(lines))
    for title, ranked in [] if sizes else found.by_problem():
        head, *rows = compared(manifest, ranked) if most is None else summary(manifest, ranked)
        aim = target(ranked) if manifest.sweep.timing else ""
        head_line = f"{title}; target: {aim}" if aim else title
        lines = [head_line, *_aligned([head, *rows[:most]])]
        if most is not None and len(rows) > most:
            lines.append(f"  and {len(rows) - most} more in {manifest.folder / 'result.txt'}")
        if manifest.sweep.timing:
            lines += doubts(ranked, most)
        if most is None:
            lines += [f"  {e.planned.title}: {e.run.folder}" for e in ranked if e.run]
        parts.append("\n".join(lines))
    said = [f"{chart.title}: {line}" for chart in charts(found) for line in chart.findings]
    parts += ["\n".join(said)] if said else []
    if failed := failures(found):
        parts.append("\n".join(failed))
    return "\n\n".join(parts)


def by_size(found: Results) -> list[Row] | None:
    """Return one table with a row for each value of a number, if problems differ in that alone.

    None where they do not, or the table would be too wide, and for a search, which is ranked.
    """
    if found.manifest.best or any(e.verdict and e.verdict.target for e in found.entries):
        return None
    chosen = {entry.planned.index: settings(entry.planned) for entry in found.entries}
    groups: dict[int, dict[str, Entry]] = {}
    for entry in found.entries:
        groups.setdefault(entry.planned.group, {})[entry.planned.title] = entry
    for group, cells in groups.items():  # the baseline first
        order = sorted(cells, key=lambda title: cells[title].planned.baseline is not None)
        groups[group] = {title: cells[title] for title in order}
    titles = list(next(iter(groups.values()), {}))
    if len(groups) < FEWEST or len(titles) > WIDE or not found.manifest.sweep.timing:
        return None
    if any(list(cells) != titles for cells in groups.values()):
        return None
    if len(found.entries) != len(groups) * len(titles):
        return None
    keys = [key for key in chosen[found.entries[0].planned.index] if _differs(key, chosen, groups)]
    if len(keys) != 1 or not isinstance(next(iter(chosen.values()))[keys[0]], int | float):
        return None
    head = [found.manifest.groups[0].partition(",")[0], *titles[:1]]
    for title in titles[1:]:
        head += [title, f"against {titles[0]}", "verdict"]
    rows: list[Row] = [head]
    for cells in groups.values():
        first, *others = cells.values()
        row = [f"{keys[0]}={short(chosen[first.planned.index][keys[0]])}", _median(first)]
        for entry in others:
            row += [_median(entry), _ratio(entry), entry.standing if entry.held else ""]
        rows.append(row)
    return rows


def _differs(
    key: str, chosen: Mapping[int, Mapping[str, object]], groups: Mapping[int, Mapping[str, Entry]]
) -> bool:
    """Whether a key has another value in each group, and one within it."""
    values = [
        {str(chosen[entry.planned.index].get(key)) for entry in cells.values()}
        for cells in groups.values()
    ]
    return all(len(own) == 1 for own in values) and len(set.union(*values)) > 1


def _median(entry: Entry) -> str:
    if entry.run is None or entry.run.summary is None:
        return entry.outcome
    return seconds(entry.run.summary.median) + ("" if entry.run.is_stable else ", unstable")


def _doubts(found: Results, most: int | None) -> list[str]:
    """List what is doubtful about the cells of all problems, with the problems' titles."""
    lines = []
    for title, ranked in found.by_problem():
        said = (*unlike(ranked), *unstable(ranked))
        lines += [f"  {title}: {line.strip()}" for line in said]
    return lines[:most]


@dataclass(frozen=True)
class Trial:
    """One cell of a search.

    Attributes:
        value: its objective; None if there is none.
        words: the values that were chosen for it, by key; only keys that vary between trials.
    """

    cell: Planned
    outcome: str
    value: float | None
    words: Mapping[str, str]


def trials(found: Results, entries: Sequence[Entry]) -> list[Trial]:
    """Return cells of a search, with what was chosen for them."""
    words = {}
    for entry in found.entries:
        pairs = (word.partition("=") for word in entry.planned.frozen.get("words", ()))
        words[entry.planned.index] = {key: value for key, _, value in pairs}
    chosen = [
        key
        for key in dict.fromkeys(key for own in words.values() for key in own)
        if len(words) == 1 or len({own.get(key) for own in words.values()}) > 1
    ]
    made = []
    for entry in entries:
        value = found.objective(entry)
        own = {key: words[entry.planned.index].get(key, "") for key in chosen}
        made.append(Trial(entry.planned, entry.outcome, value, own))
    return made


def tried(found: Results) -> tuple[str, list[Row]]:
    """Return the title and the table of a search's trials, the best first."""
    title, entries = next(iter(found.by_problem()), ("", []))
    ranked, kind = trials(found, entries), found.manifest.sweep.objective
    chosen = ranked[0].words if ranked else ()
    head = ("trial", OBJECTIVES[kind], *chosen, "outcome")
    rows = [
        (str(t.cell.index), _value(t, kind), *map(_rounded, t.words.values()), t.outcome)
        for t in ranked
    ]
    return title, [head, *rows]


def _search(found: Results, most: int | None) -> str:
    """Return a table of a search's trials, then every failure."""
    manifest = found.manifest
    title, (head, *rows) = tried(found)
    lines = [f"{title}: {count(len(rows), 'trial')}, the {manifest.best} {head[1]} first"]
    lines += _aligned([head, *rows[:most]])
    if most is not None and len(rows) > most:
        lines.append(f"  and {len(rows) - most} more in {manifest.folder / 'result.txt'}")
    lines += [f"  skipped: {title}: {reason}" for title, reason in manifest.skipped][:most]
    if most is None:
        lines += [f"  {e.planned.index}: {e.run.folder}" for e in found.entries if e.run]
    failed = failures(found)
    return "\n".join([*lines, *(["", *failed] if failed else [])])


def course(found: Results) -> Course:
    """Return the data for the picture of a search."""
    every, manifest = trials(found, found.entries), found.manifest
    kind = manifest.sweep.objective
    keys = every[0].words
    numbers = {key: [_number(trial.words[key]) for trial in every] for key in keys}
    floats = [key for key, values in numbers.items() if all(v is not None for v in values)]
    key = floats[0] if len(floats) == len(keys) == 1 else None
    return Course(
        title=found.by_problem()[0][0],
        objective=OBJECTIVES[kind] + ("" if kind == "loss" else " (seconds)"),
        trials=[trial.cell.index for trial in every],
        values=[trial.value if trial.value != math.inf else None for trial in every],
        greatest=manifest.best == "greatest",
        key=key,
        choices=[v for v in numbers[key] if v is not None] if key else [],
    )


def best(found: Results) -> str:
    """Describe the best trial of a search: its objective and its cell."""
    kind = found.manifest.sweep.objective
    ranked = (entry for _, entries in found.by_problem() for entry in entries)
    valued = [t for t in trials(found, list(ranked)) if t.value not in (None, math.inf)]
    if not valued:
        nothing = {"loss": "a loss", "seconds": "a time", "target": "its target"}[kind]
        return f"best: no cell came to {nothing}"
    trial = valued[0]
    said = _value(trial, kind)
    shown = {"loss": f"a final loss of {said}", "target": f"{said} to the target"}.get(kind, said)
    return f"best: {shown}, by {name(found.manifest, trial.cell)} (cell {trial.cell.index})"


def _value(trial: Trial, kind: str) -> str:
    if trial.value is None:
        return ""
    if kind == "loss":
        return f"{trial.value:.6g}"
    return "not reached" if trial.value == math.inf else seconds(trial.value)


def _number(word: str) -> float | None:
    with suppress(ValueError):
        return float(word)
    return None


def _rounded(word: str) -> str:
    """Round a number to six digits, as a sampled one has seventeen."""
    number = _number(word)
    return word if number is None else f"{number:.6g}"


def name(manifest: Manifest, cell: Planned) -> str:
    """Return a cell's problem and what distinguishes the cell from the others."""
    return f"{manifest.groups[cell.group]} · {cell.title}"


def counted(outcomes: Mapping[str, int], damaged: int) -> str:
    """Say how many cells had which outcome.

    >>> counted({"ok": 4, "diverged": 1, "failed": 2, "wrong_answer": 1, "not run": 1}, 0)
    '5 cells finished, 1 of them diverged; 2 failed, 1 wrong answer, 1 not run'
    """
    finished = count(sum(outcomes.get(outcome, 0) for outcome in FINISHED), "cell")
    diverged = outcomes.get(Outcome.DIVERGED, 0)
    head = f"{finished} finished" + (f", {diverged} of them diverged" if diverged else "")
    rest = [f"{n} {o.replace('_', ' ')}" for o, n in outcomes.items() if o not in FINISHED]
    rest += [f"{damaged} damaged"] if damaged else []
    return f"{head}; {', '.join(rest)}" if rest else head


def compared(manifest: Manifest, ranked: Sequence[Entry]) -> list[Row]:
    """Return the table of a problem's cells; without verdicts if no cell has a baseline."""
    timed = manifest.sweep.timing
    rows = [_head(manifest, ranked), *(_row(entry, timed=timed) for entry in ranked)]
    if timed and all(entry.planned.baseline is None for entry in ranked):
        rows = [(*row[:3], *row[5:]) for row in rows]
    if timed and target(ranked):
        first = [_until_target(entry) for entry in ranked]
        both = zip(rows, [UNTIL, *first], strict=True)
        rows = [(row[0], *cells, *row[1:]) for row, cells in both]
    return rows


def summary(manifest: Manifest, ranked: Sequence[Entry]) -> list[Row]:
    """Return the table of a problem's cells, in which those that differ in the seed alone have one
    row; without such cells it is that of `compared`.
    """
    found = seeds.families(ranked)
    return _of_seeds(manifest, ranked, found) if found else compared(manifest, ranked)


def _of_seeds(manifest: Manifest, ranked: Sequence[Entry], found: Sequence[Family]) -> list[Row]:
    timed, aimed = manifest.sweep.timing, bool(target(ranked))
    against = _head(manifest, ranked)[3] if timed else ""
    held = timed and not all(family.is_baseline for family in found)
    head = ["", "seeds"]
    head += ["to target", "over seeds", "reached"] if timed and aimed else []
    head += ["median", "over seeds"] if timed else []
    head += [against, "verdict"] if held else []
    rows: list[Row] = [[*head, "final loss", "outcome"]]
    for family in found:
        row = [family.title, str(len(family.entries))]
        if timed and aimed:
            until = family.until_target
            reached = sum(value < math.inf for value in until)
            row += [*_over_seeds(until), f"{reached} of {len(family.entries)}"]
        row += _over_seeds(family.whole) if timed else []
        row += [*_verdict_of(family)] if held else []
        losses = family.losses
        rows.append([*row, f"{median(losses):.6g}" if losses else "", _outcomes_of(family)])
    return rows


def _outcomes_of(family: Family) -> str:
    found = Counter(entry.outcome for entry in family.entries)
    return next(iter(found)) if len(found) == 1 else ", ".join(f"{n} {o}" for o, n in found.items())


def _over_seeds(values: Sequence[float]) -> tuple[str, str]:
    """Write the median over seeds and its interval, for which six seeds are needed."""
    if not values:
        return "", ""
    interval = median_interval(values)
    said = [_or_not_reached(x) for x in (median(values), *(interval or ()))]
    return said[0], f"{said[1]} to {said[2]}" if interval else "needs 6 seeds"


def _or_not_reached(value: float) -> str:
    return seconds(value) if value < math.inf else "not reached"


def _verdict_of(family: Family) -> tuple[str, str]:
    if family.is_baseline:
        return "", "baseline"
    found = family.verdict
    if found is None:
        return "", "not known"
    low, high = found.interval or (None, None)
    ends = "no interval"
    if low is not None and high is not None:
        ends = f"{low:.2f} to {high:.2f}" if high < math.inf else f"{low:.2f} and more"
    return f"{found.bound} {found.ratio:.3f} ({ends})".lstrip(), found.word


UNTIL = ("to target", "steps")


def target(ranked: Sequence[Entry]) -> str:
    """What the cells of a problem are to reach; empty where there is nothing, or not the same."""
    found = {entry.run.target for entry in ranked if entry.run and entry.is_ok}
    return found.pop() if len(found) == 1 else ""


def _until_target(entry: Entry) -> tuple[str, str]:
    """When a cell reached its target: the median and its interval, and the steps."""
    if entry.run is None or not entry.is_ok:
        return "", ""
    summary, steps = entry.run.target_summary, entry.run.quantities.get("target/steps")
    if steps is None:
        return "not reached", ""
    if summary is None:
        return "", f"{steps:.0f}"
    ends = f"{seconds(summary.low)} to {seconds(summary.high)}"
    return f"{seconds(summary.median)} ({ends})", f"{steps:.0f}"


def _head(manifest: Manifest, ranked: Sequence[Entry]) -> Row:
    if not manifest.sweep.timing:
        return ("", "final loss", "outcome")
    indices = {entry.planned.baseline for entry in ranked}
    names = [set(cell.cell.names.values()) for cell in manifest.cells if cell.index in indices]
    shared = set.intersection(*names) if names else set()
    first = min(ranked, key=lambda entry: entry.planned.index)
    against = [name for name in first.planned.cell.names.values() if name in shared][1:]
    ratio = f"against {' · '.join(against)}" if names else ""
    return ("", "median", "95% interval", ratio, "verdict", "final loss", "outcome")


def _row(entry: Entry, *, timed: bool) -> Row:
    title, run = entry.planned.title, entry.run
    loss = f"{run.loss:.6g}" if run and run.loss is not None else ""
    if not timed:
        return (title, loss if entry.is_ok else "", entry.outcome)
    if run is None or run.summary is None:
        return (title, "", "", "", "", "", entry.outcome)
    summary = run.summary
    ends = f"{seconds(summary.low)} to {seconds(summary.high)}"
    outcome = entry.outcome if run.is_stable else f"{entry.outcome}, unstable"
    return (title, seconds(summary.median), ends, _ratio(entry), entry.standing, loss, outcome)


def _ratio(entry: Entry) -> str:
    if entry.verdict is None:
        return ""
    ends = "no interval"
    if entry.verdict.interval:
        ends = "{:.2f} to {:.2f}".format(*entry.verdict.interval)
    return f"{entry.verdict.bound} {entry.verdict.ratio:.3f} ({ends})".lstrip()


def doubts(ranked: Sequence[Entry], most: int | None) -> list[str]:
    """List which cells are unlike or unstable."""
    return [line for say in (unlike, unstable) for line in lines_of(ranked, say, most)]


def lines_of(
    ranked: Sequence[Entry], say: Callable[[Sequence[Entry]], list[str]], most: int | None
) -> list[str]:
    """List what is said of cells. Of those that differ in the seed alone the first one is listed,
    with the number of the others, unless all lines are asked for.
    """
    found = seeds.families(ranked) if most is not None else []
    if not found:
        return say(ranked)[:most]
    lines = []
    for family in found:
        own = say(family.entries)
        first = [seeds.SEED.sub("", line) for line in own[:1]]
        more = f" (and so with {len(own) - 1} more seeds)"
        lines += [line + more if len(own) > 1 else line for line in first]
    return lines[:most]


def unlike(ranked: Sequence[Entry]) -> list[str]:
    """List where cells differ in their work from their baseline, or from what they say; but not
    where they are compared by the time to a target all the same.
    """
    compared = (entry for entry in ranked if not (entry.verdict and entry.verdict.target))
    unlike = ((entry.planned.title, entry.unlike) for entry in compared)
    return [f"  unlike work: {title}: {'; '.join(lines)}" for title, lines in unlike if lines]


def unstable(ranked: Sequence[Entry]) -> list[str]:
    """List the cells whose times are doubtful, each with every reason."""
    return [
        f"  unstable: {entry.planned.title}: {entry.run.stable}"
        for entry in ranked
        if entry.run and entry.is_ok and not entry.run.is_stable
    ]


def failures(found: Results) -> list[str]:
    """List the cells that diverged or failed, those of equal reason and last output together."""
    alike: dict[tuple[str, ...], list[tuple[Planned, Stored]]] = {}
    for entry in found.entries:
        if entry.run and not entry.is_ok:
            key = (entry.outcome, entry.run.reason, *_last_lines(entry.run.folder))
            alike.setdefault(key, []).append((entry.planned, entry.run))
    failed: list[str] = []
    diverged: list[str] = []
    for (outcome, reason, *said), cells in alike.items():
        lines = diverged if cells[0][1].is_finished else failed
        lines += [f"  {name(found.manifest, cell)}  ({run.folder})" for cell, run in cells]
        lines.append(f"    {outcome}: {reason}")
        lines += [f"    | {line}" for line in said]
    parts = [run for cells in alike.values() for _, run in cells]
    results = sum(run.is_finished for run in parts)
    missing = sum(entry.run is None for entry in found.entries)
    head = [f"{count(results, 'cell')} diverged"] if results else []
    middle = [f"{count(len(parts) - results, 'cell')} failed"] if len(parts) > results else []
    tail = [f"{count(missing, 'cell')} not run"] if missing else []
    return [*head, *diverged, *middle, *failed, *tail]


def _last_lines(folder: Path) -> list[str]:
    """Return the last lines that a run's process printed."""
    said = folder / SAID
    if not said.is_file():
        return []
    with said.open("rb") as file:
        file.seek(max(0, said.stat().st_size - LAST_BYTES))
        return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line}".rstrip() for line in cells]
