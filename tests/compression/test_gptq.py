"""GPTQ against the algorithm it is a fast form of, and its orders of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trimtab.compression.gptq import Hessian, column_order, curvature, gptq_round
from trimtab.compression.grids import round_matrix
from trimtab.compression.settings import Grid
from trimtab.errors import ConfigError
from trimtab.numerics.stored import GroupedMatrix

Array = npt.NDArray[np.float64]
DAMPING = 0.02


def problem(rows: int, cols: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and a Hessian of correlated inputs."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, cols))
    mixing = rng.standard_normal((cols, cols)) / cols**0.5 + np.diag(rng.uniform(0.1, 2, cols))
    inputs = rng.standard_normal((4 * cols, cols)) @ mixing
    hessian = Hessian(cols, torch.device("cpu"))
    hessian.add("q", torch.from_numpy(inputs).float())
    return torch.from_numpy(weights).float(), hessian.mean()


def surgeon(
    weights: Array, hessian: Array, order: list[int], scales: Array, zeros: Array, grid: Grid
) -> Array:
    """Optimal Brain Quantization in a fixed order: after each column, the inverse Hessian of those
    that are left, from scratch, says how they make up for its error. Scales as given."""
    rest = weights.copy()
    chosen = np.zeros_like(rest)
    half = 1 << (grid.bits - 1)
    damped = hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    for place, column in enumerate(order):
        left = order[place:]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        group = column // grid.columns(len(hessian))
        scale, zero = scales[:, group], zeros[:, group]
        chosen[:, column] = np.clip(np.rint(rest[:, column] / scale) + zero, -half, half - 1)
        error = rest[:, column] - (chosen[:, column] - zero) * scale
        rest[:, left] -= np.outer(error, inverse[0] / inverse[0, 0])
    return chosen


@pytest.mark.parametrize("cols", [96, 160])
@pytest.mark.parametrize("ordering", ["none", "groups", "columns"])
@pytest.mark.parametrize("grid", [Grid(4, 32, True), Grid(3, 0, False)])
def test_equals_the_dense_algorithm(cols: int, ordering: str, grid: Grid) -> None:
    weights, hessian = problem(12, cols)
    curve = curvature(hessian, DAMPING, ordering, grid.columns(cols))
    found = gptq_round(weights, curve, grid, search=False, static=True).matrix(grid)
    zeros = np.zeros_like(found.scales) if found.zeros is None else found.zeros
    expected = surgeon(
        weights.numpy().astype(float),
        hessian.numpy().astype(float),
        curve.order.tolist(),
        found.scales.astype(float),
        zeros.astype(float),
        grid,
    )
    # A value halfway between two integers goes either way, and takes what follows with it.
    same_rows = (found.values == expected).all(1)
    assert same_rows.mean() >= 0.9


def loss(found: GroupedMatrix, weights: torch.Tensor, hessian: torch.Tensor) -> float:
    error = torch.from_numpy(found.to_float32()) - weights
    return float(((error @ hessian) * error).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 128, 0])
def test_loses_less_than_rounding_to_nearest(bits: int, symmetric: bool, group_size: int) -> None:
    weights, hessian = problem(24, 256, seed=bits)
    grid = Grid(bits, group_size, symmetric)
    curve = curvature(hessian, DAMPING, "groups", grid.columns(256))
    found = gptq_round(weights, curve, grid, search=False, static=False).matrix(grid)
    nearest = loss(round_matrix(weights, grid), weights, hessian)
    assert loss(found, weights, hessian) < 0.8 * nearest


def test_groups_stay_where_they_are() -> None:
    generator = torch.Generator().manual_seed(3)
    diagonal = torch.rand(96, generator=generator)
    order = column_order(diagonal, "groups", 32)
    assert sorted(order.tolist()) == list(range(96))
    blocks = (order // 32).view(3, 32)
    assert (blocks == blocks[:, :1]).all()  # each group in one piece
    for block in order.view(3, 32):
        assert (diagonal[block].diff() <= 0).all()
    assert (diagonal[column_order(diagonal, "columns", 32)].diff() <= 0).all()


def test_permuted_columns_of_a_group_give_the_same_columns_permuted() -> None:
    weights, hessian = problem(16, 128)
    grid = Grid(4, 64, True)
    generator = torch.Generator().manual_seed(5)
    within = torch.cat([start + torch.randperm(64, generator=generator) for start in (0, 64)])

    def run(w: torch.Tensor, h: torch.Tensor) -> GroupedMatrix:
        curve = curvature(h, DAMPING, "groups", 64)
        return gptq_round(w, curve, grid, search=True, static=False).matrix(grid)

    plain = run(weights, hessian)
    permuted = run(weights[:, within], hessian[within][:, within])
    # The sums of the searched scales run in another order: a rare tie may fall otherwise.
    agrees = (permuted.values == plain.values[:, within.numpy()]).all(1)
    assert agrees.mean() > 0.85


def test_inputs_that_are_always_zero_harm_nothing() -> None:
    weights, hessian = problem(8, 64)
    hessian[5], hessian[:, 5] = 0, 0
    curve = curvature(hessian, DAMPING, "groups", 64)
    grid = Grid(4, 64, True)
    found = gptq_round(weights, curve, grid, search=True, static=False).matrix(grid)
    assert np.isfinite(found.scales).all()
    nearest = round_matrix(weights, grid)
    assert loss(found, weights, hessian) < loss(nearest, weights, hessian)


def test_damping_rises_until_there_is_a_factor() -> None:
    _, hessian = problem(1, 32)
    values, vectors = torch.linalg.eigh(hessian)
    mean = float(hessian.diagonal().mean())
    values[0] = -0.05 * mean  # as rounding errors of a long sum may leave it
    broken = (vectors * values) @ vectors.T
    curve = curvature(broken, 0.01, "none", 32)
    assert 0.05 < curve.damping <= 0.3
    with pytest.raises(ConfigError, match="no usable covariance"):
        curvature(torch.full((32, 32), torch.nan), 0.01, "none", 32)


def test_scales_are_exact_in_their_type() -> None:
    weights, hessian = problem(8, 64)
    kinds: list[tuple[Any, Any]] = [("f16", torch.float16), ("bf16", torch.bfloat16)]
    for name, dtype in kinds:
        grid = Grid(4, 32, False, name)
        curve = curvature(hessian, DAMPING, "groups", 32)
        found = gptq_round(weights, curve, grid, search=True, static=False).matrix(grid)
        scales = torch.from_numpy(found.scales)
        assert found.scale_type == name
        assert torch.equal(scales.to(dtype).float(), scales)
