"""The program that replays a recorded step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from expkit.authors import (
    HostIndices,
    evaluation,
    first_data,
    first_params,
    first_state,
    host_rng,
    manual,
    named_arrays,
)
from expkit.contracts import EvaluatesAgain, HasGradient, HostArray, Mark, Operation, Workload

from .capture import Buffer, CaptureError, Fill, Recording, Ref, Traced
from .memory import placed
from .random import BlockRandom
from .replay import Replay

if TYPE_CHECKING:
    from .backend import NumpyBackend

AnyArray = npt.NDArray[Any]


class HostStream:
    """`stream=shared`, drawn in place, with the same bits as `expkit.authors.SharedRandom`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.rewind()

    def rewind(self) -> None:
        self._rng = host_rng(self._seed, "stream")

    def fill_normal(self, out: AnyArray) -> None:
        if out.dtype == np.float64:
            self._rng.standard_normal(out=out)
        else:
            out[...] = self._rng.standard_normal(out.shape)

    def fill_uniform(self, out: AnyArray) -> None:
        if out.dtype == np.float64:
            self._rng.random(out=out)
        else:
            out[...] = self._rng.random(out.shape)


class Integers(HostIndices):
    """The integers of any stream, drawn in place."""

    def fill_integers(self, high: int, out: AnyArray) -> None:
        out[...] = self.integers(high, out.shape)

    def fill_permutation(self, out: AnyArray) -> None:
        out[...] = self.permutation(out.size)

    def fill_minibatch(self, n: int, out: AnyArray) -> None:
        out[...] = self.minibatch(n, out.size)


class RecordingRandom:
    """Draws that are noted, to be drawn again at every replay."""

    def __init__(
        self,
        recording: Recording,
        source: HostStream | BlockRandom,
        integers: Integers,
        dtype: str,
    ) -> None:
        self._recording, self._source, self._dtype = recording, source, dtype
        self._integers = integers

    def normal(self, shape: tuple[int, ...]) -> Traced:
        return self._recording.filled(self._source.fill_normal, np.empty(shape, self._dtype))

    def uniform(self, shape: tuple[int, ...]) -> Traced:
        return self._recording.filled(self._source.fill_uniform, np.empty(shape, self._dtype))

    def integers(self, high: int, shape: tuple[int, ...]) -> Traced:
        return self._below(high, self._integers.fill_integers, shape, high)

    def permutation(self, n: int) -> Traced:
        return self._below(n, self._integers.fill_permutation, (n,))

    def minibatch(self, n: int, size: int) -> Traced:
        return self._below(n, self._integers.fill_minibatch, (size,), n)

    def _below(self, n: int, fill: Fill, shape: tuple[int, ...], *given: int) -> Traced:
        drawn = self._recording.filled(fill, np.empty(shape, np.int64), *given)
        drawn.ref.buffer.below = n
        return drawn


class CapturedProgram:
    """A step recorded once, replayed in place.

    Raises:
        CaptureError: the step does something that a recording cannot hold.
    """

    mode = "in place"

    def __init__(self, backend: NumpyBackend, workload: Workload) -> None:
        self._backend, self._workload = backend, workload
        shared = workload.stream == "shared"
        self._source = HostStream(workload.seed) if shared else backend.random(workload.seed)
        self._integers = Integers(workload.seed)
        self._losses = np.zeros(workload.steps)
        # In the backend's dtype from here on: what was drawn in float64 takes twice the room.
        self._host_data = self._converted(first_data(workload))
        self._record()
        self._start = self._converted(first_params(workload))
        self._place()
        self._bind()
        self.reset()

    def _converted(self, host: dict[str, HostArray]) -> dict[str, AnyArray]:
        # One array at a time: a host copy that nobody keeps is freed once it is converted.
        return {name: np.asarray(host.pop(name), self._backend.dtype) for name in list(host)}

    def _place(self) -> None:
        dtype = self._backend.dtype
        self._data = {name: placed(host, dtype) for name, host in self._host_data.items()}
        self._params = {name: placed(host, dtype) for name, host in self._start.items()}
        state = self._first_state(self._params)
        self._state = {name: placed(state[name], state[name].dtype) for name in state}

    def _first_state(self, params: dict[str, AnyArray]) -> dict[str, AnyArray]:
        return first_state(self._backend, self._workload, params)

    def _record(self) -> None:
        """Record the step twice: a step that changes from one to the next cannot be replayed."""
        try:
            with np.errstate(all="ignore"):
                first, _ = self._recording()
                recording, kept = self._recording()
        except CaptureError:
            raise
        except Exception as error:  # the step-by-step program works, or raises it
            raise CaptureError(f"{type(error).__name__}: {error}") from error
        if not first.same_step(recording):
            raise CaptureError("a step that depends on more than its arguments")
        recording.plan()
        self._forms = recording.slots
        learns = self._workload.optimizer is not None
        self._replay = Replay(recording, kept, learns=learns)

    def _recording(self) -> tuple[Recording, Ref]:
        """The calls of one step, and where its loss (or an operation's result) lies."""
        recording = Recording()
        fresh = self._converted(first_params(self._workload))  # a step may write into them
        groups = (self._host_data, fresh, self._first_state(fresh))
        pinned = [
            {name: recording.pin(x, fixed=group is self._host_data) for name, x in group.items()}
            for group in groups
        ]
        self._pins = [{name: x.ref for name, x in group.items()} for group in pinned]
        data, params, state = (dict(group) for group in pinned)
        random = RecordingRandom(recording, self._source, self._integers, self._backend.dtype)
        problem, optimizer = self._workload.problem, self._workload.optimizer
        batch = problem.batch(np, data, random)
        recording.mark("draw")
        if isinstance(problem, Operation):
            kept = recording.keep(problem.apply(np, batch))
            recording.mark("forward")
            return recording, kept
        assert optimizer is not None
        assert isinstance(problem, HasGradient)
        loss, grads = problem.loss_and_grad(np, params, batch)
        kept = recording.keep(loss)
        recording.mark("forward", kept)
        recording.mark("backward")
        if isinstance(optimizer, EvaluatesAgain):
            evaluate = evaluation(manual(np), problem, batch)
            after = optimizer.update_again(np, params, loss, grads, state, evaluate)
        else:
            del batch  # long arrays are freed early
            after = optimizer.update(np, params, grads, state)
        pairs = []
        for owned, updated in zip(pinned[1:], after, strict=True):
            if owned.keys() != updated.keys():
                raise CaptureError("state that init does not make")
            pairs += [(owned[name], updated[name]) for name in owned]
        recording.store(pairs)
        recording.mark("update")
        return recording, kept

    def _bind(self) -> None:
        backend = self._backend
        owned = (self._data, self._params, self._state)
        pinned: dict[Buffer, AnyArray] = {
            ref.buffer: arrays[name]
            for pins, arrays in zip(self._pins, owned, strict=True)
            for name, ref in pins.items()
        }
        # Zeros are written here, so that the pages are touched off the clock.
        storage = [placed(np.broadcast_to(0, shape), dtype) for shape, dtype in self._forms]
        pool, threads = backend.pool, backend.thread_count
        self._bind_step = partial(self._replay.bind, storage, pinned, self._losses, pool, threads)
        self._loop, self._result = self._bind_step()
        self._draw, _ = self._bind_step(draws=True)

    def reallocate(self) -> None:
        # Free the old arrays first: old and new together may not fit into memory.
        self._data, self._params, self._state, self._result = {}, {}, {}, np.empty(0)
        del self._loop, self._draw, self._bind_step
        self._place()
        self._bind()
        self.reset()

    def reset(self) -> None:
        self._done = 0
        self._source.rewind()
        self._integers.rewind()
        for name, array in self._params.items():
            array[...] = self._start[name]
        for name, array in self._first_state(self._params).items():
            self._state[name][...] = array

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        self.reset()
        self._draw(0, step)
        self._done = step
        own = self.arrays()
        for name, host in arrays.items():
            own[name][...] = host

    def advance(self, n: int) -> None:
        self._loop(self._done, self._done + n)
        self._done += n

    def trace(self, n: int, mark: Mark) -> None:
        loop, _ = self._bind_step(mark=mark)
        loop(self._done, self._done + n)
        self._done += n

    def losses(self, start: int = 0) -> HostArray:
        learned = 0 if self._workload.optimizer is None else self._done
        return self._losses[start:learned].copy()

    def params(self) -> dict[str, HostArray]:
        arrays = self._params
        if isinstance(self._workload.problem, Operation):
            arrays = {"result": self._result}
        return {name: self._backend.to_numpy(array) for name, array in arrays.items()}

    def arrays(self) -> dict[str, AnyArray]:
        return named_arrays(self._data, self._params, self._state)
