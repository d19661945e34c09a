from __future__ import annotations

from fractions import Fraction

import numpy as np

from trimtab.numerics.floats import fma, from_bf16, round_to_bf16, to_bf16


def test_fma_is_the_float_nearest_to_the_exact_result() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(3000).astype(np.float32) for _ in range(2))
    c = (-(a * b) * rng.choice([0.0, 1.0, 1.0, 1e-7, 1e7], 3000)).astype(np.float32)
    for x, y, z, r in zip(a, b, c, fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(exact - Fraction(float(r)))
        for neighbour in (
            np.nextafter(r, np.float32(np.inf)),
            np.nextafter(r, np.float32(-np.inf)),
        ):
            other = abs(exact - Fraction(float(neighbour)))
            assert error < other or (error == other and r.view(np.uint32) & 1 == 0)


def test_fma_rounds_once_where_float64_would_round_twice() -> None:
    # a * b + c lies just above the midpoint of two floats, by less than float64 can hold
    a = b = np.float32(1 + 2.0**-12)
    c = np.float32(2.0**-40 * -1)
    big = np.float32(2.0**24)
    values = [(a, b, c), (np.float32(2.0**-20), np.float32(2.0**-20), np.float32(1 + 2.0**-23))]
    values.append((np.float32(1 + 2.0**-23), np.float32(2.0**-24 * 1.5), big))
    for x, y, z in values:
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        r = fma(*(np.array([v], np.float32) for v in (x, y, z)))[0]
        gap = abs(exact - Fraction(float(r)))
        assert gap <= Fraction(float(np.spacing(r))) / 2


def test_fma_of_what_is_not_finite() -> None:
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    a = np.array([inf, inf, nan, 1, 3e38], np.float32)
    b = np.array([1, 0, 1, 1, 10], np.float32)
    c = np.array([1, 1, 1, -inf, 0], np.float32)
    assert np.array_equal(fma(a, b, c), [inf, nan, nan, -inf, inf], equal_nan=True)


def test_bf16_known_values() -> None:
    x = np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -0.0, 3.4e38, np.nan], np.float32)
    assert to_bf16(x)[:4].tolist() == [0x3F80, 0x3F80, 0x3F82, 0x8000]
    y = round_to_bf16(x)
    assert y[4] == np.inf
    assert np.isnan(y[5])
    assert np.array_equal(from_bf16(to_bf16(y[:5])), y[:5])
