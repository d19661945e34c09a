"""Matrices of integers of every kind that checkpoints store, at random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trimtab import _native
from trimtab.executors.formats import KernelFormat, fp8_format, kernel_format
from trimtab.executors.weights import packed_fp8, packed_integers
from trimtab.numerics.floats import round_to_bf16
from trimtab.numerics.stored import Fp8Matrix, GroupedMatrix, SuperScales


@dataclass(frozen=True)
class Kind:
    name: str
    bits: int
    group_size: int  # 0 = a whole row
    scale_type: str = "f16"
    offset: str = "none"


KINDS = [
    Kind("Q4_0", 4, 32),
    Kind("Q4_1", 4, 32, offset="float"),
    Kind("Q5_0", 5, 32),
    Kind("Q5_1", 5, 32, offset="float"),
    Kind("Q8_0", 8, 32),
    Kind("Q2_K", 2, 16, "super", "float"),
    Kind("Q3_K", 3, 16, "super"),
    Kind("Q4_K", 4, 32, "super", "float"),
    Kind("Q5_K", 5, 32, "super", "float"),
    Kind("Q6_K", 6, 16, "super"),
    Kind("IQ4_XS", 8, 32, "super"),
    Kind("MXFP4", 5, 32, "bf16"),
    Kind("AWQ", 4, 128, offset="zero"),
    Kind("GPTQ-3", 3, 64, offset="zero"),
    Kind("GPTQ-8", 8, 128, offset="zero"),
    Kind("int4-bf16", 4, 64, "bf16", "zero"),
    Kind("int4-f32", 4, 128, "f32"),
    Kind("int8-f32-zero", 8, 64, "f32", "zero"),
    Kind("int8-row", 8, 0, "bf16"),
    Kind("int8-row-zero", 8, 0, "f16", "zero"),
    Kind("int4-row", 4, 0, "f16"),
    Kind("groups of 48", 4, 48, "f16", "zero"),
    Kind("groups of 256", 8, 256, "bf16"),
]
KIND_IDS = [kind.name for kind in KINDS]


def _scales(
    random: np.random.Generator, shape: tuple[int, int], scale_type: str, spread: float
) -> np.ndarray:
    scales = random.normal(0, spread, shape).astype(np.float32)
    if scale_type in ("f16", "super"):
        return scales.astype(np.float16).astype(np.float32)
    return round_to_bf16(scales) if scale_type == "bf16" else scales


def stored_matrix(
    kind: Kind, rows: int, cols: int, seed: int = 0, spread: float = 0.02
) -> GroupedMatrix:
    """`cols` is rounded up to super-blocks where the kind has them; `spread` is the standard
    deviation of scales and offsets, of super-blocks that of the larger ones."""
    random = np.random.default_rng(seed)
    half = 1 << (kind.bits - 1)
    if kind.scale_type == "super":
        cols = -(-cols // 256) * 256
    group_size = kind.group_size or cols
    shape = rows, -(-cols // group_size)
    values = random.integers(-half, half, (rows, cols)).astype(np.int8)
    values[0, :4] = [-half, half - 1, -half, half - 1]
    if kind.scale_type == "super":
        sub_scales = random.integers(-32, 64, shape).astype(np.int8)
        supers = SuperScales(_scales(random, (rows, cols // 256), "f16", spread), sub_scales)
        wide = np.repeat(supers.super_scales, 256 // group_size, axis=1)
        scales, offsets = wide * sub_scales.astype(np.float32), None
        if kind.offset == "float":
            sub_offsets = random.integers(0, 64, shape).astype(np.uint8)
            super_offsets = _scales(random, (rows, cols // 256), "f16", spread)
            supers = replace(supers, super_offsets=super_offsets, sub_offsets=sub_offsets)
            wide = np.repeat(super_offsets, 256 // group_size, axis=1)
            offsets = -(wide * sub_offsets.astype(np.float32))
        return GroupedMatrix(
            values, kind.bits, group_size, scales, "super", offsets=offsets, supers=supers
        )
    more: dict[str, Any] = {}
    if kind.offset == "zero":
        more["zeros"] = random.integers(-half, half + 1, shape).astype(np.int16)
    if kind.offset == "float":
        more["offsets"] = _scales(random, shape, "f16", spread)
    scales = _scales(random, shape, kind.scale_type, spread)
    scale_type: Any = kind.scale_type
    return GroupedMatrix(values, kind.bits, group_size, scales, scale_type, **more)


def format_of(matrix: GroupedMatrix) -> KernelFormat:
    return kernel_format(matrix.format, matrix.shape[1])


def regrouped(matrix: GroupedMatrix) -> GroupedMatrix:
    """The same elements in the groups of the kernels; what the reference multiplies."""
    size = format_of(matrix).group_size or matrix.shape[1]
    groups = -(-matrix.shape[1] // size)
    at = np.minimum(np.arange(groups) * size // matrix.group_size, matrix.scales.shape[1] - 1)

    def spread(of_groups: np.ndarray | None) -> Any:
        return None if of_groups is None else of_groups[:, at]

    return replace(
        matrix,
        group_size=size,
        scales=spread(matrix.scales),
        zeros=spread(matrix.zeros),
        offsets=spread(matrix.offsets),
    )


def kernel_matrix(isa: str, matrix: GroupedMatrix) -> Any:
    held = format_of(matrix)
    return _kernel_matrix(isa, matrix.shape, held, packed_integers(matrix, held))


def fp8_matrix(isa: str, matrix: Fp8Matrix) -> Any:
    held = fp8_format(matrix.format, matrix.shape[1])
    return _kernel_matrix(isa, matrix.shape, held, packed_fp8(matrix, held))


def _kernel_matrix(isa: str, shape: tuple[int, int], held: KernelFormat, arrays: Any) -> Any:
    native = _native.MatrixFormat(
        held.weights, held.group_size, held.scales, held.offsets, held.centre
    )
    return _native.KernelMatrix(isa, native, *shape, arrays)
