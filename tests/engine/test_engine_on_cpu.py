"""The schedule never changes the answer, on the native executor: tokens and logprobs with `==`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_models import write_tiny_model
from engine_schedules import Answer, Schedule, play, run, schedules
from hypothesis import HealthCheck, given, settings

from trimtab import LLM, SamplingParams
from trimtab.checkpoints import open_checkpoint
from trimtab.config import Device, ExecutorConfig, KVFormat, SchedulerConfig, parse_weights
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.errors import CheckpointError, ConfigError, RequestError

if importlib.util.find_spec("trimtab._native") is None:
    pytest.skip("the native core is not built", allow_module_level=True)

from trimtab import _native
from trimtab.executors.cpu import CpuExecutor

BLOCK = _native.KV_BLOCK_TOKENS
FORMATS: list[tuple[str, KVFormat]] = [
    ("f32", "f32"),
    ("bf16", "bf16"),
    ("int8", "int8"),
    ("int8-g32", "bf16"),
    ("int4-g32", "bf16"),
]
Executors = Callable[[int, int], CpuExecutor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(
    params=[(isa, *formats) for isa in _native.available_isas() for formats in FORMATS],
    ids=lambda param: "-".join(param),
)
def executors(
    request: pytest.FixtureRequest, model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Executors]:
    """Executors by (blocks, threads), all of one format on one path; kept, stale blocks and all."""
    isa, weights, kv_cache = request.param
    monkeypatch.setenv("TRIMTAB_ISA", isa)
    checkpoint = open_checkpoint(model, 0)
    name, group_size = parse_weights(weights)
    made: dict[tuple[int, int], CpuExecutor] = {}

    def get(num_blocks: int, threads: int) -> CpuExecutor:
        if (num_blocks, threads) not in made:
            config = ExecutorConfig(
                weights=name,
                kv_cache=kv_cache,
                group_size=group_size,
                threads=threads,
                num_blocks=num_blocks,
            )
            made[num_blocks, threads] = CpuExecutor(checkpoint, config)
        return made[num_blocks, threads]

    yield get
    for executor in made.values():
        executor.close()


def alone(executor: CpuExecutor, request: EngineRequest) -> Answer:
    """The answer of a fresh engine that has nothing else to do and takes the prompt in one step."""
    config = SchedulerConfig(max_batch_tokens=512, prefix_cache=False)
    return run(Engine(executor, config, debug=True), request)[request.request_id]


@given(
    schedule=schedules(
        block_sizes=(BLOCK,), max_requests=5, max_budget=40, max_new_tokens=BLOCK + 4
    )
)
@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_schedule_gives_the_bits_of_a_request_alone(
    executors: Executors, schedule: Schedule
) -> None:
    engine = Engine(executors(schedule.num_blocks, 2), schedule.config, debug=True)
    finished = {name: answer for _, name, answer in play(engine, schedule, max_steps=5000)}
    assert len(finished) == len(schedule.arrivals)
    for arrival in schedule.arrivals:
        reference = alone(executors(16, 1), arrival.request)
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


def test_scores_do_not_depend_on_the_schedule_and_agree_with_logprobs(executors: Executors) -> None:
    prompt = [(7 * i) % 250 for i in range(3 * BLOCK + 5)]
    request = EngineRequest(
        "s", prompt, SamplingParams(max_tokens=1), prompt_logprobs=0, completes=False
    )
    whole = alone(executors(16, 1), request).prompt_logprobs
    chunked = Engine(executors(8, 2), SchedulerConfig(max_batch_tokens=7), debug=True)
    other = EngineRequest("o", prompt[5:30], SamplingParams(max_tokens=4, temperature=0))
    assert run(chunked, other, request)["s"].prompt_logprobs == whole
    assert whole is not None
    assert len(whole) == len(prompt) - 1
    greedy = SamplingParams(max_tokens=1, temperature=0, logprobs=0)
    answer = alone(executors(16, 1), EngineRequest("g", prompt[:20], greedy))
    scored = EngineRequest(
        "t", prompt[:20] + answer.token_ids, SamplingParams(), prompt_logprobs=0, completes=False
    )
    scores = alone(executors(16, 1), scored).prompt_logprobs
    assert scores is not None
    assert scores[-1].logprob == answer.logprobs[0].logprob


def test_prompt_tokens_score_as_if_they_were_generated(executors: Executors) -> None:
    """The logprobs of a greedy completion, read again as a prompt: the very same, and each token is
    the first of the most likely."""
    greedy = SamplingParams(max_tokens=2 * BLOCK, temperature=0, ignore_eos=True, logprobs=3)
    prompt = list(b"a prompt")
    answer = alone(executors(16, 1), EngineRequest("g", prompt, greedy))
    again = EngineRequest("s", prompt + answer.token_ids, greedy, prompt_logprobs=3)
    engine = Engine(executors(8, 2), SchedulerConfig(max_batch_tokens=11), debug=True)
    run(engine, EngineRequest("warm", prompt + answer.token_ids, greedy))
    scored = run(engine, again)["s"]
    assert scored.prompt_logprobs is not None
    assert scored.prompt_logprobs[len(prompt) - 1 :] == answer.logprobs
    for one in scored.prompt_logprobs[len(prompt) - 1 :]:
        assert one.logprob == one.top[0][1]
    longer = SamplingParams(max_tokens=4 * BLOCK, temperature=0, ignore_eos=True, logprobs=3)
    whole = alone(executors(16, 1), EngineRequest("g", prompt, longer))
    assert scored.token_ids == whole.token_ids[2 * BLOCK :]


@pytest.mark.parametrize(("device", "format"), [("cpu", "int8"), ("torch-cpu", "fp8")])
def test_llm_from_a_directory(device: Device, format: KVFormat, model: Path) -> None:
    settings = {"device": device, "weights": format, "kv_cache": format, "threads": 2}
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=5, n=2, logprobs=2)
    prompts = ["def f(x):", "", "é" * 40]
    with LLM(str(model), num_blocks=64, **settings) as llm:
        assert llm.engine.info.vocab_size == 257
        assert f"{format}, KV {format}" in llm.engine.info.executor
        with pytest.raises(RequestError, match="empty"):
            llm.generate(prompts, params)
        prompts[1] = "\0"
        together = llm.generate(prompts, params)
        assert [llm.generate(prompt, params)[0].outputs for prompt in prompts] == [
            result.outputs for result in together
        ]
        (chat,) = llm.chat([{"role": "user", "content": "hi"}], params)
        assert llm.tokenizer.decode(chat.prompt_ids) == "<user>hi<assistant>"
        long = llm.generate("x" * 400, SamplingParams(max_tokens=None, ignore_eos=True))
        assert len(long[0].outputs[0].token_ids) == 112
        with pytest.raises(RequestError, match="512 tokens"):
            llm.generate("x" * 600)


def test_what_cannot_be_loaded_is_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as missing:
        LLM(str(tmp_path / "nothing here"))
    assert "\n" not in str(missing.value)
    with pytest.raises(ConfigError):
        LLM(str(model), max_context=100_000)
