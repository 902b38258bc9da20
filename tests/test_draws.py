"""What a step draws: the same integers on every backend, without replacement where that is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from expkit.authors import HostIndices, StreamRandom, stream
from expkit.contracts import Array, Batch, HostArray, Random, Recommended, Workload
from expkit.errors import PluginError, Unavailable
from expkit.testing.cells import backend

BACKENDS = ("backend=numpy", "backend=torch")


@dataclass(frozen=True)
class Drawing:
    """Draws everything that can be drawn, and adds it up."""

    def recommended(self) -> Recommended:
        return Recommended(steps=5)

    def data(self, rng: np.random.Generator) -> dict[str, HostArray]:
        return {"x": np.arange(24.0).reshape(12, 2), "y": np.arange(12.0)}

    def batch(self, xp: Any, data: Any, random: Random) -> Batch:
        rows, some = random.minibatch(12, 5), random.integers(12, (5,))
        order = random.permutation(12)
        return {
            "x": data["x"][rows],
            "y": data["y"][some] + random.uniform((5,)) + random.normal((5,)),
            "all": data["y"][order],
        }

    def apply(self, xp: Any, batch: Batch) -> Array:
        return batch["y"] @ batch["x"] + batch["all"][3]


def results(words: str, how: str, fast: str) -> list[HostArray]:
    made = backend(words, f"backend.fast={fast}")
    program = made.build(Workload(Drawing(), None, 8, 1, how))
    found = []
    for _ in range(8):
        program.advance(1)
        made.synchronize(program)
        found.append(program.params()["result"])
    return found


@pytest.mark.parametrize("fast", ["true", "false"])
@pytest.mark.parametrize("words", BACKENDS)
def test_all_backends_draw_the_same_with_the_shared_stream(words: str, fast: str) -> None:
    right = results("backend=numpy", "shared", "false")
    np.testing.assert_allclose(results(words, "shared", fast), right, rtol=1e-14)


@pytest.mark.parametrize("how", ["shared", "device"])
@pytest.mark.parametrize("kind", ["integers", "permutation", "minibatch"])
def test_integers_are_the_same_on_every_backend_and_with_every_stream(kind: str, how: str) -> None:
    given = {"integers": (50, (3, 4)), "permutation": (20,), "minibatch": (20, 6)}[kind]
    found = []
    for words in BACKENDS:
        made = backend(words)
        random = stream(made, Workload(Drawing(), None, 8, 7, how))
        drawn = [getattr(random, kind)(*given) for _ in range(4)]
        assert all("int64" in str(array.dtype) for array in drawn)
        found.append([made.to_numpy(array) for array in drawn])
    right = [getattr(source, kind)(*given) for source in [HostIndices(7)] for _ in range(4)]
    for arrays in found:
        np.testing.assert_array_equal(arrays, right)


def test_the_fast_program_repeats_a_device_stream_too() -> None:
    right = results("backend=numpy", "device", "false")
    np.testing.assert_allclose(results("backend=numpy", "device", "true"), right, rtol=1e-14)


def test_a_step_of_minibatches_is_replayed_in_place() -> None:
    program = backend("backend=numpy").build(Workload(Drawing(), None, 8, 1, "shared"))
    assert program.mode == "in place"


def test_an_epoch_takes_no_row_twice_and_the_next_has_another_order() -> None:
    source = HostIndices(3)
    epochs = [np.concatenate([source.minibatch(17, 5) for _ in range(3)]) for _ in range(4)]
    for taken in epochs:
        assert np.unique(taken).size == 15, "two of 17 are left over"
        assert (taken >= 0).all()
        assert (taken < 17).all()
    assert len({tuple(taken) for taken in epochs}) == 4


def test_every_row_is_as_likely_in_every_place() -> None:
    source, counts = HostIndices(0), np.zeros((10, 10))
    for _ in range(5000):
        counts[np.arange(10), source.permutation(10)] += 1
    expected = 500.0
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(0.9 * chi2 - 81) < 6 * (2 * 81) ** 0.5, "81 degrees of freedom"


def test_a_minibatch_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(PluginError, match="size: got 11, takes an integer from 1 to 10"):
        HostIndices(0).minibatch(10, 11)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("words", BACKENDS)
def test_uniform_values_are_uniform(words: str, dtype: str) -> None:
    made = backend(words, f"backend.dtype={dtype}")
    for how in ("shared", "device"):
        random = stream(made, Workload(Drawing(), None, 1, 5, how))
        values = made.to_numpy(random.uniform((700_001,)))
        n = values.size
        assert 0 <= values.min() < values.max() <= 1
        assert abs(values.mean() - 0.5) < 6 * (1 / 12 / n) ** 0.5
        assert abs((values**2).mean() - 1 / 3) < 6 * (4 / 45 / n) ** 0.5


def test_a_library_without_asarray_can_run_what_draws_no_integers() -> None:
    class Bare:
        xp = object()

    class Only:
        def normal(self, shape: tuple[int, ...]) -> Array:
            return np.zeros(shape)

    bare: Any = Bare()
    assert StreamRandom(bare, Only(), 0).normal((3,)).shape == (3,)


def test_a_generator_without_uniform_values_says_so() -> None:
    class Only:
        def normal(self, shape: tuple[int, ...]) -> Array:
            return np.zeros(shape)

    with pytest.raises(Unavailable, match="draws no uniform values; use stream=shared"):
        StreamRandom(backend("backend=numpy"), Only(), 0).uniform((3,))
