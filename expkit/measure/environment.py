"""The machine that a run used, as far as it can be read, and what the machine did meanwhile.

Nothing here raises an error: what cannot be read is None or missing, never a guess. Functions that
read files take the file system's `root`, which is another folder only in tests.

What to record follows pyperf's metadata (https://pyperf.readthedocs.io/en/latest/api.html#metadata).
What the files mean is in the kernel's documentation: Documentation/admin-guide/pm/cpufreq.rst and
cgroup-v2.rst, Documentation/accounting/psi.rst, Documentation/ABI/testing/sysfs-devices-system-cpu,
and proc_stat(5); what the GPU's fields mean, in `nvidia-smi --help-query-gpu`.
"""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any

import threadpoolctl

PACKAGES = ("expkit", "numpy", "torch", "hydra-core", "omegaconf", "mlflow")
ROOT = Path("/")
CPU = "sys/devices/system/cpu"


def environment(root: Path = ROOT) -> dict[str, Any]:
    """Machine, processor, clocks, load, memory, Python, BLAS, versions, git state, GPUs: for JSON.

    Sets of CPUs stay as the kernel writes them ("0-3,8"), see `cpu_list`. Shares are from 0 to 1.
    Takes about 20 ms, plus the time of `nvidia-smi` where there is one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    loadavg = (_read(root / "proc/loadavg") or "").split()
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "uptime_s": _number(root / "proc/uptime"),
        "virtual": virtual(root),
        "on_battery": on_battery(root),
        "cpu": cpu_model(root),
        "cores": os.cpu_count(),
        "core_cpus": core_cpus(root),
        "smt": _flag(root / CPU / "smt/active"),
        "numa_cpus": numa_cpus(root),
        "affinity": cpus,
        "isolated": _read(root / CPU / "isolated") or None,
        "nohz_full": _read(root / CPU / "nohz_full") or None,
        "cpu_quota": cpu_quota(root),
        "frequency": frequency(root, cpus),
        "idle_driver": _read(root / CPU / "cpuidle/current_driver"),
        "temperature_c": temperature(root),
        "load": [float(word) for word in loadavg[:3]] or None,
        "runnable": int(loadavg[3].partition("/")[0]) if len(loadavg) > 3 else None,
        "cpu_pressure": cpu_pressure(root),
        "steal_share": _steal_share(_cpu_ticks(root).values()),
        "memory_bytes": memory_bytes(root),
        "huge_pages": huge_pages(root),
        "aslr": _integer(root / "proc/sys/kernel/randomize_va_space"),
        "clock": clock(root),
        "python": sys.version.split()[0],
        "python_implementation": platform.python_implementation(),
        "python_executable": sys.executable,
        "python_compiler": platform.python_compiler(),
        "python_cflags": sysconfig.get_config_var("CFLAGS"),
        "hash_seed": os.environ.get("PYTHONHASHSEED"),
        "hash_randomization": bool(sys.flags.hash_randomization),
        "gc": {"enabled": gc.isenabled(), "thresholds": list(gc.get_threshold())},
        "threadpools": threadpoolctl.threadpool_info(),
        "thread_variables": {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")},
        "versions": versions(),
        "git": _git_of_process(Path.cwd()),
        "gpus": gpus(),
    }


def cpu_list(text: str) -> list[int]:
    """The CPUs of a set as the kernel writes it.

    >>> cpu_list("0-2,5")
    [0, 1, 2, 5]
    >>> cpu_list("")
    []
    """
    ends = (part.split("-") for part in text.split(",") if part)
    return [cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1)]


def cpu_model(root: Path = ROOT) -> str:
    """The processor's name."""
    return _cpuinfo(root, "model name") or platform.processor() or platform.machine()


def virtual(root: Path) -> bool | None:
    """Whether the processor's flags name a hypervisor; None where there are no flags to read."""
    flags = _cpuinfo(root, "flags")
    return None if flags is None else "hypervisor" in flags.split()


def on_battery(root: Path) -> bool | None:
    """Whether the mains are unplugged; None for a machine that does not say."""
    supplies = sorted((root / "sys/class/power_supply").glob("*"))
    mains = [_flag(supply / "online") for supply in supplies if _read(supply / "type") == "Mains"]
    return not any(mains) if mains else None


def core_cpus(root: Path) -> list[str] | None:
    """The CPUs of every physical core: more than one on a core are SMT siblings."""
    cores: list[str] = []
    seen: set[int] = set()
    for cpu in cpu_list(_read(root / CPU / "online") or ""):
        siblings = _read(root / CPU / f"cpu{cpu}/topology/thread_siblings_list")
        if siblings and cpu not in seen:
            cores.append(siblings)
            seen.update(cpu_list(siblings))
    return cores or None


def numa_cpus(root: Path) -> list[str] | None:
    """The CPUs of every memory node."""
    nodes = root / "sys/devices/system/node"
    found = [_read(nodes / f"node{n}/cpulist") for n in cpu_list(_read(nodes / "online") or "")]
    return [cpus for cpus in found if cpus] or None


def cpu_quota(root: Path) -> float | None:
    """How many CPUs' time the control groups allow; None where they set no limit.

    It is the least of the quotas of the process's group and all groups above it. Version 2 has it
    in `cpu.max`, version 1 in `cpu.cfs_quota_us`, where -1 means no limit.
    """
    quotas = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = (controllers, "cpu") if controllers else ("", "unified")
        group = PurePosixPath(path.strip("/"))
        for mount in dict.fromkeys(mounts):
            for level in dict.fromkeys((group, *group.parents)):
                quotas.append(_group_quota(root / "sys/fs/cgroup" / mount / level))
    return min((quota for quota in quotas if quota is not None), default=None)


def _group_quota(folder: Path) -> float | None:
    words = (_read(folder / "cpu.max") or "").split()
    if not words:
        words = [_read(folder / f"cpu.cfs_{name}_us") or "-1" for name in ("quota", "period")]
    limit, period = words
    return None if limit in ("max", "-1") else int(limit) / int(period)


def frequency(root: Path, cpus: Sequence[int]) -> dict[str, Any]:
    """What controls the clock of these CPUs, its limits, and its frequency now.

    `governors` lists all that are in use; `min_mhz` and `max_mhz` are the limits over all these
    CPUs, `now_mhz` is the mean. `turbo` is whether the clock may rise above the nominal one.
    """
    folders = [root / CPU / f"cpu{cpu}/cpufreq" for cpu in cpus]
    governors = {_read(folder / "scaling_governor") for folder in folders}
    lows = [low for f in folders if (low := _integer(f / "scaling_min_freq")) is not None]
    highs = [high for f in folders if (high := _integer(f / "scaling_max_freq")) is not None]
    now = _mhz(root, cpus)
    no_turbo = _flag(root / CPU / "intel_pstate/no_turbo")
    boost = _flag(root / CPU / "cpufreq/boost")
    return {
        "driver": _read(folders[0] / "scaling_driver"),
        "governors": sorted(governor for governor in governors if governor),
        "min_mhz": min(lows) / 1000 if lows else None,
        "max_mhz": max(highs) / 1000 if highs else None,
        "now_mhz": round(fmean(now.values())) if now else None,
        "turbo": boost if no_turbo is None else not no_turbo,
    }


def temperature(root: Path) -> float | None:
    """Degrees Celsius of the processor's hottest sensor."""
    sensors = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
    names = (root / "sys/class/hwmon").glob("*/name")
    chips = (name.parent for name in names if _read(name) in sensors)
    files = (file for chip in chips for file in chip.glob("temp*_input"))
    found = [degrees for file in files if (degrees := _integer(file)) is not None]
    return max(found) / 1000 if found else None


def cpu_pressure(root: Path) -> dict[str, float] | None:
    """The share of the last 10, 60 and 300 seconds in which some task waited for a CPU."""
    for line in (_read(root / "proc/pressure/cpu") or "").splitlines():
        kind, *pairs = line.split()
        if kind == "some":
            shares = (pair.split("=") for pair in pairs)
            return {name: float(of) / 100 for name, of in shares if name.startswith("avg")}
    return None


def memory_bytes(root: Path) -> int | None:
    """The memory of the whole machine."""
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def huge_pages(root: Path) -> str | None:
    """The mode of transparent huge pages: `always`, `madvise` (on request) or `never`."""
    modes = _read(root / "sys/kernel/mm/transparent_hugepage/enabled") or ""
    return next((mode.strip("[]") for mode in modes.split() if mode.startswith("[")), None)


def clock(root: Path) -> dict[str, Any]:
    """The clock that times are read from, with its declared and its observed resolution."""
    declared = time.get_clock_info("perf_counter")
    return {
        "source": _read(root / "sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "implementation": declared.implementation,
        "resolution_s": declared.resolution,
        "observed_s": _observed_resolution(),
    }


def _observed_resolution() -> float | None:
    """The least positive difference of consecutive readings, in seconds."""
    steps, last = [], time.perf_counter_ns()
    for _ in range(200_000):  # some 10 ms at most, two ticks of the coarsest clock
        now = time.perf_counter_ns()
        if now > last:
            steps.append(now - last)
            if len(steps) == 200:
                break
        last = now
    return min(steps) / 1e9 if steps else None


def versions() -> dict[str, str]:
    """Version by package, of those that are installed."""
    found = ((package, _version(package)) for package in PACKAGES)
    return {package: said for package, said in found if said is not None}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git_of_process(folder: Path) -> dict[str, Any] | None:
    """The git state at the first call: later changes do not affect what is imported by then."""
    return git_state(folder)


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the repository around a folder; None outside of one."""
    commit = _output(10, "git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _output(10, "git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status)}


THROTTLES = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""What holds a GPU's clock down, by bit (NVML API reference, NvmlClocksEventReasons)."""


def _throttles(mask: str) -> list[str]:
    bits = int(mask, 16)
    return [name for bit, name in THROTTLES.items() if bits & bit]


GPU_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "index": ("index", int),
    "uuid": ("uuid", str),
    "name": ("name", str),
    "driver_version": ("driver", str),
    "pstate": ("performance_state", str),
    "persistence_mode": ("persistence", "Enabled".__eq__),
    "clocks.sm": ("sm_mhz", float),
    "clocks.max.sm": ("sm_max_mhz", float),
    "clocks.mem": ("memory_mhz", float),
    "clocks.max.mem": ("memory_max_mhz", float),
    "power.draw": ("power_w", float),
    "power.limit": ("power_limit_w", float),
    "power.default_limit": ("power_default_limit_w", float),
    "temperature.gpu": ("temperature_c", float),
}
"""Our key, and the function that reads the value, by nvidia-smi's field."""
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""The name of the throttle mask since driver 535, and before. An unknown name fails the query."""
GPU_LIMIT_S = 5
"""Seconds that nvidia-smi may take: it loads the driver where nothing keeps that loaded."""


def gpus() -> list[dict[str, Any]]:
    """What nvidia-smi says of each GPU: the keys of `GPU_FIELDS`, and `throttles` of `THROTTLES`.

    A key that a GPU does not support is missing. The list is empty where there is no GPU.
    """
    for reasons in REASONS:
        query = ",".join((*GPU_FIELDS, reasons))
        form = "--format=csv,noheader,nounits"
        table = _output(GPU_LIMIT_S, "nvidia-smi", f"--query-gpu={query}", form)
        if table is not None:
            return [_gpu(row.split(", ")) for row in table.splitlines()]
    return []


def _gpu(words: Sequence[str]) -> dict[str, Any]:
    found = {}
    for (key, read), word in zip(
        (*GPU_FIELDS.values(), ("throttles", _throttles)), words, strict=False
    ):
        if not word.startswith(("[", "N/A")):  # [N/A], [Not Supported], [Unknown Error]
            with suppress(ValueError):
                found[key] = read(word)
    return found


@dataclass(frozen=True)
class Snapshot:
    """The counters at one moment, which `Activity.between` compares with those of a later one.

    Attributes:
        at_s: the time, by perf_counter.
        own_s: CPU seconds so far of this process, with all its threads and without its children,
            and of the processes that were named.
        cpus: the CPUs that this process may use.
        ticks: by CPU, as in /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
        mhz: the clock now of at most 8 of these CPUs, evenly spread: each takes a system call.
    """

    at_s: float
    own_s: float
    cpus: tuple[int, ...]
    ticks: Mapping[int, Sequence[int]]
    mhz: Mapping[int, float]

    @classmethod
    def take(cls, root: Path = ROOT, pids: Iterable[int] = ()) -> Snapshot:
        """Read the counters now. Takes about 0.1 ms.

        Args:
            pids: processes that measure on this one's behalf.
        """
        cpus = tuple(sorted(os.sched_getaffinity(0)))
        ticks, mhz = _cpu_ticks(root), _mhz(root, cpus[:: -(-len(cpus) // 8)])
        own_s = time.process_time() + sum(_cpu_seconds(root, pid) for pid in pids)
        return cls(time.perf_counter(), own_s, cpus, ticks, mhz)


@dataclass(frozen=True)
class Activity:
    """What went on beside this process during a stretch of time, on the CPUs it may use.

        start = Snapshot.take()
        ...
        during = Activity.between(start, Snapshot.take())

    The kernel counts in ticks (usually 10 ms), so `others_cores` is off by about two ticks a
    stretch for each CPU in use: 0.02 cores in a second. Where the stretch is shorter than 0.1 s,
    `others_cores` and `steal_share` are None.

    Attributes:
        others_cores: CPU seconds per second that other processes used. This process's children
            count as others, unless the snapshots name them.
        steal_share: the share of the CPUs' time that the hypervisor gave to other machines.
        frequency_change: the relative change of the mean clock from start to end. The clock of an
            idle CPU says little: this means most for a process that is pinned and busy at both
            ends. None where the clock cannot be read, as in most virtual machines.
    """

    others_cores: float | None
    steal_share: float | None
    frequency_change: float | None

    @classmethod
    def between(cls, start: Snapshot, end: Snapshot) -> Activity:
        """Compare two snapshots, over the CPUs that the process could use at the start."""
        spent = [
            [after - before for before, after in zip(start.ticks[cpu], end.ticks[cpu], strict=True)]
            for cpu in start.cpus
            if cpu in start.ticks and cpu in end.ticks
        ]
        seconds, others, steal = end.at_s - start.at_s, None, None
        if seconds >= 0.1 and any(map(any, spent)):  # a sandbox may show counters that stand still
            busy = sum(sum(ticks) - ticks[3] - ticks[4] - ticks[7] for ticks in spent)
            own_s = end.own_s - start.own_s
            others = max(0.0, (busy / os.sysconf("SC_CLK_TCK") - own_s) / seconds)
            steal = _steal_share(spent)
        both = [cpu for cpu in start.mhz if cpu in end.mhz]
        change = None
        if both:
            change = sum(end.mhz[cpu] for cpu in both) / sum(start.mhz[cpu] for cpu in both) - 1
        return cls(others, steal, change)


def _cpu_ticks(root: Path) -> dict[int, list[int]]:
    """The counters of /proc/stat by CPU. Guest time is left out: user time includes it."""
    found = {}
    for line in (_read(root / "proc/stat") or "").splitlines()[1:]:
        if not line.startswith("cpu"):
            break
        name, *ticks = line.split()
        found[int(name[3:])] = [int(word) for word in ticks[:8]]
    return found


def _cpu_seconds(root: Path, pid: int) -> float:
    """CPU seconds of a process so far, after proc(5); 0 for one that is gone."""
    fields = (_read(root / f"proc/{pid}/stat") or "").rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12]) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _steal_share(ticks: Iterable[Sequence[int]]) -> float | None:
    stolen, total = 0, 0
    for counts in ticks:
        stolen, total = stolen + counts[7], total + sum(counts)
    return stolen / total if total else None


def _mhz(root: Path, cpus: Sequence[int]) -> dict[int, float]:
    files = ((cpu, root / CPU / f"cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus)
    return {cpu: khz / 1000 for cpu, file in files if (khz := _integer(file))}


def _cpuinfo(root: Path, field: str) -> str | None:
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:  # not there, not ours to read, or the driver has no answer
        return None


def _number(file: Path) -> float | None:
    """The first word of a file, if it is a number."""
    with suppress(ValueError, IndexError):
        return float((_read(file) or "").split()[0])
    return None


def _integer(file: Path) -> int | None:
    number = _number(file)
    return None if number is None else int(number)


def _flag(file: Path) -> bool | None:
    number = _integer(file)
    return None if number is None else bool(number)


def gpu_driver(root: Path = ROOT) -> str | None:
    """The version of NVIDIA's driver; None where it is not loaded. Does not load it."""
    for line in (_read(root / "proc/driver/nvidia/version") or "").splitlines():
        if line.startswith("NVRM version:"):
            return next((word for word in line.split() if word[0].isdigit() and "." in word), None)
    return None


def _output(timeout_s: float, *words: str) -> str | None:
    """What a program prints; None where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
