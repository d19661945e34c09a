"""A checkpoint that is in no file: random weights, made on the device when they are asked for.

    bf16   all tensors
    fp8    the matrices of the layers, e4m3 with a float32 scale a row
    int4   the same, symmetric, a float16 scale for each group of columns of a row

Embedding, output head and norms stay bf16, as published checkpoints have them. Weights are scaled
so that a matrix keeps the size of what it is given: logits have a standard deviation of about 1,
and nothing overflows at any depth.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.checkpoints.base import MatrixFormat, StoredMatrix, StoredTensor
from trimtab.errors import CheckpointError
from trimtab.models.registry import FAMILIES
from trimtab.models.spec import ModelSpec
from trimtab.numerics.stored import Fp8Format, Fp8Matrix, GroupedMatrix, GroupFormat

LAYER_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
FP8_MAGNITUDE = 64.0  # standard deviation of the stored values; the largest that e4m3 has is 448
INT4_DEVIATION = 4.61  # of integers uniform in [-8, 7]


class RandomCheckpoint:
    """Implements `trimtab.checkpoints.base.Checkpoint`.

    A pure function of (spec, weights, group size, seed), device and torch version. Only the first
    `distinct_layers` layers differ, the others repeat them: what a step costs does not depend on
    the values, and the host holds two layers instead of a model.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: str,
        device: torch.device | str = "cpu",
        seed: int = 0,
        group_size: int = 128,
        distinct_layers: int = 2,
    ) -> None:
        """`weights`: bf16, fp8 or int4."""
        if weights not in ("bf16", "fp8", "int4"):
            raise ValueError(f"weights={weights!r}: must be bf16, fp8 or int4")
        self._spec = spec
        self.weights = weights
        self.group_size = group_size
        self._device = torch.device(device)
        self._seed = seed
        self._distinct = distinct_layers
        self._shapes = {
            name: source.shape for name, source in FAMILIES[spec.architecture].tensors(spec).items()
        }
        self._made: dict[str, StoredMatrix] = {}

    @property
    def path(self) -> Path:
        return Path(f"random {self._spec.architecture} {self.weights}")

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def identity(self) -> str:
        parts = (
            repr(self._spec),
            self.weights,
            str(self.group_size),
            str(self._seed),
            str(self._distinct),
            self._device.type,
            torch.__version__,
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def weight_files(self) -> tuple[()]:
        return ()

    def names(self) -> Iterable[str]:
        return self._shapes

    def tensor(self, name: str) -> StoredTensor:
        stored = self.matrix(name)
        if isinstance(stored, StoredTensor):
            return stored
        return StoredTensor(stored.to_float32(), "f32")

    def format(self, name: str) -> MatrixFormat:
        if not self._is_quantized(name):
            return "bf16"
        if self.weights == "fp8":
            return Fp8Format(1, self._shapes[name][1])
        return GroupFormat(4, self.group_size, "f16", "none")

    def matrix(self, name: str) -> StoredMatrix:
        if name not in self._shapes:
            raise CheckpointError(f"{self.path}: there is no tensor {name}")
        source = self._source(name)
        if source not in self._made:
            with torch.inference_mode():
                self._made[source] = self._make(source)
        return self._made[source]

    def release(self) -> None:
        """Nothing: what is made is kept, since later layers repeat it."""

    def close(self) -> None:
        """Gives back what was made. It is made again when it is asked for."""
        self._made.clear()

    def _source(self, name: str) -> str:
        if not name.startswith("layers."):
            return name
        _, layer, rest = name.split(".", 2)
        return f"layers.{int(layer) % self._distinct}.{rest}"

    def _is_quantized(self, name: str) -> bool:
        last = name.rpartition(".")[2]
        return self.weights != "bf16" and name.startswith("layers.") and last in LAYER_MATRICES

    def _make(self, name: str) -> StoredMatrix:
        shape = self._shapes[name]
        generator = torch.Generator(self._device)
        # Of a seed, a CPU's generator takes 32 bits.
        generator.manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        if self._is_quantized(name):
            make = self._fp8 if self.weights == "fp8" else self._int4
            return make(shape[0], shape[1], generator)
        values = torch.randn(shape, generator=generator, device=self._device)
        if len(shape) == 2:
            values *= (
                1.0 if name == "embed" and not self._spec.tied_embeddings else shape[1] ** -0.5
            )
        elif name.endswith("norm"):
            values = values * 0.1 + (1.0 - self._spec.norm_weight_offset)
        else:
            values *= 0.1
        return StoredTensor(_host(values.to(torch.bfloat16).view(torch.uint16)), "bf16")

    def _fp8(self, rows: int, cols: int, generator: torch.Generator) -> Fp8Matrix:
        values = torch.randn(rows, cols, generator=generator, device=self._device)
        values = (values * FP8_MAGNITUDE).clamp(-448, 448).to(torch.float8_e4m3fn)
        scales = self._scales(rows, 1, generator) / (FP8_MAGNITUDE * cols**0.5)
        return Fp8Matrix(_host(values.view(torch.uint8)), _host(scales), 1, cols)

    def _int4(self, rows: int, cols: int, generator: torch.Generator) -> GroupedMatrix:
        values = torch.randint(
            -8, 8, (rows, cols), generator=generator, device=self._device, dtype=torch.int8
        )
        groups = -(-cols // self.group_size)
        scales = self._scales(rows, groups, generator) / (INT4_DEVIATION * cols**0.5)
        exact = scales.to(torch.float16).float()
        return GroupedMatrix(_host(values), 4, self.group_size, _host(exact), "f16")

    def _scales(self, rows: int, groups: int, generator: torch.Generator) -> Tensor:
        """Around 1, so that a scale taken for another shows."""
        drawn = torch.rand(rows, groups, generator=generator, device=self._device)
        return 0.75 + drawn / 2


def _host(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.cpu().numpy()
