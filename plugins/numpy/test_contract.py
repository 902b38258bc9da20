"""The NumPy backend keeps to the contract."""

from expkit.testing import BackendContract


class TestNumpy(BackendContract):
    backend = "numpy"
    exact = True
