"""The contracts as test classes: derive one, name your option, and pytest does the rest.

    from expkit.testing import BackendContract

    class TestMine(BackendContract):
        backend = "mine"

Every installed problem and optimizer is tried, so a new one is tested by being there.
"""

from expkit.testing.backend import BackendContract
from expkit.testing.optimizer import OptimizerContract
from expkit.testing.problem import ProblemContract

__all__ = ["BackendContract", "OptimizerContract", "ProblemContract"]
