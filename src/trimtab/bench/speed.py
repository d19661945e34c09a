"""How fast the engine runs a model on this machine: prefill, decode, batched streams.

The measures are those in which CPU runtimes are usually compared:

    decode      127 / (t(P, 128) - t(P, 1)): one stream, prompt P = 128
    prefill N   N / t(N, 1)
    streams B   B * 128 / t(B prompts of 128, 128 each), prefill included
    decode N    32 / t(32 steps of one stream with N tokens in the KV cache)

Prompts are random token ids, fresh each time, greedy, EOS ignored, no prefix cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from trimtab.bench.long_context import decode_rate

if TYPE_CHECKING:
    from trimtab.engine.engine import Engine

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 128


@dataclass(frozen=True)
class Rate:
    """Tokens a second: median, smallest and largest of the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @staticmethod
    def of(samples: Sequence[float]) -> Rate:
        return Rate(statistics.median(samples), min(samples), max(samples), len(samples))


@dataclass
class Subject:
    """One configuration under measurement, and its samples so far."""

    label: str
    engine: Engine
    vocab_size: int
    samples: dict[str, list[float]] = field(default_factory=dict)

    def rates(self) -> dict[str, Rate]:
        return {row: Rate.of(values) for row, values in self.samples.items()}


@dataclass(frozen=True)
class Plan:
    """What to measure. Prompts that do not fit the model's context are refused by the engine."""

    prefill: tuple[int, ...] = (512, 2048)
    streams: tuple[int, ...] = (8, 16)
    contexts: tuple[int, ...] = ()
    rounds: int = 3
    seed: int = 0


class Clock:
    """Runs batches of random prompts on an engine and takes the time."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._serial = 0

    def seconds(self, subject: Subject, num_prompts: int, prompt: int, output: int) -> float:
        """Wall time from submission to the last token of `num_prompts` requests."""
        from trimtab.engine.client import EngineRequest
        from trimtab.engine.sampling_params import SamplingParams

        params = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
        prompts = self._random.integers(0, subject.vocab_size, (num_prompts, prompt)).tolist()
        requests = []
        for ids in prompts:
            self._serial += 1
            requests.append(EngineRequest(f"bench-{self._serial}", ids, params))
        start = time.perf_counter()
        for request in requests:
            subject.engine.add_request(request)
        finished = 0
        while finished < num_prompts:
            for result in subject.engine.step():
                if result.finish_reason == "error":
                    raise RuntimeError(result.error)
                finished += result.finish_reason is not None
        return time.perf_counter() - start


def measure_round(subject: Subject, plan: Plan, clock: Clock) -> None:
    """One pass over every row of the plan; appends to the subject's samples."""

    def add(row: str, tokens_per_s: float) -> None:
        subject.samples.setdefault(row, []).append(tokens_per_s)

    first = clock.seconds(subject, 1, PROMPT_TOKENS, 1)
    whole = clock.seconds(subject, 1, PROMPT_TOKENS, OUTPUT_TOKENS)
    add("decode", (OUTPUT_TOKENS - 1) / max(whole - first, 1e-9))
    for length in plan.prefill:
        add(f"prefill {length}", length / clock.seconds(subject, 1, length, 1))
    for count in plan.streams:
        elapsed = clock.seconds(subject, count, PROMPT_TOKENS, OUTPUT_TOKENS)
        add(f"{count} streams", count * OUTPUT_TOKENS / elapsed)
    for context in plan.contexts:
        add(f"decode {context}", decode_rate(subject.engine.executor, context, plan.seed))


def measure(
    subjects: Sequence[Subject],
    plan: Plan,
    before_round: Callable[[], None] = lambda: None,
) -> None:
    """Rounds are the outer loop, so that a noisy minute hits every subject alike.

    `before_round` runs before each round (the bandwidth of the machine at that moment). One short
    warm-up run per subject comes first and is not counted.
    """
    clock = Clock(plan.seed)
    for subject in subjects:
        clock.seconds(subject, 1, PROMPT_TOKENS, 2)
    for _ in range(plan.rounds):
        before_round()
        for subject in subjects:
            measure_round(subject, plan, clock)
