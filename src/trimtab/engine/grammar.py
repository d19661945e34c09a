"""A grammar as the engine sees it: which tokens may come next, and which must.

Forced tokens and masks are functions of the grammar and of the tokens since it began, of nothing
else, so they are part of what a request asks for and not of how it is scheduled. The engine takes
forced tokens wherever there are any, before it asks for a mask:

    chosen | forced forced forced | chosen | chosen | forced forced | ...
           ^ `forced()` until it is empty  ^ one row each, under `mask`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Protocol

import numpy as np

from trimtab.engine.client import Grammar
from trimtab.errors import RequestError, TrimtabError
from trimtab.executors.base import UInt32Array


class GrammarError(TrimtabError):
    """A grammar that compiled cannot be followed any further: it is too costly, or no token of the
    model continues it. Ends the request that has it."""


class GrammarMatcher(Protocol):
    """One sequence's place in its grammar. Used by one thread at a time.

    Tokens are only ever appended; a matcher that also takes them back is what verifying drafts
    would need.
    """

    def consume(self, token_ids: Sequence[int]) -> None:
        """GrammarError if one of them does not follow; the matcher is useless from then on."""
        ...

    def forced(self) -> list[int]:
        """Tokens that must come next, all of one stretch of text; empty if there is a choice."""
        ...

    def fill(self, mask: UInt32Array) -> None:
        """Set the bits of the tokens that may come next in `mask`, [ceil(vocab / 32)], and clear
        the others. Tokens that end a completion are not among them: see `is_complete`."""
        ...

    @property
    def is_complete(self) -> bool:
        """The text so far is a whole one."""
        ...

    @property
    def is_over(self) -> bool:
        """It is, and nothing may follow."""
        ...


class GrammarCompiler(Protocol):
    def compile(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher at the start of the grammar. Blocks for two seconds at most, in any thread but
        one at a time. RequestError for a grammar that is invalid, too large or too costly."""
        ...

    def close(self) -> None: ...


class GrammarState:
    """What a request knows of its grammar."""

    def __init__(
        self, matcher: GrammarMatcher, after: Iterable[int], stop_ids: Iterable[int], vocab: int
    ) -> None:
        self.active = False  # it has begun
        self.mask: UInt32Array | None = None  # of the next token, once `prepare` has run
        self._matcher = matcher
        self._after = frozenset(after)
        self.active = not self._after
        self._vocab = vocab
        self._stop_mask = self._bits(stop_ids)
        self.seconds = 0.0  # that the latest mask took
        self._stretch: list[int] = []  # the rest of a forced stretch that was taken in part

    def consume(self, token_ids: Sequence[int]) -> None:
        """Tokens that were appended: one that was chosen, or all that were forced."""
        for index, token_id in enumerate(token_ids):
            if self.active:
                self._matcher.consume(token_ids[index:])
                return
            self.active = token_id in self._after

    def replay(self, token_ids: Sequence[int]) -> None:
        """Take tokens that an engine which is gone emitted. RequestError if it cannot have."""
        index = 0
        try:
            while index < len(token_ids):
                forced = self._matcher.forced() if self.active else []
                known = list(token_ids[index : index + len(forced)])
                if forced and forced[: len(known)] == known:
                    self.consume(known)
                    self._stretch = forced[len(known) :]
                    index += len(known)
                else:
                    self.consume(token_ids[index : index + 1])
                    index += 1
        except GrammarError:
            raise RequestError(
                f"completion_ids: token {index} does not follow the grammar", param="completion_ids"
            ) from None

    def forced(self) -> list[int]:
        """Tokens to append, and to `consume`, before the next one is chosen."""
        if not self.active:
            return []
        if self._stretch:
            stretch, self._stretch = self._stretch, []
            return stretch
        return self._matcher.forced()

    @property
    def is_over(self) -> bool:
        return self.active and self._matcher.is_over

    def prepare(self, unwanted: Iterable[int]) -> bool:
        """Make `mask`. False if the completion must end here.

        Stop tokens are allowed where the text is complete, or where the grammar itself has them.
        What is `unwanted` is not allowed, unless nothing else is. GrammarError if the text is not
        complete and nothing may follow. In any thread, while no other method runs.
        """
        if not self.active:
            self.mask = None
            return True
        started = perf_counter()
        mask = np.empty(-(-self._vocab // 32), np.uint32)
        self._matcher.fill(mask)
        self.seconds = perf_counter() - started
        is_complete = self._matcher.is_complete
        if not mask.any():
            if not is_complete:
                raise GrammarError("no token of this model continues the grammar's text")
            return False
        if is_complete:
            mask |= self._stop_mask
        unwanted = list(unwanted)
        if unwanted:
            wanted = mask & ~self._bits(unwanted)
            mask = wanted if wanted.any() else mask
        self.mask = mask
        return True

    def _bits(self, token_ids: Iterable[int]) -> UInt32Array:
        mask = np.zeros(-(-self._vocab // 32), np.uint32)
        for token_id in token_ids:
            mask[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        return mask
