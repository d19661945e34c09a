"""The matrices of a model as a device holds them: [N (outputs), K (inputs)], y = x W^T.

    DenseMatrix    floats
    PackedMatrix   integers of 4 or 8 bits in groups of columns, weight-only: each weight is
                   rounded to the dtype of the activations, the product is then a dense one
    Int8Matrix     int8, a scale a row, times activations quantized to int8 a row of theirs
    Fp8Matrix      float8 e4m3fn, a scale a row or a block; activations likewise, or kept as floats

`kind` says what activations a matrix wants: None (floats), "int8" or "fp8" (with a float32 scale a
row, see quantize.py). Where `columns` is given, stored column k multiplies input columns[k].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from trimtab.executors.gpu.packed_words import PANEL_ROWS, unpack_words

Kind = Literal["int8", "fp8"]
Form = Literal["f16", "bf16", "zero", "offset"]
HALVES: dict[Form, torch.dtype] = {"f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class DenseMatrix:
    weight: Tensor  # [N, K], float32, float16 or bfloat16, rows contiguous
    columns: Tensor | None = None  # int64 [K]
    counters: Tensor = field(init=False)  # int32, 0 between products: see gemm_parts.py

    def __post_init__(self) -> None:
        object.__setattr__(self, "counters", _counters(self.shape[0], self.device))

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def kind(self) -> Kind | None:
        return None

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(self.weight, self.columns)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[N, K], the weights that the kernels multiply."""
        return self.weight.to(dtype)


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """u are the unsigned integers of `words`. A weight, of group g of its row, is in float32

        form "f16", "bf16"   (u - z) s, which is exact; s is in the lower 16 bits of a word of
                             `scales`, z in the upper ones
        form "zero"          (u - z) s, float32 each
        form "offset"        u s + o, float32 each; u s is exact

    and then rounded to the dtype of the activations."""

    words: Tensor  # int32, see packed_words.py
    bits: int  # 4 or 8
    shape: tuple[int, int]
    group_size: int  # columns that share a scale: a multiple of 16
    form: Form
    scales: Tensor  # [groups of the padded columns, padded N], int32 or float32
    others: Tensor | None = None  # the same, float32: z or o
    columns: Tensor | None = None  # int64 [K]
    ones: Tensor = field(init=False)  # int32 [64], the bits of 1.0: see gemm_packed.py
    counters: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counters", _counters(self.shape[0], self.device))
        ones = torch.ones(PANEL_ROWS, device=self.device).view(torch.int32)
        object.__setattr__(self, "ones", ones)

    @property
    def device(self) -> torch.device:
        return self.words.device

    @property
    def kind(self) -> Kind | None:
        return None

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(self.words, self.scales, self.others, self.columns)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[N, K], the weights that the kernels multiply; columns in stored order."""
        rows, cols = self.shape
        elements = unpack_words(self.words, self.bits, rows, cols).float()

        def spread(of_groups: Tensor) -> Tensor:
            wide = of_groups.T[:rows].repeat_interleave(self.group_size, dim=1)
            return wide[:, :cols].float()

        if self.others is not None and self.form == "offset":
            return (elements * spread(self.scales) + spread(self.others)).to(dtype)
        if self.others is not None:
            return ((elements - spread(self.others)) * spread(self.scales)).to(dtype)
        scales = self.scales.to(torch.int16).view(HALVES[self.form])
        return ((elements - spread(self.scales >> 16)) * spread(scales)).to(dtype)


class _Bytes:
    """What matrices of one byte a weight share."""

    values: Tensor  # [N, K], rows contiguous
    scales: Tensor
    columns: Tensor | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "counters", _counters(self.shape[0], self.device))

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(self.values, self.scales, self.columns)


@dataclass(frozen=True, eq=False)
class Int8Matrix(_Bytes):
    """y = float32(sum of q_x q_w) * (s_x s_w): the sum is exact."""

    values: Tensor  # int8 [N, K], rows contiguous; K at most 131,072
    scales: Tensor  # float32 [N]
    columns: Tensor | None = None
    counters: Tensor = field(init=False)

    @property
    def kind(self) -> Kind | None:
        return "int8"

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[N, K]; not what the kernels multiply, which are the integers."""
        return (self.values.float() * self.scales[:, None]).to(dtype)


@dataclass(frozen=True, eq=False)
class Fp8Matrix(_Bytes):
    """Blocks of `block_cols` columns share a scale in each row. Sums over 128 columns are those of
    the matrix unit; they are added in float32, each times its scale (DeepSeek-V3, section 3.3.2: a
    longer sum in the unit loses bits)."""

    values: Tensor  # float8_e4m3fn [N, K], rows contiguous
    scales: Tensor  # float32 [blocks, N]
    block_cols: int  # a multiple of 128, or at least K: one block
    weight_only: bool = False  # floats as activations; needs one block
    columns: Tensor | None = None
    counters: Tensor = field(init=False)

    @property
    def kind(self) -> Kind | None:
        return None if self.weight_only else "fp8"

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """[N, K]; not what the kernels multiply, which are the float8."""
        scales = self.scales.T.repeat_interleave(self.block_cols, dim=1)[:, : self.shape[1]]
        return (self.values.float() * scales).to(dtype)


Matrix = DenseMatrix | PackedMatrix | Int8Matrix | Fp8Matrix


def _counters(rows: int, device: torch.device) -> Tensor:
    """One for each tile of gemm_plan.py's split kernel. Two products with the same matrix at the
    same time would share them: all products are of one stream."""
    return torch.zeros(-(-rows // PANEL_ROWS) * 4 + 512, dtype=torch.int32, device=device)


def tensor_bytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def ordered_inputs(x: Tensor, matrix: Matrix) -> Tensor:
    """x with its columns in the order in which the matrix stores them."""
    return x if matrix.columns is None else x.index_select(1, matrix.columns)
