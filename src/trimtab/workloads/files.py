"""Workloads from files: whichever of the known formats it is, at its own times or at others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from trimtab.errors import UserError
from trimtab.workloads.arrivals import POISSON, Arrivals
from trimtab.workloads.file_lines import BadLine, at_line, json_object, lines_of
from trimtab.workloads.offering import (
    Load,
    finished,
    fitting,
    offered,
)
from trimtab.workloads.requests import Workload
from trimtab.workloads.sessions import Turn, conversation_length, plan
from trimtab.workloads.traces import Row, azure_rows, mooncake_rows
from trimtab.workloads.user_requests import read_user_requests

Timed = list[tuple[float | None, list[Turn]]]


def workload_from_file(
    path: Path, load: Load, seed: int, max_context: int, scale: float
) -> Workload:
    """See `make_workload`. Raises UserError with file and line."""
    form = _format(path)
    description: dict[str, Any] = {"source": {"file": path.name, "format": form}}
    sessions: Timed
    if form == "users' requests":
        sessions = list(read_user_requests(path))
        description["prompt_tokens_are"] = "estimated, four characters a token"
        if max_context:
            description["estimated_beyond_context"] = sum(
                conversation_length(session) > max_context for _, session in sessions
            )
        max_context = 0  # what users wrote stays as it is; the server says what does not fit
    else:
        rows = azure_rows(path) if form == "Azure trace" else mooncake_rows(path)
        kept, num_skipped = _read(rows, load)
        scale = _fitting_scale(kept, scale, max_context)
        prefix = f"{path.stem}/{seed}"
        sessions = [(row.time, [row.turn(prefix, n, scale)]) for n, row in enumerate(kept)]
        description |= {"scale": scale, "max_context": max_context, "skipped": num_skipped}
    if not sessions:
        raise UserError(f"{path}: no requests in it")
    return _timed_workload(path, sessions, load, seed, max_context, description)


def _format(path: Path) -> str:
    """By its first line."""
    number, line = next(lines_of(path), (0, ""))
    if not line:
        raise UserError(f"{path}: no requests in it")
    if "TIMESTAMP" in line and not line.startswith("{"):
        return "Azure trace"
    try:
        entry = json_object(line)
    except BadLine as problem:
        raise at_line(
            path,
            number,
            f"{problem}; a workload is JSON lines of prompts, a Mooncake trace (JSON lines), or an "
            "Azure trace (CSV with TIMESTAMP,ContextTokens,GeneratedTokens)",
        ) from None
    return "Mooncake trace" if "input_length" in entry else "users' requests"


def _read(rows: Iterable[Row | None], load: Load) -> tuple[list[Row], int]:
    """As many as the load can need, in the order of their times, and how many were empty."""
    most = load.count
    if most is None and load.rate is not None and load.duration is not None:
        most = 2 * round(load.rate * load.duration) + 1
    kept: list[Row] = []
    num_skipped = 0
    for row in rows:
        if row is None:
            num_skipped += 1
            continue
        kept.append(row)
        if most is not None and len(kept) >= most:
            break
    return sorted(kept, key=lambda row: row.time), num_skipped


def _fitting_scale(rows: Sequence[Row], scale: float, max_context: int) -> float:
    """`scale`, or as much less as lets 99 % of the requests fit."""
    totals = sorted(row.num_input + row.num_output for row in rows)
    if not totals or not max_context:
        return scale
    return min(scale, max_context / totals[int(0.99 * (len(totals) - 1))])


def _timed_workload(
    path: Path,
    sessions: Timed,
    load: Load,
    seed: int,
    max_context: int,
    description: dict[str, Any],
) -> Workload:
    times = [time for time, _ in sessions if time is not None]
    has_times = len(times) == len(sessions) > 1 and max(times) > min(times)
    if load.rate is None and load.concurrency is None and not has_times:
        raise UserError(
            f"{path}: its requests have no different times, so a rate (requests a second) or a "
            "concurrency (at once) is needed"
        )
    if has_times and load.concurrency is None and load.burstiness is None:
        return _replayed(path, sessions, load, seed, max_context, description)
    available = sum(len(session) for _, session in sessions)
    wanted = load.count or available
    if load.rate is not None and load.count is None and load.duration is not None:
        wanted = max(1, round(load.rate * load.duration))
    drawn: Iterable[list[Turn]] = (session for _, session in sessions)
    if wanted > available:
        description = {**description, "repeats": wanted / available}
        drawn = cycle(session for _, session in sessions)
    fitted, num_cut = fitting(drawn, wanted, max_context)
    arrivals: Arrivals = POISSON
    return offered(path.stem, fitted, arrivals, load, seed, {**description, "cut": num_cut})


def _replayed(
    path: Path,
    sessions: Timed,
    load: Load,
    seed: int,
    max_context: int,
    description: dict[str, Any],
) -> Workload:
    """At the recorded times, or those times stretched until the rate is as asked."""
    ordered = sorted(sessions, key=lambda one: one[0] or 0.0)
    starts = [time or 0.0 for time, _ in ordered]
    starts = [start - starts[0] for start in starts]
    num_requests = sum(len(session) for _, session in ordered)
    # The last start is one mean interval before the end.
    recorded = num_requests / (starts[-1] * len(starts) / (len(starts) - 1))
    stretch = recorded / load.rate if load.rate is not None else 1.0
    starts = [start * stretch for start in starts]
    if load.duration is not None:
        starts = [start for start in starts if start < load.duration]
    kept = [session for _, session in islice(ordered, len(starts))]
    most = load.count or num_requests
    fitted, num_cut = fitting(kept, most, max_context)
    requests = plan(zip(starts, fitted, strict=False))
    description = {
        **description,
        "cut": num_cut,
        "arrivals": "as recorded" if stretch == 1 else f"as recorded, times x {stretch:.4g}",
        "recorded_rate": recorded,
        "duration": starts[-1] if starts else 0.0,
    }
    return finished(path.stem, requests, load.rate or recorded, None, seed, description)
