"""Import MLflow without the optional libraries that expkit does not need (MLflow 3.17).

They would make the import half as long again. An MLflow that needs them is imported with them.
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
"""Libraries that MLflow and its dependencies import if present, and expkit does not need."""
UPLOAD = "expkit.tracking.upload"


def uploader(progress: Callable[[], None]) -> Uploader:
    """Import MLflow and return an uploader.

    The optional libraries are hidden from the import, unless this MLflow cannot do without them.
    """
    web = ModuleType("fastapi")  # for servers, but mlflow.gateway.utils needs this class
    web.__dict__["HTTPException"] = Exception
    spared: dict[str, Any] = {"fastapi": web, **dict.fromkeys(OPTIONAL)}
    sys.modules.update(spared)
    try:
        return _imported(progress)
    except Exception:  # whatever MLflow raises if something is missing
        begun = [name for name in sys.modules if name.split(".")[0] in (*spared, "mlflow")]
        for name in [*begun, UPLOAD]:
            sys.modules.pop(name, None)
        return _imported(progress)


def _imported(progress: Callable[[], None]) -> Uploader:
    upload = import_module(UPLOAD)
    upload.database.preload()
    uploader: Uploader = upload.Uploader(progress)
    return uploader
