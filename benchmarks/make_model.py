"""Write a checkpoint of a public model's shape with random weights, for measuring speed.

    python benchmarks/make_model.py qwen3-0.6b OUT --seed 0
    python benchmarks/make_model.py path/to/config.json OUT

The names are the files of benchmarks/configs/, each the config.json that its publisher wrote.
Weights are bf16 and a function of the seed and their names alone. They are drawn at about the
scale of a fresh model, so that logits are finite and nothing saturates. Memory stays below
200 MB whatever the size of the model. The tokenizer is the built-in model's where this
installation has one: ids beyond it are valid, but have no text.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.checkpoints.json_file import read_json_object
from trimtab.errors import CheckpointError, UserError
from trimtab.models.registry import FAMILIES, model_spec
from trimtab.models.spec import ModelSpec

CONFIGS = Path(__file__).resolve().parent / "configs"
MAX_SHARD_BYTES = 2_000_000_000
CHUNK_ELEMENTS = 4 << 20
WEIGHT_SCALE = 0.02
NORM_SCALE = 0.05
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class RandomTensor:
    """A stored tensor: values are mean + scale * (standard normal), in bf16."""

    name: str
    shape: tuple[int, ...]
    mean: float
    scale: float

    @property
    def num_bytes(self) -> int:
        return 2 * int(np.prod(self.shape, dtype=np.int64))


def known_models() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def read_config(model: str) -> dict[str, Any]:
    """By name, or from a config.json (or a directory that has one)."""
    path = CONFIGS / f"{model}.json"
    if not path.is_file():
        path = Path(model)
        if path.is_dir():
            path = path / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{model!r}: neither a config.json nor one of {', '.join(known_models())}"
            )
    return read_json_object(path)


def random_tensors(spec: ModelSpec) -> list[RandomTensor]:
    """Every stored tensor of the model, fused ones once, in the order of the family's table."""
    tensors: dict[str, RandomTensor] = {}
    residual_scale = WEIGHT_SCALE / (2 * spec.num_layers) ** 0.5
    for name, source in FAMILIES[spec.architecture].tensors(spec).items():
        rows = source.shape[0] if source.fused_rows is None else source.fused_rows
        mean, scale = 0.0, WEIGHT_SCALE
        if name.endswith("_norm"):
            mean, scale = 1.0 - spec.norm_weight_offset, NORM_SCALE
        elif name.endswith((".o", ".down")):
            scale = residual_scale
        tensors[source.name] = RandomTensor(source.name, (rows, *source.shape[1:]), mean, scale)
    return list(tensors.values())


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, half to even; the values are finite."""
    bits: npt.NDArray[np.uint32] = values.view(np.uint32)
    bits = bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    upper: npt.NDArray[np.uint16] = (bits >> np.uint32(16)).astype(np.uint16)
    return upper


def chunks(tensor: RandomTensor, seed: int) -> Iterator[bytes]:
    """The tensor's bytes, a few megabytes at a time."""
    entropy = np.random.SeedSequence([seed, zlib.crc32(tensor.name.encode())])
    generator = np.random.Generator(np.random.PCG64(entropy))
    left = tensor.num_bytes // 2
    while left > 0:
        values = generator.standard_normal(min(left, CHUNK_ELEMENTS), dtype=np.float32)
        values *= np.float32(tensor.scale)
        values += np.float32(tensor.mean)
        yield to_bf16(values).astype("<u2").tobytes()
        left -= len(values)


def split_into_shards(tensors: list[RandomTensor], max_bytes: int) -> list[list[RandomTensor]]:
    """In order; a shard exceeds `max_bytes` only if one tensor does."""
    shards: list[list[RandomTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    return shards


def write_shard(file: BinaryIO, tensors: list[RandomTensor], seed: int) -> None:
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
        for piece in chunks(tensor, seed):
            file.write(piece)


def copy_tokenizer(directory: Path, vocab_size: int) -> bool:
    """The built-in model's tokenizer, if there is one and its ids fit the vocabulary."""
    try:
        source = resolve_model("builtin")
        config = json.loads((source / "config.json").read_text())
    except (UserError, OSError, ValueError):
        return False
    if config.get("vocab_size", 0) > vocab_size:
        return False
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    return (directory / "tokenizer.json").is_file()


def make_model(
    config: dict[str, Any], directory: Path, seed: int = 0, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the checkpoint; config.json comes last, so that half a model is none.

    Raises CheckpointError for a config that cannot be served, and if `directory` already holds
    something.
    """
    spec = model_spec(config)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory}: already exists and is not an empty directory")
    directory.mkdir(parents=True, exist_ok=True)
    shards = split_into_shards(random_tensors(spec), max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            name = "model.safetensors"
        with (directory / name).open("wb") as file:
            write_shard(file, shard, seed)
        weight_map.update((tensor.name, name) for tensor in shard)
    if len(shards) > 1:
        total = sum(tensor.num_bytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)
    copy_tokenizer(directory, spec.vocab_size)
    _write_json(directory / "config.json", config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write a checkpoint of a public shape with random bf16 weights."
    )
    parser.add_argument("model", help=f"{', '.join(known_models())}, or a config.json")
    parser.add_argument("out", type=Path, help="directory to write; must not exist or be empty")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error("--seed must not be negative")
    try:
        make_model(read_config(options.model), options.out, options.seed)
        checkpoint = open_checkpoint(options.out)
    except (UserError, OSError) as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 2
    tensors = random_tensors(checkpoint.spec)
    size = sum(tensor.num_bytes for tensor in tensors)
    tokenizer = (options.out / "tokenizer.json").is_file()
    print(
        f"{options.out}: {checkpoint.spec.architecture}, {size / 2e9:.3f} B parameters, "
        f"{size / 1e9:.2f} GB, seed {options.seed}, "
        f"{'tokenizer of the built-in model' if tokenizer else 'no tokenizer'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
