"""A progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from expkit.measurement import Watch

REDRAW_S = 0.1


@contextmanager
def progress(steps: int) -> Iterator[Watch]:
    """What the runner calls between chunks: draws the repeat, its steps, loss and speed."""
    if not sys.stderr.isatty():
        yield lambda repeat, done, loss, per_second: None
        return
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread beside the clock
    last = 0.0
    with tqdm(total=steps, leave=False, file=sys.stderr, bar_format=FORMAT) as bar:

        def watch(repeat: int, done: int, loss: float | None, per_second: float) -> None:
            nonlocal last
            if monotonic() - last < REDRAW_S:
                return
            last = monotonic()
            loss_text = "" if loss is None else f"loss {loss:.4g}, "
            bar.n = done
            bar.set_description_str(f"repeat {repeat + 1}", refresh=False)
            bar.set_postfix_str(f"{loss_text}{per_second:,.0f} steps/s", refresh=True)

        yield watch


FORMAT = "{desc} {bar:30} {n_fmt}/{total_fmt} steps{postfix}"
