"""What a checkpoint stores, as matrices of a device. Integers stay the integers of the checkpoint
(GPTQ, AWQ, compressed-tensors, GGUF): numerics/stored.py says what they mean.

    floats                                        DenseMatrix
    integers up to 4 bits, groups of 16 n         PackedMatrix of 4 bits
    integers of 5 to 8 bits, groups of 16 n       PackedMatrix of 8 bits
    the same, one scale a row, no zero points     Int8Matrix
    float8, one scale a row, or blocks of 128 n   Fp8Matrix
    anything else                                 DenseMatrix of what the integers stand for

Floats become float8 where that is asked for: `quantize_fp8`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from trimtab.checkpoints.base import StoredMatrix, StoredTensor
from trimtab.executors.gpu.matrices import (
    HALVES,
    DenseMatrix,
    Form,
    Fp8Matrix,
    Int8Matrix,
    Matrix,
    PackedMatrix,
)
from trimtab.executors.gpu.packed_words import PANEL_ROWS, SLICE, chunk_columns, pack_words
from trimtab.executors.gpu.row_reference import quantize_rows
from trimtab.numerics import stored as canonical

FP8_BLOCK = 128
QUANTIZED_ROWS = 4096  # of which there are float32 copies at once


def load_matrix(
    parts: Sequence[StoredMatrix],
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    fp8_activations: bool = True,
) -> Matrix:
    """The parts on top of each other (q, k and v; gate and up), which have the same columns.
    Floats are held in `dtype`. Parts that are stored in different formats, or in different orders
    of columns, become floats. Raises ValueError for parts of different widths and for float8 that
    is not a number."""
    widths = {_shape(part)[1] for part in parts}
    if len(widths) != 1:
        raise ValueError(f"matrices of {sorted(widths)} columns are not one matrix")
    device = torch.device(device)
    integers = [part for part in parts if isinstance(part, canonical.GroupedMatrix)]
    if len(integers) == len(parts) and len({part.format for part in integers}) == 1:
        matrix = _integers(integers, device)
        if matrix is not None:
            return matrix
    floats8 = [part for part in parts if isinstance(part, canonical.Fp8Matrix)]
    if len(floats8) == len(parts) and _fits_fp8(floats8):
        return _fp8(floats8, device, fp8_activations)
    return DenseMatrix(torch.cat([_floats(part, dtype, device) for part in parts]))


def quantize_fp8(
    parts: Sequence[StoredTensor], device: torch.device | str, *, fp8_activations: bool = True
) -> Fp8Matrix:
    """Floats rounded to float8 e4m3, a scale a row, as `quantize_rows` does it: its largest
    magnitude becomes 448. On the device. ValueError for weights that are not finite."""
    device = torch.device(device)
    values, scales = [], []
    for part in parts:
        for rows in _stored_floats(part, device).split(QUANTIZED_ROWS):
            quantized, own = quantize_rows(rows, "fp8")
            values.append(quantized)
            scales.append(own)
    stacked = torch.cat(scales)[None].contiguous()
    if not bool(stacked.isfinite().all()):
        raise ValueError("a weight is not finite")
    return Fp8Matrix(torch.cat(values), stacked, _shape(parts[0])[1], not fp8_activations)


def _integers(parts: Sequence[canonical.GroupedMatrix], device: torch.device) -> Matrix | None:
    first = parts[0]
    cols = first.shape[1]
    whole_row = first.group_size >= cols
    columns = None
    if first.columns is not None:
        columns = _on(first.columns, device).long()
    if whole_row and first.bits > 4 and first.zeros is None and first.offsets is None:
        values = torch.cat([_on(part.values, device) for part in parts])
        scales = torch.cat([_on(part.scales[:, 0], device) for part in parts])
        return Int8Matrix(values, scales, columns)
    bits = 4 if first.bits <= 4 else 8
    if not whole_row and first.group_size % SLICE:
        return None
    # Unsigned integers of a field of `bits`, but of offsets: those of the file.
    centre = 1 << ((first.bits if first.offsets is not None else bits) - 1)
    if all(part.shape[0] % PANEL_ROWS == 0 for part in parts[:-1]):
        words = torch.cat([_words(_on(part.values, device), centre, bits) for part in parts])
    else:
        values = torch.cat([_on(part.values, device) for part in parts])
        words = _words(values, centre, bits)
    rows = sum(part.shape[0] for part in parts)
    padded = words.shape[1] * chunk_columns(bits)
    group_size = padded if whole_row else first.group_size
    form, scales, others = _scales(parts, centre, -(-padded // group_size), device)
    return PackedMatrix(words, bits, (rows, cols), group_size, form, scales, others, columns)


def _words(values: Tensor, centre: int, bits: int) -> Tensor:
    """Of int8 [N, K]: sums modulo 256 are those of the unsigned integers."""
    return pack_words(values.view(torch.uint8) + centre, bits)


def _scales(
    parts: Sequence[canonical.GroupedMatrix], centre: int, groups: int, device: torch.device
) -> tuple[Form, Tensor, Tensor | None]:
    """The form of a PackedMatrix, its scales and what stands beside them."""

    def joined(arrays: Sequence[npt.NDArray[Any] | None]) -> Tensor:
        stacked = torch.cat([_on(array, device) for array in arrays if array is not None]).T
        return pad(stacked, (0, -stacked.shape[1] % PANEL_ROWS, 0, groups - stacked.shape[0]))

    scales = joined([part.scales for part in parts]).contiguous()
    if parts[0].offsets is not None:
        return "offset", scales, joined([part.offsets for part in parts]).contiguous()
    if parts[0].zeros is None:
        zeros = torch.full(scales.shape, centre, dtype=torch.int32, device=device)
    else:
        zeros = (joined([part.zeros for part in parts]).to(torch.int32) + centre).contiguous()
    for form, held in HALVES.items():
        halves = scales.to(held)
        if torch.equal(halves.float(), scales):  # exact, whatever the file calls them
            bits = halves.view(torch.int16).to(torch.int32) & 0xFFFF
            return form, zeros << 16 | bits, None
    return "zero", scales, zeros.float()


def _fits_fp8(parts: Sequence[canonical.Fp8Matrix]) -> bool:
    cols = parts[0].shape[1]
    widths = {min(part.block_cols, cols) for part in parts}
    return len(widths) == 1 and (cols in widths or next(iter(widths)) % FP8_BLOCK == 0)


def _fp8(parts: Sequence[canonical.Fp8Matrix], device: torch.device, activations: bool) -> Matrix:
    cols = parts[0].shape[1]
    values = torch.cat([_on(part.values, device) for part in parts])
    if bool((values & 127 == 127).any()):
        raise ValueError("a float8 weight is not a number")
    scales = [
        _on(part.scales, device).repeat_interleave(part.block_rows, 0)[: part.shape[0]]
        for part in parts
    ]
    stacked = torch.cat(scales).T.contiguous()
    one_block = stacked.shape[0] == 1
    return Fp8Matrix(
        values.view(torch.float8_e4m3fn),
        stacked,
        cols if one_block else parts[0].block_cols,
        weight_only=one_block and not activations,
    )


def _floats(part: StoredMatrix, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(part, StoredTensor):
        return _on(part.to_float32(), device).to(dtype)
    return _stored_floats(part, device).to(dtype)


def _stored_floats(part: StoredTensor, device: torch.device) -> Tensor:
    """As the file has them."""
    found = _on(part.data, device)
    return found.view(torch.bfloat16) if part.dtype == "bf16" else found


def _on(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device; arithmetic over whole matrices happens there."""
    with warnings.catch_warnings():  # of mapped files, which are only read here
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        found = torch.from_numpy(np.ascontiguousarray(array))
    return found.to(device, copy=True)


def _shape(part: StoredMatrix) -> tuple[int, ...]:
    return part.data.shape if isinstance(part, StoredTensor) else part.shape
