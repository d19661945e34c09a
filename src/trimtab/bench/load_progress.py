"""How a load is going, on one line of a terminal.

Written by hand: a refresh of rich's display takes about a millisecond of the loop that is being
measured, one write takes a hundredth of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from trimtab.bench.load_state import LoadProgress


def progress_line(state: LoadProgress, label: str = "") -> str:
    """Without knowing how fast the server is: until the last request is due, the schedule says how
    long it takes; of a closed loop, what has ended until now."""
    parts = [f"{label}{max(0.0, state.elapsed):.0f} s"]
    if (left := seconds_left(state)) is not None:
        parts[0] += f", {left:.0f} s left"
    parts.append(f"{state.num_ended}/{state.num_planned} requests")
    parts.append(f"{state.in_flight} in flight")
    if state.elapsed > 0:
        parts.append(f"{state.num_tokens / state.elapsed:.0f} tokens/s")
    if state.num_failed:
        parts.append(f"{state.num_failed} failed")
    return ", ".join(parts)


def seconds_left(state: LoadProgress) -> float | None:
    """None while nothing is known."""
    if state.last_due > state.elapsed:
        return state.last_due - state.elapsed
    if state.num_ended < 1 or state.elapsed <= 0:
        return None
    return (state.num_planned - state.num_ended) * state.elapsed / state.num_ended


def terminal_progress(label: str = "") -> Callable[[LoadProgress], None] | None:
    """None where standard error is no terminal."""
    if not sys.stderr.isatty():
        return None

    def show(state: LoadProgress) -> None:
        sys.stderr.write(f"\r\x1b[K{progress_line(state, label)[:110]}")
        sys.stderr.flush()

    return show


def clear_progress() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
