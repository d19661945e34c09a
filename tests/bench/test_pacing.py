from __future__ import annotations

import asyncio
import time

import pytest

from trimtab.bench import pacing
from trimtab.bench.load import in_fast_loop
from trimtab.bench.pacing import Pacer


@pytest.mark.parametrize("kernel_timer", [True, False])
@pytest.mark.parametrize("fast", [True, False])
def test_calls_come_in_order_and_never_early(
    fast: bool, kernel_timer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel_timer:
        monkeypatch.setattr(pacing.sys, "platform", "elsewhere")
    found: list[tuple[int, float]] = []

    async def work() -> None:
        pacer = Pacer(asyncio.get_running_loop())
        start = time.monotonic()
        over = asyncio.Event()
        # The second is asked for last and due first; the past is due at once.
        for number, delay in ((2, 0.03), (3, 0.031), (1, 0.01), (0, -1.0)):
            when = start + delay
            pacer.at(when, lambda n=number, w=when: found.append((n, time.monotonic() - w)))  # type: ignore[misc]
        pacer.at(start + 0.05, over.set)
        await asyncio.wait_for(over.wait(), 10)
        pacer.close()

    if fast:
        in_fast_loop(work())
    else:
        asyncio.run(work())
    assert [number for number, _ in found] == [0, 1, 2, 3]
    assert min(late for _, late in found) >= 0
