"""Log-probabilities of prompts, on the synchronous engine and the toy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_schedules import EOS, Answer, run, toy, toy_reference

from trimtab.config import SchedulerConfig
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.errors import RequestError


def engine_on(executor: Any, **config: Any) -> Engine:
    return Engine(executor, SchedulerConfig(**config), debug=True)


def ask(name: str, prompt: list[int], **params: Any) -> EngineRequest:
    options = {"temperature": 0, "ignore_eos": True} | params
    return EngineRequest(name, prompt, SamplingParams(**options))


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("completes", [False, True])
def test_scoring_a_prompt(chunk: int, completes: bool) -> None:
    executor = toy()
    engine = engine_on(executor, max_batch_tokens=chunk)
    prompt = [5, 9, 2, 7, 1, 8]
    params = SamplingParams(max_tokens=2, temperature=0, repetition_penalty=1.5, ignore_eos=True)
    score = EngineRequest("s", prompt, params, prompt_logprobs=2, completes=completes)
    neighbour = ask("n", [3, 1], max_tokens=4)
    run(engine, ask("warm", prompt, max_tokens=1))
    answers = run(engine, score, neighbour)
    expected = []
    for i in range(1, len(prompt)):
        logits = executor.logits(prompt[:i]).astype(np.float64)
        expected.append(logits - np.log(np.exp(logits).sum()))
    scores = answers["s"].prompt_logprobs
    assert scores is not None
    assert [one.logprob for one in scores] == pytest.approx(
        [row[token] for row, token in zip(expected, prompt[1:], strict=True)], abs=1e-5
    )
    for one, row in zip(scores, expected, strict=True):
        assert [token for token, _ in one.top] == np.argsort(-row, kind="stable")[:2].tolist()
    assert answers["s"].token_ids == toy_reference(executor, score).token_ids
    assert len(answers["s"].token_ids) == (2 if completes else 0)
    assert answers["s"].num_cached_tokens == 0
    assert answers["n"].token_ids == toy_reference(executor, neighbour).token_ids


def test_a_scored_prompt_that_is_preempted_is_scored_once() -> None:
    """Twice: halfway through its prompt, and as it completes. What is scored already is read from
    the cache then, what is not is computed."""
    executor = toy(num_blocks=8, block_size=2)
    engine = engine_on(executor, max_batch_tokens=3)
    score = EngineRequest(
        "s",
        [5, 9, 2, 7, 1, 8, 4],
        SamplingParams(max_tokens=4, temperature=0, ignore_eos=True),
        prompt_logprobs=3,
        priority=1,
    )
    engine.add_request(score)
    live = engine._requests["s"]
    engine.step()
    assert 0 < len(live.prompt_logprobs) < 6
    engine.scheduler._preempt(live)
    answer = Answer()
    computed = executor.num_computed_tokens
    while engine.num_live_requests:
        for output in engine.step():
            answer.add(output)
            if len(answer.token_ids) == 2:
                engine.scheduler._preempt(live)
        engine.check()
    reference = toy_reference(executor, score)
    assert answer.prompt_logprobs == reference.prompt_logprobs
    assert answer.token_ids == reference.token_ids
    assert live.num_preemptions == 2
    # 7 + 4 - 1 positions; of the first 3, 2 came from the cache, and 8 of the first 8 later.
    assert executor.num_computed_tokens - computed == 5 + 3


def test_a_resumed_completion_scores_its_prompt_alone() -> None:
    executor = toy()
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    whole = EngineRequest("r", [5, 9, 2], params, prompt_logprobs=1)
    reference = toy_reference(executor, whole)
    resumed = replace(whole, completion_ids=reference.token_ids[:2])
    for chunk in (2, 64):
        answer = run(engine_on(executor, max_batch_tokens=chunk), resumed)["r"]
        assert answer.prompt_logprobs == reference.prompt_logprobs
        assert answer.token_ids == reference.token_ids[2:]


def test_the_token_that_stops_it_has_its_logprob() -> None:
    executor = toy()
    biased = {"logit_bias": {EOS: 100.0}, "ignore_eos": False}
    for logprobs in (None, 2):
        answer = run(engine_on(executor), ask("r", [4, 4], logprobs=logprobs, **biased))["r"]
        assert (answer.finish_reason, answer.stop_token_id) == ("stop", EOS)
        assert answer.logprobs == []
        if logprobs is None:
            assert answer.stop_logprobs is None
            continue
        logits = executor.logits([4, 4]).astype(np.float64)
        expected = logits[EOS] - np.log(np.exp(logits).sum())
        assert answer.stop_logprobs is not None
        assert answer.stop_logprobs.logprob == pytest.approx(expected, abs=1e-5)
        assert len(answer.stop_logprobs.top) == 2


def test_what_cannot_be_scored_is_refused() -> None:
    engine = engine_on(toy())
    for fields, words in (
        ({"completes": False}, "neither"),
        ({"prompt_logprobs": 21}, "prompt_logprobs=21"),
        ({"prompt_logprobs": -1}, "prompt_logprobs=-1"),
    ):
        with pytest.raises(RequestError, match=words):
            engine.add_request(EngineRequest("r", [1, 2], SamplingParams(), **fields))  # type: ignore[arg-type]
    many = EngineRequest("r", [1] * (1 << 18), SamplingParams(), prompt_logprobs=20)
    with pytest.raises(RequestError, match="ask for fewer"):
        engine.add_request(many)
