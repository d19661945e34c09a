"""What no run of a variant can beat on this machine, and what follows from it before any trial.

Bounds are optimistic: every step at the measured bandwidth or arithmetic, nothing else. So what is
dropped here could not have met the need, and what is kept may still not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.bench.footprint import Footprint
from trimtab.bench.machine import MachineLimits
from trimtab.workloads.requests import Workload


@dataclass(frozen=True)
class Bounds:
    """Seconds, of one request alone on the machine."""

    decode_seconds: float  # of one token
    prefill_seconds_per_token: float
    rate: float  # requests a second of the workload, every batch as large as can be

    def ttft(self, num_prompt_tokens: int) -> float:
        return self.prefill_seconds_per_token * num_prompt_tokens + self.decode_seconds


def bounds_of(model: Footprint, machine: MachineLimits, workload: Workload) -> Bounds:
    """Prompt tokens count once, as if the prefix cache found all that it could ever find."""
    macs_per_s = machine.linear_macs_per_s(model.layer_weights)
    row_seconds = model.layer_macs_per_token / macs_per_s
    head_seconds = model.head_macs_per_token / macs_per_s
    new_tokens = sum(one.num_output_tokens + _own_tokens(one.pieces) for one in workload.requests)
    outputs = sum(one.num_output_tokens for one in workload.requests)
    seconds = new_tokens * row_seconds + outputs * head_seconds
    shared = _shared_tokens(workload)
    seconds -= shared * row_seconds
    count = len(workload.requests)
    return Bounds(
        decode_seconds=model.read_bytes_per_step / machine.read_bytes_per_s,
        prefill_seconds_per_token=row_seconds,
        rate=count / seconds if seconds > 0 else float("inf"),
    )


def _own_tokens(pieces: Sequence[object]) -> int:
    return sum(getattr(piece, "length", 0) for piece in pieces)


def _shared_tokens(workload: Workload) -> int:
    """Tokens of pieces that an earlier request had as well."""
    seen: set[tuple[str, int]] = set()
    shared = 0
    for request in workload.requests:
        for piece in request.pieces:
            if (piece.key, piece.length) in seen:
                shared += piece.length
            seen.add((piece.key, piece.length))
    return shared
