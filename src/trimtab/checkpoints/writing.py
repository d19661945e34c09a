"""Writing a checkpoint: `open_writer` gives the writer of a container.

with open_writer(source, out, "compressed-tensors") as writer:
    writer.add("layers.0.q", matrix)
    ...
    report = writer.finish()
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from trimtab.checkpoints.base import Checkpoint
from trimtab.checkpoints.writing_base import CheckpointWriter, WriteReport
from trimtab.checkpoints.writing_compressed_tensors import CompressedTensorsEncoding
from trimtab.checkpoints.writing_gguf import GgufFileWriter, write_gguf
from trimtab.checkpoints.writing_gptq import AwqEncoding, GptqEncoding
from trimtab.checkpoints.writing_huggingface import Encoding, HuggingFaceWriter, PlainEncoding
from trimtab.checkpoints.writing_shards import SHARD_BYTES
from trimtab.errors import CheckpointError
from trimtab.numerics.stored import ScaleType

__all__ = [
    "CheckpointWriter",
    "Container",
    "WriteReport",
    "open_writer",
    "scale_type_of",
    "write_gguf",
]

Container = Literal["compressed-tensors", "gptq", "awq", "gguf", "safetensors"]


def open_writer(
    source: Checkpoint,
    out: Path,
    container: Container,
    *,
    activation_bits: int | None = None,
    gguf_type: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> CheckpointWriter:
    """A writer of `source` with other weights, as a context manager.

    `out` is a directory that does not exist or is empty; for gguf a file that does not exist. It
    appears when `finish` has read everything back. What is not added is taken from `source`, as it
    is stored there. `activation_bits` (8; compressed-tensors only) makes servers quantize the
    activations, token by token. `gguf_type`
    (gguf only, see `trimtab.checkpoints.gguf_types`) has floats quantized; without it they stay as
    they are. `safetensors` holds floats only.

    Raises CheckpointError, one line.
    """
    if container not in get_args(Container):
        raise CheckpointError(
            f"unknown container {container!r} (known: {', '.join(get_args(Container))})"
        )
    if activation_bits is not None and container != "compressed-tensors":
        raise CheckpointError(f"{container} cannot say that activations are quantized")
    if gguf_type is not None and container != "gguf":
        raise CheckpointError(f"{container} has no GGUF types")
    if container == "gguf":
        return GgufFileWriter(source, Path(out), gguf_type)
    return HuggingFaceWriter(source, Path(out), _encoding(container, activation_bits), shard_bytes)


def _encoding(container: Container, activation_bits: int | None) -> Encoding:
    if container == "compressed-tensors":
        return CompressedTensorsEncoding(activation_bits)
    if container == "gptq":
        return GptqEncoding()
    if container == "awq":
        return AwqEncoding()
    if container == "safetensors":
        return PlainEncoding()
    raise CheckpointError(f"{container} cannot be written yet")


def scale_type_of(source: Checkpoint, container: Container) -> ScaleType:
    """In what type a quantization method should make its scales, so that `container` stores them
    and other programs use them exactly as they are."""
    if container in ("gptq", "awq", "gguf"):
        return "f16"
    dtypes = {source.format(name) for name in source.names()}
    return "bf16" if "bf16" in dtypes else "f16" if "f16" in dtypes else "f32"
