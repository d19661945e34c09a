"""Paged attention of a ragged batch: which kernel takes which sequence.

Sequences of few rows go to the split kernel, the rest to the flash kernel; both give the same bits,
so the choice may look at the load. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.executors.gpu.attention_flash import flash_kernel
from trimtab.executors.gpu.attention_split import combine_kernel, split_kernel
from trimtab.executors.gpu.attention_tiles import PARTITION, Tile, num_programs, tiles_of
from trimtab.executors.gpu.cache import KVCache

LOG2_E = 1.4426950408889634
SCRATCH_BYTES = 256 << 20  # of partial results in batches that the flash kernel serves too
_TRITON = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


@dataclass(frozen=True)
class _Batch:
    """The arguments of `attention`, checked."""

    q: Tensor
    cache: KVCache
    seq_starts: Tensor
    positions: Tensor
    block_tables: Tensor
    scale: float
    window: int
    softcap: float

    @property
    def num_seqs(self) -> int:
        return int(self.seq_starts.shape[0]) - 1

    @property
    def group(self) -> int:
        return int(self.q.shape[1]) // self.cache.num_kv_heads

    @property
    def factors(self) -> tuple[float, float]:
        """Of exp2's argument; of tanh's, as exp2 takes it."""
        if self.softcap:
            return self.softcap * LOG2_E, 2 * LOG2_E * self.scale / self.softcap
        return self.scale * LOG2_E, 0.0


def attention(
    q: Tensor,
    cache: KVCache,
    seq_starts: Tensor,
    positions: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int,
    softcap: float,
    max_rows: int,
    max_context: int,
    max_partitions: int = 0,
    programs: int = 0,
) -> Tensor:
    """[T, Hq * D] of q [T, Hq, D], in its dtype. Row t of sequence s sees positions 0 ..
    positions[t] of it, the last `window` of them if that is not 0, as the cache stores them.

    seq_starts [S + 1] int32; positions [T] int32, consecutive within a sequence; block_tables [S,
    M] int32, of which only entries of positions that some row sees are read. No sequence has more
    than `max_rows` rows, none a position of `max_context` or above; those without rows cost
    nothing. Rows behind seq_starts[S] are not written. For a captured graph both are the largest
    that may come; kernels read the true ones on the device.

    Partial results take max_partitions * Hk * rows * group * (D + 2) * 4 bytes, where
    `max_partitions` bounds the sum over sequences of the partitions of 256 positions that their
    contexts reach into; 0: S * ceil(max_context / 256). `programs` of the split kernel, 0: as many
    as the device holds. Raises ValueError on arguments that do not fit together.
    """
    batch = _Batch(q, cache, seq_starts, positions, block_tables, scale, window, softcap)
    _check(batch)
    out = torch.empty_like(q)
    num_rows, num_seqs, group = len(q), batch.num_seqs, batch.group
    if not num_rows or not num_seqs or max_rows <= 0:
        return out.flatten(1)
    products = _products(q, cache)
    tiles = tiles_of(cache.head_dim, products, cache.keys.dtype)
    if group > tiles.split.rows:
        raise ValueError(f"attention kernels take up to {tiles.split.rows} heads a KV head")
    reach = -(-max_context // PARTITION)
    if window:
        reach = min(reach, -(-(window + max_rows) // PARTITION) + 1)
    partitions = min(max_partitions or num_seqs * reach, num_seqs * reach)
    row_bytes = partitions * cache.num_kv_heads * group * (cache.head_dim + 2) * 4
    split_tile, split_rows = tiles.split, max_rows
    if max_rows * group > tiles.wide_split.rows:
        alike = num_rows == num_seqs * max_rows  # no sequence with few rows
        affordable = 0 if alike else SCRATCH_BYTES // row_bytes
        split_rows = min(tiles.split.rows // group, affordable)
        _flash(batch, out, tiles.flash, products, split_rows)
    elif max_rows * group > tiles.split.rows:
        split_tile = tiles.wide_split
    if split_rows:
        programs = programs or num_programs(q)
        _split(batch, out, split_tile, products, split_rows, partitions, programs)
    return out.flatten(1)


def _flash(batch: _Batch, out: Tensor, tile: Tile, products: torch.dtype, split_rows: int) -> None:
    together = tile.rows // batch.group
    grid = (batch.cache.num_kv_heads, len(batch.q) // together + batch.num_seqs)
    flash_kernel[grid](
        out,
        *_inputs(batch),
        batch.num_seqs,
        batch.block_tables.stride(0),
        batch.window,
        split_rows,
        *batch.factors,
        **_constants(batch, tile, products),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _split(
    batch: _Batch,
    out: Tensor,
    tile: Tile,
    products: torch.dtype,
    split_rows: int,
    partitions: int,
    programs: int,
) -> None:
    cache, group, device = batch.cache, batch.group, out.device
    items = (partitions * cache.num_kv_heads, split_rows * group)
    partials = torch.empty(*items, cache.head_dim, dtype=torch.float32, device=device)
    summaries = torch.empty(*items, 2, dtype=torch.float32, device=device)
    item_starts = torch.empty(batch.num_seqs + 1, dtype=torch.int32, device=device)
    split_kernel[(programs,)](
        *_inputs(batch),
        partials,
        summaries,
        item_starts,
        batch.num_seqs,
        batch.block_tables.stride(0),
        batch.window,
        split_rows,
        *batch.factors,
        **_constants(batch, tile, products),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    combine_kernel[(batch.num_seqs, split_rows, cache.num_kv_heads)](
        out,
        partials,
        summaries,
        item_starts,
        batch.seq_starts,
        batch.positions,
        batch.window,
        split_rows,
        batch.factors[0],
        PARTITION=PARTITION,
        GROUP=group,
        PADDED_GROUP=triton.next_power_of_2(group),
        HEADS=cache.num_kv_heads,
        DIM=cache.head_dim,
        PADDED=_padded(cache.head_dim),
        WINDOWED=batch.window > 0,
        num_warps=4,
    )


def _inputs(batch: _Batch) -> tuple[Tensor, ...]:
    """q, what the cache stores, seq_starts, positions, block tables."""
    stored = batch.cache.tensors
    # Without scales nobody reads them; a pointer must be given all the same.
    scales = stored[2:] or stored[:2]
    return (batch.q, *stored[:2], *scales, batch.seq_starts, batch.positions, batch.block_tables)


def _constants(batch: _Batch, tile: Tile, products: torch.dtype) -> dict[str, object]:
    cache = batch.cache
    return {
        "SEQUENCES": max(64, triton.next_power_of_2(batch.num_seqs)),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "PARTITION": PARTITION,
        "STAGES": tile.stages,
        "GROUP": batch.group,
        "HEADS": cache.num_kv_heads,
        "BLOCK": cache.block_size,
        "DIM": cache.head_dim,
        "PADDED": _padded(cache.head_dim),
        "OPERAND": _TRITON[products],
        "QUANTIZED": cache.key_scales is not None,
        "SOFTCAP": batch.softcap > 0,
        "WINDOWED": batch.window > 0,
    }


def _padded(head_dim: int) -> int:
    return max(16, int(triton.next_power_of_2(head_dim)))


def _products(q: Tensor, cache: KVCache) -> torch.dtype:
    """The type in which K and V are multiplied: it holds all that the cache stores."""
    stored = cache.keys.dtype
    if torch.float32 in (q.dtype, stored):
        return torch.float32
    if cache.key_scales is None and stored != q.dtype:
        raise ValueError(f"queries of {q.dtype} and a cache of {stored}")
    return q.dtype


def _check(batch: _Batch) -> None:
    q, cache = batch.q, batch.cache
    if q.dim() != 3 or q.shape[2] != cache.head_dim or q.shape[1] % cache.num_kv_heads:
        raise ValueError(
            f"queries {tuple(q.shape)} for {cache.num_kv_heads} KV heads of {cache.head_dim}"
        )
    if q.dtype not in _TRITON:
        raise ValueError(f"queries of {q.dtype}")
    if len(batch.block_tables) != batch.num_seqs or len(batch.positions) != len(q):
        raise ValueError("one block table a sequence, one position a row")
    given = (batch.seq_starts, batch.positions, batch.block_tables)
    if any(tensor.dtype != torch.int32 or tensor.stride(-1) != 1 for tensor in given):
        raise ValueError("seq_starts, positions and block_tables are contiguous int32")
    if not q.is_contiguous():
        raise ValueError("queries are contiguous")
    if not (math.isfinite(batch.scale) and batch.scale > 0):
        raise ValueError(f"attention scale {batch.scale}: must be above 0")
    if batch.window < 0 or batch.softcap < 0:
        raise ValueError("window and softcap are 0 (none) or above")
