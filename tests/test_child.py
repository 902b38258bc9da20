"""Child processes speak in messages of one version, and end with all theirs when they should."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expkit import child
from expkit.child import VERSION, Child, Gone, Hello, Late, command, decode, encode
from expkit.remote import ANSWERS, Begin, Done, Repeated, State, worker

if TYPE_CHECKING:
    from conftest import Expkit

BREEDING = {
    "__init__.py": """
        import subprocess
        from dataclasses import dataclass
        from expkit_plugins.numpy.backend import NumpyBackend

        @dataclass(frozen=True)
        class Breeding(NumpyBackend):
            def build(self, workload):
                subprocess.Popen(["sleep", "1000"])
                return super().build(workload)
    """,
    "conf/backend/breeding.yaml": "_target_: broken_plugin.Breeding\n",
}
ENDLESS = ("measure.repeats_min=100000", "measure.repeats_max=100000", "tracking=none")


def named(expkit: Expkit, name: str) -> list[int]:
    found = []
    for pid in expkit.processes():
        with suppress(OSError):
            found += [pid] if Path(f"/proc/{pid}/comm").read_text().strip() == name else []
    return found


def until(holds: object, timeout_s: float = 30.0) -> None:
    assert callable(holds)
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_a_cell_has_started_ends_with_the_sweep(
    expkit: Expkit, number: signal.Signals
) -> None:
    expkit.plugin(BREEDING)
    process = expkit.start("-m", "problem=linear", "backend=breeding", "seed=1,2", *ENDLESS)
    until(lambda: len(named(expkit, "sleep")) >= 2)
    process.send_signal(number)
    if number == signal.SIGINT:  # the first lets the round end
        time.sleep(0.2)
        process.send_signal(number)
    expkit.end(process)
    until(lambda: expkit.processes() == [])


def test_what_a_cell_has_started_ends_with_its_process(expkit: Expkit) -> None:
    expkit.plugin(BREEDING)
    done = expkit("-m", "problem=linear", "backend=breeding", "seed=1,2", "steps=20", *ENDLESS[2:])
    assert done.status == 0, done
    assert expkit.processes() == []


def test_a_message_is_a_line_and_comes_back() -> None:
    asked = Begin({"config": {"steps": 3}}, "/a b", {"sweep": "é\n"}, timed=True, checkpoint="")
    line = encode(asked)
    assert line.count(b"\n") == 1
    assert decode(line, [Begin]) == asked
    for wrong in (b"{}\n", b"[1]\n", b'{"is": "Hello"}\n', encode(Hello(1, []))):
        with pytest.raises(ValueError, match="takes one of"):
            decode(wrong, [Begin])


def test_both_sides_speak_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "VERSION", VERSION + 1)
    other = worker()
    with pytest.raises(Gone, match=f"version {VERSION} of the messages, not {VERSION + 1}"):
        other.hear(30)
    words = command("expkit.child", "expkit.far_end", str(os.getpid()))
    said = encode(Hello(VERSION + 1, []))
    done = subprocess.run(words, input=said, capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, b"")
    assert decode(done.stdout, [Hello]).version == VERSION


def test_a_child_that_is_killed_or_late_is_told_so() -> None:
    one = worker()
    with pytest.raises(Late):
        one.hear(0.01)
    one.greet(30)
    os.kill(one.pid, signal.SIGKILL)
    with pytest.raises(Gone, match=r"killed by SIGKILL \(out of memory\?\)"):
        one.hear(30)
    one.kill()
    other = Child("expkit.nosuch", ANSWERS)
    with pytest.raises(Gone, match="ended with status 1"):
        other.hear(30)
    other.kill()


def test_answers_come_one_at_a_time_however_they_are_written(tmp_path: Path) -> None:
    """Two untimed cells that cannot be thawed: an answer each, and the process goes on."""
    process = worker()
    for number in range(2):
        process.put(Begin({}, str(tmp_path / str(number)), {}, timed=False, checkpoint=""))
    process.flush()
    for _ in range(2):
        done = process.hear(30)
        assert isinstance(done, Done)
        assert done.outcome == "failed"
    process.hang_up()
    process.close()
    assert {State, Repeated, Done} == set(ANSWERS)
