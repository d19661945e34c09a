"""A guess at the tokens that follow those of one request."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.engine.grammar import GrammarState
from trimtab.engine.request import Request
from trimtab.executors.base import UInt32Array

NUM_CONFIDENCES = 16


class Draft:
    """The draft of one request in one step: it begins behind the last of the request's tokens.

    request.token_ids | t0 t1 ... tn |
    draft.token_ids                   | d0 d1 d2 |
    chosen by the target at       tn ^  ^  ^  ^    one row more than there are tokens
    """

    __slots__ = (
        "_grammar",
        "_wants",
        "confidences",
        "limit",
        "masks",
        "proposer",
        "request",
        "survivals",
        "token_ids",
    )

    def __init__(self, request: Request, limit: int, wants: Callable[[Draft], bool]) -> None:
        """`wants` is told of each token, and tells whether the draft is worth another."""
        self.request = request
        self.limit = limit
        self.token_ids: list[int] = []
        self.confidences: list[int] = []  # of each token
        # Behind each of its tokens, what the request's grammar allows there; None: anything.
        self.masks: list[UInt32Array | None] = []
        self.proposer = 0  # whose it is: an index
        # Of each token, the probability that it and all before it are right.
        self.survivals: list[float] = []
        self._wants = wants
        self._grammar: GrammarState | None = None  # ahead of the request's

    def __len__(self) -> int:
        return len(self.token_ids)

    def add(self, token_id: int, confidence: int) -> bool:
        """Append a token; whether another one is wanted.

        `confidence`, in [0, NUM_CONFIDENCES), is the proposer's own ordinal class of how sure it is
        of this token if those before it were right. How often each class is right is measured.
        """
        request, mask = self.request, None
        if token_id in request.stop_ids:
            return False  # nothing follows it: the row that chooses it is there already
        if request.grammar is not None:
            self._grammar = self._grammar or request.grammar.fork()
            if not self._grammar.guess(token_id):
                return False
            mask = self._grammar.mask
        self.token_ids.append(token_id)
        self.confidences.append(confidence)
        self.masks.append(mask)
        return self._wants(self) and len(self.token_ids) < self.limit

    def cut(self, count: int) -> None:
        """Keep so many of its tokens."""
        del self.token_ids[count:], self.confidences[count:], self.masks[count:]
        del self.survivals[count:]
