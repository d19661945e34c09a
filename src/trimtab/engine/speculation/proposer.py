"""What a proposer of drafts is.

A draft is a guess at the tokens that follow those of a request. It is verified by equality: the
target computes the draft's rows in one step, chooses at each of them as it would have anyway, and
the draft's tokens count up to the first that is not the chosen one. So nothing that a proposer
does can change an answer; a bad guess costs time only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trimtab.engine.block_pool import BlockPool
from trimtab.engine.request import Request
from trimtab.engine.scheduler import Chunk
from trimtab.engine.speculation.draft import NUM_CONFIDENCES, Draft
from trimtab.executors.base import StepResult

__all__ = ["NUM_CONFIDENCES", "Draft", "Proposer"]


class Proposer(Protocol):
    """Who guesses. Used by the engine's thread alone, between steps."""

    @property
    def name(self) -> str:
        """`lookup`, `draft`, `heads`: for settings and statistics."""
        ...

    @property
    def needs_features(self) -> bool:
        """Whether it observes `StepResult.features`."""
        ...

    @property
    def priors(self) -> Sequence[float]:
        """[NUM_CONFIDENCES] how often a token of each class is right: a guess that counts for a few
        tokens, until enough were measured."""
        ...

    def start(self, pool: BlockPool) -> None:
        """Before anything else. `pool` has the blocks that requests hold."""
        ...

    def guess_seconds(self, num_drafts: int) -> float:
        """How long another token of so many drafts will take, until that has been measured."""
        ...

    def backlog(self, request: Request) -> int:
        """Tokens of the request, about, that it would have to work through before its first guess,
        because it was not asked for them before."""
        ...

    def propose(self, drafts: Sequence[Draft]) -> None:
        """Add tokens to each draft that it has a guess for, until `add` says that no more are
        wanted. All of them are empty; none has a limit below 1; no request is there twice.

        The request's `block_ids` have room for its tokens and `limit` more.
        """
        ...

    def observe(self, chunks: Sequence[Chunk], result: StepResult) -> None:
        """A step has run and its tokens were taken: `chunk.request` has them, unless it is
        finished. `result` is of all the chunks' rows, drafts included. Called after every step,
        also those without drafts."""
        ...

    def forget(self, request: Request) -> None:
        """The request has ended: nothing of it is needed any more. Also called for requests that
        the proposer has never seen."""
        ...

    def close(self) -> None: ...
