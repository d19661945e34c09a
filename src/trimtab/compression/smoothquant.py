"""SmoothQuant: outliers of activations move into the weights, so that both round well to 8 bits.

Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models (2022): s = max|x|^a / max|w|^(1 - a), folded into the norms before q, k, v and gate, up; a
is searched here on the output error. Weights are symmetric with one scale a channel; activations
are rounded token by token when the model runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.compression.awq import plainly_rounded
from trimtab.compression.folding import READERS, FoldedLayer
from trimtab.compression.grids import round_matrix
from trimtab.compression.layer_task import HeadTask, LayerResult, LayerTask
from trimtab.compression.scaling import ModuleError, best_scaling, input_statistics
from trimtab.numerics.stored import GroupedMatrix

SMALLEST = 1e-5
NORMS = ("attn_norm", "mlp_norm")


class SmoothQuant:
    def quantize(self, task: LayerTask) -> LayerResult:
        statistics = input_statistics(task)
        layer = FoldedLayer(task.decoder.spec, dict(task.weights), task.vector_dtypes)
        points = task.settings.grid_points
        for source in NORMS:
            largest = torch.stack([layer.weights[name].abs().amax(0) for name in READERS[source]])
            candidates = [
                _scales(statistics[source].largest, largest.amax(0), point / points)
                for point in range(1, points)
            ]
            scales = best_scaling(
                layer,
                source,
                candidates,
                lambda name, weights: plainly_rounded(weights, task.grids[name]),
                ModuleError(task, source, round_inputs=True),
            )
            if scales is not None:
                layer.fold(source, scales)
        return LayerResult(
            matrices={
                name: round_matrix(layer.weights[name], grid) for name, grid in task.grids.items()
            },
            vectors={name: layer.weights[name] for name in sorted(layer.changed)},
            scaled={name: layer.weights[name] for name in task.grids},
            quantizes_activations=True,
        )

    def quantize_head(self, task: HeadTask) -> GroupedMatrix:
        return round_matrix(task.head, task.grid)


def _scales(activation: Tensor, weight: Tensor, strength: float) -> Tensor:
    scales = activation.clamp(min=SMALLEST) ** strength
    return (scales / weight.clamp(min=SMALLEST) ** (1 - strength)).clamp(min=SMALLEST)
