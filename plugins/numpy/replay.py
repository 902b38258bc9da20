"""Turn a planned recording into a Python function: one line per call, all names local.

The sine problem with plain gradient descent becomes

    def advance(first, last):
        for step in range(first, last):
            matmul(w, basis, t0)
            subtract(t0, y, t0)
            s0 = matmul(t0, t0)
            matmul(basis, t0, t1)
            multiply(2, t1, t1)
            multiply(1e-06, t1, t1)
            subtract(w, t1, w)
            losses[step] = s0

with names such as a1 and f1 for the arrays and functions. Values of shape () are NumPy scalars in
local variables: their arithmetic takes a fifth of a ufunc's time on an array of shape (). The calls
that make constants come before `advance`, so they run when the step is bound to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from expkit.contracts import Mark

from .capture import Buffer, Call, Recording, Ref

AnyArray = npt.NDArray[Any]
Advance = Callable[[int, int], None]
LONG = 1 << 19
"""Array size from which using more threads pays, at some 20 microseconds per hand-over."""
CONVERTED = (np.add, np.subtract, np.multiply, np.true_divide, np.power, np.maximum, np.minimum)
"""Ufuncs that turn a Python number into their result's dtype."""
OPERATORS = {np.add: "+", np.subtract: "-", np.multiply: "*", np.true_divide: "/"}


class Replay:
    """A step as a function that can be bound to memory repeatedly.

    Attributes:
        source: the function's text.
    """

    def __init__(self, recording: Recording, kept: Ref, *, learns: bool) -> None:
        self._recording, self._kept = recording, kept
        self._scalars = _scalars(recording)
        self._names: dict[int, str] = {}
        self._bound: list[Any] = []
        self._once = [self._line(call) for call in recording.once]
        self._lines = self._step(learns)
        self.source = self._write([line for _, line in self._lines])
        self._make = _compiled(self.source)

    def bind(
        self,
        storage: list[AnyArray],
        pinned: dict[Buffer, AnyArray],
        losses: AnyArray,
        pool: ThreadPoolExecutor | None = None,
        threads: int = 1,
        *,
        mark: Mark | None = None,
        draws: bool = False,
    ) -> tuple[Advance, AnyArray]:
        """Return the step's loop over these arrays, and the array of its kept value (the result).

        Args:
            storage: an array for each of the recording's slots.
            pinned: the owner's array for each pinned buffer.
            losses: receives the losses of steps `first` to `last` - 1.
            pool, threads: for elementwise calls on long arrays.
            mark: called at the end of each part of a step; None for a step without marks.
            draws: whether the loop draws each step's random values, and computes nothing.
        """

        def place(x: Any) -> Any:
            if not isinstance(x, Ref):
                return x
            array = pinned[x.buffer] if x.buffer.slot is None else storage[x.buffer.slot]
            if x.view is None:
                return array
            part = x.view(array)
            assert np.may_share_memory(part, array), "a view that copies"
            return part

        def in_parts(ufunc: np.ufunc, inputs: tuple[Any, ...], out: AnyArray) -> None:
            _in_parts(pool, threads, ufunc, inputs, out)

        result = place(self._kept)
        bound = (losses, result, in_parts, *map(place, self._bound))
        if mark is not None:
            return self._make_traced(*bound, mark), result
        make = self._make_draws if draws else self._make
        return make(*bound), result

    @cached_property
    def traced(self) -> str:
        """The function's text with a mark after each run of calls of one part."""
        return self._write(list(_marked(self._lines)), "mark")

    @cached_property
    def _make_traced(self) -> Any:
        return _compiled(self.traced)

    @cached_property
    def _make_draws(self) -> Any:
        fills = [self._line(call) for call in self._recording.calls if call.kind == "fill"]
        return _compiled(self._write(fills or ["pass"]))

    def _step(self, learns: bool) -> list[tuple[str, str]]:
        """The lines of a step, each with the part it belongs to."""
        lines = [(call.part, self._line(call)) for call in self._recording.calls]
        kept = self._argument(self._kept)
        if learns:
            lines.append(("update", f"losses[step] = {kept}"))
        elif self._kept.buffer in self._scalars:
            lines.append(("forward", f"result[()] = {kept}"))
        return lines

    def _write(self, lines: list[str], *given: str) -> str:
        """Write the function of these lines; `given` names more arguments than those they use."""
        seen = {
            x.buffer: x
            for call in self._recording.calls  # constants do not use the owner's arrays
            for x in (*call.inputs, call.out)
            if isinstance(x, Ref) and x.buffer.pinned and x.buffer in self._scalars
        }
        loads = [f"{self._argument(x)} = {self._name(x)}[()]" for x in seen.values()]
        stores = [f"{self._name(x)}[()] = {self._argument(x)}" for x in seen.values()]
        names = ", ".join([*(f"a{index}" for index in range(len(self._bound))), *given])
        return "\n".join(
            [
                f"def make(losses, result, in_parts, {names}):",
                *(f"    {line}" for line in self._once),
                "    def advance(first, last):",
                *(f"        {line}" for line in loads),
                "        for step in range(first, last):",
                *(f"            {line}" for line in lines),
                *(f"        {line}" for line in stores),
                "    return advance",
            ]
        )

    def _line(self, call: Call) -> str:
        inputs = [self._argument(x, call) for x in call.inputs]
        if call.out.buffer in self._scalars:
            return f"{self._argument(call.out)} = {self._expression(call, inputs)}"
        out = self._name(call.out)
        if call.kind == "copy":
            return f"{self._name(call.function)}({out}, {inputs[0]})"
        if call.kind == "reduce":
            function = self._name(call.function.reduce)
            axis = self._name(call.axis)
            return f"{function}({inputs[0]}, {axis}, None, {out}, {call.keepdims})"
        if call.kind == "gather":
            return f"{inputs[0]}.take({inputs[1]}, 0, {out}, {call.function!r})"
        function, listed = self._name(call.function), ", ".join(inputs)
        if call.kind == "elementwise" and np.prod(call.out.buffer.form[0]) >= LONG:
            return f"in_parts({function}, ({listed},), {out})"
        if call.function in (np.maximum, np.minimum):  # these want `out` as a keyword
            return f"{function}({listed}, out={out})"
        return f"{function}({', '.join([*inputs, out])})"

    def _expression(self, call: Call, inputs: list[str]) -> str:
        """Return the expression that computes a scalar."""
        if call.kind == "copy":
            return inputs[0]
        if call.kind == "reduce":
            return f"{self._name(call.function.reduce)}({inputs[0]}, {self._name(call.axis)})"
        scalars = all(not isinstance(x, Ref) or x.buffer in self._scalars for x in call.inputs)
        if scalars and call.function in OPERATORS:
            return f" {OPERATORS[call.function]} ".join(inputs)
        return f"{self._name(call.function)}({', '.join(inputs)})"

    def _argument(self, x: Any, call: Call | None = None) -> str:
        """Return a scalar's variable, or the name of a bound object."""
        if isinstance(x, Ref) and x.buffer in self._scalars:
            return f"s{list(self._scalars).index(x.buffer)}"
        if call is not None and type(x) in (int, float) and call.function in CONVERTED:
            into_array = call.out.buffer not in self._scalars
            if into_array and call.out.buffer.form[1].kind == "f":
                # NumPy converts a Python number at every call, but not an array of shape ().
                x = np.asarray(x, call.out.buffer.form[1])
        return self._name(x)

    def _name(self, x: Any) -> str:
        """The name under which `bind` passes this object."""
        if id(x) not in self._names:
            self._names[id(x)] = f"a{len(self._bound)}"
            self._bound.append(x)
        return self._names[id(x)]


def _marked(step: list[tuple[str, str]]) -> Iterator[str]:
    """The lines of a step, with a mark after each run of one part."""
    for part, lines in groupby(step, itemgetter(0)):
        yield from (line for _, line in lines)
        yield f"mark({part!r})"


def _compiled(source: str) -> Any:
    """Compile this source and return its function `make`."""
    scope: dict[str, Any] = {}
    exec(compile(source, "<recorded step>", "exec"), scope)
    return scope["make"]


def _scalars(recording: Recording) -> dict[Buffer, None]:
    """The buffers of shape () that can be variables: never filled, gathered, or viewed."""
    found: dict[Buffer, None] = {}
    barred: set[Buffer] = set()
    for call in recording.all_calls:
        for x in (*call.inputs, call.out):
            if isinstance(x, Ref):
                found.setdefault(x.buffer)
                if x.view is not None or x.buffer.form[0] != ():
                    barred.add(x.buffer)
        if call.kind in ("fill", "gather"):
            barred |= {x.buffer for x in (*call.inputs, call.out) if isinstance(x, Ref)}
    return {buffer: None for buffer in found if buffer not in barred}


def _in_parts(
    pool: ThreadPoolExecutor | None,
    threads: int,
    ufunc: np.ufunc,
    inputs: tuple[Any, ...],
    out: AnyArray,
) -> None:
    """Make an elementwise call on threads, each with a part of the first axis."""
    whole = [np.shape(x) == out.shape for x in inputs]
    alike = all(w or np.ndim(x) == 0 for w, x in zip(whole, inputs, strict=True))
    # One thread must not read what another writes.
    apart = all(x is out or not np.may_share_memory(x, out) for x in inputs)
    if pool is None or not alike or not apart:
        ufunc(*inputs, out=out)
        return

    def part(start: int, stop: int) -> None:
        own = (x[start:stop] if w else x for w, x in zip(whole, inputs, strict=True))
        with np.errstate(all="ignore"):  # other threads lack the caller's
            ufunc(*own, out=out[start:stop])

    edges = [len(out) * index // threads for index in range(threads + 1)]
    for done in [pool.submit(part, start, stop) for start, stop in pairwise(edges)]:
        done.result()
