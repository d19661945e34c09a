"""A checkpoint's weights into the native builder: mapped as packed before, or packed now."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.base import Checkpoint, StoredMatrix, StoredTensor
from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError
from trimtab.executors.base import Float32Array
from trimtab.executors.formats import KernelFormat, ModelFormats, Slot
from trimtab.executors.packed_cache import PackedCache, PackedLock, packed_key
from trimtab.numerics.floats import from_bf16, to_bf16
from trimtab.numerics.stored import Fp8Matrix, GroupedMatrix

if TYPE_CHECKING:
    from trimtab import _native

logger = logging.getLogger(__name__)


class TensorReader(Protocol):
    """What this module needs of a Checkpoint."""

    def names(self) -> Iterable[str]: ...

    def tensor(self, name: str) -> StoredTensor: ...

    def matrix(self, name: str) -> StoredMatrix: ...

    def release(self) -> None: ...


def load_model(
    builder: _native.ModelBuilder,
    checkpoint: Checkpoint,
    formats: ModelFormats,
    config: ExecutorConfig,
    threads: int,
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
        load_weights(builder, checkpoint, formats)
        return None
    key = packed_key(checkpoint, config, digests)
    lock = cache.load(key, builder)
    if lock is not None:
        return lock
    load_weights(builder, checkpoint, formats)
    if cache.confirm(files, digests):
        cache.store(key, builder)
    return None


def load_weights(
    builder: _native.ModelBuilder, checkpoint: TensorReader, formats: ModelFormats
) -> None:
    """Hands every tensor of the checkpoint to the builder, which packs it at once. No more of the
    checkpoint than one matrix of integers, or a piece of one of floats, stays in memory."""
    names = set(checkpoint.names())

    def norm(layer: int, name: str, prefix: str) -> None:
        if prefix + name in names:
            builder.set_norm(layer, name, stored_vector(checkpoint.tensor(prefix + name)))

    def matrix(layer: int, slot: Slot, prefix: str) -> None:
        parts = [prefix + part for part in slot.parts]
        stored = [checkpoint.matrix(part) for part in parts]
        biases: list[Float32Array] = []
        if any(f"{part}_bias" in names for part in parts):
            biases = [
                stored_vector(checkpoint.tensor(f"{part}_bias"))
                if f"{part}_bias" in names
                else np.zeros(_shape(tensor)[0], np.float32)
                for part, tensor in zip(parts, stored, strict=True)
            ]
        held = [tensor for tensor in stored if not isinstance(tensor, StoredTensor)]
        if held:
            first = held[0]
            columns = first.columns if isinstance(first, GroupedMatrix) else None
            order = [] if columns is None else columns.tolist()
            arrays = [
                packed_integers(tensor, slot.format)
                if isinstance(tensor, GroupedMatrix)
                else packed_fp8(tensor, slot.format)
                for tensor in held
            ]
            builder.set_integers(layer, slot.name, arrays, biases, order)
            checkpoint.release()
        else:
            floats = [tensor.data for tensor in stored if isinstance(tensor, StoredTensor)]
            builder.set_matrix(layer, slot.name, floats, biases, checkpoint.release)

    if formats.embedding_matrix is not None:
        matrix(-1, formats.embedding_matrix, "")
    elif formats.embedding not in ("head", "other"):
        builder.set_embedding(checkpoint.tensor("embed").data, checkpoint.release)
    norm(-1, "final_norm", "")
    matrix(-1, formats.head, "")
    for layer, slots in enumerate(formats.layers):
        prefix = f"layers.{layer}."
        for name in ("attn_norm", "mlp_norm", "post_attn_norm", "post_mlp_norm"):
            norm(layer, name, prefix)
        for name in ("q_norm", "k_norm"):
            norm(layer, name, prefix)
        for slot in slots:
            matrix(layer, slot, prefix)


IntegerArrays = tuple[
    npt.NDArray[Any],
    npt.NDArray[Any],
    npt.NDArray[Any] | None,
    npt.NDArray[Any] | None,
    npt.NDArray[Any] | None,
]


def packed_integers(matrix: GroupedMatrix, format: KernelFormat) -> IntegerArrays:
    """What StoredIntegers of native/core/packing.h points to: values, scales, offsets,
    super-scales, super-offsets, in the groups and types of `format`. Raises CheckpointError for
    scales that their type does not hold."""
    values = np.ascontiguousarray(matrix.values)
    if format.scales == "supers":
        supers = matrix.supers
        assert supers is not None
        with_offsets = supers.super_offsets is not None
        return (
            values,
            np.ascontiguousarray(supers.sub_scales),
            np.ascontiguousarray(supers.sub_offsets).view(np.int8) if with_offsets else None,
            _halves(supers.super_scales),
            _halves(supers.super_offsets) if supers.super_offsets is not None else None,
        )
    if format.group_size == 0:
        return values, np.ascontiguousarray(matrix.scales[:, :1], np.float32), None, None, None
    groups = -(-values.shape[1] // format.group_size)

    def regrouped(of_groups: npt.NDArray[Any]) -> npt.NDArray[Any]:
        parts = max(1, min(matrix.group_size, values.shape[1]) // format.group_size)
        if of_groups.shape[1] == 1:
            parts = groups
        return np.repeat(of_groups, parts, axis=1)[:, :groups]

    scales: npt.NDArray[Any] = regrouped(matrix.scales)
    if format.scales == "f16":
        scales = _halves(scales)
    elif format.scales == "bf16":
        bits = to_bf16(scales)
        _check_exact(from_bf16(bits), scales)
        scales = np.ascontiguousarray(bits)
    offsets = matrix.zeros if matrix.zeros is not None else matrix.offsets
    stored_offsets = None if offsets is None else _halves(regrouped(offsets))
    return values, np.ascontiguousarray(scales), stored_offsets, None, None


def packed_fp8(matrix: Fp8Matrix, format: KernelFormat) -> IntegerArrays:
    """Likewise of float8. Raises CheckpointError for weights that are not numbers."""
    rows, cols = matrix.shape
    if (matrix.values & 127 == 127).any():
        raise CheckpointError("a float8 weight is not a number")
    groups = -(-cols // format.group_size)
    blocks = np.minimum(np.arange(groups) * format.group_size // matrix.block_cols, cols)
    scales = np.repeat(matrix.scales[:, blocks], matrix.block_rows, axis=0)[:rows]
    return np.ascontiguousarray(matrix.values), np.ascontiguousarray(scales), None, None, None


def _halves(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(values, np.float16)
    _check_exact(halves, values)
    return halves.view(np.uint16)


def _check_exact(rounded: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
    if not np.array_equal(rounded.astype(np.float32), values.astype(np.float32), equal_nan=True):
        raise CheckpointError("scales or offsets are not of the type that their format names")


def _shape(tensor: StoredMatrix) -> tuple[int, ...]:
    return tensor.data.shape if isinstance(tensor, StoredTensor) else tensor.shape


def stored_vector(tensor: StoredTensor) -> Float32Array:
    return np.ascontiguousarray(tensor.to_float32())
