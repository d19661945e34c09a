"""Write a checkpoint in Hugging Face layout, a few megabytes at a time: bf16, in shards."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints import resolve_model
from trimtab.errors import CheckpointError, UserError

MAX_SHARD_BYTES = 2_000_000_000
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class StoredTensor(Protocol):
    """A tensor that can be written without ever being in memory as a whole."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def num_bytes(self) -> int:
        """Two for each element."""
        ...

    def pieces(self, seed: int) -> Iterator[npt.NDArray[np.float32]]:
        """Its elements, finite and in order, some millions at a time."""
        ...


Tensor = TypeVar("Tensor", bound=StoredTensor)


def generator(name: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on the seed and the tensor's name alone."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return np.random.Generator(np.random.PCG64(entropy))


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, half to even; the values are finite."""
    bits: npt.NDArray[np.uint32] = values.view(np.uint32)
    bits = bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    upper: npt.NDArray[np.uint16] = (bits >> np.uint32(16)).astype(np.uint16)
    return upper


def split_into_shards(tensors: Sequence[Tensor], max_bytes: int) -> list[list[Tensor]]:
    """In order; a shard exceeds `max_bytes` only if one tensor does."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    return shards


def write_shard(file: BinaryIO, tensors: Sequence[StoredTensor], seed: int) -> None:
    """One safetensors file; the data starts at a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + tensor.num_bytes
        header[tensor.name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        for piece in tensor.pieces(seed):
            file.write(to_bf16(piece).astype("<u2").tobytes())


def copy_tokenizer(directory: Path, vocab_size: int) -> bool:
    """The built-in model's tokenizer, if there is one and its ids fit the vocabulary."""
    try:
        source = resolve_model("builtin")
        config = json.loads((source / "config.json").read_text())
    except (UserError, OSError, ValueError):
        return False
    if config.get("vocab_size", 0) > vocab_size:
        return False
    copy_files(source, directory, TOKENIZER_FILES)
    return (directory / "tokenizer.json").is_file()


def copy_files(source: Path, directory: Path, names: Sequence[str]) -> None:
    """Those of them that there are."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def write_tensors(
    tensors: Sequence[StoredTensor], directory: Path, seed: int, max_shard_bytes: int
) -> None:
    """All weight files and their index.

    Raises CheckpointError if `directory` already holds something.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory}: already exists and is not an empty directory")
    directory.mkdir(parents=True, exist_ok=True)
    shards = split_into_shards(tensors, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            name = "model.safetensors"
        with (directory / name).open("wb") as file:
            write_shard(file, shard, seed)
        weight_map.update((tensor.name, name) for tensor in shard)
    if len(shards) > 1:
        total = sum(tensor.num_bytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
