"""From a step's plan to the flat arrays of a StepBatch."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from trimtab.engine.request import Request
from trimtab.engine.sampling_params import SamplingParams
from trimtab.engine.scheduler import Chunk
from trimtab.engine.speculation.draft import Draft
from trimtab.executors.base import Int32Array, SamplingBatch, StepBatch, UInt32Array

Key = TypeVar("Key")
Value = TypeVar("Value")
Span = tuple[int, int, int]  # rows of a chunk; of these, [first, last) need logits

_ONE = np.array(1, np.int32)


def logit_span(chunk: Chunk) -> tuple[int, int]:
    """[first, last) of the chunk's rows whose logits are needed: where a token is chosen, behind
    the last known one and behind each of the draft; and those whose next token is to be scored."""
    request = chunk.request
    if request.num_prompt_logprobs is None and not request.num_unscored:
        return chunk.count - (chunk.emits and request.chooses), chunk.num_rows
    owed, chooses = _owed_in(chunk), chunk.emits and request.chooses
    if not owed:
        return chunk.count - chooses, chunk.num_rows
    return owed.start, chunk.num_rows if chooses else owed.stop


def is_embedded(chunk: Chunk) -> bool:
    """Whether the hidden state of the chunk's last row is wanted."""
    return chunk.emits and chunk.request.embeds


def _owed_in(chunk: Chunk) -> range:
    """Rows of the chunk, counted from its start, whose next token is to be scored."""
    owed = chunk.request.owed_rows
    first, last = max(owed.start - chunk.start, 0), min(owed.stop - chunk.start, chunk.count)
    return range(first, last) if first < last else range(0)


class _Memo(Generic[Key, Value]):
    """What `make` gave for the latest key, made anew only when the key changes."""

    def __init__(self, make: Callable[[Key], Value]) -> None:
        self._make = make
        self._latest: tuple[Key, Value] | None = None

    def __call__(self, key: Key) -> Value:
        if self._latest is None or self._latest[0] != key:
            self._latest = key, self._make(key)
        return self._latest[1]


class _Decodes:
    """The latest batch, if nothing but its token ids, positions and blocks will change as long as
    the same requests go on to decode one token each."""

    def __init__(self, chunks: Sequence[Chunk], batch: StepBatch) -> None:
        self.requests = [chunk.request for chunk in chunks]
        self.next_starts = [chunk.start + 1 for chunk in chunks]
        self.next_positions = batch.sampling.positions
        self.seq_starts, self.logit_rows = batch.seq_starts, batch.logit_rows
        names = (name for name in SamplingBatch.__slots__ if name != "positions")
        self.sampling = {name: getattr(batch.sampling, name) for name in names}
        self.has_grammars = any(request.grammar is not None for request in self.requests)

    @staticmethod
    def are(chunks: Sequence[Chunk]) -> bool:
        for chunk in chunks:
            request = chunk.request
            if chunk.num_rows != 1 or not chunk.emits or not request.chooses or request.owed_rows:
                return False
            if _has_bans(request) or _has_penalties(request):
                return False
        return True

    def go_on(self, chunks: Sequence[Chunk]) -> bool:
        if len(chunks) != len(self.requests):
            return False
        for chunk, request, start in zip(chunks, self.requests, self.next_starts, strict=True):
            if chunk.request is not request or chunk.start != start or chunk.num_rows != 1:
                return False
            if request.num_unscored or not chunk.emits:
                return False  # its grammar forced tokens
        return True


class BatchBuilder:
    """From one step to the next most arrays stay the very same objects: while the same requests
    decode, all but token ids and positions; and whoever reads them need not look again.

    A step of a large model leaves nothing in the caches, so what counts here is how much code and
    memory a step touches, not how often.
    """

    def __init__(self) -> None:
        self._rows = _Memo(_row_arrays)
        self._tables = _Memo(_table_arrays)
        self._fixed = _Memo(_fixed_arrays)
        self._banned = _Memo(_ragged)
        self._outputs = _Memo(_ragged)
        self._decodes: _Decodes | None = None

    def build(self, chunks: Sequence[Chunk]) -> StepBatch:
        """The chunks in their order; logit rows ascending, `logit_span` of each in turn."""
        if self._decodes is not None and self._decodes.go_on(chunks):
            return self._build_next(chunks, self._decodes)
        batch = self._build_any(chunks)
        self._decodes = _Decodes(chunks, batch) if _Decodes.are(chunks) else None
        return batch

    def _build_next(self, chunks: Sequence[Chunk], decodes: _Decodes) -> StepBatch:
        """The position whose token was chosen is that of the token's row now."""
        token_ids = array("i", [chunk.request.token_ids[chunk.start] for chunk in chunks])
        positions = decodes.next_positions
        decodes.next_positions = positions + _ONE
        decodes.next_starts = [start + 1 for start in decodes.next_starts]
        block_starts, block_ids = self._block_tables(chunks)
        if decodes.has_grammars:
            masks = [request.mask for request in decodes.requests]
            decodes.sampling["mask_rows"], decodes.sampling["mask"] = _mask_arrays(masks)
        return StepBatch(
            _int32(token_ids),
            positions,
            decodes.seq_starts,
            block_starts,
            block_ids,
            decodes.logit_rows,
            SamplingBatch(positions=decodes.next_positions, **decodes.sampling),
        )

    def _block_tables(self, chunks: Sequence[Chunk]) -> tuple[Int32Array, Int32Array]:
        return self._tables(
            [(chunk.request.block_ids, len(chunk.request.block_ids)) for chunk in chunks]
        )

    def _build_any(self, chunks: Sequence[Chunk]) -> StepBatch:
        token_ids = array("i")
        for chunk in chunks:
            token_ids.extend(chunk.request.token_ids[chunk.start : chunk.start + chunk.count])
            if chunk.draft is not None:
                token_ids.extend(chunk.draft.token_ids)
        spans = [(chunk.num_rows, *logit_span(chunk)) for chunk in chunks]
        rows = self._rows(spans)
        starts = np.array([chunk.start for chunk in chunks], np.int32)
        positions = starts.take(rows.chunks) + rows.offsets
        chosen_positions = positions.take(rows.logit_rows) + _ONE
        block_starts, block_ids = self._block_tables(chunks)
        sampled: list[Chooser] = []
        for chunk, (_, first, last) in zip(chunks, spans, strict=True):
            sampled += _choosers(chunk, first, last)
        return StepBatch(
            token_ids=_int32(token_ids),
            positions=positions,
            seq_starts=rows.seq_starts,
            block_starts=block_starts,
            block_ids=block_ids,
            logit_rows=rows.logit_rows,
            sampling=self.build_sampling(sampled, chosen_positions),
            targets=_targets(chunks, spans),
            hidden_rows=_hidden_rows(chunks, rows.seq_starts),
        )

    def build_sampling(self, choosers: Sequence[Chooser], positions: Int32Array) -> SamplingBatch:
        """One row for each (chooser, position of the token to choose)."""
        requests = [chooser.request for chooser in choosers]
        banned_starts, banned_ids = self._banned(
            [_banned_ids(one) if _has_bans(one.request) else () for one in choosers]
        )
        output_starts, output_ids = self._outputs(
            [_output_ids(one) if _has_penalties(one.request) else () for one in choosers]
        )
        fixed = self._fixed(requests)
        if any(request.grammar is not None for request in requests):
            mask_rows, mask = _mask_arrays([chooser.mask for chooser in choosers])
            fixed = fixed | {"mask_rows": mask_rows, "mask": mask}
        return SamplingBatch(
            positions=positions,
            banned_starts=banned_starts,
            banned_ids=banned_ids,
            output_starts=output_starts,
            output_ids=output_ids,
            **fixed,
        )


class Chooser(NamedTuple):
    """A request whose next token is chosen as if it had the first `num_drafted` of its draft."""

    request: Request
    draft: Draft | None = None
    num_drafted: int = 0

    @property
    def mask(self) -> UInt32Array | None:
        if self.draft is None or not self.num_drafted or self.request.grammar is None:
            return self.request.mask
        return self.draft.masks[self.num_drafted - 1]

    @property
    def drafted_ids(self) -> list[int]:
        return self.draft.token_ids[: self.num_drafted] if self.draft is not None else []


@dataclass(frozen=True)
class _Rows:
    """What depends on how many rows each chunk brings, not on where it starts."""

    seq_starts: Int32Array
    chunks: Int32Array  # [num_rows] the row's chunk
    offsets: Int32Array  # [num_rows] its place in the chunk
    logit_rows: Int32Array


def _row_arrays(spans: list[Span]) -> _Rows:
    seq_starts = _starts(count for count, _, _ in spans)
    offsets, logit_rows = array("i"), array("i")
    for (count, first, last), start in zip(spans, seq_starts.tolist(), strict=False):
        offsets.extend(range(count))
        logit_rows.extend(range(start + first, start + last))
    return _Rows(
        seq_starts=seq_starts,
        chunks=np.repeat(np.arange(len(spans), dtype=np.int32), np.diff(seq_starts)),
        offsets=_int32(offsets),
        logit_rows=_int32(logit_rows),
    )


def _choosers(chunk: Chunk, first: int, last: int) -> list[Chooser]:
    """Whose sampling parameters the rows [first, last) take: neutral ones where it is scored."""
    request, draft = chunk.request, chunk.draft
    own = [Chooser(request)]
    if draft is not None:
        own += [Chooser(request, draft, count) for count in range(1, len(draft) + 1)]
    owed = _owed_in(chunk)
    if not owed:
        return own[: last - first]
    of_prompt = min(max(request.num_prompt_tokens - 1 - chunk.start - owed.start, 0), len(owed))
    scored = [_scorer(request.num_prompt_logprobs or 0)] * of_prompt
    scored += [_scorer(request.params.logprobs or 0)] * (len(owed) - of_prompt)
    between = last - owed.stop - len(own)  # rows whose logits nobody asked for
    return scored + own[:1] * between + own[: last - owed.stop]


@functools.cache
def _scorer(num_logprobs: int) -> Chooser:
    """Stands in for a request where its tokens are scored and nothing is chosen."""
    request = Request(
        request_id="scorer",
        params=SamplingParams(temperature=0, logprobs=num_logprobs or None),
        token_ids=array("i"),
        num_prompt_tokens=0,
        max_total_tokens=0,
        stop_ids=frozenset(),
        seed=0,
        order=(0, 0),
        cache_root=b"",
    )
    return Chooser(request)


def _targets(chunks: Sequence[Chunk], spans: list[Span]) -> Int32Array | None:
    owed = [_owed_in(chunk) for chunk in chunks]
    if not any(owed):
        return None
    targets = array("i")
    for chunk, rows, (_, first, last) in zip(chunks, owed, spans, strict=True):
        next_token = chunk.start + 1
        targets.extend(chunk.request.token_ids[next_token + rows.start : next_token + rows.stop])
        targets.extend([-1] * (last - first - len(rows)))
    return _int32(targets)


def _hidden_rows(chunks: Sequence[Chunk], seq_starts: Int32Array) -> Int32Array | None:
    embedded = [is_embedded(chunk) for chunk in chunks]
    return seq_starts[1:][embedded] - _ONE if any(embedded) else None


def _table_arrays(tables: list[tuple[array[int], int]]) -> tuple[Int32Array, Int32Array]:
    """Of (block table, its length): a table only grows while it is held."""
    return _ragged([table for table, _ in tables])


def allowed_mask(token_ids: Collection[int], vocab_size: int) -> UInt32Array:
    """[ceil(vocab_size / 32)] with the bits of these tokens set."""
    mask = np.zeros(-(-vocab_size // 32), np.uint32)
    ids = np.fromiter(token_ids, np.uint32)
    np.bitwise_or.at(mask, ids >> 5, np.uint32(1) << (ids & 31))
    return mask


def _mask_arrays(masks: Sequence[UInt32Array | None]) -> tuple[Int32Array, UInt32Array]:
    """`mask_rows` and `mask`."""
    rows = np.full(len(masks), -1, np.int32)
    present: list[UInt32Array] = []
    for index, mask in enumerate(masks):
        if mask is not None:
            rows[index] = len(present)
            present.append(mask)
    return rows, np.stack(present) if present else np.zeros((0, 0), np.uint32)


def _banned_ids(chooser: Chooser) -> list[int]:
    request, drafted = chooser.request, chooser.drafted_ids
    if not drafted:
        return sorted(request.banned_ids)
    request.token_ids.extend(drafted)  # what is banned depends on the latest tokens
    banned = sorted(request.banned_ids)
    del request.token_ids[-len(drafted) :]
    return banned


def _output_ids(chooser: Chooser) -> array[int]:
    request = chooser.request
    return request.token_ids[request.num_prompt_tokens :] + array("i", chooser.drafted_ids)


def is_settled(request: Request) -> bool:
    """Whether its rows of a SamplingBatch are alike at all positions, but for the position."""
    return request.grammar is None and not _has_bans(request) and not _has_penalties(request)


def _has_bans(request: Request) -> bool:
    """Whether `banned_ids` may hold anything."""
    return bool(request.params.min_tokens or request.params.banned_sequences)


def _has_penalties(request: Request) -> bool:
    params = request.params
    return bool(
        params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty
    )


def _fixed_arrays(requests: list[Request]) -> dict[str, Any]:
    """The fields of SamplingBatch that depend on the requests alone, not on their progress."""
    params = [request.params for request in requests]
    prompts = [
        request.token_ids[: request.num_prompt_tokens]
        if request.params.repetition_penalty != 1
        else ()
        for request in requests
    ]
    bias_starts, bias_ids = _ragged([p.logit_bias for p in params])
    mask_rows, mask = _mask_arrays([request.mask for request in requests])
    prompt_starts, prompt_ids = _ragged(prompts)
    return {
        "temperature": np.array([p.temperature for p in params], np.float32),
        "top_k": np.array([max(p.top_k, 0) for p in params], np.int32),
        "top_p": np.array([p.top_p for p in params], np.float32),
        "min_p": np.array([p.min_p for p in params], np.float32),
        "repetition_penalty": np.array([p.repetition_penalty for p in params], np.float32),
        "presence_penalty": np.array([p.presence_penalty for p in params], np.float32),
        "frequency_penalty": np.array([p.frequency_penalty for p in params], np.float32),
        "seeds": np.array([request.seed for request in requests], np.uint64),
        "num_logprobs": np.array(
            [-1 if p.logprobs is None else p.logprobs for p in params], np.int32
        ),
        "bias_starts": bias_starts,
        "bias_ids": bias_ids,
        "bias_values": np.array([v for p in params for v in p.logit_bias.values()], np.float32),
        "prompt_starts": prompt_starts,
        "prompt_ids": prompt_ids,
        "mask_rows": mask_rows,
        "mask": mask,
    }


def _ragged(rows: Sequence[Collection[int]]) -> tuple[Int32Array, Int32Array]:
    """Starts [R + 1] and concatenated values of R rows."""
    values = array("i")
    for row in rows:
        if row:
            values.extend(row)
    return _starts(map(len, rows)), _int32(values)


def _int32(values: array[int]) -> Int32Array:
    return np.asarray(values)  # the same memory


def _starts(lengths: Iterable[int]) -> Int32Array:
    return np.array([0, *accumulate(lengths)], np.int32)
