"""A valid checkpoint written by hand, byte for byte, for tests that then damage it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.models.registry import FAMILIES, model_spec

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
NUMPY_TYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # and F8_E4M3 uint8: their bit patterns
    "F8_E4M3": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}


def weights(config: dict[str, Any] = CONFIG) -> dict[str, np.ndarray]:
    """Stored name -> float32 values that depend on the name only."""
    spec = model_spec(config)
    result = {}
    for source in FAMILIES[spec.architecture].tensors(spec).values():
        rows = source.fused_rows or source.shape[0]
        generator = np.random.default_rng(zlib.crc32(source.name.encode()))
        shape = (rows, *source.shape[1:])
        result[source.name] = generator.standard_normal(shape, dtype=np.float32)
    return result


def header_of(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    dtypes = {np.dtype(kind): name for name, kind in NUMPY_TYPES.items()}
    header, position = {}, 0
    for name, data in tensors.items():
        end = position + data.nbytes
        header[name] = {
            "dtype": dtypes[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [position, end],
        }
        position = end
    return header


def file_bytes(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    """A header given as an object is padded, so that the data starts at a multiple of 8."""
    if isinstance(header, bytes):
        text = header
    else:
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write_file(path: Path, tensors: dict[str, np.ndarray]) -> None:
    data = b"".join(value.tobytes() for value in tensors.values())
    path.write_bytes(file_bytes(header_of(tensors), data))


def write_model(
    directory: Path, config: dict[str, Any] = CONFIG, tensors: dict[str, np.ndarray] | None = None
) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_file(directory / "model.safetensors", weights(config) if tensors is None else tensors)
    return directory


def write_sharded(directory: Path, config: dict[str, Any] = CONFIG) -> Path:
    """Two shards: model-0000{1,2}-of-00002.safetensors, and their index."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    items = list(weights(config).items())
    weight_map = {}
    for i, part in enumerate((items[:7], items[7:])):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        write_file(directory / name, dict(part))
        weight_map.update(dict.fromkeys(dict(part), name))
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory
