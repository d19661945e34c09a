"""Everything that a run found, as one document: results.json, which the report is written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.bench.footprint import footprint
from trimtab.optimizer.cost import Cost, Traffic, cost_of
from trimtab.optimizer.entries import Entry, entry_json
from trimtab.optimizer.fingerprint import total_memory, versions
from trimtab.optimizer.measure import Measured
from trimtab.optimizer.plan import now
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.predict import token_seconds as seconds_of_tokens
from trimtab.optimizer.shortfall import infeasible_json
from trimtab.optimizer.usage import token_seconds

if TYPE_CHECKING:
    from trimtab.optimizer.found import Found

FORMAT = 1


def results_json(found: Found) -> dict[str, Any]:
    """Adds costs and accuracy to what the stages found."""
    for entry in found.entries.all:
        _price(found, entry)
    order, chosen = found.order, found.chosen
    machine = found.trials.plan(found.entries.all[0].candidate).machine
    return {
        "format": FORMAT,
        "version": versions(found.trials.device),
        "created": now(),
        "seconds": round(found.budget.spent, 1),
        "command": order.command,
        "model": {
            "name": order.model,
            "content": found.trials.model_hash,
            "architecture": found.spec.architecture,
            "parameters": footprint(found.spec, found.trials.base).parameters,
        },
        "machine": {
            "cpu": machine.cpu,
            "isa": machine.isa,
            "threads": found.machine.threads,
            "cores": found.num_cores,
            "memory_bytes": total_memory(),
            "device": machine.device,
            "gpu": machine.gpu,
            "driver": machine.driver,
            "gpu_memory_bytes": found.trials.device.memory_bytes or None,
            "read_bytes_per_s": found.machine.read_bytes_per_s,
            "macs_per_s": found.machine.macs_per_s,
            "noise": found.noise,
            "cores_apart": found.trials.apart,
            "fingerprint": machine.as_json(),
        },
        "need": need_json(found),
        "status": "not met" if chosen is None else "met",
        "headline": headline(found),
        "chosen": None if chosen is None else chosen.id,
        "default": None if found.default is None else found.default.id,
        "plan_path": str(order.plan_path),
        "candidates": [
            entry_json(one, found.entries, found.trials.base) for one in _in_order(found)
        ],
        "ladder": ladder_json(found),
        "accuracy": accuracy_json(found),
        "roofline": roofline_json(found),
        "sensitivity": found.sensitivity,
        "infeasible": None if chosen is not None else infeasible_json(found),
        "stages": [stage.as_json() for stage in found.budget.stages],
    }


def _in_order(found: Found) -> list[Entry]:
    """The choice first, then by what was found of them."""
    return sorted(
        found.entries.all,
        key=lambda e: (
            e is not found.chosen,
            e is not found.default,
            e.measured is None,
            -e.rate,
            -(e.predicted_rate or 0.0),
        ),
    )


def need_json(found: Found) -> dict[str, Any]:
    need = found.order.need
    sample = found.trials.workload(1.0, found.order.seed, 200.0)
    return {
        "slo": need.slo.as_text(),
        "quality": need.quality.as_text(),
        "workload": need.workload,
        "workload_description": sample.description,
        "rate": need.rate,
        "headroom": need.headroom if need.rate is None else None,
        "memory_bytes": need.memory_bytes,
        "price_per_hour": need.price_per_hour,
        "price_source": need.price_source,
        "objective": need.objective_text,
        "budget_seconds": found.order.budget_seconds,
    }


def _price(found: Found, entry: Entry) -> None:
    price = found.order.need.price
    seconds = token_seconds(found, entry)
    if seconds is None:
        return
    if entry.measured is not None and entry.rate > 0:
        points = [*entry.measured.repeats, *entry.measured.points]
        entry.cost = cost_of(price, entry.rate, _traffic(points), seconds)
    if entry.predicted is not None and entry.predicted_rate:
        traffic = _traffic([entry.predicted])
        entry.predicted_cost = cost_of(price, entry.predicted_rate, traffic, seconds)


def _traffic(points: list[LoadPoint]) -> Traffic:
    count = max(len(points), 1)
    return Traffic(
        *(
            sum(getattr(point.traffic, name) for point in points) / count
            for name in ("computed_input", "cached_input", "output")
        )
    )


def headline(found: Found) -> str:
    chosen, default = found.chosen, found.default
    workload = Path(found.order.need.workload).name
    if chosen is None:
        return (
            f"Nothing that was tried gives {workload} users of {found.order.model} what they "
            "need on this machine."
        )
    text = (
        f"{found.order.model} as {chosen.candidate.label} serves {found.rate:.3g} {workload} "
        "requests/s here"
    )
    if default is not None and default is not chosen:
        if default.measured is not None and default.rate > 0:
            how = _certainty(default.measured)
            text += f", {how}{chosen.rate / default.rate:.2g} times the defaults"
        else:
            text += ", and the defaults hold no rate"
    cost: Cost | None = chosen.cost
    if cost is not None:
        text += f", at {cost.per_million_output:.3g} per million output tokens"
    return text + "."


def _certainty(default: Measured) -> str:
    """Of a gain over the default: its rate may be higher than it was verified to be."""
    if default.repeats:
        return ""
    return "about " if default.missed else "up to "


def ladder_json(found: Found) -> list[dict[str, Any]]:
    """From the default to the choice, the variant first and then the ways to run it: the rates that
    nearly every load should hold, of those that were measured. What repeats lowered would compare
    with nothing."""
    chosen, default = found.chosen, found.default
    if chosen is None or default is None or not _expected(default):
        return []
    steps = [("default", default)]
    between = found.entries.find(chosen.candidate.unturned)
    if between is not None and between not in (default, chosen) and _expected(between):
        steps.append((f"+ {between.candidate.variant.label}", between))
    if chosen is not default:
        steps.append((f"+ {_last_label(steps[-1][1], chosen)}", chosen))
    rungs, before = [], _expected(default)
    for label, entry in steps:
        rate = _expected(entry)
        rungs.append(
            {
                "label": label,
                "id": entry.id,
                "rate": {"value": rate, "low": rate, "high": rate},
                "gain": rate / before,
            }
        )
        before = rate
    return rungs


def _last_label(before: Entry, chosen: Entry) -> str:
    """What is new in it."""
    if before.candidate.variant != chosen.candidate.variant:
        return chosen.candidate.label
    return chosen.candidate.label.partition("; ")[2] or chosen.candidate.label


def _expected(entry: Entry | None) -> float:
    return 0.0 if entry is None or entry.measured is None else entry.measured.expected


def accuracy_json(found: Found) -> dict[str, Any] | None:
    """Predictions against loads that nothing was fitted to: the same requests, simulated, on a
    machine that is as fast as usual, and on one as fast as it was meanwhile (`at_pace`)."""
    pairs: list[dict[str, Any]] = []
    for entry in found.entries.all:
        if entry.measured is None or found.predictor.calibration(entry.candidate) is None:
            continue
        for point in (*entry.measured.points, *entry.measured.repeats):
            is_new = (entry.id, point.rate, point.seed) not in found.taught
            if point.valid and point.met and is_new:
                pairs += _pairs(found, entry, point)
    if not pairs:
        return None
    errors: dict[str, Any] = {"loads": len({(p["id"], p["rate"], p["seed"]) for p in pairs})}
    errors |= _mean_errors(pairs, "predicted")
    errors["at_pace"] = _mean_errors(pairs, "at_pace")
    held_out = [
        calibration.step_times.errors.held_out
        for one in found.entries.all
        if (calibration := found.predictor.calibration(one.candidate)) is not None
    ]
    known = [error for error in held_out if error is not None]
    errors["steps_held_out"] = sum(known) / len(known) if known else None
    return {**errors, "pairs": pairs}


DRAWS = 3
METRICS = {
    "ttft_p50": ("ttft", "p50"),
    "itl": ("itl", "mean"),
    "e2e": ("e2e", "mean"),
}


def _mean_errors(pairs: list[dict[str, Any]], which: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for metric in (*METRICS, "throughput"):
        own = [abs(p[which] / p["measured"] - 1) for p in pairs if p["metric"] == metric]
        found[metric] = sum(own) / len(own) if own else None
    return found


def _pairs(found: Found, entry: Entry, point: LoadPoint) -> list[dict[str, Any]]:
    """What is to be expected of guesses is the mean of several draws."""
    predictor, candidate = found.predictor, entry.candidate
    lesson = predictor.lesson_at_pace(candidate, point)
    draws = range(DRAWS if candidate.scheduler.speculative != "off" else 1)
    predicted = [predictor.replay(candidate, point, None, draw) for draw in draws]
    at_pace = [predictor.replay(candidate, point, lesson, draw) for draw in draws]
    values = {
        name: (_mean(name, predicted), _mean(name, at_pace), _mean(name, [point]))
        for name in (*METRICS, "throughput")
    }
    return [
        {
            "id": entry.id,
            "metric": name,
            "rate": point.rate,
            "seed": point.seed,
            "predicted": guess,
            "at_pace": informed,
            "measured": real,
        }
        for name, (guess, informed, real) in values.items()
        if guess and informed and real
    ]


def _mean(name: str, points: Sequence[LoadPoint | None]) -> float | None:
    """None if one has no such value."""
    total = 0.0
    for point in points:
        value = None
        if point is not None and name == "throughput":
            value = point.output_tokens_per_s
        elif point is not None:
            metric, key = METRICS[name]
            value = point.latencies[metric][key]
        if value is None:
            return None
        total += value
    return total / len(points)


def roofline_json(found: Found) -> dict[str, Any] | None:
    chosen = found.chosen or found.default
    if chosen is None or chosen.measured is None or not chosen.measured.usage:
        return None
    usage = chosen.measured.usage
    size = found.footprint(chosen.candidate)
    macs = found.machine.linear_macs_per_s(size.layer_weights)
    points = []
    calibration = found.predictor.calibration(chosen.candidate)
    if calibration is not None:
        row_macs = size.layer_macs_per_token + size.head_macs_per_token
        for rows in (1, 4, 16, 64):
            seconds = seconds_of_tokens(calibration, rows, 256).output * rows
            moved = size.read_bytes_per_step + rows * 256 * size.kv_bytes_per_token
            points.append(
                {
                    "label": f"decode, {rows} stream{'s' if rows > 1 else ''}",
                    "intensity": rows * row_macs / moved,
                    "macs_per_s": rows * row_macs / seconds,
                }
            )
    if usage["bytes_per_second"] > 0:
        points.append(
            {
                "label": "under load",
                "intensity": usage["macs_per_second"] / usage["bytes_per_second"],
                "macs_per_s": usage["macs_per_second"],
            }
        )
    return {
        "read_bytes_per_s": found.machine.read_bytes_per_s,
        "macs_per_s": macs,
        "points": points,
    }


def plan_measurements(found: Found) -> dict[str, dict[str, float]]:
    """Of the choice, for the plan: rate, goodput and latencies over the repeats."""
    chosen = found.chosen
    if chosen is None or chosen.measured is None:
        return {}
    measured: dict[str, dict[str, float]] = {"rate": {"value": found.rate}}
    measured["load_seconds"] = {"value": found.load_seconds}
    measured["goodput"] = chosen.measured.interval
    for metric, key in (("ttft", "p50"), ("ttft", "p95"), ("itl", "p95"), ("e2e", "p95")):
        values = [point.latencies[metric][key] for point in chosen.measured.repeats]
        known = [value for value in values if value is not None]
        if known:
            measured[f"{metric}_{key}_seconds"] = {
                "value": sum(known) / len(known),
                "low": min(known),
                "high": max(known),
            }
    if chosen.cost is not None:
        for name, value in asdict(chosen.cost).items():
            measured[f"cost_{name}"] = {"value": value}
    return measured
