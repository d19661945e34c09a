"""What the card can do, measured with the vendor's own routines: the limits of everything else.

    copy        bytes read and written by torch's copy of a buffer far larger than any cache
    read        bytes read by a sum over such a buffer
    bf16, fp8   floating point operations of a square matrix product, two for a multiply-add

A rate is the best median of the sizes tried; each median is of several samples.
"""

from __future__ import annotations

from typing import Any

import torch

from gpu.context import Context
from gpu.timing import median
from trimtab.executors.gpu.rates import Product, copy_samples, product_samples, read_samples

COPY_BYTES = 2 << 30
SIZES = (4096, 8192, 16384)
TINY_COPY_BYTES = 1 << 20
TINY_SIZES = (64, 128)
SUSTAINED = 0.25  # seconds a sample: clocks under load, not those of the first milliseconds


def run(context: Context) -> None:
    settings = context.settings
    context.plan(["copy", "read", "bf16", "fp8"])
    num_bytes = TINY_COPY_BYTES if settings.tiny else COPY_BYTES
    sizes = TINY_SIZES if settings.tiny else SIZES
    least = 0.0 if settings.tiny else SUSTAINED
    device = settings.device
    with torch.inference_mode():
        context.attempt("copy", lambda: copy_rate(device, num_bytes, least))
        context.attempt("read", lambda: read_rate(device, num_bytes, least))
        context.attempt("bf16", lambda: matmul_rate(device, sizes, least, "bf16"))
        context.attempt("fp8", lambda: matmul_rate(device, sizes, least, "fp8"))


def copy_rate(device: str, num_bytes: int, least: float) -> dict[str, Any]:
    return rate(copy_samples(device, num_bytes, least), unit="bytes", bytes=2 * num_bytes)


def read_rate(device: str, num_bytes: int, least: float) -> dict[str, Any]:
    return rate(read_samples(device, num_bytes, least), unit="bytes", bytes=num_bytes)


def matmul_rate(device: str, sizes: tuple[int, ...], least: float, kind: Product) -> dict[str, Any]:
    """RuntimeError where the card or this torch has no product of that kind."""
    by_size = {}
    best: list[float] = []
    for size in sizes:
        rates = [2 * value for value in product_samples(device, size, kind, least)]
        by_size[str(size)] = median(rates)
        if not best or median(rates) > median(best):
            best = rates
    return rate(best, unit="operations", by_size=by_size)


def rate(samples: list[float], **values: Any) -> dict[str, Any]:
    return {"per_s": median(samples), "low": min(samples), "high": max(samples), **values}
