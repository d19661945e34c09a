# mypy: disable-error-code="assignment, misc"
"""Products with integers of 4 or 8 bits, weight-only. Tiles and order of sums: gemm_plan.py.

A weight goes from its field of a word to a float in registers, without a conversion: the field is
moved under the exponent of 1.0, v = 1 + u / 2^bits, and one fused multiply-add makes (u - z) s of
it, exactly where s has 16 bits. Then it is rounded to x's dtype, and is the register operand of the
same matrix instruction that a dense product uses: the bits are those of a dense product with the
rounded weights, which is what many rows use (`dequantize_kernel`, then gemm_dense.py).

Bytes of a product: N K / 2 of 4 bits and 2 (3 with zero points) a group. Operations: shift, mask,
multiply-add and half a rounding a weight, which at 8 B weights is about as long as the reading.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.executors.gpu.gemm_parts import last_of_tile, store_tile, sum_splits

FORMS = {"f16": 0, "bf16": 1, "zero": 2, "offset": 3}  # of a PackedMatrix: FORM below


@triton.jit
def _group(scales, others, group, of_n, ROWS, FORM: tl.constexpr):
    """(s, z or offset) of a group of the rows, float32 [n]. 32 bits each: fewer would not take part
    in the copies that run ahead of the loop, and each would be waited for."""
    found = tl.load(scales + group * ROWS + of_n)
    if FORM == 0:
        scale = (found & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        other = (found >> 16).to(tl.float32)
    elif FORM == 1:
        scale = (found << 16).to(tl.float32, bitcast=True)
        other = (found >> 16).to(tl.float32)
    else:
        scale = found
        other = tl.load(others + group * ROWS + of_n)
    return scale, other


@triton.jit
def _weights(
    words, scale, other, ones,
    FIELD: tl.constexpr, BITS: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """float32 [n, 16]: field FIELD of each word as weights. `ones`: the bits of 1.0, [n], read from
    memory so that the compiler does not know them: mask and exponent are then one instruction."""
    # Two fields of 4 bits share each shift: one lands at bit 16, the other at bit 12.
    place: tl.constexpr = 15 if BITS == 8 else 16 - FIELD % 2 * 4
    shift: tl.constexpr = place - BITS * FIELD
    if shift > 0:
        moved = words << shift
    elif shift < 0:
        moved = words >> -shift
    else:
        moved = words
    bits = (moved & (((1 << BITS) - 1) << place)) | ones[:, None]
    v = bits.to(tl.float32, bitcast=True)  # 1 + u / unit
    unit: tl.constexpr = 1 << (23 - place)
    wide = (scale * unit)[:, None]
    if FORM == 3:
        return tl.fma(v - 1.0, wide, other[:, None])
    if FORM < 2:  # exact
        return tl.fma(v, wide, (-scale * (unit + other))[:, None])
    return (v - (1.0 + other * (1.0 / unit))[:, None]) * wide


@triton.jit
def _tile(
    words, scale, other, scales, others, k, of_n, ROWS, ones, dtype: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """[n, 512 / BITS] weights of a tile of words [n, 16], whose first column is k; scale, other: of
    that column's group."""
    CHUNK: tl.constexpr = 512 // BITS
    parts = ()
    for field in tl.static_range(32 // BITS):
        # Groups that begin within the chunk.
        if field > 0 and GROUP % CHUNK != 0 and (CHUNK % GROUP != 0 or field * 16 % GROUP == 0):
            group = (k + field * 16) // GROUP
            scale, other = _group(scales, others, group, of_n, ROWS, FORM)
        parts += (_weights(words, scale, other, ones, field, BITS, FORM).to(dtype),)
    # Neighbours in registers: no data moves.
    low = tl.join(tl.join(parts[0], parts[1]), tl.join(parts[2], parts[3]))
    if BITS == 8:
        tile = low.permute(0, 3, 2, 1)
    else:
        high = tl.join(tl.join(parts[4], parts[5]), tl.join(parts[6], parts[7]))
        tile = tl.join(low, high).permute(0, 4, 3, 2, 1)
    return tile.reshape(words.shape[0], CHUNK)


@triton.jit(do_not_specialize=["num_rows"])
def packed_kernel(
    x, words, scales, others, ones, bias, y, partials, counters,
    num_rows, N, K, CHUNKS, ROWS, SPLIT_COLUMNS,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BITS: tl.constexpr,
    GROUP: tl.constexpr, FORM: tl.constexpr, EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y [num_rows, N] = x [num_rows, K] W^T (+ bias [N]); grid (tiles, SPLITS). BLOCK_N is 64."""
    CHUNK: tl.constexpr = 512 // BITS
    tile, split = tl.program_id(0), tl.program_id(1)
    num_n = tl.cdiv(N, BLOCK_N)
    n = tile % num_n
    row, of_word, of_k = tl.arange(0, BLOCK_N), tl.arange(0, 16), tl.arange(0, CHUNK)
    of_n = n * BLOCK_N + row
    of_m = tile // num_n * BLOCK_M + tl.arange(0, BLOCK_M)
    x_rows = x + tl.minimum(of_m, num_rows - 1).to(tl.int64)[None, :] * K + of_k[:, None]
    panel = words + n.to(tl.int64) * CHUNKS * (BLOCK_N * 16) + row[:, None] * 16 + of_word[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first = split * SPLIT_COLUMNS
    ones_of_rows = tl.load(ones + row)
    for k in range(first, tl.minimum(first + SPLIT_COLUMNS, K), CHUNK):
        packed = tl.load(panel + k // CHUNK * (BLOCK_N * 16))
        scale, other = _group(scales, others, k // GROUP, of_n, ROWS, FORM)
        if EVEN_K:
            x_tile = tl.load(x_rows + k)
        else:
            x_tile = tl.load(x_rows + k, mask=of_k[:, None] < K - k, other=0.0)
        w_tile = _tile(
            packed, scale, other, scales, others, k, of_n, ROWS, ones_of_rows, x_tile.dtype,
            BITS, GROUP, FORM,
        )  # fmt: skip
        acc = tl.dot(w_tile, x_tile, acc, input_precision=PRECISION)
    if SPLITS > 1:
        if not last_of_tile(acc, partials, counters, tile, split, SPLITS):
            return
        acc = sum_splits(partials, counters, tile, BLOCK_N, BLOCK_M, SPLITS)
    store_tile(y, bias, acc, of_n, of_m, N, num_rows, HAS_BIAS)


@triton.jit
def dequantize_kernel(
    words, scales, others, ones, out, N, K, CHUNKS, ROWS,
    BLOCK_N: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """out [N, K]: the weights as packed_kernel rounds them; grid (N / 64, CHUNKS)."""
    CHUNK: tl.constexpr = 512 // BITS
    n, chunk = tl.program_id(0), tl.program_id(1)
    row, of_word = tl.arange(0, BLOCK_N), tl.arange(0, 16)
    of_n = n * BLOCK_N + row
    place = (n.to(tl.int64) * CHUNKS + chunk) * (BLOCK_N * 16)
    packed = tl.load(words + place + row[:, None] * 16 + of_word[None, :])
    k = chunk * CHUNK
    scale, other = _group(scales, others, k // GROUP, of_n, ROWS, FORM)
    weights = _tile(
        packed, scale, other, scales, others, k, of_n, ROWS, tl.load(ones + row),
        out.dtype.element_ty, BITS, GROUP, FORM,
    )  # fmt: skip
    of_k = k + tl.arange(0, CHUNK)
    places = out + of_n.to(tl.int64)[:, None] * K + of_k[None, :]
    tl.store(places, weights, mask=(of_n[:, None] < N) & (of_k[None, :] < K))
