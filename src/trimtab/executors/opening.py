"""From a checkpoint and settings to the executor that they ask for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trimtab.checkpoints.base import Checkpoint
from trimtab.config import ExecutorConfig
from trimtab.executors.devices import check_device

if TYPE_CHECKING:
    from trimtab.executors.cpu import CpuExecutor
    from trimtab.executors.gpu.executor import TorchExecutor

logger = logging.getLogger(__name__)


def open_executor(
    checkpoint: Checkpoint, config: ExecutorConfig, max_step_rows: int, max_requests: int
) -> CpuExecutor | TorchExecutor:
    """Loads the weights. `max_step_rows` and `max_requests`: the most that a step will have.
    Raises CheckpointError for the model, ConfigError for settings that cannot work here."""
    if config.device == "cpu":
        from trimtab.executors.cpu import CpuExecutor

        return CpuExecutor(checkpoint, config)
    check_device(config.device)
    from trimtab.executors.gpu.executor import TorchExecutor

    executor = TorchExecutor(checkpoint, config, max_step_rows=max_step_rows)
    executor.capture(max_requests, logger.info)
    return executor
