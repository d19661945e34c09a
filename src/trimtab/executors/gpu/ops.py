"""What a step is made of: the operations that a model's forward pass calls, on torch tensors.

T rows, S sequences, H hidden size, Hq query heads, Hk KV heads, D head_dim, I intermediate size,
B block size, V vocabulary, R logit rows. Activations and the residual stream have the model's
dtype; every operation computes in float32 inside and rounds once, where it returns.

The law: a row's result depends on that row, the cache and the model's shape, never on the number
of rows, its place among them or its company.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trimtab.executors.gpu.cache import KVCache
from trimtab.executors.gpu.matrices import Kind, Matrix
from trimtab.models.spec import Activation

Quantized = tuple[Tensor, Tensor]  # values [T, K] int8 or float8_e4m3fn; scales [T] float32


@dataclass(slots=True, eq=False)
class DeviceSampling:
    """`trimtab.executors.base.SamplingBatch` on the device, by the same names; and what the host
    knows of it, so that nobody need ask the device."""

    temperature: Tensor  # [R] float32, as top_p, min_p and the penalties
    top_k: Tensor  # [R] int32
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    presence_penalty: Tensor
    frequency_penalty: Tensor
    seeds: Tensor  # [R] int64, the bits of the uint64
    positions: Tensor  # [R] int32
    num_logprobs: Tensor  # [R] int32
    bias_starts: Tensor  # int32, as all starts and ids
    bias_ids: Tensor
    bias_values: Tensor  # float32
    banned_starts: Tensor
    banned_ids: Tensor
    prompt_starts: Tensor
    prompt_ids: Tensor
    output_starts: Tensor
    output_ids: Tensor
    mask_rows: Tensor  # [R] int32
    mask: Tensor  # [num_masks, ceil(V / 32)] int32, the bits of the uint32
    targets: Tensor | None  # [R] int32
    top_width: int  # the largest num_logprobs, at least 0
    adjusts: bool  # some row has a bias, a penalty, a ban or a mask
    filters: bool  # some row has top-k, top-p or min-p
    samples: bool  # some row has a temperature above 0
    wants_logprobs: bool  # some row has num_logprobs >= 0


@dataclass(slots=True, eq=False)
class SampleResult:
    """The fields of `trimtab.executors.base.StepResult` that sampling fills, on the device."""

    tokens: Tensor  # [R] int32
    logprobs: Tensor  # [R] float32
    top_ids: Tensor  # [R, top_width] int32
    top_logprobs: Tensor  # [R, top_width] float32
    target_logprobs: Tensor | None  # [R] float32


class Ops(Protocol):
    """Stateless. None of them waits for the device."""

    name: str  # enters the executor's identity: other operations, other bits

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        """x [T, H] / rms(x) * (offset + weight [H] float32)"""
        ...

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float
    ) -> tuple[Tensor, Tensor]:
        """(rms_norm(sum), sum): sum = residual + x, rounded to the dtype, before the norm."""
        ...

    def rms_norm_quantize(
        self, x: Tensor, weight: Tensor, eps: float, offset: float, kind: Kind
    ) -> Quantized: ...

    def add_rms_norm_quantize(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        offset: float,
        kind: Kind,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(values, scales, sum)"""
        ...

    def quantize_rows(self, x: Tensor, kind: Kind) -> Quantized:
        """As row_reference.py says."""
        ...

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
        """q [T, Hq, D], normed and turned, of qkv [T, (Hq + 2 Hk) D]; K and V go to the cache.

        cos, sin [P, rotary_dim / 2] float32; positions [T] int32; slots [T] int64, block * B +
        place; a negative one writes nothing.
        """
        ...

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
        """[T, Hq D]. Row t of sequence s sees positions 0 .. positions[t] of it, the last `window`
        of them if there is one, as the cache stores them.

        seq_starts [S + 1] int32, block_tables [S, M] int32. No sequence has more than `max_rows`
        rows, none a position of `max_context` or above; sequences may have none. The contexts of
        all of them together reach into no more than `max_partitions` partitions of 256 positions;
        0: nobody knows.
        """
        ...

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """[T, I]: act(gate) * up of gate_up [T, 2 I]"""
        ...

    def gated_quantize(self, gate_up: Tensor, activation: Activation, kind: Kind) -> Quantized: ...

    def linear(
        self, x: Tensor, weight: Matrix, bias: Tensor | None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """[T, N] = x [T, K] weight^T + bias [N], in `dtype`; in that of x if there is none. Of
        weights with a `kind`, use `linear_quantized`."""
        ...

    def linear_quantized(
        self, x: Quantized, weight: Matrix, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """x quantized to the kind of the weights, its columns in their order."""
        ...

    def softcap(self, logits: Tensor, cap: float) -> Tensor:
        """cap tanh(logits / cap) of [R, V] float32."""
        ...

    def sample(self, logits: Tensor, batch: DeviceSampling) -> SampleResult:
        """Of logits [R, V] float32, which are not changed."""
        ...
