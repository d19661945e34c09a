"""A smaller model of the same tokenizer that drafts for a larger one.

Its K and V lie in blocks with the ids of the target's: a request's block table serves both, and a
prefix that is found in the cache brings what the draft model had computed for it along. What it has
not computed of a request it computes when the request is first to be drafted for, a bounded number
of rows at a time.

It chooses with the target's own sampling parameters, seed and positions: where the two
distributions agree, the same noise makes them pick the same token, at any temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from trimtab.engine.batch import BatchBuilder, Chooser, is_settled
from trimtab.engine.block_pool import BlockPool
from trimtab.engine.request import Request
from trimtab.engine.scheduler import Chunk
from trimtab.engine.speculation.costs import StepCosts
from trimtab.engine.speculation.draft import NUM_CONFIDENCES, Draft
from trimtab.engine.speculation.steps import Rows, greedy_sampling, next_batch, rows_batch
from trimtab.executors.base import Executor, Int32Array, SamplingBatch, StepBatch, StepResult

OVERHEAD_SECONDS = 100e-6  # of a step, around the executor
MAX_ROWS = 512  # that one proposal computes of what requests had before


@dataclass(slots=True)
class _State:
    """What the draft model has computed of a request."""

    num_computed: int  # tokens, the first of `guessed` not among them
    guessed: list[int]  # tokens behind those, which were drafted and computed, right or wrong
    num_preemptions: int  # the request's, when this was true


class DraftModel:
    """Implements `Proposer`. Owns the executor, which has as many blocks as the target's."""

    name = "draft"
    needs_features = False
    # Confidence is the probability that the draft model itself gives the token.
    priors = tuple((index + 0.5) / NUM_CONFIDENCES for index in range(NUM_CONFIDENCES))

    def __init__(self, executor: Executor, vocab_size: int, costs: StepCosts) -> None:
        """`vocab_size`: the target's; the draft model's may be larger or smaller by what pads
        it. `costs`: of the executor's steps."""
        self._executor = executor
        self._costs = costs
        self._block_size = executor.capacity.block_size
        self._vocab_size = min(vocab_size, executor.spec.vocab_size)
        self._is_same_vocab = vocab_size == executor.spec.vocab_size
        self._max_context = executor.spec.max_context
        self._batches = BatchBuilder()
        self._states: dict[str, _State] = {}

    def start(self, pool: BlockPool) -> None:
        self._pool = pool
        self._uses = [0] * pool.num_blocks  # of each block, `pool.uses` when it was computed here

    def guess_seconds(self, num_drafts: int) -> float:
        return OVERHEAD_SECONDS + self._costs.seconds(num_drafts)

    def backlog(self, request: Request) -> int:
        state = self._states.get(request.request_id)
        if state is None or state.num_preemptions != request.num_preemptions:
            return request.num_tokens - 1 - self._num_in_blocks(request)
        return max(0, request.num_tokens - 1 - state.num_computed - len(state.guessed))

    def propose(self, drafts: Sequence[Draft]) -> None:
        live = [draft for draft in drafts if self._can_follow(draft)]
        rows = self._catch_up(live)
        live = [draft for draft in live if draft.request.request_id in rows]
        if not live:
            return
        batch = self._batch(live, [rows[draft.request.request_id] for draft in live])
        settled = not self._is_same_vocab or all(is_settled(d.request) for d in live)
        while True:
            result = self._executor.execute(batch)
            going_on: list[Draft] = []
            tokens: list[int] = []
            for draft, token, logprob in zip(
                live, result.tokens.tolist(), result.logprobs.tolist(), strict=True
            ):
                if not 0 <= token < self._vocab_size:
                    continue
                confidence = min(int(exp(logprob) * NUM_CONFIDENCES), NUM_CONFIDENCES - 1)
                position = draft.request.num_tokens + len(draft)
                if draft.add(token, confidence) and position + 1 < self._max_context:
                    going_on.append(draft)
                    tokens.append(token)
                    self._states[draft.request.request_id].guessed.append(token)
            if not going_on:
                return
            if settled and len(going_on) == len(live):
                batch = next_batch(batch, tokens)
            else:
                ends = [draft.request.num_tokens + len(draft) - 1 for draft in going_on]
                batch = self._batch(
                    going_on, [(end, [token]) for end, token in zip(ends, tokens, strict=True)]
                )
            live = going_on

    def observe(self, chunks: Sequence[Chunk], result: StepResult) -> None:
        pass

    def forget(self, request: Request) -> None:
        self._states.pop(request.request_id, None)

    def close(self) -> None:
        self._executor.close()

    def _can_follow(self, draft: Draft) -> bool:
        return draft.request.num_tokens < self._max_context

    def _catch_up(self, drafts: Sequence[Draft]) -> dict[str, tuple[int, list[int]]]:
        """By request id, (position, tokens) to compute before its first guess. Requests that lack
        too much are brought nearer, and are not among them."""
        ready: dict[str, tuple[int, list[int]]] = {}
        budget = MAX_ROWS
        behind: list[tuple[Draft, int, list[int]]] = []
        for draft in drafts:
            request = draft.request
            state = self._state(request)
            start = state.num_computed
            tokens = request.token_ids[start : start + budget].tolist()
            if not tokens or max(tokens) >= self._executor.spec.vocab_size:
                continue
            budget -= len(tokens)
            if start + len(tokens) == request.num_tokens:
                ready[request.request_id] = start, tokens
            else:
                behind.append((draft, start, tokens))
            state.num_computed = start + len(tokens)
            self._mark(request, start, state.num_computed)
        if behind:
            self._executor.execute(_batch(behind, _no_sampling(), np.zeros(0, np.int32)))
        return ready

    def _state(self, request: Request) -> _State:
        """Brought up to date with what became of its latest draft."""
        state = self._states.get(request.request_id)
        if state is None or state.num_preemptions != request.num_preemptions:
            state = _State(self._num_in_blocks(request), [], request.num_preemptions)
            self._states[request.request_id] = state
        tokens, position = request.token_ids, state.num_computed
        last = request.num_tokens - 1  # always computed anew: its logits are wanted
        for guessed in state.guessed:
            if position >= last or tokens[position] != guessed:
                break
            position += 1
        self._mark(request, state.num_computed, position)
        state.num_computed = min(position, last)
        state.guessed.clear()
        return state

    def _num_in_blocks(self, request: Request) -> int:
        """Leading tokens that this model has computed in blocks that still hold them."""
        num_blocks = 0
        for block_id in request.block_ids[: request.num_published_blocks]:
            if self._uses[block_id] != self._pool.uses(block_id):
                break
            num_blocks += 1
        return num_blocks * self._block_size

    def _mark(self, request: Request, start: int, stop: int) -> None:
        """Blocks that tokens [start, stop) fill up are computed."""
        for index in range(start // self._block_size, stop // self._block_size):
            block_id = request.block_ids[index]
            self._uses[block_id] = self._pool.uses(block_id)

    def _batch(self, drafts: Sequence[Draft], rows: Sequence[tuple[int, list[int]]]) -> StepBatch:
        """These rows, (position, tokens) of each draft; something is chosen behind each."""
        choosers = [Chooser(draft.request, draft, len(draft)) for draft in drafts]
        positions = np.array([start + len(tokens) for start, tokens in rows], np.int32)
        parts = [(d, start, tokens) for d, (start, tokens) in zip(drafts, rows, strict=True)]
        lengths = [len(tokens) for _, tokens in rows]
        last_rows = np.cumsum(lengths, dtype=np.int32) - np.int32(1)
        return _batch(parts, self._sampling(choosers, positions), last_rows)

    def _sampling(self, choosers: Sequence[Chooser], positions: Int32Array) -> SamplingBatch:
        count = len(choosers)
        if self._is_same_vocab:
            sampling = self._batches.build_sampling(choosers, positions)
        else:  # ids and masks would not fit: what is drafted against them is not accepted
            sampling = greedy_sampling(positions)
            params = [chooser.request.params for chooser in choosers]
            sampling.temperature = np.array([p.temperature for p in params], np.float32)
            sampling.top_k = np.array([max(p.top_k, 0) for p in params], np.int32)
            sampling.top_p = np.array([p.top_p for p in params], np.float32)
            sampling.min_p = np.array([p.min_p for p in params], np.float32)
            sampling.seeds = np.array([c.request.seed for c in choosers], np.uint64)
        sampling.num_logprobs = np.zeros(count, np.int32)
        return sampling


def _no_sampling() -> SamplingBatch:
    return greedy_sampling(np.zeros(0, np.int32))


def _batch(
    parts: Sequence[tuple[Draft, int, list[int]]], sampling: SamplingBatch, logit_rows: Int32Array
) -> StepBatch:
    """Of (draft, position, tokens)."""
    sequences = [Rows(tokens, start, d.request.block_ids) for d, start, tokens in parts]
    return rows_batch(sequences, sampling, logit_rows)
