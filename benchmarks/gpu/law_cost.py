"""What the law costs: trimtab's row-invariant products and attention beside the vendor's, on the
shapes of the models; and whether the vendor's would keep the law.

Each product is timed over copies of its weights that together exceed the caches of the card.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from gpu.context import Context
from gpu.shapes import spec_of
from gpu.timing import device_seconds, median
from trimtab.models.spec import ModelSpec

ROWS = (1, 8, 64, 256, 2048)
TINY_ROWS = (1, 3)
COLD_BYTES = 256 << 20  # several times the second-level cache
LENGTHS = (2048, 8192)
TINY_LENGTHS = (40,)


def run(context: Context) -> None:
    from trimtab.executors.gpu.devices import choose_ops

    settings = context.settings
    ops = choose_ops(torch.device(settings.device))
    row_counts = TINY_ROWS if settings.tiny else ROWS
    lengths = TINY_LENGTHS if settings.tiny else LENGTHS
    shapes = context.arguments["shapes"]
    context.plan(
        [f"{shape} {rows} rows" for shape in shapes for rows in row_counts]
        + [f"{shape} attention {length}" for shape in shapes for length in lengths]
    )
    with torch.inference_mode():
        for shape in shapes:
            spec = spec_of(shape, settings.tiny)
            for rows in row_counts:
                name = f"{shape} {rows} rows"
                if context.has_time(name, 2.0 if settings.device == "cuda" else 0.5):
                    context.attempt(name, lambda: products(context, ops, spec, rows))  # noqa: B023
            for length in lengths:
                name = f"{shape} attention {length}"
                if context.has_time(name, 2.0 if settings.device == "cuda" else 0.5):
                    context.attempt(name, lambda: attention(context, ops, spec, length))  # noqa: B023


def matrix_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """[N, K] of a layer's products, as they are fused."""
    heads, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size
    return {
        "qkv": (heads + 2 * kv, hidden),
        "o": (hidden, heads),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }


def products(context: Context, ops: Any, spec: ModelSpec, rows: int) -> dict[str, Any]:
    """Seconds of a layer's four products: the vendor's and ours."""
    from trimtab.executors.gpu.matrices import DenseMatrix

    device = context.settings.device
    dtype = torch.bfloat16
    cold = 0 if context.settings.tiny else COLD_BYTES
    totals = {"vendor_s": 0.0, "ours_s": 0.0}
    invariant = {"vendor": True, "ours": True}
    for n, k in matrix_shapes(spec).values():
        copies = max(1, min(64, cold // (n * k * 2)))
        weights = [torch.randn(n, k, device=device, dtype=dtype) * k**-0.5 for _ in range(copies)]
        x = torch.randn(rows, k, device=device, dtype=dtype)
        matrices = [DenseMatrix(weight) for weight in weights]

        def vendor(weight: Tensor, x: Tensor = x) -> Tensor:
            return linear(x, weight)

        def ours(matrix: Any, x: Tensor = x) -> Tensor:
            product: Tensor = ops.linear(x, matrix, None)
            return product

        for name, call, held in (("vendor", vendor, weights), ("ours", ours, matrices)):
            works = [lambda one=one, call=call: call(one) for one in held]
            totals[f"{name}_s"] += median(device_seconds(works, device, 5))
            alone = call(held[0], x[-1:].clone())
            invariant[name] &= torch.equal(call(held[0])[-1:], alone)
    return {
        **totals,
        "ours_of_vendor": totals["ours_s"] / totals["vendor_s"],
        "vendor_rows_invariant": invariant["vendor"],
        "passed": invariant["ours"],
    }


def attention(context: Context, ops: Any, spec: ModelSpec, length: int) -> dict[str, Any]:
    """A prompt of so many tokens in one layer: torch's own (flash, where it has it) and ours, on
    K and V that lie in a cache of blocks."""
    from trimtab.executors.gpu.cache import KVCache

    device = context.settings.device
    dtype = torch.bfloat16
    heads, kv, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    q = torch.randn(length, heads, dim, device=device, dtype=dtype)
    blocks = -(-length // 16)
    cache = KVCache(blocks, 16, kv, dim, "bf16", device)
    cache.keys.normal_()
    cache.values.normal_()
    keys, values = (
        one.reshape(-1, kv, dim)[:length].transpose(0, 1)[None].contiguous()
        for one in (cache.keys, cache.values)
    )
    queries = q.transpose(0, 1)[None].contiguous()

    def vendor() -> Tensor:
        return scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=dim**-0.5, enable_gqa=True
        )

    starts = torch.tensor([0, length], dtype=torch.int32, device=device)
    positions = torch.arange(length, dtype=torch.int32, device=device)
    table = torch.arange(blocks, dtype=torch.int32, device=device)[None]

    def ours() -> Tensor:
        out: Tensor = ops.attention(
            q, cache, starts, positions, table, dim**-0.5, 0, 0.0, length, length
        )
        return out

    theirs = vendor()[0].transpose(0, 1).reshape(length, -1).float()
    error = float((ours().float() - theirs).abs().max())
    seconds = {
        f"{name}_s": median(device_seconds([call], device, 5))
        for name, call in (("vendor", vendor), ("ours", ours))
    }
    return {
        **seconds,
        "ours_of_vendor": seconds["ours_s"] / seconds["vendor_s"],
        "largest_difference": error,
        "passed": error < 0.05,
    }
