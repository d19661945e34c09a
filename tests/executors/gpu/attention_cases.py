"""Random ragged batches over a paged cache, and attention in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.executors.gpu.attention import attention
from trimtab.executors.gpu.cache import KVCache, KVCacheFormat

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 16


@dataclass(frozen=True)
class Sequence:
    context: int  # positions in all
    rows: int  # the last ones of them


@dataclass(frozen=True)
class Case:
    """Every sequence's own blocks hold random K and V; all else is NaN."""

    cache: KVCache
    tables: Tensor  # [S, M] int32
    queries: list[Tensor]  # of each sequence [context, Hq, D]: row p is the query of position p
    scale: float
    window: int = 0
    softcap: float = 0.0

    def run(
        self,
        sequences: dict[int, Sequence],
        attend: Callable[..., Tensor] = attention,
        **options: int,
    ) -> dict[int, Tensor]:
        """Outputs [rows, Hq * D] by sequence; the batch is in the order of the dict."""
        rows = [one.rows for one in sequences.values()]
        contexts = [one.context for one in sequences.values()]
        starts = torch.tensor([0, *rows], dtype=torch.int32).cumsum(0).to(torch.int32)
        positions = [
            torch.arange(one.context - one.rows, one.context, dtype=torch.int32)
            for one in sequences.values()
        ]
        q = [
            self.queries[index][one.context - one.rows : one.context]
            for index, one in sequences.items()
        ]
        out = attend(
            torch.cat(q).contiguous(),
            self.cache,
            starts.to(DEVICE),
            torch.cat(positions).to(DEVICE),
            self.tables[list(sequences)].contiguous(),
            self.scale,
            self.window,
            self.softcap,
            options.pop("max_rows", max(rows)),
            options.pop("max_context", max(contexts)),
            **options,
        )
        return dict(zip(sequences, out.split(rows), strict=True))

    def expected(self, index: int, one: Sequence) -> Tensor:
        """float64, of the elements that the cache holds."""
        keys, values = self.contents(index, one.context)
        first = one.context - one.rows
        q = self.queries[index][first : one.context].double().cpu()
        group = q.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = torch.einsum("rhd,chd->hrc", q, keys) * self.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        distance = torch.arange(first, one.context)[:, None] - torch.arange(one.context)
        seen = (distance >= 0) & (distance < (self.window or one.context + 1))
        weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
        return torch.einsum("hrc,chd->rhd", weights, values).flatten(1)

    def contents(self, index: int, context: int) -> tuple[Tensor, Tensor]:
        blocks = self.tables[index, : -(-context // BLOCK)].long().cpu()

        def of(stored: Tensor, scales: Tensor | None) -> Tensor:
            wide = stored.cpu().double()[blocks]
            if scales is not None:
                wide = wide * scales.cpu().double()[blocks][..., None]
            return wide.flatten(0, 1)[:context]

        cache = self.cache
        return of(cache.keys, cache.key_scales), of(cache.values, cache.value_scales)

    def with_options(self, window: int = 0, softcap: float = 0.0) -> Case:
        return replace(self, window=window, softcap=softcap)


def make_case(
    contexts: list[int],
    heads: int,
    kv_heads: int,
    dim: int,
    format: KVCacheFormat = "f32",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    needed = [-(-context // BLOCK) for context in contexts]
    order = torch.randperm(sum(needed), generator=generator).to(torch.int32) + 1
    tables = torch.zeros(len(contexts), max(needed) + 1, dtype=torch.int32)
    cache = KVCache(sum(needed) + 1, BLOCK, kv_heads, dim, format, "cpu")
    for stored, scales in (
        (cache.keys, cache.key_scales),
        (cache.values, cache.value_scales),
    ):
        if scales is None:
            stored.copy_(normal(*stored.shape))
        else:
            spread = 127 if format == "int8" else 448
            found = (torch.rand(stored.shape, generator=generator) * 2 - 1) * spread
            found = found.round() if format == "int8" else found
            stored.copy_(found.to(stored.dtype))
            scales.copy_((torch.rand(scales.shape, generator=generator) + 0.5) / spread)
    taken = 0
    holes: list[tuple[Tensor, slice]] = [(torch.tensor([0]), slice(None))]
    for index, (context, count) in enumerate(zip(contexts, needed, strict=True)):
        own = order[taken : taken + count]
        tables[index, :count] = own
        holes.append((own[-1:].long(), slice(context - (count - 1) * BLOCK, None)))
        taken += count
    for block, places in holes:
        for tensor in cache.tensors[2:] or cache.tensors:
            tensor[block, :, places] = torch.nan
    return Case(
        _on_device(cache),
        tables.to(DEVICE),
        [normal(context, heads, dim).to(dtype).to(DEVICE) for context in contexts],
        dim**-0.5,
    )


def _on_device(cache: KVCache) -> KVCache:
    blocks, size, heads, dim = cache.keys.shape
    moved = KVCache(blocks, size, heads, dim, cache.format, DEVICE)
    for target, source in zip(moved.tensors, cache.tensors, strict=True):
        target.view(torch.uint8).copy_(source.view(torch.uint8))
    return moved
