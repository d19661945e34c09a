"""A deterministic executor without a model: for tests of everything above executors.

Its "KV cache" stores the token ids and positions themselves, and its logits are a function of what
it finds there, read back through the block table:

    logits(row) = f(stored tokens and positions 0 .. p of the row's own sequence)

so a wrong table, a block shared wrongly, overwritten or not yet written changes the tokens.
`ToyExecutor.logits` is that function on a plain list of tokens, for references.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trimtab.executors.base import (
    Float32Array,
    Int32Array,
    KVCapacity,
    SamplingBatch,
    StepBatch,
    StepResult,
    UInt8Array,
)
from trimtab.models.spec import LayerSpec, ModelSpec, RopeSpec

_Words = npt.NDArray[np.uint64]


def toy_spec(vocab_size: int, max_context: int, eos_token_ids: tuple[int, ...]) -> ModelSpec:
    return ModelSpec(
        architecture="toy",
        vocab_size=vocab_size,
        hidden_size=2,
        intermediate_size=2,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        layers=(LayerSpec(),),
        ropes=(RopeSpec(inv_freq=(1.0,)),),
        norm_eps=1e-6,
        max_context=max_context,
        attention_scale=1.0,
        eos_token_ids=eos_token_ids,
    )


class ToyExecutor:
    """Implements `Executor` in milliseconds and checks each batch strictly (ValueError)."""

    description = "toy"

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        vocab_size: int = 64,
        max_context: int = 256,
        eos_token_ids: tuple[int, ...] = (),
        weights_seed: int = 0,
    ) -> None:
        self.spec = toy_spec(vocab_size, max_context, eos_token_ids)
        self.capacity = KVCapacity(block_size, num_blocks, bytes_per_block=8 * block_size)
        self.num_steps = 0
        self.num_computed_tokens = 0
        self._weights_seed = weights_seed
        # [block, slot, (token, position)]; -1 = never written
        self._blocks = np.full((num_blocks, block_size, 2), -1, np.int32)

    @property
    def identity(self) -> str:
        name = f"toy {self._weights_seed} {self.spec.vocab_size}"
        return hashlib.sha256(name.encode()).hexdigest()

    def execute(self, batch: StepBatch) -> StepResult:
        validate_batch(batch, self.capacity, self.spec)
        self.num_steps += 1
        self.num_computed_tokens += batch.num_rows
        tables = self._write(batch)
        result = sample_rows(self._logits_of(batch, batch.logit_rows, tables), batch)
        if batch.hidden_rows is not None:
            hidden = self._logits_of(batch, batch.hidden_rows, tables)
            result.hidden = hidden[:, : self.spec.hidden_size]
        return result

    def _logits_of(
        self, batch: StepBatch, rows: Int32Array, tables: list[Int32Array]
    ) -> Float32Array:
        sequence_of = np.searchsorted(batch.seq_starts, rows, side="right") - 1
        logits = np.zeros((len(rows), self.spec.vocab_size), np.float32)
        for out, row, sequence in zip(logits, rows, sequence_of, strict=True):
            context = self._blocks[tables[sequence]].reshape(-1, 2)[: batch.positions[row] + 1]
            out[:] = self._logits(context)
        return logits

    def logits(self, token_ids: Sequence[int]) -> Float32Array:
        """[vocab] after these tokens, without any cache: what every schedule must reproduce."""
        tokens = np.asarray(token_ids, np.int32)
        return self._logits(np.stack([tokens, np.arange(len(tokens), dtype=np.int32)], axis=1))

    def copy_blocks(self, sources: Int32Array, destinations: Int32Array) -> None:
        self._blocks[destinations] = self._blocks[sources]

    def export_blocks(self, block_ids: Int32Array) -> UInt8Array:
        return self._blocks[block_ids].reshape(len(block_ids), -1).view(np.uint8)

    def import_blocks(self, block_ids: Int32Array, data: UInt8Array) -> None:
        shape = (len(block_ids), self.capacity.block_size, 2)
        self._blocks[block_ids] = np.ascontiguousarray(data).view(np.int32).reshape(shape)

    def close(self) -> None:
        pass

    def _write(self, batch: StepBatch) -> list[Int32Array]:
        """Store every row of the batch; the sequences' block tables."""
        size = self.capacity.block_size
        tables = []
        written: set[tuple[int, int]] = set()
        for sequence in range(batch.num_seqs):
            first, end = batch.block_starts[sequence : sequence + 2]
            table = batch.block_ids[first:end]
            rows = slice(*batch.seq_starts[sequence : sequence + 2])
            positions = batch.positions[rows]
            blocks, slots = table[positions // size], positions % size
            places = set(zip(blocks.tolist(), slots.tolist(), strict=True))
            if places & written:
                raise ValueError(f"two sequences write to {places & written}")
            written |= places
            self._blocks[blocks, slots, 0] = batch.token_ids[rows]
            self._blocks[blocks, slots, 1] = positions
            tables.append(table)
        return tables

    def _logits(self, context: Int32Array) -> Float32Array:
        words = context.astype(np.int64).astype(np.uint64)
        keys = words[:, :1] * np.uint64(0x9E3779B97F4A7C15) + words[:, 1:]
        indices = np.arange(len(words), dtype=np.uint64)
        state = np.bitwise_xor.reduce(_mix(_mix(keys[:, 0]) + indices), keepdims=True)
        ids = np.arange(self.spec.vocab_size, dtype=np.uint64)
        bits = _mix(_mix(state + np.uint64(self._weights_seed)) + ids)
        return (_uniform(bits) * 8 - 4).astype(np.float32)


def validate_batch(batch: StepBatch, capacity: KVCapacity, spec: ModelSpec) -> None:
    """ValueError, naming what is wrong, unless the batch keeps every promise of StepBatch."""
    rows, seqs = batch.num_rows, batch.num_seqs

    def require(ok: object, message: str) -> None:
        if not ok:
            raise ValueError(f"bad batch: {message}")

    for name in ("token_ids", "positions", "seq_starts", "block_starts", "block_ids", "logit_rows"):
        require(getattr(batch, name).dtype == np.int32, f"{name} is not int32")
    require(rows > 0, "no rows")
    require(batch.positions.shape == (rows,), "positions and token_ids differ in length")
    require(batch.seq_starts[0] == 0 and batch.seq_starts[-1] == rows, "seq_starts")
    require((np.diff(batch.seq_starts) > 0).all(), "a sequence without rows")
    require(batch.block_starts.shape == (seqs + 1,), "block_starts")
    require(batch.block_starts[-1] == len(batch.block_ids), "block_starts end")
    require((batch.token_ids >= 0).all() and (batch.token_ids < spec.vocab_size).all(), "token id")
    require((batch.block_ids >= 0).all(), "negative block id")
    require((batch.block_ids < capacity.num_blocks).all(), "block id out of range")
    for sequence in range(seqs):
        positions = batch.positions[slice(*batch.seq_starts[sequence : sequence + 2])]
        require(positions[0] >= 0 and (np.diff(positions) == 1).all(), "positions not consecutive")
        require(positions[-1] < spec.max_context, "position beyond max_context")
        num_blocks = batch.block_starts[sequence + 1] - batch.block_starts[sequence]
        require(positions[-1] < num_blocks * capacity.block_size, "block table too short")
    logit_rows = batch.logit_rows
    require((np.diff(logit_rows) > 0).all(), "logit_rows not ascending")
    require(not len(logit_rows) or 0 <= logit_rows[0] <= logit_rows[-1] < rows, "logit_rows")
    sampling, count = batch.sampling, len(logit_rows)
    for name in ("temperature", "top_k", "top_p", "min_p", "seeds", "positions", "num_logprobs"):
        require(len(getattr(sampling, name)) == count, f"sampling.{name} has another length")
    require((sampling.positions == batch.positions[logit_rows] + 1).all(), "sampling.positions")
    for name in ("bias", "banned", "prompt", "output"):
        starts, ids = getattr(sampling, f"{name}_starts"), getattr(sampling, f"{name}_ids")
        require(len(starts) == count + 1 and starts[-1] == len(ids), f"sampling.{name}_starts")
    require(batch.targets is None or len(batch.targets) == count, "targets")


def sample_rows(logits: Float32Array, batch: StepBatch) -> StepResult:
    """A plain numpy reading of SamplingBatch, with another noise than the native sampler's."""
    sampling, count = batch.sampling, len(logits)
    wide = logits.astype(np.float64)
    logprobs = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    num_top = max(0, *sampling.num_logprobs.tolist()) if count else 0
    result = StepResult(
        tokens=np.array([sample_row(logits[r], sampling, r) for r in range(count)], np.int32),
        logprobs=np.zeros(count, np.float32),
        top_ids=np.full((count, num_top), -1, np.int32),
        top_logprobs=np.zeros((count, num_top), np.float32),
        target_logprobs=None if batch.targets is None else np.zeros(count, np.float32),
        logits=logits if batch.return_logits else None,
    )
    for row in range(count):
        wanted = int(sampling.num_logprobs[row])
        if wanted >= 0:
            result.logprobs[row] = logprobs[row, result.tokens[row]]
            top = np.argsort(-logprobs[row], kind="stable")[:wanted]
            result.top_ids[row, : len(top)] = top
            result.top_logprobs[row, : len(top)] = logprobs[row, top]
        if batch.targets is not None and result.target_logprobs is not None:
            target = batch.targets[row]
            result.target_logprobs[row] = logprobs[row, target] if target >= 0 else 0
    return result


def sample_row(model_logits: Float32Array, sampling: SamplingBatch, row: int) -> int:
    """The token of one row, in the order written down at SamplingBatch; -1 if not finite."""
    logits = model_logits.astype(np.float64)
    if not np.isfinite(logits).all():
        return -1

    def ids(name: str) -> npt.NDArray[np.int64]:
        starts = getattr(sampling, f"{name}_starts")
        own = getattr(sampling, f"{name}_ids")[starts[row] : starts[row + 1]]
        return np.asarray(own, np.int64)

    bias = slice(*sampling.bias_starts[row : row + 2])
    logits[ids("bias")] += sampling.bias_values[bias]
    output, counts = np.unique(ids("output"), return_counts=True)
    seen = np.union1d(ids("prompt"), output)
    penalty = float(sampling.repetition_penalty[row])
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    logits[output] -= counts * float(sampling.frequency_penalty[row])
    logits[output] -= float(sampling.presence_penalty[row])
    logits[ids("banned")] = -np.inf
    mask = int(sampling.mask_rows[row])
    if mask >= 0:
        every = np.arange(len(logits))
        allowed = sampling.mask[mask, every // 32] >> (every % 32).astype(np.uint32) & 1
        logits[allowed == 0] = -np.inf
    temperature = float(sampling.temperature[row])
    if temperature == 0:
        return int(np.argmax(logits))
    kept = _filter(logits / temperature, sampling, row)
    key = _words([int(sampling.seeds[row]), int(sampling.positions[row])])
    bits = _mix(_mix(_mix(key[:1]) ^ key[1:]) ^ _words(range(len(kept))))
    noise = _uniform(bits)
    return int(np.argmax(kept - np.log(-np.log(noise))))


def _filter(
    logits: npt.NDArray[np.float64], sampling: SamplingBatch, row: int
) -> npt.NDArray[np.float64]:
    """Top-k, top-p, min-p: what does not survive becomes -inf."""
    order = np.argsort(-logits, kind="stable")
    if 0 < sampling.top_k[row] < len(order):
        logits[order[sampling.top_k[row] :]] = -np.inf
    weights = np.exp(logits - logits[order[0]])
    sorted_weights = weights[order]
    before = np.cumsum(sorted_weights) - sorted_weights
    logits[order[before > float(sampling.top_p[row]) * sorted_weights.sum()]] = -np.inf
    logits[weights < float(sampling.min_p[row])] = -np.inf
    return logits


def _words(values: Sequence[int]) -> _Words:
    return np.array(values, np.uint64)


def _mix(words: _Words) -> _Words:
    """splitmix64's finalizer, elementwise, modulo 2**64."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Words = words ^ (words >> np.uint64(31))
    return mixed


def _uniform(words: _Words) -> npt.NDArray[np.float64]:
    """In (0, 1)."""
    values: npt.NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64)
    return (values + 0.5) / float(1 << 53)
