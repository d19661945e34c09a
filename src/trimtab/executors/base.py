"""What the engine and an executor say to each other: flat arrays in, tokens out.

A step is a *ragged batch*: `num_rows` token rows that belong to `num_seqs` sequences, in order.
Prefill, a chunk of a prefill, decode and the verification of drafts differ only in how many rows a
sequence brings.

    rows      | t0 t1 t2 t3 | t4 | t5 t6 |      token_ids, positions   [num_rows]
    sequences |     0       |  1 |   2   |      seq_starts = [0, 4, 5, 7]
    logits          ^ r=3     ^4     ^6         logit_rows = [3, 4, 6]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trimtab.models.spec import ModelSpec

Int32Array = npt.NDArray[np.int32]
UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


@dataclass(slots=True, eq=False)  # never changed; freezing costs microseconds a step
class SamplingBatch:
    """Sampling parameters of the R logit rows. The order in which they apply:

    1. `bias` is added; 2. repetition penalty over prompt and output tokens, then frequency and
    presence penalties over output tokens; 3. `banned` ids and ids outside the row's `mask` become
    -inf; 4. temperature; 5. top-k; 6. top-p; 7. min-p; 8. Gumbel-max over the survivors.
    Temperature 0 picks the largest logit after 3 (ties: the smallest id); 4 to 8 are skipped.
    Candidates are ordered by logit, of equal ones the smaller id first: top-k keeps the first k,
    top-p the shortest prefix whose mass, relative to what top-k left, is at least p; min-p is
    relative to the most likely token.

    Noise is counter-based: Philox4x32-10 keyed by `seeds[r]`, counter (`positions[r]`, id / 4,
    draw, 0), word id % 4 for token id; draw 0 gives the first 32 bits of the noise, draw 1 20 more.
    """

    temperature: Float32Array  # [R] >= 0
    top_k: Int32Array  # [R] 0 = off
    top_p: Float32Array  # [R] (0, 1]
    min_p: Float32Array  # [R] [0, 1]
    repetition_penalty: Float32Array  # [R] > 0, 1 = off
    presence_penalty: Float32Array  # [R]
    frequency_penalty: Float32Array  # [R]
    seeds: UInt64Array  # [R]
    positions: Int32Array  # [R] position in the sequence of the token being chosen
    num_logprobs: Int32Array  # [R] -1 none; 0 chosen token only; n also the n most likely
    bias_starts: Int32Array  # [R + 1]
    bias_ids: Int32Array  # [bias_starts[R]]
    bias_values: Float32Array  # same length
    banned_starts: Int32Array  # [R + 1]; stop ids while min_tokens is not reached
    banned_ids: Int32Array
    prompt_starts: Int32Array  # [R + 1]; token history, empty for rows without penalties
    prompt_ids: Int32Array
    output_starts: Int32Array  # [R + 1]
    output_ids: Int32Array
    mask_rows: Int32Array  # [R] row of `mask`, -1 = everything allowed
    mask: UInt32Array  # [num_masks, ceil(vocab / 32)], bit i%32 of word i//32 = id i allowed


@dataclass(slots=True, eq=False)  # never changed; freezing costs microseconds a step
class StepBatch:
    token_ids: Int32Array  # [num_rows]
    positions: Int32Array  # [num_rows] absolute, consecutive within a sequence
    seq_starts: Int32Array  # [num_seqs + 1] first row of each sequence
    block_starts: Int32Array  # [num_seqs + 1] into block_ids
    block_ids: Int32Array  # concatenated block tables; block i holds positions i*B .. i*B+B-1
    logit_rows: Int32Array  # [R] ascending row numbers that need logits
    sampling: SamplingBatch  # of the R rows
    targets: Int32Array | None = None  # [R] token to score at each logit row (-1: none)
    hidden_rows: Int32Array | None = None  # [H] ascending row numbers whose hidden state is wanted
    return_logits: bool = False
    features: bool = False  # of all rows; for executors that were told which
    # [num_rows] place of the row's token among `StepResult.tokens` of the step queued before; -1:
    # it is in token_ids. For `AsyncExecutor.execute_async` alone.
    chosen_before: Int32Array | None = None

    @property
    def num_rows(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def num_seqs(self) -> int:
        return int(self.seq_starts.shape[0]) - 1


@dataclass(slots=True, eq=False)  # never changed; freezing costs microseconds a step
class StepResult:
    """Logprobs are log-softmax of the model's own logits, before any sampling parameter. Arrays of
    logprobs that nobody asked for may be read-only."""

    tokens: Int32Array  # [R]; -1 where the logits were not finite (the request must fail)
    logprobs: Float32Array  # [R] of the chosen token; 0 where num_logprobs is -1
    top_ids: Int32Array  # [R, max(num_logprobs, 0)], most likely first, -1 padded
    top_logprobs: Float32Array  # same shape
    target_logprobs: Float32Array | None = None  # [R] of `targets`
    logits: Float32Array | None = None  # [R, vocab], the model's own
    hidden: Float32Array | None = None  # [H, hidden_size] of `hidden_rows`, behind the final norm
    # [num_rows, layers * hidden_size], the residual stream of the layers that were asked for
    features: Float32Array | None = None


@dataclass(frozen=True)
class KVCapacity:
    block_size: int  # tokens a block
    num_blocks: int
    bytes_per_block: int  # over all layers

    @property
    def num_tokens(self) -> int:
        return self.block_size * self.num_blocks


class Executor(Protocol):
    """Who runs a step. Not thread-safe: one caller at a time.

    `execute` writes K and V of every row into the blocks named by the batch, then attends to
    positions 0..p of the row's own sequence. The same (tokens, block contents) give the same bits,
    whatever else is in the batch.
    """

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def capacity(self) -> KVCapacity: ...

    @property
    def identity(self) -> str:
        """Hex digest of weights and numeric configuration: what prefix-cache keys start from."""
        ...

    def execute(self, batch: StepBatch) -> StepResult: ...

    def copy_blocks(self, sources: Int32Array, destinations: Int32Array) -> None: ...

    def export_blocks(self, block_ids: Int32Array) -> UInt8Array:
        """[n, bytes_per_block], a copy."""
        ...

    def import_blocks(self, block_ids: Int32Array, data: UInt8Array) -> None: ...

    def close(self) -> None: ...


class Pending(Protocol):
    """A step that is queued, runs or has ended."""

    def result(self) -> StepResult:
        """Waits for it. Raises what `execute` would have."""
        ...


class AsyncExecutor(Executor, Protocol):
    """An executor that can be given a step while another one runs. Steps, and copies of blocks, run
    in the order in which they were queued: who writes a block in a step queued later, writes it
    later. `execute` is `execute_async` and its result."""

    def execute_async(self, batch: StepBatch) -> Pending:
        """Does not wait. The batch's arrays may change when it returns. ValueError, with nothing
        queued, for arrays that break their contract."""
        ...


class HostStore(Protocol):
    """Room for blocks in host memory, of an executor that has some (`host_store`). Copies run in
    the order in which they and steps were queued."""

    @property
    def num_slots(self) -> int: ...

    def save(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        """No block and no slot twice."""
        ...

    def load(self, slots: Sequence[int], block_ids: Sequence[int]) -> None:
        """Likewise."""
        ...
