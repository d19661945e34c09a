"""TritonOps: the operations of a step by kernels, for CUDA, or under Triton's interpreter.

Nothing here decides anything. A matrix's scratch counters make all steps belong to one stream.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from trimtab.executors.gpu import attention as attention_kernels
from trimtab.executors.gpu import gated as gated_kernels
from trimtab.executors.gpu import gemm, norm, quantize, rope_write, sampling
from trimtab.executors.gpu.matrices import Matrix
from trimtab.executors.gpu.ops import DeviceSampling, Quantized, SampleResult


class TritonOps:
    """Implements `trimtab.executors.gpu.ops.Ops`."""

    name = f"triton {triton.__version__}"

    rms_norm = staticmethod(norm.rms_norm)
    add_rms_norm = staticmethod(norm.add_rms_norm)
    rms_norm_quantize = staticmethod(norm.rms_norm_quantize)
    add_rms_norm_quantize = staticmethod(norm.add_rms_norm_quantize)
    quantize_rows = staticmethod(quantize.quantize_rows)
    qk_norm_rope_write = staticmethod(rope_write.qk_norm_rope_write)
    attention = staticmethod(attention_kernels.attention)
    gated = staticmethod(gated_kernels.gated)
    gated_quantize = staticmethod(gated_kernels.gated_quantize)

    def linear(
        self, x: Tensor, weight: Matrix, bias: Tensor | None, dtype: torch.dtype | None = None
    ) -> Tensor:
        return gemm.linear(x, weight, bias, dtype)

    def linear_quantized(
        self, x: Quantized, weight: Matrix, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        return gemm.linear_quantized(x, weight, bias, dtype)

    def softcap(self, logits: Tensor, cap: float) -> Tensor:
        return cap * torch.tanh(logits / cap)

    def sample(self, logits: Tensor, batch: DeviceSampling) -> SampleResult:
        return sampling.sample(logits, batch)
