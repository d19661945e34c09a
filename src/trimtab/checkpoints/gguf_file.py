"""One GGUF file, version 2 or 3: its header checked completely, then its bytes mapped.

    | "GGUF" | u32 version | u64 tensors | u64 metadata | metadata | tensor table | padding | data |

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; little-endian. Nothing in the
header is believed before it is checked against the size of the file: counts and lengths against
what is left of it, tensor ranges against the data section. They may leave holes (alignment), not
overlap. All arithmetic is in Python's integers, which cannot overflow.
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.json_file import open_regular
from trimtab.checkpoints.stored_file import FileSignature
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show
from trimtab.numerics.gguf_blocks import BLOCKS, OTHER_TYPES, BlockType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 << 20  # the largest vocabularies take a fifth of it
MAX_ITEMS = 1 << 21  # of an array: several times the largest list of merges
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 20
MAX_KEY_BYTES = (1 << 16) - 1
MAX_RANK = 4
DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, tuple[str, npt.DTypeLike]] = {
    0: ("<B", "<u1"),
    1: ("<b", "<i1"),
    2: ("<H", "<u2"),
    3: ("<h", "<i2"),
    4: ("<I", "<u4"),
    5: ("<i", "<i4"),
    6: ("<f", "<f4"),
    7: ("<?", "<u1"),
    10: ("<Q", "<u8"),
    11: ("<q", "<i8"),
    12: ("<d", "<f8"),
}


@dataclass(frozen=True)
class GgufTensor:
    block: BlockType
    shape: tuple[int, ...]  # as in numpy: the last dimension is contiguous (GGUF lists it first)
    start: int  # byte range within the file
    end: int


class GgufFile:
    """A validated, mapped file. Arrays taken from it stay valid as long as they are held.

    `metadata` maps keys to numbers, booleans, strings, lists of strings, and numpy arrays of
    numbers. The file must not be truncated while it is mapped: the operating system then ends the
    process.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError, one line naming the file and what is wrong with it."""
        self.path = path
        descriptor, self.size = open_regular(path)
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        if self.size < 24:
            raise CheckpointError(f"{path}: {self.size} bytes is too short for a GGUF file")
        try:
            self.signature = FileSignature.of(os.fstat(descriptor))
            self._map = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        header = _Header(self._map, self.size, str(path))
        self.metadata = header.metadata
        self.tensors = header.tensors
        self.header_bytes = header.position

    def header(self) -> bytes:
        """All bytes up to the end of the tensor table."""
        return self._pread(0, self.header_bytes)

    def read(self, name: str, start: int, count: int) -> bytes:
        """A piece of a tensor's bytes, read and not mapped: it makes nothing else resident."""
        tensor = self.tensors[name]
        start = min(start, tensor.end - tensor.start)
        count = min(count, tensor.end - tensor.start - start)
        return self._pread(tensor.start + start, count)

    def _pread(self, start: int, count: int) -> bytes:
        try:
            data = os.pread(self._descriptor, count, start)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None
        if len(data) != count:
            raise CheckpointError(f"{self.path}: truncated while it was read")
        return data

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes, mapped: [rows, bytes of a row], all dimensions but the last folded."""
        tensor = self.tensors[name]
        flat = np.frombuffer(self._map, np.uint8, tensor.end - tensor.start, tensor.start)
        return flat.reshape(-1, tensor.block.row_bytes(tensor.shape[-1]))

    def release(self) -> None:
        """Gives back the memory of mapped pages; they stay valid and are read again."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)


class _Header:
    """Reads front to back; `position` is the first byte not read yet."""

    def __init__(self, data: mmap.mmap, size: int, where: str) -> None:
        self._data, self._size, self._where = data, size, where
        self.position = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        if self._take(4) != MAGIC:
            raise self._error("not a GGUF file")
        version = self._number("<I")
        if version not in VERSIONS:
            big = int.from_bytes(version.to_bytes(4, "little"), "big")
            hint = " (big-endian)" if big in VERSIONS else ""
            raise self._error(f"version {version}{hint} is not supported: use version 2 or 3")
        num_tensors = self._count("tensors", MAX_TENSORS, 24)
        num_keys = self._count("metadata", MAX_KEYS, 13)
        for _ in range(num_keys):
            self._read_pair()
        self._read_tensors(num_tensors)

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {message}")

    def _take(self, count: int) -> bytes:
        if count > self._size - self.position:
            raise self._error(
                f"truncated: {count} bytes at byte {self.position} of a file of {self._size}"
            )
        self.position += count
        if self.position > MAX_HEADER_BYTES:
            raise self._error(f"a header of more than {MAX_HEADER_BYTES >> 20} MiB (damaged?)")
        return self._data[self.position - count : self.position]

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _count(self, what: str, limit: int, least_bytes: int) -> int:
        """A u64 that counts things of at least so many bytes each, which have to be there."""
        count: int = self._number("<Q")
        if count > limit:
            raise self._error(f"{count} {what} are beyond the limit of {limit} (damaged?)")
        if count * least_bytes > self._size - self.position:
            raise self._error(f"truncated: {count} {what} in {self._size - self.position} bytes")
        return count

    def _text(self, what: str, limit: int) -> str:
        data = self._take(self._count(f"bytes of {what}", limit, 1))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._error(f"{what} before byte {self.position} is not UTF-8") from None

    def _texts(self, what: str, count: int) -> list[str]:
        """As `_text`, so many times: a vocabulary has hundreds of thousands."""
        data, position = self._data, self.position
        limit = min(self._size, MAX_HEADER_BYTES)
        length_at = struct.Struct("<Q").unpack_from
        pieces = []
        for _ in range(count):
            start = position + 8
            if start <= limit:
                position = start + length_at(data, position)[0]
            if start > limit or position > limit:
                self.position = start - 8
                self._text(what, self._size)  # says what is wrong
                raise self._error(f"a header of more than {MAX_HEADER_BYTES >> 20} MiB (damaged?)")
            try:
                pieces.append(data[start:position].decode())
            except UnicodeDecodeError:
                raise self._error(f"{what} before byte {position} is not UTF-8") from None
        self.position = position
        return pieces

    def _read_pair(self) -> None:
        key = self._text("a key", MAX_KEY_BYTES)
        if key in self.metadata:
            raise self._error(f"metadata {show(key)} stands there twice")
        self.metadata[key] = self._value(self._number("<I"), key)

    def _value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind][0])
        if kind == _STRING:
            return self._text(f"metadata {show(key)}", self._size)
        if kind != _ARRAY:
            raise self._error(f"metadata {show(key)} has the unknown type {kind}")
        item = self._number("<I")
        what = f"metadata {show(key)}"
        if item in _SCALARS:
            dtype = np.dtype(_SCALARS[item][1])
            count = self._count(f"items of {show(key)}", MAX_ITEMS, dtype.itemsize)
            values = np.frombuffer(self._take(count * dtype.itemsize), dtype)
            return values.astype(bool) if item == 7 else values
        if item == _STRING:
            count = self._count(f"items of {show(key)}", MAX_ITEMS, 8)
            return self._texts(what, count)
        raise self._error(f"metadata {show(key)} is an array of the unsupported type {item}")

    def _read_tensors(self, count: int) -> None:
        offsets: dict[str, tuple[BlockType, tuple[int, ...], int]] = {}
        for _ in range(count):
            name = self._text("a tensor's name", MAX_KEY_BYTES)
            if name in offsets:
                raise self._error(f"tensor {show(name)} stands there twice")
            rank = self._number("<I")
            if not 1 <= rank <= MAX_RANK:
                raise self._error(f"tensor {show(name)} has {rank} dimensions, not 1 to {MAX_RANK}")
            shape = tuple(reversed([self._number("<Q") for _ in range(rank)]))
            if 0 in shape:
                raise self._error(f"tensor {show(name)} has no elements")
            kind = self._number("<I")
            block = BLOCKS.get(kind)
            if block is None:
                known = OTHER_TYPES.get(kind, str(kind))
                raise self._error(f"tensor {show(name)} has the unsupported type {known}")
            if shape[-1] % block.elements:
                raise self._error(
                    f"tensor {show(name)}: rows of {shape[-1]} are no multiple of the "
                    f"{block.elements} elements of a block of {block.name}"
                )
            offsets[name] = block, shape, self._number("<Q")
        self._place(offsets)

    def _place(self, offsets: dict[str, tuple[BlockType, tuple[int, ...], int]]) -> None:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment % 8:
            raise self._error(f"general.alignment = {show(alignment)}: must be a multiple of 8")
        first = -(-self.position // alignment) * alignment
        end = 0
        for name, (block, shape, offset) in sorted(offsets.items(), key=lambda item: item[1][2]):
            rows = 1
            for dimension in shape[:-1]:
                rows *= dimension
            if offset % alignment:
                raise self._error(f"tensor {show(name)}: offset {offset} is not aligned")
            if offset < end:
                raise self._error(f"tensor {show(name)} overlaps another")
            end = offset + rows * block.row_bytes(shape[-1])
            if first + end > self._size:
                raise self._error(
                    f"truncated: tensor {show(name)} ends at byte {first + end} of a file of "
                    f"{self._size} bytes"
                )
            self.tensors[name] = GgufTensor(block, shape, first + offset, first + end)
