"""The gate of an MLP, with the quantization after it. One pass: 4 I bytes of bf16 read and 2 I (of
8 bits: I) written a row. Same results as row_reference.py's functions, but for the last bits of the
exponential. Without quantization an element is a program's business alone; with it, a row is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.executors.gpu.matrices import Kind
from trimtab.executors.gpu.quantize import CODES, quantized_like, row_block, store_quantized
from trimtab.executors.gpu.row_reference import Activation

PIECE = 1024  # columns of a program that does not quantize


@triton.jit
def gated_kernel(
    gate_up, y, scales, WIDTH, BLOCK: tl.constexpr, GELU: tl.constexpr, KIND: tl.constexpr
):
    """Grid (rows, pieces of BLOCK columns); of KIND > 0 one piece a row."""
    row = tl.program_id(0)
    of_i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = of_i < WIDTH
    place = gate_up + row.to(tl.int64) * 2 * WIDTH + of_i
    gate = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(place + WIDTH, mask=mask, other=0.0).to(tl.float32)
    inner = gate
    if GELU:  # x (1 + tanh(y)) / 2 = x sigmoid(2 y)
        inner = 1.5957691216057308 * (gate + 0.044715 * (gate * gate * gate))
    # 1 + exp of a large number is infinity, and the quotient 0, as it should be.
    result = (gate / (1.0 + tl.exp(-inner)) * up).to(gate_up.dtype.element_ty)
    if KIND == 0:
        tl.store(y + row.to(tl.int64) * WIDTH + of_i, result, mask=mask)
    else:
        of_row = tl.where(mask, result.to(tl.float32), 0.0)
        store_quantized(of_row, y, scales, row, of_i, mask, WIDTH, KIND)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up of gate_up [T, 2I]: [T, I] in its dtype."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty((num_rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if num_rows > 0:
        gated_kernel[(num_rows, triton.cdiv(width, PIECE))](
            gate_up.contiguous(), y, y, width,
            BLOCK=PIECE, GELU=activation == "gelu_tanh", KIND=0, num_warps=4,
        )  # fmt: skip
    return y


def gated_quantize(gate_up: Tensor, activation: Activation, kind: Kind) -> tuple[Tensor, Tensor]:
    """The bits of gated, then quantize_rows."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    q, scales = quantized_like(gate_up, width, kind)
    if num_rows > 0:
        block, warps = row_block(width)
        gated_kernel[(num_rows, 1)](
            gate_up.contiguous(), q, scales, width,
            BLOCK=block, GELU=activation == "gelu_tanh", KIND=CODES[kind], num_warps=warps,
        )  # fmt: skip
    return q, scales
