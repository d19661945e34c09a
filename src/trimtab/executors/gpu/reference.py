"""ReferenceOps: every operation in plain torch, on any device; what the kernels are tested against.

Rows and matrices are those of row_reference.py and matrix_reference.py. The law holds by
construction: each row is computed by itself, in tensors whose shapes depend on the model alone.
Attention goes through the context in partitions of 256 positions, whole ones, and combines them in
order. It is slow, and waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trimtab.executors.gpu import matrix_reference, reference_sampling
from trimtab.executors.gpu import row_reference as rows_of
from trimtab.executors.gpu.cache import KVCache
from trimtab.executors.gpu.matrices import Fp8Matrix, Kind, Matrix, ordered_inputs
from trimtab.executors.gpu.ops import DeviceSampling, Quantized, SampleResult
from trimtab.models.spec import Activation

PARTITION = 256  # positions


class ReferenceOps:
    """Implements `trimtab.executors.gpu.ops.Ops`."""

    name = "reference"

    def __init__(self) -> None:
        self._wide: WeakKeyDictionary[Matrix, Tensor] = WeakKeyDictionary()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        return by_rows(lambda row: rows_of.rms_norm(row, weight, eps, offset), x, x.shape[1])

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float
    ) -> tuple[Tensor, Tensor]:
        total = (residual.float() + x.float()).to(x.dtype)
        return self.rms_norm(total, weight, eps, offset), total

    def rms_norm_quantize(
        self, x: Tensor, weight: Tensor, eps: float, offset: float, kind: Kind
    ) -> Quantized:
        return self.quantize_rows(self.rms_norm(x, weight, eps, offset), kind)

    def add_rms_norm_quantize(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, kind: Kind
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed, total = self.add_rms_norm(x, residual, weight, eps, offset)
        return (*self.quantize_rows(normed, kind), total)

    def quantize_rows(self, x: Tensor, kind: Kind) -> Quantized:
        return rows_of.quantize_rows(x, kind)

    def qk_norm_rope_write(
        self,
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
        rows, (kv_heads, dim) = qkv.shape[0], cache.keys.shape[2:]
        heads = qkv.view(rows, -1, dim).float()
        counts = [heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads]
        q, k, v = torch.split_with_sizes(heads, counts, 1)
        if q_norm is not None:
            q = norm_heads(q, q_norm, eps, offset)
        if k_norm is not None:
            k = norm_heads(k, k_norm, eps, offset)
        cos, sin = cos[positions.long()][:, None], sin[positions.long()][:, None]
        written = slots >= 0
        store(cache.keys, cache.key_scales, slots[written], rotate(k, cos, sin)[written])
        store(cache.values, cache.value_scales, slots[written], v[written])
        return rotate(q, cos, sin).to(qkv.dtype)

    def attention(
        self,
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
    ) -> Tensor:
        out = torch.zeros(q.shape[0], q.shape[1] * q.shape[2], dtype=q.dtype, device=q.device)
        starts = seq_starts.tolist()
        for sequence, (first, last) in enumerate(pairwise(starts)):
            for row in range(first, last):
                position = int(positions[row])
                out[row] = attend(
                    q[row].float(), cache, block_tables[sequence], position, scale, window, softcap
                ).flatten()
        return out

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        return by_rows(lambda row: rows_of.gated(row, activation), gate_up, gate_up.shape[1] // 2)

    def gated_quantize(self, gate_up: Tensor, activation: Activation, kind: Kind) -> Quantized:
        return self.quantize_rows(self.gated(gate_up, activation), kind)

    def linear(
        self, x: Tensor, weight: Matrix, bias: Tensor | None, dtype: torch.dtype | None = None
    ) -> Tensor:
        wide = self._weights(weight, x.dtype)
        ordered = ordered_inputs(x, weight).float()
        out = by_rows(lambda row: torch.mv(wide, row[0])[None], ordered, weight.shape[0])
        if isinstance(weight, Fp8Matrix):
            out = out * weight.scales[0]
        return (out if bias is None else out + bias.float()).to(dtype or x.dtype)

    def linear_quantized(
        self, x: Quantized, weight: Matrix, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        return matrix_reference.linear_quantized(x, weight, bias, dtype)

    def softcap(self, logits: Tensor, cap: float) -> Tensor:
        return by_rows(lambda row: cap * torch.tanh(row / cap), logits, logits.shape[1])

    def sample(self, logits: Tensor, batch: DeviceSampling) -> SampleResult:
        return reference_sampling.sample(logits, batch)

    def _weights(self, matrix: Matrix, dtype: torch.dtype) -> Tensor:
        """What rows of this type are multiplied by; of float8, without its scales."""
        found = self._wide.get(matrix)
        if found is None:
            held = matrix.values if isinstance(matrix, Fp8Matrix) else matrix.dequantize(dtype)
            found = self._wide[matrix] = held.float()
        return found


def by_rows(compute: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """[T, width] of the rows of x, each computed alone, as [1, K]. A row is copied first: libraries
    may choose their path by the address of what they read."""
    out = torch.empty(x.shape[0], width, dtype=x.dtype, device=x.device)
    for index, row in enumerate(x):
        out[index] = compute(row.clone()[None])[0]
    return out


def norm_heads(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """x [T, heads, D] float32, each head by itself."""
    flat = x.flatten(1)

    def norm(row: Tensor) -> Tensor:
        heads = row.view(x.shape[1:])
        return rows_of.rms_norm(heads, weight, eps, offset).view(1, -1)

    return by_rows(norm, flat, flat.shape[1]).view(x.shape)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D]; pair i of a head is (x[i], x[i + rotary_dim / 2])."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def store(stored: Tensor, scales: Tensor | None, slots: Tensor, values: Tensor) -> None:
    """Values [T, Hk, D] float32 into slots of a cache tensor."""
    blocks, places = slots // stored.shape[1], slots % stored.shape[1]
    if scales is None:
        stored[blocks, places] = values.to(stored.dtype)
        return
    kind: Kind = "int8" if stored.dtype == torch.int8 else "fp8"
    flat, flat_scales = rows_of.quantize_rows(values.flatten(0, 1), kind)
    quantized, own_scales = flat.view(values.shape), flat_scales.view(values.shape[:2])
    scales[blocks, places] = own_scales
    # Bytes: torch indexes few types that are one byte long.
    stored.view(torch.uint8)[blocks, places] = quantized.view(torch.uint8)


def fetch(stored: Tensor, scales: Tensor | None, blocks: Tensor) -> Tensor:
    """[positions, Hk, D] float32 of whole blocks."""
    size = stored.element_size()
    found = stored.view(torch.uint8)[blocks].view(stored.dtype) if size == 1 else stored[blocks]
    wide = found.float()
    if scales is not None:
        wide = wide * scales[blocks].float()[..., None]
    return wide.flatten(0, 1)


def attend(
    q: Tensor,
    cache: KVCache,
    table: Tensor,
    position: int,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """[Hq, D] float32 of one row's q [Hq, D]."""
    heads, dim = q.shape
    group = heads // cache.keys.shape[2]
    block_size = cache.keys.shape[1]
    per_partition = PARTITION // block_size
    best = torch.full((heads,), -torch.inf, device=q.device)
    total = torch.zeros(heads, device=q.device)
    mixed = torch.zeros(heads, dim, device=q.device)
    first_seen = max(0, position + 1 - window) if window else 0
    for start in range(first_seen // PARTITION * PARTITION, position + 1, PARTITION):
        places = torch.arange(start, start + PARTITION, device=q.device)
        seen = (places >= first_seen) & (places <= position)
        # Blocks behind the table's end stand in as its first one; nothing of them is seen.
        wanted = torch.arange(per_partition, device=q.device) + start // block_size
        blocks = table[torch.where(wanted * block_size <= position, wanted, 0)].long()
        keys = fetch(cache.keys, cache.key_scales, blocks).repeat_interleave(group, 1)
        values = fetch(cache.values, cache.value_scales, blocks).repeat_interleave(group, 1)
        values = torch.where(seen[:, None, None], values, 0.0)
        scores = (keys * q).sum(-1) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = torch.where(seen[:, None], scores, -torch.inf)
        higher = torch.maximum(best, scores.amax(0))
        weights = torch.exp(scores - higher)
        keep = torch.exp(best - higher)
        total = total * keep + weights.sum(0)
        mixed = mixed * keep[:, None] + (weights[..., None] * values).sum(0)
        best = higher
    return mixed / total[:, None]
