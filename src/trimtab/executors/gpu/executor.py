"""TorchExecutor: a whole step on one device, CUDA or CPU.

Weights and activations are bf16 (float32 with weights f32); norms, biases, rotations, attention
scores and logits are float32; K and V are rounded to `config.kv_cache` before anything attends to
them. Every matrix that a checkpoint stores as integers or float8 is read as docs/gpu.md says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimtab.checkpoints.base import Checkpoint
from trimtab.config import ExecutorConfig
from trimtab.errors import ConfigError
from trimtab.executors.base import Int32Array, KVCapacity, StepBatch, StepResult, UInt8Array
from trimtab.executors.gpu.blocks import BlockStore
from trimtab.executors.gpu.capacity import BLOCK_TOKENS, LOGIT_ROWS, kv_capacity, open_caches
from trimtab.executors.gpu.checks import check_batch
from trimtab.executors.gpu.devices import choose_ops, describe_device, open_device
from trimtab.executors.gpu.graphs import StepGraphs, decode_shapes, each_with_progress
from trimtab.executors.gpu.host_blocks import HostBlocks
from trimtab.executors.gpu.model import Model
from trimtab.executors.gpu.ops import Ops, SampleResult
from trimtab.executors.gpu.padding import Shape, padded, shape_of
from trimtab.executors.gpu.pending import DevicePending, StepOutputs
from trimtab.executors.gpu.rows import no_rows, row_arrays, staged_rows
from trimtab.executors.gpu.sampling_batch import device_sampling, sampling_arrays, sampling_rows
from trimtab.executors.gpu.staging import Staging, Views
from trimtab.executors.gpu.step_memory import StepRoom, open_memory, run_largest_step
from trimtab.executors.gpu.warm_start import code_digest, open_warm_start
from trimtab.executors.gpu.weights import load_weights
from trimtab.executors.kv_capacity import limit_context
from trimtab.models.spec import ModelSpec

# Part of the identity: raise it whenever the same weights begin to give other bits.
NUMERICS_REVISION = 1
STAGING_BYTES = 8 << 20
MAX_CHOSEN = 1 << 14  # tokens of a step that the next one can start from


class TorchExecutor:
    """Implements `trimtab.executors.base.AsyncExecutor`.

    Raises ConfigError for a device that is not there and settings that cannot work on it, and
    CheckpointError for a tensor that is missing or misshapen. `execute` and the like raise
    ValueError, one line, for arrays that break their contract; nothing has been written then.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ExecutorConfig | None = None,
        ops: Ops | None = None,
        max_step_rows: int = 2048,
        fill_up: bool | None = None,
        block_size: int = BLOCK_TOKENS,
    ) -> None:
        """`ops`: those of the device, if none are given. `max_step_rows`: for which memory is kept
        free. `fill_up`: small steps, to sizes that can be captured; None: on CUDA, where they
        are. `block_size`: tokens a block, a power of two up to 256; no bit depends on it."""
        self.config = config or ExecutorConfig(device="torch-cpu")
        self._spec = limit_context(checkpoint.spec, self.config.max_context)
        self.device = open_device(self.config.device)
        self._warm_start = open_warm_start(self.device)
        self.ops = ops or choose_ops(self.device)
        self._block_size = block_size
        self.dtype = _activation_dtype(self.config)
        self._identity = self._make_identity(checkpoint)
        try:
            with torch.inference_mode():
                weights = load_weights(checkpoint, self._spec, self.config, self.dtype, self.device)
                self.weight_bytes = weights.num_bytes
                self._model = Model(self._spec, weights, (), self.ops)
                room = self._room_for_blocks(max_step_rows)
                self._open_blocks(room)
                self.step_is_remembered = room is not None and room.is_remembered
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"{checkpoint.path}: does not fit into the memory of {self.config.device}; choose "
                "a smaller model, or a smaller kv_cache_gib"
            ) from None
        self.host_store = self._open_host_store()
        self._staging = Staging(STAGING_BYTES, self.device)
        self._chosen = torch.zeros(MAX_CHOSEN, dtype=torch.int32, device=self.device)
        self._num_chosen = 0
        self._feature_layers: tuple[int, ...] = ()
        self._graphs: StepGraphs | None = None
        if self.device.type == "cuda" if fill_up is None else fill_up:
            reserved = self._capacity.num_blocks
            self._graphs = StepGraphs(self._model, self._chosen, reserved, self.device)
        self._is_open = True

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
        """For people: `cuda NVIDIA H200 bf16, KV bf16`."""
        device = describe_device(self.device)
        return f"{device} {self.config.weights_label}, KV {self.config.kv_cache}"

    def set_feature_layers(self, layers: Sequence[int]) -> None:
        """As of CpuExecutor."""
        if any(not 0 <= layer <= self._spec.num_layers for layer in layers):
            raise ValueError(f"feature layers must be in [0, {self._spec.num_layers}]")
        self._feature_layers = tuple(layers)

    def execute(self, batch: StepBatch) -> StepResult:
        return self.execute_async(batch).result()

    def execute_async(self, batch: StepBatch) -> DevicePending:
        """Queues a step behind those queued before and does not wait for it."""
        self._check_open()
        check_batch(batch, self._capacity, self._spec, self._num_chosen)
        shape = None
        if self._graphs is not None and not batch.features:
            shape = shape_of(batch, self._spec.max_context)
        arrays = row_arrays(batch)
        if shape is not None:
            arrays = padded(arrays, shape.num_rows)
        with torch.inference_mode():
            views, in_place = self._staging.upload(arrays | sampling_arrays(batch))
            features: list[Tensor] = []
            if shape is not None and self._graphs is not None and in_place:
                views["block_ids_and_beyond"] = self._staging.beyond(views["block_ids"])
                normed = self._graphs.run(shape, views)
            else:
                rows = staged_rows(batch, views).on_device(
                    self._chosen, self._capacity.num_blocks, self._block_size
                )
                layers = self._feature_layers if batch.features else ()
                normed, features = self._model.forward(rows, layers)
            return self._finish(batch, views, normed, features)

    def capture(self, max_requests: int, progress: Callable[[str], None]) -> None:
        """Captures the decode steps of up to so many requests now, not when they are first met.
        Nothing may be queued. Nothing to do where there are no graphs."""
        if self._graphs is None:
            return
        shapes = decode_shapes(max_requests, self._spec.max_context)
        each_with_progress(shapes, self._capture_shape, progress)
        self._warm_start.seal()

    def _capture_shape(self, shape: Shape) -> None:
        assert self._graphs is not None
        with torch.inference_mode():
            views, _ = self._staging.upload(padded(no_rows(), shape.num_rows))
            views["block_ids_and_beyond"] = self._staging.beyond(views["block_ids"])
            self._graphs.run(shape, views)

    def copy_blocks(self, sources: Int32Array, destinations: Int32Array) -> None:
        self._check_open()
        self._blocks.copy(sources, destinations)

    def export_blocks(self, block_ids: Int32Array) -> UInt8Array:
        self._check_open()
        return self._blocks.export(block_ids)

    def import_blocks(self, block_ids: Int32Array, data: UInt8Array) -> None:
        self._check_open()
        self._blocks.restore(block_ids, data)

    def close(self) -> None:
        """Idempotent. Gives back the weights and the cache."""
        if not self._is_open:
            return
        self._is_open = False
        self._warm_start.seal()
        self._graphs = self.host_store = None
        del self._model, self._blocks, self._staging
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def _finish(
        self,
        batch: StepBatch,
        views: Views,
        normed: Tensor,
        features: list[Tensor],
    ) -> DevicePending:
        sampling = device_sampling(batch, views)
        sampled: list[SampleResult] = []
        kept: list[Tensor] = []
        count = len(batch.logit_rows)
        for first in range(0, count, LOGIT_ROWS):
            last = min(first + LOGIT_ROWS, count)
            logits = self._model.logits(normed[views["logit_rows"][first:last]])
            part = sampling if last - first == count else sampling_rows(sampling, first, last)
            sampled.append(self.ops.sample(logits, part))
            if batch.return_logits:
                kept.append(logits)
        self._num_chosen = min(count, MAX_CHOSEN)
        first = 0
        for one in sampled:
            room = self._chosen[first : first + len(one.tokens)]
            room.copy_(one.tokens[: len(room)])
            first += len(room)
        outputs = StepOutputs(
            sampled=sampled,
            top_width=sampling.top_width,
            wants_logprobs=sampling.wants_logprobs,
            logits=kept if batch.return_logits else None,
            hidden=normed[views["hidden_rows"]] if "hidden_rows" in views else None,
            features=torch.cat(features, 1) if features else None,
        )
        return DevicePending(outputs, self.device)

    def _room_for_blocks(self, max_step_rows: int) -> StepRoom | None:
        memory = open_memory(self.device)
        if memory is None:
            return None
        return StepRoom(
            memory,
            self.config.memory_share,
            self._warm_start,
            {
                "executor": self._identity,
                "rows": str(max_step_rows),
                "context": str(self._spec.max_context),
                "block": str(self._block_size),
                "code": code_digest(),
            },
            lambda: run_largest_step(
                self._model, max_step_rows, self._block_size, self.config.kv_cache
            ),
        )

    def _open_blocks(self, room: StepRoom | None) -> None:
        """What an earlier start said of a step and does not fit now is measured."""
        while True:
            try:
                self._capacity = kv_capacity(
                    self._spec, self.config, self._block_size, room.free if room else None
                )
                num_blocks, size = self._capacity.num_blocks, self._block_size
                caches = open_caches(
                    self._spec, self.config.kv_cache, num_blocks, size, self.device
                )
                break
            except (torch.OutOfMemoryError, ConfigError):
                if room is None or not room.forget():
                    raise
        self._model.caches = caches
        self._blocks = BlockStore(caches, num_blocks)

    def _open_host_store(self) -> HostBlocks | None:
        num_slots = int(self.config.host_cache_gib * (1 << 30)) // self._capacity.bytes_per_block
        try:
            return HostBlocks(num_slots, self._blocks, self.device) if num_slots else None
        except RuntimeError as error:
            asked = f"host_cache_gib={self.config.host_cache_gib:g}"
            raise ConfigError(f"{asked}: the system refuses the memory: {error}") from None

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the executor is closed")

    def _make_identity(self, checkpoint: Checkpoint) -> str:
        parts = (
            "trimtab torch executor",
            str(NUMERICS_REVISION),
            checkpoint.identity,
            describe_device(self.device),
            self.ops.name,
            torch.__version__,
            self.config.weights_label,
            self.config.kv_cache,
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _activation_dtype(config: ExecutorConfig) -> torch.dtype:
    return torch.float32 if config.weights == "f32" else torch.bfloat16
