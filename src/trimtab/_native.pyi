"""The native core (native/bindings). One section for each bindings file."""

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from trimtab.executors.base import Float32Array, Int32Array, StepBatch, UInt8Array

# bindings/kernels.cpp
def available_isas() -> list[str]: ...
def missing_features(isa: str) -> list[str]: ...
def select_isa(forced: str = "") -> str: ...

# bindings/probe.cpp
def probe_bandwidth(isa: str, threads: int, bytes: int, repeats: int) -> list[float]: ...
def probe_handoff(threads: int, repeats: int) -> list[float]: ...
def probe_arithmetic(isa: str, threads: int, weights: str, repeats: int) -> list[float]: ...

# bindings/decoder.cpp
KV_BLOCK_TOKENS: int
PACKED_REVISION: int

class LayerShape:
    def __init__(self, window: int, rope: int) -> None: ...

class RopeShape:
    def __init__(self, inv_freq: Sequence[float], amplitude: float) -> None: ...

class MatrixFormat:
    def __init__(
        self,
        weights: str,
        group_size: int = 0,
        scales: str = "f16",
        offsets: str = "none",
        centre: float = 0.0,
    ) -> None: ...

class LayerFormats:
    def __init__(
        self,
        qkv: Sequence[MatrixFormat],
        o: MatrixFormat,
        gate_up: Sequence[MatrixFormat],
        down: MatrixFormat,
    ) -> None: ...

class ModelShape:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: list[LayerShape]
    ropes: list[RopeShape]
    norm_eps: float
    norm_weight_offset: float
    gelu: bool
    qk_norm: bool
    post_norms: bool
    embedding_scale: float
    attention_scale: float
    attention_softcap: float
    logits_softcap: float
    formats: list[LayerFormats]
    head: MatrixFormat
    embedding_matrix: MatrixFormat
    def __init__(self) -> None: ...
    def set_embedding_source(self, name: str) -> None: ...
    def set_kv_cache(self, name: str) -> None: ...
    def set_draft(
        self, num_features: int, vocab_size: int, norm_before_residual: bool, fc: MatrixFormat
    ) -> None: ...

class ThreadPool:
    def __init__(self, threads: int) -> None: ...
    @property
    def num_threads(self) -> int: ...

class ModelBuilder:
    def __init__(self, shape: ModelShape, isa: str, pool: ThreadPool) -> None: ...
    def set_norm(self, layer: int, name: str, values: Float32Array) -> None: ...
    def set_matrix(
        self,
        layer: int,
        name: str,
        parts: Sequence[npt.NDArray[Any]],
        biases: Sequence[Float32Array],
        between: Callable[[], None] | None = None,
    ) -> None: ...
    def set_integers(
        self,
        layer: int,
        name: str,
        parts: Sequence[tuple[npt.NDArray[Any] | None, ...]],
        biases: Sequence[Float32Array],
        columns: Sequence[int],
    ) -> None: ...
    def set_embedding(
        self, table: npt.NDArray[Any], between: Callable[[], None] | None = None
    ) -> None: ...
    def set_target_ids(self, ids: Int32Array) -> None: ...
    def map_packed(
        self, descriptor: int, file_bytes: int, arena_offset: int, vectors_offset: int
    ) -> None: ...
    def packed_arena(self) -> UInt8Array: ...
    def packed_vectors(self) -> bytes: ...
    @property
    def weight_bytes(self) -> int: ...
    def build(self, num_blocks: int, embeddings: Decoder | None = None) -> Decoder: ...

class Decoder:
    def step(
        self, batch: StepBatch, inputs: Float32Array | None = None
    ) -> tuple[
        Int32Array,
        Float32Array,
        Int32Array,
        Float32Array,
        Float32Array | None,
        Float32Array | None,
        Float32Array | None,
        Float32Array | None,
    ]: ...
    def set_feature_layers(self, layers: list[int]) -> None: ...
    def set_timed(self, timed: bool) -> None: ...
    def times(self) -> dict[str, float]: ...
    def progress(self) -> int: ...
    def copy_blocks(self, sources: Int32Array, destinations: Int32Array) -> None: ...
    def export_blocks(self, block_ids: Int32Array) -> UInt8Array: ...
    def import_blocks(self, block_ids: Int32Array, data: UInt8Array) -> None: ...

def kv_bytes_per_block(kv_cache: str, head_dim: int, num_kv_heads: int, num_layers: int) -> int: ...

# bindings/attention.cpp
def paged_attention(
    query: Float32Array,
    keys: Float32Array,
    values: Float32Array,
    block_ids: Int32Array,
    num_blocks: int,
    window: int = 0,
    softcap: float = 0.0,
    scale: float = 1.0,
    kv_cache: str = "f32",
    isa: str = "",
    threads: int = 1,
) -> Float32Array: ...

# bindings/lookup.cpp
SUFFIX_MAX_HOPS: int
TEXT_SEPARATOR: int
_Evidence = tuple[int, int, bool, bool]  # occurrences, alike, disputed, repeated

class SuffixCursor:
    def __init__(self) -> None: ...

class SuffixIndex:
    def __init__(self) -> None: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    def extend(self, tokens: array[int] | Int32Array) -> None: ...
    def match(self, limit: int = 0) -> tuple[int, int, list[int], list[_Evidence]]: ...
    def follow(
        self, cursor: SuffixCursor, tokens: array[int] | Int32Array, limit: int = 0
    ) -> tuple[int, int, list[int], list[_Evidence]]: ...

class TextLookup:
    def __init__(self) -> None: ...
    @property
    def num_indexed(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...

def look_up(
    lookups: list[TextLookup],
    texts: list[array[int]],
    limits: list[int],
    others: list[SuffixIndex | None] | None = None,
    budget: int = ...,
) -> list[tuple[list[int], list[int]] | None]: ...
