"""Who wins: the race of Gumbel noise among the tokens that survive top-k, top-p and min-p.

Nothing is sorted. Whoever wins among a superset of the survivors, and survives, wins among the
survivors. So the first race is among what top-k leaves; its winner is asked whether it lies inside
top-p, by the mass of the tokens before it, and if not, the race goes on among those alone: they
hold all survivors. Each pass answers the question and runs the next race in one reading.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.executors.gpu.sampling_math import (
    better,
    gumbel,
    load_quads,
    noise_of,
    philox,
    ranks_before,
    weight_of,
)
from trimtab.executors.gpu.sampling_select import summary


@triton.jit
def _enter(
    x, token, weight, high, low, rules, best, best_token, best_logit,
):  # fmt: skip
    """The best of a vector of tokens against the best so far, each lane by itself."""
    largest, temperature, min_p, cut, cut_token = rules
    inside = ranks_before(x, token, cut, cut_token) & (weight >= min_p) & (weight > 0.0)
    score = tl.div_rn(x - largest, temperature).to(tl.float64) + gumbel(high, low)
    wins = inside & better(score, token, best, best_token)
    return (
        tl.where(wins, score, best),
        tl.where(wins, token, best_token),
        tl.where(wins, x, best_logit),
    )


@triton.jit
def race_chunk(logits, chunk, V, rules, seed, position, bound, best, best_token, best_logit,
               LANES: tl.constexpr):  # fmt: skip
    """(the chunk's best score, its token and logit; mass of the tokens inside the cut, added in
    float64, and as `chunk_mass` adds). Nobody with noise above weight * bound can win."""
    largest, temperature, _, cut, cut_token = rules
    zero = tl.zeros((LANES,), tl.float32)
    s0, s1, s2, s3 = zero, zero, zero, zero
    mass = zero.to(tl.float64)
    scores = mass + best
    tokens = tl.zeros((LANES,), tl.int32) + best_token
    winners = zero + best_logit
    for group in tl.static_range(4):
        token, x0, x1, x2, x3 = load_quads(logits, chunk, group, V, LANES)
        w0 = weight_of(x0, largest, temperature)
        w1 = weight_of(x1, largest, temperature)
        w2 = weight_of(x2, largest, temperature)
        w3 = weight_of(x3, largest, temperature)
        s0, s1, s2, s3 = s0 + w0, s1 + w1, s2 + w2, s3 + w3
        mass += tl.where(ranks_before(x0, token, cut, cut_token), w0, 0.0).to(tl.float64)
        mass += tl.where(ranks_before(x1, token + 1, cut, cut_token), w1, 0.0).to(tl.float64)
        mass += tl.where(ranks_before(x2, token + 2, cut, cut_token), w2, 0.0).to(tl.float64)
        mass += tl.where(ranks_before(x3, token + 3, cut, cut_token), w3, 0.0).to(tl.float64)
        h0, h1, h2, h3 = philox(position, token // 4, 0, seed)
        may = (h0 >> 8).to(tl.float32) < w0 * bound
        may = may | ((h1 >> 8).to(tl.float32) < w1 * bound)
        may = may | ((h2 >> 8).to(tl.float32) < w2 * bound)
        may = may | ((h3 >> 8).to(tl.float32) < w3 * bound)
        if tl.max(may.to(tl.int32), axis=0) > 0:
            l0, l1, l2, l3 = philox(position, token // 4, 1, seed)
            scores, tokens, winners = _enter(x0, token, w0, h0, l0, rules, scores, tokens, winners)
            scores, tokens, winners = _enter(
                x1, token + 1, w1, h1, l1, rules, scores, tokens, winners
            )
            scores, tokens, winners = _enter(
                x2, token + 2, w2, h2, l2, rules, scores, tokens, winners
            )
            scores, tokens, winners = _enter(
                x3, token + 3, w3, h3, l3, rules, scores, tokens, winners
            )
    score, winner, logit = _best(scores, tokens, winners)
    lanes = (s0.to(tl.float64) + s1.to(tl.float64)) + (s2.to(tl.float64) + s3.to(tl.float64))
    return score, winner, logit, tl.sum(mass, axis=0), tl.sum(lanes, axis=0)


@triton.jit
def _best(scores, tokens, logits):
    """The largest score, of equal ones the smallest token."""
    score = tl.max(scores, axis=0)
    token = tl.min(tl.where(scores == score, tokens, 2147483647), axis=0)
    chosen = (scores == score) & (tokens == token)
    return score, token, tl.max(tl.where(chosen, logits, float("-inf")), axis=0)


@triton.jit
def _opening(seed, position, likeliest):
    """(score of the likeliest token, which always takes part; a bound of the noise of others: its
    upper 24 bits lie below weight * bound)."""
    score = noise_of(seed, position, likeliest)
    return score, (tl.exp(-score) * 16777216.0 * 1.0002).to(tl.float32)


@triton.jit
def _winner(scores, tokens, logits, row, CHUNKS, PADDED: tl.constexpr):
    """Of the parts of one pass."""
    of_c = tl.arange(0, PADDED)
    mask = of_c < CHUNKS
    place = row * CHUNKS + of_c
    return _best(
        tl.load(scores + place, mask=mask, other=float("-inf")),
        tl.load(tokens + place, mask=mask, other=2147483647),
        tl.load(logits + place, mask=mask, other=float("-inf")),
    )


@triton.jit
def _sum(parts, row, CHUNKS, PADDED: tl.constexpr):
    of_c = tl.arange(0, PADDED)
    return tl.sum(tl.load(parts + row * CHUNKS + of_c, mask=of_c < CHUNKS, other=0.0), axis=0)


@triton.jit
def _chain(
    scores, tokens, logits, masses, lanes, row, ROWS, CHUNKS, top_k, top_p, V,
    PASSES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """(the winner after so many passes and its logit; whether it survives; the mass that a token's
    predecessors must stay below)."""
    _, winner, logit = _winner(scores, tokens, logits, row, CHUNKS, PADDED)
    filtered = (top_k >= 1) & (top_k < V)
    total = tl.where(filtered, _sum(masses, row, CHUNKS, PADDED), _sum(lanes, row, CHUNKS, PADDED))
    target = top_p.to(tl.float64) * total
    survives = top_p >= 1.0
    for step in tl.static_range(1, PASSES):
        of_pass = step * ROWS * CHUNKS
        if not survives:  # else the pass left nothing
            survives = _sum(masses + of_pass, row, CHUNKS, PADDED) < target
            _, other, other_logit = _winner(
                scores + of_pass, tokens + of_pass, logits + of_pass, row, CHUNKS, PADDED
            )
            winner = tl.where(survives, winner, other)
            logit = tl.where(survives, logit, other_logit)
    return winner, logit, survives, target


@triton.jit
def race_kernel(
    x, maxima, places, bad, temperatures, top_ks, top_ps, min_ps, seeds, positions,
    cut_logits, cut_tokens, scores, tokens, logits, masses, lanes, V, ROWS, CHUNKS,
    PASS: tl.constexpr, FILTERS: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Pass PASS over every row that samples: parts of it for each chunk."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    temperature, top_k = tl.load(temperatures + row), tl.load(top_ks + row)
    largest, likeliest, usable = summary(maxima, places, bad, row, CHUNKS, PADDED)
    if (temperature == 0.0) | (top_k == 1) | (not usable):
        return
    cut, cut_token = float("-inf"), 2147483647
    if FILTERS and PASS == 0:
        cut, cut_token = tl.load(cut_logits + row), tl.load(cut_tokens + row)
    if PASS > 0:
        top_p = tl.load(top_ps + row)
        cut_token, cut, survives, _ = _chain(
            scores, tokens, logits, masses, lanes, row, ROWS, CHUNKS, top_k, top_p, V, PASS, PADDED
        )
        if survives:
            return
    min_p, seed = tl.load(min_ps + row), tl.load(seeds + row)
    position = tl.load(positions + row)
    best, bound = _opening(seed, position, likeliest)
    rules = (largest, temperature, min_p, cut, cut_token)
    score, token, logit, mass, lane = race_chunk(
        x + row.to(tl.int64) * V, chunk, V, rules, seed, position, bound,
        best, likeliest, largest, LANES,
    )  # fmt: skip
    out = (PASS * ROWS + row) * CHUNKS + chunk
    tl.store(scores + out, score)
    tl.store(tokens + out, token)
    tl.store(logits + out, logit)
    tl.store(masses + out, mass)
    if PASS == 0:
        tl.store(lanes + out, lane)


@triton.jit
def finish_kernel(
    x, maxima, places, bad, model_maxima, model_places, model_bad,
    temperatures, top_ks, top_ps, min_ps, seeds, positions,
    scores, tokens, logits, masses, lanes, chosen, V, ROWS, CHUNKS,
    PASSES: tl.constexpr, SAMPLES: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The token of each row, -1 where there is none. Few rows are left with a question after the
    passes; the one program of such a row goes on."""
    row = tl.program_id(0)
    largest, token, usable = summary(maxima, places, bad, row, CHUNKS, PADDED)
    _, _, model_usable = summary(model_maxima, model_places, model_bad, row, CHUNKS, PADDED)
    if SAMPLES:
        temperature, top_k = tl.load(temperatures + row), tl.load(top_ks + row)
        if usable & (temperature != 0.0) & (top_k != 1):
            likeliest = token
            top_p, min_p = tl.load(top_ps + row), tl.load(min_ps + row)
            seed, position = tl.load(seeds + row), tl.load(positions + row)
            token, logit, survives, target = _chain(
                scores, tokens, logits, masses, lanes, row, ROWS, CHUNKS, top_k, top_p, V,
                PASSES, PADDED,
            )  # fmt: skip
            score, bound = _opening(seed, position, likeliest)
            while not survives:
                rules = (largest, temperature, min_p, logit, token)
                mass = tl.full((), 0.0, tl.float64)
                best, other, other_logit = score, likeliest, largest
                for chunk in range(CHUNKS):
                    best, other, other_logit, part, _lane = race_chunk(
                        x + row.to(tl.int64) * V, chunk, V, rules, seed, position, bound,
                        best, other, other_logit, LANES,
                    )  # fmt: skip
                    mass += part
                survives = mass < target
                token = tl.where(survives, token, other)
                logit = tl.where(survives, logit, other_logit)
    tl.store(chosen + row, tl.where(usable & model_usable, token, -1))
