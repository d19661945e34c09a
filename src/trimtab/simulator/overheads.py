"""What a server does around the executor's steps, in seconds.

    sent --request--> inbox ... [schedule, build | EXECUTE | commit] --delivery--> client
                                 `-- step + sequences * sequence --'

`measure_overheads` takes them from a real engine in this process. A front process of its own adds
to `request` and `delivery`, and, where it shares the cores with the executor, to `token`.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from trimtab.config import SchedulerConfig
from trimtab.engine.async_engine import AsyncEngine
from trimtab.engine.client import EngineRequest
from trimtab.engine.engine import Engine
from trimtab.engine.sampling_params import SamplingParams
from trimtab.errors import UserError
from trimtab.executors.base import Executor
from trimtab.simulator.nnls import solve

_BATCHES = (1, 4, 16)
_PROMPT = 8
_STEPS = 48
_ROUNDS = 3


@dataclass(frozen=True)
class Overheads:
    """Seconds; all 0 = an engine that costs nothing but its steps."""

    step: float = 0.0  # of any step: schedule, build, commit, hand over
    sequence: float = 0.0  # of each sequence in a step
    request: float = 0.0  # from when a request is sent until the engine has it
    delivery: float = 0.0  # from the end of a step until the client has its tokens
    token: float = 0.0  # by which each token that goes out delays the steps

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

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def execute(self, batch: Any) -> Any:
        start = perf_counter()
        result = self._executor.execute(batch)
        self.seconds += perf_counter() - start
        return result

    def close(self) -> None:
        pass


def measure_overheads(executor: Executor) -> Overheads:
    """Of an engine on a thread of this process, streaming to an event loop: wall time of decode
    steps that is not the executor's, at 1, 4 and 16 sequences. Overwrites the executor's blocks."""
    capacity, vocab_size = executor.capacity, executor.spec.vocab_size
    tokens = _PROMPT + _STEPS
    most = capacity.num_blocks // -(-tokens // capacity.block_size)
    batches = [one for one in _BATCHES if one <= most]
    if not batches or executor.spec.max_context < tokens:
        raise UserError(f"the KV cache is too small to measure overheads: {tokens} tokens at least")
    per_step: dict[int, list[float]] = {batch: [] for batch in batches}
    for _ in range(_ROUNDS):
        for batch in batches:
            per_step[batch].append(asyncio.run(_outside(executor, batch, vocab_size)))
    medians = np.array([statistics.median(per_step[batch]) for batch in batches])
    columns = np.stack([np.ones(len(batches)), np.array(batches, float)], axis=1)
    step, sequence = solve(columns / medians[:, None], np.ones(len(batches))).tolist()
    return Overheads(step=step, sequence=sequence)


async def _outside(executor: Executor, batch: int, vocab_size: int) -> float:
    """Seconds a step outside the executor, with so many sequences that decode."""
    lent = _Borrowed(executor)
    config = SchedulerConfig(prefix_cache=False, speculative="off", max_num_requests=batch)
    client = AsyncEngine(Engine(lent, config))
    params = SamplingParams(max_tokens=_STEPS, temperature=0, ignore_eos=True)
    draw = np.random.default_rng(0)
    marks: list[tuple[float, float, int]] = []  # wall, the executor's seconds, tokens so far

    async def follow(name: str, prompt: Sequence[int]) -> None:
        count = 0
        async for output in client.generate(EngineRequest(name, list(prompt), params)):
            count += len(output.token_ids)
            if name == "0":
                marks.append((perf_counter(), lent.seconds, count))

    prompts = draw.integers(0, vocab_size, (batch, _PROMPT)).tolist()
    await asyncio.gather(*(follow(str(i), prompt) for i, prompt in enumerate(prompts)))
    await client.close()
    first, last = marks[min(2, len(marks) - 2)], marks[-1]
    steps = max(1, last[2] - first[2])
    return max(1e-7, (last[0] - first[0] - (last[1] - first[1])) / steps)
