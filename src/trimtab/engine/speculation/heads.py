"""Drafts by a trained head on the target's hidden states: EAGLE-3, arXiv 2503.01840.

Row q of the head reads the features of position q and token q + 1, and guesses token q + 2. Behind
the last of its tokens a request has a chain of rows, each on the hidden state of the one before:

    tokens      | t0 t1 t2 t3 |          t3 was chosen last: its K and V are not computed yet
    features    | f0 f1 f2 |             of a step's rows, those that hold
    rows of the head    (f0, t1) (f1, t2) (f2, t3) -> d0;  (h2, d0) -> d1;  (h3, d1) -> d2 ...

The head's K and V lie in blocks with the ids of the target's. What a chain has written is written
again when the features are there. Rows are run when a request is to be drafted for; features wait
for that, up to a bound. A request whose first features are missing, because they were found in the
prefix cache or waited in vain, has a context that begins later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Protocol, cast

import numpy as np

from trimtab.engine.batch import BatchBuilder, Chooser, is_settled
from trimtab.engine.block_pool import BlockPool
from trimtab.engine.request import Request, RequestState
from trimtab.engine.scheduler import Chunk
from trimtab.engine.speculation.costs import StepCosts, measure_costs
from trimtab.engine.speculation.draft import Draft
from trimtab.engine.speculation.steps import Rows, greedy_sampling, next_batch, rows_batch
from trimtab.executors.base import (
    Executor,
    Float32Array,
    Int32Array,
    SamplingBatch,
    StepBatch,
    StepResult,
)
from trimtab.executors.cpu import CpuExecutor
from trimtab.executors.cpu_draft_head import CpuDraftHead

OVERHEAD_SECONDS = 100e-6  # of a step, around the executor
MAX_ROWS = 512  # that one proposal computes of what requests had before
MEASURED_SIZES = (1, 2, 4, 8, 16, 32)
MAX_WAITING_BYTES = 128 << 20  # of features

# What the head's own probability of a token must reach for each class but the first.
CLASSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


class DraftHead(Protocol):
    """What is needed of a head: see `trimtab.executors.cpu_draft_head`."""

    def execute(self, batch: StepBatch, inputs: Float32Array) -> StepResult: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _State:
    """The rows of a request: those before `origin` do not exist, [origin, num_computed) are
    computed, features of the next `num_waiting` wait."""

    request: Request
    origin: int  # a multiple of the block size
    num_computed: int
    num_preemptions: int  # the request's, when this was true
    features: list[Float32Array] = field(default_factory=list)
    num_waiting: int = 0
    is_wanted: bool = False  # a draft was, since features were last dropped

    @property
    def end(self) -> int:
        return self.num_computed + self.num_waiting


@dataclass(slots=True)
class _Rows:
    """Rows of one request in a step of the head."""

    state: _State
    position: int  # of the first
    token_ids: Sequence[int]


class HeadsProposer:
    """Implements `Proposer`. Owns the head, which has as many blocks as the target. Steps must give
    features: the target's, of the layers that the head reads."""

    name = "heads"
    needs_features = True
    priors = tuple(
        (low + high) / 2 for low, high in zip((0.0, *CLASSES), (*CLASSES, 1.0), strict=True)
    )

    def __init__(self, head: DraftHead, block_size: int, costs: StepCosts) -> None:
        """`costs`: of the head's steps."""
        self._head = head
        self._block_size = block_size
        self._costs = costs
        self._batches = BatchBuilder()
        self._states: dict[Request, _State] = {}
        self._waiting_bytes = 0

    def start(self, pool: BlockPool) -> None:
        self._pool = pool
        self._uses = [0] * pool.num_blocks  # of each block, `pool.uses` when it was computed here

    def guess_seconds(self, num_drafts: int) -> float:
        return OVERHEAD_SECONDS + self._costs.seconds(num_drafts)

    def backlog(self, request: Request) -> int:
        state = self._states.get(request)
        return 0 if state is None else state.num_waiting

    def propose(self, drafts: Sequence[Draft]) -> None:
        live, rows, inputs = self._catch_up(drafts)
        if not live:
            return
        batch = self._chosen_batch(live, rows)
        settled = all(is_settled(draft.request) for draft in live)
        while True:
            result = self._head.execute(batch, inputs)
            going_on: list[Draft] = []
            kept: list[int] = []  # of `live`
            for index, (draft, token, logprob) in enumerate(
                zip(live, result.tokens.tolist(), result.logprobs.tolist(), strict=True)
            ):
                if token >= 0 and draft.add(token, bisect_right(CLASSES, exp(logprob))):
                    going_on.append(draft)
                    kept.append(index)
            if not going_on:
                return
            assert result.features is not None
            inputs = result.features[batch.logit_rows[kept]]
            if settled and len(going_on) == len(live):
                batch = next_batch(batch, [draft.token_ids[-1] for draft in going_on])
                live = going_on
                continue
            states = [self._states[draft.request] for draft in going_on]
            # The row of a draft's last token lies before it.
            rows = [
                _Rows(state, draft.request.num_tokens + len(draft) - 2, draft.token_ids[-1:])
                for state, draft in zip(states, going_on, strict=True)
            ]
            live, batch = going_on, self._chosen_batch(going_on, rows)

    def observe(self, chunks: Sequence[Chunk], result: StepResult) -> None:
        if result.features is None:
            return
        end = 0
        for chunk in chunks:
            first, end = end, end + chunk.num_rows
            request = chunk.request
            if request.state is RequestState.RUNNING and request.completes:
                num_valid = request.num_computed_tokens - chunk.start
                self._keep(chunk, result.features[first : min(end, first + num_valid)])
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._make_room()

    def forget(self, request: Request) -> None:
        state = self._states.pop(request, None)
        if state is not None:
            self._waiting_bytes -= _num_bytes(state.features)

    def close(self) -> None:
        self._head.close()

    def _keep(self, chunk: Chunk, features: Float32Array) -> None:
        """Features of the chunk's rows from its start on."""
        request = chunk.request
        state = self._states.get(request)
        is_known = state is not None and state.num_preemptions == request.num_preemptions
        if state is None or not is_known or state.end != max(chunk.start, state.origin):
            self.forget(request)
            state = self._begin(request, chunk.start)
            self._states[request] = state
        features = features[max(0, state.end - chunk.start) :]
        if len(features):
            state.features.append(features)
            state.num_waiting += len(features)
            self._waiting_bytes += features.nbytes

    def _begin(self, request: Request, start: int) -> _State:
        """Of a request whose features are known from `start` on: its context begins with the blocks
        before that which this head has computed and which still hold what they held."""
        num_computed = self._next_block(start)
        index = num_computed // self._block_size
        while index and self._is_computed(request.block_ids[index - 1]):
            index -= 1
        return _State(request, index * self._block_size, num_computed, request.num_preemptions)

    def _is_computed(self, block_id: int) -> bool:
        return self._uses[block_id] == self._pool.uses(block_id)

    def _make_room(self) -> None:
        """Run what waits for requests that were drafted for; drop the rest."""
        for state in self._states.values():
            if state.is_wanted and state.request.state is RequestState.RUNNING:
                while state.num_waiting:
                    self._compute([self._take(state, MAX_ROWS)])
            else:
                self._waiting_bytes -= _num_bytes(state.features)
                state.origin = state.num_computed = self._next_block(state.end)
                state.features.clear()
                state.num_waiting = 0
            state.is_wanted = False

    def _catch_up(self, drafts: Sequence[Draft]) -> tuple[list[Draft], list[_Rows], Float32Array]:
        """The drafts that can be begun, and the rows to compute for the first guess of each.
        Requests that lack too much are brought nearer, and are not among them."""
        ready: list[Draft] = []
        taken: list[tuple[_Rows, Float32Array]] = []
        behind: list[tuple[_Rows, Float32Array]] = []
        budget = MAX_ROWS
        for draft in drafts:
            request = draft.request
            state = self._states.get(request)
            if state is None or state.num_preemptions != request.num_preemptions:
                continue
            state.is_wanted = True
            if not state.num_waiting or not budget or state.end != request.num_tokens - 1:
                continue
            own = self._take(state, budget)
            budget -= len(own[1])
            if state.num_waiting:
                behind.append(own)
            else:
                ready.append(draft)
                taken.append(own)
        if behind:
            self._compute(behind)
        if not taken:
            return [], [], np.zeros((0, 0), np.float32)
        return ready, [rows for rows, _ in taken], np.concatenate([given for _, given in taken])

    def _compute(self, taken: Sequence[tuple[_Rows, Float32Array]]) -> None:
        """Rows that nothing is chosen behind."""
        none = np.zeros(0, np.int32)
        batch = self._batch([rows for rows, _ in taken], greedy_sampling(none), none)
        self._head.execute(batch, np.concatenate([given for _, given in taken]))

    def _take(self, state: _State, count: int) -> tuple[_Rows, Float32Array]:
        """The first rows that wait, `count` at most, and their features. They count as computed."""
        waiting = np.concatenate(state.features) if len(state.features) > 1 else state.features[0]
        features, rest = waiting[:count], waiting[count:]
        first, stop = state.num_computed, state.num_computed + len(features)
        self._waiting_bytes -= features.nbytes
        state.features = [rest] if len(rest) else []
        state.num_waiting = len(rest)
        state.num_computed = stop
        self._mark(state.request, first, stop)
        return _Rows(state, first, state.request.token_ids[first + 1 : stop + 1]), features

    def _next_block(self, position: int) -> int:
        """The first position not below it that begins a block."""
        return -(-position // self._block_size) * self._block_size

    def _mark(self, request: Request, start: int, stop: int) -> None:
        """Blocks that rows [start, stop) fill up are computed."""
        for index in range(start // self._block_size, stop // self._block_size):
            block_id = request.block_ids[index]
            self._uses[block_id] = self._pool.uses(block_id)

    def _chosen_batch(self, drafts: Sequence[Draft], rows: Sequence[_Rows]) -> StepBatch:
        """These rows; something is chosen behind the last of each draft."""
        choosers = [Chooser(draft.request, draft, len(draft)) for draft in drafts]
        last_rows = np.cumsum([len(one.token_ids) for one in rows], dtype=np.int32) - np.int32(1)
        chosen = [draft.request.num_tokens + len(draft) for draft in drafts]
        sampling = self._batches.build_sampling(choosers, np.array(chosen, np.int32))
        sampling.num_logprobs = np.zeros(len(drafts), np.int32)
        batch = self._batch(rows, sampling, last_rows)
        batch.features = True
        return batch

    def _batch(
        self, rows: Iterable[_Rows], sampling: SamplingBatch, logit_rows: Int32Array
    ) -> StepBatch:
        """Positions count from each request's origin, and so do its blocks."""
        sequences = []
        for one in rows:
            origin, blocks = one.state.origin, one.state.request.block_ids
            own = blocks[origin // self._block_size :]
            sequences.append(Rows(one.token_ids, one.position - origin, own))
        return rows_batch(sequences, sampling, logit_rows)


class _Chain:
    """A head as an executor of rows like those of a chain, so that what they cost is measured."""

    def __init__(self, head: CpuDraftHead, target: CpuExecutor) -> None:
        self.capacity, self.spec = target.capacity, target.spec
        self._head = head

    def execute(self, batch: StepBatch) -> StepResult:
        size = self._head.spec.decoder.hidden_size
        return self._head.execute(batch, np.zeros((batch.num_rows, size), np.float32))


def measure_head(head: CpuDraftHead, target: CpuExecutor) -> StepCosts:
    """Nothing may be in the head's KV cache yet."""
    return measure_costs(cast(Executor, _Chain(head, target)), MEASURED_SIZES)


def _num_bytes(features: Iterable[Float32Array]) -> int:
    return sum(part.nbytes for part in features)
