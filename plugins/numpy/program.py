"""The program that replays a recorded step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from expkit.contracts import Differentiated, HostArray, Operation, Workload
from expkit.program import host_rng, place_data, place_params

from .capture import Buffer, Recording, Traced
from .random import BlockRandom

if TYPE_CHECKING:
    from .backend import NumpyBackend

AnyArray = npt.NDArray[Any]


class HostStream:
    """`stream=shared`, drawn in place: the bits of `expkit.program.SharedRandom`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.rewind()

    def rewind(self) -> None:
        self._rng = host_rng(self._seed, "stream")

    def fill(self, out: AnyArray) -> None:
        if out.dtype == np.float64:
            self._rng.standard_normal(out=out)
        else:
            out[...] = self._rng.standard_normal(out.shape)


class RecordingRandom:
    """Draws that are noted, to be drawn again at every replay."""

    def __init__(self, recording: Recording, source: HostStream | BlockRandom, dtype: str) -> None:
        self._recording, self._source, self._dtype = recording, source, dtype

    def next_step(self) -> None:
        """A recording is one step."""

    def normal(self, shape: tuple[int, ...]) -> Traced:
        return self._recording.filled(self._source.fill, np.empty(shape, self._dtype))


class CapturedProgram:
    """A step recorded once, replayed in place.

    Raises:
        CaptureError: the step does something that a recording cannot hold.
    """

    path = "in place"

    def __init__(self, backend: NumpyBackend, workload: Workload) -> None:
        self._backend, self._workload = backend, workload
        shared = workload.stream == "shared"
        self._source = HostStream(workload.seed) if shared else backend.random(workload.seed)
        self._losses = np.zeros(workload.steps)
        self._place()
        self._record()
        self._bind()
        self.reset()

    def _place(self) -> None:
        backend, workload = self._backend, self._workload
        self._data = place_data(backend, workload)
        self._params = place_params(backend, workload)
        optimizer = workload.optimizer
        self._slots = {} if optimizer is None else optimizer.init(np, self._params)

    def _record(self) -> None:
        self._recording = recording = Recording()
        pin = recording.pin
        self._pins = [
            {name: pin(array) for name, array in group.items()}
            for group in (self._data, self._params, self._slots)
        ]
        data, params, slots = (dict(group) for group in self._pins)
        random = RecordingRandom(recording, self._source, self._backend.dtype)
        problem, optimizer = self._workload.problem, self._workload.optimizer
        with np.errstate(all="ignore"):
            batch = problem.batch(np, data, random)
            if isinstance(problem, Operation):
                kept = problem.apply(np, batch)
            else:
                assert optimizer is not None
                assert isinstance(problem, Differentiated)
                kept, grads = problem.loss_and_grad(np, params, batch)
                params, slots = optimizer.update(np, params, grads, slots)
        self._kept = recording.keep(kept)
        for pinned, after in zip(self._pins[1:], (params, slots), strict=True):
            for name, target in pinned.items():
                recording.store(target, after[name])
        recording.plan()

    def _bind(self) -> None:
        owned = (self._data, self._params, self._slots)
        pinned: dict[Buffer, AnyArray] = {
            traced.buffer: arrays[name]
            for pins, arrays in zip(self._pins, owned, strict=True)
            for name, traced in pins.items()
        }
        # Zeros, written: pages are touched here and not on the clock.
        storage = [np.full(shape, 0, dtype) for shape, dtype in self._recording.slots]
        self._calls, place = self._recording.bind(storage, pinned)
        self._result = place(self._kept)

    def reallocate(self) -> None:
        self._calls, self._data, self._params, self._slots = [], {}, {}, {}
        self._result = np.empty(0)
        # Something small of random length in between moves what is placed after it.
        self._pad = np.zeros(int(np.random.default_rng().integers(1, 512)))
        self._place()
        self._bind()
        self.reset()

    def reset(self) -> None:
        self._done = 0
        self._source.rewind()
        fresh = place_params(self._backend, self._workload)
        for name, array in self._params.items():
            array[...] = fresh[name]
        if self._workload.optimizer is not None:
            start = self._workload.optimizer.init(np, self._params)
            for name, array in self._slots.items():
                array[...] = start[name]

    def advance(self, n: int) -> None:
        calls = self._calls
        if isinstance(self._workload.problem, Operation):
            for _ in range(n):
                for call in calls:
                    call()
            return
        losses, loss = self._losses, self._result
        for step in range(self._done, self._done + n):
            for call in calls:
                call()
            losses[step] = loss
        self._done += n

    def losses(self, start: int = 0) -> HostArray:
        return self._losses[start : self._done].copy()

    def params(self) -> dict[str, HostArray]:
        arrays = self._params
        if isinstance(self._workload.problem, Operation):
            arrays = {"result": self._result}
        return {name: self._backend.to_numpy(array) for name, array in arrays.items()}
