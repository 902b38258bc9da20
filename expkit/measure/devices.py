"""Names of devices: the host's processor has one name, whatever a library calls it."""

from __future__ import annotations

import re

from expkit.measure.environment import cpu_model

HOST = "cpu"
_CALLED_HOST = re.compile(r"(?<![a-z])(cpu|host)(device)?(?![a-z])")


def device_name(said: object) -> str:
    """Return `cpu` for the processor that runs Python, else the device's own name.

    >>> [device_name(said) for said in ("cpu:0", "TFRT_CPU_0", "CpuDevice(id=0)", "gpu:0")]
    ['cpu', 'cpu', 'cpu', 'gpu:0']
    """
    name = str(said)
    return HOST if _CALLED_HOST.search(name.lower()) or name == cpu_model() else name


def is_host(said: object) -> bool:
    """Whether this is the processor that runs Python, and not a device of its own."""
    return device_name(said) == HOST
