"""How much of the machine a configuration uses, as shares of the measured ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trimtab.optimizer.cost import TokenSeconds
from trimtab.optimizer.entries import Entry
from trimtab.optimizer.points import LoadPoint
from trimtab.optimizer.predict import token_seconds as seconds_of_tokens
from trimtab.optimizer.served import Usage

if TYPE_CHECKING:
    from trimtab.optimizer.found import Found


def use_of(found: Found, entry: Entry, usage: Usage, points: Sequence[LoadPoint]) -> dict[str, Any]:
    """Over the repeats; between them the server idles, which counts as idle. What decodes read of
    the KV cache is estimated from the mean context of the requests."""
    size = found.footprint(entry.candidate)
    machine = found.machine
    seconds = max(usage.seconds, 1e-9)
    contexts = [
        p.traffic.computed_input + p.traffic.cached_input + p.traffic.output / 2 for p in points
    ]
    context = sum(contexts) / max(len(contexts), 1)
    kv_bytes = usage.num_output_tokens * context * size.kv_bytes_per_token
    read = usage.num_steps * size.read_bytes_per_step + kv_bytes
    macs = usage.num_rows * size.layer_macs_per_token
    macs += usage.num_output_tokens * size.head_macs_per_token
    tokens = usage.num_output_tokens + usage.num_prompt_tokens
    return {
        "cpu_use": usage.cpu_seconds / seconds / found.num_cores,
        "bandwidth_use": read / seconds / machine.read_bytes_per_s,
        "arithmetic_use": macs / seconds / machine.linear_macs_per_s(size.layer_weights),
        "executor_use": usage.execute_seconds / seconds,
        "rows_per_step": usage.num_rows / max(usage.num_steps, 1),
        "cached_share": usage.num_cached_tokens / max(usage.num_prompt_tokens, 1),
        "preemptions": usage.num_preemptions,
        "energy_joules_per_token": None if usage.joules is None else usage.joules / max(tokens, 1),
        "bytes_per_second": read / seconds,
        "macs_per_second": macs / seconds,
    }


def token_seconds(found: Found, entry: Entry) -> TokenSeconds | None:
    """What a token of each kind keeps the machine busy for, out of the measured steps, in batches
    as large as they were under load; the choice's where nobody counted this one's."""
    calibration = found.predictor.calibration(entry.candidate)
    if calibration is None:
        calibration = found.predictor.calibration(entry.candidate.unturned)
    measured = entry.measured
    points = [entry.predicted] if entry.predicted else []
    if measured is not None:
        points = [*measured.repeats, *measured.points]
    if calibration is None or not points:
        return None
    chosen = found.chosen.measured if found.chosen else None
    usage = (measured and measured.usage) or (chosen and chosen.usage) or {}
    context = points[0].traffic.computed_input + points[0].traffic.cached_input
    return seconds_of_tokens(calibration, usage.get("rows_per_step", 1.0), context)
