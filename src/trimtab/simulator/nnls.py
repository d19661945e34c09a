"""Least squares with coefficients that are not negative."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_MAX_ROUNDS = 10  # times the number of columns


def solve(matrix: Float64Array, target: Float64Array) -> Float64Array:
    """x >= 0 [n] that makes |matrix @ x - target| least; matrix [m, n], target [m].

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23).
    Columns of zeros get 0. Where columns depend on each other, one of the solutions.
    """
    num_columns = matrix.shape[1]
    scales = np.sqrt((matrix * matrix).sum(axis=0))
    scaled = matrix / np.where(scales > 0, scales, 1.0)
    free = np.zeros(num_columns, bool)
    x = np.zeros(num_columns)
    gradient = scaled.T @ target
    tolerance = 1e-10 * max(1.0, float(np.abs(gradient).max(initial=0.0)))
    for _ in range(_MAX_ROUNDS * num_columns):
        candidates = np.where(free | (scales == 0), -np.inf, gradient)
        best = int(candidates.argmax())
        if candidates[best] <= tolerance:
            break
        free[best] = True
        while free.any():
            trial = np.zeros(num_columns)
            trial[free] = np.linalg.lstsq(scaled[:, free], target, rcond=None)[0]
            bad = free & (trial <= 0)
            if not bad.any():
                x = trial
                break
            # As far towards the trial as no coefficient turns negative; what reaches 0 stays there.
            step = np.min(x[bad] / np.maximum(x[bad] - trial[bad], 1e-300))
            x = np.maximum(x + step * (trial - x), 0.0)
            free &= x > 1e-14
            x[~free] = 0.0
        gradient = scaled.T @ (target - scaled @ x)
    result: Float64Array = x / np.where(scales > 0, scales, 1.0)
    return result
