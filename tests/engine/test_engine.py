"""The synchronous engine: admission, stopping, sampling parameters, priorities, aborts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from engine_schedules import EOS, VOCAB, run, toy, toy_class, toy_reference

from trimtab.config import SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams, choice_params
from trimtab.errors import QueueFullError, RequestError
from trimtab.executors.base import StepBatch, StepResult


def engine_on(executor: Any = None, **config: Any) -> Engine:
    return Engine(executor or toy(), SchedulerConfig(**config), debug=True)


def ask(name: str, prompt: list[int], priority: int = 0, **params: Any) -> EngineRequest:
    options = {"temperature": 0, "ignore_eos": True} | params
    return EngineRequest(name, prompt, SamplingParams(**options), priority=priority)


@pytest.mark.parametrize(
    ("request_", "param", "code", "words"),
    [
        (ask("r", []), "prompt", None, "empty"),
        (ask("r", [1, VOCAB]), "prompt", None, "outside the vocabulary"),
        (ask("r", [1, -1]), "prompt", None, "token id -1"),
        (ask("r", [1, 1 << 40]), "prompt", None, "outside the vocabulary"),
        (ask("r", [1], logit_bias={VOCAB: 1.0}), "logit_bias", None, "outside"),
        (ask("r", [1], stop_token_ids=(-2,)), "stop_token_ids", None, "outside"),
        (ask("r", [1], n=2), "n", None, "one choice"),
        (ask("r", [1] * 64), "prompt", "context_length_exceeded", "64 tokens"),
        (ask("r", [1] * 60, max_tokens=5), "max_tokens", "context_length_exceeded", "65 tokens"),
        (ask("r", [1] * 64, max_tokens=None), "prompt", "context_length_exceeded", "maximum"),
        (ask("r", [1] * 50_000), "prompt", "context_length_exceeded", "50016 tokens"),
    ],
)
def test_what_can_never_be_served_is_refused(
    request_: EngineRequest, param: str, code: str | None, words: str
) -> None:
    engine = engine_on()
    with pytest.raises(RequestError, match=words) as refused:
        engine.add_request(request_)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert "\n" not in str(refused.value)
    assert engine.num_live_requests == 0


def test_what_exceeds_the_kv_cache_is_refused_and_what_just_fits_is_served() -> None:
    engine = engine_on(toy(num_blocks=3, block_size=4, max_context=64))
    with pytest.raises(RequestError, match="KV cache holds 12 tokens") as refused:
        engine.add_request(ask("big", [1] * 8, max_tokens=6))
    assert refused.value.code == "context_length_exceeded"
    # The last token is never fed back: 12 places carry 13 tokens.
    answers = run(
        engine, ask("fits", [1] * 8, max_tokens=5), ask("fits too", [1] * 12, max_tokens=1)
    )
    assert [len(answer.token_ids) for answer in answers.values()] == [5, 1]


def test_without_max_tokens_it_goes_on_to_the_limit() -> None:
    by_context = run(engine_on(toy(max_context=20)), ask("r", [1, 2], max_tokens=None))["r"]
    assert (len(by_context.token_ids), by_context.finish_reason) == (18, "length")
    small = toy(num_blocks=4, block_size=2, max_context=20)
    by_capacity = run(engine_on(small), ask("r", [1, 2], max_tokens=None))["r"]
    assert by_capacity.token_ids == by_context.token_ids[:7]
    assert by_capacity.finish_reason == "length"


def test_the_queue_limit() -> None:
    engine = engine_on(max_num_requests=2, max_queued_requests=1)
    for i in range(3):
        engine.add_request(ask(str(i), [1]))
    with pytest.raises(QueueFullError):
        engine.add_request(ask("3", [1]))
    with pytest.raises(RequestError, match="in use"):
        engine.add_request(ask("0", [1]))
    engine.abort("1")
    engine.add_request(ask("3", [1]))


def test_eos_and_stop_tokens_end_it_and_are_not_emitted() -> None:
    executor = toy()
    free = toy_reference(executor, ask("r", [4, 4], max_tokens=12))
    stop = next(token for token in free.token_ids if token != free.token_ids[0])
    where = free.token_ids.index(stop)
    answer = run(engine_on(executor), ask("r", [4, 4], max_tokens=12, stop_token_ids=(stop,)))["r"]
    assert answer.token_ids == free.token_ids[:where]
    assert (answer.finish_reason, answer.stop_token_id) == ("stop", stop)

    biased = {"logit_bias": {EOS: 100.0}, "max_tokens": 4}
    answers = run(
        engine_on(executor),
        ask("obeys", [4, 4], ignore_eos=False, **biased),
        ask("ignores", [4, 4], **biased),
        ask("waits", [4, 4], ignore_eos=False, min_tokens=2, **biased),
    )
    assert (answers["obeys"].token_ids, answers["obeys"].stop_token_id) == ([], EOS)
    assert answers["ignores"].token_ids == [EOS] * 4
    assert len(answers["waits"].token_ids) == 2
    assert EOS not in answers["waits"].token_ids
    assert answers["waits"].finish_reason == "stop"


def test_logprobs_are_of_the_models_own_logits() -> None:
    executor = toy()
    request = ask("r", [4, 4], max_tokens=3, logprobs=4, logit_bias={7: 50.0})
    answer = run(engine_on(executor), request, ask("plain", [6], max_tokens=3))["r"]
    logits = executor.logits([4, 4]).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    first = answer.logprobs[0]
    assert answer.token_ids[0] == 7
    assert first.logprob == pytest.approx(expected[7], abs=1e-5)
    assert [i for i, _ in first.top] == np.argsort(-expected, kind="stable")[:4].tolist()
    assert len(answer.logprobs) == 3


def test_seeds() -> None:
    def sample(seed: int | None, name: str = "r") -> list[int]:
        request = ask(name, [4, 4], max_tokens=12, temperature=3.0, seed=seed)
        return run(engine_on(), request)[name].token_ids

    assert sample(1) == sample(1, name="another id")
    assert sample(1) != sample(2)
    assert sample(-1) == sample((1 << 64) - 1)
    assert sample(None) != sample(None)


@pytest.mark.parametrize("done", [0, 1, 3, 7])
def test_a_completion_goes_on_where_another_engine_left_off(done: int) -> None:
    params = SamplingParams(
        max_tokens=8,
        min_tokens=5,
        temperature=2.0,
        seed=4,
        repetition_penalty=1.4,
        frequency_penalty=0.5,
        ignore_eos=False,
    )
    whole = run(engine_on(), EngineRequest("r", [4, 4, 9], params))["r"]
    assert len(whole.token_ids) == 8
    rest = EngineRequest("r", [4, 4, 9], params, completion_ids=whole.token_ids[:done])
    engine = engine_on()
    assert run(engine, rest)["r"].token_ids == whole.token_ids[done:]
    complete = EngineRequest("r", [4, 4, 9], params, completion_ids=whole.token_ids)
    with pytest.raises(RequestError, match="complete already"):
        engine.add_request(complete)


def test_choices_have_seeds_of_their_own() -> None:
    params = SamplingParams(n=4, seed=7)
    seeds = [choice_params(params, i).seed for i in range(4)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 4
    assert all(choice_params(params, i).n == 1 for i in range(4))
    assert choice_params(SamplingParams(n=4), 3).seed is None
    assert (
        choice_params(SamplingParams(seed=-1), 2).seed
        == choice_params(SamplingParams(seed=(1 << 64) - 1), 2).seed
    )


def test_priorities_run_first() -> None:
    engine = engine_on(max_num_requests=1)
    for name, priority in (("later", 1), ("first", 0), ("second", 0), ("urgent", -5)):
        engine.add_request(ask(name, [1, 2], priority=priority, max_tokens=2))
    order = []
    while engine.num_live_requests:
        order += [output.request_id for output in engine.step() if output.finish_reason]
    assert order == ["urgent", "first", "second", "later"]


def test_the_token_budget_is_kept_and_decodes_are_not_held_up_by_prefills() -> None:
    class Recorder(toy_class()):  # type: ignore[misc]
        rows: list[list[int]] = []  # noqa: RUF012

        def execute(self, batch: StepBatch) -> StepResult:
            self.rows.append(np.diff(batch.seq_starts).tolist())
            return super().execute(batch)

    executor = Recorder(num_blocks=64, block_size=4)
    engine = engine_on(executor, max_batch_tokens=8)
    engine.add_request(ask("talks", [1], max_tokens=8))
    engine.step()
    engine.add_request(ask("long", list(range(1, 31)), max_tokens=2))
    while engine.num_live_requests:
        engine.step()
    assert executor.rows == [[1], [1, 7], [1, 7], [1, 7], [1, 7], [1, 2], [1, 1], [1]]


def test_preemption_takes_the_last_and_changes_nothing() -> None:
    executor = toy(num_blocks=6, block_size=2, max_context=64)
    engine = engine_on(executor)
    requests = [ask(name, [i + 1, i + 2, i + 3], max_tokens=8) for i, name in enumerate("abc")]
    # No time to learn: admission expects short completions at first.
    engine.scheduler.estimate.tokens = 1
    for one in requests:
        engine.add_request(one)
    finished = []
    tokens: dict[str, list[int]] = {name: [] for name in "abc"}
    while engine.num_live_requests:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
            if output.finish_reason:
                finished.append(output.request_id)
    assert finished == ["a", "b", "c"]
    assert engine.stats().num_preemptions > 0
    assert tokens == {r.request_id: toy_reference(executor, r).token_ids for r in requests}


def test_admission_learns_to_avoid_preemptions() -> None:
    engine = engine_on(toy(num_blocks=30, block_size=2), max_num_requests=12)
    counts = []
    for wave in range(3):
        before = engine.stats().num_preemptions
        requests = [ask(f"{wave}.{i}", [wave, i], max_tokens=30) for i in range(12)]
        run(engine, *requests)
        counts.append(engine.stats().num_preemptions - before)
    assert counts[-1] == 0
    assert sum(counts) <= 4


@pytest.mark.parametrize("when", ["waiting", "mid-prefill", "running"])
def test_abort_between_steps(when: str) -> None:
    engine = engine_on(max_batch_tokens=4)
    engine.add_request(ask("r", list(range(10)), max_tokens=4))
    for _ in range({"waiting": 0, "mid-prefill": 2, "running": 4}[when]):
        engine.step()
    output = engine.abort("r")
    assert output is not None
    assert output.finish_reason == "abort"
    engine.check()
    assert engine.abort("r") is None
    assert engine.abort("never heard of it") is None
    assert engine.step() == []
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


@pytest.mark.parametrize("chunk", [4, 64])
def test_abort_and_resubmission_during_the_step(chunk: int) -> None:
    class Meddler(toy_class()):  # type: ignore[misc]
        engine: Engine
        outputs: list[Any] = []  # noqa: RUF012

        def execute(self, batch: StepBatch) -> StepResult:
            result: StepResult = super().execute(batch)
            if self.num_steps == 1:
                self.outputs.append(self.engine.abort("r"))
                self.engine.add_request(again)
            return result

    executor = Meddler(num_blocks=16, block_size=4)
    again = ask("r", [9, 9, 9], max_tokens=3)
    executor.engine = engine = engine_on(executor, max_batch_tokens=chunk)
    engine.add_request(ask("r", list(range(10)), max_tokens=4))
    engine.add_request(ask("s", [2, 3], max_tokens=4))
    tokens: dict[str, list[int]] = {"r": [], "s": []}
    while engine.num_live_requests:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
    (aborted,) = executor.outputs
    assert aborted.finish_reason == "abort"
    assert tokens["r"] == toy_reference(executor, again).token_ids
    assert tokens["s"] == toy_reference(executor, ask("s", [2, 3], max_tokens=4)).token_ids
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_sampling_rows_carry_what_their_request_asked_for() -> None:
    class Recorder(toy_class()):  # type: ignore[misc]
        batches: list[StepBatch] = []  # noqa: RUF012

        def execute(self, batch: StepBatch) -> StepResult:
            self.batches.append(batch)
            return super().execute(batch)

    executor = Recorder(vocab_size=VOCAB, eos_token_ids=(EOS,))
    requests = [
        ask("plain", [5, 6], max_tokens=3),
        ask(
            "all",
            [7, 8, 9],
            max_tokens=3,
            repetition_penalty=1.5,
            min_tokens=2,
            top_k=-1,
            seed=-2,
            ignore_eos=False,
            stop_token_ids=(4,),
            logit_bias={1: 2.0, 2: -1.0},
        ),
        ask("some", [9], max_tokens=3, presence_penalty=0.5, logprobs=3, top_p=0.5, min_p=0.25),
    ]
    answers = run(engine_on(executor), *requests)
    first, second, third = (batch.sampling for batch in executor.batches)

    def parts(sampling: Any, name: str) -> list[list[int]]:
        starts = getattr(sampling, f"{name}_starts").tolist()
        ids = getattr(sampling, f"{name}_ids").tolist()
        return [ids[a:b] for a, b in pairwise(starts)]

    outputs = [answers[name].token_ids for name in ("plain", "all", "some")]
    for generated, sampling in enumerate((first, second, third)):
        assert parts(sampling, "prompt") == [[], [7, 8, 9], []]
        assert parts(sampling, "output") == [[], outputs[1][:generated], outputs[2][:generated]]
        assert parts(sampling, "banned") == [[], [EOS, 4] if generated < 2 else [], []]
        assert parts(sampling, "bias") == [[], [1, 2], []]
        assert sampling.bias_values.tolist() == [2.0, -1.0]
        assert sampling.positions.tolist() == [2 + generated, 3 + generated, 1 + generated]
        assert sampling.num_logprobs.tolist() == [-1, -1, 3]
        assert sampling.top_k.tolist() == [0, 0, 0]
        assert sampling.top_p.tolist() == [1, 1, 0.5]
        assert sampling.min_p.tolist() == [0, 0, 0.25]
        assert sampling.repetition_penalty.tolist() == [1, 1.5, 1]
        assert sampling.presence_penalty.tolist() == [0, 0, 0.5]
        assert sampling.seeds.tolist()[1] == (1 << 64) - 2
        assert sampling.mask_rows.tolist() == [-1, -1, -1]


def test_check_finds_a_leak() -> None:
    engine = engine_on()
    engine.add_request(ask("r", [1, 2, 3], max_tokens=4))
    engine.step()
    engine.kv_cache.pool.take()
    with pytest.raises(RuntimeError, match="references"):
        engine.check()
