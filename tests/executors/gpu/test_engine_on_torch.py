"""The engine on the torch executor: the schedule never changes the answer, with ==."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_models import write_tiny_model
from engine_schedules import Answer, Schedule, play, run, schedules
from hypothesis import HealthCheck, given, settings

from trimtab import LLM, SamplingParams
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.errors import ConfigError
from trimtab.executors.gpu.capacity import BLOCK_TOKENS
from trimtab.executors.gpu.executor import TorchExecutor

Executors = Callable[[int], TorchExecutor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["bf16", "fp8"])
def executors(model: Path, request: pytest.FixtureRequest) -> Iterator[Executors]:
    """Executors of one format of weights and KV cache by number of blocks; kept, stale blocks and
    all."""
    checkpoint = open_checkpoint(model, 0)
    made: dict[int, TorchExecutor] = {}

    def get(num_blocks: int) -> TorchExecutor:
        if num_blocks not in made:
            config = ExecutorConfig(
                device="torch-cpu",
                num_blocks=num_blocks,
                weights=request.param,
                kv_cache=request.param,
            )
            made[num_blocks] = TorchExecutor(checkpoint, config)
        return made[num_blocks]

    yield get
    for executor in made.values():
        executor.close()


def alone(executor: TorchExecutor, request: EngineRequest) -> Answer:
    """The answer of a fresh engine that has nothing else to do and takes the prompt in one step."""
    config = SchedulerConfig(max_batch_tokens=512, prefix_cache=False)
    return run(Engine(executor, config, debug=True), request)[request.request_id]


@given(
    schedule=schedules(
        block_sizes=(BLOCK_TOKENS,), max_requests=4, max_budget=40, max_new_tokens=BLOCK_TOKENS + 4
    )
)
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_schedule_gives_the_bits_of_a_request_alone(
    executors: Executors, schedule: Schedule
) -> None:
    engine = Engine(executors(schedule.num_blocks), schedule.config, debug=True)
    finished = {name: answer for _, name, answer in play(engine, schedule, max_steps=5000)}
    assert len(finished) == len(schedule.arrivals)
    for arrival in schedule.arrivals:
        reference = alone(executors(16), arrival.request)
        answer = finished[arrival.request.request_id]
        if answer.finish_reason == "abort":
            count = len(answer.token_ids)
            assert answer.token_ids == reference.token_ids[:count]
            assert answer.logprobs == reference.logprobs[:count]
            assert answer.prompt_logprobs in (None, reference.prompt_logprobs)
        else:
            assert answer.token_ids == reference.token_ids
            assert answer.logprobs == reference.logprobs
            assert answer.prompt_logprobs == reference.prompt_logprobs
            assert answer.embedding == reference.embedding
            assert answer.finish_reason == reference.finish_reason
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


def test_prompt_tokens_score_as_if_they_were_generated(executors: Executors) -> None:
    greedy = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logprobs=3)
    prompt = list(b"a prompt")
    answer = alone(executors(16), EngineRequest("g", prompt, greedy))
    again = EngineRequest("s", prompt + answer.token_ids, greedy, prompt_logprobs=3)
    scored = run(Engine(executors(8), SchedulerConfig(max_batch_tokens=11), debug=True), again)["s"]
    assert scored.prompt_logprobs is not None
    assert scored.prompt_logprobs[len(prompt) - 1 :] == answer.logprobs


def test_drafts_do_not_change_the_answer(model: Path) -> None:
    params = SamplingParams(max_tokens=40, temperature=0)
    answers = []
    for speculative in ("off", "lookup"):
        with LLM(str(model), device="torch-cpu", num_blocks=32, speculative=speculative) as llm:
            answers.append(
                [one.outputs[0].token_ids for one in llm.generate(["abab", "x"], params)]
            )
            assert "torch cpu" in llm.engine.info.executor
    assert answers[0] == answers[1]


def test_evicted_blocks_come_back_from_host_memory(model: Path) -> None:
    config = ExecutorConfig(device="torch-cpu", num_blocks=6, host_cache_gib=0.01)
    executor = TorchExecutor(open_checkpoint(model, 0), config)
    engine = Engine(executor, debug=True)
    params = SamplingParams(max_tokens=3, temperature=0, logprobs=1)

    def ask(name: str, seed: int) -> Answer:
        prompt = [(seed * i) % 250 for i in range(70)]
        return run(engine, EngineRequest(name, prompt, params))[name]

    first = ask("a", 7)
    ask("b", 11)
    again = ask("c", 7)
    assert again.num_cached_tokens == 64
    assert engine.kv_cache.host is not None
    assert engine.kv_cache.host.num_loaded > 0
    assert again.token_ids == first.token_ids
    assert again.logprobs == first.logprobs


def test_what_needs_the_cpu_says_so(model: Path) -> None:
    with pytest.raises(ConfigError, match="device=cpu"):
        LLM(str(model), device="torch-cpu", num_blocks=8, speculative="heads")
