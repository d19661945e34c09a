"""How many blocks the KV cache of an executor has, and the context that it serves."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from trimtab.config import ExecutorConfig
from trimtab.errors import ConfigError
from trimtab.executors.base import KVCapacity
from trimtab.models.spec import ModelSpec


def limit_context(spec: ModelSpec, max_context: int) -> ModelSpec:
    if max_context > spec.max_context:
        raise ConfigError(
            f"max_context={max_context}: the model serves at most {spec.max_context} tokens"
        )
    return replace(spec, max_context=max_context) if max_context else spec


def choose_capacity(
    config: ExecutorConfig,
    block_size: int,
    bytes_per_block: int,
    default_blocks: int,
    free: int | None,
    default_share: tuple[float, str],
) -> KVCapacity:
    """What the configuration asks for, or else `default_blocks`, but no more than a share of the
    free bytes: (the share, its name). ConfigError for what does not fit into those that are free;
    None: nobody knows how many."""
    share, share_name = default_share
    if config.num_blocks:
        num_blocks, asked = config.num_blocks, f"num_blocks={config.num_blocks}"
    elif config.kv_cache_gib:
        asked = f"kv_cache_gib={config.kv_cache_gib:g}"
        num_blocks = int(config.kv_cache_gib * (1 << 30)) // bytes_per_block
        if num_blocks < 1:
            _refuse(asked, f"one block of {block_size} tokens takes {bytes_per_block} bytes")
    else:
        asked, num_blocks = "the KV cache", default_blocks
        if free is not None:
            num_blocks = min(num_blocks, int(free * share) // bytes_per_block)
        if num_blocks < 1:
            _refuse(asked, f"{share_name} holds no block ({free} bytes are free)")
    needed = num_blocks * bytes_per_block
    if free is not None and needed > free:
        _refuse(asked, f"needs {gib(needed)}, but only {gib(free)} of memory are free")
    return KVCapacity(block_size, num_blocks, bytes_per_block)


def _refuse(asked: str, why: str) -> NoReturn:
    raise ConfigError(
        f"{asked}: {why}; set a smaller kv_cache_gib or max_context, or kv_cache=int8"
    )


def gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
