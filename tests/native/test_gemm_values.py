"""GEMM values: bit for bit the numpy reference of the same arithmetic, and close to float64."""

from __future__ import annotations

import gemm_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.numerics import gemm as reference

SHAPES = [(1, 16, 32), (2, 1, 1), (5, 33, 70), (7, 50, 129), (19, 66, 260), (70, 100, 97)]


def expected(
    isa: str, weight_format: str, group_size: int, x: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray | float]:
    """The reference and how far from it a right answer may be: 0, but for vdpbf16ps, which adds in
    another order and takes denormal numbers for zero."""
    y = reference.gemm(x, w, weight_format, group_size)
    if (isa, weight_format) != ("avx512", "bf16"):
        return y, 0.0
    x, w = np.abs(x), np.abs(w)
    denormal = np.finfo(np.float32).tiny * (x.sum(1)[:, None] + w.sum(1)[None, :])
    return y, x @ w.T * np.float32(x.shape[1] * 2.0**-23) + denormal


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_equals_the_reference(
    isa: str, weight_format: str, group_size: int, m: int, n: int, k: int
) -> None:
    x, w = cases.matrix(m, k, seed=k), cases.matrix(n, k, seed=n)
    y = cases.gemm(isa, weight_format, group_size, x, w)
    want, tolerance = expected(isa, weight_format, group_size, x, w)
    assert (np.abs(y - want) <= tolerance).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 80),
    k=st.integers(1, 300),
    path=st.sampled_from(cases.ISAS),
    how=st.sampled_from(cases.FORMATS),
    magnitude=st.sampled_from([1e-20, 1e-3, 1.0, 1e4]),
)
def test_random_shapes(
    m: int, n: int, k: int, path: str, how: tuple[str, int], magnitude: float
) -> None:
    x, w = cases.matrix(m, k, seed=m) * np.float32(magnitude), cases.matrix(n, k, seed=n)
    y = cases.gemm(path, *how, x, w)
    want, tolerance = expected(path, *how, x, w)
    assert (np.abs(y - want) <= tolerance).all()


# Quantization error of one product, relative to (row absmax x) * (row absmax w): half a step of
# each operand; errors of K products add up like a random walk (5 sigma of a uniform error).
STEPS = {"int8": (0.5 / 127, 0.5 / 127), "int4": (0.5 / 127, 0.5 / 7 * 1.001)}


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
def test_close_to_float64(isa: str, weight_format: str, group_size: int) -> None:
    m, n, k = 9, 48, 640
    x, w = cases.matrix(m, k, seed=1), cases.matrix(n, k, seed=2)
    y = cases.gemm(isa, weight_format, group_size, x, w)
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    error = np.abs(y - exact)
    if weight_format in STEPS:
        step_x, step_w = STEPS[weight_format]
        largest_x = np.abs(x).max(axis=1)[:, None]
        largest_w = np.abs(w).max(axis=1)[None, :]
        typical_x, typical_w = np.abs(x).max() / 3, np.abs(w).max() / 3
        one = step_x * largest_x * typical_w + step_w * largest_w * typical_x
        assert (error <= 5 / np.sqrt(3) * np.sqrt(k) * one).all()
        assert error.max() > 1e-4  # it did quantize
    else:
        unit = 2.0**-24 if weight_format == "f32" else 2.0**-8
        bound = (np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T) * unit
        rounding = np.sqrt(k) if weight_format == "f32" else 0.5
        assert (error <= bound * rounding).all()
        if weight_format == "bf16":
            assert error.max() > 1e-4


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
def test_extremes(isa: str, weight_format: str, group_size: int) -> None:
    k = 256
    w = cases.matrix(32, k)
    w[3] = 0
    w[4] = 1e-38
    w[5, 7] = 1e4
    x = cases.matrix(6, k, seed=3)
    x[0] = 0
    x[1] = 1e-42  # denormal
    x[2, 5] = 1e4  # outlier
    x[3] = np.where(np.arange(k) % 2, 1e4, -1e4)
    x[4, 128:] = 0  # a group of zeros
    y = cases.gemm(isa, weight_format, group_size, x, w)
    assert np.isfinite(y).all()
    assert (y[0] == 0).all()
    assert (y[:, 3] == 0).all()
    assert np.abs(y[1]).max() < 1e-30
    want, tolerance = expected(isa, weight_format, group_size, x, w)
    assert (np.abs(y - want) <= tolerance).all()


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_spoils_its_own_row_only(
    isa: str, weight_format: str, group_size: int, bad: float
) -> None:
    x, w = cases.matrix(4, 200), cases.matrix(33, 200, seed=1)
    clean = cases.gemm(isa, weight_format, group_size, x, w)
    x[2, 77] = bad
    y = cases.gemm(isa, weight_format, group_size, x, w)
    assert not np.isfinite(y[2]).any()
    assert np.array_equal(np.delete(y, 2, axis=0), np.delete(clean, 2, axis=0))


@pytest.mark.parametrize(("weight_format", "group_size"), cases.FORMATS, ids=cases.FORMAT_IDS)
def test_long_rows_stay_exact(weight_format: str, group_size: int) -> None:
    """The largest integer sums that a K of 20,000 can have: no int16 or int32 overflow."""
    k = 20_000
    x, w = np.full((3, k), 2.0, np.float32), np.full((32, k), -7.0, np.float32)
    w[::2] = 7
    for isa in cases.ISAS:
        y = cases.gemm(isa, weight_format, group_size, x, w)
        assert np.allclose(y, np.where(np.arange(32) % 2, -14.0 * k, 14.0 * k), rtol=1e-4)
