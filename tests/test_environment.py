"""What is read from files says what they say, what is missing is None, and others are noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expkit.measure import environment as machine
from expkit.measure.environment import Activity, Snapshot, cpu_list, environment, gpus

CPU = "sys/devices/system/cpu"


def write(root: Path, files: Mapping[str, str]) -> Path:
    """A file system with these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_it_is_json_and_names_this_machine() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["affinity"] == sorted(os.sched_getaffinity(0))
    assert found["cores"] == os.cpu_count()
    assert found["python_implementation"] == sys.implementation.name.replace("cp", "CP")
    assert 0 < found["clock"]["observed_s"] < 1e-3
    assert found["gc"]["thresholds"][0] > 0
    assert found["git"] is None or len(found["git"]["commit"]) == 40


def test_an_empty_file_system_gives_the_same_keys_and_no_values(tmp_path: Path) -> None:
    here, nowhere = environment(), environment(tmp_path)
    assert here.keys() == nowhere.keys()
    from_files = ["uptime_s", "virtual", "on_battery", "core_cpus", "smt", "numa_cpus", "isolated"]
    from_files += ["nohz_full", "cpu_quota", "idle_driver", "temperature_c", "load", "runnable"]
    from_files += ["cpu_pressure", "steal_share", "memory_bytes", "huge_pages", "aslr"]
    assert {key: nowhere[key] for key in from_files} == dict.fromkeys(from_files)
    assert not any(nowhere["frequency"].values())


def test_nothing_heavy_is_imported(expkit: Any) -> None:
    done = expkit.python("""
        import sys
        from expkit.measure.environment import Snapshot, environment
        environment(), Snapshot.take()
        print({"numpy", "torch", "scipy", "matplotlib", "mlflow"} & sys.modules.keys())
    """)
    assert (done.status, done.out) == (0, "set()\n"), done.err


FILES = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu hypervisor sse",
    "proc/uptime": "120.50 200.00",
    "proc/loadavg": "0.50 0.25 0.10 3/412 4711",
    "proc/pressure/cpu": "some avg10=12.50 avg60=1.00 avg300=0.00 total=99\nfull avg10=9.00",
    "proc/meminfo": "MemTotal:       2048 kB\nMemFree:  1024 kB",
    "proc/sys/kernel/randomize_va_space": "2",
    "proc/stat": "cpu 0\ncpu0 10 0 10 60 0 0 0 20 5 0\ncpu1 0 0 0 100 0 0 0 0 0 0\nintr 1",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet",
    "sys/devices/system/node/online": "0-1",
    "sys/devices/system/node/node0/cpulist": "0,2",
    "sys/devices/system/node/node1/cpulist": "1,3",
    "sys/class/power_supply/BAT0/type": "Battery",
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/AC/online": "0",
    "sys/class/hwmon/hwmon0/name": "nvme",
    "sys/class/hwmon/hwmon0/temp1_input": "99000",
    "sys/class/hwmon/hwmon1/name": "coretemp",
    "sys/class/hwmon/hwmon1/temp1_input": "41000",
    "sys/class/hwmon/hwmon1/temp2_input": "47500",
    f"{CPU}/online": "0-3",
    f"{CPU}/isolated": "2-3",
    f"{CPU}/nohz_full": "",
    f"{CPU}/smt/active": "1",
    f"{CPU}/cpuidle/current_driver": "intel_idle",
    **{f"{CPU}/cpu{n}/topology/thread_siblings_list": f"{n % 2},{n % 2 + 2}" for n in range(4)},
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpu", "Some CPU @ 3 GHz"),
        ("virtual", True),
        ("uptime_s", 120.5),
        ("load", [0.5, 0.25, 0.1]),
        ("runnable", 3),
        ("cpu_pressure", {"avg10": 0.125, "avg60": 0.01, "avg300": 0.0}),
        ("memory_bytes", 2 * 1024**2),
        ("aslr", 2),
        ("steal_share", 0.1),
        ("huge_pages", "madvise"),
        ("numa_cpus", ["0,2", "1,3"]),
        ("on_battery", True),
        ("temperature_c", 47.5),
        ("isolated", "2-3"),
        ("nohz_full", None),
        ("smt", True),
        ("idle_driver", "intel_idle"),
        ("core_cpus", ["0,2", "1,3"]),
    ],
)
def test_what_a_file_says_is_what_is_read(tmp_path: Path, key: str, value: object) -> None:
    assert environment(write(tmp_path, FILES))[key] == value


def test_the_clock_source_is_read(tmp_path: Path) -> None:
    assert machine.clock(write(tmp_path, FILES))["source"] == "hpet"


def test_mains_that_are_plugged_in_are_no_battery(tmp_path: Path) -> None:
    assert (
        machine.on_battery(write(tmp_path, FILES | {"sys/class/power_supply/AC/online": "1"}))
        is False
    )


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, None),
        (
            {  # the tightest of all above
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        (
            {  # version 1, in a container: the path is the host's, the files are at the mount
                "proc/self/cgroup": "3:cpuset:/x\n2:cpu,cpuacct:/docker/c0ffee\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
    ],
)
def test_the_quota_is_in_cpus(tmp_path: Path, files: dict[str, str], cpus: float | None) -> None:
    assert machine.cpu_quota(write(tmp_path, files)) == cpus


def clocks(cpu: int, governor: str, now_khz: str) -> dict[str, str]:
    """A CPU's cpufreq files."""
    folder = f"{CPU}/cpu{cpu}/cpufreq"
    return {
        f"{folder}/scaling_driver": "acpi-cpufreq",
        f"{folder}/scaling_governor": governor,
        f"{folder}/scaling_min_freq": "800000",
        f"{folder}/scaling_max_freq": str(3_000_000 + cpu * 1000),
        f"{folder}/scaling_cur_freq": now_khz,
    }


def test_frequency_is_that_of_the_cpus_asked_for(tmp_path: Path) -> None:
    files = clocks(0, "performance", "2000000") | clocks(1, "powersave", "1000000")
    files |= clocks(2, "ondemand", "<unknown>") | {f"{CPU}/cpufreq/boost": "1"}
    assert machine.frequency(write(tmp_path, files), [0, 1]) == {
        "driver": "acpi-cpufreq",
        "governors": ["performance", "powersave"],
        "min_mhz": 800,
        "max_mhz": 3001,
        "now_mhz": 1500,
        "turbo": True,
    }
    assert machine.frequency(tmp_path, [2])["now_mhz"] is None


@pytest.mark.parametrize(("no_turbo", "turbo"), [("0", True), ("1", False)])
def test_intels_switch_is_the_other_way_round(tmp_path: Path, no_turbo: str, turbo: bool) -> None:
    write(tmp_path, {f"{CPU}/intel_pstate/no_turbo": no_turbo})
    assert machine.frequency(tmp_path, [0])["turbo"] is turbo


def test_what_is_no_number_is_not_read(tmp_path: Path) -> None:
    assert environment(write(tmp_path, {"proc/sys/kernel/randomize_va_space": "?"}))["aslr"] is None


# nvidia-smi, by a script in its place: it answers as the real one does, one query and one exit
# status, on the fields it knows.

H100 = {
    "index": "0",
    "uuid": "GPU-5f0a8d6e-3f0f-4b61-9d5c-0d7a1f2b3c4d",
    "name": "NVIDIA H100 80GB HBM3",
    "driver_version": "550.54.15",
    "pstate": "P0",
    "persistence_mode": "Disabled",
    "clocks.sm": "345",
    "clocks.max.sm": "1980",
    "clocks.mem": "2619",
    "clocks.max.mem": "2619",
    "power.draw": "71.38",
    "power.limit": "500.00",
    "power.default_limit": "700.00",
    "temperature.gpu": "30",
    "clocks_event_reasons.active": "0x0000000000000001",
}

Smi = Callable[..., None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Put a script of this name on PATH, which prints these GPUs' fields."""

    def install(*boards: Mapping[str, str], first: str = "") -> None:
        script = tmp_path / "bin/nvidia-smi"
        write(
            tmp_path, {"bin/nvidia-smi": f"#!{sys.executable}\n{first}\nboards = {boards!r}" + SMI}
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)

    return install


SMI = """
import sys
query, form = sys.argv[1:]
assert form == "--format=csv,noheader,nounits"
for board in boards:
    words = []
    for field in query.removeprefix("--query-gpu=").split(","):
        if field not in board:
            print(f'Field "{field}" is not a valid field to query.')
            sys.exit(2)
        words.append(board[field])
    print(", ".join(words))
"""


def test_a_gpu_is_read(nvidia_smi: Smi) -> None:
    nvidia_smi(H100)
    assert environment()["gpus"] == [
        {
            "index": 0,
            "uuid": "GPU-5f0a8d6e-3f0f-4b61-9d5c-0d7a1f2b3c4d",
            "name": "NVIDIA H100 80GB HBM3",
            "driver": "550.54.15",
            "performance_state": "P0",
            "persistence": False,
            "sm_mhz": 345,
            "sm_max_mhz": 1980,
            "memory_mhz": 2619,
            "memory_max_mhz": 2619,
            "power_w": 71.38,
            "power_limit_w": 500,
            "power_default_limit_w": 700,
            "temperature_c": 30,
            "throttles": ["gpu_idle"],
        }
    ]


def test_an_old_driver_has_another_name_for_the_reasons(nvidia_smi: Smi) -> None:
    old = {k.replace("event", "throttle"): v for k, v in H100.items()}
    nvidia_smi(old | {"clocks_throttle_reasons.active": "0x0000000000000044"})
    assert gpus()[0]["throttles"] == ["sw_power_cap", "hw_thermal_slowdown"]


def test_what_a_gpu_does_not_support_has_no_key(nvidia_smi: Smi) -> None:
    lacks = {"power.draw": "[N/A]", "persistence_mode": "[Not Supported]", "pstate": "N/A"}
    nvidia_smi(H100, H100 | lacks | {"index": "1"})
    first, second = gpus()
    assert first.keys() - second.keys() == {"power_w", "persistence", "performance_state"}
    assert second["index"] == 1


@pytest.mark.parametrize("first", ["raise SystemExit(9)", "import time; time.sleep(3)"])
def test_a_driver_that_fails_or_hangs_is_no_gpu(
    nvidia_smi: Smi, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "GPU_LIMIT_S", 0.5)
    nvidia_smi(H100, first=first)
    assert gpus() == []


def test_a_driver_without_a_board_is_no_gpu(nvidia_smi: Smi) -> None:
    nvidia_smi()
    assert gpus() == []


# What happened meanwhile.

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
START = Snapshot(0.0, 0.0, (0, 1), {n: [0] * 8 for n in range(3)}, {0: 2000.0, 1: 1000.0})


def after(seconds: float, own: float, *ticks: list[int]) -> Snapshot:
    """The counters then: ticks by CPU."""
    return replace(START, at_s=seconds, own_s=own, ticks=dict(enumerate(ticks)))


def busy(seconds: float, stolen: float = 0.0, of: float = 2.0) -> list[int]:
    """A CPU's ticks, spread over the kinds that count as work."""
    worked, rest = round(seconds / TICK_S), round((of - seconds - stolen) / TICK_S)
    kinds = [worked - 4 * (worked // 5), *[worked // 5] * 4]
    user, nice, system, irq, softirq = kinds
    return [user, nice, system, rest - rest // 2, rest // 2, irq, softirq, round(stolen / TICK_S)]


def test_others_is_what_is_busy_less_our_own_on_our_cpus() -> None:
    end = after(2.0, 1.5, busy(2.0), busy(0.5), busy(2.0))
    assert Activity.between(START, end).others_cores == pytest.approx(0.5)


def test_our_own_time_is_nobody_elses() -> None:
    assert Activity.between(START, after(2.0, 2.03, busy(2.0), busy(0.0))).others_cores == 0.0


def test_stolen_time_is_a_share_and_nobodys_work() -> None:
    during = Activity.between(START, after(2.0, 0.0, busy(0.0, stolen=1.0), busy(0.0)))
    assert during.steal_share == pytest.approx(0.25)
    assert during.others_cores == 0.0


def test_too_short_or_standing_still_is_not_known() -> None:
    short = Activity.between(START, after(0.05, 0.0, busy(0.05, of=0.05), busy(0.0, of=0.05)))
    still = Activity.between(START, after(2.0, 1.0, [0] * 8, [0] * 8))
    assert short == still == Activity(None, None, 0.0)


def test_the_clock_changes_by_its_mean() -> None:
    end = replace(START, mhz={0: 1500.0, 1: 1200.0, 2: 9000.0})
    assert Activity.between(START, end).frequency_change == pytest.approx(-0.1)
    assert Activity.between(START, replace(START, mhz={})).frequency_change is None


def test_a_snapshot_reads_the_files(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    stat = f"cpu 1 2\ncpu{cpu} 1 2 3 4 5 6 7 8 9 10\nintr 4711"
    taken = Snapshot.take(write(tmp_path, {"proc/stat": stat} | clocks(cpu, "x", "1200000")))
    assert taken.ticks == {cpu: [1, 2, 3, 4, 5, 6, 7, 8]}
    assert taken.mhz == {cpu: 1200.0}


def test_a_busy_process_beside_us_is_noticed() -> None:
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        start = Snapshot.take()
        time.sleep(0.5)
        during = Activity.between(start, Snapshot.take())
    finally:
        spin.kill()
        spin.wait()
    assert during.others_cores is not None
    assert during.others_cores > 0.3


def test_our_own_time_is_counted() -> None:
    before = Snapshot.take()
    while time.process_time() - before.own_s < 0.1:
        pass
    assert Snapshot.take().own_s - before.own_s == pytest.approx(0.1, abs=0.05)


def test_a_snapshot_takes_less_than_a_millisecond() -> None:
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        Snapshot.take()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3


def test_a_list_of_cpus_is_read_as_the_kernel_writes_it() -> None:
    assert cpu_list("0-1,4,6-7") == [0, 1, 4, 6, 7]
