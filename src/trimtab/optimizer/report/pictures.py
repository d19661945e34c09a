"""The two pictures of the frontier: quality against cost, latency against throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.optimizer.report.candidate_text import described, load_described, shape_of, standing
from trimtab.optimizer.report.choice import LATENCY_NAMES, limit_of, percentile_of
from trimtab.optimizer.report.formatting import percent, plain, seconds
from trimtab.optimizer.report.measurements import Candidate, Interval, LoadPoint, Number, Quality
from trimtab.optimizer.report.results import Results
from trimtab.optimizer.report.svg import Plot, Scale

_ORDER = ("failed", "dominated", "frontier", "default", "chosen")  # the last is drawn on top
_SHORT = {"ttft": "First token", "itl": "Between tokens", "e2e": "Whole answer"}


@dataclass(frozen=True)
class Picture:
    """`svg`, or why there is none in `missing`."""

    title: str
    svg: str = ""
    missing: str = ""
    note: str = ""


def labelled(results: Results, standing_: str) -> str:
    if standing_ == "chosen" and not results.chosen:
        return "closest"
    return standing_ if standing_ in ("default", "chosen") else ""


def drawn_order(results: Results) -> list[Candidate]:
    return sorted(results.candidates, key=lambda one: _ORDER.index(standing(results, one)))


def quality_against_cost(results: Results) -> Picture:
    title = "Quality against cost"
    by_cost = any(one.cost.per_million_output for one in results.candidates)
    with_top1 = any(one.quality and one.quality.top1 for one in results.candidates)
    points: list[tuple[Candidate, Interval, Interval]] = []
    for candidate in drawn_order(results):
        cost = candidate.cost.per_million_output if by_cost else _machine_time(candidate.rate)
        quality = _quality_of(candidate.quality, with_top1)
        if cost is not None and quality is not None:
            points.append((candidate, cost, quality))
    if not points:
        return Picture(
            title,
            missing="No configuration has both a quality and a cost: a rate within the SLO.",
        )
    plot = Plot(
        _scale_with_intervals([cost for _, cost, _ in points]),
        Scale.of(_ends([quality for _, _, quality in points])),
        "Cost per million output tokens →" if by_cost else "Machine seconds per request →",
        "↑ Same top token as unmodified" if with_top1 else "KL divergence, nats (low is good)",
        y_format=percent if with_top1 else plain,
    )
    frontier = [
        (cost.value, quality.value)
        for candidate, cost, quality in points
        if candidate.on_frontier and candidate.is_measured
    ]
    plot.line(_staircase(frontier, up=with_top1), "frontier")
    for candidate, cost, quality in points:
        class_ = standing(results, candidate)
        hollow = "" if candidate.is_measured else " predicted"
        plot.mark(
            shape_of(class_),
            cost,
            quality,
            class_ + hollow,
            described(results, candidate),
            labelled(results, class_),
        )
    num_measured = sum(candidate.is_measured for candidate, _, _ in points)
    description = (
        f"{title} of {len(points)} configurations, {num_measured} of them measured. "
        "The table of configurations has the numbers."
    )
    return Picture(title, plot.svg(description), note=_cost_note(results, by_cost))


def latency_against_throughput(results: Results, metric: str) -> Picture:
    """One curve a measured configuration, through its loads."""
    percentile = percentile_of(results, metric)
    curves = []
    for candidate in drawn_order(results):
        points = candidate.measured.points if candidate.measured else []
        usable = [one for one in points if _is_usable(one, metric, percentile)]
        if usable:
            curves.append((candidate, sorted(usable, key=_throughput)))
    name = f"{_SHORT[metric]}, {percentile}"
    if not curves:
        return Picture(name, missing=f"No measured load has {metric}:{percentile}.")
    loads = [point for _, points in curves for point in points]
    limit = limit_of(loads, metric)
    latencies = [one.latency(metric, percentile) for one in loads]
    plot = Plot(
        Scale.fitting(_ends([one.output_tokens_per_s for one in loads])),
        Scale.fitting([*_ends(latencies), limit[1] if limit else None]),
        "Output tokens a second →",
        f"{LATENCY_NAMES[metric]}, {percentile} (low is good)",
        y_format=seconds,
    )
    if limit:
        plot.level(limit[1], "SLO")
    for candidate, points in curves:
        _draw_curve(plot, results, candidate, points, metric, percentile)
    description = (
        f"{name}, against output tokens a second, for {len(loads)} loads of "
        f"{len(curves)} measured configurations. The loads of the plan are in a table below."
    )
    return Picture(name, plot.svg(description))


def _draw_curve(
    plot: Plot,
    results: Results,
    candidate: Candidate,
    points: list[LoadPoint],
    metric: str,
    percentile: str,
) -> None:
    class_ = standing(results, candidate)
    ends = [(_throughput(one), one.latency(metric, percentile)) for one in points]
    plot.line([(x, y.value) for x, y in ends if y is not None], class_)
    for point in points:
        across, up = point.output_tokens_per_s, point.latency(metric, percentile)
        assert across is not None
        assert up is not None
        label = labelled(results, class_) if point is points[-1] else ""
        said = load_described(candidate, point)
        plot.mark(shape_of(class_), across, up, class_, said, label)


def _is_usable(point: LoadPoint, metric: str, percentile: str) -> bool:
    known = point.output_tokens_per_s is not None and point.latency(metric, percentile) is not None
    return known and point.valid


def _throughput(point: LoadPoint) -> float:
    return point.output_tokens_per_s.value if point.output_tokens_per_s else 0.0


def _machine_time(rate: Number) -> Number:
    """Seconds of the machine that a request takes, at the highest rate that meets the SLO."""
    if rate is None or rate.value <= 0:
        return None
    low = 1 / rate.high if rate.high else None
    return Interval(1 / rate.value, low, 1 / rate.low if rate.low else None)


def _quality_of(quality: Quality | None, with_top1: bool) -> Number:
    if quality is None:
        return None
    return quality.top1 if with_top1 else quality.kl_mean


def _ends(numbers: Sequence[Number]) -> list[float | None]:
    return [end for one in numbers if one for end in (one.value, one.low, one.high)]


def _scale_with_intervals(numbers: Sequence[Interval]) -> Scale:
    return Scale.fitting(_ends(numbers))


def _staircase(points: list[tuple[float, float]], *, up: bool) -> list[tuple[float, float]]:
    """The edge of what can be had: from left to right, only what is better than all before."""
    edge: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if edge and (y <= edge[-1][1] if up else y >= edge[-1][1]):
            continue
        if edge:
            edge.append((x, edge[-1][1]))
        edge.append((x, y))
    return edge


def _cost_note(results: Results, by_cost: bool) -> str:
    if by_cost:
        return "Cost at the highest rate that meets the SLO."
    return (
        "No price was given, so the cost is the machine's time at the highest rate within the SLO."
    )
