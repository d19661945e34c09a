"""The container of a GGUF file, version 3, written tensor by tensor.

    | "GGUF" | 3 | tensors | keys | metadata | tensor table | padding | data, each tensor padded |

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; little-endian. The header comes
first and is known last: the data goes to a file of its own until then.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.writing_shards import COPY_BYTES, write_array
from trimtab.numerics.gguf_blocks import BLOCKS

ALIGNMENT = 32
TYPE_IDS = {block.name: number for number, block in BLOCKS.items()}

_NUMBERS = {
    "u8": (0, "<B"),
    "i32": (5, "<i"),
    "u32": (4, "<I"),
    "f32": (6, "<f"),
    "bool": (7, "<?"),
}
_STRING, _ARRAY = 8, 9
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True)
class Value:
    """A value of the metadata: `kind` is a key of _NUMBERS or "string"; lists become arrays."""

    kind: str
    value: object


class GgufWriter:
    """Raises OSError as the file system does."""

    def __init__(self, path: Path) -> None:
        """`path` appears with `finish`; until then there is `path`.data."""
        self._path = path
        self._data_path = path.with_name(path.name + ".data")
        self._data: BinaryIO = self._data_path.open("w+b")
        self._table: list[bytes] = []
        self._size = 0

    def add(
        self, name: str, type_name: str, shape: tuple[int, ...], data: npt.NDArray[np.uint8]
    ) -> None:
        """`shape` as in numpy; `data`: the bytes of all rows."""
        entry = _text(name) + struct.pack("<I", len(shape))
        for dimension in reversed(shape):
            entry += struct.pack("<Q", dimension)
        self._table.append(entry + struct.pack("<IQ", TYPE_IDS[type_name], self._size))
        raw = np.ascontiguousarray(data)
        write_array(self._data, raw)
        padding = -raw.nbytes % ALIGNMENT
        self._data.write(bytes(padding))
        self._size += raw.nbytes + padding

    def finish(self, metadata: Mapping[str, Value | bytes]) -> None:
        """Bytes are a value as another file has it: its type and what follows."""
        header = b"GGUF" + struct.pack("<IQQ", 3, len(self._table), len(metadata))
        header += b"".join(_text(key) + _encoded(value) for key, value in metadata.items())
        header += b"".join(self._table)
        with self._path.open("wb") as file:
            file.write(header + bytes(-len(header) % ALIGNMENT))
            self._data.seek(0)
            shutil.copyfileobj(self._data, file, COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        self.abandon()

    def abandon(self) -> None:
        """Remove the data that waits for its header."""
        self._data.close()
        self._data_path.unlink(missing_ok=True)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encoded(value: Value | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    number, content = _NUMBERS.get(value.kind, (_STRING, ""))[0], value.value
    if isinstance(content, list):
        items = b"".join(_item(value.kind, item) for item in content)
        return struct.pack("<IIQ", _ARRAY, number, len(content)) + items
    return struct.pack("<I", number) + _item(value.kind, content)


def _item(kind: str, value: object) -> bytes:
    return _text(str(value)) if kind == "string" else struct.pack(_NUMBERS[kind][1], value)


def stored_values(header: bytes) -> dict[str, bytes]:
    """The metadata of a file whose header has been checked: each value as it is stored."""
    (count,) = struct.unpack_from("<Q", header, 16)
    position = 24
    values = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", header, position)
        key = header[position + 8 : position + 8 + length].decode()
        start = position + 8 + length
        (kind,) = struct.unpack_from("<I", header, start)
        position = _end_of(header, kind, start + 4)
        values[key] = header[start:position]
    return values


def _end_of(header: bytes, kind: int, position: int) -> int:
    """Of a value of this type that begins at `position`."""
    if kind == _STRING:
        return position + 8 + int(struct.unpack_from("<Q", header, position)[0])
    if kind != _ARRAY:
        return position + _BYTES[kind]
    items, count = struct.unpack_from("<IQ", header, position)
    position += 12
    if items not in (_STRING, _ARRAY):
        return position + _BYTES[items] * int(count)
    for _ in range(count):
        position = _end_of(header, items, position)
    return position
