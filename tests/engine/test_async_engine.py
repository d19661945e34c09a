"""AsyncEngine: streams, cancellation, overload, death and shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
from engine_schedules import Answer, toy, toy_class, toy_reference

from trimtab.config import SchedulerConfig
from trimtab.engine.async_engine import AsyncEngine
from trimtab.engine.client import EngineRequest, TokenOutput
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.errors import EngineDeadError, QueueFullError, RequestError
from trimtab.executors.base import StepBatch, StepResult

Make = Callable[..., AsyncEngine]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """A factory of engines on toy executors; every one is closed at the end."""
    engines: list[AsyncEngine] = []

    def build(executor: Any = None, **config: Any) -> AsyncEngine:
        engine = Engine(executor or toy(num_blocks=256), SchedulerConfig(**config), debug=True)
        engines.append(AsyncEngine(engine))
        return engines[-1]

    yield build
    for engine in engines:
        await engine.close()


def gated() -> Any:
    """Runs a step only when allowed to, so that a test decides what happens during one."""

    class Gated(toy_class()):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(num_blocks=64, block_size=4, vocab_size=32, max_context=64)
            self.allowed = threading.Semaphore(0)
            self.started = threading.Event()
            self.closed = threading.Event()

        def execute(self, batch: StepBatch) -> StepResult:
            self.started.set()
            assert self.allowed.acquire(timeout=20)
            result: StepResult = super().execute(batch)
            return result

        def open_gate(self) -> None:
            self.allowed.release(100_000)

        def close(self) -> None:
            self.closed.set()

    return Gated()


def request(name: str, max_tokens: int = 8, **params: Any) -> EngineRequest:
    options = {"ignore_eos": True, "seed": len(name)} | params
    prompt = [ord(c) % 32 for c in name]
    return EngineRequest(name, prompt, SamplingParams(max_tokens=max_tokens, **options))


async def collect(engine: AsyncEngine, request: EngineRequest) -> Answer:
    answer = Answer()
    async for output in engine.generate(request):
        answer.add(output)
    return answer


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition was never met")


async def idle(engine: AsyncEngine) -> None:
    """Until no request is live, and no block is held."""
    for _ in range(4000):
        stats = await engine.stats()
        if not stats.num_running and not stats.num_waiting:
            assert stats.num_free_blocks == stats.num_blocks
            return
        await asyncio.sleep(0.005)
    raise AssertionError("requests never left the engine")


async def test_many_at_once_give_what_each_gives_alone(make: Make) -> None:
    engine = make(max_batch_tokens=16, max_num_requests=8)
    requests = [request(f"request {i}" * (1 + i % 3), max_tokens=1 + i % 9) for i in range(40)]
    answers = await asyncio.gather(*(collect(engine, r) for r in requests))
    for one, answer in zip(requests, answers, strict=True):
        assert answer.token_ids == toy_reference(toy(), one).token_ids
        assert answer.finish_reason == "length"
    await idle(engine)


async def test_random_cancellations_harm_nobody_else(make: Make) -> None:
    engine = make(toy(num_blocks=12, block_size=4), max_batch_tokens=6, max_num_requests=6)
    random = Random(1)
    requests = [request("abcdefgh"[i % 5 :] + str(i), max_tokens=10) for i in range(60)]
    tasks = [asyncio.ensure_future(collect(engine, r)) for r in requests]
    victims = random.sample(range(60), 30)
    for victim in victims:
        await asyncio.sleep(random.random() * 0.004)
        tasks[victim].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await idle(engine)
    for index, (one, answer) in enumerate(zip(requests, answers, strict=True)):
        if isinstance(answer, Answer):
            assert answer.token_ids == toy_reference(toy(), one).token_ids
        else:
            assert index in victims


async def test_closing_the_iterator_frees_the_request(make: Make) -> None:
    executor = gated()
    engine = make(executor)
    stream = engine.generate(request("left", max_tokens=50))
    first = asyncio.ensure_future(anext(stream))
    await until(executor.started.is_set)
    executor.allowed.release()
    assert len((await first).token_ids) == 1
    await stream.aclose()
    executor.allowed.release(2)  # at most the step that was being planned
    await idle(engine)
    assert (await engine.stats()).num_steps <= 3


async def test_cancelling_the_consumer_frees_the_request(make: Make) -> None:
    executor = gated()
    engine = make(executor)
    task = asyncio.ensure_future(collect(engine, request("cancelled", max_tokens=50)))
    await until(executor.started.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    executor.allowed.release(2)
    await idle(engine)


async def test_an_id_can_be_used_again_at_once_after_leaving(make: Make) -> None:
    executor = gated()
    engine = make(executor)
    old = asyncio.ensure_future(collect(engine, request("again", seed=1, temperature=2.0)))
    await until(executor.started.is_set)
    old.cancel()
    with pytest.raises(asyncio.CancelledError):
        await old
    new = request("again", seed=2, temperature=2.0)
    answer = asyncio.ensure_future(collect(engine, new))
    await asyncio.sleep(0.01)
    executor.open_gate()  # the step of the old one ends only now
    assert (await answer).token_ids == toy_reference(executor, new).token_ids


async def test_a_slow_consumer_loses_nothing(make: Make) -> None:
    engine = make()
    slow = request("slow", max_tokens=40, logprobs=1)
    stream = engine.generate(slow)
    outputs: list[TokenOutput] = [await anext(stream)]
    await idle(engine)  # everything else is computed before we look again
    outputs += [output async for output in stream]
    answer = Answer()
    for output in outputs:
        answer.add(output)
    assert len(outputs) <= 3
    assert answer.token_ids == toy_reference(toy(), slow).token_ids
    assert len(answer.logprobs) == 40


async def test_refusals_are_raised_before_anything_is_queued(make: Make) -> None:
    executor = gated()
    engine = make(executor, max_num_requests=1, max_queued_requests=1)
    with pytest.raises(RequestError, match="empty"):
        await anext(engine.generate(EngineRequest("e", [], SamplingParams())))
    with pytest.raises(RequestError, match="context length") as refused:
        await anext(engine.generate(request("long", max_tokens=1000)))
    assert refused.value.code == "context_length_exceeded"
    tasks = [asyncio.ensure_future(collect(engine, request(name))) for name in ("one", "two")]
    await until(executor.started.is_set)
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await anext(engine.generate(request("three")))
    with pytest.raises(RequestError, match="in use"):
        await anext(engine.generate(request("one")))
    executor.open_gate()
    assert [answer.num_finishes for answer in await asyncio.gather(*tasks)] == [1, 1]
    assert (await collect(engine, request("three"))).finish_reason == "length"


async def test_an_error_of_the_executor_ends_its_step_only(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    executor = gated()
    executor.open_gate()
    engine = make(executor)
    healthy = executor.execute

    def broken(batch: StepBatch) -> StepResult:
        raise MemoryError("secret address 0x1234")

    executor.execute = broken  # type: ignore[method-assign]
    answer = await collect(engine, request("unlucky"))
    assert answer.finish_reason == "error"
    assert answer.error
    assert "MemoryError" in answer.error
    assert "secret" not in answer.error
    assert "\n" not in answer.error
    assert "secret" in caplog.text  # the log has the whole story
    executor.execute = healthy  # type: ignore[method-assign]
    assert (await collect(engine, request("lucky"))).finish_reason == "length"


async def test_the_death_of_the_thread_reaches_every_stream(make: Make) -> None:
    executor = gated()
    engine = make(executor)
    tasks = [asyncio.ensure_future(collect(engine, request(name))) for name in ("a", "bb")]
    await until(executor.started.is_set)

    def broken(*_: Any) -> Any:
        raise RuntimeError("the books are wrong")

    engine._engine.check = broken  # type: ignore[method-assign]
    executor.open_gate()
    for task in tasks:
        with pytest.raises(EngineDeadError, match="RuntimeError"):
            await task
    with pytest.raises(EngineDeadError):
        await anext(engine.generate(request("late")))
    await until(executor.closed.is_set)


async def test_close_drains_then_aborts(make: Make) -> None:
    executor = gated()
    engine = make(executor)
    short = asyncio.ensure_future(collect(engine, request("short", max_tokens=2)))
    await until(executor.started.is_set)
    closing = asyncio.ensure_future(engine.close(drain_seconds=20))
    await asyncio.sleep(0.02)
    with pytest.raises(EngineDeadError, match="closed"):
        await anext(engine.generate(request("late")))
    executor.open_gate()
    await closing
    assert (await short).finish_reason == "length"
    assert executor.closed.is_set()


async def test_close_without_draining_aborts(make: Make) -> None:
    executor = gated()
    engine = make(executor)
    long = asyncio.ensure_future(collect(engine, request("long", max_tokens=50)))
    await until(executor.started.is_set)
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0.02)
    executor.allowed.release()
    await closing
    assert (await long).finish_reason == "abort"
    await engine.close()


async def test_a_consumer_whose_loop_is_gone_is_aborted(make: Make) -> None:
    executor = gated()
    engine = make(executor)

    def consume() -> None:
        loop = asyncio.new_event_loop()
        stream = engine.generate(request("orphan", max_tokens=50))
        task = loop.create_task(anext(stream))
        loop.run_until_complete(asyncio.sleep(0.01))
        tasks.append((task, stream))
        loop.stop()
        loop.close()

    tasks: list[Any] = []
    thread = threading.Thread(target=consume)
    thread.start()
    await until(executor.started.is_set)
    await until(lambda: not thread.is_alive())
    executor.open_gate()
    await idle(engine)
    assert (await collect(engine, request("next"))).finish_reason == "length"
    tasks[0][0]._log_destroy_pending = False


async def test_an_idle_engine_takes_no_steps(make: Make) -> None:
    engine = make()
    await collect(engine, request("one"))
    before = await engine.stats()
    await asyncio.sleep(0.05)
    assert (await engine.stats()).num_steps == before.num_steps
