"""What a GGUF file says besides the weights, taken from where the model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.base import Checkpoint
from trimtab.checkpoints.gguf import GgufCheckpoint
from trimtab.checkpoints.gguf_config import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from trimtab.checkpoints.gguf_file import GgufFile
from trimtab.checkpoints.gguf_metadata import ARCHITECTURES, describe_model
from trimtab.checkpoints.gguf_vocabulary import describe_vocabulary
from trimtab.checkpoints.gguf_writer import Value, stored_values
from trimtab.checkpoints.json_file import read_json_object
from trimtab.errors import CheckpointError
from trimtab.models.spec import ModelSpec


@dataclass(frozen=True)
class Origin:
    metadata: Mapping[str, Value | bytes]
    tensors: Mapping[str, npt.NDArray[np.float32]]  # rope factors
    notes: tuple[str, ...]
    paired: bool  # rows of q and k lie in pairs


def origin_of(source: Checkpoint) -> Origin:
    """Raises CheckpointError for what GGUF, or llama.cpp's tokenizers, cannot hold."""
    if isinstance(source, GgufCheckpoint):
        return _from_gguf(source)
    spec = source.spec
    directory = source.path if source.path.is_dir() else source.path.parent
    if not (directory / "config.json").exists() or spec.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{source.path}: only a model in Hugging Face layout, or a GGUF file, can be written "
            "to GGUF"
        )
    config = read_json_object(directory / "config.json")
    model = describe_model(spec, config, str(source.path))
    vocabulary = describe_vocabulary(directory, spec.vocab_size)
    name = source.path.stem if source.path.is_file() else source.path.name
    return Origin(
        {
            **model.metadata,
            "general.name": Value("string", name),
            **_token_ids(spec),
            **vocabulary.metadata,
        },
        model.tensors,
        (*model.notes, *vocabulary.notes),
        ARCHITECTURES[spec.architecture] == "llama",
    )


def _token_ids(spec: ModelSpec) -> dict[str, Value]:
    """What config.json says of BOS and EOS; the tokenizer's own files go before it."""
    ids = {"bos": spec.bos_token_id, "eos": (*spec.eos_token_ids, None)[0]}
    return {
        f"tokenizer.ggml.{name}_token_id": Value("u32", number)
        for name, number in ids.items()
        if number is not None
    }


def _from_gguf(source: GgufCheckpoint) -> Origin:
    """Metadata as they are, but for what says how this file is made up."""
    files = [GgufFile(file.path) for file in source.weight_files]
    values: dict[str, Value | bytes] = {
        key: value
        for key, value in stored_values(files[0].header()).items()
        if not key.startswith("split.") and key != "general.alignment"
    }
    values["general.quantization_version"] = Value("u32", 2)
    tensors = {
        name: file.raw(name).view("<f4").reshape(-1)
        for file in files
        for name in (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)
        if name in file.tensors
    }
    return Origin(values, tensors, (), files[0].metadata["general.architecture"] == "llama")
