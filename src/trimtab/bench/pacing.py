"""Calls at exact times of the monotonic clock, inside an asyncio loop.

The timers of asyncio and libuv count milliseconds; on Linux this takes a timer of the kernel
instead (timerfd, absolute deadlines), which is late by tens of microseconds and never early.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import sys
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1  # what time.monotonic() reads on Linux
_TIMER_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0
_ABSOLUTE = 1
_SPIN_SECONDS = 0.002  # without a kernel timer: what a loop's own timer may be early by


class _TimerSpec(ctypes.Structure):
    _fields_ = (  # struct itimerspec: interval, then value
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Pacer:
    """Scheduled calls of one running loop. `close` it when done."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._armed = float("inf")
        self._libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self._descriptor = -1
        if self._libc is not None:
            self._descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TIMER_FLAGS)
        if self._descriptor >= 0:
            loop.add_reader(self._descriptor, self._fire)

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Calls at `when` of time.monotonic(), at once if that is past. Calls of one time keep
        their order. They must not raise."""
        self._count += 1
        heapq.heappush(self._calls, (when, self._count, call))
        if when < self._armed:
            self._arm(when)

    def close(self) -> None:
        self._calls.clear()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _arm(self, when: float) -> None:
        self._armed = when
        if self._descriptor >= 0 and self._libc is not None:
            nanoseconds = max(1, int(when * 1e9))  # 0 would disarm it
            spec = _TimerSpec(0, 0, nanoseconds // 10**9, nanoseconds % 10**9)
            self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None)
            return
        delay = when - time.monotonic()
        if delay > _SPIN_SECONDS:
            self._loop.call_later(delay - _SPIN_SECONDS, self._fire)
        else:
            self._loop.call_soon(self._fire)

    def _fire(self) -> None:
        if self._descriptor >= 0:
            try:
                os.read(self._descriptor, 8)
            except BlockingIOError:  # armed anew since it was seen to be due
                return
        self._armed = float("inf")
        while self._calls and self._calls[0][0] <= time.monotonic():
            heapq.heappop(self._calls)[2]()
        if self._calls and self._calls[0][0] < self._armed:
            self._arm(self._calls[0][0])
