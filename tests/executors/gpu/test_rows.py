"""Norms, gates and row quantization: kernels against the plain functions."""

from __future__ import annotations

import pytest
import torch
from kernel_switch import DEVICE, floats_overflow  # noqa: F401

from trimtab.executors.gpu import gated, norm, quantize
from trimtab.executors.gpu import row_reference as reference

pytestmark = pytest.mark.usefixtures("floats_overflow")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def rows(seed: int, num_rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(num_rows, cols, generator=generator)
        * torch.tensor([[0.1], [3.0], [50.0]])[torch.arange(num_rows) % 3]
    )
    return x.to(dtype).to(DEVICE)


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = TOLERANCE[actual.dtype]
    return torch.allclose(actual.float(), expected.float(), rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("cols", [1, 100, 512, 2500])
def test_quantize_equals_reference(dtype: torch.dtype, kind, cols: int) -> None:
    x = rows(cols, 6, cols, dtype)
    x[1] = 0
    x[2] *= 1e-35
    x[3, 0] = x[3].abs().max() * 2  # the largest comes first
    actual, expected = quantize.quantize_rows(x, kind), reference.quantize_rows(x, kind)
    assert torch.equal(actual[0].float(), expected[0].float())
    assert torch.equal(actual[1], expected[1])
    for row in range(6):
        alone = quantize.quantize_rows(x[row : row + 1], kind)
        assert torch.equal(alone[0][0].float(), actual[0][row].float())


def test_ties_go_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]], device=DEVICE)
    q, scales = quantize.quantize_rows(x, "int8")
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -126]]
    assert scales.tolist() == [1.0]
    x = torch.tensor([[448.0, 17.0, 19.0, 0.0029296875, -432.0]], device=DEVICE)
    q, scales = quantize.quantize_rows(x, "fp8")
    assert q.float().tolist() == [[448.0, 16.0, 20.0, 0.00390625, -448.0]]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(kind, bad: float) -> None:
    x = rows(1, 3, 64, torch.float32)
    x[1, 5] = bad
    for function in (quantize.quantize_rows, reference.quantize_rows):
        q, scales = function(x, kind)
        sums = q.float().sum(1) * scales
        assert torch.isfinite(sums).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 100, 1152])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms(dtype: torch.dtype, hidden: int, offset: float) -> None:
    x, residual = rows(1, 5, hidden, dtype), rows(2, 5, hidden, dtype)
    weight = torch.randn(hidden, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    arguments = (weight, 1e-5, offset)
    y = norm.rms_norm(x, *arguments)
    assert close(y, reference.rms_norm(x, *arguments))
    z, total = norm.add_rms_norm(x, residual, *arguments)
    expected, expected_total = reference.add_rms_norm(x, residual, *arguments)
    assert torch.equal(total, expected_total)
    assert close(z, expected)
    assert torch.equal(z, norm.rms_norm(total, *arguments))
    for kind in ("int8", "fp8"):
        q, scales = norm.rms_norm_quantize(x, *arguments, kind)
        plain = quantize.quantize_rows(y, kind)
        assert torch.equal(q.float(), plain[0].float())
        assert torch.equal(scales, plain[1])
        q, scales, other_total = norm.add_rms_norm_quantize(x, residual, *arguments, kind)
        plain = quantize.quantize_rows(z, kind)
        assert torch.equal(q.float(), plain[0].float())
        assert torch.equal(scales, plain[1])
        assert torch.equal(other_total, total)
    for row in range(5):
        assert torch.equal(norm.rms_norm(x[row : row + 1], *arguments)[0], y[row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [32, 1100])
def test_gates(dtype: torch.dtype, activation, width: int) -> None:
    x = rows(4, 4, 2 * width, dtype)
    x[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -90.0])
    y = gated.gated(x, activation)
    assert torch.isfinite(y).all()
    assert close(y, reference.gated(x, activation))
    for kind in ("int8", "fp8"):
        q, scales = gated.gated_quantize(x, activation, kind)
        plain = quantize.quantize_rows(y, kind)
        assert torch.equal(q.float(), plain[0].float())
        assert torch.equal(scales, plain[1])
    for row in range(4):
        assert torch.equal(gated.gated(x[row : row + 1], activation)[0], y[row])


def test_no_rows() -> None:
    x = torch.zeros(0, 64, device=DEVICE)
    weight = torch.ones(64, device=DEVICE)
    assert norm.rms_norm(x, weight, 1e-5, 0.0).shape == (0, 64)
    assert gated.gated(x, "silu").shape == (0, 32)
    assert gated.gated_quantize(x, "silu", "int8")[0].shape == (0, 32)
    assert quantize.quantize_rows(x, "fp8")[1].shape == (0,)


def test_rows_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="65536"):
        quantize.quantize_rows(torch.zeros(1, 70000, device=DEVICE), "int8")
