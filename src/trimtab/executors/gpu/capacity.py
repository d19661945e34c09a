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
DEFAULT_SEQUENCES = 16  # on a CPU, of max_context tokens each


def bytes_per_block(spec: ModelSpec, kv_cache: KVFormat, block_size: int) -> int:
    of_layer = KVCache.bytes_per_block(block_size, spec.num_kv_heads, spec.head_dim, kv_cache)
    return spec.num_layers * of_layer


def kv_capacity(
    spec: ModelSpec,
    config: ExecutorConfig,
    device: torch.device,
    block_size: int,
    run_largest_step: Callable[[], None],
) -> KVCapacity:
    """Called when the weights are loaded. On a GPU: `memory_share` of all its memory, less what is
    in use and what a step of the largest size takes, which is run to see."""
    block_bytes = bytes_per_block(spec, config.kv_cache, block_size)
    blocks_of_context = -(-spec.max_context // block_size)
    if device.type == "cuda":
        free = _free_on_gpu(device, config.memory_share, run_largest_step)
        # One block more than it has is reserved for padding rows.
        free = max(0, free - block_bytes)
        default, share = free // block_bytes, (1.0, "what is left of the GPU's memory")
    else:
        found = available_memory()
        free = -1 if found is None else found
        default, share = DEFAULT_SEQUENCES * blocks_of_context, (0.25, "a quarter of free memory")
    return choose_capacity(
        config, block_size, block_bytes, default, None if free < 0 else free, share
    )


def _free_on_gpu(device: torch.device, share: float, run_largest_step: Callable[[], None]) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_largest_step()
    torch.cuda.synchronize(device)
    activations = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    in_use = total - free
    return max(0, int(total * share) - int(in_use + activations))
