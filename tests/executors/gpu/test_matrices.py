"""Matrices hold exactly what the checkpoint stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stored_cases import floats, fp8, grouped

from trimtab.executors.gpu.matrices import DenseMatrix, Fp8Matrix, Int8Matrix, PackedMatrix
from trimtab.executors.gpu.matrix_loading import load_matrix
from trimtab.executors.gpu.matrix_reference import linear
from trimtab.executors.gpu.packed_words import pack_words, unpack_words


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (64, 128), (65, 130), (130, 40)])
def test_words_hold_every_element(bits: int, rows: int, cols: int) -> None:
    rng = np.random.default_rng(rows * cols + bits)
    elements = torch.from_numpy(rng.integers(0, 1 << bits, (rows, cols)).astype(np.uint8))
    words = pack_words(elements, bits)
    assert torch.equal(unpack_words(words, bits, rows, cols), elements)
    n, k = rows - 1, cols - 1  # the layout that the docstring states
    chunk = 16 * 32 // bits
    word = int(words[n // 64, k // chunk, n % 64, k % 16]) & 0xFFFFFFFF
    assert word >> (k % chunk // 16 * bits) & (1 << bits) - 1 == elements[n, k]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("offset", ["none", "zero", "float"])
@pytest.mark.parametrize("group_size", [16, 32, 128, 1024])
def test_integers_stay_what_they_are(bits: int, offset: str, group_size: int) -> None:
    rng = np.random.default_rng(bits)
    parts = [
        grouped(rng, rows, 200, bits=bits, group_size=group_size, offset=offset)
        for rows in (64, 40, 7)
    ]
    matrix = load_matrix(parts, torch.float32, "cpu")
    per_row = group_size > 200 and offset == "none" and bits > 4
    assert isinstance(matrix, Int8Matrix if per_row else PackedMatrix)
    assert matrix.kind == ("int8" if per_row else None)
    expected = np.concatenate([part.to_float32() for part in parts])
    assert matrix.shape == expected.shape
    assert np.array_equal(matrix.dequantize(torch.float32).numpy(), expected)


@pytest.mark.parametrize("scale_type", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("offset", ["none", "zero"])
def test_scales_are_held_in_the_type_that_holds_them(scale_type, offset: str) -> None:
    rng = np.random.default_rng(0)
    stored = grouped(rng, 70, 64, scale_type=scale_type, offset=offset)
    if scale_type == "bf16":
        stored.scales[:] *= np.float32(2.0**-40)  # below what f16 holds
    matrix = load_matrix([stored], torch.float32, "cpu")
    assert matrix.form == {"f32": "zero"}.get(scale_type, scale_type)
    assert np.array_equal(matrix.dequantize(torch.float32).numpy(), stored.to_float32())


def test_scales_that_are_not_what_the_file_says() -> None:
    stored = grouped(np.random.default_rng(0), 8, 64, scale_type="f32")
    object.__setattr__(stored, "scale_type", "f16")
    matrix = load_matrix([stored], torch.float32, "cpu")
    assert matrix.form == "zero"
    assert np.array_equal(matrix.dequantize(torch.float32).numpy(), stored.to_float32())


def test_columns_out_of_order() -> None:
    rng = np.random.default_rng(1)
    stored = grouped(rng, 24, 96, ordered=False)
    x = torch.from_numpy(rng.standard_normal((3, 96)).astype(np.float32))
    y = linear(x, load_matrix([stored], torch.float32, "cpu"))
    expected = x.double() @ torch.from_numpy(stored.to_float32()).double().T
    assert torch.allclose(y.double(), expected, atol=1e-5)


@pytest.mark.parametrize(("block_rows", "block_cols"), [(1, 256), (128, 128), (1000, 1000)])
def test_float8(block_rows: int, block_cols: int) -> None:
    rng = np.random.default_rng(2)
    parts = [fp8(rng, rows, 256, block_rows, block_cols) for rows in (130, 20)]
    matrix = load_matrix(parts, torch.bfloat16, "cpu")
    assert isinstance(matrix, Fp8Matrix)
    assert matrix.kind == "fp8"
    expected = np.concatenate([part.to_float32() for part in parts])
    assert np.array_equal(matrix.dequantize(torch.float32).numpy(), expected)
    damaged = fp8(rng, 4, 256, block_rows, block_cols)
    damaged.values[0, 0] = 0xFF
    with pytest.raises(ValueError, match="not a number"):
        load_matrix([damaged], torch.bfloat16, "cpu")


def test_what_does_not_fit_becomes_floats() -> None:
    rng = np.random.default_rng(3)
    cases = [
        [grouped(rng, 8, 96, group_size=24)],
        [grouped(rng, 8, 96), grouped(rng, 8, 96, bits=8)],
        [grouped(rng, 8, 96), floats(rng, 8, 96)],
        [grouped(rng, 8, 96, ordered=False), grouped(rng, 8, 96)],
        [fp8(rng, 8, 96, 1, 32)],
    ]
    for parts in cases:
        matrix = load_matrix(parts, torch.float32, "cpu")
        assert isinstance(matrix, DenseMatrix)
        expected = np.concatenate([part.to_float32() for part in parts])
        assert np.array_equal(matrix.dequantize(torch.float32).numpy(), expected)
    with pytest.raises(ValueError, match="columns"):
        load_matrix([floats(rng, 8, 96), floats(rng, 8, 64)], torch.float32, "cpu")


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_floats(dtype: str) -> None:
    stored = floats(np.random.default_rng(4), 5, 40, dtype)
    stored.data.flags.writeable = False  # as a mapped file is
    matrix = load_matrix([stored, stored], torch.float32, "cpu")
    assert np.array_equal(matrix.weight[5:].numpy(), stored.to_float32())
    assert matrix.num_bytes == 10 * 40 * 4


def all_matrices(rng: np.random.Generator) -> list:
    stored = [
        floats(rng, 40, 256),
        grouped(rng, 40, 256, group_size=128, offset="zero"),
        grouped(rng, 40, 256, bits=8, group_size=1000),
        fp8(rng, 40, 256, 1, 1000),
        fp8(rng, 40, 256, 128, 128),
    ]
    return [load_matrix([part], torch.float32, "cpu") for part in stored]


def test_the_reference_multiplies() -> None:
    rng = np.random.default_rng(5)
    x = torch.from_numpy(rng.standard_normal((6, 256)).astype(np.float32))
    bias = torch.from_numpy(rng.standard_normal(40).astype(np.float32))
    for matrix in all_matrices(rng):
        y = linear(x, matrix, bias)
        weights = matrix.dequantize(torch.float32).double()
        expected = x.double() @ weights.T + bias
        tolerance = {None: 1e-5, "int8": 0.02, "fp8": 0.06}[matrix.kind]
        error = (y - expected).norm() / (expected - bias).norm()
        assert error < tolerance
        for row in range(6):  # the law
            assert torch.equal(linear(x[row : row + 1], matrix, bias)[0], y[row])
        assert linear(x, matrix, bias, torch.bfloat16).dtype == torch.bfloat16
