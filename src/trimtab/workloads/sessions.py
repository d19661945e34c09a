"""Sessions before they have a time: turns of pieces and answers, cut so that they fit a context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.workloads.requests import Piece, PlannedRequest


@dataclass(frozen=True)
class Turn:
    pieces: tuple[Piece, ...]
    num_output_tokens: int
    pause: float = 0.0  # seconds after the turn before; of a first turn, nothing
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    own_length: int = 0  # tokens of a text or messages, estimated

    @property
    def length(self) -> int:
        return sum(piece.length for piece in self.pieces) + self.own_length


def conversation_length(session: Sequence[Turn]) -> int:
    return sum(turn.length + turn.num_output_tokens for turn in session)


def fit(session: Sequence[Turn], max_context: int) -> list[Turn]:
    """The session so that prompts and answers, the whole conversation, have at most `max_context`
    tokens (0: any): a later turn that no longer fits ends it; of a first turn the answer gets at
    most half and the prompt loses its end. What users wrote themselves stays whole."""
    if not max_context or conversation_length(session) <= max_context:
        return list(session)
    first = session[0]
    output = first.num_output_tokens
    if first.length + output > max_context:
        output = max(1, min(output, max(max_context // 2, max_context - first.length)))
    kept = [
        replace(
            first,
            num_output_tokens=output,
            pieces=_trimmed(first.pieces, max_context - output - first.own_length),
        )
    ]
    total = conversation_length(kept)
    for turn in session[1:]:
        total += turn.length + turn.num_output_tokens
        if total > max_context:
            break
        kept.append(turn)
    return kept


def _trimmed(pieces: tuple[Piece, ...], length: int) -> tuple[Piece, ...]:
    kept: list[Piece] = []
    for piece in pieces:
        if piece.length >= length:
            return (*kept, replace(piece, length=length)) if length > 0 else tuple(kept)
        kept.append(piece)
        length -= piece.length
    return tuple(kept)


def plan(
    sessions: Iterable[tuple[float, Sequence[Turn]]], first_index: int = 0
) -> list[PlannedRequest]:
    """(start, session) in the order of their starts -> requests, a session's turns in a row."""
    requests: list[PlannedRequest] = []
    for number, (start, session) in enumerate(sessions):
        history = 0
        for place, turn in enumerate(session):
            index = first_index + len(requests)
            prompt = history + turn.length
            requests.append(
                PlannedRequest(
                    index=index,
                    at=turn.pause if place else start,
                    pieces=turn.pieces,
                    num_output_tokens=turn.num_output_tokens,
                    session=number,
                    follows=index - 1 if place else None,
                    num_prompt_tokens=prompt,
                    text=turn.text,
                    messages=turn.messages,
                    options=turn.options,
                )
            )
            history = prompt + turn.num_output_tokens
    return requests
