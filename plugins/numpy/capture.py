"""Record one step's NumPy calls, then replay them into memory that is laid out once.

A step is run for real on `Traced` arrays, which note every ufunc with its inputs and output. From
the notes, `Recording.bind` makes a list of calls with fixed arguments: temporaries whose lives do
not overlap share memory (linear scan, Poletto and Sarkar 1999), and an elementwise result takes
the place of an input that dies with it. The replay allocates nothing and does what a careful
person's in-place loop does, for any problem and optimizer.

Anything that a recording cannot hold, such as a branch on an array's value, raises
`CaptureError`; the backend then runs step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

AnyArray = npt.NDArray[Any]
Fill = Callable[[AnyArray], None]
Form = tuple[tuple[int, ...], np.dtype[Any]]
NEVER = 1 << 62


class CaptureError(Exception):
    """The step does something that a recording cannot hold."""


@dataclass(eq=False)
class Buffer:
    """Memory that calls read and write.

    Attributes:
        form: its shape and dtype.
        pinned: the owner's array (parameters, state, data) and not a temporary.
        last: index of the last call that touches it.
        slot: which storage a temporary shares.
    """

    form: Form
    pinned: bool = False
    last: int = -1
    slot: int | None = None


@dataclass(eq=False)
class Traced(NDArrayOperatorsMixin):
    """An array during the recording: its value now, and the buffer (or part of one) it lies in."""

    recording: Recording
    value: AnyArray
    buffer: Buffer
    view: Callable[[AnyArray], AnyArray] | None = None

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Traced:
        if method == "reduce":
            return self.recording.reduce(ufunc, *inputs, **options)
        if method != "__call__" or options or ufunc.nout != 1:
            raise CaptureError(f"{ufunc.__name__}.{method} with {sorted(options)}")
        return self.recording.call(ufunc, inputs, out[0] if out else None)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Traced:
        if func in (np.sum, np.mean):
            return self.recording.summed(*args, mean=func is np.mean, **kwargs)
        if func in VIEWS:
            return self.viewed(lambda array: func(array, *args[1:], **kwargs))
        raise CaptureError(f"numpy.{func.__name__}")

    def viewed(self, view: Callable[[AnyArray], AnyArray]) -> Traced:
        value = view(self.value)
        if not np.may_share_memory(value, self.value):
            raise CaptureError("a view that copies")
        outer = self.view
        path = view if outer is None else (lambda array: view(outer(array)))
        return Traced(self.recording, value, self.buffer, path)

    def __getitem__(self, key: Any) -> Traced:
        return self.viewed(lambda array: array[key])

    @property
    def T(self) -> Traced:  # noqa: N802 - NumPy's name
        return self.viewed(lambda array: array.T)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.value.dtype

    @property
    def device(self) -> str:
        return "cpu"

    def _has_no_value(self, *_: Any, **__: Any) -> NoReturn:
        raise CaptureError("the step uses an array's value in Python")

    __bool__ = __float__ = __int__ = __index__ = __array__ = __len__ = __iter__ = _has_no_value


VIEWS = (np.reshape, np.transpose, np.permute_dims, np.matrix_transpose, np.squeeze)


@dataclass(eq=False)
class Call:
    """`function(*before, *inputs, *after, out)`, or `fill(out)` where there are no inputs."""

    function: Any
    inputs: tuple[Any, ...]
    out: Traced
    elementwise: bool = False
    after: tuple[Any, ...] = ()


@dataclass(eq=False)
class Recording:
    """The calls of one step, in order."""

    calls: list[Call] = field(default_factory=list)
    slots: list[Form] = field(default_factory=list)

    def pin(self, array: AnyArray) -> Traced:
        """An array of the owner's, which lives on between steps."""
        return Traced(self, array, Buffer((array.shape, array.dtype), pinned=True))

    def temporary(self, value: AnyArray) -> Traced:
        return Traced(self, value, Buffer((value.shape, value.dtype)))

    def call(self, ufunc: np.ufunc, inputs: tuple[Any, ...], out: Traced | None) -> Traced:
        if ufunc is np.power and np.isscalar(inputs[1]) and inputs[1] == 2:
            ufunc, inputs = np.square, inputs[:1]
        values = [_value(x) for x in inputs]
        if out is None:
            out = self.temporary(np.asarray(ufunc(*values)))
        else:
            ufunc(*values, out=out.value)
        # NumPy converts a Python number at every call; an array of shape () is there already.
        fixed = tuple(
            np.asarray(x, out.dtype) if isinstance(x, (int, float)) and out.dtype.kind == "f" else x
            for x in inputs
        )
        return self._note(Call(ufunc, fixed, out, elementwise=ufunc.signature is None))

    def reduce(self, ufunc: np.ufunc, x: Traced, axis: Any = 0, **options: Any) -> Traced:
        if options.pop("dtype", None) is not None or options.pop("out", None) is not None:
            raise CaptureError(f"{ufunc.__name__}.reduce into another dtype or array")
        keepdims = bool(options.pop("keepdims", False))
        if options:
            raise CaptureError(f"{ufunc.__name__}.reduce with {sorted(options)}")
        value = np.asarray(ufunc.reduce(x.value, axis=axis, keepdims=keepdims))
        function = partial(_reduce, ufunc, axis, keepdims)
        return self._note(Call(function, (x,), self.temporary(value)))

    def summed(self, x: Traced, axis: Any = None, *, mean: bool, keepdims: bool = False) -> Traced:
        total = self.reduce(np.add, x, axis, keepdims=keepdims)
        return total / (x.value.size // total.value.size) if mean else total

    def filled(self, fill: Fill, value: AnyArray) -> Traced:
        """A temporary that `fill` overwrites at this point of every step."""
        fill(value)
        return self._note(Call(fill, (), self.temporary(value)))

    def store(self, target: Traced, source: Traced) -> None:
        """End the step with `target` holding `source`."""
        if target.buffer is not source.buffer:
            self._note(Call(_copy, (source,), target))

    def keep(self, x: Traced) -> Traced:
        """Let nothing overwrite x before the step's end."""
        if not isinstance(x, Traced):
            raise CaptureError("a result that no array went into")
        x.buffer.last = NEVER
        return x

    def _note(self, call: Call) -> Traced:
        for x in (*call.inputs, call.out):
            if isinstance(x, Traced):
                if x.recording is not self:
                    raise CaptureError("an array of another recording")
                x.buffer.last = max(x.buffer.last, len(self.calls))
        self.calls.append(call)
        return call.out

    def plan(self) -> None:
        """Give every temporary a slot: storage it shares with temporaries of other times."""
        free: list[int] = []
        for index, call in enumerate(self.calls):
            out = call.out.buffer
            if not out.pinned and out.slot is None:
                out.slot = self._heir(call, index)
                if out.slot is None:
                    out.slot = self._free_slot(free, out.form)
            for buffer in {x.buffer for x in (*call.inputs, call.out) if isinstance(x, Traced)}:
                inherited = buffer is not out and buffer.slot == out.slot
                if not buffer.pinned and buffer.last == index and not inherited:
                    assert buffer.slot is not None
                    free.append(buffer.slot)
        for call in self.calls:  # the values seen while recording are done with
            for x in (*call.inputs, call.out):
                if isinstance(x, Traced):
                    x.value = np.empty(0)

    def _heir(self, call: Call, index: int) -> int | None:
        """The slot of an input that dies here and has the output's form."""
        if not call.elementwise:
            return None
        for x in call.inputs:
            if not isinstance(x, Traced) or x.view is not None or x.buffer.pinned:
                continue
            if x.buffer.last == index and x.buffer.form == call.out.buffer.form:
                return x.buffer.slot
        return None

    def _free_slot(self, free: list[int], form: Form) -> int:
        for slot in free:
            if self.slots[slot] == form:
                free.remove(slot)
                return slot
        self.slots.append(form)
        return len(self.slots) - 1

    def bind(
        self, storage: list[AnyArray], pinned: dict[Buffer, AnyArray]
    ) -> tuple[list[Callable[[], Any]], Callable[[Traced], AnyArray]]:
        """The step as calls without arguments, and where a traced array lies in them.

        Args:
            storage: an array for each of `slots`.
            pinned: the owner's array for each pinned buffer.
        """

        def place(x: Traced) -> AnyArray:
            buffer = x.buffer
            array = pinned[buffer] if buffer.slot is None else storage[buffer.slot]
            return array if x.view is None else x.view(array)

        def fixed(call: Call) -> Callable[[], Any]:
            inputs = (place(x) if isinstance(x, Traced) else x for x in call.inputs)
            return partial(call.function, *inputs, place(call.out))

        return [fixed(call) for call in self.calls], place


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Traced) else x


def _reduce(ufunc: np.ufunc, axis: Any, keepdims: bool, x: AnyArray, out: AnyArray) -> None:
    ufunc.reduce(x, axis=axis, out=out, keepdims=keepdims)


def _copy(source: AnyArray, target: AnyArray) -> None:
    np.copyto(target, source)
