"""What the GEMM tests share: every path and format, and one call of each kernel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trimtab import _native

Float32Array = npt.NDArray[np.float32]

ISAS = _native.available_isas()
FORMATS = [
    ("f32", 0),
    ("bf16", 0),
    ("int8", 0),
    *((weights, group) for weights in ("int8", "int4") for group in (32, 64, 128)),
]
FORMAT_IDS = [f"{weights}-g{group}" if group else weights for weights, group in FORMATS]

STORE, ADD, GATED_SILU, GATED_GELU = range(4)


def matrix(rows: int, cols: int, seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def gemm(
    isa: str,
    weight_format: str,
    group_size: int,
    x: Float32Array,
    w: Float32Array,
    bias: Float32Array | None = None,
) -> Float32Array:
    """y[M, N] in one call, store epilogue."""
    packed = _native.KernelMatrix(isa, weight_format, w, group_size)
    out = np.full((x.shape[0], w.shape[0]), np.nan, np.float32)
    packed.gemm(packed.prepare(x), out, 0, x.shape[0], 0, packed.num_panels, bias, STORE)
    return out
