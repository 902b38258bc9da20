"""The core needs no PyTorch: in a process that cannot import it, NumPy runs and torch is named."""

import subprocess
import sys
from pathlib import Path

WITHOUT = """
import sys
sys.modules["torch"] = None  # what a missing package looks like to import and to find_spec
from expkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(outputs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, "tracking=none", f"outputs={outputs}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_numpy_runs(tmp_path: Path) -> None:
    done = run(tmp_path, "problem=sine", "steps=20", "measure.settle_s=0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sine · numpy · sgd" in done.stdout


def test_torch_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    done = run(tmp_path, "backend=torch")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "backend=torch" in done.stderr
    assert "pip install" in done.stderr
