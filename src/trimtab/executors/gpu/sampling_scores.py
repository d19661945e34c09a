"""Log-probabilities of the model's own logits, and the most likely tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.executors.gpu.sampling_math import ranks_before
from trimtab.executors.gpu.sampling_select import summary


@triton.jit
def gather_kernel(
    logits, wanted, cut_logits, cut_tokens, counts, found, V, WIDTH, CHUNK: tl.constexpr
):
    """Puts the tokens before the cut of each row into found [rows, WIDTH], in no order."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    if tl.load(wanted + row) < 1:
        return
    cut, cut_token = tl.load(cut_logits + row), tl.load(cut_tokens + row)
    of_v = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * V + of_v, mask=of_v < V, other=float("-inf"))
    inside = (x > float("-inf")) & ranks_before(x, of_v, cut, cut_token)
    number = tl.sum(inside.to(tl.int32), axis=0)
    if number > 0:
        first = tl.atomic_add(counts + row, number)  # whose order the ranking removes
        place = first + tl.cumsum(inside.to(tl.int32), axis=0) - 1
        tl.store(found + row * WIDTH + place, of_v, mask=inside & (place < WIDTH))


@triton.jit
def score_kernel(
    x, maxima, places, bad, masses, chosen, num_logprobs, targets, counts, found,
    logprobs, top_ids, top_logprobs, target_logprobs, V, CHUNKS, WIDTH,
    HAS_TARGETS: tl.constexpr, TOP: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Of each row: the log-probabilities of its token, its target and its most likely tokens, the
    last ordered. TOP: a power of two, at least WIDTH; 0: none are wanted."""
    row = tl.program_id(0)
    largest, _, usable = summary(maxima, places, bad, row, CHUNKS, PADDED)
    token, wanted = tl.load(chosen + row), tl.load(num_logprobs + row)
    of_row = x + row.to(tl.int64) * V
    of_c = tl.arange(0, PADDED)
    parts = tl.load(masses + row * CHUNKS + of_c, mask=of_c < CHUNKS, other=0.0)
    log_sum = tl.log(tl.where(usable, tl.sum(parts, axis=0), 1.0))
    top = largest.to(tl.float64)
    if HAS_TARGETS:
        target = tl.load(targets + row)
        logit = tl.load(of_row + tl.maximum(target, 0)).to(tl.float64)
        score = tl.where(usable, ((logit - top) - log_sum).to(tl.float32), float("nan"))
        tl.store(target_logprobs + row, tl.where(target >= 0, score, 0.0))
    given = (token >= 0) & (wanted >= 0)
    logit = tl.load(of_row + tl.maximum(token, 0)).to(tl.float64)
    tl.store(logprobs + row, tl.where(given, ((logit - top) - log_sum).to(tl.float32), 0.0))
    if TOP > 0:
        place = tl.arange(0, TOP)
        out = row * WIDTH + place
        tl.store(top_ids + out, tl.full((TOP,), -1, tl.int32), mask=place < WIDTH)
        tl.store(top_logprobs + out, tl.zeros((TOP,), tl.float32), mask=place < WIDTH)
        tl.debug_barrier()
        number = tl.where(given, tl.minimum(tl.load(counts + row), wanted), 0)
        ids = tl.load(found + out, mask=place < number, other=0)
        values = tl.load(of_row + ids)
        rank = tl.zeros((TOP,), tl.int32)
        for other in range(number):
            other_id = tl.load(found + row * WIDTH + other)
            other_value = tl.load(of_row + other_id)
            before = (other_value > values) | ((other_value == values) & (other_id < ids))
            rank += before.to(tl.int32)
        scores = ((values.to(tl.float64) - top) - log_sum).to(tl.float32)
        tl.store(top_ids + row * WIDTH + rank, ids, mask=place < number)
        tl.store(top_logprobs + row * WIDTH + rank, scores, mask=place < number)
