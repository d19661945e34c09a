"""One safetensors file: its header checked completely, then its bytes mapped.

    | u64 header length N | N bytes of JSON, '{' first | tensor bytes, without gaps |

Format: https://github.com/huggingface/safetensors. Nothing in the header is believed before it
is checked against the size of the file: every tensor's byte range must equal its dtype times its
shape, and the ranges must cover the rest of the file exactly: no hole, no overlap, nothing
before, nothing behind. All arithmetic is in Python's integers, which cannot overflow.
"""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.base import StoredDtype, StoredTensor
from trimtab.checkpoints.json_file import open_regular, parse_json_object
from trimtab.checkpoints.stored_file import FileSignature
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_HEADER_ITEMS = 1_000_000  # commas: bounds what a hostile header makes the JSON parser hold
MAX_RANK = 8

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}  # fmt: skip

_READABLE: dict[str, tuple[StoredDtype, npt.DTypeLike]] = {
    "F32": ("f32", np.dtype("<f4")),
    "F16": ("f16", np.dtype("<f2")),
    "BF16": ("bf16", np.dtype("<u2")),
}

_BITS: dict[str, npt.DTypeLike] = {
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F8_E4M3": np.dtype("u1"),
}


@dataclass(frozen=True)
class TensorEntry:
    dtype: str  # a key of DTYPE_BITS
    shape: tuple[int, ...]
    start: int  # byte range within the file
    end: int


class SafetensorsFile:
    """A validated, mapped file. Arrays taken from it stay valid as long as they are held.

    The file must not be truncated while it is mapped: the operating system then ends the process.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError, one line naming the file and what is wrong with it."""
        self.path = path
        descriptor, self.size = open_regular(path)
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        try:
            self.signature = FileSignature.of(os.fstat(descriptor))
            self.header = _read_header(descriptor, self.size, str(path))
            self.entries = _parse_entries(self.header, self.size, str(path))
            self._map = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None

    def read(self, name: str, start: int, count: int) -> bytes:
        """A piece of a tensor's bytes, read and not mapped: it makes nothing else resident."""
        entry = self.entries[name]
        start = min(start, entry.end - entry.start)
        count = min(count, entry.end - entry.start - start)
        try:
            data = os.pread(self._descriptor, count, entry.start + start)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None
        if len(data) != count:
            raise CheckpointError(f"{self.path}: truncated while it was read")
        return data

    def release(self) -> None:
        """Gives back the memory of mapped pages; they stay valid and are read again."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes, mapped."""
        entry = self.entries[name]
        return np.frombuffer(self._map, np.uint8, entry.end - entry.start, entry.start)

    def is_readable(self, name: str) -> bool:
        return self.entries[name].dtype in _READABLE

    def dtype(self, name: str) -> StoredDtype:
        """Of a readable tensor."""
        return _READABLE[self.entries[name].dtype][0]

    def tensor(self, name: str) -> StoredTensor:
        """A tensor of a readable dtype as a view; a copy only where the file misaligns it."""
        dtype, item = _READABLE[self.entries[name].dtype]
        return StoredTensor(self._view(name, item), dtype)

    def integers(self, name: str) -> npt.NDArray[Any]:
        """As `tensor`, of dtype I8, I32 or I64, or F8_E4M3 as its bit patterns."""
        return self._view(name, _BITS[self.entries[name].dtype])

    def _view(self, name: str, item: npt.DTypeLike) -> npt.NDArray[Any]:
        data: npt.NDArray[Any] = self.raw(name).view(item).reshape(self.entries[name].shape)
        if not data.flags.aligned:
            data = data.copy()
            data.flags.writeable = False
        return data


def _read_header(descriptor: int, size: int, where: str) -> bytes:
    if size < 8:
        raise CheckpointError(f"{where}: {size} bytes is too short for a safetensors file")
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{where}: a header of {length} bytes is beyond the limit of {MAX_HEADER_BYTES} "
            "(damaged, or not a safetensors file)"
        )
    if length > size - 8:
        raise CheckpointError(
            f"{where}: truncated, or not a safetensors file: "
            f"a header of {length} bytes in a file of {size} bytes"
        )
    header = os.pread(descriptor, length, 8)
    if len(header) != length:
        raise CheckpointError(f"{where}: truncated while it was read")
    if not header.startswith(b"{"):
        raise CheckpointError(f"{where}: the header does not start with '{{'")
    if header.count(b",") > MAX_HEADER_ITEMS:
        raise CheckpointError(f"{where}: the header has too many entries")
    return header


def _parse_entries(header: bytes, size: int, where: str) -> dict[str, TensorEntry]:
    tensors = parse_json_object(header, f"{where}: header", integers_only=True)
    metadata = tensors.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{where}: __metadata__ must map strings to strings")
    first_byte = 8 + len(header)
    entries = {
        name: _parse_entry(value, first_byte, f"{where}: tensor {show(name)}")
        for name, value in tensors.items()
    }
    _check_coverage(entries, first_byte, size, where)
    return entries


def _parse_entry(value: Any, first_byte: int, where: str) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where}: unknown dtype {show(dtype)}")
    if not _is_counts(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(
            f"{where}: shape = {show(shape)}: must be at most {MAX_RANK} non-negative integers"
        )
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where}: data_offsets = {show(offsets)}: must be two ascending non-negative integers"
        )
    bits = DTYPE_BITS[dtype]
    for dimension in shape:
        bits *= dimension
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(
            f"{where}: {dtype} of shape {show(shape)} does not take {offsets[1] - offsets[0]} bytes"
        )
    return TensorEntry(dtype, tuple(shape), first_byte + offsets[0], first_byte + offsets[1])


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_coverage(
    entries: dict[str, TensorEntry], first_byte: int, size: int, where: str
) -> None:
    """The byte ranges, in order, cover [first_byte, size) exactly."""
    for name, entry in entries.items():
        if entry.end > size:
            raise CheckpointError(
                f"{where}: truncated: tensor {show(name)} ends at byte {entry.end} "
                f"of a file of {size} bytes"
            )
    position = first_byte
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            kind = "a hole before" if entry.start > position else "an overlap at"
            raise CheckpointError(f"{where}: {kind} tensor {show(name)}")
        position = entry.end
    if position != size:
        raise CheckpointError(
            f"{where}: {size - position} bytes that belong to no tensor at the end of the file"
        )
