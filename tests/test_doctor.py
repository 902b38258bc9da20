"""`expkit doctor`: each rule finds its cause, finds nothing without it, and nothing is changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy  # noqa: F401  (loads its BLAS, which the doctor is to see)
import pytest
from threadpoolctl import threadpool_info

from expkit.cli import doctor
from expkit.cli.doctor import RULES, Finding, facts, report

if TYPE_CHECKING:
    from conftest import Expkit

Rule = Callable[[dict[str, Any]], Finding | None]
GPU = {"index": 0, "name": "H100", "sm_mhz": 345.0, "sm_max_mhz": 1980.0, "throttles": ["gpu_idle"]}
CROWD = {"activity": {"others_cores": 0.8}}
FOUR = {"affinity": [0, 1, 2, 3], "cores": 4, "core_cpus": ["0,2", "1,3"]}
SLOW = {"min_mhz": 800.0, "max_mhz": 3000.0, "driver": "acpi-cpufreq"}
"""Clocks that can move."""

CASES: list[tuple[Rule, dict[str, Any], dict[str, Any], str]] = [
    # the rule, what it finds, what it does not find, what its remedy says
    (doctor.quota, FOUR | {"cpu_quota": 2.5}, FOUR | {"cpu_quota": 4.0}, "taskset -c 0-1 "),
    (doctor.quota, FOUR | {"cpu_quota": 0.5}, FOUR, "docker update --cpus=4"),
    (doctor.steal, {"activity": {"steal_share": 0.02}}, {"steal_share": 0.001}, "vmstat"),
    (doctor.steal, {"steal_share": 0.05}, {"activity": {"steal_share": None}}, "vmstat"),
    (doctor.others, CROWD, {"activity": {"others_cores": 0.05}}, "top"),
    (doctor.unpinned, CROWD | FOUR, CROWD | FOUR | {"affinity": [1, 2]}, "taskset -c 1 "),
    (doctor.unpinned, CROWD | FOUR, FOUR, "taskset -c 1 "),
    (
        doctor.unpinned,
        FOUR | {"affinity": [0, 1], "isolated": "2-3"},
        FOUR | {"affinity": [2], "isolated": "2-3"},
        "taskset -c 2-3 ",
    ),
    (doctor.load, {"load": [3.0, 1.0, 1.0]}, {"load": [0.2, 1.0, 1.0]}, "uptime"),
    (doctor.load, {"cpu_pressure": {"avg10": 0.2}}, CROWD | {"load": [3.0]}, "uptime"),
    (
        doctor.oversubscribed,
        FOUR | {"thread_variables": {"OMP_NUM_THREADS": "8", "MKL_NUM_THREADS": "2"}},
        FOUR | {"thread_variables": {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4,2"}},
        "export OMP_NUM_THREADS=4; expkit backend.threads=4",
    ),
    (
        doctor.oversubscribed,
        FOUR | {"threadpools": [{"num_threads": 4}], "cpu_quota": 2.5},
        FOUR | {"threadpools": [{"num_threads": 4}]},
        "backend.threads=2",
    ),
    (
        doctor.gpu_throttled,
        {"gpus": [GPU, GPU | {"index": 1, "throttles": ["sw_power_cap"]}]},
        {"gpus": [GPU]},
        "nvidia-smi -i 1 --lock-gpu-clocks=1386,1386",
    ),
    (
        doctor.gpu_unlocked,
        {"gpus": [GPU, GPU | {"index": 1}]},
        {"gpus": [GPU | {"sm_mhz": 1380.0}, GPU | {"throttles": []}]},
        "nvidia-smi -i 0,1 --lock-gpu-clocks=1386,1386",
    ),
    (
        doctor.gpu_persistence,
        {"gpus": [GPU | {"persistence": False}]},
        {"gpus": [GPU, GPU | {"persistence": True}]},
        "nvidia-smi -i 0 --persistence-mode=1",
    ),
    (
        doctor.gpu_power,
        {"gpus": [GPU | {"power_limit_w": 500.0, "power_default_limit_w": 700.0}]},
        {"gpus": [GPU | {"power_limit_w": 700.0, "power_default_limit_w": 700.0}]},
        "nvidia-smi -i 0 --power-limit=700",
    ),
    (
        doctor.governor,
        {"frequency": SLOW | {"governors": ["performance", "powersave"]}},
        {"frequency": SLOW | {"governors": ["performance"]}},
        "scaling_governor",
    ),
    (
        doctor.governor,
        {"frequency": {"governors": ["schedutil"]}},
        {"frequency": SLOW | {"governors": ["schedutil"], "min_mhz": 3000.0}},
        "echo performance",
    ),
    (doctor.battery, {"on_battery": True}, {"on_battery": False}, "plug"),
    (
        doctor.coarse_clock,
        {"clock": {"source": "hpet", "observed_s": 5e-7}},
        {"clock": {"source": "tsc", "observed_s": 5e-8}},
        "echo tsc",
    ),
    (
        doctor.coarse_clock,
        {"clock": {"source": "tsc", "observed_s": 4e-3}},
        {"clock": {"source": "tsc", "observed_s": None}},
        "log_every",
    ),
    (
        doctor.turbo,
        {"frequency": SLOW | {"turbo": True}},
        {"frequency": SLOW | {"turbo": False}},
        "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost",
    ),
    (
        doctor.turbo,
        {"frequency": {"driver": "intel_pstate", "turbo": True}},
        {"frequency": {"driver": "intel_pstate", "turbo": None}},
        "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo",
    ),
    (doctor.siblings, FOUR | {"smt": True}, FOUR | {"smt": False}, "taskset -c 0-1 "),
    (
        doctor.siblings,
        FOUR | {"smt": True, "affinity": [0, 1]},
        {"smt": True, "affinity": [0, 1], "core_cpus": ["0", "1", "2,3"]},
        "smt/control",
    ),
    (
        doctor.memory_nodes,
        FOUR | {"numa_cpus": ["0-1", "2-3"]},
        {"affinity": [2, 3], "numa_cpus": ["0-1", "2-3"]},
        "numactl --cpunodebind=0 --membind=0 ",
    ),
    (doctor.huge_pages, {"huge_pages": "always"}, {"huge_pages": "madvise"}, "echo madvise"),
    (doctor.virtual_machine, {"virtual": True}, {"virtual": False}, "of your own"),
    (doctor.fixed_placement, {"aslr": 0}, {"aslr": 2}, "echo 2"),
    (
        doctor.spread,
        {"jitter": {"high": 0.2, "median_s": 2e-4}},
        {"jitter": {"high": 0.02, "median_s": 2e-4}},
        "measure=thorough",
    ),
    (doctor.random_placement, {"aslr": 2}, {"aslr": 0}, ""),
    (doctor.garbage, {"gc": {"thresholds": [700, 10, 10]}}, {"gc": {"thresholds": [0, 0, 0]}}, ""),
]


@pytest.mark.parametrize(("rule", "noisy", "calm", "remedy"), CASES)
def test_a_rule_finds_its_cause_alone(
    rule: Rule, noisy: dict[str, Any], calm: dict[str, Any], remedy: str
) -> None:
    finding = rule(noisy)
    assert finding is not None
    assert remedy in (finding.remedy or "")
    assert "\n" not in f"{finding.found}{finding.why}{finding.remedy}"
    assert rule(calm) is None


def test_every_rule_has_a_case_and_a_place() -> None:
    assert {rule for rule, *_ in CASES} == set(RULES)
    assert len(set(RULES)) == len(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_finds_nothing_where_nothing_could_be_read(rule: Rule) -> None:
    empty = {"affinity": [], "frequency": {}, "clock": {"observed_s": None}, "gpus": [{"index": 0}]}
    empty["activity"] = {"others_cores": None, "steal_share": None, "frequency_change": None}
    assert rule({}) is None
    assert rule(empty) is None


def test_the_report_is_in_the_rules_order_and_numbered() -> None:
    text = report(FOUR | CROWD | {"cpu_quota": 2.0, "huge_pages": "always", "aslr": 2})
    places = [text.index(word) for word in ("1  a CPU quota", "2  other", "3  no aff", "4  transp")]
    assert places == sorted(places)
    assert text.index("To be left as it is") < text.index("ASLR")
    assert "nothing was found" not in text


def test_a_calm_machine_is_told_so() -> None:
    assert "nothing was found" in report({})
    assert "nothing was found" in report({"aslr": 2})


def test_facts_are_those_that_were_read() -> None:
    assert facts({}) == []
    assert facts({"gpus": [GPU], "frequency": {"turbo": False}}) == [
        ("frequency", "turbo off"),
        ("GPU", "0: H100, SM at 345 of 1980 MHz, gpu_idle"),
    ]


def test_it_runs_and_changes_nothing(expkit: Expkit, tmp_path: Path) -> None:
    """With an nvidia-smi that notes how it was called: it is only ever asked."""
    calls, script = tmp_path / "calls", tmp_path / "bin/nvidia-smi"
    script.parent.mkdir()
    row = "0, GPU-5f, Toy GPU, 550.54.15, P8, Disabled, 210, 3105, 405, 10501, 9, 300, 450, 35, 0x1"
    script.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"open({str(calls)!r}, 'a').write(sys.argv[1] + '\\n')\nprint({row!r})\n"
    )
    script.chmod(0o755)
    expkit.env["PATH"] = f"{script.parent}{os.pathsep}{expkit.env['PATH']}"
    done = expkit("doctor")
    assert (done.status, done.err) == (0, "")
    assert "Toy GPU" in done.out
    for found in ("clocks are not locked", "persistence mode is off", "limited to 300 W of 450 W"):
        assert found in done.out
    assert f"{len(os.sched_getaffinity(0))} CPU" in done.out
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            assert f"BLAS  {pool['internal_api']}" in done.out
    asked = calls.read_text().splitlines()
    assert len(asked) == 1
    assert asked[0].startswith("--query-gpu=")
    assert not expkit.outputs.exists()


@pytest.mark.parametrize("words", [("doctor", "now"), ("doctor", "--fix")])
def test_a_word_it_does_not_know_is_misuse(expkit: Expkit, words: tuple[str, ...]) -> None:
    done = expkit(*words)
    assert (done.status, done.out) == (2, "")
