"""Checkpoints as one GGUF file, such that llama.cpp runs them.

What llama.cpp's converter changes is changed here too: the rows of q and k of the architecture
`llama` are put in pairs, the norms of Gemma have 1 added, vectors are float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.base import Checkpoint, StoredTensor
from trimtab.checkpoints.gguf_names import gguf_name
from trimtab.checkpoints.gguf_origin import origin_of
from trimtab.checkpoints.gguf_types import FILE_TYPES, Mixture, file_type
from trimtab.checkpoints.gguf_writer import TYPE_IDS, GgufWriter, Value
from trimtab.checkpoints.opening import open_checkpoint
from trimtab.checkpoints.writing_base import (
    CheckpointWriter,
    Progress,
    WriteReport,
    fingerprint,
    row_pieces,
    sync,
)
from trimtab.errors import CheckpointError
from trimtab.models.registry import FAMILIES
from trimtab.numerics.floats import to_bf16
from trimtab.numerics.gguf_blocks import BLOCKS
from trimtab.numerics.gguf_pack import pack_grouped
from trimtab.numerics.gguf_quantize import quantize
from trimtab.numerics.stored import GroupedMatrix

Importance = Mapping[str, npt.NDArray[np.float32]]  # canonical name -> [columns]
Bytes = npt.NDArray[np.uint8]

_STORED = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


def write_gguf(
    source: Checkpoint,
    out: Path,
    gguf_type: str,
    importance: Importance | None = None,
    progress: Progress | None = None,
) -> WriteReport:
    """All of `source` as a GGUF file of a type of `FILE_TYPES`.

    `importance`: for matrices, the mean square of each input column's activations; quantization
    then minimizes the error of the outputs. Raises CheckpointError, one line; nothing is left
    behind.
    """
    with GgufFileWriter(source, Path(out), gguf_type, importance) as writer:
        return writer.finish(progress)


class GgufFileWriter(CheckpointWriter):
    def __init__(
        self,
        source: Checkpoint,
        out: Path,
        gguf_type: str | None = None,
        importance: Importance | None = None,
    ) -> None:
        """With `gguf_type`, floats are quantized to it; without, they stay as they are."""
        super().__init__(source, out, ".gguf")
        spec = source.spec
        self._origin = origin_of(source)
        self._type = None if gguf_type is None else file_type(gguf_type)
        self._importance = importance or {}
        self._mixture = None
        if self._type is not None:
            self._mixture = Mixture(
                self._type, spec.num_layers, spec.tied_embeddings, bool(self._importance)
            )
        self._places = FAMILIES[spec.architecture].tensors(spec)
        self._parts: dict[str, list[str]] = {}  # stored name -> canonical names, in row order
        for name, place in self._places.items():
            self._parts.setdefault(place.name, []).append(name)
        for names in self._parts.values():
            names.sort(key=lambda name: self._places[name].first_row)
        self._waiting: dict[str, dict[str, tuple[str, Bytes]]] = {}
        self._types: dict[str, int] = {}  # bytes in each type

    def _create(self) -> None:
        if self.out.exists():
            raise CheckpointError(f"{self.out}: exists already")
        self._file = GgufWriter(self._staging)
        for name, values in self._origin.tensors.items():
            self._file.add(name, "F32", values.shape, values.view(np.uint8))

    def _abandon(self) -> None:
        if hasattr(self, "_file"):
            self._file.abandon()

    def _from_source(self, name: str) -> GroupedMatrix | StoredTensor:
        """Where a type is asked for, integers of another format are floats to be quantized."""
        return self.source.tensor(name) if self._mixture else super()._from_source(name)

    def _write(self, name: str, tensor: GroupedMatrix | StoredTensor) -> str:
        type_name, data, print_ = self._encoded(name, tensor)
        stored = self._places[name].name
        parts = self._waiting.setdefault(stored, {})
        parts[name] = (type_name, self._in_pairs(name, data))
        if len(parts) == len(self._parts[stored]):
            del self._waiting[stored]
            self._store(stored, [parts[part] for part in self._parts[stored]])
        return print_

    def _store(self, stored: str, parts: list[tuple[str, Bytes]]) -> None:
        names = self._parts[stored]
        if len({type_name for type_name, _ in parts}) > 1:
            raise CheckpointError(
                f"tensor {stored}: its {len(parts)} parts are one matrix in this model and must "
                "all be of one type"
            )
        rows = sum(self._places[name].shape[0] for name in names)
        shape = (rows, *self._places[names[0]].shape[1:])
        type_name = parts[0][0]
        data = np.concatenate([part for _, part in parts]) if len(parts) > 1 else parts[0][1]
        name = gguf_name(stored, self.source.spec.post_norms)
        self._file.add(name, type_name, shape, data)
        if len(shape) == 2:
            self._types[type_name] = self._types.get(type_name, 0) + data.nbytes

    def _encoded(self, name: str, tensor: GroupedMatrix | StoredTensor) -> tuple[str, Bytes, str]:
        """The type, the bytes [rows, row bytes] in the model's order of rows, and what the reader
        must give back."""
        if isinstance(tensor, GroupedMatrix):
            packed = pack_grouped(tensor)
            if packed is None:
                raise CheckpointError(
                    f"tensor {name}: no type of GGUF holds these integers exactly (groups of 32, "
                    "scales in float16; 8 bits without zero points, or 4 and 5): write them with "
                    "gguf_type to have the floats quantized again"
                )
            return *packed, fingerprint(tensor)
        if tensor.data.ndim == 1:
            values = tensor.to_float32()
            if self.source.spec.norm_weight_offset and name.endswith("norm"):
                values = values + np.float32(self.source.spec.norm_weight_offset)
            return "F32", values.view(np.uint8), fingerprint(StoredTensor(values, "f32"))
        if self._mixture is None:
            data = np.ascontiguousarray(tensor.data).view(np.uint8)
            return _STORED[tensor.dtype], data, fingerprint(tensor)
        return self._quantized(name, tensor)

    def _quantized(self, name: str, tensor: StoredTensor) -> tuple[str, Bytes, str]:
        assert self._mixture is not None
        stored = gguf_name(self._places[name].name, self.source.spec.post_norms)
        type_name = self._mixture.type_of(stored, tensor.data.shape[1])
        if type_name in ("F32", "F16", "BF16"):
            floats = _as_floats(name, tensor.to_float32(), type_name)
            return type_name, floats.data.view(np.uint8), fingerprint(floats)
        weights = self._weights_of(name, tensor.data.shape[1])
        try:
            parts = [
                quantize(type_name, _rows(tensor, piece).to_float32(), weights)
                for piece in row_pieces(tensor.data.shape)
            ]
        except ValueError as error:
            raise CheckpointError(f"tensor {name}: {error}") from None
        self._quantized_names.append(name)
        data = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return type_name, data, fingerprint(BLOCKS[TYPE_IDS[type_name]].unpack(data))

    def _weights_of(self, name: str, columns: int) -> npt.NDArray[np.float32] | None:
        weights = self._importance.get(name)
        if weights is None:
            return None
        if weights.shape != (columns,) or not (weights >= 0).all() or not weights.any():
            raise CheckpointError(
                f"tensor {name}: importance must be {columns} numbers from 0 on, not all 0"
            )
        return np.ascontiguousarray(weights, np.float32)

    def _in_pairs(self, name: str, data: Bytes) -> Bytes:
        """Rows of q and k of the architecture llama: of each head, the two halves interleaved."""
        kind = name.rpartition(".")[2].removesuffix("_bias")
        if not self._origin.paired or kind not in ("q", "k"):
            return data
        spec = self.source.spec
        heads = spec.num_heads if kind == "q" else spec.num_kv_heads
        rows = data.reshape(self._places[name].shape[0], -1)
        order = np.arange(len(rows)).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
        paired: Bytes = rows[order]
        return paired

    def _complete(self) -> list[Path]:
        file_type = Value("u32", self._file_type())
        self._file.finish({**self._origin.metadata, "general.file_type": file_type})
        return [self._staging]

    def _file_type(self) -> int:
        """Where none was asked for: of the type that most of what is quantized is in, or most."""
        if self._type is not None:
            return FILE_TYPES[self._type][0]
        kinds = [name for name in self._types if name not in _STORED.values()] or self._types
        most = max(kinds, key=lambda name: self._types[name])
        return next(number for number, base in FILE_TYPES.values() if base == most)

    def _open_staged(self) -> Checkpoint:
        return open_checkpoint(self._staging)

    def _publish(self) -> None:
        self._staging.rename(self.out)
        sync(self.out.parent)

    def _notes(self) -> list[str]:
        return list(self._origin.notes)


def _rows(tensor: StoredTensor, piece: slice) -> StoredTensor:
    return StoredTensor(tensor.data[piece], tensor.dtype)


def _as_floats(name: str, values: npt.NDArray[np.float32], type_name: str) -> StoredTensor:
    if type_name == "F32":
        return StoredTensor(values, "f32")
    if type_name == "BF16":
        return StoredTensor(to_bf16(values), "bf16")
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if np.isfinite(values).all() and not np.isfinite(halves).all():
        raise CheckpointError(f"tensor {name}: values too large for float16 (use BF16)")
    return StoredTensor(halves, "f16")
