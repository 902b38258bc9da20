"""Facts about what a program really works with, by which two programs are compared.

Facts are read from the built program and the running process, not from the configuration. They
are written into the run's record; a comparison lists every one that differs.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from expkit.authors import stream
from expkit.contracts import Array, Backend, HostArray, Program, Workload
from expkit.measure.devices import HOST, device_name
from expkit.measure.environment import cpu_model, gpu_driver, versions

Facts = Mapping[str, str]

WORK = {
    "dtype": "dtype",
    "device": "device",
    "threads": "threads",
    "tf32": "TF32",
    "matmul_precision": "matmul precision",
    "problem": "problem",
    "optimizer": "optimizer",
    "steps": "steps",
    "ended": "steps until the run ended",
    "log_every": "log_every (steps between two readings)",
    "start": "start (hash of the first parameters)",
    "data": "data (hash)",
    "stream": "random stream",
}
"""Facts about the work itself. A backend reports TF32 and precision only where it has them."""
DRAWN = 10_000
"""The number of values that identify a random stream."""
QUARTILE = 0.6745
"""Half of all standard normal values are nearer to 0 than this."""
ODD = 0.08
"""How far the mean, the standard deviation and that half may be off: at least 8 standard errors."""
PLACE = {
    "host": "machine",
    "cpu": "processor",
    "cores": "cores",
    "driver": "GPU driver",
    "versions": "versions",
}
"""Facts about where it ran, which are always the same for two programs of one process."""


def facts(backend: Backend, workload: Workload, program: Program, log_every: int) -> Facts:
    """Return the facts about a program that has just been reset."""
    arrays = program.arrays()
    about = backend.describe()
    settings = ("threads", "tf32", "matmul_precision")
    said: dict[str, str] = {key: str(about[key]) for key in settings if key in about}
    groups = {
        name: {k: v for k, v in arrays.items() if k.startswith(f"{name}.")}
        for name in ("data", "params")
    }
    device = _device(arrays, about)
    if device != HOST and (driver := gpu_driver()) is not None:
        said["driver"] = driver
    return said | {
        "dtype": _listed(_dtype(array) for array in arrays.values()) or str(about["dtype"]),
        "device": device,
        "problem": repr(workload.problem),
        "optimizer": repr(workload.optimizer),
        "steps": str(workload.steps),
        "log_every": str(log_every),
        "start": _hash(backend, groups["params"]),
        "data": _hash(backend, groups["data"]),
        **_stream(backend, workload),
        "host": platform.node(),
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items() if k != "mlflow")
        + f", python {platform.python_version()}",
    }


def broken_claims(backend: Backend, requested_threads: int | None, found: Facts) -> list[str]:
    """List where the facts contradict what the backend or the configuration says."""
    claimed = str(backend.describe()["dtype"])
    broken = []
    if found["dtype"] != claimed:
        broken.append(f"dtype: says {claimed}, its arrays are {found['dtype']}")
    drawn = found.get("drawn", claimed)
    if drawn != claimed:
        broken.append(f"dtype: says {claimed}, what it draws is {drawn}")
    if requested_threads is not None and found.get("threads") != str(requested_threads):
        broken.append(f"threads: asked for {requested_threads}, has {found.get('threads')}")
    if found.get("tf32", "0") not in ("0", "False") and claimed == "float32":
        broken.append("dtype: says float32, matrix products use TF32 (10 bits of mantissa)")
    return broken


def differences(a: Facts, b: Facts, names: Mapping[str, str] = WORK) -> list[str]:
    """Each fact that both have and that differs, a line each.

    >>> differences({"dtype": "float64"}, {"dtype": "float32"})
    ['dtype: float64 against float32']
    """
    if "ended" in a or "ended" in b:  # one that ran to its end has done all its steps
        a, b = ({"ended": side.get("steps", ""), **side} for side in (a, b))
    return [
        f"{said}: {a[key]} against {b[key]}"
        for key, said in names.items()
        if key in a and key in b and a[key] != b[key]
    ]


class Worked(Protocol):
    """Anything that did the work: a result, a stored run, or a cell of a sweep.

    Attributes:
        facts: what its program worked with.
        broken: where that differs from what it claims.
    """

    @property
    def facts(self) -> Facts: ...

    @property
    def broken(self) -> Sequence[str]: ...


def unlike(a: Worked, b: Worked, names: tuple[str, str] = ("A", "B")) -> list[str]:
    """List where two do not do the same work, or where one does not do what it claims, a line each.

    Args:
        names: the names of the two, for lines about one of them.
    """
    sides = zip(names, (a, b), strict=True)
    claims = (f"{name}: {claim}" for name, side in sides for claim in side.broken)
    return [*differences(a.facts, b.facts), *claims]


def target(a: Facts, b: Facts) -> str | None:
    """The target that two have in common, whose work differs in the optimizer alone; else None."""
    others = {key: said for key, said in WORK.items() if key not in ("optimizer", "ended")}
    aims = ("target", "evaluated")
    same = not differences(a, b, others) and all(a.get(k) == b.get(k) for k in aims)
    return a.get("target") if same else None


def _dtype(array: Array) -> str:
    return str(array.dtype).rpartition(".")[2]


def _device(arrays: Mapping[str, Array], about: Mapping[str, str | int | float]) -> str:
    """The devices that hold the arrays: `cpu`, or the model that the backend reports.

    A name such as `cuda:0` would not do: it is another model on another machine.
    """
    model = device_name(about["device"])
    places = {device_name(getattr(array, "device", HOST)) for array in arrays.values()} or {model}
    if model == HOST:
        return _listed(places)
    if "capability" in about:
        model += f" (compute capability {about['capability']})"
    return _listed(HOST if place == HOST else model for place in places)


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _hash(backend: Backend, arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = backend.to_numpy(arrays[name])
        digest.update(f"{name}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:12]


def _stream(backend: Backend, workload: Workload) -> dict[str, str]:
    """Describe the first random values as the backend sees them, and their dtype as `drawn`.

    Values that the host draws are described by a hash. With `stream=device` each library draws its
    own, so the bits differ, and the work is the same if both draw standard normal values.
    """
    if workload.stream == "shared":
        array = stream(backend, workload).normal((DRAWN,))
        digest = hashlib.sha256(backend.to_numpy(array).data).hexdigest()[:12]
        return {"stream": f"shared {digest}", "drawn": _dtype(array)}
    try:
        array = stream(backend, workload).normal((DRAWN,))
        values, drawn = backend.to_numpy(array), _dtype(array)
    except Exception:  # a backend without a generator can run problems that draw nothing
        return {"stream": f"{workload.stream}, none"}
    return {"stream": f"{workload.stream}, {_distribution(values)}", "drawn": drawn}


def _distribution(values: HostArray) -> str:
    """Say that these values are standard normal, or what they are instead."""
    mean, deviation = float(values.mean()), float(values.std())
    inner = float(np.mean(np.abs(values) < QUARTILE))
    if max(abs(mean), abs(deviation - 1), abs(inner - 0.5)) < ODD:
        return "standard normal"
    within = f"{inner:.0%} within {QUARTILE} of 0"
    return f"mean {mean:.2g}, standard deviation {deviation:.2g}, {within}"
