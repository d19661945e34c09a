"""What a workload is like, in the figures that traces are compared by."""

from __future__ import annotations

from typing import Any

from trimtab.workloads.arrivals import dispersion, interval_variation
from trimtab.workloads.lengths import quantiles
from trimtab.workloads.requests import Piece, PlannedRequest, Workload

DISPERSION_WIDTHS = (1, 10, 60)  # seconds


def describe(workload: Workload) -> dict[str, Any]:
    """Lengths (mean and quantiles), turns, the variation of inter-arrival times and the index of
    dispersion of the counts of sessions (null of a closed loop, and of loads with fewer than five
    windows), and the share of prompt tokens that an infinite prefix cache finds (null for users'
    own texts, whose tokens are not known)."""
    starts = [one.at for one in workload.requests if one.follows is None]
    is_open = workload.rate is not None and bool(starts)
    return {
        "name": workload.name,
        "requests": len(workload.requests),
        "sessions": len(starts),
        "turns": len(workload.requests) / len(starts) if starts else 0.0,
        "rate": workload.rate,
        "concurrency": workload.concurrency,
        "prompt_tokens": quantiles([one.num_prompt_tokens for one in workload.requests]),
        "output_tokens": quantiles([one.num_output_tokens for one in workload.requests]),
        "interval_variation": interval_variation(starts) if is_open else None,
        "index_of_dispersion": {
            f"{width}s": dispersion(starts, workload.duration, width) if is_open else None
            for width in DISPERSION_WIDTHS
        },
        "cached_share": cached_share(workload),
        "made_of": workload.description,
    }


def cached_share(workload: Workload) -> float | None:
    """Prompt tokens that an infinite prefix cache has seen as a prefix, in the order of the
    requests' indices, as a share of all. None where prompts are texts."""
    if not workload.requests or any(not one.pieces for one in workload.requests):
        return None
    seen: dict[Any, Any] = {}  # a tree of pieces
    conversations: dict[int, tuple[Piece, ...]] = {}  # with its answer, of a request's index
    found = total = 0
    followed = {one.follows for one in workload.requests if one.follows is not None}
    for one in workload.requests:
        prompt = _history(one, conversations) + one.pieces
        total += one.num_prompt_tokens
        found += _walk(seen, prompt)
        if one.index in followed:
            answer = Piece(f"answer of {one.index}", one.num_output_tokens)
            conversations[one.index] = (*prompt, answer)
            _walk(seen, conversations[one.index])
    return found / total if total else None


def _history(one: PlannedRequest, conversations: dict[int, tuple[Piece, ...]]) -> tuple[Piece, ...]:
    return () if one.follows is None else conversations.pop(one.follows)


def _walk(seen: dict[Any, Any], pieces: tuple[Piece, ...]) -> int:
    """Adds a sequence of pieces to the tree; tokens of the pieces that it shares with it."""
    found, node, is_known = 0, seen, True
    for piece in pieces:
        is_known = is_known and piece in node
        found += piece.length if is_known else 0
        node = node.setdefault(piece, {})
    return found
