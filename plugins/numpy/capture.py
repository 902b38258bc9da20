"""Record one step's NumPy calls and plan the memory that they write.

A step is run for real on `Traced` arrays, which note every ufunc with its inputs and output.
`Recording.plan` then lets temporaries whose lives do not overlap share storage (linear scan,
Poletto and Sarkar 1999), and gives an elementwise result the place of an input that dies with it.
`expkit_plugins.numpy.replay` makes a function of it, which allocates no array and does what a
carefully written in-place loop does, for any problem and optimizer.

What depends on no input, such as `3 * ones_like(x)`, is a constant: it is computed once for every
placement of the arrays, before the first step.

Anything that a recording cannot hold, such as a branch on an array's value, raises
`CaptureError`; the backend then runs step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

AnyArray = npt.NDArray[Any]
Fill = Callable[..., None]
"""Overwrites its last argument, an array."""
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
        fixed: pinned, and not to be written: the problem's data.
        constant: computed before the first step, and not to be written by one.
        kept: nothing overwrites it before the step's end.
        last: index of the last call that touches it, known once the memory is planned.
        slot: which storage a temporary shares.
        below: of drawn integers: all are from 0 to below this number.
    """

    form: Form
    pinned: bool = False
    fixed: bool = False
    constant: bool = False
    kept: bool = False
    last: int = -1
    slot: int | None = None
    below: int = 0


@dataclass(frozen=True, eq=False)
class Ref:
    """Where an array lies: in a buffer, or in part of one."""

    buffer: Buffer
    view: Callable[[AnyArray], AnyArray] | None = None


@dataclass(eq=False)
class Traced(NDArrayOperatorsMixin):
    """An array during the recording: its value now, and where it will lie in a replay.

    The recording keeps only `ref`, so that a value is freed once the step drops it.
    """

    recording: Recording
    value: AnyArray
    ref: Ref

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Traced:
        if method == "reduce":
            return self.recording.reduce(ufunc, *inputs, **options)
        if method != "__call__" or options or ufunc.nout != 1:
            raise CaptureError(f"{ufunc.__name__}.{method} with {sorted(options)}")
        target = out[0] if out else None
        if not isinstance(target, Traced | None):
            raise CaptureError("a result into an array that the step made itself")
        return self.recording.call(ufunc, inputs, target)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Traced:
        if func in (np.sum, np.mean):
            return self.recording.summed(*args, mean=func is np.mean, **kwargs)
        if func in LARGEST:
            axis = args[1] if len(args) > 1 else kwargs.pop("axis", None)
            return self.recording.reduce(LARGEST[func], self, axis, *args[2:], **kwargs)
        if func in CONSTANTS and len(args) == 1 and not kwargs:
            return self.recording.uniform(self, CONSTANTS[func])
        if func in VIEWS:
            return self.viewed(lambda array: func(array, *args[1:], **kwargs))
        raise CaptureError(f"numpy.{func.__name__}")

    def viewed(self, view: Callable[[AnyArray], AnyArray]) -> Traced:
        value = view(self.value)
        if not np.may_share_memory(value, self.value):
            raise CaptureError("a view that copies")
        outer = self.ref.view
        path = view if outer is None else (lambda array: view(outer(array)))
        return Traced(self.recording, value, Ref(self.ref.buffer, path))

    def __getitem__(self, key: Any) -> Traced:
        if isinstance(key, Traced):
            return self.recording.gathered(self, key)
        if isinstance(key, int):
            return self.viewed(lambda array: array[key, ...])  # of shape (), and not a number
        return self.viewed(lambda array: array[key])

    @property
    def T(self) -> Traced:  # noqa: N802 - NumPy's name
        return self.viewed(lambda array: array.T)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def mT(self) -> Traced:  # noqa: N802 - the array API's name
        return self.viewed(lambda array: array.mT)

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


LARGEST: dict[Any, np.ufunc] = {
    np.max: np.maximum,
    np.amax: np.maximum,
    np.min: np.minimum,
    np.amin: np.minimum,
}
CONSTANTS: dict[Any, int] = {np.ones_like: 1, np.zeros_like: 0}
VIEWS = (np.reshape, np.transpose, np.permute_dims, np.matrix_transpose, np.squeeze)


@dataclass(eq=False)
class Call:
    """One call: `function` of `inputs`, written to `out`.

    Attributes:
        kind: `elementwise` (a ufunc), `product` (a generalized ufunc), `reduce`, `gather`, `fill`
            (overwrites `out`) or `copy`.
        inputs: `Ref`s, plain arrays and numbers.
        axis, keepdims: of a `reduce`.
        part: the part of the step that it belongs to, as `Mark` names it.
    """

    kind: str
    function: Any
    inputs: tuple[Any, ...]
    out: Ref
    axis: Any = None
    keepdims: bool = False
    part: str = ""


@dataclass(eq=False)
class Recording:
    """The calls of one step, in order.

    Attributes:
        once: the calls that make constants, before the first step.
        calls: the calls of every step.
    """

    once: list[Call] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    slots: list[Form] = field(default_factory=list)

    def pin(self, array: AnyArray, *, fixed: bool = False) -> Traced:
        """Register an array of the owner, which outlives a step; `fixed` if it never changes."""
        buffer = Buffer((array.shape, array.dtype), pinned=True, fixed=fixed)
        return Traced(self, array, Ref(buffer))

    def temporary(self, value: AnyArray) -> Traced:
        """Return an array for a call's result, in C order, as its storage in a replay will be."""
        value = np.asarray(value, order="C")
        return Traced(self, value, Ref(Buffer((value.shape, value.dtype))))

    def uniform(self, like: Traced, number: int) -> Traced:
        """A constant of another array's shape and dtype that holds one number."""
        out = self.temporary(np.full(like.shape, number, like.dtype))
        out.ref.buffer.constant = True
        self.once.append(Call("copy", np.copyto, (like.dtype.type(number),), out.ref))
        return out

    def same_step(self, other: Recording) -> bool:
        """Whether both made the same calls: the step depends on its arguments alone."""
        if (len(self.once), len(self.calls)) != (len(other.once), len(other.calls)):
            return False
        places: dict[Buffer, Buffer] = {}
        for one, two in zip(self.all_calls, other.all_calls, strict=True):
            if (one.kind, one.axis, one.keepdims) != (two.kind, two.axis, two.keepdims):
                return False
            if one.function != two.function:
                return False
            for x, y in zip((*one.inputs, one.out), (*two.inputs, two.out), strict=True):
                if isinstance(x, Ref) and isinstance(y, Ref):
                    alike = places.setdefault(x.buffer, y.buffer) is y.buffer
                    alike &= (x.view is None) == (y.view is None)
                else:
                    alike = type(x) is type(y) and np.array_equal(x, y, equal_nan=True)
                if not alike:
                    return False
        return True

    @property
    def all_calls(self) -> list[Call]:
        """All calls, in the order in which a replay makes them."""
        return [*self.once, *self.calls]

    def call(self, ufunc: np.ufunc, inputs: tuple[Any, ...], out: Traced | None) -> Traced:
        if ufunc is np.power and np.isscalar(inputs[1]) and inputs[1] == 2:
            ufunc, inputs = np.square, inputs[:1]
        values = [_value(x) for x in inputs]
        over = out is not None
        if out is None:
            out = self.temporary(ufunc(*values))
        elif out.ref.buffer.fixed:
            raise CaptureError("a step that writes into the problem's data")
        elif out.ref.buffer.constant:
            raise CaptureError("a step that writes into a constant")
        elif np.result_type(*values) != out.dtype:
            raise CaptureError(f"{ufunc.__name__} in place from another dtype")
        elif out.shape == () and not out.ref.buffer.pinned:
            # NumPy's scalars do not change in place: other names keep the old value.
            out = self.temporary(ufunc(*values))
        else:
            ufunc(*values, out=out.value)
            out.ref.buffer.below = 0
        kind = "elementwise" if ufunc.signature is None else "product"
        return self._note(kind, ufunc, inputs, out, over=over)

    def reduce(self, ufunc: np.ufunc, x: Traced, axis: Any = 0, **options: Any) -> Traced:
        if options.pop("dtype", None) is not None or options.pop("out", None) is not None:
            raise CaptureError(f"{ufunc.__name__}.reduce into another dtype or array")
        keepdims = bool(options.pop("keepdims", False))
        if options:
            raise CaptureError(f"{ufunc.__name__}.reduce with {sorted(options)}")
        value = ufunc.reduce(x.value, axis=axis, keepdims=keepdims)
        return self._note("reduce", ufunc, (x,), self.temporary(value), axis, keepdims)

    def summed(
        self, x: Traced, axis: Any = None, *, mean: bool, keepdims: bool = False, **options: Any
    ) -> Traced:
        """`np.sum` or `np.mean`."""
        if options:
            raise CaptureError(f"sum or mean with {sorted(options)}")
        total = self.reduce(np.add, x, axis, keepdims=keepdims)
        return total / (x.value.size // total.value.size) if mean else total

    def gathered(self, x: Traced, indices: Traced) -> Traced:
        """The rows of x that these indices name, as `x[indices]`."""
        if indices.dtype.kind != "i":
            raise CaptureError(f"an index of {indices.dtype}")
        value = self.temporary(np.take(x.value, indices.value, axis=0))
        # With `raise` NumPy writes into memory of its own first, in case an index is out of range.
        sure = indices.ref.view is None and 0 < indices.ref.buffer.below <= x.shape[0]
        return self._note("gather", "clip" if sure else "raise", (x, indices), value)

    def filled(self, fill: Fill, value: AnyArray, *given: int) -> Traced:
        """A temporary that `fill`, with these arguments, overwrites at this point of every step."""
        fill(*given, value)
        return self._note("fill", fill, given, self.temporary(value))

    def store(self, pairs: list[tuple[Traced, Traced]]) -> None:
        """End the step by copying the second array of each pair into the first, all at once."""
        moved = [(target, x) for target, x in pairs if x.ref is not target.ref]
        # Sources in an owner's array are copied first, as they may be overwritten below.
        copied: list[tuple[Traced, Any]] = [
            (target, np.positive(x) if x.ref.buffer.pinned else x) for target, x in moved
        ]
        for target, source in copied:
            if (source.shape, source.dtype) != (target.shape, target.dtype):
                raise CaptureError("parameters or state of another shape or dtype")
            self._note("copy", np.copyto, (source,), target)

    def keep(self, x: Traced) -> Ref:
        """Let nothing overwrite x before the step's end."""
        if not isinstance(x, Traced) or x.ref.buffer.constant:
            raise CaptureError("a result that depends on no input")
        x.ref.buffer.kept = True
        return x.ref

    def mark(self, part: str, result: Ref | None = None) -> None:
        """Assign this part to the calls without one: all, or those that `result` needs."""
        needed = set() if result is None else {result.buffer}
        for call in reversed(self.calls):
            if not call.part and (result is None or call.out.buffer in needed):
                call.part = part
                needed |= {x.buffer for x in call.inputs if isinstance(x, Ref)}

    def _note(
        self,
        kind: str,
        function: Any,
        inputs: tuple[Any, ...],
        out: Traced,
        axis: Any = None,
        keepdims: bool = False,
        *,
        over: bool = False,
    ) -> Traced:
        """Note a call; `over`: it overwrites an existing array."""
        arrays = [x for x in inputs if isinstance(x, Traced)]
        if any(x.recording is not self for x in (*arrays, out)):
            raise CaptureError("an array of another recording")
        refs = tuple(x.ref if isinstance(x, Traced) else x for x in inputs)
        call = Call(kind, function, refs, out.ref, axis, keepdims)
        fresh = not over and not out.ref.buffer.pinned
        if fresh and arrays and all(x.ref.buffer.constant for x in arrays):
            out.ref.buffer.constant = True
            self.once.append(call)
        else:
            self.calls.append(call)
        return out

    def plan(self) -> None:
        """Give every temporary a slot: storage it shares with temporaries of other times."""
        for index, call in enumerate(self.all_calls):
            for x in (*call.inputs, call.out):
                if isinstance(x, Ref):
                    stays = x.buffer.constant and index >= len(self.once)
                    x.buffer.last = NEVER if x.buffer.kept or stays else index
        free: list[int] = []
        for index, call in enumerate(self.all_calls):
            out = call.out.buffer
            if not out.pinned and out.slot is None:
                out.slot = self._heir(call, index)
                if out.slot is None:
                    out.slot = self._free_slot(free, out.form)
            for buffer in {x.buffer for x in (*call.inputs, call.out) if isinstance(x, Ref)}:
                inherited = buffer is not out and buffer.slot == out.slot
                if not buffer.pinned and buffer.last == index and not inherited:
                    assert buffer.slot is not None
                    free.append(buffer.slot)

    def _heir(self, call: Call, index: int) -> int | None:
        """Return the slot of an input that is not used later and has the output's form."""
        if call.kind != "elementwise":
            return None
        for x in call.inputs:
            if not isinstance(x, Ref) or x.view is not None or x.buffer.pinned:
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


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Traced) else x
