"""FlashInfer's paged attention over our own cache, where it is installed: its layout "HND" is ours.

Nothing of trimtab uses it; it is measured beside our kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from trimtab.executors.gpu.cache import KVCache

WORKSPACE_BYTES = 128 << 20
LAYOUT = "HND"


def is_installed() -> bool:
    return importlib.util.find_spec("flashinfer") is not None


def planned(
    queries: Tensor,
    cache: KVCache,
    row_counts: Sequence[int],
    contexts: Sequence[int],
    tables: Sequence[Sequence[int]],
    scale: float,
) -> Callable[[], Tensor]:
    """Causal attention of `queries` [rows, heads, D], so many rows of each sequence, which end at
    its context; `tables`: blocks of each. What FlashInfer plans ahead is done before the call."""
    flashinfer: Any = importlib.import_module("flashinfer")
    device = queries.device
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    size = cache.block_size
    used = [
        list(table[: -(-context // size)]) for table, context in zip(tables, contexts, strict=True)
    ]

    def integers(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    page_starts = integers([0, *accumulate(len(one) for one in used)])
    pages = integers([block for one in used for block in one])
    last = integers([(context - 1) % size + 1 for context in contexts])
    heads = (queries.shape[1], cache.num_kv_heads, cache.head_dim, size)
    common = {"sm_scale": scale, "q_data_type": queries.dtype}
    if all(count == 1 for count in row_counts):
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, LAYOUT, use_tensor_cores=True
        )
        wrapper.plan(page_starts, pages, last, *heads, **common)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, LAYOUT)
        starts = integers([0, *accumulate(row_counts)])
        wrapper.plan(starts, page_starts, pages, last, *heads, causal=True, **common)
    keys, values = cache.tensors[:2]

    def run() -> Tensor:
        out: Tensor = wrapper.run(queries, (keys, values))
        return out

    return run
