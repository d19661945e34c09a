"""Rows to sample from: every parameter, alone and together, over a vocabulary of a real size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.executors.base import Int32Array, SamplingBatch, StepBatch

VOCABULARY = 32_003  # no multiple of anything
ROWS = 24


@dataclass(frozen=True)
class SamplingCase:
    logits: np.ndarray[Any, Any]  # [R, V] float32
    batch: StepBatch

    def on_device(self, device: str) -> tuple[Tensor, Any]:
        """The arguments of `Ops.sample`."""
        from trimtab.executors.gpu.sampling_batch import device_sampling, sampling_arrays
        from trimtab.executors.gpu.staging import Staging

        views, _ = Staging(8 << 20, torch.device(device)).upload(sampling_arrays(self.batch))
        return torch.from_numpy(self.logits).to(device), device_sampling(self.batch, views)


def sampling_cases(seed: int) -> dict[str, SamplingCase]:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal((ROWS, VOCABULARY)) * 3).astype(np.float32)
    tied = logits.copy()
    tied[:, 100:20_000:7] = tied.max(axis=1, keepdims=True)  # thousands of equal candidates
    bad = logits.copy()
    bad[3, 5], bad[7, 0] = np.nan, np.inf

    def case(rows: np.ndarray[Any, Any] = logits, **options: Any) -> SamplingCase:
        return SamplingCase(rows, step_of(sampling_batch(random, **options)))

    return {
        "greedy": case(temperature=(0.0,)),
        "greedy, ties": case(tied, temperature=(0.0,)),
        "temperature": case(temperature=(0.3, 1.0, 2.5)),
        "top-k": case(temperature=(1.0,), top_k=(1, 2, 50, 1000, 0)),
        "top-p": case(temperature=(1.0,), top_p=(0.1, 0.5, 0.95, 1.0)),
        "min-p": case(temperature=(1.3,), min_p=(0.0, 0.02, 0.3)),
        "filters, ties": case(tied, temperature=(0.8,), top_k=(40, 0), top_p=(0.9,)),
        "penalties": case(temperature=(0.9, 0.0), repetition=(1.0, 1.3), penalty=(0.0, 0.7)),
        "bans and masks": case(temperature=(0.9, 0.0), bans=True, masks=True),
        "log-probabilities": case(temperature=(1.0, 0.0), num_logprobs=(-1, 0, 5, 20)),
        "everything": case(
            temperature=(0.7, 1.4, 0.0),
            top_k=(0, 64),
            top_p=(0.8, 1.0, 0.99),
            min_p=(0.0, 0.01),
            repetition=(1.1, 1.0),
            penalty=(0.2, 0.0),
            bans=True,
            masks=True,
            num_logprobs=(3, -1),
        ),
        "not finite": case(bad, temperature=(0.0, 1.0)),
    }


def sampling_batch(
    random: np.random.Generator,
    temperature: Sequence[float] = (1.0,),
    top_k: Sequence[int] = (0,),
    top_p: Sequence[float] = (1.0,),
    min_p: Sequence[float] = (0.0,),
    repetition: Sequence[float] = (1.0,),
    penalty: Sequence[float] = (0.0,),
    bans: bool = False,
    masks: bool = False,
    num_logprobs: Sequence[int] = (-1,),
) -> SamplingBatch:
    """The values of each parameter take turns over the rows."""

    def floats(values: Sequence[float]) -> Any:
        return np.resize(np.array(values, np.float32), ROWS)

    def ints(values: Sequence[int]) -> Int32Array:
        return np.resize(np.array(values, np.int32), ROWS)

    def ragged(wanted: bool, most: int) -> tuple[Int32Array, Int32Array]:
        lengths = random.integers(0, most, ROWS) if wanted else np.zeros(ROWS, np.int64)
        ids = random.integers(0, VOCABULARY, int(lengths.sum())).astype(np.int32)
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), ids

    penalized = any(value != 1 for value in repetition) or any(penalty)
    bias_starts, bias_ids = ragged(bans, 9)
    banned_starts, banned_ids = ragged(bans, 7)
    prompt_starts, prompt_ids = ragged(penalized, 400)
    output_starts, output_ids = ragged(penalized, 200)
    words = -(-VOCABULARY // 32)
    return SamplingBatch(
        temperature=floats(temperature),
        top_k=ints(top_k),
        top_p=floats(top_p),
        min_p=floats(min_p),
        repetition_penalty=floats(repetition),
        presence_penalty=floats(penalty),
        frequency_penalty=floats(penalty),
        seeds=random.integers(0, 1 << 63, ROWS).astype(np.uint64) * np.uint64(2) + np.uint64(1),
        positions=random.integers(1, 100_000, ROWS).astype(np.int32),
        num_logprobs=ints(num_logprobs),
        bias_starts=bias_starts,
        bias_ids=bias_ids,
        bias_values=random.uniform(-5, 5, len(bias_ids)).astype(np.float32),
        banned_starts=banned_starts,
        banned_ids=banned_ids,
        prompt_starts=prompt_starts,
        prompt_ids=prompt_ids,
        output_starts=output_starts,
        output_ids=output_ids,
        mask_rows=ints((-1, 0, 1)) if masks else ints((-1,)),
        mask=random.integers(0, 1 << 32, (2 if masks else 0, words), np.uint32),
    )


def step_of(sampling: SamplingBatch) -> StepBatch:
    """Rows of a step that is only sampled from."""
    starts = np.arange(ROWS + 1, dtype=np.int32)
    return StepBatch(
        token_ids=np.zeros(ROWS, np.int32),
        positions=sampling.positions - np.int32(1),
        seq_starts=starts,
        block_starts=starts,
        block_ids=np.arange(ROWS, dtype=np.int32),
        logit_rows=starts[:-1],
        sampling=sampling,
    )
