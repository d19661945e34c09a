"""Sampling on the device, by kernels, without waiting for it: what `SamplingBatch` says, and the
tokens of the native sampler from the same logits (sampling_math.py says how surely).

Steps 1 to 3, where a row asks for them, are batched_sampling.py's. Then, over (chunks, rows):

    scan                          the largest logit; whether all are finite           R V reads
    count (four digits), cut      the k-th largest, where some row filters            4 R V
    race, one or three passes     the winner; of filters whether it survives          1 or 3 R V
    finish                        the token
    mass, gather, score           log-probabilities, where some row wants them        2 R V and more

64 rows of 128,256 float32 logits are 33 MB, which stay in the L2 cache. A row's result does not
depend on the others: a program has one row, and parts are put together in one order.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from trimtab.executors.gpu import sampling_race, sampling_scores, sampling_select
from trimtab.executors.gpu.batched_sampling import adjusted_logits
from trimtab.executors.gpu.ops import DeviceSampling, SampleResult
from trimtab.executors.gpu.sampling_math import CHUNK, LANES

PASSES = 3  # of races over all multiprocessors, where rows filter


def sample(logits: Tensor, batch: DeviceSampling) -> SampleResult:
    """Of contiguous float32 logits [R, V], which are not changed."""
    rows, device = logits.shape[0], logits.device
    result = SampleResult(
        tokens=torch.full((rows,), -1, dtype=torch.int32, device=device),
        logprobs=torch.zeros(rows, device=device),
        top_ids=torch.full((rows, batch.top_width), -1, dtype=torch.int32, device=device),
        top_logprobs=torch.zeros((rows, batch.top_width), device=device),
        target_logprobs=None if batch.targets is None else torch.zeros(rows, device=device),
    )
    if rows == 0:
        return result
    logits = logits.contiguous()
    model = _scan(logits)
    x, scanned = logits, model
    if batch.adjusts:
        x = adjusted_logits(logits, batch).contiguous()
        scanned = _scan(x)
    _choose(x, scanned, model, batch, result.tokens)
    if batch.wants_logprobs or batch.targets is not None:
        _score(logits, model, batch, result)
    return result


def _scan(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(largest, its place, bad) of each chunk: [R, chunks]."""
    rows, vocab = x.shape
    chunks = triton.cdiv(vocab, CHUNK)
    maxima = torch.empty((rows, chunks), device=x.device)
    places = torch.empty((rows, chunks), dtype=torch.int32, device=x.device)
    bad = torch.empty_like(places)
    sampling_select.scan_kernel[(chunks, rows)](
        x, maxima, places, bad, vocab, chunks, CHUNK=CHUNK, num_warps=8
    )
    return maxima, places, bad


def _cut(x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, tokens) [R] before which the first `wanted` [R] tokens of each row rank."""
    rows, vocab = x.shape
    chunks = triton.cdiv(vocab, CHUNK)
    histograms = torch.zeros((4, rows, 256), dtype=torch.int32, device=x.device)
    for digits in range(4):
        sampling_select.count_kernel[(chunks, rows)](
            x, wanted, histograms, vocab, rows, DIGITS=digits, CHUNK=CHUNK, num_warps=8
        )
    cut_logits = torch.empty(rows, device=x.device)
    cut_tokens = torch.empty(rows, dtype=torch.int32, device=x.device)
    sampling_select.cut_kernel[(rows,)](
        x, wanted, histograms, cut_logits, cut_tokens, vocab, rows, CHUNK=CHUNK, num_warps=8
    )
    return cut_logits, cut_tokens


def _choose(
    x: Tensor,
    scanned: tuple[Tensor, Tensor, Tensor],
    model: tuple[Tensor, Tensor, Tensor],
    batch: DeviceSampling,
    tokens: Tensor,
) -> None:
    rows, vocab = x.shape
    chunks = scanned[0].shape[1]
    padded = triton.next_power_of_2(chunks)
    passes = PASSES if batch.filters else 1
    shape = (passes, rows, chunks)
    scores = torch.empty(shape, dtype=torch.float64, device=x.device)
    winners = torch.empty(shape, dtype=torch.int32, device=x.device)
    winner_logits = torch.empty(shape, device=x.device)
    masses = torch.empty_like(scores)
    lanes = torch.empty(shape[1:], dtype=torch.float64, device=x.device)
    parts = (scores, winners, winner_logits, masses, lanes)
    rules = (
        batch.temperature,
        batch.top_k,
        batch.top_p,
        batch.min_p,
        batch.seeds,
        batch.positions,
    )
    if batch.samples:
        cuts = _cut(x, batch.top_k) if batch.filters else (winner_logits, winners)
        for step in range(passes):
            sampling_race.race_kernel[(chunks, rows)](
                x, *scanned, *rules, *cuts, *parts, vocab, rows, chunks,
                PASS=step, FILTERS=batch.filters, PADDED=padded, LANES=LANES,
                num_warps=8, enable_fp_fusion=False,
            )  # fmt: skip
    sampling_race.finish_kernel[(rows,)](
        x, *scanned, *model, *rules, *parts, tokens, vocab, rows, chunks,
        PASSES=passes, SAMPLES=batch.samples, PADDED=padded, LANES=LANES,
        num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip


def _score(
    logits: Tensor,
    model: tuple[Tensor, Tensor, Tensor],
    batch: DeviceSampling,
    result: SampleResult,
) -> None:
    rows, vocab = logits.shape
    chunks, width = model[0].shape[1], batch.top_width
    padded = triton.next_power_of_2(chunks)
    masses = torch.zeros((rows, chunks), dtype=torch.float64, device=logits.device)
    sampling_select.mass_kernel[(chunks, rows)](
        logits, *model, masses, vocab, chunks,
        PADDED=padded, LANES=LANES, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    counts = torch.zeros(rows, dtype=torch.int32, device=logits.device)
    found = torch.empty((rows, max(width, 1)), dtype=torch.int32, device=logits.device)
    if width > 0:
        cuts = _cut(logits, batch.num_logprobs)
        sampling_scores.gather_kernel[(chunks, rows)](
            logits, batch.num_logprobs, *cuts, counts, found, vocab, width,
            CHUNK=CHUNK, num_warps=8,
        )  # fmt: skip
    has_targets = batch.targets is not None
    sampling_scores.score_kernel[(rows,)](
        logits, *model, masses, result.tokens, batch.num_logprobs,
        batch.targets if has_targets else result.tokens, counts, found,
        result.logprobs, result.top_ids, result.top_logprobs,
        result.target_logprobs if has_targets else result.logprobs, vocab, chunks, width,
        HAS_TARGETS=has_targets, TOP=triton.next_power_of_2(width) if width else 0,
        PADDED=padded, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
