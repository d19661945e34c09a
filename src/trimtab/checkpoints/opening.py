"""What is on disk, opened by its kind."""

from __future__ import annotations

from pathlib import Path

from trimtab.checkpoints.base import Checkpoint
from trimtab.checkpoints.gguf import open_gguf
from trimtab.checkpoints.gguf_parts import gguf_of
from trimtab.checkpoints.huggingface import open_directory
from trimtab.errors import CheckpointError


def open_checkpoint(path: str | Path, max_context: int = 0) -> Checkpoint:
    """Open and validate a checkpoint; nothing of its weights is read yet. Whether the head
    that some tied models store once more is the same is checked with the first tensor.

    `path` is a directory in Hugging Face layout, a .safetensors file that has its config.json
    beside it, a .gguf file (of several parts the first), or a directory with nothing but one of
    those. `max_context` is the longest context that will be served (0 = the model's own):
    see `trimtab.models.registry.model_spec`.

    Raises CheckpointError, one line naming what is missing, damaged or not supported, and
    ConfigError when the model cannot serve `max_context`.
    """
    path = Path(path)
    try:
        gguf = gguf_of(path) if path.exists() else None
        if gguf is not None:
            return open_gguf(gguf, max_context)
        return open_directory(path, _directory_of(path), max_context)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _directory_of(path: Path) -> Path:
    """Where config.json must be."""
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == ".safetensors":
        return path.parent
    if path.exists():
        raise CheckpointError(f"{path}: neither a model directory nor a .safetensors file")
    raise CheckpointError(f"{path}: no such file or directory")
