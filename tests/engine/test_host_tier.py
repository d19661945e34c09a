"""The second tier of the prefix cache: never the wrong contents, and prompts that come again find
theirs."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from engine_schedules import (
    VOCAB,
    Answer,
    Arrival,
    Schedule,
    play,
    random_params,
    run,
    schedules,
    toy_reference,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planned_ahead import late
from test_schedule_law import step_bound

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.host_tier import HostTier
from trimtab.engine.sampling_params import SamplingParams
from trimtab.errors import ConfigError
from trimtab.executors.toy import ToyExecutor


class ToyStore:
    """Slots hold what the toy's blocks do; nothing may be done twice at once."""

    def __init__(self, executor: Any, num_slots: int) -> None:
        self.executor = executor
        self.num_slots = num_slots
        self.slots: dict[int, np.ndarray] = {}

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        assert len(set(block_ids)) == len(block_ids) == len(set(slots)) == len(slots)
        data = self.executor.export_blocks(np.array(block_ids, np.int32))
        self.slots |= dict(zip(slots, data.copy(), strict=True))

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        assert len(set(block_ids)) == len(block_ids) == len(set(slots)) == len(slots)
        data = np.stack([self.slots[slot] for slot in slots])
        self.executor.import_blocks(np.array(block_ids, np.int32), data)


def with_store(executor: Any, num_slots: int) -> Any:
    of_toy = isinstance(executor, ToyExecutor)
    executor.host_store = (
        ToyStore(executor, num_slots) if of_toy else executor.host_blocks(num_slots)
    )
    return executor


@given(schedule=schedules(), num_slots=st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_any_schedule_gives_the_reference_answers(schedule: Schedule, num_slots: int) -> None:
    check_schedule_with_tier(schedule, num_slots)


@st.composite
def returning(draw: st.DrawFn, block_sizes: tuple[int, ...] = (1, 2, 3, 4)) -> Schedule:
    """A few prompts, of which the pool holds one or two at a time, come again and again."""
    block_size, num_blocks = draw(st.sampled_from(block_sizes)), draw(st.integers(3, 8))
    config = SchedulerConfig(
        max_batch_tokens=draw(st.integers(2, 12)), max_num_requests=draw(st.integers(1, 3))
    )
    count, gap = draw(st.integers(4, 10)), draw(st.integers(0, 8))
    random = Random(draw(st.integers(0, 1 << 32)))
    most = block_size * num_blocks
    stems = [
        [random.randrange(VOCAB) for _ in range(random.randint(most // 2, most - 1))]
        for _ in range(random.randint(2, 4))
    ]
    arrivals = []
    for index in range(count):
        prompt = random.choice(stems)
        params = random_params(random, min(3, most + 1 - len(prompt)))
        request = EngineRequest(f"r{index}", prompt, params)
        arrivals.append(Arrival(index * gap, request, None, False))
    return Schedule(block_size, num_blocks, config, draw(st.booleans()), arrivals)


@given(schedule=returning(), num_slots=st.integers(2, 24))
@settings(max_examples=100, deadline=None)
def test_prompts_that_come_again_give_the_reference_answers(
    schedule: Schedule, num_slots: int
) -> None:
    check_schedule_with_tier(schedule, num_slots)


def check_schedule_with_tier(schedule: Schedule, num_slots: int) -> None:
    capacity = schedule.block_size * schedule.num_blocks
    executor = late(schedule.num_blocks, schedule.block_size, capacity + 1)
    engine = Engine(with_store(executor, num_slots), schedule.config, debug=True)
    finished: dict[str, Answer] = {}
    for _, request_id, answer in play(engine, schedule, max_steps=2 * step_bound(schedule)):
        finished[request_id] = answer
    for arrival in schedule.arrivals:
        reference = toy_reference(executor, arrival.request)
        answer = finished[arrival.request.request_id]
        assert answer.token_ids == reference.token_ids[: len(answer.token_ids)]
        if answer.finish_reason != "abort":
            assert answer.token_ids == reference.token_ids
            assert answer.finish_reason == reference.finish_reason
            assert answer.prompt_logprobs == reference.prompt_logprobs


def prompt(name: str, seed: int) -> EngineRequest:
    tokens = np.random.default_rng(seed).integers(4, 32, 33).tolist()
    return EngineRequest(name, tokens, SamplingParams(max_tokens=3, temperature=0))


def test_a_prompt_that_comes_again_is_loaded() -> None:
    executor = with_store(late(num_blocks=10), 100)
    engine = Engine(executor, debug=True)
    first = run(engine, prompt("a", 1))["a"]
    run(engine, prompt("b", 2))
    run(engine, prompt("c", 3))
    before = executor.num_computed_tokens
    again = run(engine, prompt("d", 1))["d"]
    assert again.token_ids == first.token_ids
    assert again.num_cached_tokens == 32
    assert executor.num_computed_tokens - before <= 5
    engine.reset_prefix_cache()
    assert run(engine, prompt("e", 2))["e"].num_cached_tokens == 0


def test_a_copy_that_fails_ends_its_requests_and_empties_the_tier() -> None:
    executor = with_store(late(num_blocks=10), 100)
    engine = Engine(executor, debug=True)
    store = executor.host_store
    first = run(engine, prompt("a", 1))["a"]
    store.num_slots, store.save = 0, None
    assert run(engine, prompt("b", 2))["b"].finish_reason == "error"
    assert engine.kv_cache.host is not None
    assert engine.kv_cache.host.num_held == 0
    del store.save
    assert run(engine, prompt("c", 1))["c"].token_ids == first.token_ids


def test_slots_go_to_what_was_used_last_and_copies_keep_their_order() -> None:
    tier = HostTier(2)
    tier.save(5, b"a")
    tier.save(6, b"b")
    tier.touch(b"a")
    tier.save(7, b"c")
    assert not tier.holds(b"b")
    tier.load(b"a", 7)
    tier.save(8, b"a")
    tier.check()
    found = [(copies.saves, copies.block_ids, copies.slots) for copies in tier.take_copies()]
    assert found == [(True, [5, 6], [0, 1]), (True, [7], [1]), (False, [7], [0])]
    assert tier.take_copies() == []
    tier.clear()
    assert tier.num_held == 0
    tier.check()
    HostTier(0).save(1, b"x")


def test_a_cpu_has_no_second_tier() -> None:
    with pytest.raises(ConfigError, match="kv_cache_gib"):
        ExecutorConfig(host_cache_gib=1.0)
