"""How a run ends."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The word for it, as journals, tables and MLflow have it."""

    OK = "ok"
    DIVERGED = "diverged"
    """A loss is not finite."""
    WRONG_ANSWER = "wrong_answer"
    NOT_SYNCHRONIZED = "not_synchronized"
    """Work was left when the clock had stopped."""
    OFF_THE_CLOCK = "off_the_clock"
    """Work was done before the clock started, or while nobody asked for it."""
    BEYOND_LIMIT = "beyond_limit"
    """Faster than the machine can be."""
    FAILED = "failed"
    UNAVAILABLE = "unavailable"
    """This machine cannot run it."""
    INTERRUPTED = "interrupted"
    RUNNING = "running"
    """It has not ended."""


FINISHED = (Outcome.OK, Outcome.DIVERGED)
"""Outcomes that are a result."""
ALIKE = (
    Outcome.WRONG_ANSWER,
    Outcome.NOT_SYNCHRONIZED,
    Outcome.OFF_THE_CLOCK,
    Outcome.BEYOND_LIMIT,
)
"""Failures that come again as long as nobody mends their cause."""
