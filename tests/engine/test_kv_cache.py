"""Prefix cache: hits, isolation, eviction order, what is never published."""

from __future__ import annotations

from typing import Any

import pytest
from engine_schedules import run, toy, toy_class, toy_reference

from trimtab.config import SchedulerConfig
from trimtab.engine.block_pool import BlockPool
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.kv_cache import cache_root
from trimtab.engine.sampling_params import SamplingParams
from trimtab.executors.base import StepBatch, StepResult

STEM = [5, 9, 2, 7, 1, 8, 2, 8, 1, 8, 2, 8]


def engine_on(executor: Any, **config: Any) -> Engine:
    return Engine(executor, SchedulerConfig(**config), debug=True)


def ask(name: str, prompt: list[int], max_tokens: int = 1, salt: str = "") -> EngineRequest:
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return EngineRequest(name, prompt, params, cache_salt=salt)


def cached(engine: Engine, request: EngineRequest) -> int:
    return run(engine, request)[request.request_id].num_cached_tokens


@pytest.mark.parametrize(
    ("prompt", "hits"),
    [
        (STEM, 8),  # all three blocks are there, but the last token must be computed
        ([*STEM, 4], 12),
        (STEM[:9], 8),
        (STEM[:8], 4),
        (STEM[:5], 4),
        (STEM[:4], 0),
        ([*STEM[:6], 31, *STEM[7:]], 4),  # differs in the second block
        ([31, *STEM[1:]], 0),
    ],
)
def test_the_longest_prefix_of_full_blocks_is_found(prompt: list[int], hits: int) -> None:
    engine = engine_on(toy(block_size=4))
    assert cached(engine, ask("first", STEM)) == 0
    assert cached(engine, ask("second", prompt)) == hits


def test_completions_are_found_by_the_next_turn() -> None:
    engine = engine_on(toy(block_size=4))
    answer = run(engine, ask("turn 1", STEM[:5], max_tokens=8))["turn 1"]
    history = STEM[:5] + answer.token_ids
    # The last token of a completion was never computed: 12 of its 13 tokens are in full blocks.
    assert cached(engine, ask("turn 2", [*history, 1, 2])) == 12


def test_salts_do_not_share() -> None:
    engine = engine_on(toy(block_size=4))
    run(engine, ask("a", STEM, salt="a"))
    assert cached(engine, ask("b", STEM, salt="b")) == 0
    assert cached(engine, ask("none", STEM)) == 0
    assert cached(engine, ask("a again", STEM, salt="a")) == 8


def test_roots_differ_by_identity_and_salt() -> None:
    roots = {cache_root(i, s) for i in ("", "a", "ab", "b") for s in ("", "a", "ab", "b")}
    assert len(roots) == 16


@pytest.mark.parametrize("step", range(12))
def test_a_reset_at_any_step_forgets_everything_and_changes_no_answer(step: int) -> None:
    executor = toy(block_size=2, num_blocks=32)
    engine = engine_on(executor, max_batch_tokens=4)
    requests = [ask("a", STEM, max_tokens=6), ask("b", [*STEM, 3], max_tokens=6)]
    for request in requests:
        engine.add_request(request)
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    steps = 0
    while engine.num_live_requests:
        if steps == step:
            engine.reset_prefix_cache()
            engine.check()
            assert engine.stats().num_cached_blocks == 0
        for output in engine.step():
            answers[output.request_id] += output.token_ids
        steps += 1
    for request in requests:
        assert answers[request.request_id] == toy_reference(executor, request).token_ids
    engine.reset_prefix_cache()
    engine.check()
    assert engine.stats().num_cached_blocks == 0
    assert cached(engine, ask("later", STEM)) == 0


def test_nothing_is_found_when_the_cache_is_off() -> None:
    engine = engine_on(toy(block_size=4), prefix_cache=False)
    run(engine, ask("first", STEM))
    assert cached(engine, ask("second", STEM)) == 0
    assert engine.stats().num_cached_blocks == 0


def test_a_prefix_that_is_being_computed_is_waited_for() -> None:
    executor = toy(block_size=4)
    engine = engine_on(executor, max_batch_tokens=4)
    prompt = STEM * 3
    requests = [ask(f"choice {i}", [*prompt, i], max_tokens=3) for i in range(4)]
    answers = run(engine, *requests)
    assert [answers[r.request_id].num_cached_tokens for r in requests] == [0, 36, 36, 36]
    assert executor.num_computed_tokens == 36 + 4 * (1 + 2)
    for one in requests:
        assert answers[one.request_id].token_ids == toy_reference(executor, one).token_ids


def test_who_waits_for_a_prefix_goes_on_when_its_writer_is_aborted() -> None:
    engine = engine_on(toy(block_size=4), max_batch_tokens=4)
    first, second = ask("first", STEM * 2), ask("second", STEM * 2)
    engine.add_request(first)
    engine.add_request(second)
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 1)
    engine.abort("first")
    engine.step()
    assert engine.stats().num_running == 1
    assert engine.stats().num_cached_prompt_tokens == 4


def test_the_least_recently_used_prefix_goes_first_and_its_tail_before_its_head() -> None:
    engine = engine_on(toy(num_blocks=6, block_size=2))
    old, recent = [10, 11, 12, 13, 14], [20, 21, 22, 23, 24]
    run(engine, ask("old", old))
    run(engine, ask("recent", recent))
    run(engine, ask("evictor", [30, 31, 27, 29, 28]))  # takes two plain blocks and old's tail
    assert engine.stats().num_cached_blocks == 5
    probes = {"old": old, "recent": recent}
    assert {n: peek(engine, p) for n, p in probes.items()} == {"old": 2, "recent": 4}


def test_use_makes_a_prefix_recent() -> None:
    engine = engine_on(toy(num_blocks=6, block_size=2))
    first, second = [10, 11, 12, 13, 14], [20, 21, 22, 23, 24]
    run(engine, ask("first", first))
    run(engine, ask("second", second))
    run(engine, ask("first again", first))
    run(engine, ask("evictor", [30, 31, 27, 29, 28]))
    assert peek(engine, first) == 4
    assert peek(engine, second) == 2


def peek(engine: Engine, prompt: list[int]) -> int:
    """Cached tokens that this prompt would find, without using them."""
    engine.add_request(ask("peek", prompt))
    request = engine._requests["peek"]
    hits = len(engine.kv_cache._cached_prefix(request)) * engine.kv_cache.block_size
    engine.abort("peek")
    return hits


def flawed(**options: Any) -> Any:
    """Gives non-finite logits, or raises, while told to."""

    class Flawed(toy_class()):  # type: ignore[misc]
        flaw: str | None = None

        def execute(self, batch: StepBatch) -> StepResult:
            if self.flaw == "raise":
                raise RuntimeError("flawed")
            result: StepResult = super().execute(batch)
            if self.flaw == "nan":
                result.tokens[:] = -1
            return result

    return Flawed(**options)


@pytest.mark.parametrize("flaw", ["nan", "raise"])
@pytest.mark.parametrize("max_batch_tokens", [4, 64])
def test_blocks_of_a_failed_request_are_never_found(flaw: str, max_batch_tokens: int) -> None:
    executor = flawed(num_blocks=16, block_size=2)
    engine = engine_on(executor, max_batch_tokens=max_batch_tokens)
    engine.add_request(ask("bad", STEM, max_tokens=3))
    while engine.scheduler.num_running == 0 or engine._requests["bad"].num_missing > 4:
        if max_batch_tokens >= len(STEM):
            break
        assert engine.step() == []
    executor.flaw = flaw
    (output,) = engine.step()
    assert output.finish_reason == "error"
    assert output.error
    assert engine.stats().num_cached_blocks == 0
    assert engine.stats().num_free_blocks == 16
    executor.flaw = None
    assert cached(engine, ask("good", STEM)) == 0


def test_one_request_with_bad_logits_leaves_its_neighbours_alone() -> None:
    class OneBad(toy_class()):  # type: ignore[misc]
        def execute(self, batch: StepBatch) -> StepResult:
            result: StepResult = super().execute(batch)
            result.tokens[0] = -1
            return result

    executor = OneBad(num_blocks=16, block_size=2)
    engine = engine_on(executor)
    bad, good = ask("bad", STEM), ask("good", STEM[::-1])
    answers = run(engine, bad, good)
    assert answers["bad"].finish_reason == "error"
    assert answers["good"].token_ids == toy_reference(executor, good).token_ids


def test_the_pool_refuses_to_be_miscounted() -> None:
    pool = BlockPool(2)
    first = pool.take()
    pool.hold(first)
    pool.release(first)
    pool.release(first)
    with pytest.raises(ValueError, match="more often"):
        pool.release(first)
    pool.take(), pool.take()
    with pytest.raises(IndexError):
        pool.take()
    with pytest.raises(RuntimeError, match="references"):
        pool.check([[0]])
    pool.check([[0], [1]])


def test_equal_blocks_are_published_once() -> None:
    pool = BlockPool(3)
    one, two = pool.take(), pool.take()
    pool.publish(one, b"same")
    pool.publish(two, b"same")
    assert pool.find(b"same") == one
    pool.release(two)
    assert pool.num_cached == 0
    pool.release(one)
    assert (pool.num_cached, pool.num_free) == (1, 3)
    pool.check([])
