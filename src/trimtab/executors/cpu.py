"""The CPU executor: a model repacked into the native decoder, which runs a whole step in one call.

Formats (trimtab.executors.formats). Matrices that the checkpoint stores as integers keep them.
Others are held in `config.weights`: those of the layers and the head that makes the logits, except
that int4 models have an int8 head. A table of embeddings that is stored as floats stays bf16 (f32
with f32 weights). Norms and biases are float32, the residual stream
and attention are computed in float32, K and V are rounded to `config.kv_cache` before anything
attends to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.checkpoints.base import Checkpoint
from trimtab.config import ExecutorConfig
from trimtab.environment import forced_isa
from trimtab.errors import CheckpointError, ConfigError
from trimtab.executors.base import (
    Int32Array,
    KVCapacity,
    StepBatch,
    StepResult,
    UInt8Array,
)
from trimtab.executors.formats import ModelFormats, Slot, choose_formats
from trimtab.executors.kv_capacity import choose_capacity, gib, limit_context
from trimtab.executors.resources import available_cpus, available_memory
from trimtab.executors.weights import load_model
from trimtab.models.spec import ModelSpec

if TYPE_CHECKING:
    from trimtab import _native

# Part of the identity: raise it whenever the same weights begin to give other bits.
NUMERICS_REVISION = 2
DEFAULT_SEQUENCES = 16  # of max_context tokens each, if a quarter of free memory allows
MAX_THREADS = 1024


class CpuExecutor:
    """Implements `trimtab.executors.base.Executor`.

    Loading maps the packed model if an earlier start has left it (see
    `trimtab.executors.packed_cache`); otherwise it reads each tensor once, packs it, and keeps
    nothing of the checkpoint. Raises ConfigError for
    settings that cannot work here: a kernel path that this CPU lacks, more threads than 1024, a
    shape that the kernels do not take, a KV cache that does not fit into memory; and
    CheckpointError for a tensor that is missing or misshapen.

    `execute`, `copy_blocks` and `import_blocks` raise ValueError, one line, for arrays that break
    their contract; nothing has been written then.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ExecutorConfig | None = None,
        pool: _native.ThreadPool | None = None,
    ) -> None:
        """`pool`: the threads of an executor that never runs a step at the same time; its own ones,
        `config.threads`, if there is none."""
        config = config or ExecutorConfig()
        if config.device != "cpu":
            raise ConfigError(f"device={config.device}: this needs device=cpu")
        try:
            from trimtab import _native
        except ImportError as error:
            raise ConfigError(
                "device=cpu: the native core is not built here; install a wheel or build it "
                f"(pip install .), or use device=cuda or torch-cpu ({error})"
            ) from None
        self._spec = limit_context(checkpoint.spec, config.max_context)
        self.config = config
        self.isa = select_isa()
        self.pool = pool or _native.ThreadPool(choose_threads(config.threads))
        self.threads = self.pool.num_threads
        self.formats = choose_formats(checkpoint, config)
        try:
            builder = _native.ModelBuilder(
                native_shape(self._spec, config, self.formats), self.isa, self.pool
            )
            _check_weights_fit(builder.weight_bytes, self._label)
        except ValueError as error:
            raise ConfigError(f"{checkpoint.path}: {error}") from None
        try:
            self._mapped = load_model(builder, checkpoint, self.formats, config, self.threads)
            self.weight_bytes = builder.weight_bytes
            self._capacity = _choose_capacity(
                self._spec, config, builder.weight_bytes if self._mapped else 0
            )
            self._decoder: _native.Decoder | None = builder.build(self._capacity.num_blocks)
        except RuntimeError as error:  # the system refused memory
            raise ConfigError(f"{checkpoint.path}: {error}") from None
        except ValueError as error:  # a tensor is missing or has another shape
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
        self._identity = _identity(checkpoint, config, self.isa)

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def capacity(self) -> KVCapacity:
        return self._capacity

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def description(self) -> str:
        """For people: `cpu avx512 int4-g64, KV bf16, 2 threads`."""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"cpu {self.isa} {self._label}, KV {self.config.kv_cache}, {threads}"

    @property
    def _label(self) -> str:
        return self.formats.label if self.formats.quantized else self.config.weights_label

    def execute(self, batch: StepBatch) -> StepResult:
        return StepResult(*self._open_decoder().step(batch))

    @property
    def native(self) -> _native.Decoder:
        """For executors that run beside it and read its weights."""
        return self._open_decoder()

    def set_feature_layers(self, layers: Sequence[int]) -> None:
        """What `StepResult.features` is of from now on: the residual stream as layer i gets it, for
        each i given; `num_layers` stands for what the final norm gets. ValueError for others."""
        self._open_decoder().set_feature_layers(list(layers))

    @property
    def progress(self) -> int:
        """Changes while a step gets on (with each of its phases, several a layer). Any thread."""
        decoder = self._decoder
        return 0 if decoder is None else decoder.progress()

    def set_timed(self, timed: bool) -> None:
        """Whether later steps take their times, which costs them about ten microseconds."""
        self._open_decoder().set_timed(timed)

    def step_times(self) -> dict[str, float]:
        """Of the latest step: seconds of wall time in the native core by kind of work, which
        together are all of it. Empty unless it was timed."""
        return self._open_decoder().times()

    def copy_blocks(self, sources: Int32Array, destinations: Int32Array) -> None:
        self._open_decoder().copy_blocks(sources, destinations)

    def export_blocks(self, block_ids: Int32Array) -> UInt8Array:
        return self._open_decoder().export_blocks(block_ids)

    def import_blocks(self, block_ids: Int32Array, data: UInt8Array) -> None:
        self._open_decoder().import_blocks(block_ids, data)

    def close(self) -> None:
        """Idempotent. Gives back the weights, the cache and the threads."""
        self._decoder = None
        if self._mapped is not None:
            self._mapped.close()

    def _open_decoder(self) -> _native.Decoder:
        if self._decoder is None:
            raise RuntimeError("the executor is closed")
        return self._decoder


def select_isa() -> str:
    from trimtab import _native

    forced = forced_isa()
    try:
        return _native.select_isa(forced or "")
    except ValueError as error:
        raise ConfigError(f"TRIMTAB_ISA={forced}: {error}") from None


def choose_threads(threads: int) -> int:
    if threads > MAX_THREADS:
        raise ConfigError(f"threads={threads}: must be at most {MAX_THREADS}")
    return threads or min(available_cpus(), MAX_THREADS)


def native_shape(
    spec: ModelSpec, config: ExecutorConfig, formats: ModelFormats
) -> _native.ModelShape:
    from trimtab import _native

    shape = _native.ModelShape()
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "norm_eps",
        "norm_weight_offset",
        "qk_norm",
        "post_norms",
        "embedding_scale",
        "attention_scale",
        "attention_softcap",
        "logits_softcap",
    ):
        setattr(shape, name, getattr(spec, name))
    shape.layers = [_native.LayerShape(layer.sliding_window, layer.rope) for layer in spec.layers]
    shape.ropes = [_native.RopeShape(list(rope.inv_freq), rope.amplitude) for rope in spec.ropes]
    shape.gelu = spec.activation == "gelu_tanh"
    shape.formats = [_native_layer(slots) for slots in formats.layers]
    shape.head = native_format(formats.head)
    shape.set_embedding_source(formats.embedding)
    if formats.embedding_matrix is not None:
        shape.embedding_matrix = native_format(formats.embedding_matrix)
    shape.set_kv_cache(config.kv_cache)
    return shape


def native_format(slot: Slot) -> _native.MatrixFormat:
    from trimtab import _native

    format = slot.format
    return _native.MatrixFormat(
        format.weights, format.group_size, format.scales, format.offsets, format.centre
    )


def _native_layer(slots: tuple[Slot, ...]) -> _native.LayerFormats:
    from trimtab import _native

    at = {slot.name: native_format(slot) for slot in slots}
    return _native.LayerFormats(
        [at[name] for name in ("qkv", "q", "k", "v") if name in at],
        at["o"],
        [at[name] for name in ("gate_up", "gate", "up") if name in at],
        at["down"],
    )


def _check_weights_fit(needed: int, label: str) -> None:
    free = available_memory()
    if free is not None and needed > free:
        raise ConfigError(
            f"weights={label}: needs {gib(needed)}, but only {gib(free)} of "
            "memory are free; choose a smaller format or model"
        )


def _choose_capacity(spec: ModelSpec, config: ExecutorConfig, mapped_bytes: int) -> KVCapacity:
    """Called when the weights are loaded, so that free memory is what the cache may take. But the
    system counts mapped weights as free, since it could drop them: they must stay."""
    from trimtab import _native

    block_size = _native.KV_BLOCK_TOKENS
    bytes_per_block = _native.kv_bytes_per_block(
        config.kv_cache, spec.head_dim, spec.num_kv_heads, spec.num_layers
    )
    free = available_memory()
    if free is not None:
        free = max(0, free - mapped_bytes)
    return choose_capacity(
        config,
        block_size,
        bytes_per_block,
        default_blocks=DEFAULT_SEQUENCES * -(-spec.max_context // block_size),
        free=free,
        default_share=(0.25, "a quarter of free memory"),
    )


def _identity(checkpoint: Checkpoint, config: ExecutorConfig, isa: str) -> str:
    parts = (
        "trimtab cpu executor",
        str(NUMERICS_REVISION),
        checkpoint.identity,
        isa,
        config.weights_label,
        config.kv_cache,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
