"""GPTQ: columns are rounded one after the other, the rest makes up for the error.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers
(2022). Of a matrix with inputs X, min |(W - Q) X|^2 is solved greedily, column by column, with the
inverse of the Hessian H = X X^T. Columns may be taken in another order than they are stored in:
`groups` takes whole groups in the order of their importance (the diagonal of H), and the columns
of each in that of theirs, so that stored columns and groups stay where they are and scales are
still chosen for what the columns have become; `columns` takes all columns by importance, with the
scales of the original weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.compression.grids import Scales, as_matrix, choose_scales, grouped, round_to, value_of
from trimtab.compression.layer_task import STAGES, HeadTask, LayerResult, LayerTask, capture
from trimtab.compression.settings import Grid, QuantizeSettings
from trimtab.errors import ConfigError
from trimtab.numerics.stored import GroupedMatrix

BLOCK_COLUMNS = 128
DAMPING_STEPS = (1.0, 2.0, 5.0, 10.0, 30.0, 100.0)


class Hessian:
    """The mean of x x^T over the inputs of a matrix."""

    def __init__(self, cols: int, device: torch.device) -> None:
        self.sum = torch.zeros((cols, cols), device=device)
        self.count = 0

    def add(self, name: str, x: Tensor) -> None:
        """Inputs [tokens, cols] of a matrix."""
        self.sum.addmm_(x.T, x)
        self.count += len(x)

    def mean(self) -> Tensor:
        return self.sum / max(1, self.count)


def head_hessian(task: HeadTask) -> Tensor:
    """[cols, cols]: the mean of x x^T over the inputs of the output head. The task has inputs."""
    assert task.inputs is not None
    hessian = Hessian(task.head.shape[1], task.decoder.device)
    for batch in task.inputs:
        normed = task.decoder.norm(batch.x, task.final_norm)
        hessian.add("head", normed.reshape(-1, normed.shape[-1]))
    return hessian.mean()


@dataclass(frozen=True)
class Curvature:
    """What rounding needs of a Hessian, its columns in the order in which they are taken."""

    order: Tensor  # [cols] stored columns, in the order in which they are rounded
    factor: Tensor  # [cols, cols] upper Cholesky factor of the inverse, in that order
    diagonal: Tensor  # [cols] of the Hessian, in stored order
    damping: float  # that was needed, of the mean diagonal


def column_order(diagonal: Tensor, ordering: str, group_columns: int) -> Tensor:
    """Stored columns in the order in which they are rounded."""
    if ordering == "none":
        return torch.arange(len(diagonal), device=diagonal.device)
    if ordering == "columns":
        return torch.argsort(diagonal, descending=True, stable=True)
    groups = diagonal.view(-1, group_columns)
    first = torch.argsort(groups.amax(1), descending=True, stable=True)
    within = torch.argsort(groups, dim=1, descending=True, stable=True)
    return (first[:, None] * group_columns + within[first]).flatten()


def curvature(hessian: Tensor, damping: float, ordering: str, group_columns: int) -> Curvature:
    """Adds `damping` times the mean diagonal, and more where that is not enough for a Cholesky
    factor. Raises ConfigError if none suffices: the calibration's activations are not finite."""
    diagonal = hessian.diagonal().clone()
    order = column_order(diagonal, ordering, group_columns)
    wide = hessian.double()[order][:, order]
    mean = float(wide.diagonal().mean())
    dead = wide.diagonal() <= 0  # inputs that are always 0: their weights may be anything
    wide.diagonal()[dead] = mean or 1.0
    for step in DAMPING_STEPS:
        damped = wide.clone()
        damped.diagonal().add_(damping * step * (mean or 1.0))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed) and bool(torch.isfinite(upper).all()):
            return Curvature(order, upper.float(), diagonal, damping * step)
    raise ConfigError(
        "the activations of the calibration text have no usable covariance, damped as it is: "
        "use other text, or a larger damping"
    )


@dataclass(frozen=True)
class GptqRounded:
    integers: Tensor  # [rows, cols], columns as stored
    scales: Scales  # [rows, groups]
    compensated: Tensor  # [rows, cols] what each integer was rounded from

    def matrix(self, grid: Grid) -> GroupedMatrix:
        return as_matrix(self.integers, self.scales, grid)


def gptq_round(
    weights: Tensor, curve: Curvature, grid: Grid, search: bool, static: bool
) -> GptqRounded:
    """Of [rows, cols]. `static`: scales of the weights as they were, not of what they become."""
    rows, cols = weights.shape
    columns = grid.columns(cols)
    importance = curve.diagonal.view(1, -1, columns) if search else None
    found = choose_scales(grouped(weights, columns), grid, search, importance)
    scales, zeros = found.scales.clone(), found.zeros.clone()
    rest = weights[:, curve.order].clone()
    groups = torch.div(curve.order, columns, rounding_mode="floor").tolist()
    integers = torch.empty_like(rest)
    for start in range(0, cols, BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, cols)
        errors = torch.empty((rows, stop - start), device=weights.device)
        for column in range(start, stop):
            group = groups[column]
            if not static and column % columns == 0 and column + columns <= stop:
                now = rest[:, column : column + columns]
                taken = curve.diagonal[curve.order[column : column + columns]] if search else None
                fresh = choose_scales(now, grid, search, taken)
                scales[:, group], zeros[:, group] = fresh.scales, fresh.zeros
            of_group = Scales(scales[:, group], zeros[:, group])
            integer = round_to(rest[:, column], of_group, grid.bits)
            error = rest[:, column] - value_of(integer, of_group)
            error = error / curve.factor[column, column]
            following = curve.factor[column, column + 1 : stop]
            rest[:, column + 1 : stop] -= error[:, None] * following
            integers[:, column], errors[:, column - start] = integer, error
        rest[:, stop:] -= errors @ curve.factor[start:stop, stop:]
    places = torch.argsort(curve.order)
    return GptqRounded(integers[:, places], Scales(scales, zeros), rest[:, places])


class Gptq:
    """The inputs of o, gate, up and down are those that the layer's quantized matrices before
    them give."""

    def quantize(self, task: LayerTask) -> LayerResult:
        result = LayerResult()
        for stage, rounder in stages(task, result):
            for name in stage:
                rounded = rounder.round(task.weights[name], task.grids[name])
                result.matrices[name] = rounded.matrix(task.grids[name])
        return result

    def quantize_head(self, task: HeadTask) -> GroupedMatrix:
        return (
            Rounder(head_hessian(task), task.settings).round(task.head, task.grid).matrix(task.grid)
        )


def stages(task: LayerTask, result: LayerResult) -> Iterator[tuple[tuple[str, ...], Rounder]]:
    """The matrices of a layer as they share an input, that being what `result` gives so far."""
    for stage in STAGES:
        hessian = Hessian(task.weights[stage[0]].shape[1], task.decoder.device)
        capture(task, result.weights(task), hessian.add, stage[:1])
        rounder = Rounder(hessian.mean(), task.settings)
        yield stage, rounder
        result.notes += rounder.notes(f"layers.{task.index}.{stage[0]}")


class Rounder:
    """Matrices that share a Hessian, and so its factor."""

    def __init__(self, hessian: Tensor, settings: QuantizeSettings) -> None:
        self._hessian = hessian
        self._settings = settings
        self._curves: dict[int, Curvature] = {}  # by group columns

    def round(self, weights: Tensor, grid: Grid) -> GptqRounded:
        settings, columns = self._settings, grid.columns(weights.shape[1])
        if columns not in self._curves:
            self._curves[columns] = curvature(
                self._hessian, settings.damping, settings.ordering, columns
            )
        static = settings.ordering == "columns"
        return gptq_round(
            weights, self._curves[columns], grid, settings.search is not False, static
        )

    def notes(self, name: str) -> list[str]:
        raised = [c.damping for c in self._curves.values() if c.damping > self._settings.damping]
        return [f"{name}: damping raised to {max(raised):g}"] if raised else []
