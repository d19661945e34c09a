"""From MODEL and settings to an engine, for `LLM` and for the server's engine process."""

from __future__ import annotations

from pathlib import Path

from trimtab.config import ExecutorConfig, SchedulerConfig
from trimtab.engine.engine import Engine


def load_engine(
    model: str | Path,
    executor_config: ExecutorConfig | None = None,
    scheduler_config: SchedulerConfig | None = None,
) -> Engine:
    """Load the weights into a CPU executor; takes as long as reading the checkpoint does.

    Raises CheckpointError for the model, ConfigError for settings that cannot work here.
    """
    from trimtab.checkpoints import open_checkpoint, resolve_model
    from trimtab.executors.cpu import CpuExecutor

    executor_config = executor_config or ExecutorConfig()
    checkpoint = open_checkpoint(resolve_model(str(model)), executor_config.max_context)
    return Engine(CpuExecutor(checkpoint, executor_config), scheduler_config)
