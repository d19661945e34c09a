"""AWQ: input channels with large activations are scaled up before rounding, to lose less of them.

Lin et al., AWQ: Activation-aware Weight Quantization (2023), with the scale formula of AutoAWQ:
s = mean|x|^a / mean|w|^(1 - a), each w relative to the largest of its group, a searched on the
output error. Then scales that clip, by the error of each group's part of the output; q and k are
not clipped. What feeds several heads of o (grouped queries) has one scale for all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.compression.folding import READERS, FoldedLayer
from trimtab.compression.gptq import head_hessian
from trimtab.compression.grids import (
    Scales,
    as_matrix,
    choose_scales,
    grouped,
    plain_scales,
    round_to,
    value_of,
)
from trimtab.compression.layer_task import HeadTask, LayerResult, LayerTask
from trimtab.compression.scaling import (
    InputStatistics,
    ModuleError,
    OutputError,
    best_scaling,
    input_statistics,
    linear_error,
)
from trimtab.compression.settings import Grid
from trimtab.numerics.stored import GroupedMatrix

SMALLEST = 1e-4
UNCLIPPED = ("q", "k")


class Awq:
    def quantize(self, task: LayerTask) -> LayerResult:
        statistics = input_statistics(task)
        layer = FoldedLayer(task.decoder.spec, dict(task.weights), task.vector_dtypes)
        for source in READERS:
            scales = _search(task, layer, source, statistics[source])
            if scales is not None:
                layer.fold(source, scales)
        result = LayerResult(vectors={name: layer.weights[name] for name in sorted(layer.changed)})
        for source, names in READERS.items():
            for name in names:
                weights, grid = layer.weights[name], task.grids[name]
                hessian = statistics[source].hessian.mean()
                if (scaling := layer.column_scales.get(name)) is not None:  # inputs are x / s now
                    hessian = hessian / (scaling[:, None] * scaling)
                result.scaled[name] = weights
                result.matrices[name] = clipped_round(
                    weights, grid, None if name in UNCLIPPED else hessian
                )
        return result

    def quantize_head(self, task: HeadTask) -> GroupedMatrix:
        return clipped_round(task.head, task.grid, head_hessian(task))


def clipped_round(weights: Tensor, grid: Grid, hessian: Tensor | None) -> GroupedMatrix:
    """Rounded to nearest, with a Hessian of the inputs in scales that clip where the squared error
    of the group's part of the output is the less for it."""
    columns = grid.columns(weights.shape[1])
    groups = grouped(weights, columns)
    blocks = None
    if hessian is not None:
        starts = range(0, weights.shape[1], columns)
        blocks = torch.stack([hessian[k : k + columns, k : k + columns] for k in starts])
    found = choose_scales(groups, grid, hessian is not None, hessians=blocks)
    spread = Scales(found.scales[..., None], found.zeros[..., None])
    return as_matrix(round_to(groups, spread, grid.bits).flatten(1), found, grid)


def plainly_rounded(weights: Tensor, grid: Grid) -> Tensor:
    """What round to nearest makes of [rows, cols], dequantized."""
    groups = grouped(weights, grid.columns(weights.shape[1]))
    found = plain_scales(groups, grid)
    spread = Scales(found.scales[..., None], found.zeros[..., None])
    return value_of(round_to(groups, spread, grid.bits), spread).flatten(1)


def _search(
    task: LayerTask, layer: FoldedLayer, source: str, statistics: InputStatistics
) -> Tensor | None:
    names = READERS[source]
    activation = layer.reduced(source, statistics.magnitude)
    weight = layer.reduced(source, _weight_magnitude(layer, names, task.grids[names[0]]))
    points = task.settings.grid_points
    candidates = [_scales(activation, weight, point / points) for point in range(points)]
    error: OutputError
    if source in ("attn_norm", "mlp_norm"):
        error = ModuleError(task, source, round_inputs=False)
    else:
        error = linear_error(statistics.hessian.mean(), layer.weights[names[0]])
    return best_scaling(
        layer,
        source,
        candidates,
        lambda name, weights: plainly_rounded(weights, task.grids[name]),
        error,
    )


def _scales(activation: Tensor, weight: Tensor, strength: float) -> Tensor:
    scales = activation**strength / (weight ** (1 - strength) + SMALLEST)
    scales = scales.clamp(min=SMALLEST)
    return scales / (scales.max() * scales.min()).sqrt()


def _weight_magnitude(layer: FoldedLayer, names: tuple[str, ...], grid: Grid) -> Tensor:
    """[cols] mean over the rows of |w|, relative to the largest of its group."""
    shares = []
    for name in names:
        groups = grouped(layer.weights[name].abs(), grid.columns(layer.weights[name].shape[1]))
        shares.append((groups / groups.amax(-1, keepdim=True).clamp(min=1e-12)).flatten(1))
    return torch.cat(shares).mean(0)
