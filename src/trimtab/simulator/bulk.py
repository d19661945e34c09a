"""Many steps at once, where the scheduler has nothing to decide.

While every running request decodes, none ends, nobody can be admitted and nobody arrives, each step
plans one token of each running request, in the same order. All that happens is that requests
take a block whenever their tokens need one and publish it when it is full:

    step        0    1    2    3    4 ...            block of 4 tokens
    request a   .    take .    .    publish, take    in a step: what is taken, in the order of the
    request b   take .    .    publish, take ...     requests; then what is published, likewise

Those events are applied to the real KV cache in the order in which the steps would have, so that
what comes after is the same to the block.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from trimtab.engine.kv_cache import KVCacheManager
from trimtab.engine.request import Request
from trimtab.engine.scheduler import Scheduler
from trimtab.simulator.nnls import Float64Array
from trimtab.simulator.step_shape import Reach

MIN_STEPS = 3  # fewer are planned as quickly
MAX_STEPS = 4096


def num_steps(scheduler: Scheduler, running: Sequence[Request]) -> int:
    """How many steps are certain to plan one token of each of `running`, which are all that run,
    in their order. 0 if that is not certain of any."""
    config, count = scheduler.config, len(running)
    if count != scheduler.num_running or not count or count > config.max_batch_tokens:
        return 0
    admits = count < config.max_num_requests and count < config.max_batch_tokens
    if scheduler.num_waiting and admits:
        return 0
    steps = MAX_STEPS
    for request in running:
        if request.num_missing != 1 or request.is_held or request.num_prompt_logprobs is not None:
            return 0
        steps = min(steps, request.max_total_tokens - request.num_tokens - 1)
    if steps < MIN_STEPS:
        return 0
    size, free = scheduler.kv_cache.block_size, scheduler.kv_cache.num_free_blocks
    if count * (steps // size + 1) <= free:
        return steps
    while steps >= MIN_STEPS and _blocks_taken(running, steps, size) > free:
        steps //= 2
    return steps if steps >= MIN_STEPS else 0


def shapes(
    running: Sequence[Request], steps: int, reach: Reach
) -> tuple[Float64Array, Float64Array]:
    """attended and context [steps], as in StepShape."""
    if reach.is_full:
        first = sum(request.num_tokens for request in running)
        attended = first + len(running) * np.arange(steps, dtype=np.float64)
        return attended, attended
    starts = [request.num_computed_tokens for request in running]
    each = range(steps)
    return (
        np.array([sum(reach.attended(start + j, 1) for start in starts) for j in each], float),
        np.array([sum(reach.context(start + j, 1) for start in starts) for j in each], float),
    )


def apply(
    kv_cache: KVCacheManager,
    running: Sequence[Request],
    answers: Sequence[Sequence[int]],
    steps: int,
) -> Float64Array:
    """What `steps` steps leave behind, the tokens of `answers` appended; blocks in use in each."""
    size = kv_cache.block_size
    known = [request.num_tokens for request in running]
    events = []  # (step, publishes?, place)
    for place, request in enumerate(running):
        first = max(0, len(request.block_ids) * size + 1 - known[place])
        events += [(step, False, place) for step in range(first, steps, size)]
        first = -known[place] % size
        events += [(step, True, place) for step in range(first, steps, size)]
    events.sort()
    used = kv_cache.pool.num_blocks - kv_cache.num_free_blocks
    added = np.zeros(steps)
    for step, publishes, place in events:
        request = running[place]
        _extend(request, answers[place], known[place] + step)
        if publishes:
            request.num_computed_tokens = known[place] + step
            kv_cache.commit(request)
        else:
            if not kv_cache.grow(request):
                raise RuntimeError("a block that was counted on is not there")
            added[step] += 1
    for place, request in enumerate(running):
        _extend(request, answers[place], known[place] + steps)
        request.num_computed_tokens = known[place] + steps - 1
    return used + np.cumsum(added)


def _extend(request: Request, answer: Sequence[int], num_tokens: int) -> None:
    done = request.num_generated
    missing = num_tokens - request.num_tokens
    if missing > 0:
        request.token_ids.extend(array("i", answer[done : done + missing]))


def _blocks_taken(running: Sequence[Request], steps: int, size: int) -> int:
    taken = 0
    for request in running:
        taken += max(0, -(-(request.num_tokens + steps - 1) // size) - len(request.block_ids))
    return taken
