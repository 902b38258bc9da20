"""What a run keeps of its measurement: samples, placements, the first call, why it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from expkit import conduct, trial
from expkit.config import compose_cell
from expkit.measure import clock
from expkit.measure.clock import READING_RESOLUTIONS, resolution_seconds
from expkit.tracking import journal

if TYPE_CHECKING:
    from conftest import Expkit

TWELVE = ("measure.repeats_min=12", "measure.repeats_max=12")
NONE = "tracking=none"


def kept(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record, _ in journal.read(folder) if record["kind"] == kind]


def metric(folder: Path, key: str) -> list[float]:
    return [v for m in kept(folder, "metric") if m["key"] == key for v in m["values"]]


def test_every_sample_is_kept_with_its_placement(expkit: Expkit) -> None:
    words = ("measure.repeats_min=15", "measure.repeats_max=15", "measure.repeats_per_placement=2")
    assert expkit("problem=sine", "steps=250", NONE, *words).status == 0
    [folder] = expkit.folders()
    samples = kept(folder, "sample")
    assert len(samples) == 15
    assert [s["placement"] for s in samples] == [repeat // 2 for repeat in range(15)]
    assert all(len(s["seconds"]) == 3 for s in samples), "a reading for every 100 steps"
    walls = [sum(s["seconds"]) for s in samples]
    assert metric(folder, "time/wall_seconds") == pytest.approx(walls)
    [middle] = metric(folder, "time/median_seconds")
    assert min(walls) <= middle <= max(walls)
    [share] = metric(folder, "time/placement_share")
    assert 0 <= share <= 1
    assert len(metric(folder, "time/outliers")) == 1


@pytest.mark.parametrize(
    ("words", "by"),
    [
        ("repeats_min=3 repeats_max=3", "repeats_max"),
        ("repeats_min=4 repeats_max=10000 budget_s=0 target_ci=0", "budget_s"),
        ("repeats_min=12 repeats_max=10000 budget_s=1000 target_ci=5", "target_ci"),
    ],
)
def test_what_ended_the_repeats_is_recorded(expkit: Expkit, words: str, by: str) -> None:
    measure = [f"measure.{word}" for word in words.split()]
    done = expkit("problem=sine", "steps=100", NONE, *measure)
    assert done.status == 0, done
    [folder] = expkit.folders()
    assert {"stopped_by": by} in [record["tags"] for record in kept(folder, "tags")]
    least = int(words.split()[0].partition("=")[2])
    assert len(kept(folder, "sample")) == least, "and no repeat more was made"


SLOW_FIRST = """
    import time
    from dataclasses import dataclass
    from expkit.authors import StepProgram, manual
    from expkit_plugins.numpy.backend import NumpyBackend

    class Program(StepProgram):
        calls = 0

        def advance(self, n):
            self.calls += 1
            if self.calls == 1:
                time.sleep(1)
            if self.calls in SLOW_CALLS:
                time.sleep(0.3)
            super().advance(n)

    SLOW_CALLS = []

    @dataclass(frozen=True)
    class Backend(NumpyBackend):
        def build(self, workload):
            return Program(self, workload, manual(self.xp))
"""


def test_the_first_call_is_recorded_on_its_own_and_in_no_result(expkit: Expkit) -> None:
    expkit.plugin(
        {"__init__.py": SLOW_FIRST, "conf/backend/slow.yaml": "_target_: broken_plugin.Backend\n"}
    )
    assert expkit("backend=slow", "problem=sine", "steps=20", NONE, *TWELVE).status == 0
    [folder] = expkit.folders()
    [first] = metric(folder, "time/first_step_seconds")
    assert first >= 1
    assert max(metric(folder, "time/wall_seconds")) < first / 2
    assert metric(folder, "time/warmup_seconds")[0] >= first


def test_one_slow_repeat_is_an_outlier_that_stays(expkit: Expkit) -> None:
    """A call in the midst of the repeats sleeps: of 100 repeats of one chunk, twice a call each."""
    code = SLOW_FIRST.replace("SLOW_CALLS = []", "SLOW_CALLS = range(100, 101)")
    expkit.plugin(
        {"__init__.py": code, "conf/backend/slow.yaml": "_target_: broken_plugin.Backend\n"}
    )
    repeats = ("measure.repeats_min=100", "measure.repeats_max=100", "measure.warmup=0")
    done = expkit("backend=slow", "problem=sine", "steps=200", "log_every=200", NONE, *repeats)
    assert done.status == 0
    [folder] = expkit.folders()
    walls = metric(folder, "time/wall_seconds")
    assert len(walls) == 100
    assert max(walls) >= 0.3
    [count] = metric(folder, "time/outliers")
    assert count >= 1
    assert f"{count:.0f} of 100 repeats far from the others" in done.out
    [high] = metric(folder, "time/high_seconds")
    assert high < 0.3, "the interval of a median is not moved by one"


@pytest.mark.parametrize("words", ["problem=matmul problem.n=3", "problem=add problem.n=3"])
def test_a_short_program_repeats_within_a_reading_until_the_clock_can_tell(
    tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading, on the clock as the run saw it, is about 1000 resolutions long or longer."""
    readings: list[float] = []

    def timed(*given: Any) -> float:
        readings.append(real(*given))
        return readings[-1]

    real = clock.timed
    monkeypatch.setattr(trial, "timed", timed)
    cell = compose_cell(*words.split(), "steps=1", NONE, *TWELVE)
    found = conduct.run_together([(cell, tmp_path / "run")], None, tags={})[0]
    assert found.outcome == "ok"
    readings = sorted(readings[:12])  # after them it is timed once more from another start
    assert len(readings) == 12
    # By half, as the machine may be faster in a repeat than it was when the passes were counted.
    assert readings[6] >= 0.5 * READING_RESOLUTIONS * resolution_seconds()
    assert found.summary is not None
    assert found.summary.median < readings[6] / 10, "and the result is of one pass"
