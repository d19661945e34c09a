"""Reasoning: what a model thinks before it answers, between two markers at the start of its output.

A marker takes the white space around it along. The start marker may be missing when the prompt
has written it already; the end marker when the output ends early.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from trimtab.server.parsing.pieces import WHITESPACE, Kind, Piece, num_settled


@dataclass(frozen=True)
class ReasoningMarkers:
    start: str
    end: str


# By the name that `reasoning_parser` takes.
REASONING_MARKERS = {
    "think": ReasoningMarkers("<think>", "</think>"),  # Qwen 3, DeepSeek R1, SmolLM 3, GLM
    "magistral": ReasoningMarkers("[THINK]", "[/THINK]"),  # Mistral
    "cohere": ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    "seed": ReasoningMarkers("<seed:think>", "</seed:think>"),
    "thought": ReasoningMarkers("<|begin_of_thought|>", "<|end_of_thought|>"),
}


class _State(enum.Enum):
    LOOKING = 1  # for a start marker, behind white space at most
    OPENED = 2  # by the prompt; the model may repeat the marker
    INSIDE = 3
    BEHIND = 4  # white space after the end marker


class ReasoningStage:
    def __init__(self, markers: ReasoningMarkers, opened: bool) -> None:
        """`opened`: the prompt ends with the start marker."""
        self._markers = markers
        self._state = _State.OPENED if opened else _State.LOOKING
        self._held = ""
        self._written = False  # whether any reasoning is out

    @property
    def found(self) -> bool:
        return self._state in (_State.INSIDE, _State.BEHIND)

    def push(self, text: str, end: int, out: list[Piece]) -> str | None:
        """Take `text`, which ends at position `end` of the output. What is behind the reasoning,
        once there is some: the stage is done then. None until then."""
        held = self._held + text
        self._held = ""
        if self._state in (_State.LOOKING, _State.OPENED):
            rest = self._look(held)
            if rest is None or self._state is _State.LOOKING:
                return rest
            held = rest
        if self._state is _State.INSIDE:
            held = self._inside(held, end, out)
        if self._state is _State.BEHIND:
            return held.lstrip(WHITESPACE) or None
        self._held = held
        return None

    def finish(self, end: int, out: list[Piece]) -> str:
        """No text follows. What belongs to the next stage."""
        if self._state is _State.LOOKING:
            return self._held
        if self._state is not _State.BEHIND:
            text = self._held if self._written else self._held.lstrip(WHITESPACE)
            self._write(text, end - len(text), out)
        return ""

    def _look(self, held: str) -> str | None:
        """The text behind the start marker, or all of it if there is none (the state says which);
        None while that is open."""
        start = self._markers.start
        stripped = held.lstrip(WHITESPACE)
        if stripped.startswith(start):
            self._state = _State.INSIDE
            return stripped[len(start) :]
        if start.startswith(stripped):
            self._held = held
            return None
        if self._state is _State.OPENED:
            self._state = _State.INSIDE
        return held

    def _inside(self, held: str, end: int, out: list[Piece]) -> str:
        """What is still to be looked at; behind the end marker if the state says so."""
        if not self._written:
            held = held.lstrip(WHITESPACE)
        start = end - len(held)
        at = held.find(self._markers.end)
        if at >= 0:
            self._write(held[:at].rstrip(WHITESPACE), start, out)
            self._state = _State.BEHIND
            return held[at + len(self._markers.end) :]
        free = num_settled(held, (self._markers.end,))
        self._write(held[:free], start, out)
        return held[free:]

    def _write(self, text: str, start: int, out: list[Piece]) -> None:
        if text:
            self._written = True
            out.append(Piece(Kind.REASONING, text, start))
