"""The tracker's process spares itself what MLflow imports for others, if MLflow lets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

SERVES = """
    import sys
    from expkit.tracking.imports import uploader
    found = uploader(lambda: None)
    print(type(found).__name__, getattr(sys.modules.get("numpy"), "__name__", "spared"))
"""


def uploader_beside(folder: Path) -> str:
    """What the import comes to where this folder is searched first."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{dedent(SERVES)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_others_need_is_spared(tmp_path: Path) -> None:
    assert uploader_beside(tmp_path) == "Uploader spared"


@pytest.mark.parametrize("needs", ["import numpy", "from fastapi import FastAPI"])
def test_an_mlflow_that_needs_it_gets_it(tmp_path: Path, needs: str) -> None:
    """The installed MLflow, with a first module that needs what is spared."""
    import mlflow

    package = tmp_path / "mlflow"
    package.mkdir()
    found = Path(mlflow.__file__)
    text = found.read_text().replace(
        '"""\n\nimport contextlib', f'"""\n\n{needs}\nimport contextlib'
    )
    assert needs in text
    (package / "__init__.py").write_text(text)
    for file in found.parent.iterdir():
        if file.name not in ("__init__.py", "__pycache__"):
            (package / file.name).symlink_to(file)
    assert uploader_beside(tmp_path) == "Uploader numpy"
