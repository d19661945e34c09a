"""Checkpoints in files, and the packed models that a start leaves of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpu_models import MemoryCheckpoint, memory_model, run_alone

from trimtab.checkpoints.base import StoredTensor
from trimtab.checkpoints.stored_file import FileSignature, StoredFile
from trimtab.config import ExecutorConfig, parse_weights
from trimtab.executors.cpu import CpuExecutor

TOKENS = [5, 70, 3, 3, 41, 9, 0, 76, 12, 30]
FORMATS = ["f32", "bf16", "int8", "int8-g32", "int4-g32"]


@dataclass
class FileCheckpoint(MemoryCheckpoint):
    """Its weights follow from a seed in a file; counts how often one is read."""

    reads: int = 0
    on_read: Callable[[], None] = lambda: None

    def tensor(self, name: str) -> StoredTensor:
        self.reads += 1
        self.on_read()
        return super().tensor(name)


def checkpoint_at(path: Path, **changes: Any) -> FileCheckpoint:
    model = memory_model(seed=int(path.read_text()), **changes)
    file = StoredFile(path, FileSignature.of(path.stat()))
    return FileCheckpoint(model.spec, model.tensors, weight_files=(file,))


def write_seed(path: Path, seed: int) -> None:
    """In place; returns when the file's signature shows it."""
    before = FileSignature.of(path.stat()) if path.exists() else None
    while not path.exists() or FileSignature.of(path.stat()) == before:
        path.write_text(f"{seed:04}")


def config(weights: str = "int4-g32", **values: Any) -> ExecutorConfig:
    name, group_size = parse_weights(weights)
    defaults = {"group_size": group_size, "num_blocks": 8, "threads": 2}
    return ExecutorConfig(weights=name, **(defaults | values))


def logits(checkpoint: Any, settings: ExecutorConfig | None = None) -> Any:
    executor = CpuExecutor(checkpoint, settings or config())
    try:
        return run_alone(executor, TOKENS)
    finally:
        executor.close()


def packed_models(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.packed"))
