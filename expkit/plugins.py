"""Find what is installed, without importing it.

A plugin is a package named in the entry-point group `expkit.plugins`. Its `conf/` folder holds
option files, such as `conf/backend/NAME.yaml`; one search-path plugin of the core adds that
folder to Hydra's. The package itself is imported by the cell that uses it and by nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from yaml import YAMLError

from expkit.errors import PluginError

GROUP = "expkit.plugins"
LAUNCHERS = {"slurm": "hydra_submitit_launcher", "ray": "hydra_ray_launcher"}
"""Our options of `hydra/launcher` that build on another project's launcher, and its package."""


def installed() -> dict[str, Path]:
    """The `conf/` folder of every installed plugin, by plugin name.

    Raises:
        PluginError: a package that cannot be found or has no `conf/`.
    """
    folders: dict[str, Path] = {}
    for point in sorted(set(entry_points(group=GROUP)), key=lambda p: p.name):
        folders[point.name] = _conf(point)
    return folders


def _conf(point: EntryPoint) -> Path:
    try:
        spec = find_spec(point.value)
    except ImportError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise PluginError(f"{_who(point)}: package {point.value} not found; reinstall or remove it")
    conf = Path(spec.submodule_search_locations[0], "conf")
    if not conf.is_dir():
        if spec.origin is None:  # not the package, but a folder that Python finds before it
            instead = "call expkit in another folder, or by its script and not as python -m expkit"
            raise PluginError(f"{_who(point)}: {conf.parent} is taken for it; {instead}")
        raise PluginError(f"{_who(point)}: no folder {conf}; it holds a plugin's option files")
    return conf


def _who(point: EntryPoint) -> str:
    distribution = point.dist.name if point.dist else "an unnamed distribution"
    return f"plugin {point.name} of {distribution}"


def _refuse_twins(folders: Mapping[str, Path], taken: Mapping[Path, str]) -> None:
    """Refuse two options of one name, of which Hydra would silently take the first."""
    owners = dict(taken)
    for name, folder in folders.items():
        for file in folder.rglob("*.yaml"):
            option = file.relative_to(folder)
            if option in owners:
                both = f"{owners[option]} and plugin {name}"
                raise PluginError(f"{both} both define the option {option}; remove one of them")
            owners[option] = f"plugin {name}"


def for_sweeps() -> list[tuple[str, str, dict[str, Any]]]:
    """Register our sweeper and launcher with Hydra: group, name and content of their options."""
    registry = Plugins.instance()  # first: it executes Hydra's own plugins and their bases anew
    from hydra_plugins.expkit import ExpkitSweeper, LocalLauncher

    launchers = [
        getattr(import_module(f"hydra_plugins.expkit._{name}"), f"{name.capitalize()}Launcher")
        for name in LAUNCHERS
        if not lacks(name)
    ]
    for plugin in (ExpkitSweeper, LocalLauncher, *launchers):
        registry.register(plugin)
    # hydra-ray-launcher stores an option with the name of ours, and Hydra would warn of two.
    ConfigStore.instance().repo["hydra"]["launcher"].pop("ray.yaml", None)
    module = ExpkitSweeper.__module__
    sweeper = {"_target_": f"{module}.ExpkitSweeper", "max_batch_size": None, "params": None}
    launcher = {"_target_": f"{module}.LocalLauncher"}
    return [("hydra/sweeper", "expkit", sweeper), ("hydra/launcher", "local", launcher)]


def names(target: str, group: str) -> bool:
    """Whether an option of an installed plugin, in this group, names this class.

    Raises:
        PluginError: a broken plugin.
    """
    files = (file for conf in installed().values() for file in (conf / group).rglob("*.yaml"))
    return any(_names(file, target) for file in files)


def _names(file: Path, target: str) -> bool:
    text = file.read_text()
    if target not in text:
        return False
    with suppress(YAMLError):  # Hydra reports it if the option is chosen
        option = OmegaConf.to_container(OmegaConf.create(text))
        return isinstance(option, dict) and option.get("_target_") == target
    return False


def lacks(launcher: str) -> str | None:
    """The package that one of our launchers needs and that is not installed."""
    package = LAUNCHERS.get(launcher)
    return package if package and find_spec(f"hydra_plugins.{package}") is None else None


def register(taken: Mapping[Path, str]) -> list[Path]:
    """Put every plugin's `conf/` on Hydra's search path, and return these folders.

    Call before Hydra composes.

    Args:
        taken: the core's own option files, with their owner.

    Raises:
        PluginError: a broken plugin, or an option that is defined twice.
    """
    folders = installed()
    _refuse_twins(folders, taken)

    class ExpkitSearchPath(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for name, folder in folders.items():
                search_path.append(provider=f"expkit-{name}", path=f"file://{folder}")

    Plugins.instance().register(ExpkitSearchPath)
    return list(folders.values())
