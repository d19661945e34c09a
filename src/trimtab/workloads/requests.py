"""What is to be asked, and when: the same for a load on a server and for a simulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt. Pieces of the same key and length are the same tokens: a system prompt
    that requests share, a document that several ask about."""

    key: str
    length: int  # tokens, at least 1


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request, or one turn of a session.

    A later turn's prompt is the whole conversation before it (prompts and answers of the turns that
    it follows), then its own pieces.
    """

    index: int  # its place in the workload
    at: float  # seconds from the start of the load; of a later turn, from the previous one's end
    pieces: tuple[Piece, ...]
    num_output_tokens: int  # exactly so many are to be generated, or at most with a user's own text
    session: int = 0
    follows: int | None = None  # index of the turn before
    num_prompt_tokens: int = 0  # of everything, the turns before included
    text: str | None = None  # a user's own prompt, instead of pieces
    messages: list[dict[str, Any]] | None = None  # or their own conversation
    options: dict[str, Any] = field(default_factory=dict)  # sampling fields of the API


@dataclass(frozen=True)
class Workload:
    """A stream of requests. `requests` are in the order of their index; first turns in the order of
    their times."""

    name: str
    requests: tuple[PlannedRequest, ...]
    rate: float | None  # requests a second that are offered (open loop); None: closed loop
    concurrency: int | None  # sessions at once (closed loop); then `at` of first turns is 0
    seed: int
    description: dict[str, Any] = field(default_factory=dict)  # what it was made of, for reports

    @property
    def duration(self) -> float:
        """Seconds from the start to the last first turn; 0 of a closed loop."""
        return max((one.at for one in self.requests if one.follows is None), default=0.0)
