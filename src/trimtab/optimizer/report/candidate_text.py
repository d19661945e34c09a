"""A candidate in words: what a picture says when one points at it, and the fate in the table."""

from __future__ import annotations

from trimtab.optimizer.report.formatting import (
    interval,
    num_bytes,
    percent,
    plain,
    seconds,
    setting,
)
from trimtab.optimizer.report.measurements import Candidate, LoadPoint
from trimtab.optimizer.report.results import Results


def standing(results: Results, candidate: Candidate) -> str:
    """How it is drawn: chosen, default, frontier, failed or dominated; the first that is true."""
    if candidate.id == results.chosen:
        return "chosen"
    if results.infeasible and candidate.id == results.infeasible.closest and not results.chosen:
        return "chosen"
    if candidate.id == results.default:
        return "default"
    if candidate.on_frontier:
        return "frontier"
    verdict = candidate.quality.verdict if candidate.quality else None
    return "failed" if verdict == "fail" else "dominated"


def shape_of(standing_: str) -> str:
    return {
        "chosen": "diamond",
        "default": "square",
        "frontier": "circle",
        "failed": "cross",
    }.get(standing_, "dot")


def fate(results: Results, candidate: Candidate) -> str:
    """Why it was not chosen, or that it was."""
    what = {"chosen": "chosen" if results.chosen else "closest to the need"}
    first = what.get(standing(results, candidate), "")
    if candidate.id == results.default:
        first = f"{first}, default" if first else "default"
    reason = candidate.dropped.reason if candidate.dropped else ""
    if not reason and candidate.measured and candidate.measured.failed:
        reason = f"failed: {candidate.measured.failed}"
    if not reason and not first and candidate.on_frontier:
        reason = "on the frontier: no other is better in everything"
    if not reason and not first:
        reason = f"not taken beyond the stage {candidate.stage!r}"
    if candidate.censored:
        reason = f"{reason} (cut short: it could no longer win)".strip()
    return ": ".join(filter(None, (first, reason)))


def described(results: Results, candidate: Candidate) -> str:
    """Several lines: the name, the numbers, what differs from the defaults."""
    predicted = not candidate.is_measured
    lines = [f"{candidate.name} [{candidate.id}]"]
    if candidate.rate is not None:
        kind = "predicted" if predicted else "measured"
        value = interval(candidate.rate, predicted=predicted)
        lines.append(f"{value} requests/s within the SLO, {kind}")
    if (cost := candidate.cost.per_million_output) is not None:
        lines.append(f"{interval(cost, predicted=predicted)} per million output tokens")
    if (quality := candidate.quality) is not None:
        parts = []
        if quality.top1 is not None:
            parts.append(f"top-1 {interval(quality.top1, percent)}")
        if quality.kl_mean is not None:
            parts.append(f"KL {interval(quality.kl_mean)}")
        if quality.verdict:
            parts.append(quality.verdict)
        lines.append("; ".join(parts))
    if (planned := candidate.memory.planned) is not None:
        lines.append(f"{num_bytes(planned)} of memory, planned")
    changes = [f"{key} = {setting(value)}" for key, value in candidate.changes.items()]
    lines.append("changed: " + ", ".join(changes) if changes else "nothing changed")
    lines.append(fate(results, candidate))
    return "\n".join(filter(None, lines))


def load_described(candidate: Candidate, point: LoadPoint) -> str:
    lines = [f"{candidate.name} [{candidate.id}]", f"offered {plain(point.rate)} requests/s"]
    if point.output_tokens_per_s is not None:
        lines.append(f"{interval(point.output_tokens_per_s)} output tokens/s")
    if point.attainment is not None:
        lines.append(f"{interval(point.attainment, percent)} of requests within the SLO")
    for metric in ("ttft", "itl", "e2e", "tpot", "stall"):
        latencies = {k: v for k, v in getattr(point, metric).items() if v is not None}
        if latencies:
            shown = ", ".join(f"{key} {interval(one, seconds)}" for key, one in latencies.items())
            lines.append(f"{metric.upper()} {shown}")
    if point.requests is not None:
        lines.append(f"{point.requests:,} requests")
    if not point.valid:
        lines.append("void: the load generator itself was too late")
    return "\n".join(lines)
