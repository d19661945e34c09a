"""Epilogues, and that nothing outside of the asked range is touched."""

from __future__ import annotations

import gemm_cases as cases
import numpy as np
import pytest

from trimtab import _native


def run(
    isa: str, how: tuple[str, int], n: int, epilogue: int, biased: bool, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(out after the epilogue, y = x w^T + bias by the store epilogue)"""
    k = 90
    x, w = cases.matrix(start.shape[0], k), cases.matrix(n, k, seed=1)
    bias = cases.matrix(1, n, seed=2)[0] if biased else None
    packed = _native.KernelMatrix(isa, how[0], w, how[1])
    out = start.copy()
    packed.gemm(packed.prepare(x), out, 0, start.shape[0], 0, packed.num_panels, bias, epilogue)
    plain = cases.gemm(isa, *how, x, w)
    return out, plain if bias is None else plain + bias


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize("how", cases.FORMATS, ids=cases.FORMAT_IDS)
@pytest.mark.parametrize("biased", [False, True])
def test_store_and_add(isa: str, how: tuple[str, int], biased: bool) -> None:
    start = cases.matrix(5, 77, seed=5)
    out, y = run(isa, how, 77, cases.STORE, biased, start)
    assert np.array_equal(out, y)
    out, y = run(isa, how, 77, cases.ADD, biased, start)
    assert np.array_equal(out, start + y)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize("how", cases.FORMATS, ids=cases.FORMAT_IDS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("epilogue", [cases.GATED_SILU, cases.GATED_GELU])
def test_gates_take_panels_in_pairs(
    isa: str, how: tuple[str, int], biased: bool, epilogue: int
) -> None:
    out, y = run(isa, how, 96, epilogue, biased, np.zeros((19, 48), np.float32))
    panels = y.astype(np.float64).reshape(19, 3, 2, 16)
    gate, up = panels[:, :, 0].reshape(19, 48), panels[:, :, 1].reshape(19, 48)
    want = (silu if epilogue == cases.GATED_SILU else gelu_tanh)(gate) * up
    assert np.allclose(out, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize("how", cases.FORMATS, ids=cases.FORMAT_IDS)
@pytest.mark.parametrize("epilogue", [cases.STORE, cases.ADD, cases.GATED_SILU])
def test_nothing_outside_the_range_is_written(
    isa: str, how: tuple[str, int], epilogue: int
) -> None:
    n = 128 if epilogue == cases.GATED_SILU else 117
    tiny = np.float32(1e-9)  # what is added to it shows, unless it is 0
    x, w = cases.matrix(9, 70), cases.matrix(n, 70, seed=2)
    packed = _native.KernelMatrix(isa, how[0], w, how[1])
    rows = packed.prepare(x)
    columns = n // 2 if epilogue == cases.GATED_SILU else n
    scale = 2 if epilogue == cases.GATED_SILU else 1
    for p0, p1, m0, m1 in [(0, packed.num_panels, 0, 9), (2, 6, 3, 8), (4, 4, 0, 9), (0, 2, 5, 5)]:
        frame = np.full((11, columns + 40), tiny)
        packed.gemm(rows, frame[1:-1, 20:-20], m0, m1, p0, p1, None, epilogue)
        first, last = p0 * 16 // scale, min(p1 * 16 // scale, columns)
        written = frame != tiny
        inside = np.zeros_like(written)
        inside[1 + m0 : 1 + m1, 20 + first : 20 + last] = True
        assert not (written & ~inside).any()
        assert (written | ~inside).all()
