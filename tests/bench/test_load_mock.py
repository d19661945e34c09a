"""The mock server's schedule against what queueing theory says, on a virtual clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from trimtab.bench.mock_schedule import Clock, Job, MockConfig, make_schedule


class VirtualTime:
    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._calls, (when, self._count, call))

    def run(self) -> None:
        while self._calls:
            when, _, call = heapq.heappop(self._calls)
            self.now = max(self.now, when)
            call()


def served(config: MockConfig, arrivals: list[float], num_tokens: int) -> list[list[float]]:
    """Times of the tokens of each request; several for chunks of several."""
    time = VirtualTime()
    schedule = make_schedule(config, Clock(config, time.at, lambda: time.now))
    tokens: list[list[float]] = [[] for _ in arrivals]

    def arrive(index: int) -> None:
        def give(count: int, last: bool) -> None:
            tokens[index].extend([time.now] * count)

        schedule.submit(Job(3, num_tokens, give))

    for index, at in enumerate(arrivals):
        time.at(at, lambda index=index: arrive(index))  # type: ignore[misc]
    time.run()
    return tokens


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_waits_as_long_as_m_d_1_says(load: float) -> None:
    rng = random.Random(7)
    service, arrivals, now = 0.1, [], 0.0
    for _ in range(40_000):
        arrivals.append(now)
        now += rng.expovariate(load / service)
    tokens = served(MockConfig(service_ms=100), arrivals, 1)
    waits = [given[-1] - service - at for given, at in zip(tokens, arrivals, strict=True)]
    expected = load * service / (2 * (1 - load))  # Pollaczek and Khinchine, of constant service
    assert min(waits) >= -1e-9
    assert sum(waits) / len(waits) == pytest.approx(expected, rel=0.1)


def test_a_stall_moves_everything_behind_it() -> None:
    arrivals = [0.0, 0.3, 0.55, 3.0]
    plain = served(MockConfig(service_ms=100), arrivals[:2], 2)
    stalled = served(MockConfig(service_ms=100, stall_at=0.35, stall_seconds=2.0), arrivals, 2)
    assert plain == [pytest.approx([0.05, 0.1]), pytest.approx([0.35, 0.4])]
    assert stalled[0] == pytest.approx([0.05, 0.1])
    assert stalled[1] == pytest.approx([0.35, 2.4])
    assert stalled[2] == pytest.approx([2.45, 2.5])  # it came during the stall
    assert stalled[3] == pytest.approx([3.05, 3.1])


def test_steps_batch_up_to_their_limit_and_prompts_make_them_longer() -> None:
    config = MockConfig(step_ms=10, max_batch=2, prefill_ms_per_token=1.0)
    first, second, third = served(config, [0.0, 0.001, 0.001], 2)
    assert first == pytest.approx([0.013, 0.026])
    assert second == pytest.approx([0.026, 0.039])
    assert third == pytest.approx([0.039, 0.049])


def test_tokens_of_a_chunk_come_together() -> None:
    (tokens,) = served(MockConfig(step_ms=10, tokens_per_chunk=3), [0.0], 7)
    assert tokens == pytest.approx([0.03] * 3 + [0.06] * 3 + [0.07])
