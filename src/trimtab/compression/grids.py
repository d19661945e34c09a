"""Scales and zeros of groups of weights, and rounding to them, in torch.

Scales are rounded to the type that stores them before integers are chosen, so that what a file
stores is what the integers were chosen for. Integers are centred, and clamped to their bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.compression.settings import Grid
from trimtab.numerics.stored import GroupedMatrix, ScaleType

LARGEST_F16 = 65504.0
ASYMMETRIC_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True)
class Scales:
    """Of groups: value = (integer - zero) * scale. Float32 tensors of any equal shape."""

    scales: Tensor  # as they will be stored; of any sign
    zeros: Tensor  # centred integers; 0 when symmetric


def half_range(bits: int) -> int:
    return 1 << (bits - 1)


def storable(scales: Tensor, scale_type: ScaleType) -> Tensor:
    """Rounded to what will be stored, finite, as float32."""
    if scale_type == "bf16":
        return scales.bfloat16().float()
    if scale_type == "f16":
        return scales.clamp(-LARGEST_F16, LARGEST_F16).half().float()
    return scales


def round_to(weights: Tensor, found: Scales, bits: int) -> Tensor:
    """The nearest integers, clamped, as float32; shapes that broadcast. Where the scale is 0, the
    zero."""
    half = half_range(bits)
    divisors = torch.where(found.scales == 0, torch.inf, found.scales)
    return torch.clamp(torch.round(weights / divisors) + found.zeros, -half, half - 1)


def value_of(integers: Tensor, found: Scales) -> Tensor:
    return (integers - found.zeros) * found.scales


def grouped(weights: Tensor, group_columns: int) -> Tensor:
    """[rows, cols] as [rows, groups, group_columns]."""
    return weights.reshape(len(weights), -1, group_columns)


def plain_scales(groups: Tensor, grid: Grid) -> Scales:
    """Of [..., columns]: the range of each group, 0 included, on the integers. Symmetric: the
    largest magnitude is half a step beyond the largest integer (as in compressed-tensors)."""
    return next(_candidates(groups, grid))


def best_scales(
    groups: Tensor,
    grid: Grid,
    importance: Tensor | None = None,
    hessians: Tensor | None = None,
) -> Scales:
    """As `plain_scales`, of several candidates for each group the one with the least squared error,
    each column's weighted by `importance` (broadcast to `groups`); or, of groups [rows, groups,
    columns] with `hessians` [groups, columns, columns], that of the group's part of the output."""
    best: Scales | None = None
    least = None
    for found in _candidates(groups, grid, search=True):
        spread = Scales(found.scales[..., None], found.zeros[..., None])
        off = groups - value_of(round_to(groups, spread, grid.bits), spread)
        if hessians is not None:
            error = ((off.transpose(0, 1) @ hessians).transpose(0, 1) * off).sum(-1)
        else:
            error = (off.square() * (1.0 if importance is None else importance)).sum(-1)
        if best is None or least is None:
            best, least = found, error
            continue
        better = error < least
        best = Scales(
            torch.where(better, found.scales, best.scales),
            torch.where(better, found.zeros, best.zeros),
        )
        least = torch.where(better, error, least)
    assert best is not None
    return best


def choose_scales(
    groups: Tensor,
    grid: Grid,
    search: bool,
    importance: Tensor | None = None,
    hessians: Tensor | None = None,
) -> Scales:
    if search:
        return best_scales(groups, grid, importance, hessians)
    return plain_scales(groups, grid)


def asymmetric_scales(low: Tensor, high: Tensor, grid: Grid) -> Scales:
    """low <= 0 <= high on the first and the last integer."""
    half = half_range(grid.bits)
    scales = storable((high - low) / (2 * half - 1), grid.scale_type)
    divisors = torch.where(scales == 0, torch.inf, scales)
    zeros = torch.clamp(torch.round(-low / divisors), 0, 2 * half - 1) - half
    return Scales(scales, torch.where(scales == 0, 0.0, zeros))


def _candidates(groups: Tensor, grid: Grid, search: bool = False) -> Iterator[Scales]:
    half = half_range(grid.bits)
    if grid.symmetric:
        absmax = groups.abs().amax(-1)
        zeros = torch.zeros_like(absmax)
        yield Scales(storable(absmax / (half - 0.5), grid.scale_type), zeros)
        if not search:
            return
        # Above the range of the integers the largest weight is clipped, for finer steps; below
        # zero the scale gives it the one integer that has no counterpart.
        last = 1.5 if grid.bits <= 4 else 1.0
        steps = np.linspace(half - 1, last * half, 2 * half - 1 if grid.bits <= 4 else 5)
        for divisor in steps.tolist():
            for sign in (1.0, -1.0):
                yield Scales(storable(sign * absmax / divisor, grid.scale_type), zeros)
        return
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    shrinks = ASYMMETRIC_SHRINKS if search else (1.0,)
    for below in shrinks:
        for above in shrinks:
            yield asymmetric_scales(low * below, high * above, grid)


def as_matrix(integers: Tensor, found: Scales, grid: Grid) -> GroupedMatrix:
    """Of integers [rows, cols] and scales [rows, groups]."""
    zeros = None
    if not grid.symmetric:
        zeros = found.zeros.cpu().numpy().astype(np.int16)
    return GroupedMatrix(
        values=integers.cpu().numpy().astype(np.int8),
        bits=grid.bits,
        group_size=grid.columns(integers.shape[1]),
        scales=np.ascontiguousarray(found.scales.cpu().numpy().astype(np.float32)),
        scale_type=grid.scale_type,
        zeros=zeros,
    )


def round_matrix(
    weights: Tensor, grid: Grid, search: bool = False, importance: Tensor | None = None
) -> GroupedMatrix:
    """Round to nearest, of [rows, cols]; `importance` [cols] is what the search weighs by."""
    columns = grid.columns(weights.shape[1])
    groups = grouped(weights, columns)
    weighed = None if importance is None else importance.view(1, -1, columns)
    found = choose_scales(groups, grid, search, weighed)
    spread = Scales(found.scales[..., None], found.zeros[..., None])
    return as_matrix(round_to(groups, spread, grid.bits).flatten(1), found, grid)
