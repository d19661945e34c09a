"""The figures of the first screen: what it serves, what it costs, what was given up, how sure."""

from __future__ import annotations

from dataclasses import dataclass, field

from trimtab.optimizer.report.choice import (
    TermRow,
    latency_rows,
    operating_points,
    quality_rows,
    ratio,
    shown_plan,
)
from trimtab.optimizer.report.formatting import (
    bounds,
    duration,
    given,
    interval,
    optional,
    percent,
    plain,
    times,
)
from trimtab.optimizer.report.measurements import Candidate, Interval, Number, Quality
from trimtab.optimizer.report.results import Results

_ERRORS = (
    ("ttft_p50", "median time to first token"),
    ("itl", "time between tokens"),
    ("e2e", "whole answer"),
    ("throughput", "throughput"),
    ("steps_held_out", "step times, held out"),
)


@dataclass(frozen=True)
class Figure:
    """A large number, what stands behind it, and the finer ones."""

    title: str
    value: str  # empty: not known, and `missing` says why
    unit: str = ""
    bounds: str = ""
    notes: list[str] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)
    missing: str = ""
    predicted: bool = False


def headline(results: Results) -> str:
    if results.headline:
        return results.headline
    plan = shown_plan(results)
    if not results.is_met:
        return "No configuration that was tried meets the need."
    rate = interval(plan.rate) if plan else "–"
    return f"{plan.name if plan else results.chosen}: {rate} requests a second within the SLO."


def figures(results: Results) -> list[Figure]:
    plan = shown_plan(results)
    if plan is None:
        return []
    default = results.candidate(results.default)
    return [
        _serves(results, plan, default),
        _costs(results, plan, default),
        _given_up(plan, is_default=plan is default),
        _sure(results, plan),
    ]


def terms(results: Results) -> tuple[list[TermRow], str]:
    """Everything that was asked of the plan, and at which loads its latencies were measured."""
    plan = shown_plan(results)
    if plan is None:
        return [], ""
    points = operating_points(results, plan)
    note = ""
    if points:
        loads = "one load" if len(points) == 1 else f"{len(points)} loads: median (lowest–highest)"
        note = f"at {plain(points[0].rate)} requests a second, {loads}"
        if points[0].rate <= 0:
            note = f"of all {loads}" if len(points) > 1 else f"of {loads}"
    return [*latency_rows(results, plan), *quality_rows(plan)], note


def prediction_errors(results: Results) -> list[tuple[str, str]]:
    """(what, mean absolute error) of the predictions on this machine."""
    accuracy = results.accuracy
    if accuracy is None:
        return []
    found = [(name, getattr(accuracy, attribute)) for attribute, name in _ERRORS]
    return [(name, percent(error)) for name, error in found if error is not None]


def errors_at_pace(results: Results) -> list[tuple[str, str]]:
    """The same of predictions that know how fast the machine was during each load."""
    known = (results.accuracy.at_pace if results.accuracy else None) or {}
    found = [(name, known.get(attribute)) for attribute, name in _ERRORS]
    return [(name, percent(error)) for name, error in found if error is not None]


def _serves(results: Results, plan: Candidate, default: Candidate | None) -> Figure:
    rate = plan.rate
    predicted = not plan.is_measured
    notes = []
    if results.need.rate is not None:
        notes.append(f"asked: {given(results.need.rate)} requests a second")
    elif results.need.headroom:
        notes.append(f"{percent(results.need.headroom)} of what it holds is kept free")
    gain = ratio(rate, default.rate if default else None)
    if default is not None and default is not plan and gain is not None:
        theirs = interval(default.rate, predicted=not default.is_measured)
        is_verified = default.measured is not None and default.measured.repeats != 0
        how = "" if is_verified else ", not verified"
        notes.append(f"{times(gain)} the default, which serves {theirs}{how}")
    return Figure(
        "It serves",
        _large(rate),
        "requests a second within the SLO",
        bounds(rate),
        notes,
        missing="The rate of this plan is not known.",
        predicted=predicted,
    )


def _costs(results: Results, plan: Candidate, default: Candidate | None) -> Figure:
    cost, need = plan.cost, results.need
    currency = f"{need.currency} " if need.currency else ""
    rows = [
        (name, interval(one))
        for name, one in (
            ("per million input tokens", cost.per_million_input),
            ("per million cached tokens", cost.per_million_cached),
            ("per thousand requests", _scaled(cost.per_request, 1000)),
        )
        if one is not None
    ]
    notes = []
    if default is not None and default is not plan:
        gain = ratio(cost.per_million_output, default.cost.per_million_output)
        if gain is not None:
            theirs = interval(default.cost.per_million_output, predicted=not default.is_measured)
            notes.append(f"{percent(gain)} of what the default costs, {theirs}")
    if need.price_per_hour is None:
        notes += [f"price {need.price_source}"] if need.price_source else []
    else:
        source = f" ({need.price_source})" if need.price_source else ""
        notes.append(f"at {currency}{given(need.price_per_hour)} an hour{source}")
    energy = plan.measured.energy_joules_per_token if plan.measured else None
    if energy is not None:
        rows.append(("energy", f"{interval(energy)} J per output token"))
    return Figure(
        "It costs",
        currency + _large(cost.per_million_output) if cost.per_million_output else "",
        "per million output tokens",
        bounds(cost.per_million_output),
        notes,
        rows,
        missing="No cost is known: give your price with --price-per-hour."
        if need.price_per_hour is None
        else "None can be given: nothing is served within the SLO.",
        predicted=not plan.is_measured,
    )


def _given_up(plan: Candidate, *, is_default: bool) -> Figure:
    quality = plan.quality
    title = "What was given up"
    if quality is None or quality.top1 is None:
        missing = "The quality of this plan was not measured."
        if is_default and quality is None:
            missing = "Nothing: it is the default, whose quality was not measured again."
        return Figure(title, "", missing=missing)
    notes = [] if quality.verdict is None else [f"against the quality asked: {quality.verdict}"]
    if quality.windows is not None:
        notes.append(f"over {quality.windows:,} windows of text")
    return Figure(
        title,
        percent(quality.top1.value),
        "same most likely token as the unmodified model",
        bounds(quality.top1, percent),
        notes,
        _quality_numbers(quality),
    )


def _quality_numbers(quality: Quality) -> list[tuple[str, str]]:
    base = quality.tasks.base if quality.tasks else None
    numbers = (
        ("KL divergence, mean, nats a token", interval(quality.kl_mean), quality.kl_mean),
        ("KL divergence, p99", interval(quality.kl_p99), quality.kl_p99),
        (
            "perplexity over that of the unmodified model",
            interval(quality.ppl_ratio, _exact_times),
            quality.ppl_ratio,
        ),
        ("tasks solved", interval(quality.tasks, percent), quality.tasks),
        ("tasks solved by the unmodified model", optional(base, percent), base),
    )
    return [(name, shown) for name, shown, number in numbers if number is not None]


def _exact_times(value: float) -> str:
    return f"{value:.3f}"


def _sure(results: Results, plan: Candidate) -> Figure:
    measured = plan.measured
    notes = []
    num_measured = sum(one.is_measured for one in results.candidates)
    notes.append(f"{len(results.candidates):,} configurations considered, {num_measured} measured")
    if results.machine.noise is not None:
        notes.append(f"noise of this machine: {percent(results.machine.noise)}")
    if results.machine.cores_apart:
        apart = percent(results.machine.cores_apart)
        notes.append(f"its cores were moved apart for {apart} of the time, and steps took longer")
    errors = prediction_errors(results)
    rows = [(f"prediction error, {name}", error) for name, error in errors]
    if errors:
        notes.append(f"predictions off by {errors[0][1]} here ({errors[0][0]})")
    else:
        notes.append("the error of the predictions on this machine is not known")
    points = operating_points(results, plan)
    asked = [one.requests for one in points if one.requests is not None]
    if asked:
        rows.insert(0, ("requests behind the latencies", f"{sum(asked):,}"))
    if plan.is_measured and measured is not None:
        repeats = measured.repeats
        length = max((one.seconds or 0.0 for one in points), default=0.0)
        each = f", of {duration(length)} each" if length else ""
        return Figure(
            "How sure",
            "measured" if repeats is None else f"{repeats}",
            "" if repeats is None else f"measured repeat{'s' * (repeats != 1)} of this plan{each}",
            "",
            notes,
            rows,
        )
    return Figure("How sure", "predicted", "only: this plan was not measured", "", notes, rows)


def _large(number: Number) -> str:
    return "" if number is None else plain(number.value)


def _scaled(number: Number, factor: float) -> Number:
    if number is None:
        return None
    low = None if number.low is None else number.low * factor
    return Interval(
        number.value * factor, low, None if number.high is None else number.high * factor
    )
