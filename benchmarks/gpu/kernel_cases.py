"""Inputs of attention and of what comes before it: ragged batches over a cache of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimtab.models.spec import ModelSpec

BLOCK = 16


class Sequence(NamedTuple):
    context: int  # tokens in the cache before these rows
    rows: int


@dataclass(frozen=True)
class AttentionCase:
    sequences: tuple[Sequence, ...]
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    window: int = 0
    softcap: float = 0.0


def attention_cases(tiny: bool) -> dict[str, AttentionCase]:
    """Every kind of step. Contexts end beside and on the borders of blocks and partitions."""
    s = Sequence
    small = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    if tiny:
        mixed = (s(0, 9), s(40, 1), s(300, 1), s(17, 3), s(0, 0), s(255, 2))
        return {
            "mixed": AttentionCase(mixed, **small),
            "window": AttentionCase(mixed, **small, window=20),
            "soft cap, one head": AttentionCase(mixed, 2, 2, 32, softcap=20.0),
        }
    decode = tuple(s(length, 1) for length in (0, 1, 15, 16, 255, 256, 257, 1000, 4095, 8191))
    many = tuple(s(37 * i % 1500, 1) for i in range(128))
    drafts = tuple(s(length, 1 + i % 6) for i, length in enumerate((3, 250, 256, 511, 2000, 7777)))
    chunks = (s(0, 130), s(200, 90), s(1024, 64), s(3000, 33))
    mixed = (s(0, 77), *decode, s(0, 0), *drafts, s(512, 40))
    return {
        "decode": AttentionCase(decode),
        "decode of 128": AttentionCase(many),
        "drafts": AttentionCase(drafts),
        "chunks": AttentionCase(chunks),
        "mixed": AttentionCase(mixed),
        "mixed, qwen": AttentionCase(mixed, 16, 8, 128),
        "mixed, head 64, 8 to 1": AttentionCase(mixed, 8, 1, 64),
        "mixed, head 256, 1 to 1": AttentionCase(mixed, 4, 4, 256),
        "window 300": AttentionCase(mixed, window=300),
        "soft cap": AttentionCase(mixed, softcap=30.0),
    }


def kv_formats() -> tuple[str, ...]:
    from trimtab.config import KV_FORMATS

    return tuple(kv for kv in KV_FORMATS if kv != "f32")


def attention_inputs(case: AttentionCase, kv: str, device: str, seed: int) -> tuple[Any, ...]:
    """The arguments of `Ops.attention`; every sequence has blocks of its own, in random order."""
    from trimtab.executors.gpu.cache import KVCache

    generator = torch.Generator(device).manual_seed(seed)
    lengths = [one.context + one.rows for one in case.sequences]
    counts = [-(-length // BLOCK) for length in lengths]
    order = torch.randperm(sum(counts), generator=generator, device=device).int()
    cache = KVCache(sum(counts), BLOCK, case.num_kv_heads, case.head_dim, kv, device)
    fill(cache, generator)
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=device)
    for table, blocks in zip(tables, order.split(counts), strict=True):
        table[: len(blocks)] = blocks
    rows = [one.rows for one in case.sequences]
    positions = torch.cat(
        [torch.arange(one.context, one.context + one.rows) for one in case.sequences]
    )
    q = torch.randn(
        len(positions), case.num_heads, case.head_dim, generator=generator, device=device
    )
    return (
        (2 * q).to(torch.bfloat16),
        cache,
        torch.tensor([0, *rows]).cumsum(0).int().to(device),
        positions.int().to(device),
        tables,
        case.head_dim**-0.5,
        case.window,
        case.softcap,
        max(rows),
        max(lengths),
    )


def fill(cache: Any, generator: torch.Generator) -> None:
    """With numbers as rope leaves them; scaled formats with scales of their own for each head."""
    device = cache.keys.device
    for stored in cache.tensors:
        drawn = torch.randn(stored.shape, generator=generator, device=device)
        if stored.dtype == torch.int8:
            stored.copy_((drawn * 40).clamp(-127, 127).round().to(torch.int8))
        elif stored.dtype == torch.float8_e4m3fn:
            stored.copy_((drawn * 100).clamp(-448, 448).to(stored.dtype))
        elif stored.dtype == torch.float32 and stored.ndim == 3:  # scales
            stored.copy_(0.01 + 0.01 * torch.sigmoid(drawn))
        else:
            stored.copy_(drawn.to(stored.dtype))


@dataclass(frozen=True)
class RopeInputs:
    """`arguments`: those of `Ops.qk_norm_rope_write` but the cache."""

    arguments: tuple[Any, ...]
    kv: str
    num_kv_heads: int
    head_dim: int
    num_blocks: int
    device: str

    def caches(self) -> list[Any]:
        from trimtab.executors.gpu.cache import KVCache

        size = (self.num_blocks, BLOCK, self.num_kv_heads, self.head_dim)
        return [KVCache(*size, self.kv, self.device) for _ in range(2)]


def rope_inputs(
    spec: ModelSpec, tiny: bool, device: str, seed: int, kv: str
) -> dict[str, RopeInputs]:
    """With and without norms of heads, all of a head turned and a part of it; some rows are
    padding."""
    generator = torch.Generator(device).manual_seed(seed)
    rows, heads, kv_heads = (5, 4, 2) if tiny else (200, 32, 8)
    num_blocks = -(-2 * rows // BLOCK)
    found = {}
    for name, dim, turned, normed in (
        ("plain", spec.head_dim, spec.head_dim, False),
        ("normed", spec.head_dim, spec.head_dim, True),
        ("head 64, half turned", 64, 32, True),
    ):
        drawn = torch.randn(rows, (heads + 2 * kv_heads) * dim, generator=generator, device=device)
        angles = torch.rand(300, turned // 2, generator=generator, device=device) * 6.28
        slots = torch.randperm(num_blocks * BLOCK, generator=generator, device=device)[:rows]
        slots[-1] = -1
        positions = torch.randint(0, 300, (rows,), generator=generator, device=device)
        norms: list[Tensor | None] = [None, None]
        if normed:
            norms = [
                1 + 0.2 * torch.randn(dim, generator=generator, device=device) for _ in range(2)
            ]
        arguments = (
            drawn.to(torch.bfloat16),
            *norms,
            1e-6,
            0.0,
            angles.cos(),
            angles.sin(),
            positions.int(),
            slots.long(),
        )
        found[name] = RopeInputs(arguments, kv, kv_heads, dim, num_blocks, device)
    return found
