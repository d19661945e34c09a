"""Write a checkpoint for measuring speed: random weights, or a small model made large.

    python benchmarks/make_model.py qwen3-0.6b OUT --seed 0
    python benchmarks/make_model.py path/to/config.json OUT
    python benchmarks/make_model.py --inflate builtin --parameters 600M --out OUT

The names are the files of benchmarks/configs/, each the config.json that its publisher wrote.
Weights are bf16 and a function of the seed and their names alone. They are drawn at about the
scale of a fresh model, so that logits are finite and nothing saturates. Memory stays below
200 MB whatever the size of the model. The tokenizer is the built-in model's where this
installation has one: ids beyond it are valid, but have no text.

With --inflate, the model computes what the small one does at the cost of a large one
(inflation.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from checkpoint_writer import (
    MAX_SHARD_BYTES,
    copy_tokenizer,
    generator,
    write_json,
    write_tensors,
)
from inflated_heads import inflate_heads
from inflation import inflate
from trimtab.builtin import heads_path, target_path
from trimtab.checkpoints import open_checkpoint, resolve_model
from trimtab.checkpoints.json_file import read_json_object
from trimtab.errors import CheckpointError, UserError
from trimtab.models.registry import FAMILIES, model_spec
from trimtab.models.spec import ModelSpec

CONFIGS = Path(__file__).resolve().parent / "configs"
PIECE_ELEMENTS = 4 << 20
WEIGHT_SCALE = 0.02
NORM_SCALE = 0.05


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

    def pieces(self, seed: int) -> Iterator[npt.NDArray[np.float32]]:
        random = generator(self.name, seed)
        left = self.num_bytes // 2
        while left > 0:
            values = random.standard_normal(min(left, PIECE_ELEMENTS), dtype=np.float32)
            values *= np.float32(self.scale)
            values += np.float32(self.mean)
            yield values
            left -= len(values)


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


def make_model(
    config: dict[str, Any], directory: Path, seed: int = 0, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the checkpoint; config.json comes last, so that half a model is none.

    Raises CheckpointError for a config that cannot be served, and if `directory` already holds
    something.
    """
    spec = model_spec(config)
    write_tensors(random_tensors(spec), directory, seed, max_shard_bytes)
    copy_tokenizer(directory, spec.vocab_size)
    write_json(directory / "config.json", config)


def parse_count(text: str) -> int:
    """600M, 1.5B or 600000000. Raises ValueError."""
    factors = {"K": 10**3, "M": 10**6, "B": 10**9}
    factor = factors.get(text[-1:].upper(), 1)
    count = float(text if factor == 1 else text[:-1]) * factor
    if not 0 < count < 1e15:
        raise ValueError
    return round(count)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write a checkpoint of a public shape with random bf16 weights, "
        "or one that computes what a small model does at the cost of a large one."
    )
    parser.add_argument("model", nargs="?", help=f"{', '.join(known_models())}, or a config.json")
    parser.add_argument("directory", nargs="?", type=Path, metavar="OUT", help="as --out")
    parser.add_argument("--inflate", metavar="MODEL", help="builtin, or the directory of a Llama")
    parser.add_argument("--parameters", metavar="N", help="of the inflated model: 600M, 1.5B")
    parser.add_argument("--out", type=Path, help="directory to write; must not exist or be empty")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error("--seed must not be negative")
    if (options.model is None) == (options.inflate is None):
        parser.error("one of MODEL and --inflate")
    if (options.directory is None) == (options.out is None):
        parser.error("one of OUT and --out")
    options.out = options.out or options.directory
    if (options.inflate is None) != (options.parameters is None):
        parser.error("--inflate and --parameters go together")
    if options.parameters is not None:
        try:
            options.parameters = parse_count(options.parameters)
        except (ValueError, OverflowError):
            parser.error(f"--parameters {options.parameters}: must be like 600M or 1.5B")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.inflate is not None:
            model = resolve_model(options.inflate)
            sizes = inflate(model, options.parameters, options.out, options.seed)
            if model == target_path() and heads_path().is_dir():
                inflate_heads(heads_path(), model, sizes, options.out / "heads")
        else:
            make_model(read_config(options.model), options.out, options.seed)
        checkpoint = open_checkpoint(options.out)
    except (UserError, OSError) as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 2
    tensors = random_tensors(checkpoint.spec)
    size = sum(tensor.num_bytes for tensor in tensors)
    tokenizer = (options.out / "tokenizer.json").is_file()
    of_built_in = "its own tokenizer" if options.inflate else "tokenizer of the built-in model"
    print(
        f"{options.out}: {checkpoint.spec.architecture}, {size / 2e9:.3f} B parameters, "
        f"{size / 1e9:.2f} GB, seed {options.seed}, "
        f"{of_built_in if tokenizer else 'no tokenizer'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
