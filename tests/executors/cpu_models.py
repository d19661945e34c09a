"""Random models of every family in shapes that try the CPU executor, and ways to step them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.checkpoints.base import MatrixFormat, StoredMatrix, StoredTensor
from trimtab.checkpoints.stored_file import StoredFile
from trimtab.executors.base import Executor, SamplingBatch, StepBatch, StepResult
from trimtab.models.spec import LayerSpec, ModelSpec, RopeSpec

Float32 = npt.NDArray[np.float32]
BLOCK = 16


# ---- models out of numpy alone: a checkpoint that was never on disk


@dataclass
class MemoryCheckpoint:
    spec: ModelSpec
    tensors: dict[str, StoredMatrix]
    path: Path = Path("memory")
    identity: str = "a model in memory"
    weight_files: tuple[StoredFile, ...] = ()

    def names(self) -> Iterable[str]:
        return self.tensors.keys()

    def tensor(self, name: str) -> StoredTensor:
        stored = self.tensors[name]
        return stored if isinstance(stored, StoredTensor) else as_floats(stored)

    def format(self, name: str) -> MatrixFormat:
        stored = self.tensors[name]
        return stored.dtype if isinstance(stored, StoredTensor) else stored.format

    def matrix(self, name: str) -> StoredMatrix:
        stored = self.tensors[name]
        return self.tensor(name) if isinstance(stored, StoredTensor) else stored

    def release(self) -> None:
        pass

    def map(self, change: Callable[[str, Float32], Float32]) -> MemoryCheckpoint:
        """The same model with other weights, in float32."""
        tensors = {
            name: StoredTensor(np.ascontiguousarray(change(name, tensor.to_float32())), "f32")
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)


def as_floats(stored: StoredMatrix) -> StoredTensor:
    return StoredTensor(np.ascontiguousarray(stored.to_float32()), "f32")


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (spec.vocab_size, hidden),
        "final_norm": (hidden,),
    }
    if not spec.tied_embeddings:
        shapes["lm_head"] = (spec.vocab_size, hidden)
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "mlp_norm": (hidden,),
        "q": (q, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, q),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    if spec.post_norms:
        layer |= {"post_attn_norm": (hidden,), "post_mlp_norm": (hidden,)}
    if spec.qk_norm:
        layer |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    if spec.qkv_bias:
        layer |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    for index in range(spec.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def memory_model(seed: int = 0, **changes: Any) -> MemoryCheckpoint:
    """A small model with everything switched on that does not exclude something else."""
    values: dict[str, Any] = {
        "architecture": "memory",
        "vocab_size": 77,
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_heads": 6,
        "num_kv_heads": 3,
        "head_dim": 16,
        "layers": (LayerSpec(), LayerSpec(sliding_window=21, rope=1)),
        "ropes": (
            RopeSpec(tuple(10000.0 ** (-i / 8) for i in range(8))),
            RopeSpec(tuple(500.0 ** (-i / 6) for i in range(6)), 1.1),
        ),
        "norm_eps": 1e-6,
        "max_context": 4096,
        "qkv_bias": True,
        "qk_norm": True,
        "post_norms": True,
        "tied_embeddings": True,
        "embedding_scale": 0.6,
        "attention_scale": 0.25,
        "attention_softcap": 30.0,
        "logits_softcap": 20.0,
    } | changes
    spec = ModelSpec(**values)
    rng = np.random.default_rng(seed)
    tensors: dict[str, StoredMatrix] = {}
    for name, shape in tensor_shapes(spec).items():
        values_ = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("norm"):
            values_ = 1 + values_ / 5
        elif len(shape) == 2 and name != "embed":
            values_ /= np.float32(np.sqrt(shape[1]))
        tensors[name] = StoredTensor(values_.astype(np.float32), "f32")
    return MemoryCheckpoint(spec, tensors)


# ---- steps


def greedy(rows: int) -> SamplingBatch:
    def zeros(dtype: Any, count: int = rows) -> Any:
        return np.zeros(count, dtype)

    starts = zeros(np.int32, rows + 1)
    none = zeros(np.int32, 0)
    return SamplingBatch(
        temperature=zeros(np.float32),
        top_k=zeros(np.int32),
        top_p=np.ones(rows, np.float32),
        min_p=zeros(np.float32),
        repetition_penalty=np.ones(rows, np.float32),
        presence_penalty=zeros(np.float32),
        frequency_penalty=zeros(np.float32),
        seeds=zeros(np.uint64),
        positions=zeros(np.int32),
        num_logprobs=np.full(rows, -1, np.int32),
        bias_starts=starts,
        bias_ids=none,
        bias_values=zeros(np.float32, 0),
        banned_starts=starts,
        banned_ids=none,
        prompt_starts=starts,
        prompt_ids=none,
        output_starts=starts,
        output_ids=none,
        mask_rows=np.full(rows, -1, np.int32),
        mask=np.zeros((0, 0), np.uint32),
    )


@dataclass
class Passage:
    """A sequence under way: its tokens, its blocks, how far it is computed."""

    tokens: list[int]
    blocks: list[int]
    computed: int = 0
    logits: list[Float32] = field(default_factory=list)  # of every computed position


def as_int32(values: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.asarray(values, np.int32)


def make_batch(pieces: Sequence[tuple[Passage, int]], **options: Any) -> StepBatch:
    """The next `count` tokens of each sequence; logits of every row."""
    ids: list[int] = []
    positions: list[int] = []
    seq_starts, block_starts, block_ids = [0], [0], []
    for sequence, count in pieces:
        end = sequence.computed + count
        ids += sequence.tokens[sequence.computed : end]
        positions += range(sequence.computed, end)
        block_ids += sequence.blocks[: -(-end // BLOCK)]
        seq_starts.append(len(ids))
        block_starts.append(len(block_ids))
    values: dict[str, Any] = {
        "token_ids": as_int32(ids),
        "positions": as_int32(positions),
        "seq_starts": as_int32(seq_starts),
        "block_starts": as_int32(block_starts),
        "block_ids": as_int32(block_ids),
        "logit_rows": np.arange(len(ids), dtype=np.int32),
        "sampling": greedy(len(ids)),
        "return_logits": True,
    }
    return StepBatch(**(values | options))


def advance(executor: Executor, pieces: Sequence[tuple[Passage, int]]) -> StepResult:
    """One step; the logits are kept with the sequences."""
    result = executor.execute(make_batch(pieces))
    assert result.logits is not None
    row = 0
    for sequence, count in pieces:
        sequence.logits += list(result.logits[row : row + count])
        sequence.computed += count
        row += count
    return result


def run_alone(executor: Executor, tokens: Sequence[int], chunk: int = 1 << 30) -> Float32:
    """Logits [tokens, vocab] of one sequence in the first blocks, in chunks of at most `chunk`."""
    sequence = Passage(list(tokens), list(range(-(-len(tokens) // BLOCK))))
    while sequence.computed < len(tokens):
        advance(executor, [(sequence, min(chunk, len(tokens) - sequence.computed))])
    return np.stack(sequence.logits)
