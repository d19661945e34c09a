"""Between the projections and attention, in one kernel: the norms of q and k, the rotation, and K
and V into the cache, quantized where it is.

Bytes: all of qkv once, q and the stored K and V once (Llama 3.1 8B, bf16: 12 KiB in, 12 KiB out a
row); the arithmetic is nothing beside that. A program takes a row's query heads, or its K and V
heads, as many as fill 1024 elements: four warps, each thread 16 bytes of x and of its rotation
partner, which lies in the same lines. The sums of the norms run over one head, so their order
depends on the shape alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.executors.gpu.cache import LARGEST, KVCache

ELEMENTS = 1024  # of a program
SMALLEST_ABSMAX = tl.constexpr(2.0**-100)  # heads without information are stored as zeros
ROUNDER = tl.constexpr(1.5 * 2**23)  # adding and subtracting it rounds to an integer, ties to even


def qk_norm_rope_write(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    offset: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    cache: KVCache,
) -> Tensor:
    """q [T, Hq, D], normed and rotated, of qkv [T, (Hq + 2 Hk) * D], in its dtype; K and V are
    written to the cache.

    q_norm, k_norm [D] multiply x / rms(x) as (offset + weight). cos, sin [P, R / 2] float32:
    pairs (i, i + R / 2) of the first R elements of a head turn. positions [T] int32; slots [T]
    int64, block * B + place; a negative one writes nothing. A value that is not finite is stored as
    0 with a key of NaN: rows that see it become NaN, rows that do not, do not. Raises ValueError on
    arguments that do not fit together.
    """
    num_rows, dim, kv_heads = len(qkv), cache.head_dim, cache.num_kv_heads
    heads = qkv.shape[1] // dim - 2 * kv_heads
    _check(qkv, cos, sin, positions, slots, cache, heads)
    q = torch.empty(num_rows, heads, dim, dtype=qkv.dtype, device=qkv.device)
    if not num_rows:
        return q
    padded = max(16, triton.next_power_of_2(dim))
    together = max(1, ELEMENTS // padded)
    stored = cache.tensors
    rope_write_kernel[(num_rows, triton.cdiv(heads, together) + triton.cdiv(kv_heads, together))](
        q,
        qkv,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        cos,
        sin,
        positions,
        slots,
        *stored[:2],
        *(stored[2:] or stored[:2]),
        float(eps),
        float(offset),
        QUERY_HEADS=heads,
        HEADS=kv_heads,
        DIM=dim,
        PADDED=padded,
        HALF=cos.shape[1],
        TOGETHER=together,
        BLOCK=cache.block_size,
        Q_NORM=q_norm is not None,
        K_NORM=k_norm is not None,
        LARGEST=LARGEST.get(cache.format, 0.0),
        INTEGER=cache.format == "int8",
        num_warps=4,
    )
    return q


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def rope_write_kernel(
    q,
    qkv,
    q_norm,
    k_norm,
    cos,
    sin,
    positions,
    slots,
    keys,
    values,
    key_scales,
    value_scales,
    eps,
    offset,
    QUERY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    HALF: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    LARGEST: tl.constexpr,  # 0: stored as it is
    INTEGER: tl.constexpr,
):
    """Grid: rows, then the parts of the query heads and those of the KV heads."""
    QUERY_PARTS: tl.constexpr = (QUERY_HEADS + TOGETHER - 1) // TOGETHER
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    dims = tl.arange(0, PADDED)
    position = tl.load(positions + row)
    row_qkv = qkv + row * ((QUERY_HEADS + 2 * HEADS) * DIM)
    if part < QUERY_PARTS:
        heads = part * TOGETHER + tl.arange(0, TOGETHER)
        mask = (heads < QUERY_HEADS)[:, None] & (dims < DIM)[None, :]
        turned = norm_rotate(
            row_qkv + heads[:, None] * DIM, mask, q_norm, cos, sin, position, eps, offset,
            DIM, PADDED, HALF, Q_NORM,
        )  # fmt: skip
        target = q + (row * QUERY_HEADS + heads[:, None]) * DIM + dims[None, :]
        tl.store(target, turned.to(q.dtype.element_ty), mask=mask)
    else:
        slot = tl.load(slots + row)
        heads = (part - QUERY_PARTS) * TOGETHER + tl.arange(0, TOGETHER)
        mask = (heads < HEADS)[:, None] & (dims < DIM)[None, :]
        own = row_qkv + (QUERY_HEADS + heads[:, None]) * DIM
        key = norm_rotate(
            own, mask, k_norm, cos, sin, position, eps, offset, DIM, PADDED, HALF, K_NORM
        )
        value = tl.load(own + HEADS * DIM + dims[None, :], mask=mask, other=0.0)
        kind = values.dtype.element_ty
        if LARGEST == 0:
            value = value.to(kind)
        value = value.to(tl.float32)
        lost = tl.max((tl.abs(value) < float("inf")).to(tl.int32) ^ 1, 1) > 0
        value = tl.where(lost[:, None], 0.0, value)
        if slot >= 0:
            place = (slot // BLOCK * HEADS + heads) * BLOCK + slot % BLOCK
            target = place[:, None] * DIM + dims[None, :]
            if LARGEST == 0:
                key = tl.where(lost[:, None], float("nan"), key)
                tl.store(keys + target, key.to(kind), mask=mask)
                tl.store(values + target, value.to(kind), mask=mask)
            else:
                broken = tl.max((tl.abs(key) < float("inf")).to(tl.int32) ^ 1, 1) > 0
                key = tl.where(broken[:, None], 0.0, key)
                key, key_scale = quantize(key, LARGEST, INTEGER)
                value, value_scale = quantize(value, LARGEST, INTEGER)
                key_scale = tl.where(lost | broken, float("nan"), key_scale)
                tl.store(keys + target, key.to(kind), mask=mask)
                tl.store(values + target, value.to(kind), mask=mask)
                tl.store(key_scales + place, key_scale, mask=heads < HEADS)
                tl.store(value_scales + place, value_scale, mask=heads < HEADS)


@triton.jit
def norm_rotate(
    x,  # [heads, 1] pointers
    mask,
    norm,
    cos,
    sin,
    position,
    eps,
    offset,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
):
    """[heads, PADDED] float32. Element d and its partner make the pair that turns; elements from
    2 * HALF on stay."""
    dims = tl.arange(0, PADDED)
    partners = tl.where(dims < HALF, dims + HALF, tl.where(dims < 2 * HALF, dims - HALF, dims))
    own = tl.load(x + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    other = tl.load(x + partners[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        scale = 1.0 / tl.sqrt_rn(tl.sum(own * own, 1) / DIM + eps)
        inside = dims < DIM
        weight = tl.load(norm + dims, mask=inside, other=0.0).to(tl.float32) + offset
        partner = tl.load(norm + partners, mask=inside, other=0.0).to(tl.float32) + offset
        own = own * scale[:, None] * weight[None, :]
        other = other * scale[:, None] * partner[None, :]
    turns = dims < 2 * HALF
    angles = position.to(tl.int64) * HALF + tl.where(dims < HALF, dims, dims - HALF)
    c = tl.load(cos + angles, mask=turns, other=1.0)
    s = tl.load(sin + angles, mask=turns, other=0.0)
    s = tl.where(dims < HALF, -s, s)
    # Fused where the rounding of one product is to be skipped, whatever compiles this.
    return tl.fma(other, s[None, :], own * c[None, :])


@triton.jit
def quantize(x, LARGEST: tl.constexpr, INTEGER: tl.constexpr):
    """(x [heads, D] / scale within +-LARGEST, rounded if INTEGER; scale [heads]): one a head."""
    absmax = tl.max(tl.abs(x), 1)
    empty = absmax < SMALLEST_ABSMAX
    divisor = tl.where(empty, 1.0, absmax)
    largest = tl.zeros_like(divisor) + LARGEST
    scale = tl.where(empty, 0.0, tl.div_rn(divisor, largest))
    inverse = tl.where(empty, 0.0, tl.div_rn(largest, divisor))
    scaled = tl.minimum(tl.maximum(x * inverse[:, None], -LARGEST), LARGEST)
    if INTEGER:
        scaled = (scaled + ROUNDER) - ROUNDER
    return scaled, scale


def _check(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    cache: KVCache,
    heads: int,
) -> None:
    if heads < 1 or qkv.shape[1] != (heads + 2 * cache.num_kv_heads) * cache.head_dim:
        raise ValueError(
            f"qkv {tuple(qkv.shape)} for {cache.num_kv_heads} KV heads of {cache.head_dim}"
        )
    if cos.shape != sin.shape or 2 * cos.shape[1] > cache.head_dim:
        raise ValueError(f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)}: [P, R / 2]")
    if positions.dtype != torch.int32 or slots.dtype != torch.int64:
        raise ValueError("positions are int32, slots int64")
    if len(positions) != len(qkv) or len(slots) != len(qkv):
        raise ValueError("one position and one slot a row")
    if any(not x.is_contiguous() for x in (qkv, cos, sin, positions, slots)):
        raise ValueError("qkv, cos, sin, positions and slots are contiguous")
