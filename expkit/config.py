"""From words on a command line to a cell: the schema, the options, the checks.

The core's problems and optimizers are options by being files: each module under
`expkit.problems` and `expkit.optimizers` defines one frozen dataclass, and its fields are the
option's keys. Plugins bring theirs as YAML files that name a class in `_target_`. Either way the
composed values are checked against the class.

Only the functions that compose import Hydra: a sweep's worker thaws its cell and does not need it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import os
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields
from functools import cache, cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from expkit import optimizers, problems
from expkit.contracts import (
    Backend,
    HasEvaluation,
    HasOptimum,
    Operation,
    Optimizer,
    Problem,
    Recommended,
    Target,
    Workload,
)
from expkit.errors import ConfigError, PluginError, UnsetError, UserError, check
from expkit.measure.stopping import Measure
from expkit.optimizers._chain import Update
from expkit.tracking import address

GROUPS = ("problem", "backend", "optimizer", "measure", "tracking")
NAMING_A_CLASS = ("problem", "backend", "optimizer")
"""The groups whose options name in `_target_` the class that is built."""
STREAMS = ("shared", "device")
OBJECTIVES = ("loss", "seconds", "target")
MOST = 2**31 - 1
"""The greatest integer that a key takes: the losses of so many steps can be kept."""
MOST_OF_PROBLEM = 10**12
"""The same for a problem's sizes, which must be valid as indices; memory may allow fewer."""
PLAIN = re.compile(r"[\w.:@+/-]+")
"""A value that needs no quotes in Hydra's grammar."""
MOST_SEED = 2**63 - 1
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


@dataclass(frozen=True)
class Tracking:
    """Where runs are kept besides their journal.

    Attributes:
        kind: `mlflow` or `none`.
        uri: MLflow's tracking address; null for EXPKIT_TRACKING_URI or, if that is not set, for the
            sqlite database under `outputs`.
        experiment: MLflow's experiment.
        pictures: whether to draw the loss curve and the problem's own picture.
    """

    kind: str = "mlflow"
    uri: str | None = None
    experiment: str = "expkit"
    pictures: bool = True

    def __post_init__(self) -> None:
        check(self.kind in ("mlflow", "none"), "kind", self.kind, "mlflow or none")
        check(bool(self.experiment.strip()), "experiment", self.experiment, "a name")
        if self.uri is not None:
            scheme, shown = self.uri.partition(":")[0].partition("+")[0], address.scrub(self.uri)
            takes = f"null or an address that begins with one of {', '.join(SCHEMES)}"
            check(scheme in SCHEMES, "uri", shown, takes)
            takes = "an address in which @ stands as %40 after the host, and / as %2F in a password"
            check(address.kept(self.uri) is not None, "uri", shown, takes)


@dataclass(frozen=True)
class Sweep:
    """How the cells of one `-m` are run; of no effect on a single cell.

    Attributes:
        timing: true to measure: cells of one problem are alive together and take turns, one at a
            time. False to run several at once for their results alone, without times.
        workers: the most processes: alive together with timing (null for 8), else running at once
            (null for one per CPU).
        limit_s: how many seconds of its own a cell may take before it is ended.
        baseline: the backend or optimizer that the others are compared with; null for the first.
        skip_finished: leave out cells that an earlier sweep finished in the same outputs folder.
        dry_run: say what would run, and stop.
        objective: what a searching sweeper minimises: the final `loss`, `seconds`, or those until
            the `target`.
    """

    timing: bool = True
    workers: int | None = None
    limit_s: float = 3600
    baseline: str | None = None
    skip_finished: bool = False
    dry_run: bool = False
    objective: str = "loss"

    def __post_init__(self) -> None:
        takes = "an integer of at least 1, or null"
        check(self.workers is None or self.workers >= 1, "workers", self.workers, takes)
        takes = "a number of seconds above 0 and at most 1e9"
        check(0 < self.limit_s <= 1e9, "limit_s", self.limit_s, takes)
        check(self.objective in OBJECTIVES, "objective", self.objective, " or ".join(OBJECTIVES))


@dataclass(frozen=True)
class TargetKeys:
    """What a run has to reach; by default what its problem recommends.

    Attributes:
        of: `loss`, `gap` or a figure that the problem evaluates.
        value: what loss and gap must not be above, and what a figure must not be worse than.
        stop: whether a run of a single repeat ends once it is reached.
        patience: such a run ends once `of` has not improved for so many steps; 0 for never.
    """

    of: str | None = None
    value: float | None = None
    stop: bool = False
    patience: int = 0

    def __post_init__(self) -> None:
        finite = self.value is None or math.isfinite(self.value)
        check(finite, "value", self.value, "a finite number")
        check(self.patience >= 0, "patience", self.patience, "an integer of at least 0")


OWN: Mapping[str, type[Any]] = {
    "measure": Measure,
    "tracking": Tracking,
    "sweep": Sweep,
    "target": TargetKeys,
    "update": Update,
}
"""The groups that have a single class, defined by the core."""


@dataclass
class Config:
    """The top level. A missing `steps`, `log_every`, `eval_every` or `stream` is what the problem
    recommends.
    """

    problem: Any = MISSING
    backend: Any = MISSING
    optimizer: Any = MISSING
    steps: int = MISSING
    log_every: int = MISSING
    eval_every: int = MISSING
    stream: str = MISSING
    seed: int = 0
    target: TargetKeys = field(default_factory=TargetKeys)
    update: Update = field(default_factory=Update)
    measure: Measure = field(default_factory=Measure)
    tracking: Tracking = field(default_factory=Tracking)
    sweep: Sweep = field(default_factory=Sweep)
    outputs: str = MISSING
    allow_target: bool = False


KEYS = tuple(field.name for field in fields(Config))
"""The keys of the top level."""


@dataclass(frozen=True)
class Cell:
    """One composed configuration, checked and built.

    Attributes:
        names: the chosen option of `problem`, `backend` and `optimizer`.
        eval_every: steps after which the problem is evaluated again; 0 for never.
        target: what it has to reach; None for nothing.
        tracking: with the full address; `resolved` and `frozen` have it without its password.
        resolved: the whole configuration with every recommendation filled in.
        frozen: what `thaw` needs to build the same cell, even after option files have changed.
    """

    names: Mapping[str, str]
    workload: Workload
    backend: Backend
    log_every: int
    eval_every: int
    target: Target | None
    measure: Measure
    tracking: Tracking
    outputs: Path
    resolved: Mapping[str, Any]
    frozen: Mapping[str, Any]

    def but(self, *words: str, **values: object) -> Cell:
        """Build the same cell with changes, given as words or values.

        >>> compose_cell("problem=linear").but("seed=3", optimizer="adam").title
        'linear · numpy · adam'

        Raises:
            UserError: an unknown option or key, a wrong type or a bad range.
        """
        changed = (*words, *words_of(values))
        kept = {word.partition("=")[0]: word for word in (*self.frozen["words"], *changed)}
        return compose_cell(*kept.values())

    @property
    def title(self) -> str:
        return " · ".join(self.names[group] for group in self.names)

    @property
    def address(self) -> str:
        """The full address that its run is sent to, with any password."""
        return self.tracking.uri or address.local(self.outputs)

    @cached_property
    def params(self) -> dict[str, Any]:
        """`resolved`, flat: `problem` is the option's name, `problem.n` one of its fields."""
        return dict(_flat(self.resolved))

    @cached_property
    def recommended(self) -> frozenset[str]:
        """The keys of `params` that nobody has set, so that the problem recommends their value."""
        return frozenset(key for key, value in _flat(self.frozen["config"]) if value == "???")

    @property
    def hash(self) -> str:
        """The hash of all that determines the result, so without `measure` and `tracking`."""
        apart = ("measure.", "tracking.")
        hashed = {k: v for k, v in self.params.items() if not k.startswith(apart)}
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:12]


@cache
def register() -> list[Path]:
    """Make the schema and every installed option known to Hydra. Call before it composes.

    Returns the plugins' folders of option files.
    """
    from hydra.core.config_store import ConfigStore

    from expkit import plugins

    if not OmegaConf.has_resolver("expkit.outputs"):
        OmegaConf.register_new_resolver("expkit.outputs", lambda: str(default_outputs()))
        OmegaConf.register_new_resolver("expkit.tracking_uri", address.given)
    store = ConfigStore.instance()
    store.store(name="schema", node=_writable(Config))
    for group, name, node in plugins.for_sweeps():
        store.store(group=group, name=name, node=node)
    taken = {}
    for group, package in (("problem", problems), ("optimizer", optimizers)):
        for name, cls in _classes(package):
            store.store(group=group, name=name, node=_option(cls))
            taken[Path(group, f"{name}.yaml")] = "expkit"
    return plugins.register(taken)


def build_sweep(config: DictConfig) -> Sweep:
    """The checked `sweep` keys of a composed configuration.

    Raises:
        ConfigError: a value of the wrong type or range, with its key.
    """
    built: Sweep = _build(config, "sweep", {})
    return built


def checked_sweep(values: Mapping[str, Any]) -> Sweep:
    """Build the `sweep` keys again from stored values, and check them.

    Raises:
        UserError: an unknown key, a value of the wrong type or range, or one that refers to
            something else.
    """
    if reason := reference(values, "sweep"):
        raise UserError(reason)
    return build_sweep(OmegaConf.create({"sweep": dict(values)}))


def options(group: str) -> list[str]:
    """The installed options of a group, such as `problem` or `backend`."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    register()
    # Hydra is a singleton, and while it runs only its own search path has the folders it was given.
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else initialize_config_module("expkit.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return sorted(loader.get_group_options(group))


def option(group: str, name: str) -> dict[str, Any]:
    """The keys of an option, as it is written."""
    from hydra import compose, initialize_config_module

    register()
    with initialize_config_module("expkit.conf", version_base="1.3"):
        found: Any = OmegaConf.to_container(compose("config", [f"{group}={name}"])[group])
    return dict(found)


def compose_cell(*words: str) -> Cell:
    """The cell of these overrides, as on the command line.

    >>> compose_cell("problem=linear", "optimizer=adam", "steps=50").title
    'linear · numpy · adam'

    Raises:
        UserError: an unknown option or key, a wrong type or a bad range.
    """
    from hydra import compose, initialize_config_module

    register()
    with initialize_config_module("expkit.conf", version_base="1.3"):
        composed = compose("config", list(words), return_hydra_config=True)
    choices = dict(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    return build_cell(composed, choices, words)


def words_of(values: Mapping[str, object]) -> list[str]:
    """Write values as words of the command line."""
    return [f"{key}={_in_grammar(value)}" for key, value in values.items()]


def _in_grammar(value: object) -> str:
    """Write a value in Hydra's grammar; a list becomes a choice of several values.

    >>> [_in_grammar(value) for value in (3, None, True, "sine", "a b", ["numpy", "torch"])]
    ['3', 'null', 'true', 'sine', "'a b'", 'numpy,torch']
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return ",".join(map(_in_grammar, value))
    said = str(value)
    if PLAIN.fullmatch(said):
        return said
    escaped = said.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def as_typed(words: Sequence[str]) -> list[str]:
    """The words that Hydra keeps, as typed: their references (`${...}`) are not resolved."""
    found: Any = OmegaConf.to_container(words, resolve=False)
    return list(found)


def thaw(frozen: Mapping[str, Any]) -> Cell:
    """Build a frozen cell again, in any process, from nothing but the frozen values.

    Whether its classes are allowed was checked when it was frozen. Values from a file have to be
    checked first, by `require_installed`.

    >>> cell = compose_cell("problem=linear", "optimizer.lr=0.5")
    >>> thaw(cell.frozen).resolved == cell.resolved
    True

    Raises:
        UserError: a value that does not fit, or one that refers to something else.
    """
    if reason := reference(frozen["config"]):
        raise UserError(reason)
    config = OmegaConf.create(dict(frozen["config"]) | {"allow_target": True})
    return build_cell(config, frozen["choices"], frozen.get("words", ()))


def reference(values: object, key: str = "") -> str | None:
    """Say which value has a `${`, which would be resolved; those of a cell are resolved already."""
    if isinstance(values, Mapping):
        inner = ((f"{key}.{name}" if key else f"{name}", value) for name, value in values.items())
    elif isinstance(values, list):
        inner = ((f"{key}[{number}]", value) for number, value in enumerate(values))
    else:
        bad = isinstance(values, str) and "${" in values
        return f"{key}: got {values!r}, takes a value without ${{" if bad else None
    return next(filter(None, (reference(value, name) for name, value in inner)), None)


def default_outputs() -> Path:
    """EXPKIT_OUTPUTS if set; in a checkout its `outputs/`; else `outputs/` in or above here."""
    if chosen := os.environ.get("EXPKIT_OUTPUTS"):
        return Path(chosen).absolute()
    checkout = Path(__file__).parent.parent
    if (checkout / "conf").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "outputs"
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "outputs" / "mlflow.db").is_file():
            return folder / "outputs"
    return here / "outputs"


def build_cell(config: DictConfig, choices: Mapping[str, str], words: Sequence[str] = ()) -> Cell:
    """Check a composed configuration and build what it names.

    Args:
        words: what was typed to compose it; kept with the run, without the tracking address's
            password.

    Raises:
        ConfigError: a value of the wrong type or range, with its key; a class of no installed
            option, unless the configuration allows it.
        UnsetError: a key without a value, such as a rate that the problem does not recommend.
        PluginError: a class that cannot be imported.
    """
    for key in map(str, config):
        if key not in KEYS:
            raise UserError(f"{key}: no such key; the top level takes {', '.join(KEYS)}")
    build_sweep(config)  # has no effect on a single cell, but its keys are checked too
    for group in GROUPS:
        if OmegaConf.is_missing(config, group) or config.get(group) is None:
            raise ConfigError(group, None, ", ".join(options(group)))
    if not config.get("allow_target"):
        require_installed(config, "allow_target=true")
    problem = _build(config, "problem", {})
    recommended: Recommended = problem.recommended()
    names = {"problem": choices["problem"], "backend": choices["backend"]}
    own: Optimizer | None = None
    if isinstance(problem, Problem):
        names["optimizer"] = choices["optimizer"]
        own = _optimizer(config, names, recommended)
    elif not isinstance(problem, Operation):
        raise PluginError(f"problem {names['problem']}: neither a Problem nor an Operation")
    backend: Backend = _build(config, "backend", {})
    steps = _default(config, "steps", recommended.steps)
    takes = f"an integer of at least 1 and at most {MOST}"
    check(1 <= steps <= MOST, "steps", steps, takes)
    log_every = _default(config, "log_every", recommended.log_every)
    check(1 <= log_every <= MOST, "log_every", log_every, takes)
    eval_every = _eval_every(config, names["problem"], problem, recommended)
    stream = _default(config, "stream", recommended.stream)
    check(stream in STREAMS, "stream", stream, " or ".join(STREAMS))
    takes = f"an integer of at least 0 and at most {MOST_SEED}"
    check(0 <= config.seed <= MOST_SEED, "seed", config.seed, takes)
    measure, tracking = _build(config, "measure", {}), _build(config, "tracking", {})
    target = _target(config, names["problem"], problem, recommended, eval_every)
    if target and not measure.once:
        why = "unless measure=once: all repeats have to be equally long"
        check(not target.stop, "target.stop", target.stop, f"false {why}")
        check(not target.patience, "target.patience", target.patience, f"0 {why}")
    before: Update = _build(config, "update", {}) if "update" in config else Update()
    optimizer = _prepared(own, before, problem, names["problem"], steps, backend)
    resolved: dict[str, Any] = {}
    parts = {"problem": problem, "backend": backend, "optimizer": own}
    for group, part in parts.items():
        if part is not None:
            resolved[group] = {"name": names[group], **dataclasses.asdict(part)}
    resolved |= {"steps": steps, "log_every": log_every, "stream": stream, "seed": config.seed}
    # Only where they say something, so that the hashes of other cells stay what they were.
    if isinstance(problem, HasEvaluation):
        resolved["eval_every"] = eval_every
    if target:
        ends = {"stop": target.stop, "patience": target.patience}
        resolved["target"] = {"of": target.of, "value": target.value}
        resolved["target"] |= {key: value for key, value in ends.items() if value}
    if before != Update():
        resolved["update"] = dataclasses.asdict(before)
    resolved |= {"measure": dataclasses.asdict(measure), "tracking": dataclasses.asdict(tracking)}
    kept_uri = None if tracking.uri is None else address.without_password(tracking.uri)
    resolved["tracking"]["uri"] = kept_uri
    workload = Workload(problem, optimizer, steps, config.seed, stream)
    outputs = Path(config.outputs).absolute()
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    values["outputs"] = str(outputs)
    values["tracking"]["uri"] = kept_uri
    values.pop("allow_target", None)  # the user has to give this permission each time
    if reason := reference(values):
        raise UserError(reason)
    frozen = {
        "config": values,
        "choices": {k: choices[k] for k in GROUPS if k in choices},
        "words": [_kept_word(word, kept_uri) for word in words],
    }
    return Cell(
        names=names,
        workload=workload,
        backend=backend,
        log_every=log_every,
        eval_every=eval_every,
        target=target,
        measure=measure,
        tracking=tracking,
        outputs=outputs,
        resolved=resolved,
        frozen=frozen,
    )


def _optimizer(config: DictConfig, names: Mapping[str, str], recommended: Recommended) -> Optimizer:
    """The optimizer that is chosen, at its own rate or else at the recommended one."""
    rate = recommended.lr.get(names["optimizer"])
    try:
        built: Optimizer = _build(config, "optimizer", {} if rate is None else {"lr": rate})
    except UnsetError as error:
        why = f"problem {names['problem']} recommends none for optimizer {names['optimizer']}"
        raise UnsetError(error.key, why) from error
    return built


def _prepared(
    own: Optimizer | None,
    before: Update,
    problem: Problem | Operation,
    name: str,
    steps: int,
    backend: Backend,
) -> Optimizer | None:
    """The optimizer for this problem, after what comes before its step; None for an operation."""
    if own is None:
        if before != Update():
            raise UserError(f"update: problem {name} learns nothing")
        return None
    if bound := getattr(own, "bound", None):  # as in the contract `Bound`
        own = bound(problem)
    with _named("update", Update):
        return before.around(own, steps, getattr(backend, "dtype", None))


def _eval_every(
    config: DictConfig, name: str, problem: Problem | Operation, recommended: Recommended
) -> int:
    """The steps after which a problem is evaluated again; 0 where there is nothing to evaluate."""
    evaluates = isinstance(problem, HasEvaluation)
    if hasattr(problem, "evaluate") and not evaluates:
        raise PluginError(f"problem {name}: it has evaluate, but no figures to name")
    every: int = _default(config, "eval_every", recommended.eval_every if evaluates else 0)
    takes = f"an integer of at least 0 and at most {MOST}"
    if not evaluates:
        takes = f"0: problem {name} has nothing to evaluate"
    check(0 <= every <= MOST * evaluates, "eval_every", every, takes)
    return every


def _target(
    config: DictConfig,
    name: str,
    problem: Problem | Operation,
    recommended: Recommended,
    eval_every: int,
) -> Target | None:
    """The target that a configuration sets, or that its problem recommends."""
    given: TargetKeys = _build(config, "target", {}) if "target" in config else TargetKeys()
    default = recommended.target
    if given == TargetKeys() and default is None:
        return None
    of = given.of or (default.of if default else "loss")
    figures = problem.figures if isinstance(problem, HasEvaluation) else {}
    known = ["loss", *(["gap"] if isinstance(problem, HasOptimum) else []), *figures]
    if isinstance(problem, Operation):
        raise ConfigError("target.of", of, f"null: {name} learns nothing")
    check(of in known, "target.of", of, f"{' or '.join(known)} for problem {name}")
    value = given.value
    if value is None and default and default.of == of:
        value = default.value
    if value is None:
        raise ConfigError("target.value", None, f"the value of {of} that is to be reached")
    if of in figures and not eval_every:
        if given == TargetKeys():
            return None  # nobody asked for it, and nothing is evaluated
        raise ConfigError("eval_every", 0, f"an integer of at least 1: target.of is {of}")
    return Target(of, value, given.stop, given.patience)


def _kept_word(word: str, kept_uri: str | None) -> str:
    """A word without any password. The tracking address is replaced as a whole: Hydra may have
    escaped it, and its password would not be found.
    """
    key = word.partition("=")[0]
    return f"{key}={kept_uri}" if key.lstrip("+") == "tracking.uri" else address.scrub(word)


def _build(config: DictConfig, group: str, defaults: Mapping[str, Any]) -> Any:
    node = config[group]
    try:
        container = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:  # a value refers to a key that does not exist
        reason = plain_reason(error)
        raise UserError(reason if reason.startswith(group) else f"{group}: {reason}") from error
    if not isinstance(container, dict):
        raise PluginError(f"{group}: got {container!r}, takes the keys of an option")
    values: dict[str, Any] = {str(key): value for key, value in container.items()}
    if group in OWN:
        cls: type[Any] = OWN[group]
    elif "_target_" in values:
        cls = _load(str(values.pop("_target_")), group)
    else:
        raise PluginError(f"{group}: the chosen option names no class in _target_")
    if not dataclasses.is_dataclass(cls):
        who = f"{getattr(cls, '__name__', cls)} in {getattr(cls, '__module__', 'its module')}"
        raise PluginError(f"{group}: {who} is no dataclass, whose fields would be its keys")
    known = [field.name for field in fields(cls)]
    for name in values:
        if name not in known:
            raise UserError(f"{group}.{name}: no such key; {group} takes {', '.join(known)}")
    for name, value in defaults.items():
        if values.get(name, "???") == "???":
            values[name] = value
    with _named(group, cls):
        # Thousands of cells share these few settings; objects of a plugin's class are not shared.
        if group in OWN:
            return _own(cls, json.dumps(values))
        return _typed(cls, values, MOST_OF_PROBLEM if group == "problem" else MOST)


def _typed(cls: type[Any], values: dict[Any, Any], most: int = MOST) -> Any:
    typed = OmegaConf.merge(OmegaConf.structured(cls), values)
    for missing in sorted(OmegaConf.missing_keys(typed)):
        raise UnsetError(str(missing))
    for key, value in typed.items():
        if isinstance(value, int) and value > most:
            raise ConfigError(str(key), value, f"an integer of at most {most}")
    return OmegaConf.to_object(typed)


@lru_cache(maxsize=100)
def _own(cls: type[Any], values: str) -> Any:
    return _typed(cls, json.loads(values))


@contextmanager
def _named(group: str, cls: type[Any]) -> Iterator[None]:
    """Put the group before the key in errors that are raised inside."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{group}.{error.key}", error.got, error.takes) from error
    except UnsetError as error:
        raise UnsetError(f"{group}.{error.key}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{group}.{plain_reason(error, cls)}") from error


def plain_reason(error: OmegaConfBaseException, cls: type[Any] = Config) -> str:
    """Shorten OmegaConf's message of several lines: the key, what it got, what it takes."""
    said = str(error.msg or error).splitlines()[0]
    key = str(error.full_key or "")
    parts = (*OWN.values(), cls)
    types = {f.name: str(f.type) for part in parts for f in fields(part)}
    kinds = {"int": "an integer", "float": "a number", "bool": "true or false"}
    kind = kinds.get(types.get(key.rpartition(".")[2], "").removesuffix(" | None"), "a value")
    if key == "stream":
        kind = " or ".join(STREAMS)
    if "does not support deletion" in said:
        return f"{key}: cannot be left out, takes {kind}"
    if "is not Optional" in said or "Incompatible value 'None'" in said:
        return f"{key}: got None, takes {kind}"
    got = re.search(r"Value '(.*?)' .*(?:be converted to|is not a valid) \w+", said)
    if got:
        return f"{key}: got {got[1]!r}, takes {kind}"
    return f"{key}: {said}" if key else said


def require_installed(config: Mapping[str, Any], remedy: str) -> None:
    """See that a configuration names only classes of installed options, since loading runs code.

    Args:
        remedy: what the user has to say to load another class.

    Raises:
        ConfigError: it names another class.
    """
    for group in ("problem", "optimizer", "backend"):
        options = config.get(group)
        target = options.get("_target_") if isinstance(options, Mapping | DictConfig) else None
        if target is not None and not _is_installed(str(target), group):
            takes = f"a class of an installed option; say {remedy} to load it anyway"
            raise ConfigError(f"{group}._target_", target, takes)


@cache
def _is_installed(target: str, group: str) -> bool:
    """Whether an option of this group names this class, the core's or an installed plugin's."""
    from expkit import plugins

    core = {"problem": problems, "optimizer": optimizers}
    own = (_path(cls) for _, cls in _classes(core[group])) if group in core else ()
    return target in own or plugins.names(target, group)


def _load(target: str, group: str) -> type[Any]:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if _is_module(target):
            reason = "it is a module and no class; takes MODULE.CLASS"
        raise PluginError(f"{group}: cannot import {target} ({reason})") from error
    if not isinstance(found, type):
        kind = type(found).__name__
        raise PluginError(f"{group}: {target} is a {kind} and no class; takes MODULE.CLASS")
    return found


def _is_module(target: str) -> bool:
    with suppress(Exception):  # importing its parent package may raise anything
        return find_spec(target) is not None
    return False


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a configuration by keys such as `problem` (the option) or `problem.n`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            for inner, field_value in value.items():
                yield key if inner == "name" else f"{key}.{inner}", field_value
        else:
            yield key, value


def _default(config: DictConfig, key: str, recommended: Any) -> Any:
    return config.get(key, recommended)  # which a key that is `???` counts as missing for


def _classes(package: Any) -> Iterator[tuple[str, type[Any]]]:
    """Each public module's one dataclass, with the module's name."""
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        own = [c for c in vars(module).values() if _is_own_dataclass(c, module.__name__)]
        if len(own) != 1:
            raise PluginError(f"{module.__name__}: defines {len(own)} dataclasses, takes one")
        yield info.name, own[0]


def _is_own_dataclass(value: Any, module: str) -> bool:
    is_class = isinstance(value, type) and dataclasses.is_dataclass(value)
    return is_class and value.__module__ == module


def _option(cls: type[Any]) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.structured(cls))
    assert isinstance(values, dict)
    return {"_target_": _path(cls), **values}


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _writable(cls: type[Any]) -> DictConfig:
    """The schema with its frozen parts open for overrides."""
    node: DictConfig = OmegaConf.structured(cls)
    for part in OWN:
        OmegaConf.set_readonly(node[part], False)
    return node
