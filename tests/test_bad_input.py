"""Bad input costs one line on stderr and exit status 2, and leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Done, Expkit

SHORT = ("steps=20", "measure.repeats_min=1", "measure.repeats_max=1")
POSITIVE = "at least 1"
CASES = [
    # words, the key, what it got, what it takes
    ("problem=nope", "problem", "nope", "sine"),
    ("backend=nope", "backend", "nope", "numpy"),
    ("optimizer=nope", "optimizer", "nope", "sgd"),
    ("measure=nope", "measure", "nope", "quick"),
    ("tracking=nope", "tracking", "nope", "mlflow"),
    ("+experiment=nope", "experiment", "nope", "sine"),
    # an unknown key
    ("problem.foo=1", "problem.foo", "no such key", "degree"),
    ("+problem.foo=1", "problem.foo", "no such key", "degree"),
    ("measure.foo=1", "measure.foo", "no such key", "repeats_min"),
    ("++foo=1", "foo", "no such key", "log_every"),
    ("stepz=3", "stepz", "no such key", "steps"),
    # a wrong type
    ("problem.n=abc", "problem.n", "abc", "an integer"),
    ("problem.n=null", "problem.n", "None", "takes"),
    ("steps=1.5", "steps", "1.5", "an integer"),
    ("optimizer.lr=abc", "optimizer.lr", "abc", "a number"),
    ("optimizer=sgd optimizer.nesterov=maybe", "optimizer.nesterov", "maybe", "true or false"),
    ("seed=x", "seed", "x", "an integer"),
    ("measure.repeats_min=abc", "measure.repeats_min", "abc", "an integer"),
    ("measure=null", "measure", "", "quick"),
    ("backend=[numpy,torch]", "backend", "numpy", "torch_cuda"),
    # a size
    ("problem.n=0", "problem.n", "0", POSITIVE),
    ("problem.n=-5", "problem.n", "-5", POSITIVE),
    ("problem=linear problem.batch_size=0", "problem.batch_size", "0", POSITIVE),
    ("steps=0", "steps", "0", POSITIVE),
    ("log_every=0", "log_every", "0", POSITIVE),
    ("backend.threads=0", "backend.threads", "0", POSITIVE),
    ("backend=torch backend.threads=0", "backend.threads", "0", POSITIVE),
    ("seed=-1", "seed", "-1", "at least 0"),
    # a range
    ("optimizer.lr=nan", "optimizer.lr", "nan", "above 0"),
    ("optimizer.lr=inf", "optimizer.lr", "inf", "above 0"),
    ("optimizer.lr=-1", "optimizer.lr", "-1", "above 0"),
    ("measure.repeats_min=0", "measure.repeats_min", "0", POSITIVE),
    ("measure.repeats_min=3 measure.repeats_max=2", "measure.repeats_max", "2", "at least"),
    ("measure.budget_s=-1", "measure.budget_s", "-1", "at least 0"),
    ("measure.budget_s=nan", "measure.budget_s", "nan", "at least 0"),
    ("measure.target_ci=-1", "measure.target_ci", "-1", "at least 0"),
    ("measure.target_ci=inf", "measure.target_ci", "inf", "at least 0"),
    ("measure.warmup=-1", "measure.warmup", "-1", "at least 0"),
    ("measure.repeats_per_placement=0", "measure.repeats_per_placement", "0", POSITIVE),
    ("measure.threshold=0", "measure.threshold", "0.0", "between 0 and 1"),
    ("measure.threshold=1", "measure.threshold", "1.0", "between 0 and 1"),
    ("measure.threshold=nan", "measure.threshold", "nan", "between 0 and 1"),
    ("measure.parity=maybe", "measure.parity", "maybe", "report or require"),
    # a word out of a list
    ("stream=foo", "stream", "foo", "shared or device"),
    ("backend.dtype=int8", "backend.dtype", "int8", "float64"),
    ("backend=torch backend.device=tpu", "backend.device", "tpu", "cuda"),
    ("tracking.kind=foo", "tracking.kind", "foo", "mlflow or none"),
    # not of the form key=value
    ("foo", "foo", "", "key=value"),
    ("problem.n=[1", "problem.n", "[1", "key=value"),
    ("-x", "-x", "", ""),
    # Hydra's own
    ("hydra.job.env_copy=[NOT_SET]", "hydra.job.env_copy", "NOT_SET", "variables that are set"),
    ("hydra.job_logging.root.level=NONSENSE", "hydra.job_logging", "NONSENSE", "takes"),
    # a place that takes no files, not even root's
    ("outputs=/proc/nope", "outputs", "/proc/nope", ""),
    ("outputs=a_file/x", "outputs", "a_file", ""),
    ("outputs=", "outputs", "''", ""),
]


@pytest.mark.parametrize(("words", "key", "got", "takes"), CASES, ids=[case[0] for case in CASES])
def test_bad_input(
    run: Callable[..., Done], expkit: Expkit, words: str, key: str, got: str, takes: str
) -> None:
    (expkit.place / "a_file").touch()
    if not key.startswith(("tracking", "outputs")):
        words += " tracking=none"  # quicker
    is_complained_of(expkit, run(*words.split()), key, got, takes)


def test_hydra_writes_nothing_into_a_folder_that_is_refused(expkit: Expkit) -> None:
    place = expkit.place / "mine"
    place.mkdir()
    (place / "journal.jsonl").touch()
    words = (f"hydra.run.dir={place}", "hydra.output_subdir=.hydra", "tracking=none")
    done = expkit(*words)
    said = f"expkit: hydra.run.dir: {place} holds a run already; takes an empty or new folder\n"
    assert (done.status, done.err) == (2, said)
    assert [file.name for file in place.iterdir()] == ["journal.jsonl"]


def test_a_machine_without_slurm_is_refused_before_anything_is_written(expkit: Expkit) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    expkit.env["PATH"] = "/nowhere"
    done = expkit("-m", "problem=linear", "seed=1,2", "hydra/launcher=slurm", "tracking=none")
    is_complained_of(expkit, done, "hydra/launcher=slurm", "sbatch")
    assert not expkit.outputs.exists()


def test_an_outputs_folder_below_a_file(expkit: Expkit) -> None:
    (expkit.place / "a_file").touch()
    expkit.env["EXPKIT_OUTPUTS"] = str(expkit.place / "a_file" / "x")
    is_complained_of(expkit, expkit(), "outputs", "a_file")


def test_a_device_that_is_not_there(expkit: Expkit) -> None:
    if find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    is_complained_of(
        expkit, expkit("backend=torch_cuda", "tracking=none"), "torch_cuda", "", "backend=torch"
    )


OPTION = "conf/backend/broken.yaml"
PLUGINS = [
    # what is wrong, the plugin's files, what must be named
    ("no target", {OPTION: "dtype: float64\n"}, "_target_"),
    ("no module", {OPTION: "_target_: broken_plugin.no.Backend\n"}, "broken_plugin.no.Backend"),
    ("no class", {OPTION: "_target_: broken_plugin.Nobody\n"}, "broken_plugin.Nobody"),
    ("no dot in the target", {OPTION: "_target_: Backend\n"}, "Backend"),
    (
        "no dataclass",
        {OPTION: "_target_: broken_plugin.Plain\n", "__init__.py": "class Plain: ...\n"},
        "dataclass",
    ),
    (
        "a module",
        {OPTION: "_target_: broken_plugin.backend\n", "backend.py": ""},
        "is a module and no class",
    ),
    (
        "a module that is imported",
        {OPTION: "_target_: broken_plugin.m\n", "__init__.py": "from . import m", "m.py": ""},
        "is a module and no class",
    ),
    ("a package", {OPTION: "_target_: broken_plugin\n"}, "is a module and no class"),
    (
        "a function",
        {OPTION: "_target_: broken_plugin.f\n", "__init__.py": "def f(): ..."},
        "is a function and no class",
    ),
    (
        "raises on import",
        {
            OPTION: "_target_: broken_plugin.backend.Backend\n",
            "backend.py": "raise RuntimeError('no good\\nnot at all')\n",
        },
        "no good",
    ),
    ("no YAML", {OPTION: "_target_: [\n"}, "broken.yaml"),
]


@pytest.mark.parametrize(("files", "named"), [p[1:] for p in PLUGINS], ids=[p[0] for p in PLUGINS])
def test_a_plugin_whose_option_is_broken(expkit: Expkit, files: dict[str, str], named: str) -> None:
    expkit.plugin({"__init__.py": ""} | files)
    is_complained_of(expkit, expkit("backend=broken", "tracking=none"), "backend", named)
    done = expkit("tracking=none", *SHORT)
    assert done.status == 0, "who does not use it is not troubled: " + done.err


def test_a_plugin_whose_package_is_not_there(expkit: Expkit) -> None:
    expkit.plugin({})
    is_complained_of(expkit, expkit("tracking=none"), "plugin broken", "broken_plugin")


def test_a_plugin_without_option_files(expkit: Expkit) -> None:
    expkit.plugin({"__init__.py": ""})
    is_complained_of(expkit, expkit("tracking=none"), "plugin broken", "broken_plugin", "conf")


def test_a_plugin_that_ships_no_option_of_its_name(expkit: Expkit) -> None:
    other = {"conf/backend/other.yaml": "_target_: broken_plugin.Other\n"}
    expkit.plugin({"__init__.py": "", **other})
    done = expkit("backend=broken", "tracking=none")
    said = "the plugin broken is installed, but ships no conf/backend/broken.yaml"
    is_complained_of(expkit, done, "backend", "numpy", said)


def test_a_plugin_with_an_option_of_the_core(expkit: Expkit) -> None:
    expkit.plugin({"__init__.py": "", "conf/problem/sine.yaml": "_target_: broken_plugin.Sine\n"})
    done = expkit("tracking=none")
    is_complained_of(expkit, done, "plugin broken", "problem/sine")
    assert "expkit and" in done.err or "and expkit" in done.err, done.err


def test_a_plugin_with_an_option_of_another(expkit: Expkit) -> None:
    expkit.plugin({"__init__.py": "", "conf/backend/numpy.yaml": "_target_: broken_plugin.N\n"})
    is_complained_of(
        expkit, expkit("tracking=none"), "plugin broken", "plugin numpy", "backend/numpy"
    )


def test_a_good_run_works_after_bad_ones(expkit: Expkit) -> None:
    for words in ("problem=nope", "++foo=1"):
        assert expkit(words).status == 2
    done = expkit(*SHORT)
    assert (done.status, done.err) == (0, "")
    assert len(expkit.folders()) == 1


def is_complained_of(expkit: Expkit, done: Done, *names: str) -> None:
    """The law of this file."""
    assert done.status == 2, done
    assert "Traceback" not in done.out + done.err
    assert len(done.err.splitlines()) == 1, done.err
    for name in names:
        assert re.search(rf"(?<![\w.-]){re.escape(name)}(?!\w)", done.err), (name, done.err)
    assert expkit.folders() == []
    assert {path.name for path in expkit.place.iterdir()} <= {"a_file", "site", "outputs"}
    assert expkit.processes() == []
