"""A checkpoint's weights into the native builder: mapped as packed before, or packed now."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from trimtab.checkpoints.base import Checkpoint, StoredTensor
from trimtab.config import ExecutorConfig
from trimtab.executors.base import Float32Array
from trimtab.executors.packed_cache import PackedCache, PackedLock, packed_key

if TYPE_CHECKING:
    from trimtab import _native

logger = logging.getLogger(__name__)

# (matrix, its parts, bias names) in the order in which the native decoder fuses them.
LAYER_MATRICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("qkv", ("q", "k", "v")),
    ("o", ("o",)),
    ("gate_up", ("gate", "up")),
    ("down", ("down",)),
)


def load_model(
    builder: _native.ModelBuilder, checkpoint: Checkpoint, config: ExecutorConfig, threads: int
) -> PackedLock | None:
    """Fills the builder. The lock of the packed model if it was mapped; None if it was packed now,
    and then kept for the next start if it can be.

    Raises CheckpointError for a damaged checkpoint, ValueError for a tensor that is missing or
    misshapen, RuntimeError if the system refuses memory.
    """
    files = checkpoint.weight_files
    cache = PackedCache.from_environment(threads) if files else None
    digests = None
    if cache is not None:
        try:
            digests = cache.weight_digests(files)
        except OSError as error:
            logger.warning("%s: the packed model is not cached: %s", checkpoint.path, error)
    if cache is None or digests is None:
        load_weights(builder, checkpoint)
        return None
    key = packed_key(checkpoint, config, digests)
    lock = cache.load(key, builder)
    if lock is not None:
        return lock
    load_weights(builder, checkpoint)
    if cache.confirm(files, digests):
        cache.store(key, builder)
    return None


def load_weights(builder: _native.ModelBuilder, checkpoint: Checkpoint) -> None:
    """Hands every tensor of the checkpoint to the builder, which packs it at once. No more of the
    checkpoint than a piece of a tensor stays in memory."""
    names = set(checkpoint.names())

    def norm(layer: int, name: str, prefix: str) -> None:
        if prefix + name in names:
            builder.set_norm(layer, name, _vector(checkpoint.tensor(prefix + name)))

    def matrix(layer: int, name: str, parts: tuple[str, ...], prefix: str) -> None:
        tensors = [checkpoint.tensor(prefix + part).data for part in parts]
        biased = [prefix + part + "_bias" in names for part in parts]
        biases: list[Float32Array] = []
        if any(biased):
            biases = [
                _vector(checkpoint.tensor(prefix + part + "_bias"))
                if has_bias
                else np.zeros(tensor.shape[0], np.float32)
                for part, has_bias, tensor in zip(parts, biased, tensors, strict=True)
            ]
        builder.set_matrix(layer, name, tensors, biases, checkpoint.release)

    builder.set_embedding(checkpoint.tensor("embed").data, checkpoint.release)
    norm(-1, "final_norm", "")
    matrix(-1, "lm_head", ("lm_head",) if "lm_head" in names else ("embed",), "")
    for layer in range(checkpoint.spec.num_layers):
        prefix = f"layers.{layer}."
        for name in ("attn_norm", "mlp_norm", "post_attn_norm", "post_mlp_norm"):
            norm(layer, name, prefix)
        for name in ("q_norm", "k_norm"):
            norm(layer, name, prefix)
        for name, parts in LAYER_MATRICES:
            matrix(layer, name, parts, prefix)


def _vector(tensor: StoredTensor) -> Float32Array:
    return np.ascontiguousarray(tensor.to_float32())
