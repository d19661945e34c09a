"""What the law costs: trimtab's row-invariant products and attention beside the vendor's (and
FlashInfer's, where it is installed), on the shapes of the models; and whether theirs would keep it.

Each product is timed over copies of its weights that together exceed the caches of the card.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from gpu import flashinfer_peer
from gpu.context import Context
from gpu.shapes import spec_of
from gpu.timing import device_seconds, median
from trimtab.models.spec import ModelSpec

ROWS = (1, 8, 64, 256, 2048)
TINY_ROWS = (1, 3)
COLD_BYTES = 256 << 20  # several times the second-level cache
LENGTHS = (2048, 8192)
TINY_LENGTHS = (40,)
STREAMS = ((64, 2048), (1, 8192))  # sequences that decode, and the context of each
TINY_STREAMS = ((3, 40),)


def run(context: Context) -> None:
    from trimtab.executors.gpu.devices import choose_ops

    settings = context.settings
    ops = choose_ops(torch.device(settings.device))
    row_counts = TINY_ROWS if settings.tiny else ROWS
    lengths = TINY_LENGTHS if settings.tiny else LENGTHS
    streams = TINY_STREAMS if settings.tiny else STREAMS
    shapes = context.arguments["shapes"]
    context.plan(
        [f"{shape} {rows} rows" for shape in shapes for rows in row_counts]
        + [f"{shape} attention {length}" for shape in shapes for length in lengths]
        + [f"{shape} decode {n} x {length}" for shape in shapes for n, length in streams]
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
            for number, length in streams:
                name = f"{shape} decode {number} x {length}"
                if context.has_time(name, 2.0 if settings.device == "cuda" else 0.5):
                    context.attempt(
                        name,
                        lambda: decode_attention(context, ops, spec, number, length),  # noqa: B023
                    )


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
    """A prompt of so many tokens in one layer: torch's own (flash, where it has it), FlashInfer's
    where it is installed, and ours, on K and V that lie in a cache of blocks."""
    return _attention(context, ops, spec, [length], [length])


def decode_attention(
    context: Context, ops: Any, spec: ModelSpec, streams: int, length: int
) -> dict[str, Any]:
    """One row each of so many sequences, likewise."""
    return _attention(context, ops, spec, [1] * streams, [length] * streams)


def _attention(
    context: Context, ops: Any, spec: ModelSpec, row_counts: list[int], contexts: list[int]
) -> dict[str, Any]:
    from trimtab.executors.gpu.cache import KVCache

    device = context.settings.device
    heads, kv, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    count, rows, length = len(contexts), row_counts[0], contexts[0]
    q = torch.randn(count * rows, heads, dim, device=device, dtype=torch.bfloat16)
    blocks = -(-length // 16)
    cache = KVCache(count * blocks, 16, kv, dim, "bf16", device)
    for tensor in cache.tensors:
        tensor.normal_()
    table = torch.arange(count * blocks, dtype=torch.int32, device=device).view(count, blocks)
    keys, values = (
        one.reshape(count, -1, kv, dim)[:, :length].transpose(1, 2).contiguous()
        for one in (cache.keys, cache.values)
    )
    queries = q.view(count, rows, heads, dim).transpose(1, 2).contiguous()

    def vendor(queries: Tensor = queries) -> Tensor:
        return scaled_dot_product_attention(
            queries, keys, values, is_causal=queries.shape[2] > 1, scale=dim**-0.5, enable_gqa=True
        )

    starts = torch.arange(0, count * rows + 1, rows, dtype=torch.int32, device=device)
    positions = torch.arange(length - rows, length, dtype=torch.int32, device=device).repeat(count)

    def ours() -> Tensor:
        out: Tensor = ops.attention(
            q, cache, starts, positions, table, dim**-0.5, 0, 0.0, rows, length
        )
        return out

    theirs = vendor().transpose(1, 2).reshape(count * rows, -1)
    error = float((ours().float() - theirs.float()).abs().max())
    last_alone = vendor(queries[:1, :, -1:].contiguous().expand(count, -1, -1, -1))
    invariant = torch.equal(last_alone[0].reshape(-1), theirs[rows - 1])
    seconds = {
        f"{name}_s": median(device_seconds([call], device, 5))
        for name, call in (("vendor", vendor), ("ours", ours))
    }
    return {
        **seconds,
        "ours_of_vendor": seconds["ours_s"] / seconds["vendor_s"],
        "vendor_rows_invariant": invariant,
        **_flashinfer(device, q, cache, row_counts, contexts, table.tolist()),
        "largest_difference": error,
        "passed": error < 0.05,
    }


def _flashinfer(
    device: str,
    q: Tensor,
    cache: Any,
    row_counts: list[int],
    contexts: list[int],
    tables: list[list[int]],
) -> dict[str, Any]:
    """What it is beside ours; nothing where it is not installed. A failure of it is a result."""
    if not flashinfer_peer.is_installed():
        return {}
    scale = float(q.shape[-1]) ** -0.5
    try:
        call = flashinfer_peer.planned(q, cache, row_counts, contexts, tables, scale)
        last = row_counts[0] - 1
        alone = flashinfer_peer.planned(
            q[last : last + 1], cache, [1], contexts[:1], tables[:1], scale
        )
        return {
            "flashinfer_rows_invariant": torch.equal(call()[last], alone()[0]),
            "flashinfer_s": median(device_seconds([call], device, 5)),
        }
    except Exception as error:  # whatever another project's kernels may raise
        return {"flashinfer_error": f"{type(error).__name__}: {error}"[:200]}
