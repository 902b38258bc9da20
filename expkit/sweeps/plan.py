"""Make a manifest from Hydra's lists of words; all cells are checked before the first runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from expkit.conduct import check_workload
from expkit.config import Cell, Sweep, as_typed, build_cell, build_sweep, register
from expkit.errors import ConfigError, Unavailable, UnsetError, UserError
from expkit.sweeps import labels
from expkit.sweeps.labels import CHOICES
from expkit.sweeps.manifest import Manifest, Planned, finished_elsewhere, measured_how
from expkit.sweeps.seeds import SEED
from expkit.tracking import address

BY_NUMBER = "${hydra.job.num}"
"""The default of `hydra.sweep.subdir`."""


def plan(
    master: DictConfig,
    loader: ConfigLoader,
    jobs: Sequence[Sequence[str]],
    words: Sequence[str],
    first: int | None = None,
) -> Manifest:
    """Compose and check the cells of a sweep.

    Args:
        master: the configuration that Hydra composed for the whole sweep.
        jobs: each cell's words.
        words: what was typed after `-m`.
        first: the number of the first cell of a search's batch; None if this is the whole sweep.

    Raises:
        UserError: an unknown option or key, a wrong type or a bad range in any cell, or a key that
            has no value in all of them. If only some cells lack a value, these are skipped.
        HydraException, OmegaConfBaseException, YAMLError: the same, as these libraries report it.
    """
    if not jobs:
        raise UserError("-m: these words make no cell")
    compose = Composer(master, loader)
    made: dict[int, Cell] = {}
    unset: list[tuple[str, UnsetError]] = []
    sweeps: list[Sweep] = []
    common = set(jobs[0]).intersection(*jobs)
    for number, job in enumerate(jobs, first or 0):
        composed, choices = compose(job)
        sweeps.append(build_sweep(composed))
        try:
            made[number] = _build(composed, choices, job)
        except UnsetError as error:
            unset.append((_title_of_words(choices, job, common), error))
    sweep = sweeps[0]
    if any(other != sweep for other in sweeps):
        raise UserError("sweep: its keys are for the whole sweep, so they take one value each")
    if not made and first is None:
        raise unset[0][1]
    varying = labels.varying(list(made.values()))
    if first is not None:  # what the other batches vary is not known here
        typed = set(as_typed(master.hydra.overrides.task))  # all trials have these
        varying |= {w.partition("=")[0] for job in jobs for w in job if w not in typed}
    searched = first is not None
    # Trials of several problems stand in one table.
    shared = set() if searched else {key for key in varying if not _is_own(key)}
    own = varying - shared
    named = {
        number: (cell, _title(cell, CHOICES[:1], shared), _title(cell, CHOICES[1:], own))
        for number, cell in made.items()
    }
    kept, skipped, again = _sifted(named, _finished(Path(master.outputs).absolute(), sweep))
    skipped += [(title, str(error)) for title, error in unset]
    titles = {id(cell): problem for cell, problem, _ in named.values()}
    folder = Path(master.hydra.sweep.dir).absolute()
    held = sweep.timing and first is None  # a search compares trials by its objective
    manifest = _manifest(folder, words, sweep, kept, titles, skipped, held)
    log = _log(master)
    by_number = {number: cell for number, cell, _ in kept}
    solvers = {cell.index: SEED.sub("", cell.title) for cell in manifest.cells}
    names = labels.names(by_number, varying)
    colours = labels.shades(by_number, solvers, searched=searched)
    cells = [
        replace(c, frozen={**c.frozen, "log": log}, name=names[c.index], colour=colours[c.index])
        for c in manifest.cells
    ]
    best = ""
    if searched:
        best = "greatest" if "maximize" in str(master.hydra.sweeper.get("direction")) else "least"
    return replace(manifest, cells=cells, again=again, best=best)


def plan_words(words: Sequence[str]) -> Manifest:
    """Plan the sweep of these words, as after `-m`, in a new folder.

    Raises:
        UserError: as `plan`.
    """
    register()
    with initialize_config_module("expkit.conf", version_base="1.3", job_name="expkit"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        parser = OverridesParser.create(config_loader=loader)
        whole = [word for word in words if not parser.parse_override(word).is_sweep_override()]
        master = loader.load_configuration("config", whole, RunMode.MULTIRUN)
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(list(words)), None)
        return plan(master, loader, jobs, [address.scrub(word) for word in words])


def _log(master: DictConfig) -> dict[str, Any] | None:
    """Return how workers log: the file's name, and the loggers whose debug lines are kept."""
    if master.hydra.runtime.choices["hydra/job_logging"] in ("none", "disabled"):
        return None
    verbose = master.hydra.verbose
    loud = [verbose] if isinstance(verbose, str) else [""] if verbose is True else verbose or []
    return {"name": master.hydra.job.name, "verbose": list(loud)}


Numbered = tuple[int, Cell, str]
"""A cell's number, the cell, and what distinguishes it from the others of its problem."""
Skipped = tuple[str, str]
"""The title of a cell that is not run, and why not."""


def _sifted(
    named: Mapping[int, tuple[Cell, str, str]], finished: Mapping[tuple[str, str], Path]
) -> tuple[list[Numbered], list[Skipped], dict[int, int]]:
    """Return the cells to run, those to skip, and which of the latter repeat another cell."""
    kept: list[Numbered] = []
    skipped: list[Skipped] = []
    again: dict[int, int] = {}
    seen: dict[tuple[str, str], int] = {}
    for number, (cell, problem, label) in named.items():
        title = f"{problem} · {label}"
        key = cell.hash, measured_how(cell.params)
        if reason := _impossible(cell):
            skipped.append((title, reason))
        elif key in seen:
            skipped.append((title, f"it is cell {seen[key]} again"))
            again[number] = seen[key]
        elif key in finished:
            skipped.append((title, f"finished before, in {finished[key]}"))
        else:
            seen[key] = number
            kept.append((number, cell, label))
    return kept, skipped, again


Composed = tuple[DictConfig, Mapping[str, str]]
"""A configuration without Hydra's own part, and the option chosen in each group."""


class Composer:
    """Composes cells as Hydra does; what cells share is composed once.

    Values such as `seed=3` are applied last and do not affect which options are chosen, so cells
    with the same options differ only in such values. If a word adds or deletes a key, or is meant
    for Hydra itself, Hydra composes the cell from the start.
    """

    def __init__(self, master: DictConfig, loader: ConfigLoader) -> None:
        self._master, self._loader = master, loader
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._groups: dict[str, bool] = {}
        self._shared: dict[tuple[str, ...], Composed] = {}

    def __call__(self, job: Sequence[str]) -> Composed:
        """Return what these words compose.

        Raises:
            HydraException, OmegaConfBaseException, YAMLError: Hydra cannot compose the words.
        """
        words = [self._parse(word) for word in job]
        values = [word for word in words if self._is_value(word)]
        rest = [word for word in words if not self._is_value(word)]
        if not all(self._is_choice(word) for word in rest):
            return self._compose(job)
        key = tuple(str(word.input_line) for word in rest)
        if key not in self._shared:
            as_master = all(self._is_masters(word) for word in rest)
            self._shared[key] = _apart(self._master) if as_master else self._compose(key)
        shared, choices = self._shared[key]
        composed = copy.deepcopy(shared)
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        return composed, choices

    def _compose(self, job: Sequence[str]) -> Composed:
        return _apart(self._loader.load_sweep_config(self._master, list(job)))

    def _parse(self, word: str) -> Override:
        if word not in self._parsed:
            self._parsed[word] = self._parser.parse_override(word)
        return self._parsed[word]

    def _is_value(self, word: Override) -> bool:
        """Whether a word replaces the value of an existing key."""
        plain = word.type == OverrideType.CHANGE and word.package is None
        return plain and not word.is_hydra_override() and not self._is_group(word)

    def _is_choice(self, word: Override) -> bool:
        changes = word.type in (OverrideType.CHANGE, OverrideType.ADD)
        ours = changes and not word.is_hydra_override() and self._is_group(word)
        return ours and not isinstance(word.value(), dict)

    def _is_masters(self, word: Override) -> bool:
        """Whether a word chooses an option that the master configuration has anyway."""
        plain = word.type == OverrideType.CHANGE and word.package is None
        chosen = self._master.hydra.runtime.choices
        return plain and word.value() is not None and chosen.get(word.key_or_group) == word.value()

    def _is_group(self, word: Override) -> bool:
        group = word.key_or_group
        if group not in self._groups:
            about = self._master.hydra
            hydras = as_typed(about.overrides.hydra)
            found = self._loader.get_group_options(group, None, about.job.config_name, hydras)
            self._groups[group] = bool(found)
        return self._groups[group]


def _apart(whole: DictConfig) -> Composed:
    composed = copy.deepcopy(whole)
    with open_dict(composed):
        del composed["hydra"]
    return composed, dict(whole.hydra.runtime.choices)


def subdirs(
    master: DictConfig, loader: ConfigLoader, jobs: Sequence[Sequence[str]], first: int = 0
) -> dict[int, str]:
    """Return the folder names that `hydra.sweep.subdir` gives, by cell; empty for the default.

    Raises:
        OmegaConfBaseException: it refers to a key that does not exist.
    """
    said = master.hydra.sweep._get_node("subdir")._value()  # with its references unresolved
    if said == BY_NUMBER:
        return {}
    parser = OverridesParser.create(config_loader=loader)
    compose = Composer(master, loader)
    how = master.hydra.job.config.override_dirname
    found = {}
    for number, job in enumerate(jobs, first):
        parsed = parser.parse_overrides(list(job))
        own = [word for word in parsed if not word.is_hydra_override()]
        words = [word for word in own if word.key_or_group != "tracking.uri"]  # has a password
        whole = copy.deepcopy(master)
        with open_dict(whole):
            whole.merge_with(compose(job)[0])
            whole.hydra.job.num = number
            whole.hydra.job.override_dirname = get_overrides_dirname(
                words, how.exclude_keys, how.item_sep, how.kv_sep
            )
        name, uri = str(whole.hydra.sweep.subdir), whole.tracking.uri
        found[number] = name.replace(uri, "") if uri else name  # it may hold a password
    return found


def _build(composed: DictConfig, choices: Mapping[str, str], words: Sequence[str]) -> Cell:
    cell = build_cell(composed, choices, words)
    if cell.measure.processes > 1:
        takes = "1: a sweep gives every cell one process; expkit compare takes several"
        raise ConfigError("measure.processes", cell.measure.processes, takes)
    return cell


def _impossible(cell: Cell) -> str | None:
    """Return why a cell cannot run on any machine; None if it can."""
    try:
        check_workload(cell)
    except Unavailable as error:
        return str(error)
    return None


def _finished(outputs: Path, sweep: Sweep) -> Mapping[tuple[str, str], Path]:
    return finished_elsewhere(outputs, sweep.timing) if sweep.skip_finished else {}


def _is_own(key: str) -> bool:
    """Whether a key is one in which cells of the same work may differ."""
    return key.partition(".")[0] in ("backend", "optimizer", "update", "seed", "tracking")


def _title(cell: Cell, kinds: Sequence[str], keys: Collection[str]) -> str:
    """Make a title of the options of these kinds and of these keys with their values."""
    names = " · ".join(cell.names[kind] for kind in kinds if kind in cell.names)
    said = labels.values(cell, keys).items()
    return names + "".join(f", {key}={labels.short(value)}" for key, value in said)


def _title_of_words(choices: Mapping[str, str], job: Sequence[str], common: Collection[str]) -> str:
    """Make the title of a cell that cannot be built: its options and the words that vary."""
    names = " · ".join(choices[kind] for kind in CHOICES if kind in choices)
    keys = (*CHOICES, "tracking.uri")
    said = (w for w in job if w.partition("=")[0] not in keys and w not in common)
    return ", ".join([names, *said])


def _manifest(
    folder: Path,
    words: Sequence[str],
    sweep: Sweep,
    kept: Sequence[Numbered],
    titles: Mapping[int, str],
    skipped: Sequence[Skipped],
    held: bool,
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
        baseline = _baseline(cell, peers, sweep) if held else None
        own = None if baseline == number else baseline
        cells.append(Planned(number, cell.hash, label, group, own, cell.frozen))
    return Manifest(folder, list(words), sweep, groups, cells, skipped)


def _work(cell: Cell) -> str:
    """Return what comparable cells share: problem, sizes, steps and how they are measured."""
    shared = {key: value for key, value in cell.params.items() if not _is_own(key)}
    return json.dumps(shared, sort_keys=True)


def _baseline(cell: Cell, peers: Sequence[tuple[int, Cell]], sweep: Sweep) -> int | None:
    """Return the number of the baseline cell to compare this one with: the one most like it."""
    kind, name = _baseline_name([peer for _, peer in peers], sweep)
    # Another seed means other data, so cells are compared only with cells of their seed.
    peers = [(n, peer) for n, peer in peers if peer.workload.seed == cell.workload.seed]
    if kind is None:
        return peers[0][0]
    candidates = [(n, peer) for n, peer in peers if peer.names.get(kind) == name]
    if not candidates:
        return None

    def likeness(candidate: tuple[int, Cell]) -> int:
        return sum(candidate[1].params.get(k) == v for k, v in cell.params.items())

    return max(candidates, key=likeness)[0] if cell.names.get(kind) != name else None


def _baseline_name(peers: Sequence[Cell], sweep: Sweep) -> tuple[str | None, str | None]:
    """Return the kind and option of the baseline; by default of the first kind that varies."""
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
