"""Hydra's and OmegaConf's errors as one line: the key, what it got, what it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

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

from expkit.config import plain_reason


def explain(error: Exception, argv: Sequence[str]) -> str:
    """What to print for an error in composing these words."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        return f"{group}: got {option!r}, takes {', '.join(sorted(error.options))}"
    if isinstance(error, ConfigCompositionException):
        unknown = re.match(r"Could not override '([\w.]+)'", str(error))
        if unknown:
            return f"{unknown[1]}: no such key; {_siblings(unknown[1], argv)}"
        if isinstance(error.__cause__, OmegaConfBaseException):
            error = error.__cause__
    if isinstance(error, OmegaConfBaseException):
        return plain_reason(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {str(error).splitlines()[0]}; takes key=value"
    if not isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)


def _siblings(key: str, argv: Sequence[str]) -> str:
    """The keys that stand where this one was looked for."""
    parent = key.rpartition(".")[0]
    choices = [w.split(",")[0] for w in argv if "=" in w and "." not in w.partition("=")[0]]
    GlobalHydra.instance().clear()
    with suppress(HydraException, OmegaConfBaseException):
        with initialize_config_module("expkit.conf", version_base="1.3"):
            composed = compose("config", [c for c in choices if c.partition("=")[0] != key])
        node = OmegaConf.select(composed, parent) if parent else composed
        if isinstance(node, DictConfig):
            names = [str(name) for name in node if not str(name).startswith("_")]
            return f"{parent or 'the top level'} takes {', '.join(names)}"
    return "see --help"
