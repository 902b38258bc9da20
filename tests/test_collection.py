"""`make test` needs no extra but `dev`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXTRAS = ("submitit", "ray", "optuna", "psycopg2")
LAUNCHERS = ("ray_launcher", "submitit_launcher", "optuna_sweeper")
COLLECT = """
import sys, pytest
sys.modules.update(dict.fromkeys(sys.argv[1:]))
sys.exit(pytest.main(["--collect-only", "-q"]))
"""


def test_every_test_is_collected_without_the_extras() -> None:
    absent = [*EXTRAS, *(f"hydra_plugins.hydra_{name}" for name in LAUNCHERS)]
    command = [sys.executable, "-c", COLLECT, *absent]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
