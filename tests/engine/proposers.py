"""Proposers for tests: of any quality, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from engine_schedules import choose

from trimtab.engine.batch import BatchBuilder, Chooser
from trimtab.engine.block_pool import BlockPool
from trimtab.engine.request import Request
from trimtab.engine.scheduler import Chunk
from trimtab.engine.speculation.costs import StepCosts
from trimtab.engine.speculation.proposer import NUM_CONFIDENCES, Draft, Proposer
from trimtab.engine.speculation.speculator import Speculator
from trimtab.executors.base import StepResult

FREE = StepCosts({1: 1e3, 512: 1e3})  # rows cost nothing: every guess pays
QUICK = StepCosts({1: 1e-6, 512: 1e-6})  # of a draft model that costs nothing either


class Guesser:
    """Guesses what the target will choose, each token with probability `quality`, else anything."""

    priors = (0.5,) * NUM_CONFIDENCES
    needs_features = False

    def __init__(self, target: Any, quality: float, seed: int = 0, name: str = "lookup") -> None:
        self.name = name
        self.observed: list[tuple[Sequence[Chunk], StepResult]] = []
        self.forgotten: list[str] = []
        self.is_closed = False
        self._target = target
        self._quality = quality
        self._random = Random(seed)

    def start(self, pool: BlockPool) -> None:
        pass

    def guess_seconds(self, num_drafts: int) -> float:
        return 0.0

    def backlog(self, request: Request) -> int:
        return 0

    def propose(self, drafts: Sequence[Draft]) -> None:
        for draft in drafts:
            assert not draft.token_ids
            assert draft.limit >= 1
            if self._random.random() < 0.1:
                continue  # no idea
            while draft.add(self._guess(draft), self._random.randrange(NUM_CONFIDENCES)):
                pass

    def _guess(self, draft: Draft) -> int:
        if self._random.random() >= self._quality:
            return self._random.randrange(self._target.spec.vocab_size)
        known = [*draft.request.token_ids, *draft.token_ids]
        chooser = Chooser(draft.request, draft, len(draft))
        sampling = BatchBuilder().build_sampling([chooser], np.array([len(known)], np.int32))
        return choose(self._target, known, sampling)

    def observe(self, chunks: Sequence[Chunk], result: StepResult) -> None:
        self.observed.append((chunks, result))

    def forget(self, request: Request) -> None:
        self.forgotten.append(request.request_id)

    def close(self) -> None:
        self.is_closed = True


def always(*proposers: Proposer, max_draft_tokens: int = 4) -> Speculator:
    """Drafts wherever it can."""
    return Speculator(proposers, FREE, max_draft_tokens)
