"""Products: kernels against the plain functions, and the law, with exact equality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_switch import DEVICE
from stored_cases import floats, fp8, grouped

from trimtab.executors.gpu import gemm, gemm_plan, matrix_reference
from trimtab.executors.gpu.matrices import Matrix
from trimtab.executors.gpu.matrix_loading import load_matrix
from trimtab.executors.gpu.quantize import quantize_rows

CASES = {
    "dense": lambda rng, n, k: [floats(rng, n, k)],
    "int4 g32": lambda rng, n, k: [grouped(rng, n, k)],
    "int4 g128 zeros": lambda rng, n, k: [grouped(rng, n, k, group_size=128, offset="zero")],
    "int4 rows f32": lambda rng, n, k: [grouped(rng, n, k, group_size=k, scale_type="f32")],
    "int4 g16 offsets": lambda rng, n, k: [
        grouped(rng, n, k, group_size=16, offset="float", bits=3)
    ],
    "int4 g48 columns": lambda rng, n, k: [grouped(rng, n, k, group_size=48, ordered=False)],
    "int8 g32": lambda rng, n, k: [grouped(rng, n, k, bits=8, scale_type="bf16")],
    "int6 g64 zeros": lambda rng, n, k: [
        grouped(rng, n, k, bits=6, group_size=64, offset="zero", scale_type="f32")
    ],
    "int8": lambda rng, n, k: [grouped(rng, n, k, bits=8, group_size=k)],
    "fp8": lambda rng, n, k: [fp8(rng, n, k, 1, k)],
    "fp8 blocks": lambda rng, n, k: [fp8(rng, n, k, 128, 128)],
}


def matrix_of(name: str, rng: np.random.Generator, rows: int, cols: int) -> Matrix:
    parts = CASES[name.removesuffix(" alone")](rng, rows, cols)
    return load_matrix(parts, torch.float32, DEVICE, fp8_activations="alone" not in name)


def inputs(rng: np.random.Generator, num_rows: int, cols: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((num_rows, cols)).astype(np.float32)).to(DEVICE)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("name", [*CASES, "fp8 alone"])
@pytest.mark.parametrize(("rows", "cols"), [(64, 512), (70, 200), (5, 1100)])
def test_equals_reference(name: str, rows: int, cols: int) -> None:
    rng = np.random.default_rng(rows)
    matrix = matrix_of(name, rng, rows, cols)
    x, bias = inputs(rng, 3, cols), inputs(rng, 1, rows)[0]
    expected = matrix_reference.linear(x, matrix, bias)
    assert error(gemm.linear(x, matrix, bias), expected) < 1e-6
    assert error(gemm.linear(x, matrix), matrix_reference.linear(x, matrix)) < 1e-6
    half = gemm.linear(x, matrix, bias, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, gemm.linear(x, matrix, bias).bfloat16())


def everywhere(matrix: Matrix, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows of x have the bits that they have alone, in every kernel and every place."""
    some = [0, 1, 15, 16, 40, x.shape[0] - 1]
    alone = torch.cat([gemm.linear(x[row : row + 1], matrix) for row in some])
    full = gemm.linear(x, matrix)
    assert torch.equal(full[some], alone)
    for count in (2, 17, 33):
        assert torch.equal(gemm.linear(x[:count].contiguous(), matrix), full[:count]), count
    place = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(gemm.linear(x[place].contiguous(), matrix), full[place])
    monkeypatch.setattr(gemm_plan, "is_large", lambda *_: True)
    assert torch.equal(gemm.linear(x, matrix), full)
    monkeypatch.setattr(gemm_plan, "DEQUANTIZE_ROWS", 1)
    assert torch.equal(gemm.linear(x, matrix), full)
    assert not matrix.counters.any()


@pytest.mark.parametrize("name", ["dense", "int4 g128 zeros", "int8", "fp8 blocks"])
def test_the_law(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    matrix = matrix_of(name, rng, 130, 640)
    assert gemm_plan.splits_of(130, 640).count > 1
    everywhere(matrix, inputs(rng, 70, 640), monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["dense", "int4 g128 zeros", "int8 g32", "fp8 alone"])
def test_the_law_of_halves(name: str, dtype: torch.dtype, monkeypatch) -> None:
    rng = np.random.default_rng(6)
    parts = CASES[name.removesuffix(" alone")](rng, 65, 300)
    matrix = load_matrix(parts, dtype, DEVICE, fp8_activations=False)
    x = inputs(rng, 20, 300).to(dtype)
    alone = torch.cat([gemm.linear(x[row : row + 1], matrix) for row in range(20)])
    assert alone.dtype == dtype
    assert error(alone, matrix_reference.linear(x, matrix, None, torch.float32)) < 5e-3
    wide = gemm.linear(x, matrix, None, torch.float32)
    assert error(wide, matrix_reference.linear(x, matrix, None, torch.float32)) < 1e-6
    assert torch.equal(gemm.linear(x, matrix), alone)
    monkeypatch.setattr(gemm_plan, "is_large", lambda *_: True)
    monkeypatch.setattr(gemm_plan, "DEQUANTIZE_ROWS", 1)
    assert torch.equal(gemm.linear(x, matrix), alone)


@pytest.mark.parametrize("name", [name for name in CASES if "g" in name])
def test_dequantized_is_what_is_multiplied(name: str) -> None:
    rng = np.random.default_rng(7)
    for rows, cols in ((130, 200), (64, 512)):
        matrix = matrix_of(name, rng, rows, cols)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(gemm.dequantized(matrix, dtype), matrix.dequantize(dtype))


def test_int8_is_exact() -> None:
    rng = np.random.default_rng(8)
    matrix = matrix_of("int8", rng, 66, 1000)
    x = quantize_rows(inputs(rng, 4, 1000), "int8")
    actual = gemm.linear_quantized(x, matrix, None, torch.float32)
    expected = matrix_reference.linear_quantized(x, matrix, None, torch.float32)
    assert torch.equal(actual, expected)


def test_refusals() -> None:
    rng = np.random.default_rng(9)
    dense, packed = matrix_of("dense", rng, 8, 64), matrix_of("int4 g32", rng, 8, 64)
    x = inputs(rng, 2, 64)
    with pytest.raises(TypeError, match="quantized"):
        gemm.linear_quantized(quantize_rows(x, "int8"), dense)
    with pytest.raises(ValueError, match="contiguous"):
        gemm.linear(inputs(rng, 2, 65), dense)
    with pytest.raises(ValueError, match="contiguous"):
        gemm.linear(inputs(rng, 64, 64).T, packed)
    assert gemm.linear(x[:0], packed).shape == (0, 8)
    assert gemm.linear(x[:0], dense).shape == (0, 8)


@pytest.mark.parametrize("splits", [gemm_plan.splits_of, gemm_plan.packed_splits_of])
def test_splits_cover_all_columns(splits) -> None:
    for rows in (1, 64, 1024, 4096, 28672, 151936):
        for cols in (1, 127, 128, 896, 4096, 14336, 29568):
            found = splits(rows, cols)
            assert found.columns % gemm_plan.UNIT == 0
            assert (found.count - 1) * found.columns < cols <= found.count * found.columns
            assert found.count <= 8
    assert gemm_plan.splits_of(28672, 4096).count == 1
    assert gemm_plan.splits_of(4096, 4096).count == 2
    assert gemm_plan.packed_splits_of(4096, 14336).count == 4


def test_counters_suffice() -> None:
    """A counter for every tile of a product that is split."""
    for rows in (1, 64, 65, 1024, 8192, 21120, 28672):
        dense = load_matrix([floats(np.random.default_rng(0), rows, 1)], torch.float32, "cpu")
        for num_rows in (1, 64, 65, 511, 512, 8192, 65536):
            tiles = -(-rows // 64) * -(-num_rows // 128)
            large = gemm_plan.is_large(num_rows, rows)
            split = gemm_plan.splits_of(rows, 8192).count > 1 and not large
            packed_large = large and num_rows >= gemm_plan.DEQUANTIZE_ROWS
            split |= gemm_plan.packed_splits_of(rows, 8192).count > 1 and not packed_large
            assert not split or tiles <= dense.counters.shape[0], (rows, num_rows)
