"""`expkit doctor`: what makes timing noisy on this machine, and what to do. It changes nothing.

A rule is a function of the environment that returns a finding or None; `RULES` has them in the
order of how much they matter. A rule whose facts could not be read finds nothing.

Sources: pyperf, "Tune the system for benchmarks"
(https://pyperf.readthedocs.io/en/latest/system.html); the kernel's admin-guide (pm/cpufreq,
pm/intel_pstate, cgroup-v2, mm/transhuge) and accounting/psi; NVIDIA's nvidia-smi(1), driver
persistence guide and NVML reference; for placement in memory Mytkowicz et al., Producing Wrong Data
Without Doing Anything Obviously Wrong!, 2009.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any, TypeAlias

from expkit.cli.status import OK
from expkit.measure.environment import Activity, Snapshot, cpu_list, environment
from expkit.units import seconds

Environment: TypeAlias = Mapping[str, Any]
"""What `environment()` reads, with `activity` (as `Activity`) and `jitter` (as `jitter()`)."""
SAMPLE_S = 0.5
CROWDED = 0.1
"""Number of CPUs in use by others from which they disturb. The sample is off by about 0.04."""
HELD = {"sw_power_cap", "sw_thermal_slowdown"}
HELD |= {"hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"}
"""The entries of `THROTTLES` that are caused by heat or power."""
SYSFS = "/sys/devices/system/cpu"


@dataclass(frozen=True)
class Finding:
    """Something that makes timing noisy.

    Attributes:
        found: what was found.
        why: how that affects the times.
        remedy: the command for a person to run, or what else to do; None to leave it as it is.
    """

    found: str
    why: str
    remedy: str | None


def doctor() -> int:
    """Print the report and return the exit status, which is 0 whatever was found."""
    start = Snapshot.take()
    time.sleep(SAMPLE_S)
    activity = Activity.between(start, Snapshot.take())
    print(report(environment() | {"activity": asdict(activity), "jitter": jitter()}))
    return OK


def report(env: Environment) -> str:
    """The facts, then the findings, for a terminal."""
    lines = [f"{name:>10}  {text}" for name, text in facts(env)]
    findings = [finding for rule in RULES if (finding := rule(env))]
    remedied = [finding for finding in findings if finding.remedy]
    left = [finding for finding in findings if not finding.remedy]
    lines += ["", "What makes timing noisy here, the worst first; doctor changes nothing:"]
    if not remedied:
        lines.append("nothing was found.")
    for number, finding in enumerate(remedied, 1):
        lines += [f"{number:>3}  {finding.found}"]
        lines += [f"     why: {finding.why}", f"     do:  {finding.remedy}"]
    if left:
        lines += ["", "To be left as it is:"]
        for finding in left:
            lines += [f"  -  {finding.found}", f"     why: {finding.why}"]
    return "\n".join(lines)


def jitter() -> dict[str, float]:
    """Measure how the time of one short loop varies over 200 readings.

    `median_s` is in seconds. `low`, `high` and `slowest` say by what share of the median the 5th
    percentile, the 95th percentile and the greatest reading differ from it.
    """
    readings = []
    for _ in range(200):
        start = time.perf_counter()
        for _ in range(20_000):
            pass
        readings.append(time.perf_counter() - start)
    middle, cuts = median(readings), quantiles(readings, n=20)
    shares = {"low": cuts[0], "high": cuts[-1], "slowest": max(readings)}
    return {"median_s": middle} | {name: s / middle - 1 for name, s in shares.items()}


def facts(env: Environment) -> list[tuple[str, str]]:
    """Name and text of every fact that was read."""
    activity, clocks, wobble = (_of(env, key) for key in ("activity", "clock", "jitter"))
    frequency, load_1min = _of(env, "frequency"), (env.get("load") or [None])[0]
    turbo_on, memory = frequency.get("turbo"), env.get("memory_bytes")
    rows: dict[str, list[str | None]] = {
        "machine": [
            env.get("host"),
            env.get("system"),
            "virtual machine" if env.get("virtual") else None,
        ],
        "processor": [
            env.get("cpu"),
            _count(env.get("cores"), "CPU"),
            _count(len(env.get("core_cpus") or ()), "core"),
            _count(len(env.get("numa_cpus") or ()), "memory node"),
        ],
        "frequency": [
            " and ".join(frequency.get("governors") or ()),
            frequency.get("driver"),
            _fill("{:.0f} to {:.0f} MHz", frequency.get("min_mhz"), frequency.get("max_mhz")),
            _fill("now {:.0f} MHz", frequency.get("now_mhz")),
            None if turbo_on is None else "turbo " + ("on" if turbo_on else "off"),
            _fill("{:.0f} °C", env.get("temperature_c")),
        ],
        "allowed": [
            _count(len(_cpus(env)), "CPU"),
            _fill("a quota of {:.3g}", env.get("cpu_quota")),
            _fill("isolated {}", env.get("isolated")),
            _fill("nohz_full {}", env.get("nohz_full")),
        ],
        "load": [
            _fill("{:.2f} over the last minute", load_1min),
            _fill("others use {:.2f} CPUs now", activity.get("others_cores")),
            _fill("stolen {:.1%}", activity.get("steal_share")),
            _fill("waiting {:.0%} of 10 s", _of(env, "cpu_pressure").get("avg10")),
        ],
        "memory": [
            _fill("{:.3g} GiB", memory and memory / 2**30),
            _fill("huge pages: {}", env.get("huge_pages")),
        ],
        "clock": [
            clocks.get("source"),
            _fill("declared {}", _seconds(clocks.get("resolution_s"))),
            _fill("observed {}", _seconds(clocks.get("observed_s"))),
        ],
        "jitter": [
            _fill("a loop of {}", _seconds(wobble.get("median_s"))),
            _fill("9 of 10 within {:+.1%} and {:+.1%}", wobble.get("low"), wobble.get("high")),
            _fill("slowest {:+.0%}", wobble.get("slowest")),
        ],
        "Python": [
            _fill("{} {}", env.get("python_implementation"), env.get("python")),
            _fill("hashes seeded by {}", env.get("hash_seed")),
        ],
        "BLAS": [
            f"{pool['internal_api']} {pool['version']}, {_count(pool['num_threads'], 'thread')}"
            for pool in env.get("threadpools") or ()
        ],
    }
    found = [(name, ", ".join(part for part in parts if part)) for name, parts in rows.items()]
    return [row for row in found if row[1]] + [("GPU", _gpu(gpu)) for gpu in _gpus(env)]


def _gpu(gpu: Mapping[str, Any]) -> str:
    parts = [
        f"{gpu.get('index')}: {gpu.get('name')}",
        _fill("driver {}", gpu.get("driver")),
        _fill("SM at {:.0f} of {:.0f} MHz", gpu.get("sm_mhz"), gpu.get("sm_max_mhz")),
        _fill("{:.0f} of {:.0f} W", gpu.get("power_w"), gpu.get("power_limit_w")),
        _fill("{:.0f} °C", gpu.get("temperature_c")),
        ", ".join(gpu.get("throttles") or ()),
    ]
    return ", ".join(part for part in parts if part)


# The rules. First, processor time that this process does not get.


def quota(env: Environment) -> Finding | None:
    """The control group's limit is less than the CPUs that can be used (kernel: cgroup-v2)."""
    limit, cpus = env.get("cpu_quota"), _cpus(env)
    if limit is None or limit >= len(cpus):
        return None
    grant = f"grant more: docker update --cpus={len(cpus)} CONTAINER"
    return Finding(
        f"a CPU quota of {limit:.3g} for {len(cpus)} CPUs",
        "threads that use it up stand still until the period, often 100 ms, ends",
        f"{_pin(cpus[: int(limit)])}; or {grant}" if limit >= 1 else grant,
    )


def steal(env: Environment) -> Finding | None:
    """The hypervisor runs others on our CPUs (proc_stat(5): steal)."""
    now, ever = _of(env, "activity").get("steal_share") or 0, env.get("steal_share") or 0
    if now < 0.01 and ever < 0.02:
        return None
    return Finding(
        f"the hypervisor took {now:.1%} of the CPUs' time now, {ever:.1%} since the start",
        "other machines' load stops this one, and no time here shows when",
        "measure when it is quiet, or on a host of your own; to watch it (column st): vmstat 1",
    )


def others(env: Environment) -> Finding | None:
    """Other processes run now (pyperf: an idle system or isolated CPUs)."""
    cores, cpus = _of(env, "activity").get("others_cores") or 0, _cpus(env)
    if cores < CROWDED:
        return None
    return Finding(
        f"other processes use {cores:.2f} of {len(cpus)} CPUs",
        "they share the cores, caches, memory and power that a step needs",
        "stop what need not run; to see it: top -o %CPU",
    )


def unpinned(env: Environment) -> Finding | None:
    """All CPUs are allowed while others run (pyperf: CPU pinning)."""
    cpus = _cpus(env)
    isolated = cpu_list(env.get("isolated") or "")
    if isolated and not set(isolated) & set(cpus):
        return Finding(
            f"CPUs {env['isolated']} are isolated, and not used",
            "they are kept free for this, while the others serve everything else",
            _pin(isolated),
        )
    crowded = (_of(env, "activity").get("others_cores") or 0) >= CROWDED
    if not crowded or len(cpus) < 2 or len(cpus) < (env.get("cores") or 0):
        return None
    return Finding(
        "no affinity is set while others run",
        "the kernel moves threads between CPUs to make room, and leaves their caches behind",
        _pin(_one_a_core(env)[1:] or cpus[1:]),
    )


def load(env: Environment) -> Finding | None:
    """The machine was busy just now, by the load average or by waiting tasks (kernel: psi)."""
    average = (env.get("load") or [0])[0]
    waited = _of(env, "cpu_pressure").get("avg10", 0)
    if (_of(env, "activity").get("others_cores") or 0) >= CROWDED:
        return None  # the rule `others` reports it
    if average < 0.5 and waited < 0.05:
        return None
    return Finding(
        f"quiet now, but the load was {average:.2f} over the last minute, and tasks waited for a "
        f"CPU in {waited:.0%} of the last 10 s",
        "what comes and goes falls into some repeats and not into others",
        "wait a minute and look again: uptime",
    )


def oversubscribed(env: Environment) -> Finding | None:
    """More threads than CPUs (threadpoolctl's README: oversubscription)."""
    usable = max(1, int(min(len(_cpus(env)), env.get("cpu_quota") or len(_cpus(env)))))
    variables = {
        name: int(value)
        for name, value in (env.get("thread_variables") or {}).items()
        if value.isdecimal() and int(value) > usable
    }
    pools = [pool["num_threads"] for pool in env.get("threadpools") or ()]
    if not _cpus(env) or (not variables and max(pools, default=0) <= usable):
        return None
    said = [f"{name}={value}" for name, value in variables.items()] or [f"BLAS uses {max(pools)}"]
    exports = [f"export {name}={usable}" for name in variables]
    return Finding(
        f"more threads than the {_count(usable, 'CPU')} that may be used: {', '.join(said)}",
        "threads of one step take turns, and each waits for the one that is not running",
        "; ".join([*exports, f"expkit backend.threads={usable} ..."]),
    )


# The GPU.


def gpu_throttled(env: Environment) -> Finding | None:
    """Heat or power holds the clocks down (NVML: clocks event reasons)."""
    slow = [gpu for gpu in _gpus(env) if HELD & set(gpu.get("throttles") or ())]
    if not slow:
        return None
    reasons = sorted(HELD & {reason for gpu in slow for reason in gpu["throttles"]})
    return Finding(
        f"{_names(slow)} throttled: {', '.join(reasons)}",
        "heat and power set the clock, so a repeat depends on what ran before it",
        f"let it cool, then lock a clock that it holds: {_lock(slow)}",
    )


def gpu_unlocked(env: Environment) -> Finding | None:
    """Clocks rise and fall with the work (nvidia-smi(1): lock-gpu-clocks).

    Nothing reports whether clocks are locked. A locked clock stays up when the GPU is idle, so one
    that is below half of its maximum on an idle GPU is not locked.
    """
    free = [
        gpu
        for gpu in _gpus(env)
        if "gpu_idle" in gpu.get("throttles", ()) and "sm_mhz" in gpu and "sm_max_mhz" in gpu
        if gpu["sm_mhz"] < gpu["sm_max_mhz"] / 2
    ]
    if not free:
        return None
    return Finding(
        f"{_names(free)}: clocks are not locked, {free[0]['sm_mhz']:.0f} MHz when idle",
        "the clock rises for milliseconds after work begins, and falls with heat and power",
        f"{_lock(free)}; afterwards: sudo nvidia-smi -i {_indices(free)} --reset-gpu-clocks",
    )


def gpu_persistence(env: Environment) -> Finding | None:
    """The driver lets go of an unused GPU (NVIDIA: driver persistence)."""
    off = [gpu for gpu in _gpus(env) if gpu.get("persistence") is False]
    if not off:
        return None
    return Finding(
        f"{_names(off)}: persistence mode is off",
        "the driver starts up anew for every run, a second or more, and forgets locked clocks",
        f"sudo nvidia-smi -i {_indices(off)} --persistence-mode=1",
    )


def gpu_power(env: Environment) -> Finding | None:
    """The power limit is below the board's own (nvidia-smi(1): power-limit)."""
    low = [
        gpu
        for gpu in _gpus(env)
        if gpu.get("power_limit_w", 0) < gpu.get("power_default_limit_w", 0)
        if "power_limit_w" in gpu
    ]
    if not low:
        return None
    first = low[0]
    full = first["power_default_limit_w"]
    return Finding(
        f"{_names(low)}: limited to {first['power_limit_w']:.0f} W of {full:.0f} W",
        "long steps meet the limit and short ones do not, so their times do not compare",
        f"sudo nvidia-smi -i {_indices(low)} --power-limit={full:.0f}",
    )


# The processor's clock and cores.


def governor(env: Environment) -> Finding | None:
    """The clock follows the load (kernel: pm/cpufreq; pyperf: CPU scaling governor)."""
    frequency = _of(env, "frequency")
    slow = [name for name in frequency.get("governors") or () if name != "performance"]
    fixed = frequency.get("min_mhz") == frequency.get("max_mhz")
    if not slow or (fixed and frequency.get("max_mhz")):
        return None
    return Finding(
        f"the CPU governor is {' and '.join(slow)}",
        "the clock follows the load with a delay, so what runs first runs slower",
        f"echo performance | sudo tee {SYSFS}/cpu*/cpufreq/scaling_governor",
    )


def battery(env: Environment) -> Finding | None:
    """The mains are unplugged (pyperf: power supply)."""
    if not env.get("on_battery"):
        return None
    return Finding(
        "the machine runs on battery",
        "the firmware lowers clocks to save power, more as the battery empties",
        "plug it in",
    )


def coarse_clock(env: Environment) -> Finding | None:
    """A reading of the clock is slow or coarse (kernel: timers, clock sources)."""
    clock = _of(env, "clock")
    observed = clock.get("observed_s") or 0
    slow = clock.get("source") in ("hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies")
    if observed < 1e-6 and not slow:
        return None
    folder = "/sys/devices/system/clocksource/clocksource0"
    return Finding(
        f"the clock ({clock.get('source')}) moves by {seconds(observed)} between readings",
        "a chunk of steps that is not much longer is not measured but rounded",
        f"if `cat {folder}/available_clocksource` has tsc: "
        f"echo tsc | sudo tee {folder}/current_clocksource; else a greater log_every",
    )


def turbo(env: Environment) -> Finding | None:
    """The clock rises above the nominal one while it can (kernel: pm/intel_pstate, pm/cpufreq)."""
    frequency = _of(env, "frequency")
    if not frequency.get("turbo"):
        return None
    intel = (frequency.get("driver") or "").startswith("intel")
    switch = "1", f"{SYSFS}/intel_pstate/no_turbo"
    if not intel:
        switch = "0", f"{SYSFS}/cpufreq/boost"
    return Finding(
        "turbo is on",
        "how far it goes depends on heat, power and how many cores are busy",
        f"echo {switch[0]} | sudo tee {switch[1]}",
    )


def siblings(env: Environment) -> Finding | None:
    """Two CPUs of one core may be at work (pyperf: HyperThreading)."""
    cpus, ours = _cpus(env), _one_a_core(env)
    groups = [cpu_list(core) for core in env.get("core_cpus") or ()]
    if not env.get("smt") or not any(len(g) > 1 and set(g) & set(cpus) for g in groups):
        return None
    if len(ours) < len(cpus):
        found, remedy = f"{len(cpus)} CPUs are on {len(ours)} cores (SMT)", _pin(ours)
    else:
        found = "other programs may use the siblings of our CPUs (SMT)"
        remedy = f"echo off | sudo tee {SYSFS}/smt/control"
    return Finding(found, "two threads on a core halve its caches and execution units", remedy)


def memory_nodes(env: Environment) -> Finding | None:
    """The CPUs are on several memory nodes (pyperf: NUMA)."""
    nodes = enumerate(cpu_list(node) for node in env.get("numa_cpus") or ())
    used = [number for number, node in nodes if set(node) & set(_cpus(env))]
    if len(used) < 2:
        return None
    return Finding(
        f"the CPUs are on {len(used)} memory nodes",
        "an array is fast from its own node and slower from the others, as chance places it",
        f"numactl --cpunodebind={used[0]} --membind={used[0]} expkit ...",
    )


def huge_pages(env: Environment) -> Finding | None:
    """Every process gets transparent huge pages (kernel: mm/transhuge)."""
    if env.get("huge_pages") != "always":
        return None
    return Finding(
        "transparent huge pages are enabled for every process (always)",
        "whether an array gets them depends on how fragmented memory is, and may change as it runs",
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )


def virtual_machine(env: Environment) -> Finding | None:
    """A hypervisor is there (x86: the cpuid flag `hypervisor`)."""
    if not env.get("virtual"):
        return None
    return Finding(
        "this is a virtual machine",
        "its CPUs may share cores, caches and power with neighbours that cannot be seen from here",
        "compare runs of one sitting only; for figures to publish use a machine of your own",
    )


def fixed_placement(env: Environment) -> Finding | None:
    """Address space randomisation is off (pyperf: ASLR must not be switched off)."""
    if env.get("aslr") != 0:
        return None
    return Finding(
        "addresses are not randomised (ASLR is off)",
        "every run has the same placement of code and stack, and shares whatever bias that has",
        "echo 2 | sudo tee /proc/sys/kernel/randomize_va_space",
    )


def spread(env: Environment) -> Finding | None:
    """The time of a loop varies, whatever the cause."""
    wobble = _of(env, "jitter")
    if wobble.get("high", 0) < 0.05:
        return None
    return Finding(
        f"one in 20 loops of {seconds(wobble['median_s'])} takes over {wobble['high']:.0%} longer",
        "this is the sum of all causes, those above and those not found",
        "more repeats even it out: expkit measure=thorough ...",
    )


def random_placement(env: Environment) -> Finding | None:
    """Address space randomisation is on (Mytkowicz et al. 2009; pyperf: keep it)."""
    if not env.get("aslr"):
        return None
    return Finding(
        "addresses are randomised (ASLR)",
        "expkit places the arrays anew in every round; code and stack move from run to run",
        None,
    )


def garbage(env: Environment) -> Finding | None:
    """Python's garbage collector runs during measurements."""
    thresholds = _of(env, "gc").get("thresholds") or [0]
    if thresholds[0] == 0:
        return None
    return Finding(
        f"garbage is collected while expkit measures (after {thresholds[0]} new objects)",
        "real programs run with it; expkit collects once before the clock, so it costs little",
        None,
    )


RULES = (
    quota,
    steal,
    others,
    unpinned,
    load,
    oversubscribed,
    gpu_throttled,
    governor,
    battery,
    coarse_clock,
    gpu_persistence,  # first, since locked clocks need it
    gpu_unlocked,
    turbo,
    siblings,
    memory_nodes,
    gpu_power,
    huge_pages,
    virtual_machine,
    fixed_placement,
    spread,
    random_placement,
    garbage,
)
"""By effect: other work costs a factor, clocks tens of percent, the rest a few percent."""


def _of(env: Environment, key: str) -> Mapping[str, Any]:
    return env.get(key) or {}


def _cpus(env: Environment) -> list[int]:
    return list(env.get("affinity") or ())


def _gpus(env: Environment) -> list[Mapping[str, Any]]:
    return list(env.get("gpus") or ())


def _one_a_core(env: Environment) -> list[int]:
    """The first of our CPUs on every core."""
    ours = (set(cpu_list(core)) & set(_cpus(env)) for core in env.get("core_cpus") or ())
    return sorted(min(core) for core in ours if core)


def _pin(cpus: Sequence[int]) -> str:
    """Return the command that pins expkit to these CPUs, written as the kernel lists them."""
    starts = [cpu for cpu in cpus if cpu - 1 not in cpus]
    ends = [cpu for cpu in cpus if cpu + 1 not in cpus]
    sets = (f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"taskset -c {','.join(sets)} expkit ..."


def _names(gpus: Sequence[Mapping[str, Any]]) -> str:
    return f"GPU {_indices(gpus)}"


def _indices(gpus: Sequence[Mapping[str, Any]]) -> str:
    return ",".join(str(gpu["index"]) for gpu in gpus)


def _lock(gpus: Sequence[Mapping[str, Any]]) -> str:
    """Return the command that locks the clock at 0.7 of its maximum, which boards can sustain."""
    greatest = gpus[0].get("sm_max_mhz")
    clock = f"{0.7 * greatest:.0f}" if greatest else "MHZ"
    return f"sudo nvidia-smi -i {_indices(gpus)} --lock-gpu-clocks={clock},{clock}"


def _fill(form: str, *values: Any) -> str | None:
    """The text with its values; None where one is missing."""
    return None if any(value is None for value in values) else form.format(*values)


def _count(count: int | None, thing: str) -> str | None:
    return f"{count} {thing}{'' if count == 1 else 's'}" if count else None


def _seconds(value: float | None) -> str | None:
    return None if value is None else seconds(value)
