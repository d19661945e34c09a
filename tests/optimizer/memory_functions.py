"""Measures an executor's memory in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from trimtab import builtin
from trimtab.checkpoints import open_checkpoint
from trimtab.config import ExecutorConfig
from trimtab.evaluation.scoring import score
from trimtab.evaluation.windows import Window
from trimtab.executors.cpu import CpuExecutor
from trimtab.optimizer.process_memory import process_memory


def measure(arguments: dict[str, Any], progress: Callable[[str], None]) -> dict[str, int]:
    """Bytes that the weights took, and those that a step of `rows` rows took then."""
    rows: int = arguments["rows"]
    checkpoint = open_checkpoint(builtin.target_path())
    config = ExecutorConfig(weights=arguments["weights"], threads=1, num_blocks=rows // 16)
    CpuExecutor(checkpoint, ExecutorConfig(threads=1, num_blocks=1)).close()  # all is imported

    def anonymous() -> int:
        found = process_memory(os.getpid())
        assert found is not None
        return found.anonymous

    before = anonymous()
    executor = CpuExecutor(checkpoint, config)
    loaded = anonymous()
    for _ in score(executor, [Window([1] * rows, rows)], rows):
        pass
    return {
        "weights": loaded - before,
        "step": anonymous() - loaded,
        "weight_bytes": executor.weight_bytes,
    }
