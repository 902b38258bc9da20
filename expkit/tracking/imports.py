"""What MLflow need not import, seen in MLflow 3.17; with another it is MLflow's own way.

What it imports for uses that are not ours takes half as long again as what it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expkit.tracking.upload import Uploader

OPTIONAL = ("numpy", "pandas", "pyarrow", "scipy", "sklearn", "pygments")
"""What MLflow and its libraries import if it is there, for uses that are not ours."""
UPLOAD = "expkit.tracking.upload"


def uploader(progress: Callable[[], None]) -> Uploader:
    """An uploader, with MLflow and what it needs imported.

    What is optional is not there to be imported, unless this MLflow cannot do without.
    """
    web = ModuleType("fastapi")  # its servers': beside them, mlflow.gateway.utils raises this
    web.__dict__["HTTPException"] = Exception
    spared: dict[str, Any] = {"fastapi": web, **dict.fromkeys(OPTIONAL)}
    sys.modules.update(spared)
    try:
        return _imported(progress)
    except Exception:  # whatever an MLflow says that misses something
        begun = [name for name in sys.modules if name.split(".")[0] in (*spared, "mlflow")]
        for name in [*begun, UPLOAD]:
            sys.modules.pop(name, None)
        return _imported(progress)


def _imported(progress: Callable[[], None]) -> Uploader:
    upload = import_module(UPLOAD)
    upload.database.preload()
    uploader: Uploader = upload.Uploader(progress)
    return uploader
