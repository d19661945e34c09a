"""Matrices of integers as checkpoints store them: the same integers in the kernels, bit for bit the
reference, whatever rows and panels a call holds."""

from __future__ import annotations

import gemm_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_matrices import (
    KIND_IDS,
    KINDS,
    Kind,
    fp8_matrix,
    kernel_matrix,
    regrouped,
    stored_matrix,
)

from trimtab.errors import CheckpointError
from trimtab.numerics.gemm import gemm_stored
from trimtab.numerics.stored import Fp8Matrix

EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)


def expected(kind: Kind, x: np.ndarray, matrix: object) -> np.ndarray:
    w = regrouped(matrix)  # type: ignore[arg-type]
    if kind.name == "int8-row":  # one product of scales a row, as int8 at load
        from trimtab.numerics.gemm import group_sums
        from trimtab.numerics.quantization import Quantized, quantize_activations

        qx = quantize_activations(x)
        sums = group_sums(qx, Quantized(w.values, w.scales, w.values.shape[1]))[:, :, 0]
        scales = qx.scales * w.scales.T
        return sums.astype(np.float32) * scales
    return gemm_stored(x, w)


@pytest.mark.parametrize("isa", cases.ISAS)
@EVERY_KIND
@pytest.mark.parametrize(("m", "n", "k"), [(1, 16, 32), (5, 33, 70), (19, 66, 520), (70, 40, 300)])
def test_equals_the_reference(isa: str, kind: Kind, m: int, n: int, k: int) -> None:
    matrix = stored_matrix(kind, n, k, seed=n)
    x = cases.matrix(m, matrix.shape[1], seed=k)
    packed = kernel_matrix(isa, matrix)
    y = np.full((m, n), np.nan, np.float32)
    packed.gemm(packed.prepare(x), y, 0, m, 0, packed.num_panels)
    assert np.array_equal(y, expected(kind, x, matrix))


@EVERY_KIND
def test_close_to_float64(kind: Kind) -> None:
    """The error is that of 8-bit activations: half a step of each, as a random walk over K."""
    matrix = stored_matrix(kind, 48, 640, seed=1)
    w = matrix.to_float32().astype(np.float64)
    x = cases.matrix(9, matrix.shape[1], seed=2)
    packed = kernel_matrix(cases.ISAS[0], matrix)
    y = np.full((9, 48), np.nan, np.float32)
    packed.gemm(packed.prepare(x), y, 0, 9, 0, packed.num_panels)
    error = np.abs(y - x.astype(np.float64) @ w.T)
    step = np.abs(x).max() / 127
    assert (error <= 6 * step / np.sqrt(12) * np.sqrt((w**2).sum(axis=1))[None, :]).all()


@pytest.mark.parametrize("isa", cases.ISAS)
@EVERY_KIND
def test_any_number_of_rows_equals_each_row_alone(isa: str, kind: Kind) -> None:
    n = 97
    matrix = stored_matrix(kind, n, 700, seed=3)
    packed = kernel_matrix(isa, matrix)
    rows = packed.prepare(cases.matrix(70, matrix.shape[1]))
    alone = np.full((70, n), np.nan, np.float32)
    for m in range(70):
        packed.gemm(rows, alone, m, m + 1, 0, packed.num_panels)
    for m in range(1, 71, 3):
        together = np.full((70, n), np.nan, np.float32)
        packed.gemm(rows, together, 0, m, 0, packed.num_panels)
        assert np.array_equal(together[:m], alone[:m])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    isa=st.sampled_from(cases.ISAS),
    m=st.integers(1, 40),
    n=st.integers(1, 130),
    k=st.integers(1, 600),
    cut=st.integers(0, 8),
)
def test_any_shape_and_split(kind: Kind, isa: str, m: int, n: int, k: int, cut: int) -> None:
    matrix = stored_matrix(kind, n, max(k, 4), seed=k)
    x = cases.matrix(m, matrix.shape[1], seed=m)
    packed = kernel_matrix(isa, matrix)
    rows = packed.prepare(x)
    y = np.full((m, n), np.nan, np.float32)
    middle = min(2 * cut, packed.num_panels)
    packed.gemm(rows, y, 0, m, middle, packed.num_panels)
    packed.gemm(rows, y, 0, m, 0, middle)
    assert np.array_equal(y, expected(kind, x, matrix))


@EVERY_KIND
def test_rows_come_back_as_elements(kind: Kind) -> None:
    matrix = stored_matrix(kind, 70, 500, seed=5)
    packed = kernel_matrix("portable", matrix)
    found = np.stack([packed.dequantize(row) for row in range(70)])
    assert np.array_equal(found, matrix.to_float32())


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize(("rows", "cols", "block"), [(48, 256, (128, 128)), (70, 300, (32, 64))])
def test_float8_equals_its_float32_matrix(
    isa: str, rows: int, cols: int, block: tuple[int, int]
) -> None:
    random = np.random.default_rng(rows)
    bits = random.integers(0, 127, (rows, cols)) + 128 * random.integers(0, 2, (rows, cols))
    bits[0, :16] = np.arange(16)  # denormals
    blocks = (-(-rows // block[0]), -(-cols // block[1]))
    scales = random.normal(0, 0.01, blocks).astype(np.float32)
    matrix = Fp8Matrix(bits.astype(np.uint8), scales, *block)
    packed = fp8_matrix(isa, matrix)
    x = cases.matrix(70, cols)
    want = cases.gemm(isa, "f32", 0, x, matrix.to_float32())
    for first, last in [(0, 70), (3, 4), (5, 11)]:
        y = np.full((70, rows), np.nan, np.float32)
        packed.gemm(packed.prepare(x), y, first, last, 0, packed.num_panels)
        assert np.array_equal(y[first:last], want[first:last])


def test_float8_that_is_not_a_number_is_refused() -> None:
    matrix = Fp8Matrix(np.full((16, 32), 127, np.uint8), np.ones((1, 1), np.float32), 16, 32)
    with pytest.raises(CheckpointError, match="not a number"):
        fp8_matrix("portable", matrix)
