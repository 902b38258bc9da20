"""A sweep as one HTML file: what it found first, then the charts, then how to repeat it.

The file needs no network and no script, is read in light and in dark, and can be printed.
"""

from __future__ import annotations

import errno
import html
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from expkit.contracts import HostArray
from expkit.errors import is_disk_full
from expkit.measure.verdict import CANT_TELL, FASTER, SAME, SLOWER, UNLIKE
from expkit.outcome import Outcome
from expkit.record.colours import colours
from expkit.record.curves import grid, shown_steps
from expkit.record.stored import COLOUR, Stored, evaluated_of, losses_of
from expkit.report import breakdown, charts
from expkit.report.charts import Curve, Spread
from expkit.sweeps import profiles, scaling, table
from expkit.sweeps.ranking import Entry, Results
from expkit.sweeps.seeds import families
from expkit.tracking.address import one_line
from expkit.tracking.journal import Journal
from expkit.units import count, percent, seconds

FILE = "report.html"
Learnt = Mapping[int, tuple[HostArray, HostArray]]
"""For each cell that has ended, by its number, the loss of each step and when the step ended."""
NOTHING = (np.empty(0), np.empty(0))
MOST = 60
"""The most cells of a problem in its charts."""
CURVES = 24
"""The most losses in one chart: those of the cells that rank first."""
LONG = 100
"""From so many points on, steps and seconds are on logarithmic scales."""
PROFILED = (
    "Each curve is over the problems and seeds with which all of them ended. The bands are from "
    "resampling problems, and seeds within each: with few problems they are wide, and say nothing "
    "of problems that are unlike these."
)
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --faint: #d5d8dc; --paper: #fff; --keep: 100% }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --faint: #44484f; --paper: #17191c; --keep: 62% }
}
@media print {
  :root { --ink: #000; --faint: #ccc; --paper: #fff; --keep: 100% }
  figure, table { break-inside: avoid }
  details::details-content { content-visibility: visible; block-size: auto }
  i { print-color-adjust: exact; -webkit-print-color-adjust: exact }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.2rem; margin-top: 2.5rem } h3 { font-size: 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.87rem }
th, td { text-align: left; padding: 0.15rem 0.9rem 0.15rem 0; border-bottom: 1px solid var(--faint);
  vertical-align: top; white-space: nowrap }
figure { margin: 0.8rem 0 0; display: inline-block; vertical-align: top; max-width: 100% }
figcaption { font-size: 0.87rem; font-weight: 600 }
svg { max-width: 100%; height: auto; overflow: visible }
svg g:has(> title):hover { filter: contrast(1.6) saturate(1.6) }
i { display: inline-block; width: 0.7em; height: 0.7em; margin-right: 0.4em }
ul.key { list-style: none; padding: 0; margin: 0; font-size: 0.8rem } ul.key li { display: inline;
  margin-right: 1.2em }
pre, code { font-size: 0.82rem; white-space: pre-wrap; overflow-wrap: anywhere }
.wide { overflow-x: auto }
@media print {
  .wide { overflow: visible }
  th, td { white-space: normal }
}
"""


def write_wanted(found: Results) -> tuple[Path | None, str | None]:
    """Write the page of a sweep into its folder, if its cells are to have pictures.

    The first cell's run gets a copy, so that MLflow has the page. Errors do not make the sweep
    fail.

    Returns:
        The file, if it was written; what kept it from being written, if anything did.

    Raises:
        OSError: the disk is full.
    """
    manifest = found.manifest
    first = next((entry.run for entry in found.entries if entry.run), None)
    if first is None or not any(c.frozen["config"]["tracking"]["pictures"] for c in manifest.cells):
        return None, None
    file = manifest.folder / FILE
    try:
        text = page([found])
        for place in (manifest.folder, first.folder):
            fresh = place / f"{FILE}.new"
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(place / FILE)
        with closing(Journal(first.folder)) as journal:
            journal.artifact(FILE)
    except Exception as error:
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        return None, f"no page ({one_line(error)}); write it later: expkit report {manifest.name}"
    return file, None


def page(sweeps: Sequence[Results], runs: Sequence[Stored] = ()) -> str:
    """Return the page of sweeps, which are not compared with each other, and of other runs."""
    alone = len(sweeps) == 1 and not runs
    title = f"Sweep {sweeps[0].manifest.id}" if alone else "expkit"
    body = [f"<h1>{_text(title)}</h1>"]
    if not alone:
        what = [count(len(sweeps), "sweep")] if sweeps else []
        what += [count(len(runs), "other run")] if runs else []
        said = "Times are compared within a sweep, and never from one to another"
        body.append(f"<p>{' and '.join(what)}. {said}, as those were not measured in turn.</p>")
    for found in sweeps:
        body += _sweep(found, headed=not alone)
    if runs:
        body += _runs(runs)
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width">'
    inside = f"<head>{head}</head><body>{''.join(body)}</body>"
    return f'<!DOCTYPE html>\n<html lang="en">{inside}</html>\n'


def findings(found: Results) -> list[tuple[str, str]]:
    """Return what a sweep found: a sentence or two a problem, then one a curve or crossing."""
    return _findings(found, _learnt(found))


def _findings(found: Results, learnt: Learnt) -> list[tuple[str, str]]:
    said = []
    for title, ranked in found.by_problem():
        lines = [_sentence(found, ranked), *_sooner(found, ranked, learnt)]
        if {entry.standing for entry in ranked if entry.verdict} == {UNLIKE}:
            lines = [*lines[1:], lines[0]]  # another optimizer: how soon it learns comes first
        said += [(title, line) for line in lines]
    swept = scaling.charts(found)
    return said + [(chart.title, f"{line}.") for chart in swept for line in chart.findings]


def _learnt(found: Results) -> Learnt:
    """Return the losses of the first cells of each problem, as many as are drawn."""
    shown = (entry for _, ranked in found.by_problem() for entry in ranked[:MOST])
    return {e.planned.index: losses_of(e.run.folder) for e in shown if e.run and e.run.is_finished}


def _sooner(found: Results, ranked: Sequence[Entry], learnt: Learnt) -> list[str]:
    """Say for each baseline which cell with another optimizer reaches its final loss first."""
    reached = _reached(ranked, learnt)
    by_base: dict[int, list[tuple[float, Entry]]] = {}
    for entry in ranked:
        after, base = reached.get(entry.planned.index), entry.planned.baseline
        if after is not None and base is not None:
            by_base.setdefault(base, []).append((after, entry))
    cells, said = {entry.planned.index: entry for entry in ranked}, []
    for base, others in by_base.items():
        name, own = _name(found, cells[base]), reached.get(base)
        after, first = min(others, key=lambda each: each[0])
        if own is None:
            continue
        if after < own:
            times = f"after {seconds(after)}, against {seconds(own)}"
            said.append(f"{_name(found, first)} reaches the final loss of {name} first: {times}.")
        else:
            said.append(f"none reaches the final loss of {name} before it does.")
    return said


def _sentence(found: Results, ranked: Sequence[Entry]) -> str:
    """Say in one sentence what came out for the cells of a problem, the best of which is first."""
    rest = Counter(entry.outcome for entry in ranked if not entry.is_ok)
    tail = "".join(f"; {number} {name.replace('_', ' ')}" for name, number in rest.items())
    if found.manifest.best:
        return f"{count(len(ranked), 'trial')}; {table.best(found)}{tail}."
    timed = [entry for entry in ranked if entry.run and entry.run.summary]
    if any(entry.verdict for entry in timed):
        return f"{_held(found, timed)}{tail}."
    best = timed[0] if timed else ranked[0]
    if best.run and best.run.summary:
        least = ", the least" if len(timed) > 1 else ""
        said = f"{_name(found, best)} takes {seconds(best.run.summary.median)}{least}"
        return f"{said}; none is compared with another{tail}."
    if best.is_ok and best.run and best.run.loss is not None:
        return f"{_name(found, best)} has the least final loss, {best.run.loss:.6g}{tail}."
    return f"there is nothing to compare{tail}."


def _held(found: Results, timed: Sequence[Entry]) -> str:
    """Say how cells compare with their baselines."""
    held = [entry for entry in timed if entry.verdict]
    words = Counter(entry.standing for entry in held)
    indices = {entry.planned.baseline for entry in held}
    bases = [entry for entry in found.entries if entry.planned.index in indices]
    against = _name(found, bases[0]) if len(bases) == 1 else "its baseline"
    others = [f"{words[word]} {word}" for word in (SLOWER, SAME, CANT_TELL, UNLIKE) if words[word]]
    if words[FASTER]:
        best = next(entry for entry in held if entry.standing == FASTER)
        said = f"{_name(found, best)} is FASTER than {against}: {_ratio(best)}"
        more = [f"{words[FASTER] - 1} more FASTER"] if words[FASTER] > 1 else []
        return "; ".join(filter(None, [said, ", ".join([*more, *others])]))
    whose = f"that of {against}" if len(bases) == 1 else "that of their baselines"
    if len(held) > 1 and words[UNLIKE] == len(held):
        return f"the times of {len(held)} cells are not compared: their work is UNLIKE {whose}"
    if len(held) > 1:
        return f"none is FASTER than {against}: {', '.join(others)}"
    if held[0].standing == UNLIKE:
        return f"the time of {_name(found, held[0])} is not compared: its work is UNLIKE {whose}"
    how = {
        SLOWER: "{} is SLOWER than {}",
        SAME: "{} takes the SAME time as {}",
        CANT_TELL: "one CAN'T TELL whether {} is faster than {}; as measured",
    }[held[0].standing]
    colon = "" if held[0].standing == CANT_TELL else ":"
    return f"{how.format(_name(found, held[0]), against)}{colon} {_ratio(held[0])}"


def _name(found: Results, entry: Entry) -> str:
    """Return what tells a cell apart from the others of its problem."""
    single = len(found.manifest.groups) == 1 or found.manifest.best
    return (entry.planned.name if single else "") or entry.planned.title


def _ratio(entry: Entry) -> str:
    """Say how the time of a cell compares with its baseline's."""
    assert entry.verdict is not None
    ends = entry.verdict.interval
    said = f" ({ends[0]:.3g} to {ends[1]:.3g})" if ends else ""
    to = f" to {entry.verdict.target}" if entry.verdict.target else ""
    least = f"{entry.verdict.bound} " if entry.verdict.bound else ""
    return f"it takes {least}{entry.verdict.ratio:.3g} times as long{to}{said}"


def _sweep(found: Results, *, headed: bool) -> list[str]:
    manifest = found.manifest
    body = [f"<h2>Sweep {_text(manifest.id)}</h2>"] if headed else []
    learnt = _learnt(found)
    results = _findings(found, learnt)
    said = (f"<li><b>{_text(what)}</b>: {_text(line)}</li>" for what, line in results)
    body.append(f"<ul>{''.join(said)}</ul>")
    body.append(f"<p>{_text(table.counted(found.outcomes(), len(manifest.damaged)))}.</p>")
    for chart in scaling.charts(found):
        body.append(_figure(chart.title, charts.legend(chart.curves) + chart.svg()))
    if sizes := table.by_size(found):
        body.append(_rows(sizes))
    body += _profiles(found)
    for title, ranked in found.by_problem():
        parts = "".join(_problem(found, ranked, learnt))
        level = "h3" if headed else "h2"
        if sizes:
            body.append(f"<details><summary>{_text(title)}</summary>{parts}</details>")
        else:
            body.append(f"<{level}>{_text(title)}</{level}>{parts}")
    if failed := table.failures(found):
        lines = _text("\n".join(failed))
        body.append(f"<h3>What failed or diverged</h3><pre>{lines}</pre>")
    if manifest.damaged:
        lines = _text("\n".join(manifest.damaged))
        body.append(f"<h3>Damaged</h3><pre>{lines}</pre>")
    if manifest.skipped:
        skipped = (f"<li>{_text(title)}: {_text(why)}</li>" for title, why in manifest.skipped)
        body.append(f"<h3>Skipped</h3><ul>{''.join(skipped)}</ul>")
    body.append(_environment([entry.run for entry in found.entries if entry.run]))
    again = f"expkit -m {shlex.join(manifest.words)}\nexpkit report {manifest.name}"
    body.append(f"<h3>Again</h3><pre>{_text(again)}</pre>")
    return body


def _profiles(found: Results) -> list[str]:
    """Return charts of which is first at its targets over several problems."""
    known = profiles.times(found)
    if not profiles.worth(known):
        return []
    backends = {profiles.solver(e.planned): scaling.backend(e.planned) for e in found.entries}
    named = [Curve(name, "", (), ()) for name in known]
    coloured = scaling.coloured(named, [backends[name] for name in known])
    palette = {curve.name: curve.colour for curve in coloured}
    parts: list[str] = []
    for what, label, drawn in (
        ("Performance profile", "times as long as the first one", profiles.performance(known)),
        ("Targets reached", "time", profiles.reached(known)),
    ):
        lines = [replace(curve, colour=palette[curve.name]) for curve in drawn]
        if lines:
            share = "share of problems and seeds"
            timed = "x" if label == "time" else ""
            chart = charts.curves(
                lines, label, share, logarithmic_x=True, linear_y=True, in_seconds=timed
            )
            parts += [*([] if parts else [charts.legend(lines)]), _figure(what, chart)]
    return [*parts, f"<p>{_text(PROFILED)}</p>"] if parts else []


def _problem(found: Results, ranked: Sequence[Entry], learnt: Learnt) -> list[str]:
    shown = ranked[:MOST]
    body = [_table(found, ranked, learnt)]
    if families(ranked):
        cells = f"<details><summary>Each of {len(ranked)} cells</summary>{body[0]}</details>"
        body = [_rows(table.summary(found.manifest, ranked)), cells]
    timed = [entry for entry in shown if entry.run and entry.run.summary]
    if aim := table.target(shown):
        reached = [entry for entry in timed if entry.run and entry.run.target_summary]
        rows = [_spread(found, entry, until=True) for entry in reached]
        missed = len(timed) - len(reached)
        more = f"; {count(missed, 'cell')} did not reach it" if missed else ""
        if rows:
            what = f"Time to the target, {aim}: each repeat, the median and its interval{more}"
            body.append(_figure(what, charts.spreads(rows, "time to the target")))
    if timed:
        rows = [_spread(found, entry) for entry in timed]
        what = "Time of a run: each repeat, the median and its 95% interval"
        if not all(
            entry.run and entry.run.summary and entry.run.summary.interval for entry in timed
        ):
            what += " (from the least to the greatest, where there are too few placements)"
        body.append(_figure(what, charts.spreads(rows, "time of a run")))
    held = [
        _ratios(found, entry)
        for entry in timed
        if entry.verdict
        and entry.verdict.interval
        and entry.standing != UNLIKE
        and not entry.verdict.bound
    ]
    if held:
        what = "Against the baseline: the ratio and its 95% interval"
        if any(entry.verdict and entry.verdict.target for entry in timed):
            what += ", of the times to the target where optimizers differ"
        label = "times as long as the baseline; below 1 is faster"
        body.append(_figure(what, charts.spreads(held, label, ratio=True)))
    body += _losses(found, shown, learnt)
    body += _evaluated(found, shown, learnt)
    steps = [
        (_name(found, entry), *parts)
        for entry in timed
        if entry.run and (parts := breakdown.parts_in(entry.run.parts))[0]
    ]
    if steps:
        body.append(_figure("Where the time of a step goes", charts.parts(steps)))
    if len(ranked) > MOST:
        body.append(f"<p>The charts show the first {MOST} of {len(ranked)} cells.</p>")
    if unlike := table.lines_of(ranked, table.unlike, len(ranked)):
        lines = _text("\n".join(line.strip() for line in unlike))
        body.append(f"<h4>Where the work differs</h4><pre>{lines}</pre>")
    timing = found.manifest.sweep.timing
    doubts = table.lines_of(ranked, table.unstable, len(ranked)) if timing else []
    if doubts:
        head = f"<summary>What makes it doubtful ({len(doubts)})</summary>"
        lines = _text("\n".join(line.strip() for line in doubts))
        body.append(f"<details>{head}<pre>{lines}</pre></details>")
    return body


def _runs(runs: Sequence[Stored]) -> list[str]:
    """Return a table of runs that no sweep has."""
    head = ("", "median", "95% interval", "final loss", "outcome")
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    look = colours(str(run.config.get("backend")) for run in runs)
    for run in runs:
        summary, loss = run.summary, "" if run.loss is None else f"{run.loss:.6g}"
        times = ["", ""]
        if summary:
            times = [seconds(summary.median), f"{seconds(summary.low)} to {seconds(summary.high)}"]
        first = charts.swatch(look[str(run.config.get("backend"))]) + _text(run.name)
        cells = [first, *map(_text, (*times, loss, run.outcome))]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return ["<h2>Other runs</h2>", _wide(lines)]


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """Return a table, the first row of which is its head."""
    head, *rest = rows
    lines = ["".join(f"<th>{_text(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rest]
    return _wide(lines)


def _wide(lines: Sequence[str]) -> str:
    """Return a table of rows of cells, which can be scrolled where it is too wide."""
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>{rows}</table></div>'


def _table(found: Results, ranked: Sequence[Entry], learnt: Learnt) -> str:
    """Return the table that the terminal shows, with each cell's colour and share of the limit."""
    head, *rows = table.compared(found.manifest, ranked)
    shares = [
        entry.run.share_of_limit if entry.run and entry.run.summary else None for entry in ranked
    ]
    targets = [
        "" if after is None else "not reached" if after == math.inf else seconds(after)
        for after in _reached(ranked, learnt).values()
    ]
    extra: list[tuple[str, Sequence[str]]] = []
    if any(share is not None for share in shares):
        extra.append(("of the limit", [percent(s) if s is not None else "" for s in shares]))
    if any(targets):
        extra.append(("to the baseline's loss", targets))
    lines = ["".join(f"<th>{_text(cell)}</th>" for cell in (*head, *(title for title, _ in extra)))]
    look = _colours(ranked)
    for number, (entry, row) in enumerate(zip(ranked, rows, strict=True)):
        more = [column[number] for _, column in extra]
        first = charts.swatch(look[entry.planned.index]) + _text(_name(found, entry))
        cells = [first, *map(_text, (*row[1:], *more))]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return _wide(lines)


def _reached(ranked: Sequence[Entry], learnt: Learnt) -> dict[int, float | None]:
    """Return after how many seconds each cell's loss is as low as its baseline's last one.

    Infinity if it never is. None where there is no such time, where it may not be compared with the
    baseline's, and where the cell has the same optimizer as its baseline. Empty if all have one.
    """
    optimizers = {e.planned.index: e.planned.frozen["choices"].get("optimizer") for e in ranked}
    alone = len(set(optimizers.values())) < 2 or all(e.planned.baseline is None for e in ranked)
    if alone or table.target(ranked):  # a target that is set comes before this one
        return {}
    found: dict[int, float | None] = {}
    for entry in ranked:
        index, baseline = entry.planned.index, entry.planned.baseline
        apart = [line for line in entry.unlike if not line.startswith("optimizer")]
        other = baseline is not None and optimizers[index] != optimizers.get(baseline)
        held = baseline is None or (other and entry.verdict is not None and not apart)
        base = entry.run if baseline is None else entry.base
        goal = base.loss if held and base and base.outcome == Outcome.OK else None
        losses, ended = learnt.get(index, NOTHING)
        found[index] = None
        if goal is not None and losses.size and entry.run and entry.run.summary:
            low = np.flatnonzero(losses <= goal)
            found[index] = float(ended[low[0]]) if low.size else math.inf
    return found


def _losses(found: Results, shown: Sequence[Entry], learnt: Learnt) -> list[str]:
    """Return charts of the losses by step and, where there are times, by seconds."""
    by_step: list[Curve] = []
    by_time: list[Curve] = []
    look, cut = _colours(shown), False
    drawn = [entry for entry in shown if learnt.get(entry.planned.index, NOTHING)[0].size > 1]
    for entry in drawn[:CURVES]:
        losses, ended = learnt[entry.planned.index]
        kept = shown_steps(losses)
        if not kept.size:
            continue
        cut |= kept.size < grid(losses.size).size
        named = _name(found, entry), look[entry.planned.index]
        by_step.append(Curve(*named, (kept + 1).tolist(), losses[kept].tolist()))
        if entry.run and entry.run.summary:
            by_time.append(Curve(*named, ended[kept].tolist(), losses[kept].tolist()))
    if not by_step:
        return []
    long = max(len(line.x) for line in by_step) > LONG
    more = ", up to ten times the first" if cut else ""
    chart = charts.curves(by_step, "step", "loss", logarithmic_x=long)
    parts = [charts.legend(by_step), _figure(f"Loss by step{more}", chart)]
    if by_time:
        chart = charts.curves(by_time, "time", "loss", logarithmic_x=long, in_seconds="x")
        parts.append(_figure(f"Loss by time{more}", chart))
    if left := len(drawn[CURVES:]):
        parts.append(f"<p>The losses of {count(left, 'more cell')} are not drawn.</p>")
    return parts


def _evaluated(found: Results, shown: Sequence[Entry], learnt: Learnt) -> list[str]:
    """Return a chart of each figure that the problem evaluates, by seconds where all have times."""
    look = _colours(shown)
    lines: dict[str, list[Curve]] = {}
    drawn = [entry for entry in shown if entry.planned.index in learnt and entry.run][:CURVES]
    timed = all(entry.run and entry.run.summary for entry in drawn)
    for entry in drawn:
        assert entry.run is not None
        _, ended = learnt[entry.planned.index]
        for name, (after, values) in evaluated_of(entry.run.folder).items():
            kept = [(n, v) for n, v in zip(after, values, strict=True) if n <= ended.size]
            at = [(float(ended[n - 1]) if n else 0.0) if timed else n for n, _ in kept]
            if np.isfinite(values).all():
                own = Curve(
                    _name(found, entry), look[entry.planned.index], at, [v for _, v in kept]
                )
                lines.setdefault(name, []).append(own)
    by, axis = ("time", "x") if timed else ("step", "")
    return [
        _figure(f"{name} by {by}", charts.curves(own, by, name, linear_y=True, in_seconds=axis))
        for name, own in lines.items()
    ]


def _spread(found: Results, entry: Entry, *, until: bool = False) -> Spread:
    """Return the times of a cell's repeats, or those until its target."""
    assert entry.run is not None
    summary = entry.run.target_summary if until else entry.run.summary
    assert summary is not None
    if until:
        samples = [each for repeats in entry.run.until_target for each in repeats]
    else:
        samples = [each for rounds in entry.run.processes for repeats in rounds for each in repeats]
    look = _colours([entry])[entry.planned.index]
    return Spread(_name(found, entry), look, summary.median, summary.low, summary.high, samples)


def _ratios(found: Results, entry: Entry) -> Spread:
    assert entry.verdict is not None
    assert entry.verdict.interval is not None
    look = _colours([entry])[entry.planned.index]
    label = f"{_name(found, entry)}: {entry.verdict.word}"
    return Spread(label, look, entry.verdict.ratio, *entry.verdict.interval)


def _colours(entries: Iterable[Entry]) -> Mapping[int, str]:
    """Return each cell's colour: its backend's, where none is kept, as by an older expkit."""
    cells = [entry.planned for entry in entries]
    backends = {cell.index: cell.frozen["choices"].get("backend", "") for cell in cells}
    usual = colours(backends.values())
    return {
        cell.index: cell.colour if COLOUR.fullmatch(cell.colour) else usual[backends[cell.index]]
        for cell in cells
    }


def _environment(runs: Sequence[Stored]) -> str:
    """Return a table of where the runs were made; a value in which they differ is in all forms."""
    lines = []
    for key in ("host", "cpu", "cores", "device", "threads", "dtype", "versions"):
        values = dict.fromkeys(run.facts[key] for run in runs if key in run.facts)
        if values:
            lines.append(f"<tr><th>{key}</th><td>{_text('; '.join(values))}</td></tr>")
    return f"<h3>Environment</h3><table>{''.join(lines)}</table>" if lines else ""


def _figure(caption: str, content: str) -> str:
    return f"<figure><figcaption>{_text(caption)}</figcaption>{content}</figure>"


_text: Callable[[str], str] = html.escape
