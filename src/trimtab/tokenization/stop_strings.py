"""Stop strings in a stream of text, one character at a time (Knuth, Morris, Pratt 1977)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StopMatch:
    stop: str
    end: int  # characters of the scanned text up to and including the stop string


def _failure_table(pattern: str) -> list[int]:
    """For each prefix of `pattern`, the length of its longest proper prefix that is its suffix."""
    table = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = table[length - 1]
        if pattern[i] == pattern[length]:
            length += 1
        table[i] = length
    return table


class StopMatcher:
    """Finds the stop string that is completed first; of several completed by the same character,
    the longest. The answer depends on the text alone, never on how it was cut into pieces.

    Constant time for each character and stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(stop == "" for stop in stops):
            raise ValueError("a stop string must not be empty")
        # Longest first, so that the first to match is the one to report.
        self._stops = sorted(set(stops), key=lambda stop: (-len(stop), stop))
        self._tables = [_failure_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)

    @property
    def num_held(self) -> int:
        """Length of the longest end of the text so far that may be the start of a stop string."""
        return max(self._matched, default=0)

    def scan(self, text: str) -> StopMatch | None:
        """Continue with `text`. After a match the matcher is done and must not be used again."""
        if not self._stops:
            return None
        for position, character in enumerate(text):
            for i, stop in enumerate(self._stops):
                length = self._matched[i]
                while length and character != stop[length]:
                    length = self._tables[i][length - 1]
                if character == stop[length]:
                    length += 1
                if length == len(stop):
                    return StopMatch(stop, position + 1)
                self._matched[i] = length
        return None
