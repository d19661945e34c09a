"""What a server does around the executor's steps, in seconds.

    sent --request--> inbox ... [schedule, build | EXECUTE | commit] --delivery--> client
                                 `- step + sequences * sequence + rows * row -'
                                   (behind a step with prompts + behind_prompt, and the
                                    executor + cold_executor)

`measure_overheads` takes them from a real engine in this process. A front process of its own adds
to `request` and `delivery`.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any, cast

import numpy as np

from trimtab.config import SchedulerConfig
from trimtab.engine.async_engine import AsyncEngine
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.errors import UserError
from trimtab.executors.base import AsyncExecutor, Executor, Pending, StepBatch
from trimtab.simulator.nnls import solve
from trimtab.simulator.repeated import is_asynchronous, repeated_seconds

_BATCHES = (1, 4, 16)
_PROMPT = 8
_STEPS = 48
_PREFILL = 256  # tokens of a prompt
_PREFILLS = 5
_ROUNDS = 3
_SECONDS = 3.0  # behind which no further one is begun
_WAKES = 7
_PROMPTS = 15
_IDLE = 0.03  # seconds before a request, in which threads go to sleep
_COLD_STEPS = 8  # decode steps behind a prompt, of which some take longer than those that follow
_SLOW = 0.01  # seconds of a step, beside which that is nothing


@dataclass(frozen=True)
class Overheads:
    """Seconds; all 0 = an engine that costs nothing but its steps."""

    step: float = 0.0  # of any step: schedule, build, commit, hand over
    sequence: float = 0.0  # of each sequence in a step
    request: float = 0.0  # from when a request is sent until the engine has it
    delivery: float = 0.0  # from the end of a step until the client has its tokens
    row: float = 0.0  # of each token row: hashes and blocks of prompts, above all
    behind_prompt: float = 0.0  # more, of the decodes behind a step with prompts, together
    cold_executor: float = 0.0  # that the executor takes longer for them

    def as_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Overheads:
        try:
            return cls(**{name: float(value) for name, value in data.items()})
        except (TypeError, ValueError) as error:
            raise UserError(f"not the overheads of a server ({error})") from None


class _Borrowed:
    """An executor that outlives the engine it is lent to, and adds up its own seconds."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self._executor = executor
        self._clock = clock
        self.seconds = 0.0
        self.each: list[float] = []  # step by step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def execute(self, batch: Any) -> Any:
        start = self._clock()
        result = self._executor.execute(batch)
        self.each.append(self._clock() - start)
        self.seconds += self.each[-1]
        return result

    def own_seconds(self) -> float:
        """Of a step, beside those in `seconds`."""
        return 0.0

    def close(self) -> None:
        pass


class _BorrowedAhead(_Borrowed):
    """One that the engine queues steps on. What they take by themselves is found out afterwards:
    steps like one of them, the widest, in the same stride."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        super().__init__(executor, clock)
        self._widest: StepBatch | None = None

    def execute_async(self, batch: StepBatch) -> Pending:
        if self._widest is None or batch.num_rows > self._widest.num_rows:
            self._widest = copy.deepcopy(batch)  # its arrays may change
        return cast(AsyncExecutor, self._executor).execute_async(batch)

    def own_seconds(self) -> float:
        """Of such a step; 0 before any."""
        if self._widest is None:
            return 0.0
        return repeated_seconds(self._executor, self._widest, self._clock)


def _borrow(executor: Executor, clock: Callable[[], float]) -> _Borrowed:
    return (_BorrowedAhead if is_asynchronous(executor) else _Borrowed)(executor, clock)


def measure_overheads(executor: Executor) -> Overheads:
    """Of an engine on a thread of this process, streaming to an event loop: wall time of decode
    steps that is not the executor's, at 1, 4 and 16 sequences. Overwrites the executor's blocks.
    What a request takes until an idle engine has it and back is in `request`, with what its step
    then takes longer. UserError if the KV cache has no room for it."""
    found = _fitted(
        executor, lambda batch: asyncio.run(_outside_client(executor, batch)), perf_counter
    )
    first_token, own = asyncio.run(_until_first_token(executor))
    request = first_token - own - found.step - found.sequence - found.row * _PROMPT
    cold, behind_prompt = asyncio.run(_behind_prompt(executor)) if own < _SLOW else (0.0, 0.0)
    return replace(
        found, request=max(0.0, request), behind_prompt=behind_prompt, cold_executor=cold
    )


def measure_engine_overheads(executor: Executor, clock: Callable[[], float]) -> Overheads:
    """The same of the engine alone, stepped in this thread, on a clock of the caller's."""
    return _fitted(executor, lambda batch: _outside_engine(executor, batch, clock), clock)


def _fitted(
    executor: Executor, measure: Callable[[int], float], clock: Callable[[], float]
) -> Overheads:
    capacity = executor.capacity
    tokens = _PROMPT + _STEPS
    most = capacity.num_blocks // -(-tokens // capacity.block_size)
    batches = [one for one in _BATCHES if one <= most]
    if not batches or executor.spec.max_context < tokens:
        raise UserError(f"the KV cache is too small to measure overheads: {tokens} tokens at least")
    prompt = min(_PREFILL, executor.spec.max_context - 1, capacity.num_tokens // 2)
    kinds = [(1, batch, batch) for batch in batches] + [(1, 1, prompt)]  # columns of the fit
    measured: list[list[float]] = [[] for _ in kinds]
    started = perf_counter()
    for number in range(_ROUNDS):
        if number and perf_counter() - started > _SECONDS:
            break  # beside steps as long as these a few microseconds more or less are nothing
        for seconds, batch in zip(measured, batches, strict=False):
            seconds.append(measure(batch))
        measured[-1].append(_outside_prefill(executor, prompt, clock))
    medians = np.array([statistics.median(seconds) for seconds in measured])
    relative = np.array(kinds, float) / medians[:, None]
    step, sequence, row = solve(relative, np.ones(len(kinds))).tolist()
    return Overheads(step=step, sequence=sequence, row=row)


def _engine(lent: _Borrowed, batch: int) -> tuple[Engine, list[EngineRequest]]:
    config = SchedulerConfig(prefix_cache=False, speculative="off", max_num_requests=batch)
    params = SamplingParams(max_tokens=_STEPS, temperature=0, ignore_eos=True)
    draw = np.random.default_rng(0)
    prompts = draw.integers(0, lent.spec.vocab_size, (batch, _PROMPT)).tolist()
    requests = [EngineRequest(str(i), prompt, params) for i, prompt in enumerate(prompts)]
    return Engine(lent, config), requests


def _typical(outside: list[float], own: float) -> float:
    """The median over the steps, less their own seconds: a few, on a busy machine, take a hundred
    times as long."""
    return max(1e-7, statistics.median(outside) - own)


def _outside_engine(executor: Executor, batch: int, clock: Callable[[], float]) -> float:
    """Seconds a step outside the executor, with so many sequences that decode."""
    lent = _borrow(executor, clock)
    engine, requests = _engine(lent, batch)
    for request in requests:
        engine.add_request(request)
    outside = []
    while engine.num_live_requests:
        before, start = lent.seconds, clock()
        engine.step()
        outside.append(clock() - start - (lent.seconds - before))
    engine.close()
    return _typical(outside[1:-1], lent.own_seconds())


def _outside_prefill(executor: Executor, prompt: int, clock: Callable[[], float]) -> float:
    """Of a step that computes a prompt of so many tokens, which no step before it had."""
    lent = _borrow(executor, clock)
    engine = Engine(lent, SchedulerConfig(speculative="off", max_batch_tokens=prompt))
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    draw = np.random.default_rng(0)
    outside = []
    for number in range(_PREFILLS):
        ids = draw.integers(0, lent.spec.vocab_size, prompt).tolist()
        engine.add_request(EngineRequest(str(number), ids, params))
        before, start = lent.seconds, clock()
        engine.step()
        outside.append(clock() - start - (lent.seconds - before))
    engine.close()
    return _typical(outside, lent.own_seconds())


async def _until_first_token(executor: Executor) -> tuple[float, float]:
    """Seconds from when a request is sent to an idle engine; the executor's of them, where a
    request follows another at once."""
    lent = _borrow(executor, perf_counter)
    engine, (request,) = _engine(lent, 1)
    client = AsyncEngine(engine)
    params = replace(request.params, max_tokens=1)
    until: list[float] = []
    own: list[float] = []
    started = perf_counter()
    for number in range(2 * _WAKES):
        is_idle = number % 2 == 0
        if own and is_idle and perf_counter() - started > _SECONDS:
            break
        if is_idle:
            await asyncio.sleep(_IDLE)
        before, start = lent.seconds, perf_counter()
        async for _ in client.generate(EngineRequest(str(number), request.prompt_ids, params)):
            if is_idle:
                until.append(perf_counter() - start)
            else:
                own.append(lent.seconds - before)
    await client.close()
    return statistics.median(until), statistics.median(own) + lent.own_seconds()


async def _behind_prompt(executor: Executor) -> tuple[float, float]:
    """Seconds that the first _COLD_STEPS behind a prompt take longer than as many that follow: in
    the executor, and around it (where the engine queues steps on it, all of them)."""
    capacity, longest = executor.capacity, executor.spec.max_context
    count = 2 * _COLD_STEPS + 1
    prompt = min(_PREFILL, longest - count, capacity.num_tokens // 2 - count)
    if prompt < _PROMPT:
        return 0.0, 0.0
    config = SchedulerConfig(prefix_cache=False, speculative="off", max_batch_tokens=prompt)
    lent = _borrow(executor, perf_counter)
    client = AsyncEngine(Engine(lent, config))
    params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
    draw = np.random.default_rng(0)
    longer, own = [], []
    started = perf_counter()
    for number in range(_PROMPTS):
        if number and perf_counter() - started > _SECONDS:
            break
        ids = draw.integers(0, executor.spec.vocab_size, prompt).tolist()
        times: list[float] = []  # of each token; several that come at once share the time
        lent.each.clear()
        async for output in client.generate(EngineRequest(str(number), ids, params)):
            now, last = perf_counter(), times[-1] if times else 0.0
            new = len(output.token_ids)
            times += np.linspace(last, now, new + 1)[1:].tolist() if last else [now] * new
        first, then = lent.each[1 : 1 + _COLD_STEPS], lent.each[1 + _COLD_STEPS : count]
        longer.append(2 * times[_COLD_STEPS] - times[0] - times[-1])
        own.append(math.fsum(first) - math.fsum(then))
    await client.close()
    cold = max(0.0, statistics.median(own))
    return cold, max(0.0, statistics.median(longer) - cold)


async def _outside_client(executor: Executor, batch: int) -> float:
    """The same, as a client of an AsyncEngine sees it."""
    lent = _borrow(executor, perf_counter)
    engine, requests = _engine(lent, batch)
    client = AsyncEngine(engine)
    marks = [(perf_counter(), lent.seconds, 0)]  # wall, the executor's seconds, tokens so far

    async def follow(request: EngineRequest) -> None:
        count = 0
        async for output in client.generate(request):
            count += len(output.token_ids)
            if request is requests[0]:
                marks.append((perf_counter(), lent.seconds, count))

    await asyncio.gather(*(follow(request) for request in requests))
    await client.close()
    outside = [
        (later[0] - earlier[0] - (later[1] - earlier[1])) / max(1, later[2] - earlier[2])
        for earlier, later in itertools.pairwise(marks)
    ]
    # without the prompts' step, unless all came at once to an event loop that had no turn
    return _typical(outside[2:] or outside, lent.own_seconds())
