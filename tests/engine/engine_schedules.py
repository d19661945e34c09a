"""What the engine tests share: a reference that has no schedule, and random schedules."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from trimtab.config import SchedulerConfig
from trimtab.engine.batch import BatchBuilder, Chooser
from trimtab.engine.client import EngineRequest, FinishReason, TokenLogprobs, TokenOutput
from trimtab.engine.engine import Engine
from trimtab.engine.request import Request
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.scheduler import StepPlan
from trimtab.executors.base import SamplingBatch, StepBatch, StepResult
from trimtab.executors.toy import ToyExecutor, sample_row

VOCAB = 32
EOS = 3
TOY: Any = ToyExecutor  # torch_toy.TorchToy while conftest.py says so


def toy_class() -> Any:
    """To make executors of, or classes that do something around their steps."""
    return TOY


def toy(num_blocks: int = 64, block_size: int = 4, **options: Any) -> Any:
    options = {"vocab_size": VOCAB, "eos_token_ids": (EOS,), "max_context": 64} | options
    return toy_class()(num_blocks=num_blocks, block_size=block_size, **options)


def choose(executor: Any, token_ids: Sequence[int], sampling: SamplingBatch) -> int:
    """The token behind these by the definition; `sampling` has one row."""
    if isinstance(executor, ToyExecutor):
        return sample_row(executor.logits(token_ids), sampling, 0)
    return int(executor.definition.choose(token_ids, sampling))


def score(executor: Any, token_ids: Sequence[int], token: int, num_top: int) -> TokenLogprobs:
    """Of `token` behind these by the definition."""
    if not isinstance(executor, ToyExecutor):
        found: TokenLogprobs = executor.definition.score(token_ids, token, num_top)
        return found
    wide = executor.logits(token_ids).astype(np.float64)[None]
    logprobs = (wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))[0]
    rounded = logprobs.astype(np.float32).tolist()
    best = np.argsort(-logprobs, kind="stable")[:num_top].tolist()
    return TokenLogprobs(rounded[token], [(one, rounded[one]) for one in best])


def embedding(executor: Any, token_ids: Sequence[int]) -> list[float]:
    if not isinstance(executor, ToyExecutor):
        return list(executor.definition.hidden(token_ids))
    return list(executor.logits(token_ids)[: executor.spec.hidden_size].tolist())


@dataclass
class Answer:
    """Everything that came out of one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_finishes: int = 0
    num_cached_tokens: int = 0
    error: str | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    stop_logprobs: TokenLogprobs | None = None
    embedding: list[float] | None = None

    def add(self, output: TokenOutput) -> None:
        assert self.num_finishes == 0, "output after the last one"
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or []
        self.num_cached_tokens = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "reported twice"
            assert len(self.token_ids) == len(output.token_ids), "not in the first output"
            self.prompt_logprobs = output.prompt_logprobs
        if output.finish_reason is not None:
            self.num_finishes += 1
            self.finish_reason = output.finish_reason
            self.stop_token_id = output.stop_token_id
            self.error = output.error
            self.stop_logprobs = output.stop_logprobs
            self.embedding = output.embedding


def run(engine: Engine, *requests: EngineRequest, max_steps: int = 10_000) -> dict[str, Answer]:
    """All answers; fails if the engine does not come to an end."""
    answers = {request.request_id: Answer() for request in requests}
    for request in requests:
        engine.add_request(request)
    for _ in range(max_steps):
        if not engine.num_live_requests:
            return answers
        for output in engine.step():
            answers[output.request_id].add(output)
    raise AssertionError(f"still busy after {max_steps} steps")


def toy_prompt_logprobs(executor: Any, request: EngineRequest) -> list[TokenLogprobs]:
    """By the definition: of each prompt token, after the logits of those before it alone."""
    prompt, num_top = request.prompt_ids, request.prompt_logprobs or 0
    return [score(executor, prompt[:i], prompt[i], num_top) for i in range(1, len(prompt))]


def toy_reference(executor: Any, request: EngineRequest) -> Answer:
    """The answer by the definition: no blocks, no batch, no schedule, only logits and sampling."""
    params, answer = request.params, Answer(num_finishes=1)
    if request.prompt_logprobs is not None:
        answer.prompt_logprobs = toy_prompt_logprobs(executor, request)
    if request.embeds:
        answer.embedding = embedding(executor, request.prompt_ids)
        answer.finish_reason = "stop"
        return answer
    if not request.completes:
        answer.finish_reason = "length"
        return answer
    stops = set(params.stop_token_ids)
    stops |= set() if params.ignore_eos else set(executor.spec.eos_token_ids)
    tokens = list(request.prompt_ids)
    most = len(tokens) + params.max_tokens if params.max_tokens else executor.spec.max_context
    while True:
        bare = Request(
            request_id="",
            params=params,
            token_ids=array("i", tokens),
            num_prompt_tokens=len(request.prompt_ids),
            max_total_tokens=most,
            stop_ids=frozenset(stops),
            seed=params.seed or 0,
            order=(0, 0),
            cache_root=b"",
            allowed_mask=mask_of(params.allowed_token_ids) if params.allowed_token_ids else None,
        )
        sampling = BatchBuilder().build_sampling([Chooser(bare)], np.array([len(tokens)], np.int32))
        token = choose(executor, tokens, sampling)
        if token in stops:
            answer.finish_reason, answer.stop_token_id = "stop", token
            return answer
        tokens.append(token)
        answer.token_ids.append(token)
        if len(tokens) == most:
            answer.finish_reason = "length"
            return answer


def mask_of(token_ids: tuple[int, ...]) -> Any:
    return np.array([sum(1 << i for i in set(token_ids))], np.uint32)  # VOCAB is one word


def random_bans(random: Random) -> dict[str, Any]:
    """Neither of both leaves nothing to choose: 20 of 32 tokens, less 6 and two that end it."""
    bans: dict[str, Any] = {}
    if random.random() < 0.3:
        bans["allowed_token_ids"] = tuple(random.sample(range(VOCAB), 20))
    if random.random() < 0.4:
        some = random.sample(range(VOCAB), 6)
        bans["banned_sequences"] = tuple(
            tuple(random.choice(some) for _ in range(random.randint(1, 3))) for _ in range(6)
        )
    return bans


def random_params(random: Random, max_tokens: int) -> SamplingParams:
    most = random.randint(1, max_tokens)
    return SamplingParams(
        max_tokens=most,
        min_tokens=random.choice([0, 0, random.randint(0, most)]),
        temperature=random.choice([0.0, 0.0, 0.5, 1.0, 2.0]),
        top_k=random.choice([0, 0, 1, 5]),
        top_p=random.choice([1.0, 1.0, 0.7]),
        min_p=random.choice([0.0, 0.0, 0.1]),
        repetition_penalty=random.choice([1.0, 1.0, 1.3]),
        presence_penalty=random.choice([0.0, 0.0, 0.5]),
        frequency_penalty=random.choice([0.0, 0.0, -0.4]),
        logit_bias={random.randrange(VOCAB): 3.0} if random.random() < 0.2 else {},
        seed=random.randint(0, 5),
        stop_token_ids=random.choice([(), (), (random.randrange(VOCAB),)]),
        ignore_eos=random.random() < 0.6,
        logprobs=random.choice([None, None, 0, 2]),
        **random_bans(random),
    )


@dataclass(frozen=True)
class Arrival:
    """A request, the step before which it comes, and the one before or in which it is aborted."""

    step: int
    request: EngineRequest
    abort_step: int | None
    abort_while_executing: bool


@dataclass(frozen=True)
class Schedule:
    block_size: int
    num_blocks: int
    config: SchedulerConfig
    reckless: bool  # admission expects completions to end at once, so that many are preempted
    arrivals: list[Arrival]


@st.composite
def schedules(
    draw: st.DrawFn,
    block_sizes: tuple[int, ...] = (1, 2, 3, 4),
    pool_sizes: tuple[int, int] = (2, 8),
    max_requests: int = 8,
    max_budget: int = 12,
    max_new_tokens: int = 1000,
) -> Schedule:
    """Tiny pools, tiny budgets, prompts that share prefixes, aborts at any step.

    The frame is drawn by hypothesis, so that it shrinks; what fills it comes from one drawn seed.
    """
    block_size, num_blocks = draw(st.sampled_from(block_sizes)), draw(st.integers(*pool_sizes))
    num_requests = draw(st.integers(1, max_requests))
    config = SchedulerConfig(
        max_batch_tokens=draw(st.integers(1, max_budget)),
        max_num_requests=draw(st.integers(1, 5)),
        prefix_cache=draw(st.sampled_from([True, True, True, False])),
    )
    last_arrival, abort_share = draw(st.integers(0, 12)), draw(st.sampled_from([0.0, 0.3]))
    reckless = draw(st.booleans())
    random = Random(draw(st.integers(0, 1 << 32)))
    capacity = block_size * num_blocks
    stem = [random.randrange(VOCAB) for _ in range(capacity)]
    arrivals = []
    for index in range(num_requests):
        prompt = stem[: random.randrange(capacity)]
        own = random.randint(0 if prompt else 1, min(4, capacity - len(prompt)))
        prompt += [random.randrange(VOCAB) for _ in range(own)]
        prompt_logprobs = random.choice([None, None, None, 0, 3])
        embeds = prompt_logprobs is None and random.random() < 0.15
        request = EngineRequest(
            request_id=f"r{index}",
            prompt_ids=prompt,
            params=random_params(random, min(capacity + 1 - len(prompt), max_new_tokens)),
            priority=random.choice([-1, 0, 0, 0, 1]),
            cache_salt=random.choice(["", "", "", "other"]),
            prompt_logprobs=prompt_logprobs,
            completes=not embeds and (prompt_logprobs is None or random.random() < 0.5),
            embeds=embeds,
        )
        abort_step = random.randint(0, 40) if random.random() < abort_share else None
        arrivals.append(
            Arrival(random.randint(0, last_arrival), request, abort_step, random.random() < 0.5)
        )
    return Schedule(block_size, num_blocks, config, reckless, arrivals)


def running_stays(engine: Engine) -> set[tuple[str, int]]:
    return {(request.request_id, request.num_preemptions) for request in engine.scheduler._running}


def play(engine: Engine, schedule: Schedule, max_steps: int) -> Iterator[tuple[int, str, Answer]]:
    """Run a schedule, `engine.check()` after every step; yields (step, id, answer) as they end."""
    answers: dict[str, Answer] = {}
    pending = list(schedule.arrivals)
    outputs: list[TokenOutput | None] = []
    step = 0

    def abort(while_executing: bool) -> None:
        for arrival in schedule.arrivals:
            if (arrival.abort_step, arrival.abort_while_executing) == (step, while_executing):
                outputs.append(engine.abort(arrival.request.request_id))

    def execute(batch: StepBatch) -> StepResult:
        result = plain_execute(batch)
        abort(while_executing=True)
        return result

    def plan() -> StepPlan:
        running = running_stays(engine)
        planned = plain_schedule()
        if planned.num_preempted:
            assert running_stays(engine) <= running, "admitted in a step that preempted"
        return planned

    plain_execute, plain_schedule = engine.executor.execute, engine.scheduler.schedule
    engine.executor.execute = execute  # type: ignore[method-assign]
    engine.scheduler.schedule = plan  # type: ignore[method-assign]
    for step in range(max_steps):
        outputs.clear()
        for arrival in [a for a in pending if a.step <= step]:
            pending.remove(arrival)
            engine.add_request(arrival.request)
            answers[arrival.request.request_id] = Answer()
        abort(while_executing=False)
        if schedule.reckless:
            engine.scheduler.estimate.tokens = 0
        outputs += engine.step()
        engine.check()
        for output in filter(None, outputs):
            answer = answers[output.request_id]
            answer.add(output)
            if answer.num_finishes:
                yield step, output.request_id, answer
        if not pending and not engine.num_live_requests:
            return
    raise AssertionError(f"no end after {max_steps} steps: {engine.stats()}")
