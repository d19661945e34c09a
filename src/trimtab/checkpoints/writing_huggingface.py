"""Checkpoints in Hugging Face layout: safetensors, config.json, and what lies beside them.

Tensors keep the names and the fusion (q, k, v in one matrix) of the source. How a matrix of
integers is stored is the business of an `Encoding`: one for each quantization format.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.base import Checkpoint, StoredTensor
from trimtab.checkpoints.json_file import read_json_object
from trimtab.checkpoints.opening import open_checkpoint
from trimtab.checkpoints.safetensors_file import SafetensorsFile
from trimtab.checkpoints.writing_base import CheckpointWriter, fingerprint, sync
from trimtab.checkpoints.writing_shards import SHARD_BYTES, ShardWriter, dtype_name, write_json
from trimtab.errors import CheckpointError
from trimtab.models.registry import FAMILIES
from trimtab.models.spec import TensorSource
from trimtab.numerics.stored import GroupedMatrix

# Weights in whatever format, and their indexes: never taken over as they are.
WEIGHT_SUFFIXES = frozenset(
    ".safetensors .bin .pt .pth .ckpt .gguf .onnx .h5 .msgpack .npz .index.json".split()  # noqa: SIM905
)
REWRITTEN = frozenset(["config.json", "quantize_config.json", "quant_config.json"])
TEMPLATES = "additional_chat_templates"
DECODER_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
EMBEDDINGS = ("embed_tokens.weight", "embed_tokens.weight_packed", "embed_tokens.qweight")

Piece = tuple[str, str, npt.NDArray[Any]]  # suffix of the module's name, dtype, data


@dataclass(frozen=True)
class Module:
    """A matrix of the model under the name that its module has in the files."""

    name: str  # without ".weight"
    canonical: tuple[str, ...]  # the canonical tensors it is made of


class Encoding(ABC):
    """How a format stores a matrix of integers, and what config.json must say of it."""

    @abstractmethod
    def encode(self, module: Module, matrix: GroupedMatrix) -> Sequence[Piece]:
        """Raises CheckpointError, one line, for a matrix that the format cannot hold."""

    def last_pieces(self) -> Sequence[tuple[str, Piece]]:
        """(module, piece) of what could not be written before all matrices were known."""
        return []

    @abstractmethod
    def config(self, plain: Sequence[Module]) -> dict[str, Any] | None:
        """The quantization_config; `plain` are the matrices that were stored as floats."""

    def other_files(self) -> dict[str, dict[str, Any]]:
        """JSON files that older programs look for."""
        return {}

    def notes(self) -> list[str]:
        return []


class PlainEncoding(Encoding):
    """safetensors without quantization: integers are refused."""

    def encode(self, module: Module, matrix: GroupedMatrix) -> Sequence[Piece]:
        raise CheckpointError(f"tensor {module.name}: plain safetensors holds floats only")

    def config(self, plain: Sequence[Module]) -> None:
        return None


class HuggingFaceWriter(CheckpointWriter):
    def __init__(
        self,
        source: Checkpoint,
        out: Path,
        encoding: Encoding,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Raises CheckpointError when the source has no config.json to start from."""
        super().__init__(source, out)
        self._encoding = encoding
        self._shard_bytes = shard_bytes
        self._directory = source.path if source.path.is_dir() else source.path.parent
        if not (self._directory / "config.json").exists():
            raise CheckpointError(
                f"{source.path}: has no config.json: only a model in Hugging Face layout can be "
                "written in that layout"
            )
        self._config = read_json_object(self._directory / "config.json")
        family = FAMILIES[source.spec.architecture]
        self._foreign_prefixes = family.foreign_prefixes
        self._files = [
            SafetensorsFile(file.path)
            for file in source.weight_files
            if file.path.suffix == ".safetensors"
        ]
        rename = _renaming({name for file in self._files for name in file.entries})
        self._places: dict[str, TensorSource] = {
            name: replace(place, name=rename(place.name))
            for name, place in family.tensors(source.spec).items()
        }
        self._parts: dict[str, list[str]] = {}  # stored name -> canonical names, in row order
        for name, place in self._places.items():
            self._parts.setdefault(place.name, []).append(name)
        for names in self._parts.values():
            names.sort(key=lambda name: self._places[name].first_row)
        self._waiting: dict[str, dict[str, GroupedMatrix | StoredTensor]] = {}
        self._plain: list[Module] = []

    def _create(self) -> None:
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise CheckpointError(f"{self.out}: exists already and is not an empty directory")
        self._staging.mkdir()
        self._shards = ShardWriter(self._staging, self._shard_bytes)

    def _abandon(self) -> None:
        if hasattr(self, "_shards"):
            self._shards.abandon()

    def _write(self, name: str, tensor: GroupedMatrix | StoredTensor) -> str:
        stored = self._places[name].name
        parts = self._waiting.setdefault(stored, {})
        parts[name] = tensor
        if len(parts) == len(self._parts[stored]):
            del self._waiting[stored]
            ordered = [parts[part] for part in self._parts[stored]]
            self._store(stored, _joined(stored, ordered))
        return fingerprint(tensor)

    def _store(self, stored: str, tensor: GroupedMatrix | StoredTensor) -> None:
        module = Module(stored.removesuffix(".weight"), tuple(self._parts[stored]))
        if isinstance(tensor, StoredTensor):
            dtype = dtype_name(tensor.data, bf16=tensor.dtype == "bf16")
            self._shards.add(stored, dtype, tensor.data.shape, tensor.data)
            if tensor.data.ndim == 2:
                self._plain.append(module)
            return
        for suffix, dtype, data in self._encoding.encode(module, tensor):
            self._shards.add(f"{module.name}.{suffix}", dtype, data.shape, data)

    def _complete(self) -> list[Path]:
        for module, (suffix, dtype, data) in self._encoding.last_pieces():
            self._shards.add(f"{module}.{suffix}", dtype, data.shape, data)
        self._copy_strangers()
        files = self._shards.finish()
        for path in sorted(self._directory.iterdir()):
            if path.is_file() and _is_copied(path):
                shutil.copyfile(path, self._staging / path.name)
                sync(self._staging / path.name)
        templates = self._directory / TEMPLATES
        if templates.is_dir():
            shutil.copytree(templates, self._staging / TEMPLATES)
        config = {
            key: value
            for key, value in self._config.items()
            if key not in ("quantization_config", "compression_config")
        }
        quantization = self._encoding.config([*self._plain, *self._unseen()])
        if quantization is not None:
            config["quantization_config"] = quantization
        write_json(self._staging / "config.json", config)
        for name, value in self._encoding.other_files().items():
            write_json(self._staging / name, value)
        sync(self._staging)
        return files

    def _unseen(self) -> list[Module]:
        """Modules that transformers makes although the files have no tensor for them."""
        modules = [Module(f"re:.*{prefix.rstrip('.')}.*", ()) for prefix in self._foreign_prefixes]
        return [*modules, Module("lm_head", ())] if self.source.spec.tied_embeddings else modules

    def _copy_strangers(self) -> None:
        """The parts of a larger model that never touch text, as they are."""
        for file in self._files:
            for name, entry in file.entries.items():
                if name.startswith(self._foreign_prefixes):
                    self._shards.add(name, entry.dtype, entry.shape, file.raw(name))
            file.release()

    def _open_staged(self) -> Checkpoint:
        return open_checkpoint(self._staging, self.source.spec.max_context)

    def _publish(self) -> None:
        self._staging.rename(self.out)
        sync(self.out.parent)

    def _notes(self) -> list[str]:
        return self._encoding.notes()


def _renaming(stored: set[str]) -> Callable[[str], str]:
    """From the family's names (`model.x`, `lm_head.x`) to those of files with these tensors."""
    prefix = "model."
    for candidate in DECODER_PREFIXES:
        if any(candidate + embedding in stored for embedding in EMBEDDINGS):
            prefix = candidate
            break
    head = "language_model." if prefix.startswith("language_model.") else ""

    def rename(name: str) -> str:
        if name.startswith("model."):
            return prefix + name.removeprefix("model.")
        return head + name

    return rename


def _is_copied(path: Path) -> bool:
    """Tokenizer, templates, licence and the like."""
    name = path.name
    return not (
        name.startswith(".") or name in REWRITTEN or any(name.endswith(s) for s in WEIGHT_SUFFIXES)
    )


def _joined(
    stored: str, parts: Sequence[GroupedMatrix | StoredTensor]
) -> GroupedMatrix | StoredTensor:
    """The row ranges of a fused matrix as one. Raises CheckpointError if their formats differ."""
    if len(parts) == 1:
        return parts[0]
    floats = [part for part in parts if isinstance(part, StoredTensor)]
    grouped = [part for part in parts if isinstance(part, GroupedMatrix)]
    if not grouped and len({part.dtype for part in floats}) == 1:
        return StoredTensor(np.concatenate([part.data for part in floats]), floats[0].dtype)
    if not floats and all(_alike(part, grouped[0]) for part in grouped):
        return _stacked(grouped)
    raise CheckpointError(
        f"tensor {stored}: its {len(parts)} parts are one matrix in this model and must all be "
        "stored alike (bits, group size, zero points)"
    )


def _alike(a: GroupedMatrix, b: GroupedMatrix) -> bool:
    if (a.columns is None) != (b.columns is None):
        return False
    if a.columns is not None and b.columns is not None and (a.columns != b.columns).any():
        return False
    cols = a.shape[1]
    same_groups = min(a.group_size, cols) == min(b.group_size, cols)
    return same_groups and replace(a.format, group_size=0, order="") == replace(
        b.format, group_size=0, order=""
    )


def _stacked(parts: Sequence[GroupedMatrix]) -> GroupedMatrix:
    def stack(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    return replace(
        parts[0],
        values=stack("values"),
        scales=stack("scales"),
        zeros=stack("zeros"),
        offsets=stack("offsets"),
    )
