"""AutoRound: rounding and scales learned by signed gradient descent, a layer at a time.

Cheng et al., Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs
(2023). Each weight has an offset in [-0.5, 0.5] steps that is added before it is rounded, each
group a factor of its scale; both move by the sign of their gradient of the squared error of the
layer's output, which is to be what the original layer makes of the original model's input. With
`start="gptq"` the weights begin where GPTQ's compensation left them, and the first iterate is
GPTQ's result; with few iterations that is the better start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.compression.activations import Activations
from trimtab.compression.gptq import Gptq, stages
from trimtab.compression.grids import Scales, as_matrix, best_scales, grouped, half_range, storable
from trimtab.compression.layer_task import HeadTask, LayerResult, LayerTask
from trimtab.compression.settings import Grid
from trimtab.numerics.stored import GroupedMatrix

FACTORS = (0.5, 1.25)  # of a scale
CHECKS = 10  # times that the iterates are compared
CHECKED_SHARE = 8  # one row in so many is for that, and not learned from
CHECKED_ROWS = 32  # at most


@dataclass
class LearnedMatrix:
    """Parameters that require gradients, and what they are relative to."""

    grid: Grid
    base: Tensor  # [rows, groups, columns] of float weights
    scales: Scales  # [rows, groups]
    offsets: Tensor  # [rows, groups, columns], in steps
    factors: Tensor  # [rows, groups], of the scales

    @classmethod
    def of(cls, grid: Grid, weights: Tensor, scales: Scales) -> LearnedMatrix:
        base = grouped(weights, grid.columns(weights.shape[1]))
        offsets = torch.zeros_like(base).requires_grad_(True)
        factors = torch.ones_like(scales.scales).requires_grad_(True)
        return cls(grid, base, scales, offsets, factors)

    def rounded(self) -> tuple[Tensor, Scales]:
        """Integers [rows, groups, columns] and scales [rows, groups], with gradients as if nothing
        were rounded."""
        half = half_range(self.grid.bits)
        scales = self.scales.scales * self.factors
        scales = scales + (storable(scales, self.grid.scale_type) - scales).detach()
        found = Scales(scales, self.scales.zeros)
        divisors = torch.where(scales == 0, torch.inf, scales)[..., None]
        places = self.base / divisors + self.offsets
        places = places + (torch.round(places) - places).detach()
        return torch.clamp(places + found.zeros[..., None], -half, half - 1), found

    def weights(self) -> Tensor:
        """[rows, cols], dequantized, with gradients."""
        integers, found = self.rounded()
        return ((integers - found.zeros[..., None]) * found.scales[..., None]).flatten(1)

    def step(self, rate: float) -> None:
        with torch.no_grad():
            for parameter, low, high in (
                (self.offsets, -0.5, 0.5),
                (self.factors, *FACTORS),
            ):
                assert parameter.grad is not None
                parameter.sub_(rate * parameter.grad.sign()).clamp_(low, high)
                parameter.grad = None

    def matrix(self) -> GroupedMatrix:
        with torch.no_grad():
            integers, found = self.rounded()
        return as_matrix(integers.flatten(1), found, self.grid)

    def state(self) -> tuple[Tensor, Tensor]:
        return self.offsets.detach().clone(), self.factors.detach().clone()

    def restore(self, state: tuple[Tensor, Tensor]) -> None:
        with torch.no_grad():
            self.offsets.copy_(state[0])
            self.factors.copy_(state[1])


class AutoRound:
    def quantize(self, task: LayerTask) -> LayerResult:
        result = LayerResult()
        learned = _begin(task, result)
        targets = _targets(task)
        losses = _learn(task, learned, targets)
        result.matrices = {name: matrix.matrix() for name, matrix in learned.items()}
        if losses[1] >= losses[0]:
            result.notes.append(f"layers.{task.index}: no iterate was better than the first")
        return result

    def quantize_head(self, task: HeadTask) -> GroupedMatrix:
        """As GPTQ does: there is no layer after it to learn from."""
        return Gptq().quantize_head(task)


def _begin(task: LayerTask, result: LayerResult) -> dict[str, LearnedMatrix]:
    learned = {}
    if task.settings.start == "nearest":
        for name, grid in task.grids.items():
            weights = task.weights[name]
            found = best_scales(grouped(weights, grid.columns(weights.shape[1])), grid)
            learned[name] = LearnedMatrix.of(grid, weights, found)
        return learned
    for stage, rounder in stages(task, result):
        for name in stage:
            grid = task.grids[name]
            rounded = rounder.round(task.weights[name], grid)
            result.matrices[name] = rounded.matrix(grid)
            learned[name] = LearnedMatrix.of(grid, rounded.compensated, rounded.scales)
    return learned


def _targets(task: LayerTask) -> Activations:
    """What the original layer makes of the original model's stream."""
    assert task.float_inputs is not None
    return task.float_inputs.through(lambda batch: task.forward(batch, task.weights))


def _learn(
    task: LayerTask, learned: Mapping[str, LearnedMatrix], targets: Activations
) -> tuple[float, float]:
    """Leaves the best iterate in `learned`; gives the errors of the first and of that one."""
    settings, inputs = task.settings, task.calibration()
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + task.index)
    held_out = min(inputs.num_rows // CHECKED_SHARE, CHECKED_ROWS)
    checked = list(range(held_out or inputs.num_rows))  # without rows to spare, all of them
    usable = inputs.num_rows - held_out
    first = least = _error(task, learned, targets, checked)
    best = {name: matrix.state() for name, matrix in learned.items()}
    count, iterations = min(settings.batch_size, usable), settings.iterations
    rate = settings.learning_rate or 1 / iterations
    for iteration in range(iterations):
        indices = (held_out + torch.randperm(usable, generator=generator)[:count]).tolist()
        batch, target = inputs.rows(indices), targets.rows(indices).x
        weights = {name: matrix.weights() for name, matrix in learned.items()}
        out = task.forward(batch, {**task.weights, **weights})
        torch.autograd.backward((out - target).square().mean())
        for matrix in learned.values():
            matrix.step(rate * (1 - iteration / iterations))
        if (iteration + 1) % max(1, iterations // CHECKS) == 0 or iteration + 1 == iterations:
            error = _error(task, learned, targets, checked)
            if error < least:
                least = error
                best = {name: matrix.state() for name, matrix in learned.items()}
    for name, matrix in learned.items():
        matrix.restore(best[name])
    return first, least


def _error(
    task: LayerTask,
    learned: Mapping[str, LearnedMatrix],
    targets: Activations,
    rows: list[int],
) -> float:
    total, inputs = 0.0, task.calibration()
    with torch.no_grad():
        weights = {name: matrix.weights() for name, matrix in learned.items()}
        for row in rows:
            out = task.forward(inputs.rows([row]), {**task.weights, **weights})
            total += float((out - targets.rows([row]).x).square().mean())
    return total / len(rows)
