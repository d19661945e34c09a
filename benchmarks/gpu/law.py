"""The law on the device: the same request gives the same bits, whatever else is in the step.

Everything is compared with `==`: float32 logits of an executor, then tokens of an engine.

    company     alone in a step; among others, in the middle and at the end of the batch
    chunks      the prompt whole, in chunks of several sizes, and its end token by token
    places      other blocks of the KV cache, handed out backwards
    verify      several rows of a sequence at once behind a long context, as drafts are verified
    engine      requests one at a time; all at once under several budgets, with a prefix cache, and
                with a KV cache so small that they preempt one another
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu.batches import company_logits, pieces, sequence_logits
from gpu.context import Context, Settings
from gpu.executors import open_executor, random_checkpoint
from trimtab.config import SchedulerConfig
from trimtab.executors.base import Float32Array

if TYPE_CHECKING:
    from trimtab.engine.client import EngineStats
    from trimtab.executors.base import Executor

PROMPT = 700  # crosses two boundaries of partitions of 256
TINY_PROMPT = 34
COMPANY = 63
TINY_COMPANY = 3
SINGLE = 200  # tokens of a prompt that are computed one by one
TAIL = 8  # single tokens behind the prompt
FORMATS = ("bf16", "fp8", "int4")
TINY_FORMATS = ("bf16", "int4")


def run(context: Context) -> None:
    settings = context.settings
    names = ("company", "chunks", "places", "verify", "engine")
    formats = TINY_FORMATS if settings.tiny else FORMATS
    context.plan([f"{weights} {name}" for weights in formats for name in names])
    for weights in formats:
        checkpoint = random_checkpoint(settings, "qwen3-0.6b", weights)
        length = TINY_PROMPT if settings.tiny else PROMPT
        others = TINY_COMPANY if settings.tiny else COMPANY
        blocks = (others + 4) * (-(-(length + TAIL) // 16) + 1)
        executor = open_executor(settings, checkpoint, num_blocks=blocks)
        try:
            check = LawCheck(executor, settings, length, others)
            for name in names[:-1]:
                if context.has_time(f"{weights} {name}", 1.0):
                    context.attempt(f"{weights} {name}", getattr(check, name))
            if context.has_time(f"{weights} engine", 3.0):
                context.attempt(f"{weights} engine", check.engine)
        finally:
            executor.close()


class LawCheck:
    """Of one executor. Each check computes the same sequence in another way."""

    def __init__(self, executor: Executor, settings: Settings, length: int, others: int) -> None:
        self.executor = executor
        self.length, self.others = length, others
        random = np.random.default_rng(settings.seed + 1)
        vocabulary = executor.spec.vocab_size
        self.ids = random.integers(0, vocabulary, length + TAIL).tolist()
        self.company_ids = random.integers(0, vocabulary, (others, length + TAIL)).tolist()
        self.seed = settings.seed
        self._block = executor.capacity.block_size
        self._longest = length // self._block * self._block - 2  # its block is soon full
        self._alone: Float32Array | None = None

    @property
    def alone(self) -> Float32Array:
        """Logits of all rows, the prompt whole and then token by token, in a step of its own."""
        if self._alone is None:
            self._alone = sequence_logits(self.executor, self.ids, [self.length, *[1] * TAIL])
        return self._alone

    def company(self) -> dict[str, Any]:
        found = {}
        for place in (0, self.others // 2, self.others):
            sequences = [*self.company_ids]
            sequences.insert(place, self.ids)
            found[f"place {place}"] = company_logits(
                self.executor, sequences, place, [self.length, *[1] * TAIL]
            )
        return same_bits(found, self.alone[self.length - 1 :])

    def chunks(self) -> dict[str, Any]:
        size = self.length
        most = min(size - 1, SINGLE)
        plans = {
            "halves": [size // 2, size - size // 2],
            "of 17": pieces(size, 17),
            "of 256": pieces(size, 256),
            "uneven": [1, 5, size - 6],
            "single": [size - most, *[1] * most],
        }
        found = {
            name: sequence_logits(self.executor, self.ids, [*plan, *[1] * TAIL])
            for name, plan in plans.items()
        }
        return same_bits(found, self.alone)

    def places(self) -> dict[str, Any]:
        plan = [self.length, *[1] * TAIL]
        count = self.executor.capacity.num_blocks
        backwards = list(range(count))[::-1]
        shuffled = np.random.default_rng(self.seed).permutation(count).tolist()
        found = {
            "backwards": sequence_logits(self.executor, self.ids, plan, backwards),
            "shuffled": sequence_logits(self.executor, self.ids, plan, shuffled),
        }
        return same_bits(found, self.alone)

    def verify(self) -> dict[str, Any]:
        found = {
            f"{rows} rows": sequence_logits(
                self.executor, self.ids, [self.length, *pieces(TAIL, rows)]
            )
            for rows in (2, 3, 5, TAIL)
        }
        return same_bits(found, self.alone)

    def engine(self) -> dict[str, Any]:
        rows = self.length
        capacity = self.executor.capacity.num_blocks
        few = 2 * (self._longest // self._block + 1) + 1  # each of two wants another one soon
        wide = SchedulerConfig(
            speculative="off", max_batch_tokens=4 * rows, max_num_requests=64, prefix_cache=False
        )
        plans = {
            "all at once": (wide, capacity, 64),
            "small budget": (replace(wide, max_batch_tokens=max(16, rows // 5)), capacity, 64),
            "prefix cache": (replace(wide, prefix_cache=True), capacity, 2),
            "preemption": (wide, few, 64),
        }
        expected, _ = self._generate(wide, capacity, 1)
        wrong, idle = [], []
        for name, (config, blocks, at_once) in plans.items():
            tokens, stats = self._generate(config, blocks, at_once)
            if tokens != expected:
                wrong.append(name)
            if name == "prefix cache" and not stats.num_cached_prompt_tokens:
                idle.append(name)
            if name == "preemption" and not stats.num_preemptions:
                idle.append(name)
        return {
            "passed": not wrong and not idle,
            "different": wrong,
            "did not happen": idle,
            "plans": len(plans),
        }

    def _generate(
        self, config: SchedulerConfig, blocks: int, at_once: int
    ) -> tuple[list[list[int]], EngineStats]:
        """Tokens of a few requests, greedy and sampled, `at_once` of them at a time."""
        from trimtab.engine.client import EngineRequest
        from trimtab.engine.engine import Engine
        from trimtab.engine.sampling_params import SamplingParams

        engine = Engine(FewBlocks(self.executor, blocks), config)
        engine.scheduler.estimate.tokens = 1.0  # so that admission promises memory twice over
        count = min(12, self.others + 1)
        prompts = [
            ids[: self._longest - self._block * (i % 2)]
            for i, ids in enumerate(self.company_ids[: count - 1])
        ]
        prompts.append(prompts[0])
        tokens: dict[str, list[int]] = {str(number): [] for number in range(count)}
        waiting = [
            EngineRequest(
                str(number),
                ids,
                SamplingParams(
                    max_tokens=TAIL,
                    temperature=0.0 if number % 2 else 0.8,
                    top_p=0.9,
                    seed=number,
                    ignore_eos=True,
                ),
            )
            for number, ids in enumerate(prompts)
        ][::-1]
        while waiting or engine.num_live_requests:
            while waiting and engine.num_live_requests < at_once:
                engine.add_request(waiting.pop())
            for output in engine.step():
                if output.finish_reason == "error":
                    raise RuntimeError(output.error)
                tokens[output.request_id] += output.token_ids
        return list(tokens.values()), engine.stats()


class FewBlocks:
    """An executor that says it has fewer blocks, so that requests preempt one another."""

    def __init__(self, executor: Executor, num_blocks: int) -> None:
        self._executor = executor
        self.capacity = replace(executor.capacity, num_blocks=num_blocks)

    def close(self) -> None:
        """It is not this engine's to close."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)


def same_bits(found: dict[str, Float32Array], expected: Float32Array) -> dict[str, Any]:
    """`==` on the bits; what differs, and by how much at most."""
    different = {}
    for name, logits in found.items():
        rows = (logits.view(np.uint32) != expected.view(np.uint32)).any(axis=1)
        if rows.any():
            most = float(np.abs(logits - expected).max())
            different[name] = f"{int(rows.sum())} of {len(rows)} rows, by up to {most:.3g}"
    finite = bool(np.isfinite(expected).all())
    return {"passed": not different and finite, "different": different, "ways": len(found)}
