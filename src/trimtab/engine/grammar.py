"""A grammar as the engine sees it: which tokens may come next, and which must.

Forced tokens and masks are functions of the grammar and of the tokens since it began, of nothing
else, so they are part of what a request asks for and not of how it is scheduled. The engine takes
forced tokens wherever there are any, before it asks for a mask:

    chosen | forced forced forced | chosen | chosen | forced forced | ...
           ^ `forced()` until it is empty  ^ one row each, under `mask`
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from time import thread_time
from typing import NamedTuple, Protocol

import numpy as np

from trimtab.engine.client import FinishReason, Grammar
from trimtab.errors import RequestError, TrimtabError
from trimtab.executors.base import UInt32Array


class GrammarError(TrimtabError):
    """A grammar that compiled cannot be followed any further: it is too costly, or no token of the
    model continues it. Ends the request that has it."""


class GrammarMatcher(Protocol):
    """One sequence's place in its grammar. Used by one thread at a time.

    What takes long must let other threads of the interpreter run meanwhile.
    """

    @property
    def forces_little(self) -> bool:
        """No stretch that it forces is long, and masks are quick."""
        ...

    def fork(self) -> GrammarMatcher:
        """Another one at the same place, for guessing ahead."""
        ...

    def consume(self, token_ids: Sequence[int]) -> None:
        """GrammarError if one of them does not follow; the matcher is useless from then on."""
        ...

    def forced(self) -> list[int]:
        """Tokens that must come next, all of one stretch of text, or the beginning of a very long
        one; empty if there is a choice."""
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


class Advance(NamedTuple):
    """Where a grammar has got to behind a chosen token."""

    token_ids: list[int]  # that it forces, to be appended
    reason: FinishReason | None = None  # why the completion ends there; None: `mask` is there


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
        self.seconds = 0.0  # of processor time that the latest `advance` took
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

    @property
    def can_guess(self) -> bool:
        """Whether `guess` may be used: it is quick."""
        return self._matcher.forces_little

    def advance(self, token_ids: Sequence[int], room: int, stop_ids: Collection[int]) -> Advance:
        """Take tokens that were chosen, then what is forced behind the last of them, up to `room`
        tokens and to the first of `stop_ids`, and make the mask. GrammarError as `consume`
        and `prepare`. In any thread, while no other method runs: it may take long."""
        started = thread_time()
        try:
            return self._advance(token_ids, room, stop_ids)
        finally:
            self.seconds = thread_time() - started

    def _advance(self, token_ids: Sequence[int], room: int, stop_ids: Collection[int]) -> Advance:
        self.consume(token_ids)
        taken: list[int] = []
        while tokens := self.forced():
            for forced in tokens:
                if forced in stop_ids:
                    return Advance(taken, "stop")
                taken.append(forced)
                if len(taken) == room:
                    return Advance(taken, "length")
            self.consume(tokens)
        is_over = self.is_over or not self._make_mask()
        return Advance(taken, "stop" if is_over else None)

    def prepare(self, unwanted: Iterable[int]) -> bool:
        """Make `mask`. False if the completion must end here.

        Stop tokens are allowed where the text is complete, or where the grammar itself has them.
        What is `unwanted` is not allowed, unless nothing else is. GrammarError if the text is not
        complete and nothing may follow. In any thread, while no other method runs.
        """
        can_go_on = self._make_mask()
        self.restrict(unwanted)
        return can_go_on

    def restrict(self, unwanted: Iterable[int]) -> None:
        """Take these out of `mask`, unless nothing would be left."""
        unwanted = list(unwanted)
        if unwanted and self.mask is not None:
            wanted = self.mask & ~self._bits(unwanted)
            self.mask = wanted if wanted.any() else self.mask

    def _make_mask(self) -> bool:
        """See `prepare`."""
        self.mask = None
        if not self.active:
            return True
        mask = np.empty(-(-self._vocab // 32), np.uint32)
        self._matcher.fill(mask)
        is_complete = self._matcher.is_complete
        if not mask.any():
            if not is_complete:
                raise GrammarError("no token of this model continues the grammar's text")
            return False
        self.mask = mask | self._stop_mask if is_complete else mask
        return True

    def fork(self) -> GrammarState:
        """A copy to `guess` with."""
        other = copy.copy(self)
        other._matcher = self._matcher.fork()
        other._stretch = list(self._stretch)
        return other

    def guess(self, token_id: int) -> bool:
        """Take a token as if it had been chosen, and make the mask of the next one. False, and no
        more is to be guessed, if the grammar does not allow it, or leaves no choice behind it: what
        it forces is not guessed."""
        if self.mask is not None and not self.mask[token_id >> 5] >> (token_id & 31) & 1:
            return False
        try:
            self.consume([token_id])
            return not self.is_over and not self.forced() and self.prepare(())
        except GrammarError:
            return False

    def _bits(self, token_ids: Iterable[int]) -> UInt32Array:
        mask = np.zeros(-(-self._vocab // 32), np.uint32)
        for token_id in token_ids:
            mask[token_id >> 5] |= np.uint32(1 << (token_id & 31))
        return mask
