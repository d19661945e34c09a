"""Floats to the blocks of GGUF files.

Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 without importance are those of ggml (`quantize_row_*_ref`), bit
for bit. The others minimize a weighted squared error: groups first, over candidate scales with the
offset that fits each best; then, scales and minima being rounded to six bits (eight in Q6_K),
their neighbours are tried and the two floats of a block are fitted again, each step kept only
where it lessens the error. `importance` (the mean square of each input column's activations)
takes the place of the weights, so that the error is that of the outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from trimtab.numerics.gguf_pack import (
    Bytes,
    Floats,
    pack_q4_0,
    pack_q4_1,
    pack_q4_k,
    pack_q5_0,
    pack_q5_1,
    pack_q5_k,
    pack_q6_k,
    pack_q8_0,
)

PIECE_ELEMENTS = 1 << 15  # of one call: what it makes on the way stays in cache
TINY = np.float32(1e-30)
MAX_HALF = 65504.0
LARGEST = 1e8  # beyond what any type reaches, and squares are still finite

Quantizer = Callable[[Floats, Floats | None], Bytes]  # [n, block], weights of columns alike


def quantize(name: str, matrix: Floats, importance: Floats | None = None) -> Bytes:
    """[rows, cols] to [rows, row bytes] of a type of `QUANTIZERS`; cols is a multiple of its
    block. `importance`: [cols], not negative. Raises ValueError for values that are not finite or
    too large for the type."""
    block, quantizer = QUANTIZERS[name]
    rows, cols = matrix.shape
    if cols % block:
        raise ValueError(f"{cols} columns are no multiple of {block}")
    step = max(1, PIECE_ELEMENTS // max(cols, 1))

    def piece(first: int) -> Bytes:
        part = np.ascontiguousarray(matrix[first : first + step], np.float32)
        if not np.isfinite(part).all():
            raise ValueError("values that are not finite")
        if np.abs(part).max(initial=0) > LARGEST:
            raise ValueError("values too large for a scale in float16")
        weights = None
        if importance is not None:
            weights = np.broadcast_to(importance, part.shape).reshape(-1, block)
        return quantizer(part.reshape(-1, block), weights).reshape(len(part), -1)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        pieces = list(pool.map(piece, range(0, rows, step)))
    return np.concatenate(pieces) if pieces else np.empty((0, 0), np.uint8)


def _inverse(x: Floats) -> Floats:
    """1 / x, 0 where x is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        result: Floats = np.where(x == 0, np.float32(0), np.float32(1) / x)
    return result


def _half(x: Floats) -> Floats:
    """Rounded to float16. Raises ValueError beyond its range."""
    with np.errstate(over="ignore"):
        rounded: Floats = x.astype(np.float16).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise ValueError("values too large for a scale in float16")
    return rounded


# ---- blocks of 32: ggml's own


def _q8_0(x: Floats, weights: Floats | None) -> Bytes:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    whole = np.floor(np.abs(scaled) + np.float32(0.5))  # half away from zero
    # 0.5 below an odd number of float32 would be carried up; such quotients stay under 2^7.
    whole = np.where(whole - np.abs(scaled) > np.float32(0.5), whole - 1, whole)
    _half(d)
    return pack_q8_0(np.copysign(whole, scaled).astype(np.int8), d)


def _symmetric(half: int) -> Quantizer:
    pack = pack_q4_0 if half == 8 else pack_q5_0

    def quantizer(x: Floats, weights: Floats | None) -> Bytes:
        if weights is None:
            at = np.abs(x).argmax(axis=1)[:, None]
            d = np.take_along_axis(x, at, axis=1) / np.float32(-half)
            values = np.trunc(x * _inverse(d) + np.float32(half + 0.5))
        else:
            d = _half(_fit_scale(_columns(x, 32), _columns(weights, 32) + TINY, half)[:, None])
            values = np.rint(x * _inverse(d)) + half
        _half(d)
        return pack(np.clip(values, 0, 2 * half - 1).astype(np.uint8), d)

    return quantizer


def _with_minimum(top: int) -> Quantizer:
    pack = pack_q4_1 if top == 15 else pack_q5_1

    def quantizer(x: Floats, weights: Floats | None) -> Bytes:
        if weights is None:
            low = x.min(axis=1, keepdims=True)
            d = (x.max(axis=1, keepdims=True) - low) / np.float32(top)
            values = np.trunc((x - low) * _inverse(d) + np.float32(0.5))
        else:
            fitted = _fit_scale_and_minimum(
                _columns(x, 32), _columns(weights, 32) + TINY, top, below=False
            )
            d, low = _half(fitted[0][:, None]), _half(fitted[1][:, None])
            values = np.rint((x - low) * _inverse(d))
        _half(d)
        _half(low)
        return pack(np.clip(values, 0, top).astype(np.uint8), d, low)

    return quantizer


# ---- the fits of groups; a group is a column here, so that sums run along whole registers


def _columns(blocks: Floats, group: int) -> Floats:
    """[n, k group] to [group, n k]"""
    result: Floats = np.ascontiguousarray(blocks.reshape(-1, group).T)
    return result


def _fit_scale(x: Floats, weights: Floats, half: int) -> Floats:
    """[group, n] to [n]: the scale (of either sign) of integers in [-half, half - 1] with the
    least weighted error, over 19 candidates."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    inverse = _inverse(largest)
    weighted = weights * x
    best: Floats = np.zeros_like(largest)
    best_gain = np.full_like(largest, -1)
    values, product = np.empty_like(x), np.empty_like(x)
    for step in range(-9, 10):
        np.multiply(x, inverse * np.float32(-(half + 0.1 * step)), out=values)
        _round(values, -half, half - 1)
        cross = np.multiply(weighted, values, out=product).sum(axis=0)
        np.multiply(weights, values, out=product)
        square = np.multiply(product, values, out=product).sum(axis=0)
        scale = cross * _inverse(square)
        gain = cross * scale  # how much less error than with all zeros
        better = gain > best_gain
        best, best_gain = np.where(better, scale, best), np.where(better, gain, best_gain)
    return best


def _fit_scale_and_minimum(
    x: Floats, weights: Floats, top: int, *, below: bool = True
) -> tuple[Floats, Floats]:
    """[group, n] to [n] each: x is nearly scale * values + minimum, values in [0, top], with the
    least weighted error over 37 candidates. `below`: the minimum is at most 0."""
    low = x.min(axis=0)
    if below:
        low = np.minimum(low, 0)
    width = x.max(axis=0) - low
    inverse = _inverse(width)
    total = weights.sum(axis=0)
    weighted = weights * x
    first = weighted.sum(axis=0)
    shifted = x - low
    best_scale, best_low = width / np.float32(top), low
    best_gain = np.full_like(low, -np.inf)
    values, product = np.empty_like(x), np.empty_like(x)
    for step in range(37):
        np.multiply(shifted, inverse * np.float32(top - 0.9 + 0.05 * step), out=values)
        _round(values, 0, top)
        cross = np.multiply(weighted, values, out=product).sum(axis=0)
        linear = np.multiply(weights, values, out=product).sum(axis=0)
        square = np.multiply(product, values, out=product).sum(axis=0)
        determinant = _inverse(total * square - linear * linear)
        scale = (total * cross - first * linear) * determinant
        minimum = (square * first - linear * cross) * determinant
        if below:
            scale = np.where(minimum > 0, cross * _inverse(square), scale)
            minimum = np.minimum(minimum, 0)
        # The weighted error of zero less that of scale * values + minimum.
        own = scale * scale * square + 2 * scale * minimum * linear + minimum * minimum * total
        gain = 2 * (scale * cross + minimum * first) - own
        better = (gain > best_gain) & (determinant > 0)
        best_gain = np.where(better, gain, best_gain)
        best_scale = np.where(better, scale, best_scale)
        best_low = np.where(better, minimum, best_low)
    return best_scale, best_low


def _round(values: Floats, low: int, high: int) -> None:
    """To the nearest integers of a range, in place."""
    np.rint(values, out=values)
    np.maximum(values, np.float32(low), out=values)
    np.minimum(values, np.float32(high), out=values)


# ---- blocks of 256: scales in two levels


def _k_weights(x: Floats, importance: Floats | None, group: int) -> Floats:
    """[group, n], like x: the importance; without it, large elements weigh more, as in ggml."""
    if importance is not None:
        given: Floats = _columns(importance, group) + TINY
        return given
    rms: Floats = np.sqrt((x * x).mean(axis=0))
    weights: Floats = rms + np.abs(x) + TINY
    return weights


def _minima_quantizer(top: int) -> Quantizer:
    """Q4_K and Q5_K: eight groups of 32, element = d scale value - dmin min."""
    pack = pack_q4_k if top == 15 else pack_q5_k

    def quantizer(blocks: Floats, importance: Floats | None) -> Bytes:
        x = _columns(blocks, 32)
        fit = _MinimaBlocks(x, _k_weights(x, importance, 32), top)
        for _ in range(2):
            fit.try_neighbours()
            fit.fit_floats()
        values = fit.values_of(fit.d, fit.dmin, fit.scales, fit.minima).astype(np.uint8)
        small = fit.scales.astype(np.uint8), fit.minima.astype(np.uint8)
        return pack(np.ascontiguousarray(values.T).reshape(-1, 256), fit.d, fit.dmin, *small)

    return quantizer


class _MinimaBlocks:
    """n blocks on their way: d, dmin [n, 1], scales, minima [n, 8]. All that is changed lessens
    their weighted error."""

    def __init__(self, x: Floats, weights: Floats, top: int) -> None:
        """`x`, `weights`: [32, 8 n]"""
        self._x, self._weights, self._top = x, weights, top
        fitted, low = _fit_scale_and_minimum(x, weights, top)
        wanted, wanted_low = fitted.reshape(-1, 8), -low.reshape(-1, 8)
        self.d = _half(wanted.max(axis=1, keepdims=True) / np.float32(63))
        self.dmin = _half(wanted_low.max(axis=1, keepdims=True) / np.float32(63))
        self.scales = np.clip(np.rint(wanted * _inverse(self.d)), 0, 63)
        self.minima = np.clip(np.rint(wanted_low * _inverse(self.dmin)), 0, 63)
        self._error = self._error_of(self.d, self.dmin, self.scales, self.minima)

    def values_of(self, d: Floats, dmin: Floats, scales: Floats, minima: Floats) -> Floats:
        """[32, 8 n]: the integers nearest to x."""
        values: Floats = self._x + (dmin * minima).reshape(-1)
        values *= _inverse(d * scales).reshape(-1)
        _round(values, 0, self._top)
        return values

    def _error_of(self, d: Floats, dmin: Floats, scales: Floats, minima: Floats) -> Floats:
        """[n, 8]"""
        off = self.values_of(d, dmin, scales, minima)
        off *= (d * scales).reshape(-1)
        off -= (dmin * minima).reshape(-1)
        off -= self._x
        off *= off
        off *= self._weights
        error: Floats = off.sum(axis=0).reshape(-1, 8)
        return error

    def try_neighbours(self) -> None:
        """Of each group, the scales and minima one step away."""
        start, start_low = self.scales, self.minima
        for step in (-1, 0, 1):
            for step_low in (-1, 0, 1):
                scales = np.clip(start + np.float32(step), 0, 63)
                minima = np.clip(start_low + np.float32(step_low), 0, 63)
                error = self._error_of(self.d, self.dmin, scales, minima)
                better = error < self._error
                self._error = np.where(better, error, self._error)
                self.scales = np.where(better, scales, self.scales)
                self.minima = np.where(better, minima, self.minima)

    def fit_floats(self) -> None:
        """The two floats of each block that fit its integers best."""
        a = self.values_of(self.d, self.dmin, self.scales, self.minima) * self.scales.reshape(-1)
        low = -self.minima
        weighted = self._weights * a

        def total(of_groups: Floats) -> npt.NDArray[np.float64]:
            result: npt.NDArray[np.float64] = of_groups.reshape(-1, 8).sum(
                axis=1, keepdims=True, dtype=np.float64
            )
            return result

        aa = total((weighted * a).sum(axis=0))
        ax = total((weighted * self._x).sum(axis=0))
        ab = total(weighted.sum(axis=0).reshape(-1, 8) * low)
        bb = total(self._weights.sum(axis=0).reshape(-1, 8) * low * low)
        bx = total((self._weights * self._x).sum(axis=0).reshape(-1, 8) * low)
        determinant = aa * bb - ab * ab
        solvable = determinant > 1e-9 * aa * bb
        safe = np.where(solvable, determinant, 1)
        alone = ax / np.where(aa > 0, aa, 1)  # where no group has a minimum
        d = np.where(solvable, (ax * bb - bx * ab) / safe, alone)
        dmin = np.where(solvable, (bx * aa - ax * ab) / safe, self.dmin)
        d = _half(np.clip(d, 0, MAX_HALF).astype(np.float32))
        dmin = _half(np.clip(dmin, 0, MAX_HALF).astype(np.float32))
        error = self._error_of(d, dmin, self.scales, self.minima)
        better = error.sum(axis=1, keepdims=True) < self._error.sum(axis=1, keepdims=True)
        self.d, self.dmin = np.where(better, d, self.d), np.where(better, dmin, self.dmin)
        self._error = np.where(better, error, self._error)


def _q6_k(blocks: Floats, importance: Floats | None) -> Bytes:
    """Sixteen groups of 16, element = d scale (value - 32), the scales of either sign."""
    x = _columns(blocks, 16)
    weights = _k_weights(x, importance, 16)
    wanted = _fit_scale(x, weights, 32).reshape(-1, 16)
    at = np.abs(wanted).argmax(axis=1)[:, None]
    d = _half(np.take_along_axis(wanted, at, axis=1) / np.float32(-128))
    scales = np.clip(np.rint(wanted * _inverse(d)), -128, 127)

    def values_of(d: Floats, scales: Floats) -> Floats:
        values: Floats = x * _inverse(d * scales).reshape(-1)
        _round(values, -32, 31)
        return values

    def error_of(d: Floats, scales: Floats) -> Floats:
        off = values_of(d, scales)
        off *= (d * scales).reshape(-1)
        off -= x
        off *= off
        off *= weights
        error: Floats = off.sum(axis=0).reshape(-1, 16)
        return error

    error = error_of(d, scales)
    for _ in range(2):
        start = scales
        for step in (-1, 1):
            tried = np.clip(start + np.float32(step), -128, 127)
            its = error_of(d, tried)
            scales, error = np.where(its < error, tried, scales), np.minimum(its, error)
        a = values_of(d, scales) * scales.reshape(-1)
        square = (weights * a * a).sum(axis=0).reshape(-1, 16).sum(axis=1, keepdims=True)
        cross = (weights * a * x).sum(axis=0).reshape(-1, 16).sum(axis=1, keepdims=True)
        fitted = _half(np.clip(cross * _inverse(square), -MAX_HALF, MAX_HALF))
        its = error_of(fitted, scales)
        better = its.sum(axis=1, keepdims=True) < error.sum(axis=1, keepdims=True)
        d, error = np.where(better, fitted, d), np.where(better, its, error)
    values = (values_of(d, scales) + 32).astype(np.uint8)
    return pack_q6_k(np.ascontiguousarray(values.T).reshape(-1, 256), d, scales.astype(np.int8))


# name -> elements of a block, the quantizer
QUANTIZERS: dict[str, tuple[int, Quantizer]] = {
    "Q8_0": (32, _q8_0),
    "Q4_0": (32, _symmetric(8)),
    "Q4_1": (32, _with_minimum(15)),
    "Q5_0": (32, _symmetric(16)),
    "Q5_1": (32, _with_minimum(31)),
    "Q4_K": (256, _minima_quantizer(15)),
    "Q5_K": (256, _minima_quantizer(31)),
    "Q6_K": (256, _q6_k),
}
