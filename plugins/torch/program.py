"""Programs over autograd: step by step, and a step over fixed memory that a CUDA graph replays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from expkit.authors import (
    INTEGERS,
    StepProgram,
    StreamRandom,
    draws_of_a_step,
    evaluation,
    first_data,
    first_state,
    named_arrays,
    place,
    place_params,
    scatter,
    skip,
    stream,
    unmarked,
)
from expkit.contracts import (
    Array,
    Batch,
    EvaluatesAgain,
    HostArray,
    Mark,
    Operation,
    Params,
    Problem,
    Program,
    Workload,
)

from .random import TorchRandom

if TYPE_CHECKING:
    from .backend import TorchBackend


def autograd(
    problem: Problem, params: Params, batch: Batch, mark: Mark = unmarked
) -> tuple[Array, Params]:
    """Return the loss and its gradient, which PyTorch's autograd computes.

    `torch.func.grad_and_value` is not used, because it makes a step 2 to 40 times as long on a CPU.
    Parameters require a gradient only in this function, so that updates record no graph.
    """
    leaves = list(params.values())
    for leaf in leaves:
        leaf.requires_grad_(True)
    loss = problem.loss(torch, params, batch)
    mark("forward")
    grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
    for leaf in leaves:
        leaf.requires_grad_(False)
    loss, grad_by_name = loss.detach(), dict(zip(params, grads, strict=True))
    mark("backward")
    return loss, grad_by_name


HOST_DRAWS = "the host draws in every step with stream=shared; the GPU does with stream=device"
HOST_INTEGERS = "the host draws integers in every step"

_failed_captures: list[str] = []
"""Why a capture failed in this process; at most one entry. PyTorch before 2.12 considers a failed
capture to be still under way, so every later one fails (pytorch 2.11, CUDAGraph::capture_end). As
this is the state of the process, it is kept in a module variable.
"""


class CaptureError(Exception):
    """The step cannot be captured as a CUDA graph, or this process can capture no more."""


def build(backend: TorchBackend, workload: Workload) -> Program:
    """Build the fastest program that fits: on CUDA a graph, unless the host draws in the step."""
    reason = ""
    if backend.fast and backend.device != "cpu":
        try:
            if reason := _draws_on_host(backend, workload):
                raise CaptureError(reason)
            return StaticProgram(backend, workload, capture=True)
        except CaptureError as error:
            reason = f"the step cannot be captured: {error}"
    # Outside the handler, where the error no longer keeps the failed program's memory alive.
    return StepProgram(backend, workload, autograd, reason)


def _draws_on_host(backend: TorchBackend, workload: Workload) -> str:
    """Say what the host draws in a step, which a graph could not repeat; empty if nothing."""
    data = place(backend, first_data(workload))
    kinds = {
        kind for kind, _ in draws_of_a_step(backend, workload, data, stream(backend, workload))
    }
    if not kinds.isdisjoint(INTEGERS):
        return HOST_INTEGERS
    return HOST_DRAWS if kinds and workload.stream == "shared" else ""


def _must_list_generators() -> bool:
    """Whether a graph must be told which generators its step draws from. From 2.14 on it finds them
    by itself (pytorch 176753), and telling it is deprecated.
    """
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) < (2, 14)


def _first(error: BaseException) -> BaseException:
    """Return the error of the step itself: ending the capture of a failed step fails too."""
    return error.__context__ or error


def _said(error: BaseException) -> str:
    """Return an error's first line, explained where PyTorch's message needs it."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    if "called a synchronizing CUDA operation" in line:
        return f"it waits for the GPU, as to read an array's value does (PyTorch: {line})"
    return line


class StaticProgram:
    """A step that reads and writes fixed memory, so that it can be captured as a CUDA graph.

    A graph is bound to its memory: `reallocate` captures it again.
    The step's number is a device array too: each replay writes its loss one place further on.
    Without `capture` the same step runs eagerly, on any device.

    Raises:
        CaptureError: the step cannot be captured. The process is as it was before, unless the
            capture itself failed: then no program captures in this process any more.
    """

    def __init__(self, backend: TorchBackend, workload: Workload, *, capture: bool) -> None:
        self._backend, self._workload, self._capture = backend, workload, capture
        self.mode = "cuda graph" if capture else "static"
        self._host_data = first_data(workload)
        if capture:
            # One stream for life: up to 2.11 each stream used for capture keeps a cuBLAS workspace.
            # It is not shared with other programs: the end of one graph frees the workspace that
            # another graph of the same stream still uses (pytorch 193402).
            self._side = torch.cuda.Stream(torch.device(backend.device))  # type: ignore[no-untyped-call]
        self.reallocate()

    def reallocate(self) -> None:
        self._backend.synchronize()  # a graph must not be freed while it runs
        # Free the old arrays first: old and new together may not fit into memory.
        self._replay: Callable[[], object] = self._step
        self._data, self._params, self._state, self._result = {}, {}, {}, torch.empty(0)
        backend, workload = self._backend, self._workload
        self._scattered = scatter(backend)
        self._data = place(backend, self._host_data)
        self._params = place_params(backend, workload)
        self._state = first_state(backend, workload, self._params)
        # With a shared stream this program is built only if no step draws.
        self._values: TorchRandom = backend.random(workload.seed)
        self._random = StreamRandom(backend, self._values, workload.seed)
        self._losses = torch.zeros(workload.steps + 1, device=backend.device, dtype=torch.float64)
        self._at = torch.zeros(1, device=backend.device, dtype=torch.int64)
        if self._capture:
            self._replay = self._captured()
        self.reset()

    def _step(self, mark: Mark = unmarked) -> None:
        workload, params, state = self._workload, self._params, self._state
        batch = workload.problem.batch(torch, self._data, self._random)
        mark("draw")
        if isinstance(workload.problem, Operation):
            self._result = workload.problem.apply(torch, batch)
            mark("forward")
            return
        assert workload.optimizer is not None
        loss, grads = autograd(workload.problem, params, batch, mark)
        self._losses.index_copy_(0, self._at, loss.to(self._losses.dtype).reshape(1))
        self._at += 1
        given, kept, optimizer = dict(params), dict(state), workload.optimizer
        if isinstance(optimizer, EvaluatesAgain):
            evaluate = evaluation(autograd, workload.problem, batch)
            after = optimizer.update_again(torch, given, loss, grads, kept, evaluate)
        else:
            after = optimizer.update(torch, given, grads, kept)
        moved = []
        for owned, fresh in zip((params, state), after, strict=True):
            if owned.keys() != fresh.keys():
                raise RuntimeError("state that init does not make cannot be kept in fixed memory")
            moved += [(x, fresh[name]) for name, x in owned.items() if fresh[name] is not x]
        # Clone all values first: a value may lie in an array that is written.
        for array, value in [(array, value.clone()) for array, value in moved]:
            array.copy_(value)
        mark("update")

    def _captured(self) -> Callable[[], object]:
        """Warm up eagerly, then capture one step and return the graph's replay."""
        if _failed_captures:
            raise CaptureError(
                f"an earlier capture failed in this process ({_failed_captures[0]}), after which "
                "PyTorch may take it for still under way; a fresh process can capture"
            )
        with torch.cuda.device(torch.device(self._backend.device)):
            try:
                self._warm_up()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # the step-by-step program works, or raises it
                raise CaptureError(_said(error)) from error
            self._at.zero_()
            return self._capture_step()

    def _warm_up(self) -> None:
        """Run three steps on the side stream, as a capture requires; the last two must not wait for
        the GPU.

        A step that cannot be captured fails here, where it does no harm. The first step may wait,
        because libraries initialize themselves in it.
        """
        main, mode = torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
        self._side.wait_stream(main)
        try:
            with torch.cuda.stream(self._side):
                for strictness in (mode, "error", "error"):
                    torch.cuda.set_sync_debug_mode(strictness)
                    self._at.zero_()
                    self._step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            main.wait_stream(self._side)

    def _capture_step(self) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        if _must_list_generators():
            for generator in self._values.generators:
                graph.register_generator_state(generator)
        try:
            # The outer block restores the stream: a failed capture leaves the graph's current.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, stream=self._side),
            ):
                self._step()
        except Exception as error:
            # Not kept in a local name: the error would keep the graph's memory, and itself, alive.
            _failed_captures.append(_said(_first(error)))
            if isinstance(_first(error), torch.OutOfMemoryError | KeyboardInterrupt):
                raise _first(error) from None
            raise CaptureError(_said(_first(error))) from error
        return cast("Callable[[], object]", graph.replay)

    def reset(self) -> None:
        self._done = 0
        self._at.zero_()
        self._values.rewind()
        self._random = StreamRandom(self._backend, self._values, self._workload.seed)
        fresh = place_params(self._backend, self._workload)
        for name, array in self._params.items():
            array.copy_(fresh[name])
        start = first_state(self._backend, self._workload, self._params)
        for name, array in self._state.items():
            array.copy_(start[name])

    def load(self, arrays: Mapping[str, HostArray], step: int = 0) -> None:
        self.reset()
        skip(self._backend, self._workload, self._data, self._random, step)
        self._done = step
        self._at.fill_(step)
        own = self.arrays()
        for name, host in arrays.items():
            own[name].copy_(self._backend.asarray(host))

    def advance(self, n: int) -> None:
        replay = self._replay
        for _ in range(n):
            replay()
        self._done += n

    def trace(self, n: int, mark: Mark) -> None:
        replayed = self._result
        for _ in range(n):
            self._step(mark)
        if self._capture:  # a replay leaves its result in the graph's own memory
            self._result = replayed.copy_(self._result)
        self._done += n

    def losses(self, start: int = 0) -> HostArray:
        if isinstance(self._workload.problem, Operation):
            return np.empty(0)
        return self._backend.to_numpy(self._losses[start : self._done])

    def params(self) -> dict[str, HostArray]:
        arrays = self._params
        if isinstance(self._workload.problem, Operation):
            arrays = {"result": self._result}
        return {name: self._backend.to_numpy(array) for name, array in arrays.items()}

    def arrays(self) -> dict[str, Array]:
        return named_arrays(self._data, self._params, self._state)
