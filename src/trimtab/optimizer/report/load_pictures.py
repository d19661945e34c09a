"""What the chosen plan and the default do under load, and how far the predictions were off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trimtab.optimizer.report.candidate_text import load_described, shape_of
from trimtab.optimizer.report.choice import (
    LATENCY_NAMES,
    attainment_asked,
    limit_of,
    percentile_of,
    shown_plan,
)
from trimtab.optimizer.report.formatting import percent, plain, seconds, tick
from trimtab.optimizer.report.measurements import Candidate, Interval, LoadPoint, Number
from trimtab.optimizer.report.pictures import Picture
from trimtab.optimizer.report.results import Pair, Results
from trimtab.optimizer.report.svg import Plot, Scale

_LATENCIES = ("ttft", "itl", "e2e")


def compared(results: Results) -> list[tuple[Candidate, str, str]]:
    """(candidate, class, label) of the default and of the plan shown, where they were measured."""
    plan, default = shown_plan(results), results.candidate(results.default)
    found = []
    if default is not None and default is not plan:
        found.append((default, "default", "default"))
    if plan is not None:
        found.append((plan, "chosen", "chosen" if results.chosen else "closest"))
    return [one for one in found if one[0].measured and one[0].measured.points]


def load_pictures(results: Results) -> list[Picture]:
    return [_attainment(results), *(_latency(results, one) for one in _LATENCIES)]


def _attainment(results: Results) -> Picture:
    title = "Requests within the SLO"
    curves = _curves(results, lambda point: point.attainment)
    asked = attainment_asked(results)
    if not curves:
        return Picture(
            title, missing="No measured load at a rate has its share of requests within the SLO."
        )
    values = [one.value for _, _, _, points in curves for _, one in points]
    plot = Plot(
        _rates(results),
        Scale(max(0.0, min(*values, asked or 1.0, 0.9) - 0.04), 1.02),
        "Offered requests a second →",
        "↑ Share of requests",
        y_format=lambda value: f"{value * 100:.0f} %",
    )
    if asked is not None:
        plot.level(asked, f"asked: {tick(percent(asked))}")
    _draw(plot, curves)
    return Picture(title, plot.svg(f"{title} against offered requests a second. {_where()}"))


def _latency(results: Results, metric: str) -> Picture:
    percentile = percentile_of(results, metric)
    title = LATENCY_NAMES[metric]
    upper = _curves(results, lambda point: point.latency(metric, percentile))
    median = _curves(results, lambda point: point.latency(metric, "p50"))
    if not upper and not median:
        return Picture(title, missing=f"No measured load at a rate has {metric}:{percentile}.")
    loads = [
        one for candidate, _, _ in compared(results) for one in _points(candidate) if one.valid
    ]
    limit = limit_of(loads, metric)
    values: list[float | None] = [
        one.value for curves in (upper, median) for _, _, _, points in curves for _, one in points
    ]
    plot = Plot(
        _rates(results),
        Scale.fitting([*values, limit[1] if limit else None]),
        "Offered requests a second →",
        f"{percentile}; thin line: median (low is good)",
        y_format=seconds,
    )
    if limit:
        plot.level(limit[1], "SLO")
    if percentile != "p50":
        for candidate, class_, _, points in median:
            plot.line([(load.rate, one.value) for load, one in points], f"{class_} thin")
            for load, one in points:
                said = load_described(candidate, load)
                plot.mark("dot", Interval(load.rate), one, f"{class_} thin", said)
    _draw(plot, upper)
    return Picture(
        title,
        plot.svg(f"{title}, p50 and {percentile}, against offered requests a second. {_where()}"),
    )


_Curve = tuple[Candidate, str, str, list[tuple[LoadPoint, Interval]]]


def _curves(results: Results, value: Callable[[LoadPoint], Number]) -> list[_Curve]:
    curves = []
    for candidate, class_, label in compared(results):
        loads = [one for one in _points(candidate) if one.valid and one.rate > 0]
        points = sorted(loads, key=lambda one: one.rate)
        known = [(one, number) for one in points if (number := value(one)) is not None]
        if known:
            curves.append((candidate, class_, label, known))
    return curves


def _draw(plot: Plot, curves: Sequence[_Curve]) -> None:
    for candidate, class_, label, points in curves:
        plot.line([(load.rate, one.value) for load, one in points], class_)
        for load, one in points:
            said = load_described(candidate, load)
            last = label if load is points[-1][0] else ""
            plot.mark(shape_of(class_), Interval(load.rate), one, class_, said, last)


def _points(candidate: Candidate) -> list[LoadPoint]:
    return candidate.measured.points if candidate.measured else []


def _rates(results: Results) -> Scale:
    rates = [one.rate for candidate, _, _ in compared(results) for one in _points(candidate)]
    return Scale.fitting(rates)


def _where() -> str:
    return "The table of loads below has the numbers."


def parity_pictures(results: Results) -> list[Picture]:
    """Predicted against measured, one picture a metric; on the diagonal they agree."""
    pairs: dict[str, list[tuple[Pair, float, float]]] = {}
    for pair in results.accuracy.pairs if results.accuracy else []:
        predicted, measured = pair.predicted or 0.0, pair.measured or 0.0
        if predicted > 0 and measured > 0:
            pairs.setdefault(pair.metric, []).append((pair, predicted, measured))
    return [_parity(results, metric, points) for metric, points in pairs.items()]


def _metric_name(metric: str) -> str:
    base, _, statistic = metric.partition("_")
    name = LATENCY_NAMES.get(base, base.capitalize())
    return f"{name}, {statistic}" if statistic else name


def _parity(results: Results, metric: str, points: list[tuple[Pair, float, float]]) -> Picture:
    base = metric.split("_")[0].split(":")[0]
    form = seconds if base in LATENCY_NAMES else plain
    scale = Scale.of([one for _, x, y in points for one in (x, y)], log=True)
    plot = Plot(scale, scale, "Measured →", "↑ Predicted", x_format=form, y_format=form)
    plot.line([(scale.low, scale.low), (scale.high, scale.high)], "limit")
    error = sum(abs(x - y) / y for _, x, y in points) / len(points)
    for pair, predicted, measured in points:
        candidate = results.candidate(pair.id)
        said = f"{candidate.name if candidate else pair.id or metric}\n{metric}\n"
        said += f"predicted {form(predicted)}, measured {form(measured)}\n"
        said += f"off by {(predicted / measured - 1) * 100:+.0f} %"
        plot.mark("circle", Interval(measured), Interval(predicted), "frontier", said)
    title = f"{_metric_name(metric)}: {percent(error)} mean error"
    description = f"Predicted against measured {metric} for {len(points)} loads; mean absolute "
    return Picture(title, plot.svg(f"{description}error {percent(error)}."))
