"""exp, tanh, the gates and the roundings of every path, against float64, torch and numpy."""

from __future__ import annotations

from collections.abc import Callable

import gemm_cases as cases
import numpy as np
import pytest

from trimtab import _native
from trimtab.numerics.floats import round_to_bf16


def ulps(actual: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of the exact value's float32."""
    return np.abs(actual.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32))


def sample(limit: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    wide = rng.uniform(-limit, limit, 4000)
    near_zero = rng.standard_normal(2000) * 10.0 ** rng.uniform(-8, 0, 2000)
    return np.concatenate([wide, near_zero, [0.0]]).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, float]] = {
    # exact, range of x, largest error in ulps
    "exp": (np.exp, 87.0, 1.5),
    "tanh": (np.tanh, 12.0, 3.0),
    "sigmoid": (sigmoid, 80.0, 3.0),
    "silu": (lambda x: x * sigmoid(x), 80.0, 3.5),
    # relative error of the exponent's argument grows with it: a few ulps up to |x| = 3
    "gelu_tanh": (gelu_tanh, 3.0, 24.0),
}


@pytest.mark.parametrize("isa", cases.ISAS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_close_to_float64(isa: str, name: str) -> None:
    exact, limit, most = FUNCTIONS[name]
    x = sample(limit)
    assert ulps(_native.evaluate(isa, name, x), exact(x.astype(np.float64))).max() <= most


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_path_gives_the_same_bits(name: str) -> None:
    x = sample(100.0)
    want = _native.evaluate("portable", name, x)
    assert all(np.array_equal(_native.evaluate(isa, name, x), want) for isa in cases.ISAS)


@pytest.mark.parametrize("isa", cases.ISAS)
def test_limits(isa: str) -> None:
    x = np.array([-np.inf, -1e4, -87.4, 88.7, 88.8, 1e4, np.inf, np.nan], np.float32)
    exp = _native.evaluate(isa, "exp", x)
    assert (exp[:3] == 0).all()
    assert np.isclose(exp[3], np.exp(np.float64(x[3])), rtol=1e-5)
    assert (exp[4:7] == np.inf).all()
    assert np.isnan(exp[7])
    tanh = _native.evaluate(isa, "tanh", x)
    assert np.array_equal(tanh, [-1, -1, -1, 1, 1, 1, 1, np.nan], equal_nan=True)
    for gate in ("silu", "gelu_tanh"):
        y = _native.evaluate(isa, gate, x[1:6])
        assert y[0] == 0
        with np.errstate(over="ignore"):
            want = FUNCTIONS[gate][0](x[2:6].astype(np.float64))
        assert np.allclose(y[1:], want, rtol=1e-6, atol=0)


def awkward_floats() -> np.ndarray:
    """Random bits (every exponent, denormals, NaN, infinities), and ties of both roundings."""
    bits = np.random.default_rng(1).integers(0, 1 << 32, 20000, dtype=np.uint32)
    ties = bits[:4000] & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    half_ties = bits[:4000] & np.uint32(0xFFFFE000) | np.uint32(0x1000)
    x = np.concatenate([bits, ties, half_ties]).view(np.float32)
    middle = np.random.default_rng(2).standard_normal(4000) * 10.0 ** np.linspace(-9, 6, 4000)
    return np.concatenate([x, middle.astype(np.float32)])


@pytest.mark.parametrize("isa", cases.ISAS)
def test_rounding_to_bf16_equals_torch(isa: str) -> None:
    torch = pytest.importorskip("torch")
    x = awkward_floats()
    want = torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()
    assert np.array_equal(_native.evaluate(isa, "round_bf16", x), want, equal_nan=True)
    assert np.array_equal(round_to_bf16(x), want, equal_nan=True)


@pytest.mark.parametrize("isa", cases.ISAS)
def test_rounding_to_f16_equals_numpy(isa: str) -> None:
    x = awkward_floats()
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(np.float16).astype(np.float32)
    assert np.array_equal(_native.evaluate(isa, "round_f16", x), want, equal_nan=True)


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown vector function 'sin'"):
        _native.evaluate("portable", "sin", np.zeros(1, np.float32))
