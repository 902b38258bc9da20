"""What is typed: Hydra's flags in any place, and words of the form key=value."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml
from omegaconf._utils import get_yaml_loader

from expkit.errors import ConfigError, Unavailable, UserError

ONE_OF = ("run", "multirun", "cfg", "info", "shell_completion")
"""The flags that select what is done; at most one of them may be given."""

PLACES = ("outputs", "hydra.run.dir", "hydra.sweep.dir")
SHELL = re.compile("(?:install|uninstall|query)=.")


def parse(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words, and the flags with their values.

    Hydra's own parser mistakes words that follow a flag for unknown options.

    Raises:
        UserError: an unknown flag, or flags that do not go together.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    given, unknown = parser.parse_known_intermixed_args(list(argv))
    words: list[str] = given.overrides
    for flag in [*unknown, *(word for word in words if word.startswith("-"))]:
        raise UserError(f"{flag}: no such option; see --help")
    _check_flags(given)
    if given.multirun and "hydra.mode=RUN" in words:
        raise ConfigError("hydra.mode", "RUN", "MULTIRUN, or nothing, beside -m")
    rest, flags = list(words), []
    for item in argv:
        if rest and item == rest[0]:
            rest.pop(0)
        elif item != "--":
            flags.append(item)
    return [] if given.hydra_help else words, flags  # Hydra's help fails on our words


def _refuse(message: str) -> NoReturn:
    """Raise an error, in place of argparse's usage message of several lines."""
    raise UserError(f"{message.removeprefix('argument ')}; see --help")


def _check_flags(given: Namespace) -> None:
    asked = [name for name in ONE_OF if getattr(given, name) not in (False, None)]
    if len(asked) > 1:
        both = " and ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise UserError(f"{both}: these do not go together, give one of them")
    if given.shell_completion and not any(map(SHELL.match, given.overrides)):
        raise UserError("--shell-completion: takes install=, uninstall= or query= and a shell")
    for name in ("resolve", "package"):
        if getattr(given, name) and not given.cfg:
            raise UserError(f"--{name}: says how --cfg prints, so it takes --cfg job beside it")
    if given.experimental_rerun is not None:  # it would load any pickle
        raise UserError("--experimental-rerun: no such option; see config.yaml in the run's folder")
    if given.config_path is not None:
        takes = "takes nothing: --config-dir adds a folder of option files"
        raise UserError(f"--config-path: got {given.config_path!r}, {takes}")
    if given.config_dir is not None and not (given.config_dir and Path(given.config_dir).is_dir()):
        raise UserError(f"--config-dir: got {given.config_dir!r}, takes a folder of option files")


def option_folder(flags: Sequence[str]) -> list[Path]:
    """The folder of `--config-dir`, if it is given."""
    from hydra._internal.utils import get_args_parser

    given = get_args_parser().parse_args(list(flags)).config_dir
    return [Path(given)] if given else []


def check_words(words: Sequence[str], folders: Sequence[Path] = ()) -> None:
    """Refuse words that Hydra accepts but that make no sense here.

    Args:
        folders: additional folders of option files, beside those of the plugins.

    Raises:
        UserError: a word is refused; the message says what it got and what it takes.
    """
    from expkit import config, plugins

    folders = [*folders, *config.register()]
    for word in words:
        key, _, value = word.partition("=")
        if key.startswith("~") and key[1:].partition("@")[0] in config.KEYS:
            takes = _options(key[1:]) if key[1:] in config.GROUPS else "a value"
            raise ConfigError(key[1:], word, f"{takes}: no key of the top level can be left out")
        if "=" not in word:
            continue
        group = key.lstrip("+")
        if not group:
            raise UserError(f"{word}: has no key; takes key=value")
        if group != key and group in config.GROUPS:
            raise UserError(f"{word}: one is chosen already; takes {group}={value}, without +")
        for option in value.split(","):
            for folder in folders:
                _check_option(group, folder / group / f"{option}.yaml")
        none_or_list = value == "null" or value.startswith("[")
        if none_or_list and "." not in group and group not in PLACES and config.options(group):
            raise ConfigError(group, value, _options(group))
        if key in PLACES and value.strip("'\"") in ("", "null"):  # else Hydra writes to / or here
            raise ConfigError(key, value, "a folder")
        if key == "hydra.verbose" and re.match(r"[{\d-]", value):
            raise ConfigError(key, value, "true, false, or a logger's name or a list of these")
        if key == "hydra.job.name" and "/" in value:
            raise ConfigError(key, value, "a name without /: it is the log file's")
        if key == "hydra/launcher" and (package := plugins.lacks(value)):
            remedy = f"pip install 'expkit[{value}]'"
            raise Unavailable(f"{key}={value} needs {package}, which is not installed", remedy)


def _check_option(group: str, file: Path) -> None:
    """Refuse an option file that holds no keys, on which Hydra and OmegaConf fail."""
    from expkit import config

    try:
        text = file.read_bytes()
    except PermissionError as error:
        raise UserError(f"{group}: {file}: {error.strerror}") from error
    except (OSError, ValueError):  # it does not exist; Hydra reports it if no other does
        return
    try:
        found = yaml.load(text.decode(), Loader=get_yaml_loader())
    except (UnicodeError, yaml.YAMLError) as error:
        said = re.sub(r'in "<unicode string>",\s*', "at ", " ".join(str(error).split()))
        raise UserError(f"{group}: {file}: it is not YAML in UTF-8 ({said})") from error
    if found is None and group not in config.NAMING_A_CLASS:
        return  # an empty option changes nothing
    if not isinstance(found, dict):
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise UserError(f"{group}: {file}: it holds {kind}, takes keys with values")


def _options(group: str) -> str:
    from expkit import config

    return f"one of {', '.join(config.options(group))}"
