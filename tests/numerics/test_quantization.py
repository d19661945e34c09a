from __future__ import annotations

import numpy as np
import pytest

from trimtab.numerics import quantization as q
from trimtab.numerics.gemm import gemm, group_sums


def matrix(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng(cols).standard_normal((rows, cols)).astype(np.float32)


def test_errors_are_at_most_half_a_step_or_what_int4_clips() -> None:
    x = matrix(8, 200)
    for result in (q.quantize_weights_int8(x), q.quantize_activations(x)):
        assert np.abs(result.values).max() == 127
        assert (np.abs(result.dequantize() - x) <= result.scales * 0.5001).all()
    for group_size in (32, 64, 128):
        activations = q.quantize_activations(x, group_size)
        weights = q.quantize_weights_int4(x, group_size)
        for result, slack in ((activations, 0.5001), (weights, 1.51)):
            steps = np.abs(np.repeat(result.scales, group_size, axis=1)[:, :200])
            assert (np.abs(result.dequantize()[:, :200] - x) <= steps * slack).all()
            assert not result.values[:, 200:].any()
        assert weights.values.min() >= -8
        assert weights.values.max() <= 7
        assert np.array_equal(weights.scales, weights.scales.astype(np.float16))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x = matrix(6, 100)
    for function in (
        q.quantize_weights_int8,
        q.quantize_activations,
        lambda v: q.quantize_weights_int4(v, 32),
        lambda v: q.quantize_activations(v, 32),
    ):
        whole, one = function(x), function(x[3:4])
        assert np.array_equal(whole.values[3:4], one.values)
        assert np.array_equal(whole.scales[3:4], one.scales)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_int4_scales_err_less_than_the_largest_weight_over_seven(group_size: int) -> None:
    x = matrix(64, 256)
    groups = x.reshape(64, -1, group_size)
    scales = (np.abs(groups).max(2, keepdims=True) / 7).astype(np.float16).astype(np.float32)
    plain = np.square(np.rint(groups / scales) * scales - groups).sum(2)
    ours = np.square(
        (q.quantize_weights_int4(x, group_size).dequantize() - x).reshape(groups.shape)
    )
    assert (ours.sum(2) <= plain * 1.00001).all()
    assert ours.sum() < 0.75 * plain.sum()


@pytest.mark.parametrize("value", [0.0, 1e-42, 1e-38])
def test_rows_without_information_become_zeros(value: float) -> None:
    x = np.full((2, 64), value, np.float32)
    for result in (
        q.quantize_weights_int8(x),
        q.quantize_weights_int4(x, 32),
        q.quantize_activations(x),
        q.quantize_activations(x, 64),
    ):
        assert not result.values.any()
        assert not result.scales.any()


def test_half_way_goes_to_even() -> None:
    x = np.array([[127.0, 0.5, 1.5, -0.5, -2.5, 126.5]], np.float32)
    assert q.quantize_activations(x).values.tolist() == [[127, 0, 2, 0, -2, 126]]
    w = np.array([[7.0, 0.5, 1.5, -2.5, -7.0, 6.5] + [7.0, -7.0] * 13], np.float32)
    assert q.quantize_weights_int4(w, 32).values[0, :6].tolist() == [7, 0, 2, -2, -7, 6]


def test_a_product_of_integers_is_exact() -> None:
    """With scales of 1 the whole GEMM is integer arithmetic."""
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, (5, 256)).astype(np.float32)
    x[:, ::32] = 127
    w = rng.integers(-7, 8, (9, 256)).astype(np.float32)
    w[:, ::32] = 7
    assert np.array_equal(gemm(x, w, "int4", 32), x @ w.T)
    w8 = rng.integers(-127, 128, (9, 256)).astype(np.float32)
    w8[:, 0] = 127
    assert np.array_equal(gemm(x, w8, "int8", 0), x @ w8.T)
    sums = group_sums(q.quantize_activations(x, 64), q.quantize_weights_int4(w, 64))
    assert np.array_equal(sums.sum(axis=2), x @ w.T)
