"""What a checkpoint stores, as matrices of a device. Integers stay the integers of the checkpoint
(GPTQ, AWQ, compressed-tensors, GGUF): numerics/stored.py says what they mean.

    floats                                        DenseMatrix
    integers up to 4 bits, groups of 16 n         PackedMatrix of 4 bits
    integers of 5 to 8 bits, groups of 16 n       PackedMatrix of 8 bits
    the same, one scale a row, no zero points     Int8Matrix
    float8, one scale a row, or blocks of 128 n   Fp8Matrix
    anything else                                 DenseMatrix of what the integers stand for
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.checkpoints.base import StoredMatrix, StoredTensor
from trimtab.executors.gpu.matrices import (
    DenseMatrix,
    Fp8Matrix,
    Int8Matrix,
    Matrix,
    PackedMatrix,
)
from trimtab.executors.gpu.packed_words import SLICE, chunk_columns, pack_words
from trimtab.numerics import stored as canonical

FP8_BLOCK = 128
SCALE_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


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


def _integers(parts: Sequence[canonical.GroupedMatrix], device: torch.device) -> Matrix | None:
    first = parts[0]
    cols = first.shape[1]
    whole_row = first.group_size >= cols
    plain = first.zeros is None and first.offsets is None
    columns = None
    if first.columns is not None:
        columns = torch.from_numpy(first.columns.astype(np.int64)).to(device)
    if whole_row and plain and first.bits > 4:
        values = _stacked([part.values for part in parts], device)
        scales = _stacked([part.scales[:, 0] for part in parts], device).float()
        return Int8Matrix(values, scales, columns)
    bits = 4 if first.bits <= 4 else 8
    if not whole_row and first.group_size % SLICE:
        return None
    scales = _stacked([part.scales.T for part in parts], device, axis=1)
    held = SCALE_DTYPES.get(first.scale_type)
    if held is not None and torch.equal(scales.to(held).float(), scales):
        scales = scales.to(held)
    zeros = offsets = None
    centre = 0 if first.offsets is not None else (1 << (bits - 1))
    if first.offsets is not None:
        # u of the file, not of the field: value + 2^(b - 1)
        centre = 1 << (first.bits - 1)
        offsets = _stacked(
            [part.offsets.T for part in parts if part.offsets is not None], device, 1
        )
    elif first.zeros is not None:
        found = np.concatenate([part.zeros.T for part in parts if part.zeros is not None], axis=1)
        unsigned = found.astype(np.int32) + centre
        held_type = np.uint8 if unsigned.min() >= 0 and unsigned.max() <= 255 else np.int16
        zeros = torch.from_numpy(np.ascontiguousarray(unsigned.astype(held_type))).to(device)
    words = [_words(part.values, centre, bits, device) for part in parts]
    rows = sum(part.shape[0] for part in parts)
    if all(part.shape[0] % 64 == 0 for part in parts[:-1]):
        packed = torch.cat(words)
    else:
        joined = np.concatenate([part.values for part in parts])
        packed = _words(joined, centre, bits, device)
    group_size = first.group_size
    if whole_row:
        group_size = -(-cols // chunk_columns(bits)) * chunk_columns(bits)
    return PackedMatrix(packed, bits, (rows, cols), group_size, scales, zeros, offsets, columns)


def _words(values: npt.NDArray[np.int8], centre: int, bits: int, device: torch.device) -> Tensor:
    signed = torch.from_numpy(np.ascontiguousarray(values)).to(device)
    return pack_words((signed.to(torch.int16) + centre).to(torch.uint8), bits)


def _fits_fp8(parts: Sequence[canonical.Fp8Matrix]) -> bool:
    cols = parts[0].shape[1]
    widths = {min(part.block_cols, cols) for part in parts}
    return len(widths) == 1 and (cols in widths or next(iter(widths)) % FP8_BLOCK == 0)


def _fp8(parts: Sequence[canonical.Fp8Matrix], device: torch.device, activations: bool) -> Matrix:
    cols = parts[0].shape[1]
    if any((part.values & 127 == 127).any() for part in parts):
        raise ValueError("a float8 weight is not a number")
    values = _stacked([part.values for part in parts], device).view(torch.float8_e4m3fn)
    scales = _stacked(
        [np.repeat(part.scales, part.block_rows, axis=0)[: part.shape[0]].T for part in parts],
        device,
        axis=1,
    )
    one_block = scales.shape[0] == 1
    block_cols = cols if one_block else parts[0].block_cols
    return Fp8Matrix(values, scales, block_cols, weight_only=one_block and not activations)


def _floats(part: StoredMatrix, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(part, StoredTensor):
        return torch.from_numpy(part.to_float32()).to(device, dtype)
    data = np.ascontiguousarray(part.data)
    if not data.flags.writeable:  # torch warns of arrays that it must not write
        data = data.copy()
    if part.dtype == "bf16":
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).to(device, dtype)
    return torch.from_numpy(data).to(device, dtype)


def _stacked(
    arrays: Sequence[npt.NDArray[np.generic]], device: torch.device, axis: int = 0
) -> Tensor:
    joined = np.concatenate(arrays, axis=axis)
    return torch.from_numpy(np.ascontiguousarray(joined)).to(device)


def _shape(part: StoredMatrix) -> tuple[int, ...]:
    return part.data.shape if isinstance(part, StoredTensor) else part.shape
