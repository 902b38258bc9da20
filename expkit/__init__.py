"""Run numerical experiments from configuration and compare ways of computing them.

Start reading at `expkit.contracts`.
"""

__version__ = "0.1.0"
