"""Drafts by lookup: what followed when the end of the text occurred before.

In the request's own prompt and completion, and, where that is asked for, in what other requests of
the same cache namespace were answered. Costs no forward pass; good where answers repeat: edits,
quotes, tables, code. The index is native (native/core/suffix_index.h).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.engine.block_pool import BlockPool
from trimtab.engine.request import Request
from trimtab.engine.scheduler import Chunk
from trimtab.engine.speculation.proposer import Draft
from trimtab.errors import ConfigError
from trimtab.executors.base import StepResult

if TYPE_CHECKING:
    from trimtab._native import SuffixIndex, TextLookup

STEP_TOKENS = 32_768  # taken in by one `propose` at most, some milliseconds; the rest waits


@dataclass(frozen=True)
class SharedLookup:
    """How much of finished answers is kept, each token in about 100 bytes of memory."""

    max_tokens: int = 65_536  # of a namespace, separators included; a full index is begun anew
    max_namespaces: int = 16  # the one that was not used for the longest time is dropped

    def __post_init__(self) -> None:
        if self.max_tokens < 2 or self.max_namespaces < 1:
            raise ValueError("max_tokens must be at least 2, max_namespaces at least 1")


class FinishedAnswers:
    """Indexes of finished completions, one for each cache namespace (`Request.cache_root`, which
    contains the cache salt), so that nobody's drafts, and with them their timing, depend on what
    others than their own tenant were answered."""

    def __init__(self, bounds: SharedLookup) -> None:
        from trimtab import _native

        self._native = _native
        self._bounds = bounds
        self._indexes: OrderedDict[bytes, SuffixIndex] = OrderedDict()  # least recently used first

    def add(self, request: Request) -> None:
        """Of a long completion, the beginning: at most half of a full index."""
        most = self._bounds.max_tokens // 2
        first = request.num_prompt_tokens
        tokens = request.token_ids[first : first + most]
        if not tokens:
            return
        tokens.append(self._native.TEXT_SEPARATOR)
        index = self.index_for(request)
        if index is None or index.num_tokens + len(tokens) > self._bounds.max_tokens:
            index = self._indexes[request.cache_root] = self._native.SuffixIndex()
            self._indexes.move_to_end(request.cache_root)
        while len(self._indexes) > self._bounds.max_namespaces:
            self._indexes.popitem(last=False)
        index.extend(tokens)

    def index_for(self, request: Request) -> SuffixIndex | None:
        index = self._indexes.get(request.cache_root)
        if index is not None:
            self._indexes.move_to_end(request.cache_root)
        return index


class LookupProposer:
    """A Proposer. What it knows of a request it learns when that wants a draft; its memory is about
    100 bytes a token of each live request that ever wanted one.

    Confidences are those of native/core/text_lookup.h. A single earlier occurrence of one token is
    enough for a draft: it says so through its confidence.
    """

    name = "lookup"
    needs_features = False
    # Held-out code and prose, repeated in nothing but their style; edits do better.
    priors = (
        *(0.11, 0.20, 0.32, 0.38, 0.44, 0.48, 0.56, 0.62),
        *(0.63, 0.73, 0.75, 0.81, 0.84, 0.89, 0.90, 0.96),
    )

    def __init__(self, shared: SharedLookup | None = None) -> None:
        """`shared`: also look into what other requests of the namespace were answered.

        Raises ConfigError where the native core is not built.
        """
        try:
            from trimtab import _native
        except ImportError:
            raise ConfigError(
                "speculative=lookup needs the native core, which is not built here: use "
                "speculative=off, or draft"
            ) from None
        self._native = _native
        self._lookups: dict[Request, TextLookup] = {}
        self._answers = None if shared is None else FinishedAnswers(shared)

    def start(self, pool: BlockPool) -> None:
        pass

    def guess_seconds(self, num_drafts: int) -> float:
        return 0.0

    def backlog(self, request: Request) -> int:
        return 0  # a few nanoseconds each

    def propose(self, drafts: Sequence[Draft]) -> None:
        lookups = []
        for draft in drafts:
            lookup = self._lookups.get(draft.request)
            if lookup is None:
                lookup = self._lookups[draft.request] = self._native.TextLookup()
            lookups.append(lookup)
        answers = self._answers
        found = self._native.look_up(
            lookups,
            [draft.request.token_ids for draft in drafts],
            [draft.limit for draft in drafts],
            None if answers is None else [answers.index_for(draft.request) for draft in drafts],
            STEP_TOKENS,
        )
        for draft, guess in zip(drafts, found, strict=True):
            if guess is None:
                continue
            for token_id, confidence in zip(*guess, strict=True):
                if not draft.add(token_id, confidence):
                    break

    def observe(self, chunks: Sequence[Chunk], result: StepResult) -> None:
        pass

    def forget(self, request: Request) -> None:
        self._lookups.pop(request, None)
        if self._answers is not None:
            self._answers.add(request)

    def close(self) -> None:
        self._lookups.clear()
        self._answers = None
