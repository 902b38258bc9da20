"""From Hydra's lists of words to a manifest: every cell is composed and checked before one runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict

from expkit.config import Cell, Sweep, build_cell, build_sweep
from expkit.errors import ConfigError, Unavailable, UserError
from expkit.runner import require_workload
from expkit.sweep.manifest import Manifest, Planned, finished_elsewhere, measured_how

CHOICES = ("problem", "backend", "optimizer")


def plan(
    master: DictConfig,
    loader: ConfigLoader,
    jobs: Sequence[Sequence[str]],
    words: Sequence[str],
    first: int = 0,
) -> Manifest:
    """Compose and check the cells of a sweep.

    Args:
        master: what Hydra composed for the whole.
        jobs: each cell's words.
        words: what was typed after `-m`.
        first: the number of the first cell.

    Raises:
        UserError: an unknown option or key, a wrong type or a bad range, in any cell.
        HydraException, OmegaConfBaseException, YAMLError: so, as those libraries say it.
    """
    if not jobs:
        raise UserError("-m: these words make no cell")
    made = [_compose(master, loader, job) for job in jobs]
    sweep = made[0][1]
    if any(other != sweep for _, other in made):
        raise UserError("sweep: its keys are for the whole sweep, so they take one value each")
    varying = _varying(jobs)
    named = [
        (
            cell,
            _title([cell.names["problem"]], cell, varying, "problem."),
            _title([cell.names[k] for k in CHOICES[1:] if k in cell.names], cell, varying, ""),
        )
        for cell, _ in made
    ]
    finished = _finished(made[0][0].outputs, sweep)
    skipped: list[tuple[str, str]] = []
    kept: list[tuple[int, Cell, str]] = []
    seen: dict[tuple[str, str], int] = {}
    for number, (cell, problem, label) in enumerate(named, first):
        title = f"{problem} · {label}"
        key = cell.hash, measured_how(cell.params)
        if reason := _impossible(cell):
            skipped.append((title, reason))
        elif key in seen:
            skipped.append((title, f"it is cell {seen[key]} again"))
        elif key in finished:
            skipped.append((title, f"finished before, in {finished[key]}"))
        else:
            seen[key] = number
            kept.append((number, cell, label))
    titles = {id(cell): problem for cell, problem, _ in named}
    return _manifest(Path(master.hydra.sweep.dir).absolute(), words, sweep, kept, titles, skipped)


def _compose(master: DictConfig, loader: ConfigLoader, job: Sequence[str]) -> tuple[Cell, Sweep]:
    composed = loader.load_sweep_config(master, list(job))
    choices = dict(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    cell, sweep = build_cell(composed, choices), build_sweep(composed)
    if cell.measure.processes > 1:
        takes = "1: a sweep gives every cell one process; expkit compare takes several"
        raise ConfigError("measure.processes", cell.measure.processes, takes)
    return cell, sweep


def _impossible(cell: Cell) -> str | None:
    """Why a cell cannot run on any machine; None where it may."""
    try:
        require_workload(cell)
    except Unavailable as error:
        return str(error)
    return None


def _finished(outputs: Path, sweep: Sweep) -> Mapping[tuple[str, str], Path]:
    return finished_elsewhere(outputs, sweep.timing) if sweep.skip_finished else {}


def _varying(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys of which the words give several values, less the choices themselves."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for word in job:
            key, _, value = word.partition("=")
            values.setdefault(key.lstrip("+"), set()).add(value)
    return [
        key
        for key, found in values.items()
        if len(found) > 1 and key not in CHOICES and not key.startswith("hydra")
    ]


def _title(names: Sequence[str], cell: Cell, varying: Sequence[str], prefix: str) -> str:
    """Names, and what the words vary of theirs: keys of this prefix, or all but the problem's."""
    said = [
        f"{key}={cell.params[key]}"
        for key in varying
        if key in cell.params
        and (key.startswith(prefix) if prefix else not key.startswith("problem."))
    ]
    return " · ".join(names) + "".join(f", {word}" for word in said)


def _manifest(
    folder: Path,
    words: Sequence[str],
    sweep: Sweep,
    kept: Sequence[tuple[int, Cell, str]],
    titles: Mapping[int, str],
    skipped: Sequence[tuple[str, str]],
) -> Manifest:
    keys: dict[str, int] = {}
    groups: list[str] = []
    group_of = []
    for _, cell, _ in kept:
        key = _work(cell)
        if key not in keys:
            keys[key] = len(keys)
            groups.append(titles[id(cell)])
        group_of.append(keys[key])
    cells = []
    for (number, cell, label), group in zip(kept, group_of, strict=True):
        peers = [(n, c) for (n, c, _), g in zip(kept, group_of, strict=True) if g == group]
        baseline = _baseline(cell, peers, sweep)
        own = None if baseline == number else baseline
        cells.append(Planned(number, cell.hash, label, group, own, cell.frozen))
    return Manifest(folder, list(words), sweep, groups, cells, skipped)


def _work(cell: Cell) -> str:
    """What cells share that are to be compared: problem, sizes, steps, data, how to measure."""
    apart = ("backend", "optimizer", "tracking")
    shared = {k: v for k, v in cell.params.items() if k.partition(".")[0] not in apart}
    return json.dumps(shared, sort_keys=True)


def _baseline(cell: Cell, peers: Sequence[tuple[int, Cell]], sweep: Sweep) -> int | None:
    """The cell of the same work to hold this one against: the most alike of the baseline's."""
    kind, name = _baseline_name([peer for _, peer in peers], sweep)
    if kind is None:
        return peers[0][0]
    candidates = [(n, peer) for n, peer in peers if peer.names.get(kind) == name]
    if not candidates:
        return None

    def likeness(candidate: tuple[int, Cell]) -> int:
        return sum(candidate[1].params.get(k) == v for k, v in cell.params.items())

    return max(candidates, key=likeness)[0] if cell.names.get(kind) != name else None


def _baseline_name(peers: Sequence[Cell], sweep: Sweep) -> tuple[str | None, str | None]:
    """Of which kind the baseline is, and which option; by default the first that is varied."""
    options: dict[str, list[str]] = {"backend": [], "optimizer": []}
    for peer in peers:
        for kind, found in options.items():
            if kind in peer.names and peer.names[kind] not in found:
                found.append(peer.names[kind])
    if sweep.baseline is None:
        several = (kind for kind, found in options.items() if len(found) > 1)
        first = next(several, None)
        return first, options[first][0] if first else None
    for kind, found in options.items():
        if sweep.baseline in found:
            return kind, sweep.baseline
    takes = f"one of {', '.join(options['backend'] + options['optimizer'])}"
    raise ConfigError("sweep.baseline", sweep.baseline, takes)
