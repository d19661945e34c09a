"""Norms, gates and the quantization of rows in plain torch: what the kernels are compared with.

float32 inside, rounded where the kernels round. A function that quantizes gives the same bits as
the plain one and `quantize_rows` after it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trimtab.executors.gpu.matrices import Kind

Activation = Literal["silu", "gelu_tanh"]

SMALLEST_ABSMAX = 2.0**-100  # of numerics/quantization.py: rows without information become 0
LARGEST = {"int8": 127.0, "fp8": 448.0}
GELU_SCALE = 1.5957691216057308  # 2 sqrt(2 / pi)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """x [T, H] / sqrt(mean(x^2) + eps) * (offset + weight [H]), in x's dtype."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * (weight.float() + offset)).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum): residual + x is rounded to its dtype, then normed."""
    total = (residual.float() + x.float()).to(residual.dtype)
    return rms_norm(total, weight, eps, offset), total


def rms_norm_quantize(
    x: Tensor, weight: Tensor, eps: float, offset: float, kind: Kind
) -> tuple[Tensor, Tensor]:
    return quantize_rows(rms_norm(x, weight, eps, offset), kind)


def add_rms_norm_quantize(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, kind: Kind
) -> tuple[Tensor, Tensor, Tensor]:
    """(q, scales, the sum)"""
    normed, total = add_rms_norm(x, residual, weight, eps, offset)
    return (*quantize_rows(normed, kind), total)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up of gate_up [T, 2I]: [T, I] in its dtype."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    inner = gate
    if activation == "gelu_tanh":  # x (1 + tanh(y)) / 2 = x sigmoid(2 y)
        inner = GELU_SCALE * (gate + 0.044715 * (gate * gate * gate))
    return (gate * torch.sigmoid(inner) * up).to(gate_up.dtype)


def gated_quantize(gate_up: Tensor, activation: Activation, kind: Kind) -> tuple[Tensor, Tensor]:
    return quantize_rows(gated(gate_up, activation), kind)


def quantize_rows(x: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """(q [T, K] int8 or float8_e4m3fn, scales [T] float32): q = round(x * (L / absmax)), scale =
    absmax / L, L the largest value of the kind; ties to even. x is finite."""
    wide = x.float()
    absmax = wide.abs().amax(-1, keepdim=True)
    empty = absmax < SMALLEST_ABSMAX
    divisors = torch.where(empty, 1.0, absmax)
    scales = torch.where(empty, 0.0, divisors / LARGEST[kind])
    inverses = torch.where(empty, 0.0, torch.full_like(divisors, LARGEST[kind]) / divisors)
    scaled = (wide * inverses).clamp(-LARGEST[kind], LARGEST[kind])
    values = scaled.round().to(torch.int8) if kind == "int8" else scaled.to(torch.float8_e4m3fn)
    return values, scales[:, 0]
