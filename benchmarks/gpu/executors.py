"""An engine on the torch executor, sized for the cases that are to be run on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gpu.checkpoints import RandomCheckpoint
from gpu.context import Settings
from gpu.shapes import (
    BATCH_TOKENS,
    GROUP_SIZE,
    TINY_BATCH_TOKENS,
    TINY_GROUP_SIZE,
    Case,
    spec_of,
)

if TYPE_CHECKING:
    from trimtab.checkpoints.base import Checkpoint
    from trimtab.config import KVFormat, WeightFormat
    from trimtab.engine.engine import Engine
    from trimtab.executors.gpu.executor import TorchExecutor

BLOCK_TOKENS = 16


def random_checkpoint(settings: Settings, shape: str, weights: str) -> RandomCheckpoint:
    return RandomCheckpoint(
        spec_of(shape, settings.tiny),
        weights,
        settings.device,
        settings.seed,
        TINY_GROUP_SIZE if settings.tiny else GROUP_SIZE,
    )


def batch_tokens(settings: Settings) -> int:
    return TINY_BATCH_TOKENS if settings.tiny else BATCH_TOKENS


def open_executor(
    settings: Settings,
    checkpoint: Checkpoint,
    num_blocks: int = 0,
    weights: WeightFormat = "bf16",
    kv_cache: KVFormat = "bf16",
    max_context: int = 0,
) -> TorchExecutor:
    """`weights`: how floats are held; what a checkpoint stores quantized stays so. `num_blocks`: 0
    = as many as fit."""
    from trimtab.config import ExecutorConfig
    from trimtab.executors.gpu.executor import TorchExecutor

    config = ExecutorConfig(
        device=settings.executor_device,
        weights=weights,
        kv_cache=kv_cache,
        num_blocks=num_blocks,
        max_context=max_context,
    )
    return TorchExecutor(checkpoint, config, max_step_rows=batch_tokens(settings))


def blocks_for(cases: Iterable[Case]) -> int:
    """That the largest of them needs, and a few."""
    return 8 + max(case.streams * -(-(case.prompt + case.output) // BLOCK_TOKENS) for case in cases)


def open_engine(settings: Settings, executor: TorchExecutor, prefix_cache: bool = False) -> Engine:
    from trimtab.config import SchedulerConfig
    from trimtab.engine.engine import Engine

    config = SchedulerConfig(
        max_batch_tokens=batch_tokens(settings),
        max_num_requests=256,
        max_queued_requests=4096,
        prefix_cache=prefix_cache,
        speculative="off",
    )
    return Engine(executor, config)
