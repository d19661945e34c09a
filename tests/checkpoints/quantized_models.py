"""Small quantized models written byte for byte, and what their matrices are.

The writers of GPTQ and AWQ here follow the formats' descriptions with Python's integers, one
element after the other, so that they share nothing with the code under test.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import handmade
import numpy as np

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.base import Checkpoint, StoredTensor
from trimtab.models.registry import FAMILIES, model_spec

CONFIG: dict[str, Any] = {
    **handmade.CONFIG,
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
}
PHI3: dict[str, Any] = {
    **CONFIG,
    "architectures": ["Phi3ForCausalLM"],
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]

Tensors = dict[str, np.ndarray]
Writer = Callable[[str, int, int], tuple[Tensors, np.ndarray]]  # name, rows, cols -> parts, matrix


@dataclass
class Model:
    config: dict[str, Any]
    tensors: Tensors
    matrices: dict[str, np.ndarray]  # module name -> float32 [rows, cols] of the whole matrix

    def write(self, directory: Path, shards: int = 1) -> Path:
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config))
        if shards == 1:
            handmade.write_file(directory / "model.safetensors", self.tensors)
            return directory
        names = list(self.tensors)
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            part = names[i::shards]  # the tensors of a module in different files
            handmade.write_file(directory / file, {name: self.tensors[name] for name in part})
            weight_map.update(dict.fromkeys(part, file))
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        return directory


def build(
    quantization: dict[str, Any] | None,
    writer: Writer,
    config: Mapping[str, Any] = CONFIG,
    chosen: Callable[[str], bool] = lambda name: "_proj" in name,
) -> Model:
    """A model whose chosen modules `writer` has stored."""
    config = dict(config)
    tensors, matrices = {}, {}
    for name, data in handmade.weights(config).items():
        module = name.removesuffix(".weight")
        if data.ndim != 2 or not chosen(module):
            tensors[name] = data
            continue
        parts, matrices[module] = writer(module, *data.shape)
        tensors.update({f"{module}.{part}": value for part, value in parts.items()})
    if quantization is not None:
        config["quantization_config"] = quantization
    return Model(config, tensors, matrices)


def check_reads(directory: Path, model: Model) -> Checkpoint:
    """Every matrix, however it is asked for, is what the model says, to the bit."""
    checkpoint = open_checkpoint(directory)
    spec = model_spec(model.config)
    for name, source in FAMILIES[spec.architecture].tensors(spec).items():
        module = source.name.removesuffix(".weight")
        data = model.matrices.get(module)
        if data is None:
            data = model.tensors[source.name].astype(np.float32)
        expected = data[source.first_row :][: source.shape[0]] if source.fused_rows else data
        matrix = checkpoint.matrix(name)
        assert isinstance(matrix, StoredTensor) == (module not in model.matrices), name
        elements = matrix.to_float32()
        assert elements.dtype == np.float32
        assert (elements == expected).all(), name
        assert (checkpoint.tensor(name).to_float32() == expected).all(), name
        stored = matrix.dtype if isinstance(matrix, StoredTensor) else matrix.format
        assert checkpoint.format(name) == stored, name
    return checkpoint


def words_of(fields: list[int], bits: int) -> list[int]:
    """A little-endian stream of fields, cut into 32-bit words."""
    number = 0
    for i, field in enumerate(fields):
        assert 0 <= field < 1 << bits
        number |= field << i * bits
    return [number >> 32 * i & 0xFFFFFFFF for i in range((len(fields) * bits + 31) // 32)]


def int32(words: list[list[int]]) -> np.ndarray:
    return np.array(words, np.uint32).view(np.int32)


def multiplied(
    q: list[list[int]], zeros: list[list[int]], scales: np.ndarray, group_of: list[int]
) -> np.ndarray:
    """(q - zero) * scale in float32; scales [groups, rows]."""
    matrix = np.zeros((len(q), len(q[0])), np.float32)
    for n, row in enumerate(q):
        for k, value in enumerate(row):
            g = group_of[k]
            matrix[n, k] = np.float32(value - zeros[n][g]) * np.float32(scales[g, n])
    return matrix


def random_scales(generator: random.Random, rows: int, groups: int, dtype: Any) -> np.ndarray:
    data = [[generator.uniform(0.001, 0.1) for _ in range(rows)] for _ in range(groups)]
    return np.array(data, np.float32).astype(dtype)


@dataclass(frozen=True)
class Gptq:
    bits: int = 4
    group_size: int = 32
    version: int = 1
    symmetric: bool = True
    act_order: bool = False
    with_g_idx: bool = True
    dtype: Any = np.float16

    def config(self, **more: Any) -> dict[str, Any]:
        """As GPTQModel writes it."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.act_order,
            "sym": self.symmetric,
            "lm_head": False,
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            "pack_dtype": "int32",
            "meta": {"quantizer": ["gptqmodel:9.9"], "damp_percent": 0.05},
            **more,
        }

    def write(self, name: str, rows: int, cols: int) -> tuple[Tensors, np.ndarray]:
        generator = random.Random(name)
        size = cols if self.group_size == -1 else self.group_size
        groups = (cols + size - 1) // size
        top = (1 << self.bits) - 1
        group_of = [k // size for k in range(cols)]
        if self.act_order:
            generator.shuffle(group_of)
        q = [[generator.randint(0, top) for _ in range(cols)] for _ in range(rows)]
        zeros = [[1 << (self.bits - 1)] * groups for _ in range(rows)]
        if not self.symmetric:
            zeros = [[generator.choice([0, 1, top, 2]) for _ in range(groups)] for _ in q]
        scales = random_scales(generator, rows, groups, self.dtype)
        columns = [words_of(row, self.bits) for row in q]
        parts = {
            "qweight": int32([[column[i] for column in columns] for i in range(len(columns[0]))]),
            "qzeros": int32([self.zero_words([row[g] for row in zeros]) for g in range(groups)]),
            "scales": scales,
        }
        if self.with_g_idx:
            parts["g_idx"] = np.array(group_of, np.int32)
        return parts, multiplied(q, zeros, scales, group_of)

    def zero_words(self, zeros: list[int]) -> list[int]:
        if self.version == 2:
            return words_of(zeros, self.bits)
        if self.bits == 3:
            return words_of([(zero - 1) % 8 for zero in zeros], 3)
        ones = sum(1 << i for i in range(0, 32, self.bits))
        return [(word - ones) % (1 << 32) for word in words_of(zeros, self.bits)]


@dataclass(frozen=True)
class Awq:
    group_size: int = 32
    zero: int | None = None  # None: random ones
    dtype: Any = np.float16

    def config(self, **more: Any) -> dict[str, Any]:
        """As AutoAWQ writes it."""
        return {
            "quant_method": "awq",
            "zero_point": True,
            "group_size": self.group_size,
            "bits": 4,
            "version": "gemm",
            "modules_to_not_convert": None,
            **more,
        }

    def write(self, name: str, rows: int, cols: int) -> tuple[Tensors, np.ndarray]:
        generator = random.Random(name)
        size = cols if self.group_size == -1 else self.group_size
        groups = cols // size
        q = [[generator.randint(0, 15) for _ in range(cols)] for _ in range(rows)]
        zeros = [[generator.choice([0, 15, 7, 8]) for _ in range(groups)] for _ in q]
        if self.zero is not None:
            zeros = [[self.zero] * groups for _ in q]
        scales = random_scales(generator, rows, groups, self.dtype)
        parts = {
            "qweight": int32([self.words([row[k] for row in q]) for k in range(cols)]),
            "qzeros": int32([self.words([row[g] for row in zeros]) for g in range(groups)]),
            "scales": scales,
        }
        return parts, multiplied(q, zeros, scales, [k // size for k in range(cols)])

    def words(self, column: list[int]) -> list[int]:
        """One word for every eight rows, its fields in AWQ's order."""
        return [
            sum(column[first + AWQ_ORDER[i]] << 4 * i for i in range(8))
            for first in range(0, len(column), 8)
        ]


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())
