"""What a device can do, measured with the vendor's own routines: the limits of everything else.

    copy                     bytes read and written by a copy of a buffer far larger than caches
    read                     bytes read by a sum over such a buffer
    f32, bf16, fp8, int8     multiply-adds of a square matrix product

One value a sample, each a second.
"""

from __future__ import annotations

from typing import Literal

import torch

from trimtab.executors.gpu.timing import Work, device_seconds

Product = Literal["f32", "bf16", "fp8", "int8"]
PRODUCTS: tuple[Product, ...] = ("f32", "bf16", "fp8", "int8")
SAMPLES = 5


def copy_samples(device: torch.device | str, num_bytes: int, least: float) -> list[float]:
    """`least`: seconds that a sample takes at least, so that clocks are those under load."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = device_seconds([lambda: target.copy_(source)], device, SAMPLES, least)
    return [2 * num_bytes / value for value in seconds]


def read_samples(device: torch.device | str, num_bytes: int, least: float) -> list[float]:
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    seconds = device_seconds([lambda: source.sum()], device, SAMPLES, least)
    return [num_bytes / value for value in seconds]


def product_samples(
    device: torch.device | str, size: int, kind: Product, least: float
) -> list[float]:
    """Of two matrices of `size` rows and columns. RuntimeError where the device or this torch has
    no product of that kind."""
    seconds = device_seconds([product(device, size, kind)], device, SAMPLES, least)
    return [size**3 / value for value in seconds]


def product(device: torch.device | str, size: int, kind: Product) -> Work:
    held = torch.float32 if kind == "f32" else torch.bfloat16
    a = torch.randn(size, size, device=device, dtype=held)
    b = torch.randn(size, size, device=device, dtype=held)
    if kind in ("f32", "bf16"):
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)
    if kind == "int8":
        integers, others = a.to(torch.int8), b.to(torch.int8).t()
        return lambda: torch._int_mm(integers, others)
    left, right = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
