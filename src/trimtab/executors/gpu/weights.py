"""A checkpoint's weights on the device, one tensor at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.checkpoints.base import Checkpoint, StoredMatrix, StoredTensor
from trimtab.config import ExecutorConfig
from trimtab.errors import CheckpointError
from trimtab.executors.formats import KernelFormat, Slot, formats_of_config
from trimtab.executors.gpu.devices import multiplies_fp8
from trimtab.executors.gpu.matrices import DenseMatrix, Matrix
from trimtab.executors.gpu.matrix_loading import load_matrix, quantize_fp8
from trimtab.models.spec import ModelSpec, RopeSpec
from trimtab.numerics.quantization import quantize_weights_int4, quantize_weights_int8
from trimtab.numerics.stored import Fp8Format, GroupedMatrix, GroupFormat


@dataclass(eq=False, slots=True)
class Projection:
    matrix: Matrix
    bias: Tensor | None  # [N] float32


@dataclass(eq=False, slots=True)
class LayerWeights:
    attn_norm: Tensor  # norms are float32
    mlp_norm: Tensor
    post_attn_norm: Tensor | None
    post_mlp_norm: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    qkv: Projection
    o: Projection
    gate_up: Projection
    down: Projection


@dataclass(eq=False, slots=True)
class ModelWeights:
    embed: Tensor  # [V, H]
    layers: list[LayerWeights]
    final_norm: Tensor
    head: Matrix  # [V, H]
    ropes: list[tuple[Tensor, Tensor]]  # cosines and sines [max_context, rotary_dim / 2] float32

    @property
    def num_bytes(self) -> int:
        matrices = [self.head] if self.head_is_own else []
        for layer in self.layers:
            parts = (layer.qkv, layer.o, layer.gate_up, layer.down)
            matrices += [part.matrix for part in parts]
        return _bytes(self.embed) + sum(matrix.num_bytes for matrix in matrices)

    @property
    def head_is_own(self) -> bool:
        return not (isinstance(self.head, DenseMatrix) and self.head.weight is self.embed)


def load_weights(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    config: ExecutorConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> ModelWeights:
    """Raises CheckpointError for a tensor that is missing or misshapen. Of the checkpoint, no more
    than one tensor is in host memory. `spec`: that of the checkpoint, for the context served."""
    reader = _Reader(checkpoint, dtype, device)
    formats = formats_of_config(spec, config)
    body = formats.layers[0][0].format
    hidden, inner, dim = spec.hidden_size, spec.intermediate_size, spec.head_dim
    heads, kv_heads = spec.num_heads * dim, spec.num_kv_heads * dim

    def layer(index: int) -> LayerWeights:
        prefix = f"layers.{index}."

        def projection(rows: Sequence[int], cols: int, *parts: str) -> Projection:
            names = [prefix + part for part in parts]
            return Projection(reader.matrix(names, rows, cols, body), reader.bias(names, rows))

        return LayerWeights(
            attn_norm=reader.vector(prefix + "attn_norm", hidden),
            mlp_norm=reader.vector(prefix + "mlp_norm", hidden),
            post_attn_norm=reader.optional(prefix + "post_attn_norm", hidden, spec.post_norms),
            post_mlp_norm=reader.optional(prefix + "post_mlp_norm", hidden, spec.post_norms),
            q_norm=reader.optional(prefix + "q_norm", dim, spec.qk_norm),
            k_norm=reader.optional(prefix + "k_norm", dim, spec.qk_norm),
            qkv=projection((heads, kv_heads, kv_heads), hidden, "q", "k", "v"),
            o=projection((hidden,), heads, "o"),
            gate_up=projection((inner, inner), hidden, "gate", "up"),
            down=projection((hidden,), inner, "down"),
        )

    embed = reader.floats("embed", (spec.vocab_size, hidden), dtype)
    return ModelWeights(
        embed=embed,
        layers=[layer(index) for index in range(spec.num_layers)],
        final_norm=reader.vector("final_norm", hidden),
        head=reader.head(embed, formats.head),
        ropes=[rotations(rope, spec.max_context, device) for rope in spec.ropes],
    )


class _Reader:
    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.names = frozenset(checkpoint.names())
        self.fp8_activations = multiplies_fp8(device)

    def floats(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self._check_name(name)
        stored = self.checkpoint.tensor(name)
        self._check_shape(name, stored.data.shape, shape)
        found = _host_tensor(stored).to(self.device, dtype, copy=True)
        self.checkpoint.release()
        return found

    def vector(self, name: str, size: int) -> Tensor:
        return self.floats(name, (size,), torch.float32)

    def optional(self, name: str, size: int, wanted: bool) -> Tensor | None:
        return self.vector(name, size) if wanted else None

    def bias(self, names: Sequence[str], rows: Sequence[int]) -> Tensor | None:
        """Of fused projections; zero for those that have none."""
        if not any(f"{name}_bias" in self.names for name in names):
            return None
        return torch.cat(
            [
                self.vector(f"{name}_bias", count)
                if f"{name}_bias" in self.names
                else torch.zeros(count, device=self.device)
                for name, count in zip(names, rows, strict=True)
            ]
        )

    def matrix(
        self, names: Sequence[str], rows: Sequence[int], cols: int, format: KernelFormat
    ) -> Matrix:
        """The rows of all of them, one below the other; floats in `format`."""
        shapes = [(count, cols) for count in rows]
        parts = [self._part(*part, format) for part in zip(names, shapes, strict=True)]
        activations = self.fp8_activations
        floats = [part for part in parts if isinstance(part, StoredTensor)]
        try:
            found: Matrix
            if format.weights == "fp8" and len(floats) == len(parts):
                found = quantize_fp8(floats, self.device, fp8_activations=activations)
            else:
                found = load_matrix(parts, self.dtype, self.device, fp8_activations=activations)
        except ValueError as error:
            raise CheckpointError(f"{self.checkpoint.path}: {names[0]}: {error}") from None
        self.checkpoint.release()
        return found

    def head(self, embed: Tensor, slot: Slot) -> Matrix:
        """Of tied embeddings that are stored as floats, and held as such, the table itself."""
        (name,) = slot.parts
        is_float = not isinstance(self.checkpoint.format(name), GroupFormat | Fp8Format)
        if name == "embed" and is_float and slot.format.weights in ("f32", "bf16"):
            return DenseMatrix(embed)
        return self.matrix([name], embed.shape[:1], embed.shape[1], slot.format)

    def _part(self, name: str, shape: tuple[int, ...], format: KernelFormat) -> StoredMatrix:
        self._check_name(name)
        stored = self.checkpoint.matrix(name)
        found = stored.data.shape if isinstance(stored, StoredTensor) else stored.shape
        self._check_shape(name, found, shape)
        if isinstance(stored, StoredTensor) and format.weights in ("int8", "int4"):
            return rounded(stored.to_float32(), format)
        return stored

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            raise CheckpointError(f"{self.checkpoint.path}: there is no tensor {name}")

    def _check_shape(self, name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if found != shape:
            raise CheckpointError(
                f"{self.checkpoint.path}: {name} has the shape {list(found)}, not {list(shape)}"
            )


def rounded(weight: npt.NDArray[np.float32], format: KernelFormat) -> GroupedMatrix:
    """Floats as the CPU executor rounds them: numerics/quantization.py."""
    cols, group = weight.shape[1], format.group_size
    int4 = format.weights == "int4"
    quantize = quantize_weights_int4 if int4 else quantize_weights_int8
    found = quantize(weight, group)
    return GroupedMatrix(
        values=found.values[:, :cols],
        bits=4 if int4 else 8,
        group_size=group or cols,
        scales=found.scales,
        scale_type="f16" if group else "f32",
    )


def _host_tensor(stored: StoredTensor) -> Tensor:
    """The mapped file itself: only to be copied from."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        found = torch.from_numpy(stored.data)
    return found.view(torch.bfloat16) if stored.dtype == "bf16" else found


def rotations(rope: RopeSpec, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, rotary_dim / 2], computed in float64."""
    frequencies = torch.tensor(rope.inv_freq, dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    cos, sin = torch.cos(angles) * rope.amplitude, torch.sin(angles) * rope.amplitude
    return cos.float().to(device), sin.float().to(device)


def _bytes(tensor: Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())
