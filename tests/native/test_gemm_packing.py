"""Packed weights and prepared activations: every bit of them, against the numpy reference."""

from __future__ import annotations

import gemm_cases as cases
import numpy as np
import pytest

from trimtab import _native
from trimtab.numerics import floats, packed
from trimtab.numerics import quantization as q

SHAPES = [(1, 1), (16, 32), (17, 33), (40, 127), (33, 256), (70, 130)]


def padded(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, x.dtype)
    out[: x.shape[0], : x.shape[1]] = x
    return out


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_weights_unpack_to_the_reference_and_padding_is_zero(
    isa: str, rows: int, cols: int
) -> None:
    w = cases.matrix(rows, cols, seed=cols)
    w[0] *= 1e-4
    f32 = packed.unpack_f32(_native.KernelMatrix(isa, "f32", w).data, rows)
    assert np.array_equal(f32, padded(w, f32.shape))
    bf16 = packed.unpack_bf16(_native.KernelMatrix(isa, "bf16", w).data, rows)
    assert np.array_equal(bf16, padded(floats.round_to_bf16(w), bf16.shape))

    kernel = _native.KernelMatrix(isa, "int8", w, 0)
    int8 = packed.unpack_int8(kernel.data, rows)
    expected = q.quantize_weights_int8(w)
    assert int8.shape == (-(-rows // 16) * 16, -(-cols // 4) * 4)
    assert np.array_equal(int8, padded(expected.values, int8.shape))
    assert np.array_equal(kernel.scales[:, None], padded(expected.scales, (len(int8), 1)))


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("weight_format", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_weights_in_groups_unpack_to_the_reference(
    isa: str, rows: int, cols: int, weight_format: str, bits: int, group_size: int
) -> None:
    w = cases.matrix(rows, cols, seed=cols)
    w[-1] *= 1e-5  # scales in f16's denormals
    kernel = _native.KernelMatrix(isa, weight_format, w, group_size)
    block = 64 + 4 * bits * group_size
    assert kernel.data.nbytes == -(-rows // 32) * -(-cols // group_size) * block
    actual = packed.unpack_groups(kernel.data, weight_format, rows, cols, group_size)
    quantize = q.quantize_weights_int8 if bits == 8 else q.quantize_weights_int4
    expected = quantize(w, group_size)
    assert np.array_equal(actual.values, padded(expected.values, actual.values.shape))
    assert np.array_equal(actual.scales, padded(expected.scales, actual.scales.shape))


@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
def test_packed_bytes_depend_neither_on_the_path_nor_on_the_split(
    weight_format: str, group_size: int
) -> None:
    w = cases.matrix(100, 150)
    whole = _native.KernelMatrix("portable", weight_format, w, group_size)
    for isa in cases.ISAS:
        for splits in ([], [2, 6], [4]):
            part = _native.KernelMatrix(isa, weight_format, w, group_size, splits)
            assert np.array_equal(part.data, whole.data)
            assert np.array_equal(part.scales, whole.scales)


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize("cols", [1, 15, 16, 64, 127, 300])
def test_activations_equal_the_reference(isa: str, cols: int) -> None:
    x = cases.matrix(5, cols, seed=cols)
    x[1] = 0
    x[2] *= 1e4
    w = cases.matrix(1, cols)

    for group_size in (0, 32, 64, 128):
        rows = _native.KernelMatrix(isa, "int8", w, group_size).prepare(x)
        expected = q.quantize_activations(x, group_size)
        assert np.array_equal(rows.scales.reshape(5, -1), expected.scales)

    for group_size in (32, 64, 128):
        kernel = _native.KernelMatrix(isa, "int4", w, group_size)
        rows = kernel.prepare(x)
        expected = q.quantize_activations(x, group_size)
        values = rows.data.reshape(5, -1).view(np.int8)[:, : kernel.padded_cols]
        assert np.array_equal(values, expected.values)
        assert np.array_equal(rows.scales.reshape(5, -1), expected.scales)


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
def test_a_prepared_row_does_not_depend_on_its_neighbours(
    isa: str, weight_format: str, group_size: int
) -> None:
    x = cases.matrix(7, 133)
    kernel = _native.KernelMatrix(isa, weight_format, cases.matrix(1, 133), group_size)
    together, apart = kernel.prepare(x), kernel.prepare(x, step=2)
    shape = (7, together.row_bytes)
    used = {"f32": 4 * 133, "bf16": 2 * 134, "int8": 133, "int4": 133}[weight_format]
    assert np.array_equal(
        together.data.reshape(shape)[:, :used], apart.data.reshape(shape)[:, :used]
    )
    assert np.array_equal(together.scales, apart.scales)
    assert np.array_equal(together.starts, apart.starts)


def test_misuse_is_refused() -> None:
    w = cases.matrix(40, 64)
    with pytest.raises(ValueError, match="unknown weight format 'fp8'"):
        _native.KernelMatrix("portable", "fp8", w)
    with pytest.raises(ValueError, match="group_size"):
        _native.KernelMatrix("portable", "int4", w, 48)
    kernel = _native.KernelMatrix("portable", "int4", w)
    with pytest.raises(ValueError, match="columns"):
        kernel.prepare(cases.matrix(2, 65))
    with pytest.raises(ValueError, match="even"):
        kernel.gemm(kernel.prepare(cases.matrix(2, 64)), np.zeros((2, 40), np.float32), 0, 2, 1, 3)
