"""Small workloads with texts for tests of the load generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.bench.load import LoadOptions, LoadRun, run_load
from trimtab.bench.load_target import Target
from trimtab.workloads.requests import Piece, PlannedRequest, Workload


def words(pieces: Sequence[Piece]) -> str:
    """A word is a token of the mock server."""
    return " ".join(f"{piece.key}-{n}" for piece in pieces for n in range(piece.length)) + " "


def open_loop(
    times: Sequence[float], num_output_tokens: int = 4, prompt: int = 5, seed: int = 0
) -> Workload:
    requests = tuple(
        PlannedRequest(
            index,
            at,
            (Piece(f"p{seed}-{index}", prompt),),
            num_output_tokens,
            session=index,
            num_prompt_tokens=prompt,
        )
        for index, at in enumerate(times)
    )
    rate = len(times) / max(times[-1], 1e-3)
    return Workload("test", requests, rate, None, seed)


def closed_loop(count: int, concurrency: int, num_output_tokens: int = 4) -> Workload:
    opened = open_loop([0.0] * count, num_output_tokens)
    return Workload("test", opened.requests, None, concurrency, 0)


def sessions(count: int, turns: int, pause: float, chat: bool = False) -> Workload:
    requests = []
    for session in range(count):
        for turn in range(turns):
            index = len(requests)
            text = f"question {session}.{turn}" if chat else None
            pieces = () if chat else (Piece(f"s{session}t{turn}", 4),)
            at = 0.02 * session if turn == 0 else pause
            follows = index - 1 if turn else None
            requests.append(
                PlannedRequest(index, at, pieces, 3, session=session, follows=follows, text=text)
            )
    return Workload("talk", tuple(requests), float(count), None, 0)


def load(url: str, workload: Workload, **options: Any) -> LoadRun:
    """Without a warm-up, unless it is asked for."""
    arguments: dict[str, Any] = {
        name: options.pop(name) for name in ("slo", "count_tokens", "progress") if name in options
    }
    target = Target(url, **{k: options.pop(k) for k in ("route", "api_key") if k in options})
    settings = LoadOptions(**{"warm_up": 0, "request_seconds": 20.0, **options})
    return run_load(target, workload, make_text=words, options=settings, **arguments)
