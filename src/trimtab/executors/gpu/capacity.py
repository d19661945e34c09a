"""How much of a device's memory the KV cache may take."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trimtab.config import ExecutorConfig, KVFormat
from trimtab.executors.base import KVCapacity
from trimtab.executors.gpu.cache import KVCache
from trimtab.executors.kv_capacity import choose_capacity
from trimtab.executors.resources import available_memory
from trimtab.models.spec import ModelSpec

BLOCK_TOKENS = 16
LOGIT_ROWS = 256  # whose logits exist at once
DEFAULT_SEQUENCES = 16  # on a CPU, of max_context tokens each


def bytes_per_block(spec: ModelSpec, kv_cache: KVFormat, block_size: int) -> int:
    of_layer = KVCache.bytes_per_block(block_size, spec.num_kv_heads, spec.head_dim, kv_cache)
    return spec.num_layers * of_layer


def open_caches(
    spec: ModelSpec, kv_cache: KVFormat, num_blocks: int, block_size: int, device: torch.device
) -> list[KVCache]:
    """One block more than asked for: for rows that fill up a batch."""
    return [
        KVCache(num_blocks + 1, block_size, spec.num_kv_heads, spec.head_dim, kv_cache, device)
        for _ in range(spec.num_layers)
    ]


def kv_capacity(
    spec: ModelSpec,
    config: ExecutorConfig,
    block_size: int,
    free_on_device: Callable[[], int] | None,
) -> KVCapacity:
    """Called when the weights are loaded. `free_on_device`: bytes of a GPU's memory that are left
    beside weights and steps; None: on a CPU."""
    block_bytes = bytes_per_block(spec, config.kv_cache, block_size)
    blocks_of_context = -(-spec.max_context // block_size)
    if free_on_device is not None:
        # One block more than it has is reserved for padding rows.
        free = max(0, free_on_device() - block_bytes)
        default, share = free // block_bytes, (1.0, "what is left of the GPU's memory")
    else:
        found = available_memory()
        free = -1 if found is None else found
        default, share = DEFAULT_SEQUENCES * blocks_of_context, (0.25, "a quarter of free memory")
    return choose_capacity(
        config, block_size, block_bytes, default, None if free < 0 else free, share
    )
