"""Checkpoints in Hugging Face layout: config.json beside one or more safetensors files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from trimtab.checkpoints.base import MatrixFormat, StoredMatrix, StoredTensor
from trimtab.checkpoints.json_file import read_json_object
from trimtab.checkpoints.quantization import quantization_config, read_quantization
from trimtab.checkpoints.safetensors_file import SafetensorsFile
from trimtab.checkpoints.shards import open_shards, open_single
from trimtab.checkpoints.stored_file import StoredFile
from trimtab.checkpoints.stored_layers import (
    WEIGHT_SUFFIXES,
    Module,
    StoredLayer,
    StoredTensors,
)
from trimtab.errors import CheckpointError
from trimtab.models.config_reader import ConfigReader, show
from trimtab.models.family import Family
from trimtab.models.registry import FAMILIES, model_spec
from trimtab.models.spec import ModelSpec, TensorSource

# Buffers that older versions of transformers stored; they follow from the config.
HARMLESS_SUFFIXES = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")

SAMPLE_PIECES = 8
SAMPLE_BYTES = 256
COMPARED_BYTES = 4 << 20


@dataclass(frozen=True)
class NameStyle:
    """What files put in front of the decoder's names and of lm_head."""

    decoder: str
    head: str


STYLES = (
    NameStyle("model.", ""),  # a causal language model
    NameStyle("", ""),  # saved without its head
    NameStyle("model.language_model.", ""),  # the text part of a multimodal model
    NameStyle("language_model.model.", "language_model."),  # the same, by transformers 4
)


def open_directory(path: Path, directory: Path, max_context: int) -> HuggingFaceCheckpoint:
    """`directory` holds the config.json; `path`, what the user named, is it or a file in it.

    Raises CheckpointError and ConfigError: see `trimtab.checkpoints.opening.open_checkpoint`.
    """
    if not (directory / "config.json").exists():
        raise CheckpointError(f"{directory}: no config.json: not a model in Hugging Face layout")
    config = read_json_object(directory / "config.json")
    spec = _with_generation_config(model_spec(config, max_context), directory)
    quantization = quantization_config(config, directory)
    files = open_shards(directory) if path.is_dir() else open_single(path)
    return HuggingFaceCheckpoint(path, config, spec, files, quantization)


def _with_generation_config(spec: ModelSpec, directory: Path) -> ModelSpec:
    """generation_config.json often names end tokens (of a turn) that config.json does not."""
    path = directory / "generation_config.json"
    if not path.exists():
        return spec
    reader = ConfigReader(read_json_object(path), str(path))
    ids = spec.eos_token_ids + reader.token_ids("eos_token_id", spec.vocab_size)
    return replace(spec, eos_token_ids=tuple(dict.fromkeys(ids)))


class HuggingFaceCheckpoint:
    """See `trimtab.checkpoints.base.Checkpoint`."""

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        spec: ModelSpec,
        files: Mapping[str, SafetensorsFile],
        quantization: ConfigReader | None = None,
    ) -> None:
        """Checks that the files hold exactly the tensors that `spec` and the quantization config
        need, in the shapes that follow."""
        self.path = path
        self.spec = spec
        self._config = config
        self._files = files
        family = FAMILIES[spec.architecture]
        style = self._find_style()
        self._sources = {
            name: replace(source, name=_stored_name(source.name, style))
            for name, source in family.tensors(spec).items()
        }
        self._quantization = quantization
        self._layers = {} if quantization is None else self._quantized_layers(quantization)
        for name, source in self._sources.items():
            if source.name not in self._layers:
                self._check_tensor(name, source)
        self._tied_head = self._find_tied_head(_stored_name("lm_head.weight", style))
        self._check_no_strangers(family)

    def names(self) -> Iterable[str]:
        return self._sources.keys()

    @property
    def weight_files(self) -> Sequence[StoredFile]:
        return [StoredFile(file.path, file.signature) for file in self._unique_files()]

    def tensor(self, name: str) -> StoredTensor:
        matrix = self.matrix(name)
        if isinstance(matrix, StoredTensor):
            return matrix
        return StoredTensor(matrix.to_float32(), "f32")

    def format(self, name: str) -> MatrixFormat:
        source = self._sources[name]
        layer = self._layers.get(source.name)
        if layer is not None:
            return layer.format(source.first_row, source.shape[0])
        return self._files[source.name].dtype(source.name)

    def matrix(self, name: str) -> StoredMatrix:
        self._check_tied_head()
        source = self._sources[name]
        layer = self._layers.get(source.name)
        if layer is not None:
            return layer.read(source.first_row, source.shape[0])
        stored = self._files[source.name].tensor(source.name)
        if source.fused_rows is None:
            return stored
        rows = slice(source.first_row, source.first_row + source.shape[0])
        return StoredTensor(stored.data[rows], stored.dtype)

    def release(self) -> None:
        for file in self._unique_files():
            file.release()

    def _unique_files(self) -> list[SafetensorsFile]:
        """By name: an order that does not depend on the directory's."""
        unique = {id(file): file for file in self._files.values()}
        return sorted(unique.values(), key=lambda file: file.path.name)

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the config, the frequencies of its ropes (which `max_context` may have
        chosen), each file's header and size, and 8 pieces of 256 bytes spread over every tensor.

        Reads a few kilobytes a tensor, so that it costs no second pass over the weights. Any
        training step, quantization or pruning changes it; an edit of single weights between the
        pieces does not.
        """
        digest = hashlib.sha256(b"trimtab checkpoint 1\n")
        digest.update(json.dumps(self._config, sort_keys=True).encode())
        if self._quantization is not None:  # which may stand in a file of its own
            digest.update(self._quantization.dump().encode())
        digest.update(repr(self.spec.ropes).encode())
        for file in self._unique_files():
            digest.update(f"\n{file.size} {len(file.header)}\n".encode())
            digest.update(file.header)
        for name in sorted(self._files):
            file = self._files[name]
            last = max(file.entries[name].end - file.entries[name].start - SAMPLE_BYTES, 0)
            for piece in range(SAMPLE_PIECES if last else 1):
                digest.update(file.read(name, last * piece // (SAMPLE_PIECES - 1), SAMPLE_BYTES))
        return digest.hexdigest()

    def _find_style(self) -> NameStyle:
        styles = [
            style
            for style in STYLES
            if any(f"{style.decoder}embed_tokens{end}" in self._files for end in WEIGHT_SUFFIXES)
        ]
        if len(styles) == 1:
            return styles[0]
        if styles:
            raise CheckpointError(f"{self.path}: more than one tensor embed_tokens.weight")
        raise CheckpointError(f"{self.path}: tensor model.embed_tokens.weight is missing")

    def _quantized_layers(self, config: ConfigReader) -> dict[str, StoredLayer]:
        """By the name that the matrix would have as floats."""
        quantization = read_quantization(config)
        tensors = StoredTensors(self.path, self._files)
        layers: dict[str, StoredLayer] = {}
        for name, source in self._sources.items():
            if len(source.shape) != 2 or source.name in layers:
                continue
            module = Module(
                source.name.removesuffix(".weight"),
                "Embedding" if name == "embed" else "Linear",
                source.shape[0] if source.fused_rows is None else source.fused_rows,
                source.shape[1],
                f"{name}_bias" in self._sources,
            )
            layer = quantization.layer(module, tensors)
            if layer is not None:
                layers[source.name] = layer
        return layers

    def _check_tensor(self, name: str, source: TensorSource) -> None:
        file = self._files.get(source.name)
        if file is None:
            hint = ""
            if name == "lm_head":
                hint = " (if the embeddings are tied, config.json must say tie_word_embeddings)"
            raise CheckpointError(f"{self.path}: tensor {source.name} is missing{hint}")
        rows = source.shape[0] if source.fused_rows is None else source.fused_rows
        expected = (rows, *source.shape[1:])
        entry = file.entries[source.name]
        if entry.shape != expected:
            raise CheckpointError(
                f"{file.path}: tensor {source.name} has shape {list(entry.shape)}, "
                f"config.json asks for {list(expected)}"
            )
        if not file.is_readable(source.name):
            raise CheckpointError(
                f"{file.path}: tensor {source.name} is stored as {entry.dtype}: "
                "only F32, F16 and BF16 are supported"
            )

    def _find_tied_head(self, head: str) -> str | None:
        """Some tied models store their head once more; then it must be the same bytes."""
        if not self.spec.tied_embeddings or head not in self._files:
            return None
        embed = self._sources["embed"].name
        if embed in self._layers:
            self._refuse_tied_head(head)
        ours, theirs = self._files[embed].entries[embed], self._files[head].entries[head]
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            self._refuse_tied_head(head)
        return head

    def _check_tied_head(self) -> None:
        """Both tables are read for it, so it waits until the weights are wanted."""
        head = self._tied_head
        if head is None:
            return
        embed = self._sources["embed"].name
        entry = self._files[embed].entries[embed]
        for start in range(0, entry.end - entry.start, COMPARED_BYTES):
            ours = self._files[embed].read(embed, start, COMPARED_BYTES)
            if ours != self._files[head].read(head, start, COMPARED_BYTES):
                self._refuse_tied_head(head)
        self._tied_head = None

    def _refuse_tied_head(self, head: str) -> NoReturn:
        raise CheckpointError(
            f"{self.path}: {head} differs from {self._sources['embed'].name}, but config.json says "
            "tie_word_embeddings; set it to false to use both"
        )

    def _check_no_strangers(self, family: Family) -> None:
        """A weight that the spec has no place for (a bias, a layer) would change the answer."""
        known = {source.name for source in self._sources.values()} - self._layers.keys()
        known.update(*(layer.tensor_names for layer in self._layers.values()))
        if self.spec.tied_embeddings:
            known.update(f"{style.head}lm_head.weight" for style in STYLES)
        strangers = sorted(
            name
            for name in self._files
            if name not in known
            and not name.endswith(HARMLESS_SUFFIXES)
            and not name.startswith(family.foreign_prefixes)
        )
        if strangers:
            more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            raise CheckpointError(
                f"{self.path}: tensor {show(strangers[0])}{more}: "
                f"{self.spec.architecture} with this config.json has no place for it"
            )


def _stored_name(name: str, style: NameStyle) -> str:
    """From the family's own name (`model.x`, `lm_head.x`) to the one in these files."""
    if name.startswith("model."):
        return style.decoder + name.removeprefix("model.")
    return style.head + name
