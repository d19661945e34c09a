"""Safetensors files written tensor by tensor, in shards, with their index.

Tensors go to `.data` of the shard that is open; when it is full, its header is known and file and
header are put together. Never is more than one tensor in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.shards import INDEX_FILE, SINGLE_FILE
from trimtab.checkpoints.writing_base import sync

SHARD_BYTES = 5_000_000_000
COPY_BYTES = 8 << 20

_NAMES = {
    np.dtype("<f4"): "F32",
    np.dtype("<f2"): "F16",
    np.dtype("<i4"): "I32",
    np.dtype("<i8"): "I64",
    np.dtype("i1"): "I8",
    np.dtype("u1"): "U8",
}


def dtype_name(array: npt.NDArray[Any], *, bf16: bool = False) -> str:
    """What safetensors calls the dtype of `array`; bit patterns of bf16 are uint16."""
    return "BF16" if bf16 else _NAMES[array.dtype.newbyteorder("<")]


class ShardWriter:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` (and one tensor) and their
    index, into `directory`. Raises OSError as the file system does."""

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._parts: list[tuple[Path, list[str]]] = []  # of shards put together: their tensors
        self._entries: dict[str, Any] = {}  # of the open one
        self._size = 0
        self._total = 0
        self._data: BinaryIO | None = None

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: npt.NDArray[Any]) -> None:
        """The bytes of `data`, C-contiguous, are stored as they are."""
        if self._data is not None and self._size + data.nbytes > self._shard_bytes:
            self._close_shard()
        if self._data is None:
            self._data = (self._directory / ".data").open("w+b")
        raw = np.ascontiguousarray(data)
        write_array(self._data, raw)
        end = self._size + raw.nbytes
        self._entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [self._size, end],
        }
        self._size = end
        self._total += raw.nbytes

    def finish(self) -> list[Path]:
        """Name the shards, write the index where there are several, sync; gives the files."""
        self._close_shard()
        count = len(self._parts)
        files = []
        weight_map = {}
        for i, (part, names) in enumerate(self._parts, 1):
            name = SINGLE_FILE if count == 1 else f"model-{i:05}-of-{count:05}.safetensors"
            files.append(part.rename(self._directory / name))
            weight_map.update(dict.fromkeys(names, name))
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            write_json(self._directory / INDEX_FILE, index)
        return files

    def abandon(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data = None

    def _close_shard(self) -> None:
        if self._data is None:
            return
        header = {"__metadata__": {"format": "pt"}, **self._entries}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        part = self._directory / f".part-{len(self._parts)}"
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            self._data.seek(0)
            shutil.copyfileobj(self._data, file, COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        self._parts.append((part, list(self._entries)))
        self._data.close()
        (self._directory / ".data").unlink()
        self._data, self._entries, self._size = None, {}, 0


def write_array(file: BinaryIO, array: npt.NDArray[Any]) -> None:
    """The bytes of a C-contiguous array."""
    if array.size:
        file.write(array.reshape(-1).view(np.uint8).data)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
    sync(path)
