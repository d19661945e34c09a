"""What the sampler finds out about rows of logits: their largest, the k-th largest, their mass.

Grids are (chunks, rows): a row's chunks lie on many multiprocessors, so one row of 150,000 logits
takes as long as it takes to read 16 KiB. Each program leaves its part; whoever needs the row puts
the parts together, in one order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.executors.gpu.sampling_math import load_quads, weight_of


@triton.jit
def scan_kernel(logits, maxima, places, bad, V, CHUNKS, CHUNK: tl.constexpr):
    """Of each chunk: the largest logit, its first place, whether one is NaN or +inf."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    of_v = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row.to(tl.int64) * V + of_v, mask=of_v < V, other=float("-inf"))
    largest = tl.max(x, axis=0)
    out = row * CHUNKS + chunk
    tl.store(maxima + out, largest)
    tl.store(places + out, tl.min(tl.where(x == largest, of_v, 2147483647), axis=0))
    tl.store(bad + out, tl.max(tl.where(x < float("inf"), 0, 1), axis=0))


@triton.jit
def summary(maxima, places, bad, row, CHUNKS, PADDED: tl.constexpr):
    """(largest logit, its first place, whether the row can be sampled) of scanned chunks."""
    of_c = tl.arange(0, PADDED)
    mask = of_c < CHUNKS
    found = tl.load(maxima + row * CHUNKS + of_c, mask=mask, other=float("-inf"))
    largest = tl.max(found, axis=0)
    first = tl.load(places + row * CHUNKS + of_c, mask=mask, other=2147483647)
    place = tl.min(tl.where(found == largest, first, 2147483647), axis=0)
    broken = tl.max(tl.load(bad + row * CHUNKS + of_c, mask=mask, other=0), axis=0)
    return largest, place, (broken == 0) & (largest > float("-inf"))


@triton.jit
def ordered_key(x):
    """uint32 in the order of the floats; -0 is 0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32) ^ 0x80000000


@triton.jit
def _digit(histogram, left):
    """(the digit under which the `left`-th largest lies, how many of it are still to find)."""
    digits = tl.arange(0, 256)
    counts = tl.load(histogram + digits)
    above = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0)
    here = (above < left) & (above + counts >= left)
    return tl.sum(tl.where(here, digits, 0), axis=0), left - tl.sum(
        tl.where(here, above, 0), axis=0
    )


@triton.jit
def _prefix(histograms, row, ROWS, wanted, DIGITS: tl.constexpr):
    """(the first DIGITS digits of the wanted-th largest key, how many with them are wanted)."""
    prefix = tl.full((), 0, tl.uint32)
    left = wanted
    for step in tl.static_range(DIGITS):
        digit, left = _digit(histograms + (step * ROWS + row) * 256, left)
        prefix = (prefix << 8) | digit.to(tl.uint32)
    return prefix, left


@triton.jit
def count_kernel(logits, wanted, histograms, V, ROWS, DIGITS: tl.constexpr, CHUNK: tl.constexpr):
    """Counts digit DIGITS (of 4, the highest first) of the keys that agree with the wanted-th
    largest so far. Rows that want less than 1 or at least V are left out."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    k = tl.load(wanted + row)
    if (k < 1) | (k >= V):
        return
    of_v = chunk * CHUNK + tl.arange(0, CHUNK)
    mask = of_v < V
    x = tl.load(logits + row.to(tl.int64) * V + of_v, mask=mask, other=float("-inf"))
    key = ordered_key(x)
    if DIGITS > 0:
        prefix, _ = _prefix(histograms, row, ROWS, k, DIGITS)
        mask = mask & ((key >> (32 - 8 * DIGITS)) == prefix)
    digit = ((key >> (24 - 8 * DIGITS)) & 0xFF).to(tl.int32)
    counts = tl.histogram(digit, 256, mask=mask)
    out = histograms + (DIGITS * ROWS + row) * 256 + tl.arange(0, 256)
    tl.atomic_add(out, counts, mask=counts > 0)  # integers: no order


@triton.jit
def cut_kernel(logits, wanted, histograms, cut_logits, cut_tokens, V, ROWS, CHUNK: tl.constexpr):
    """The wanted-th token in candidate order, as (logit, token + 1): who ranks before that is among
    the first. (-inf, the largest integer) where every token is."""
    row = tl.program_id(0)
    k = tl.load(wanted + row)
    cut, token = float("-inf"), 2147483647
    if (k >= 1) & (k < V):
        key, left = _prefix(histograms, row, ROWS, k, 4)
        bits = (key ^ 0x80000000).to(tl.int32)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        cut = bits.to(tl.float32, bitcast=True)
        equal = tl.load(histograms + (3 * ROWS + row) * 256 + (key & 0xFF).to(tl.int32))
        if left < equal:  # not all that are equal: the first of them
            first = 0
            seen = 0
            while seen < left:
                of_v = first + tl.arange(0, CHUNK)
                x = tl.load(logits + row.to(tl.int64) * V + of_v, mask=of_v < V, other=float("nan"))
                ranks = seen + tl.cumsum((x == cut).to(tl.int32), axis=0)
                last = (x == cut) & (ranks == left)
                token = tl.minimum(token, tl.min(tl.where(last, of_v + 1, 2147483647), axis=0))
                seen = tl.max(ranks, axis=0)
                first += CHUNK
    tl.store(cut_logits + row, cut)
    tl.store(cut_tokens + row, token)


@triton.jit
def chunk_mass(logits, chunk, V, largest, temperature, LANES: tl.constexpr):
    """float64: 16 float32 lanes within a block of 64, as the native sampler adds."""
    s0 = tl.zeros((LANES,), tl.float32)
    s1, s2, s3 = s0, s0, s0
    for group in tl.static_range(4):
        _, x0, x1, x2, x3 = load_quads(logits, chunk, group, V, LANES)
        s0 += weight_of(x0, largest, temperature)
        s1 += weight_of(x1, largest, temperature)
        s2 += weight_of(x2, largest, temperature)
        s3 += weight_of(x3, largest, temperature)
    total = (s0.to(tl.float64) + s1.to(tl.float64)) + (s2.to(tl.float64) + s3.to(tl.float64))
    return tl.sum(total, axis=0)


@triton.jit
def mass_kernel(
    logits, maxima, places, bad, masses, V, CHUNKS, PADDED: tl.constexpr, LANES: tl.constexpr
):
    """Of each chunk of usable rows: the mass of its tokens at temperature 1."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    largest, _, usable = summary(maxima, places, bad, row, CHUNKS, PADDED)
    if not usable:
        return
    mass = chunk_mass(logits + row.to(tl.int64) * V, chunk, V, largest, 1.0, LANES)
    tl.store(masses + row * CHUNKS + chunk, mass)
