"""Hydra's and OmegaConf's errors as one line: the key, what it got, what it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from expkit import plugins
from expkit.config import options, plain_reason
from expkit.errors import UserError
from expkit.tracking import address


@contextmanager
def explained(words: Sequence[str], commands: Sequence[str] = ()) -> Iterator[None]:
    """Turn errors of Hydra, OmegaConf or YAML in composing these words into one line.

    Raises:
        UserError: one of them raised an error.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(explain(error, words, commands)) from error


def explain(error: Exception, words: Sequence[str], commands: Sequence[str] = ()) -> str:
    """What to print for an error in composing these words.

    Args:
        commands: the commands that may stand in place of words, on a command line.
    """
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, ConfigCompositionException):
        said = str(error)
        if unknown := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", said):
            key = unknown[1]
            if "defaults list" in said and (word := _with(words, f"{key}=")) and options(key):
                return f"{word}: none is chosen yet; takes +{word}"
            return f"{key}: no such key; {_siblings(key, words)}"
        if isinstance(error.__cause__, OmegaConfBaseException):
            error = error.__cause__
        elif several := re.search(f"(?:{'|'.join(SEVERAL)}).*?'(.*)'", said):
            key, _, value = several[1].partition("=")
            takes = "one value; expkit -m makes a sweep of several"
            if "not supported" in said:
                takes = "one value for the whole sweep"
            return f"{key}: got {value!r}, takes {takes}"
    if isinstance(error, OmegaConfBaseException):
        return plain_reason(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(address.scrub(str(error.override)), commands)
    if isinstance(error, KeyError) and (word := _with(words, "hydra.job.env_copy=")):
        takes = f"variables that are set: {error.args[0]} is not"
        return f"hydra.job.env_copy: got {word.partition('=')[2]}, takes {takes}"
    if isinstance(error, ValueError) and str(error).startswith("Unable to configure"):
        why = error.__cause__ or error
        return f"hydra.job_logging: {error}: {why}; takes what Python's logging.config takes"
    for kind in ("interval", "range"):
        if kind in str(error).lower() and (word := _with(words, f"={kind}(")):
            key, _, value = word.partition("=")
            if kind == "range":
                return f"{key}: got {value!r}: {error}"
            takes = "a list: only a sweeper that searches takes it, such as hydra/sweeper=optuna"
            return f"{key}: got {value!r}, takes {takes}"
    if not isinstance(error, HydraException | YAMLError):
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)


SEVERAL = (
    "Ambiguous value for argument",
    "Sweep parameters",
    "Sweeping over Hydra's configuration",
)
"""What Hydra's messages about several values for one key begin with."""


def _unreadable(word: str, commands: Sequence[str]) -> str:
    """The message for a word that Hydra's grammar does not take."""
    key, mark, _ = word.partition("=")
    if not mark:
        also = f"{', '.join(commands)}, or " if commands else ""
        return f"{word}: no such command, takes {also}words as key=value"
    rule = "quotes around a value that holds any of = , : { } [ ] ( ) or begins with a space"
    return f"""{word}: cannot be read; takes key=value, with {rule}, such as '{key}="..."'"""


def _missing(error: MissingConfigException) -> str:
    """The message for a missing option or file, without the search path that Hydra would print."""
    if error.options is not None:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        said = f"{group}: got {option!r}, takes {', '.join(sorted(error.options))}"
        if option in plugins.installed():
            said += f"; the plugin {option} is installed, but ships no conf/{group}/{option}.yaml"
        return said
    said = str(error).splitlines()[0]
    if "primary config" in said:
        takes = "config, or a file of --config-dir with defaults: [config]"
        return f"--config-name: got {error.missing_cfg_file!r}, takes {takes}"
    return said


def _with(words: Sequence[str], part: str) -> str | None:
    return next((word for word in words if part in word), None)


def _siblings(key: str, words: Sequence[str]) -> str:
    """Name the keys that exist where this one was looked for."""
    parent = key.rpartition(".")[0]
    choices = [w.split(",")[0] for w in words if "=" in w and "." not in w.partition("=")[0]]
    GlobalHydra.instance().clear()
    with suppress(HydraException, OmegaConfBaseException):
        with initialize_config_module("expkit.conf", version_base="1.3"):
            composed = compose("config", [c for c in choices if c.partition("=")[0] != key])
        node = OmegaConf.select(composed, parent) if parent else composed
        if isinstance(node, DictConfig):
            names = [str(name) for name in node if not str(name).startswith("_")]
            return f"{parent or 'the top level'} takes {', '.join(names)}"
    return "see --help"
