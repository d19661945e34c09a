"""The parts of the supervision without processes: what is resumed, who is tried, who is lost."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.engine.async_engine import merge_outputs
from trimtab.engine.client import (
    EngineRequest,
    EngineStats,
    PrefillChunk,
    RequestTimeline,
    SpeculationStats,
    TokenLogprobs,
    TokenOutput,
)
from trimtab.engine.sampling_params import SamplingParams
from trimtab.server.engine_counts import sum_stats, without_counts
from trimtab.server.lineup import CONVICT_DEATHS, Lineup
from trimtab.server.live_request import LiveRequest
from trimtab.server.watchdog import Restarts, SupervisionPolicy, Watchdog


def request(name: str = "r", **fields: object) -> EngineRequest:
    params = SamplingParams(temperature=0.5, max_tokens=8)
    return EngineRequest(name, [1, 2, 3], params, **fields)  # type: ignore[arg-type]


def ignore(output: TokenOutput | Exception) -> None:
    pass


def test_a_seed_is_drawn_once_where_it_matters() -> None:
    live = LiveRequest.of(request(), ignore)
    seed = live.to_submit().params.seed
    assert seed is not None
    live.take(TokenOutput("r", [7]))
    assert live.to_submit().params.seed == seed
    assert LiveRequest.of(request(), ignore).to_submit().params.seed != seed
    greedy = EngineRequest("r", [1], SamplingParams(temperature=0))
    assert LiveRequest.of(greedy, ignore).request is greedy
    named = EngineRequest("r", [1], SamplingParams(seed=5))
    assert LiveRequest.of(named, ignore).request is named


def test_what_is_resumed() -> None:
    scores = [TokenLogprobs(-1.0), TokenLogprobs(-2.0)]
    outputs: list[TokenOutput | Exception] = []
    asked = request(prompt_logprobs=2, completion_ids=[9], cache_salt="s")
    live = LiveRequest.of(asked, outputs.append)
    assert live.to_submit().prompt_logprobs == 2
    live.take(TokenOutput("r", [4], num_cached_tokens=16, prompt_logprobs=scores))
    live.take(TokenOutput("r", [5, 6], num_cached_tokens=16))
    again = live.to_submit()
    assert again.completion_ids == [9, 4, 5, 6]
    assert again.prompt_logprobs is None
    assert (again.prompt_ids, again.cache_salt) == ([1, 2, 3], "s")
    live.take(TokenOutput("r", [7], num_cached_tokens=0))  # of the process that took over
    assert [one.num_cached_tokens for one in outputs if isinstance(one, TokenOutput)] == [16] * 3


def test_the_timeline_of_a_resumed_request_is_one() -> None:
    outputs: list[TokenOutput | Exception] = []
    live = LiveRequest.of(request(), outputs.append)
    live.to_submit()
    assert live.first_submitted is not None
    early = RequestTimeline(0.5, [PrefillChunk(0.5, 0.25, 3)], 0.75, 0.75)
    live.take(TokenOutput("r", [4], timeline=early))
    live.first_submitted -= 10.0  # so long ago
    live.to_submit()
    late = RequestTimeline(0.25, [PrefillChunk(0.25, 0.25, 4)], 0.5, 2.0, num_preemptions=1)
    live.take(TokenOutput("r", [5], timeline=late))
    live.take(TokenOutput("r", [6], finish_reason="length", timeline=late))
    timelines = [one.timeline for one in outputs if isinstance(one, TokenOutput)]
    assert timelines[0] == early
    last = timelines[2]
    assert last is not None
    assert (last.queued, last.first_token, last.num_preemptions) == (0.5, 0.75, 1)
    assert [chunk.num_tokens for chunk in last.prefill] == [3, 4]
    assert last.prefill[1].start == pytest.approx(10.25, abs=0.1)
    assert last.total == pytest.approx(12.0, abs=0.1)


class Process:
    """Runs what the lineup gives it; a poisoned request ends it in place of its n-th token."""

    def __init__(self, poison: dict[str, int], draw: random.Random) -> None:
        self.poison, self.draw = poison, draw
        self.running: list[LiveRequest] = []

    def step(self) -> list[LiveRequest] | None:
        """Those that got a token, or None if it died."""
        chosen = [one for one in self.running if self.draw.random() < 0.7]
        for one in chosen:
            if self.poison.get(one.request_id) == len(one.token_ids):
                return None
        return chosen


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(0, 3))
def test_the_innocent_finish_and_the_guilty_do_not(seed: int, count: int, guilty: int) -> None:
    draw = random.Random(seed)
    poison = {f"r{i}": draw.randrange(4) for i in draw.sample(range(count), min(guilty, count))}
    arrivals = [LiveRequest.of(request(f"r{i}"), ignore) for i in range(count)]
    lineup, live = Lineup(), {}
    finished, convicted, deaths = [], [], 0
    process = None
    while arrivals or live:
        if process is None:
            process = Process(poison, draw)
            process.running += lineup.begin()
        while arrivals and draw.random() < 0.5:
            one = arrivals.pop(0)
            live[one.request_id] = one
            process.running += lineup.arrive(one)
        assert all(one.submitted for one in process.running)
        got = process.step()
        if got is None:
            deaths += 1
            loser = lineup.end(live.values())
            if loser is not None:
                convicted.append(loser.request_id)
                assert process.running == [loser]
                lineup.leave(live.pop(loser.request_id))
            process = None
            continue
        for one in got:
            one.take(TokenOutput(one.request_id, [0]))
            if len(one.token_ids) == 5 or draw.random() < 0.02:
                process.running.remove(live.pop(one.request_id))
                finished.append(one.request_id)
                process.running += lineup.leave(one)
            else:
                process.running += lineup.progress(one)
    assert not set(convicted) - set(poison)
    assert sorted(finished + convicted) == sorted(f"r{i}" for i in range(count))
    # Of each poisoned request: until it is stuck, until it is suspected, and its trials.
    assert deaths <= len(poison) * (5 + CONVICT_DEATHS + len(poison))


def test_deaths_between_progress_convict_nobody() -> None:
    lineup = Lineup()
    ones = [LiveRequest.of(request(f"r{i}"), ignore) for i in range(4)]
    assert lineup.begin() == []
    assert [lineup.arrive(one) for one in ones] == [[one] for one in ones]
    for _ in range(20):
        for one in ones:
            one.take(TokenOutput(one.request_id, [1]))
        assert lineup.end(ones) is None
        assert lineup.begin() == ones


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def stats(steps: int, progress: int = 0) -> EngineStats:
    return EngineStats(1, 0, 8, 8, 0, steps, 0, 0, 0, 0, executor_progress=progress)


@pytest.fixture
def watched() -> tuple[Watchdog, Clock]:
    clock = Clock()
    policy = SupervisionPolicy(silent_seconds=3, stalled_seconds=4, fresh_seconds=1.5)
    return Watchdog(policy, clock), clock


def pass_time(watched: tuple[Watchdog, Clock], seconds: float, busy: bool) -> str | None:
    watchdog, clock = watched
    for _ in range(round(seconds * 10)):
        clock.now += 0.1
        if trouble := watchdog.tick(busy=busy):
            return trouble
    return None


def test_silence_is_a_loss_whether_or_not_there_is_work(watched: tuple[Watchdog, Clock]) -> None:
    assert pass_time(watched, 2.9, busy=False) is None
    assert not watched[0].fresh
    watched[0].heard()
    assert watched[0].fresh
    assert pass_time(watched, 3.2, busy=False) == "has been silent for 3 s"


def test_heartbeats_do_not_hide_a_step_that_hangs(watched: tuple[Watchdog, Clock]) -> None:
    watchdog, _ = watched
    for _ in range(10):  # idle: nothing to get on with
        watchdog.heard()
        watchdog.note(stats(3))
        assert pass_time(watched, 1, busy=False) is None
        assert watchdog.fresh
    for beat in range(10):  # long steps that get on
        watchdog.heard()
        watchdog.note(stats(3, beat))
        assert pass_time(watched, 1, busy=True) is None
        assert watchdog.fresh
    for _ in range(10):  # one long refusal after another
        watchdog.heard()
        watchdog.refused()
        assert pass_time(watched, 1, busy=True) is None
    troubles = []
    for _ in range(5):
        watchdog.heard()
        watchdog.note(stats(3, 9))
        troubles.append(pass_time(watched, 1, busy=True))
    assert troubles[:3] == [None] * 3
    assert troubles[-1] == "has not got on with its work for 4 s"
    assert not watchdog.fresh


def test_time_in_which_nobody_ran_counts_for_nobody(watched: tuple[Watchdog, Clock]) -> None:
    watchdog, clock = watched
    clock.now += 3600
    assert watchdog.tick(busy=True) is None


def test_a_load_may_take_long_the_first_time_only() -> None:
    clock = Clock()
    policy = SupervisionPolicy(silent_loading_seconds=30, min_reload_seconds=5)
    first, again = Watchdog(policy, clock), Watchdog(policy, clock)
    trouble = None
    for _ in range(200):
        clock.now += 0.1
        first.heard()
        again.heard()
        assert first.tick_loading(None) is None
        trouble = trouble or again.tick_loading(2.0)
    assert trouble == "has not been ready after 10 s"


def test_restarts_wait_longer_while_nothing_comes_of_them() -> None:
    policy = SupervisionPolicy(first_backoff_seconds=1, max_backoff_seconds=5, max_fruitless=5)
    restarts = Restarts(policy)
    assert [restarts.ended(fruitful=True) for _ in range(20)] == [0.0] * 20
    assert [restarts.ended(fruitful=False) for _ in range(4)] == [0.0, 1.0, 2.0, 4.0]
    assert not restarts.hopeless
    assert [restarts.ended(fruitful=False) for _ in range(1000)] == [5.0] * 1000
    assert restarts.hopeless
    assert restarts.ended(fruitful=True) == 0.0
    assert not restarts.hopeless


def test_counters_go_on_over_processes() -> None:
    first = dataclasses.replace(stats(5, 7), step_size_counts=[1, 2], execute_seconds=0.5)
    second = dataclasses.replace(stats(2, 1), num_running=4, step_size_counts=[3, 4])
    both = sum_stats(first, second)
    assert (both.num_steps, both.executor_progress, both.num_running) == (7, 8, 4)
    assert (both.step_size_counts, both.execute_seconds) == ([4, 6], 0.5)
    nothing = without_counts(second)
    assert (nothing.num_steps, nothing.step_size_counts, nothing.num_blocks) == (0, [0, 0], 8)
    assert sum_stats(first, nothing).step_size_counts == [1, 2]


def test_counters_of_speculation_go_on_over_processes() -> None:
    """Whether there was any in both, in one or in none."""
    none = EngineStats(*range(10))
    first = dataclasses.replace(
        none, speculation=SpeculationStats(1, [4, 2], [3, 1], {"lookup": 6}, {"lookup": 4})
    )
    second = dataclasses.replace(
        none, speculation=SpeculationStats(2, [5], [0], {"heads": 5}, {"heads": 0})
    )
    assert sum_stats(first, second).speculation == SpeculationStats(
        3, [9, 2], [3, 1], {"lookup": 6, "heads": 5}, {"lookup": 4, "heads": 0}
    )
    for one, other in ((first, none), (none, first), (first, without_counts(second))):
        both = sum_stats(one, other).speculation
        assert both is not None
        assert both.num_drafted == 6
        assert both.num_accepted == 4
    assert sum_stats(none, without_counts(none)).speculation is None


def test_outputs_that_are_merged_lose_no_scores() -> None:
    """Of a prompt of one token they are an empty list, which is not none."""
    for scores in ([], [TokenLogprobs(-1.0)]):
        first = TokenOutput("r", [1], prompt_logprobs=scores)
        assert merge_outputs(first, TokenOutput("r", [2])).prompt_logprobs == scores
