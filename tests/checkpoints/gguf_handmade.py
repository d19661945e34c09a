"""GGUF files written byte for byte, for tests that then damage them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LAYOUTS = {4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """`shape` as the file lists it: the contiguous dimension first."""
    head = text(name) + struct.pack("<I", len(shape))
    return head + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


def container(
    pairs: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    num_tensors, num_pairs = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_pairs)
    head += b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def encoded(value: Any) -> tuple[int, bytes]:
    """(type, bytes) of a value; a tuple is taken as it is; numbers are u32, i32 or f32."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, str):
        return STRING, text(value)
    if isinstance(value, list):
        items = [encoded(item) for item in value]
        kind = items[0][0] if items else U32
        return ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(data for _, data in items)
    kind = F32 if isinstance(value, float) else I32 if value < 0 else U32
    kind = U64 if kind == U32 and value >> 32 else kind
    return kind, struct.pack(LAYOUTS[kind], value)


TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "ab", "Ġ", "Ġa", "c", "<tool>"]
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.type": "model",
    "general.quantization_version": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.block_count": 2,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 8,
    "llama.rope.freq_base": 10_000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1, 1, 4],
    "tokenizer.ggml.scores": [0.0] * 3 + [-float(i) for i in range(7)],
    "tokenizer.ggml.merges": ["a b", "Ġ a"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
}
SHAPES: dict[str, tuple[int, ...]] = {
    "attn_norm": (32,),
    "attn_q": (32, 32),
    "attn_k": (32, 16),
    "attn_v": (32, 16),
    "attn_output": (32, 32),
    "ffn_norm": (32,),
    "ffn_gate": (32, 64),
    "ffn_up": (32, 64),
    "ffn_down": (64, 32),
}
KINDS = {0: 4, 1: 2, 8: 34 / 32}  # F32, F16, Q8_0: bytes of an element


def tensors() -> dict[str, tuple[tuple[int, ...], int]]:
    """Name -> (shape as the file lists it, type) of the model of METADATA; q is Q8_0."""
    outer = {"token_embd.weight": (32, 12), "output_norm.weight": (32,), "output.weight": (32, 12)}
    found = {name: (shape, 0) for name, shape in outer.items()}
    for layer in range(2):
        for name, shape in SHAPES.items():
            found[f"blk.{layer}.{name}.weight"] = (shape, 8 if name == "attn_q" else 0)
    return found


def model(
    metadata: Mapping[str, Any] = METADATA,
    changed: Mapping[str, tuple[tuple[int, ...], int] | None] | None = None,
    data_of: Mapping[str, bytes] | None = None,
    only: Sequence[str] | None = None,
) -> bytes:
    """A valid model, but for what is changed: tensors (None: left out), their bytes. `only`: of
    the tensors, those of one part."""
    table = {**tensors(), **(changed or {})}
    entries, data = [], b""
    for name, entry in table.items():
        if entry is None or (only is not None and name not in only):
            continue
        shape, kind = entry
        size = int(np.prod(shape) * KINDS.get(kind, 4))
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        values = generator.standard_normal(size // 4 + 1, np.float32).tobytes()[:size]
        if kind == 8:
            blocks = generator.integers(0, 256, (size // 34, 34), np.uint8)
            blocks[:, :2] = np.array([0.5], "<f2").view(np.uint8)
            values = blocks.tobytes()
        entries.append(tensor(name, shape, kind, len(data)))
        values = (data_of or {}).get(name, values)
        data += values + bytes(-len(values) % 32)
    pairs = [pair(key, *encoded(value)) for key, value in metadata.items() if value is not None]
    return container(pairs, entries, data)


def write(directory: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = directory / name
    path.write_bytes(content)
    return path
