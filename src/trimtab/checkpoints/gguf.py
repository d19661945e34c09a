"""GGUF files as checkpoints: the model that their metadata describes, its tensors as stored.

llama.cpp's converter changes two kinds of tensors, and this undoes it without rounding: the rows
of q and k of the architecture `llama` lie in pairs (rows are whole blocks, so that they are moved
back as they are); the norms of Gemma have 1 added, so that the spec's norm_weight_offset is 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.base import MatrixFormat, StoredDtype, StoredTensor
from trimtab.checkpoints.gguf_config import Described, describe
from trimtab.checkpoints.gguf_file import GgufFile, GgufTensor
from trimtab.checkpoints.gguf_names import gguf_name
from trimtab.checkpoints.gguf_parts import open_parts
from trimtab.checkpoints.stored_file import StoredFile
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import show
from trimtab.models.registry import FAMILIES, model_spec
from trimtab.models.spec import ModelSpec, TensorSource
from trimtab.numerics.stored import GroupedMatrix

SAMPLE_PIECES = 8
SAMPLE_BYTES = 256

# Where a table of rope angles used to be stored; it follows from the metadata.
HARMLESS_SUFFIX = ".attn_rot_embd.weight"

_FLOATS: dict[str, tuple[StoredDtype, npt.DTypeLike]] = {
    "F32": ("f32", np.dtype("<f4")),
    "F16": ("f16", np.dtype("<f2")),
    "BF16": ("bf16", np.dtype("<u2")),
}


def open_gguf(path: Path, max_context: int = 0) -> GgufCheckpoint:
    """`path` is a file, of several parts the first.

    Raises CheckpointError and ConfigError: see `trimtab.checkpoints.opening.open_checkpoint`.
    """
    files = open_parts(path)
    tensors = {name: file for file in files for name in file.tensors}
    described = describe(files[0], tensors)
    try:
        spec = model_spec(described.config, max_context)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: its metadata, read as {error}") from None
    spec = _adjusted(spec, described, tensors.keys())
    tokens = files[0].metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > spec.vocab_size:
        raise CheckpointError(
            f"{path}: {len(tokens)} tokens, but token_embd.weight has {spec.vocab_size} rows"
        )
    return GgufCheckpoint(path, spec, described, files)


def _adjusted(spec: ModelSpec, described: Described, names: Iterable[str]) -> ModelSpec:
    """What config.json has no words for, or none of its own."""
    names = set(names)
    spec = replace(spec, norm_weight_offset=0.0)
    if described.attention_scale is not None:
        spec = replace(spec, attention_scale=described.attention_scale)
    if described.architecture in ("llama", "qwen3"):
        spec = replace(
            spec,
            qkv_bias="blk.0.attn_q.bias" in names,
            output_bias="blk.0.attn_output.bias" in names,
            mlp_bias="blk.0.ffn_down.bias" in names,
        )
    return spec


class GgufCheckpoint:
    """See `trimtab.checkpoints.base.Checkpoint`."""

    def __init__(
        self, path: Path, spec: ModelSpec, described: Described, files: Sequence[GgufFile]
    ) -> None:
        """Checks that the files hold exactly the tensors that `spec` needs, in its shapes."""
        self.path = path
        self.spec = spec
        self._paired = described.architecture == "llama"
        self._files = files
        self._tensors = {name: file for file in files for name in file.tensors}
        self._sources = {
            name: replace(source, name=gguf_name(source.name, spec.post_norms))
            for name, source in FAMILIES[spec.architecture].tensors(spec).items()
        }
        for source in self._sources.values():
            self._check_tensor(source)
        self._check_no_strangers(described.rope_tensors)

    def names(self) -> Iterable[str]:
        return self._sources.keys()

    @property
    def weight_files(self) -> Sequence[StoredFile]:
        return [StoredFile(file.path, file.signature) for file in self._files]

    def tensor(self, name: str) -> StoredTensor:
        matrix = self.matrix(name)
        if isinstance(matrix, StoredTensor):
            return matrix
        return StoredTensor(_frozen(matrix.to_float32()), "f32")

    def format(self, name: str) -> MatrixFormat:
        block = self._entry(name).block
        return _FLOATS[block.name][0] if block.format is None else block.format

    def matrix(self, name: str) -> StoredTensor | GroupedMatrix:
        source, entry = self._sources[name], self._entry(name)
        data: npt.NDArray[Any] = self._tensors[source.name].raw(source.name)
        if entry.block.format is None:
            dtype, item = _FLOATS[entry.block.name]
            rows = self._own_rows(name, data.view(item).reshape(entry.shape))
            return StoredTensor(rows, dtype)
        matrix = entry.block.unpack(self._own_rows(name, data))
        if not np.isfinite(matrix.scales).all():
            raise CheckpointError(
                f"{self.path}: tensor {source.name} has a scale that is not a finite number"
            )
        return matrix

    def release(self) -> None:
        for file in self._files:
            file.release()

    def _entry(self, name: str) -> GgufTensor:
        stored = self._sources[name].name
        return self._tensors[stored].tensors[stored]

    def _own_rows(self, name: str, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of the rows of a stored tensor, those of this one, in the order of the model."""
        source = self._sources[name]
        if source.fused_rows is not None:
            data = data[source.first_row : source.first_row + source.shape[0]]
        kind = name.rpartition(".")[2].removesuffix("_bias")
        if not self._paired or kind not in ("q", "k"):
            return data
        heads = self.spec.num_heads if kind == "q" else self.spec.num_kv_heads
        order = np.arange(len(data)).reshape(heads, -1, 2).swapaxes(1, 2).ravel()
        return _frozen(data[order])

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the spec's ropes, each part's header, and 8 pieces of 256 bytes spread over
        every tensor. What it may miss: see HuggingFaceCheckpoint.identity."""
        digest = hashlib.sha256(b"trimtab gguf 1\n")
        digest.update(repr(self.spec.ropes).encode())
        for file in self._files:
            header = file.header()
            digest.update(f"\n{file.size} {len(header)}\n".encode())
            digest.update(header)
        for name in sorted(self._tensors):
            file = self._tensors[name]
            last = max(file.tensors[name].end - file.tensors[name].start - SAMPLE_BYTES, 0)
            for piece in range(SAMPLE_PIECES if last else 1):
                digest.update(file.read(name, last * piece // (SAMPLE_PIECES - 1), SAMPLE_BYTES))
        return digest.hexdigest()

    def _check_tensor(self, source: TensorSource) -> None:
        file = self._tensors.get(source.name)
        if file is None:
            raise CheckpointError(f"{self.path}: tensor {source.name} is missing")
        rows = source.shape[0] if source.fused_rows is None else source.fused_rows
        expected = (rows, *source.shape[1:])
        entry = file.tensors[source.name]
        if entry.shape != expected:
            raise CheckpointError(
                f"{file.path}: tensor {source.name} has shape {list(entry.shape)}, "
                f"the metadata asks for {list(expected)}"
            )
        if len(entry.shape) == 1 and entry.block.format is not None:
            raise CheckpointError(
                f"{file.path}: tensor {source.name} is stored as {entry.block.name}: "
                "vectors must be F32, F16 or BF16"
            )

    def _check_no_strangers(self, used: frozenset[str]) -> None:
        """A weight that the spec has no place for (a bias, a layer) would change the answer."""
        known = {source.name for source in self._sources.values()} | used
        strangers = sorted(
            name
            for name in self._tensors
            if name not in known and not name.endswith(HARMLESS_SUFFIX)
        )
        if strangers:
            more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            raise CheckpointError(
                f"{self.path}: tensor {show(strangers[0])}{more}: "
                f"{self.spec.architecture} with this metadata has no place for it"
            )


def _frozen(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    data.flags.writeable = False
    return data
