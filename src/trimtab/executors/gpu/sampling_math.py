"""Weights and noise of tokens (device functions): those of native/kernels/sampling_kernels.cpp and
native/core/sampler_race.cpp.

Weights are the same bits as the native ones: float32 operations, each rounded, so kernels that use
them are compiled without contraction (`enable_fp_fusion=False`). Noise is the same 52 bits; its two
logarithms are those of the device, in float64, a few units of the last place from the host's. The
token can differ only where two scores lie closer than that: about one choice in 10^13.

A chunk is 4,096 tokens: 64 blocks of 64, in each 4 groups of 16 tokens, in each 4 quads that share
a counter of Philox. Element q of a vector stands for quad q % 4 of block q // 4; the vectors of the
4 groups and 4 places in a quad are separate.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = 4096
LANES = 256


@triton.jit
def weight_of(x, largest, temperature):
    """exp((x - largest) / temperature) of x <= largest; 0 below exp(-87)."""
    d = tl.div_rn(x - largest, temperature)
    clamped = tl.maximum(d, -87.0)
    shifted = clamped * 1.44269504088896341 + 12582912.0  # 1.5 * 2^23: to an integer
    n = shifted - 12582912.0
    r = (clamped - n * 0.693359375) + n * 2.12194440e-4
    p = r * 0.0001984127011382952 + 0.0013888889225199819
    p = p * r + 0.008333333767950535
    p = p * r + 0.0416666679084301
    p = p * r + 0.1666666716337204
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    exponent = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    scale = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(d > -87.0, p * scale, 0.0)


@triton.jit
def philox(position, quad, draw, seed):
    """Philox4x32-10 of the counter (position, quad, draw, 0): four uint32."""
    c1 = quad.to(tl.uint32)
    c0 = position.to(tl.uint32) + c1 * 0
    c2 = c1 * 0 + draw
    c3 = c1 * 0
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        a = tl.full(c0.shape, 0xD2511F53, tl.uint32)
        b = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
        high0, low0 = tl.umulhi(c0, a), c0 * a
        high1, low1 = tl.umulhi(c2, b), c2 * b
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += tl.full((), 0x9E3779B9, tl.uint32)
        k1 += tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def gumbel(high, low):
    """float64 noise of 32 and 20 random bits. 1 - v is exact, so log1p(-v) is its logarithm."""
    bits = (high.to(tl.int64) << 20) | (low.to(tl.int64) >> 12)
    v = (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16
    return -tl.log(-tl.log(1.0 - v))


@triton.jit
def noise_of(seed, position, token):
    """Of one token (a vector of one element, summed)."""
    quad = token // 4 + tl.arange(0, 1)
    a0, a1, a2, a3 = philox(position, quad, 0, seed)
    b0, b1, b2, b3 = philox(position, quad, 1, seed)
    place = token % 4
    high = tl.where(place == 0, a0, tl.where(place == 1, a1, tl.where(place == 2, a2, a3)))
    low = tl.where(place == 0, b0, tl.where(place == 1, b1, tl.where(place == 2, b2, b3)))
    return tl.sum(gumbel(high, low), axis=0)


@triton.jit
def load_quads(logits, chunk, group, V, LANES: tl.constexpr):
    """(first token of each quad [256], its four logits): of one of the 4 groups of a chunk."""
    lane = tl.arange(0, LANES)
    token = chunk * (LANES * 16) + lane // 4 * 64 + group * 16 + lane % 4 * 4
    places = token[:, None] + tl.arange(0, 4)[None, :]
    x = tl.load(logits + places, mask=places < V, other=float("-inf"))
    even, odd = tl.split(x.reshape(LANES, 2, 2))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return token, x0, x1, x2, x3


@triton.jit
def ranks_before(x, token, pivot, pivot_token):
    return (x > pivot) | ((x == pivot) & (token < pivot_token))


@triton.jit
def better(score, token, best, best_token):
    return (score > best) | ((score == best) & (token < best_token))
