"""How long a step takes, out of its shape: fitted to steps that were measured.

    seconds = rows(R) + head(L) + a * sequences + b * attended + c * context

`rows` and `head` are piecewise linear and never fall: what a row costs is not the same at 1, 16 and
256 of them, because kernels take rows by the tile and weights are read once a step. All
coefficients are positive, so a larger step is never predicted to be faster.
"""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from trimtab.errors import UserError
from trimtab.simulator.nnls import Float64Array, solve
from trimtab.simulator.step_shape import Reach, StepShape

FORMAT = 1
ROW_KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
HEAD_KNOTS = (1, 4, 16, 64, 256)
COVERAGE = 0.9  # of the prediction interval
TRUSTED = 4.0  # times what was measured: beyond it a prediction is a guess
Provenance = Literal["interpolated", "extrapolated", "guessed"]


class StepSample(NamedTuple):
    shape: StepShape
    seconds: float
    is_held_out: bool = False  # measured, but no part of the fit


@dataclass(frozen=True)
class FitErrors:
    """Mean absolute errors of predicted against measured seconds, relative to the measured."""

    fitted: float
    leave_one_out: float  # each sample predicted by a fit without it
    held_out: float | None  # of samples that no fit has seen; None: there were none
    worst: float  # of the held-out samples, or else of leave-one-out


@dataclass(frozen=True)
class StepTimes:
    """Predicts seconds. `row_seconds` at `row_knots` rows, `head_seconds` at `head_knots` logit
    rows (0 without any)."""

    row_knots: tuple[int, ...]
    row_seconds: tuple[float, ...]
    head_knots: tuple[int, ...]
    head_seconds: tuple[float, ...]
    sequence_seconds: float
    attended_seconds: float
    context_seconds: float
    largest: StepShape  # of each feature, the most that was measured
    errors: FitErrors
    interval: tuple[float, float] = (1.0, 1.0)  # measured / predicted, 5th and 95th percentile
    windows: tuple[tuple[int, float], ...] = ((0, 1.0),)  # see Reach
    subject: dict[str, Any] = field(default_factory=dict)  # model, executor, formats, machine
    samples: tuple[StepSample, ...] = ()

    def seconds(self, shape: StepShape) -> float:
        return (
            self.row_part(shape.rows, shape.logit_rows)
            + self.sequence_seconds * shape.sequences
            + self.attended_seconds * shape.attended
            + self.context_seconds * shape.context
        )

    def row_part(self, rows: int, logit_rows: int) -> float:
        """Of those seconds, what follows from the numbers of rows."""
        seconds = self._row_parts.get((rows, logit_rows))
        if seconds is None:
            seconds = _interpolate(rows, self.row_knots, self.row_seconds)
            if logit_rows:
                seconds += _interpolate(logit_rows, self.head_knots, self.head_seconds)
            self._row_parts[rows, logit_rows] = seconds
        return seconds

    @cached_property
    def _row_parts(self) -> dict[tuple[int, int], float]:
        """Known ones: a simulation asks for the same few, several times a step."""
        return {}

    def bounds(self, shape: StepShape) -> tuple[float, float]:
        """Between which the seconds of such a step lie nine times out of ten; twice as wide, each
        way, where the shape is larger than any that was measured."""
        seconds, (low, high) = self.seconds(shape), self.interval
        if self.provenance(shape) != "interpolated":
            low, high = low * low, high * high
        return seconds * low, seconds * high

    def provenance(self, shape: StepShape) -> Provenance:
        """`guessed` beyond four times what was measured."""
        most = max(have / max(limit, 1) for have, limit in zip(shape, self.largest, strict=True))
        if most <= 1:
            return "interpolated"
        return "extrapolated" if most <= TRUSTED else "guessed"

    @property
    def reach(self) -> Reach:
        return Reach(self.windows)

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepTimes:
        """UserError for what is not such a calibration."""
        try:
            if data["format"] != FORMAT:
                raise UserError(f"step times of format {data['format']}: calibrate again")
            return cls(
                tuple(data["row_knots"]),
                tuple(data["row_seconds"]),
                tuple(data["head_knots"]),
                tuple(data["head_seconds"]),
                data["sequence_seconds"],
                data["attended_seconds"],
                data["context_seconds"],
                StepShape(*data["largest"]),
                FitErrors(**data["errors"]),
                (data["interval"][0], data["interval"][1]),
                tuple((window, share) for window, share in data["windows"]),
                dict(data["subject"]),
                tuple(StepSample(StepShape(*shape), *rest) for shape, *rest in data["samples"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"not a calibration of step times ({error!r})") from None


def fit_step_times(
    samples: Sequence[StepSample],
    windows: tuple[tuple[int, float], ...] = ((0, 1.0),),
    subject: Mapping[str, Any] | None = None,
) -> StepTimes:
    """Least squares of relative errors over the samples that are not held out.

    UserError with fewer than 8 of these, or with times that are not positive.
    """
    fitted = [one for one in samples if not one.is_held_out]
    if len(fitted) < 8:
        raise UserError(f"{len(fitted)} measured steps are too few to fit step times: at least 8")
    if min(one.seconds for one in samples) <= 0:
        raise UserError("a measured step took no time")
    form = _Form(fitted)
    matrix = form.columns([one.shape for one in fitted])
    seconds = np.array([one.seconds for one in fitted])
    relative = matrix / seconds[:, None]
    ones = np.ones(len(fitted))
    coefficients = solve(relative, ones)
    ratios = []  # measured / predicted, of each sample left out in its turn
    for place in range(len(fitted)):
        kept = np.arange(len(fitted)) != place
        others = solve(relative[kept], ones[kept])
        ratios.append(float(1.0 / max(relative[place] @ others, 1e-9)))
    left_out = [abs(1 / ratio - 1) for ratio in ratios]
    held = [one for one in samples if one.is_held_out]
    errors = [
        abs(float(predicted) / one.seconds - 1)
        for one, predicted in zip(
            held, form.columns([one.shape for one in held]) @ coefficients, strict=True
        )
    ]
    tail = (1 - COVERAGE) / 2
    return form.step_times(
        coefficients,
        FitErrors(
            float(np.abs(relative @ coefficients - 1).mean()),
            statistics.fmean(left_out),
            statistics.fmean(errors) if errors else None,
            max(errors or left_out),
        ),
        (
            min(1.0, float(np.quantile(ratios, tail))),
            max(1.0, float(np.quantile(ratios, 1 - tail))),
        ),
        windows,
        dict(subject or {}),
        tuple(samples),
    )


class _Form:
    """Which columns the fit has: knots beyond what was measured would be free to be anything."""

    def __init__(self, samples: Sequence[StepSample]) -> None:
        shapes = [one.shape for one in samples]
        self.largest = StepShape(*(max(column) for column in zip(*shapes, strict=True)))
        self.row_knots = _used(ROW_KNOTS, sorted({one.rows for one in shapes}))
        self.head_knots = _used(HEAD_KNOTS, sorted({s.logit_rows for s in shapes if s.logit_rows}))

    def columns(self, shapes: Sequence[StepShape]) -> Float64Array:
        """[shapes, columns]: base, slopes between row knots, head, its slopes, the linear terms."""
        table = np.array(shapes, float).reshape(len(shapes), 5)
        rows, sequences, attended, context, logit_rows = table.T
        has_head = (logit_rows > 0).astype(float)
        return np.stack(
            [
                np.ones(len(shapes)),
                *_slopes(rows, self.row_knots),
                has_head,
                *_slopes(np.maximum(logit_rows, 1), self.head_knots),
                sequences,
                attended,
                context,
            ],
            axis=1,
        )

    def step_times(self, coefficients: Float64Array, *rest: Any) -> StepTimes:
        values = coefficients.tolist()
        num_rows, num_head = len(self.row_knots), max(1, len(self.head_knots))
        rows, values = values[:num_rows], values[num_rows:]
        head, (per_sequence, per_attended, per_context) = values[:num_head], values[num_head:]
        return StepTimes(
            self.row_knots,
            _at_knots(rows, self.row_knots),
            self.head_knots or (1,),
            _at_knots(head, self.head_knots or (1,)),
            per_sequence,
            per_attended,
            per_context,
            self.largest,
            *rest,
        )


def _used(knots: Sequence[int], measured: Sequence[int]) -> tuple[int, ...]:
    """Of the knots, the first and those up to which something was measured beyond the last."""
    used = [knots[0]]
    for knot in knots[1:]:
        if any(used[-1] < one <= knot for one in measured):
            used.append(knot)
        elif not any(one > used[-1] for one in measured):
            break
    return tuple(used)


def _slopes(values: Float64Array, knots: Sequence[int]) -> list[Float64Array]:
    """How far each value has come in each interval; in the last one without an end."""
    columns = []
    for place, (low, high) in enumerate(itertools.pairwise(knots)):
        top = np.inf if place == len(knots) - 2 else high - low
        columns.append(np.clip(values - low, 0, top))
    return columns


def _at_knots(coefficients: Sequence[float], knots: Sequence[int]) -> tuple[float, ...]:
    seconds = [coefficients[0]]
    for slope, low, high in zip(coefficients[1:], knots, knots[1:], strict=False):
        seconds.append(seconds[-1] + slope * (high - low))
    return tuple(seconds)


def _interpolate(value: int, knots: tuple[int, ...], seconds: tuple[float, ...]) -> float:
    """Linear between knots; beyond the last one, on along the last slope."""
    if len(knots) == 1:
        return seconds[0]
    place = min(bisect_right(knots, value), len(knots) - 1)
    low, high = knots[place - 1], knots[place]
    slope = (seconds[place] - seconds[place - 1]) / (high - low)
    return seconds[place - 1] + slope * (value - low)
