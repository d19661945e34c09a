"""The pieces that a parsed output is made of, and what is shared by those who look for markers."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

WHITESPACE = " \t\r\n"


class Kind(enum.Enum):
    REASONING = "reasoning"
    CONTENT = "content"
    CALL_BEGIN = "call_begin"  # the text is the name
    ARGUMENTS = "arguments"
    CALL_END = "call_end"


class Piece(NamedTuple):
    kind: Kind
    text: str
    # Of content and reasoning, which are parts of the output as they stand: where it begins there.
    start: int = -1
    call: int = -1  # of the three kinds of a tool call: which one, from 0


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker` without being all of it."""
    first = marker[0]
    at = text.find(first, max(0, len(text) - len(marker) + 1))
    while at >= 0:
        if marker.startswith(text[at:]):
            return len(text) - at
        at = text.find(first, at + 1)
    return 0


def num_settled(text: str, markers: Sequence[str]) -> int:
    """How much of `text`, which has none of the markers in it, can no longer belong to one: a
    marker takes the white space before it along."""
    held = max((overlap(text, marker) for marker in markers), default=0)
    return len(text[: len(text) - held].rstrip(WHITESPACE))


def find_first(text: str, markers: Sequence[str]) -> tuple[int, str]:
    """Where the first of the markers stands, and which it is; (-1, "") without one."""
    best, found = -1, ""
    for marker in markers:
        at = text.find(marker)
        if at >= 0 and (best < 0 or at < best):
            best, found = at, marker
    return best, found
