"""What a method is given of a layer, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from trimtab.compression.activations import Activations, Batch
from trimtab.compression.settings import Grid, QuantizeSettings
from trimtab.executors.torch_model import Linear, TorchDecoder, plain_linear
from trimtab.numerics.stored import GroupedMatrix

# Matrices that read the same input, in the order in which a layer runs them.
STAGES: tuple[tuple[str, ...], ...] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


@dataclass(frozen=True)
class LayerTask:
    """One layer to quantize. Tensors are float32 on the decoder's device."""

    decoder: TorchDecoder
    index: int
    weights: Mapping[str, Tensor]  # of the layer, by canonical name without its prefix
    grids: Mapping[str, Grid]  # of each matrix
    inputs: Activations | None  # of the layer, as the layers quantized so far give them
    float_inputs: Activations | None  # as the original model gives them
    settings: QuantizeSettings
    vector_dtypes: Mapping[str, torch.dtype]  # in which norms and biases are stored

    def forward(
        self, batch: Batch, weights: Mapping[str, Tensor], apply: Linear | None = None
    ) -> Tensor:
        return self.decoder.layer(self.index, weights, batch.x, batch.segments, apply)

    def calibration(self) -> Activations:
        """The inputs, which this method asked for."""
        assert self.inputs is not None
        return self.inputs


@dataclass
class LayerResult:
    """By name without the layer's prefix."""

    matrices: dict[str, GroupedMatrix] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)  # changed norms and biases
    scaled: dict[str, Tensor] = field(default_factory=dict)  # what `matrices` stand for, if not
    # the original weights: these with a scaling folded in
    quantizes_activations: bool = False  # inputs of the matrices become 8-bit integers
    notes: list[str] = field(default_factory=list)  # for the report

    def linear(self, weights: Mapping[str, Tensor]) -> Linear:
        """How the quantized layer computes its matrix products."""
        plain = plain_linear(weights)
        if not self.quantizes_activations:
            return plain
        return lambda name, x: plain(name, round_activations(x))

    def weights(self, task: LayerTask) -> dict[str, Tensor]:
        """All tensors of the quantized layer, the matrices dequantized."""
        device = task.decoder.device
        dense = {
            name: torch.from_numpy(matrix.to_float32()).to(device)
            for name, matrix in self.matrices.items()
        }
        return {**task.weights, **self.vectors, **dense}


def round_activations(x: Tensor) -> Tensor:
    """Each token's vector to 8-bit integers and back, as the kernels do (docs/numerics.md)."""
    absmax = x.abs().amax(-1, keepdim=True).clamp(min=2.0**-100)
    return torch.round(x * (127 / absmax)) * (absmax / 127)


class QuantizationMethod(Protocol):
    """How the matrices of a layer become integers. Deterministic in the task."""

    def quantize(self, task: LayerTask) -> LayerResult: ...

    def quantize_head(self, task: HeadTask) -> GroupedMatrix: ...


@dataclass(frozen=True)
class HeadTask:
    """The output head, [vocab, hidden]."""

    decoder: TorchDecoder
    head: Tensor
    final_norm: Tensor
    grid: Grid
    inputs: Activations | None  # of the final norm
    settings: QuantizeSettings


def capture(
    task: LayerTask,
    weights: Mapping[str, Tensor],
    visit: Callable[[str, Tensor], None],
    names: tuple[str, ...],
) -> None:
    """Runs the layer on its inputs with `weights`, as far as it needs to; `visit` gets (name, input
    [tokens, cols]) of each of `names`, which are in the order of the layer, batch by batch."""
    plain, last = plain_linear(weights), names[-1]

    def apply(name: str, x: Tensor) -> Tensor:
        if name in names:
            visit(name, x.reshape(-1, x.shape[-1]))
        if name == last:
            raise _SeenAllError
        return plain(name, x)

    with torch.no_grad():
        for batch in task.calibration():
            with suppress(_SeenAllError):
                task.forward(batch, weights, apply)


class _SeenAllError(Exception):
    """Ends a run of a layer: what follows would be computed for nothing."""
